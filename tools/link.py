"""Two hosts on one machine, joined by a bad line: it loses, delays, limits and queues whole IP packets.

In      a `Line` for each direction, a seed
Out     two network namespaces, "client" and "server"; what happened to the packets between them
Knows   TUN devices, namespaces, epoll, iproute2; needs root. Not: what is in a packet
Cost    8 us per packet: 100 Mbit/s of 1400 bytes both ways take a fifth of a core

Unlike tools/lossy_proxy.py it carries every protocol, so plain TCP can be measured beside a tunnel, and each
program has the kernel's own queues. The devices take over checksums but no segmentation, as a plain network card
does: a UDP or TCP buffer sent with offload is cut by the kernel first, and each packet meets its own fate.

    python tools/link.py --delay-ms 50 --loss 0.05 --rate-mbit 100     # says how to use it; Ctrl-C ends it

    with Link(Line(delay_ms=50, loss=0.05)) as link:
        with link.inside("server"):
            listener = socket.create_server((link.SERVER, 0))          # or start a program
"""

import argparse
import ctypes
import fcntl
import json
import os
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from heapq import heappop, heappush
from pathlib import Path
from random import Random
from time import monotonic, sleep
from types import TracebackType
from typing import Any

CLIENT, SERVER = "10.77.0.1", "10.77.0.2"
MTU = 1500
DEVICE_QUEUE = 10_000  # packets between the kernel and us: losses shall happen here, by the book
TURN = 0.0002  # s between looks at the devices and the clock: a wake-up costs more than a packet
READ_TURN = 64  # packets read from one side before the delayed ones get their turn
START_TIMEOUT = 10.0  # s
LINK_PRIORITY = 10  # of SCHED_FIFO

# <linux/if_tun.h>, <linux/virtio_net.h>, <sched.h>
TUNSETIFF = 0x400454CA
TUNSETOFFLOAD = 0x400454D0
IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 0x0001, 0x1000, 0x4000
TUN_F_CSUM = 0x01
VNET_HEADER = 10  # bytes in front of a packet: what is left to do about its checksum; passed on as it came
CLONE_NEWNET = 0x40000000


@dataclass(frozen=True)
class Line:
    """What one direction does to IP packets."""

    loss: float = 0.0
    "share of the packets, 0 to 1; with `burst_ms`, share of the time"
    burst_ms: float = 0.0
    "mean length of an outage in which everything is lost (Gilbert's channel); 0: each packet by itself"
    delay_ms: float = 0.0
    "one way"
    jitter_ms: float = 0.0
    "up to this much more delay, drawn for each packet; it reorders"
    rate_mbit: float = 0.0
    "of IP packets; 0: unlimited"
    queue_kb: float = 512.0
    "what may wait for the rate; what finds it full is lost"

    def __post_init__(self) -> None:
        if not 0 <= self.loss < 1:
            raise ValueError("loss is a share from 0 to less than 1")
        if min(self.burst_ms, self.delay_ms, self.jitter_ms, self.rate_mbit, self.queue_kb) < 0:
            raise ValueError("no property of a line is negative")


@dataclass
class LaneCounters:
    """What one direction did so far; packets, where nothing else is said."""

    offered: int = 0
    offered_bytes: int = 0
    carried: int = 0
    lost: int = 0
    overflowed: int = 0
    "found the queue full"
    refused: int = 0
    "by the kernel of the receiving host"
    late_ms: float = 0.0
    "how much later than planned packets were delivered, on average"


class Outages:
    """Good and bad times in turn, of exponential length, so that a share of the time is bad."""

    def __init__(self, share: float, mean_ms: float, random: Random) -> None:
        self._rates = 1000 / mean_ms, 1000 / (mean_ms * (1 - share) / share)  # to the end of a bad and a good time
        self._draw = random.expovariate
        self._is_bad = False
        self._until: float | None = None

    def is_bad(self, now: float) -> bool:
        """Whether `now` (s, never going back) is in an outage."""
        until = now + self._draw(self._rates[1]) if self._until is None else self._until
        while until <= now:
            self._is_bad = not self._is_bad
            until += self._draw(self._rates[0 if self._is_bad else 1])
        self._until = until
        return self._is_bad


class Lane:
    """One direction: packets go in as they come, and out when their time has come.

    Which packets are lost by themselves depends on the seed and their number alone, when outages are on the
    seed and the time since the first packet.
    """

    def __init__(self, line: Line, random: Random) -> None:
        self.counters = LaneCounters()
        self._random = random.random
        self._outages = Outages(line.loss, line.burst_ms, random) if line.loss and line.burst_ms else None
        self._loss = line.loss
        self._delay = line.delay_ms / 1000
        self._jitter = line.jitter_ms / 1000
        self._byte_time = 8e-6 / line.rate_mbit if line.rate_mbit else 0.0
        self._queue_time = line.queue_kb * 1000 * self._byte_time
        self._free_at = 0.0  # s; when the line has sent all that waits
        self._under_way: list[tuple[float, int, bytes]] = []

    def put(self, packet: bytes, size: int, now: float) -> None:
        """A packet, `size` bytes on the line, comes at `now` (s)."""
        counters = self.counters
        counters.offered += 1
        counters.offered_bytes += size
        leaves_at = now
        if self._byte_time:
            leaves_at = self._free_at if self._free_at > now else now
            if leaves_at - now > self._queue_time:
                counters.overflowed += 1
                return
            leaves_at += size * self._byte_time
            self._free_at = leaves_at
        if self._loss and (self._outages.is_bad(now) if self._outages else self._random() < self._loss):
            counters.lost += 1
            return
        due = leaves_at + self._delay
        if self._jitter:
            due += self._random() * self._jitter
        heappush(self._under_way, (due, counters.offered, packet))

    def due(self, now: float) -> list[bytes]:
        """Packets whose time has come, the earliest first."""
        under_way = self._under_way
        packets: list[bytes] = []
        late = 0.0
        while under_way and under_way[0][0] <= now:
            at, _, packet = heappop(under_way)
            late += now - at
            packets.append(packet)
        if packets:
            counters = self.counters
            before = counters.carried
            counters.carried += len(packets)
            counters.late_ms = (counters.late_ms * before + late * 1000) / counters.carried
        return packets

    @property
    def is_busy(self) -> bool:
        """Whether packets are under way."""
        return bool(self._under_way)


class Hosts:
    """Two namespaces with a TUN device each; `with` makes them and takes them away."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._made: list[str] = []
        self.descriptors: list[int] = []
        "of the two devices, client and server; non-blocking"

    def __enter__(self) -> "Hosts":
        try:
            for name, address in zip(self._names, (CLIENT, SERVER), strict=True):
                _ip("netns", "add", name)
                self._made.append(name)
                device = f"{name[:11]}-tun"
                self.descriptors.append(_open_tun(device))
                _ip("link", "set", device, "netns", name)
                _ip("-n", name, "address", "add", f"{address}/24", "dev", device)
                # Without an IPv6 address of its own a host sends nothing that nobody has asked for.
                _ip("-n", name, "link", "set", device, "addrgenmode", "none")
                _ip("-n", name, "link", "set", device, "mtu", str(MTU), "txqueuelen", str(DEVICE_QUEUE), "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        for descriptor in self.descriptors:
            os.close(descriptor)
        for name in self._made:
            _ip("netns", "delete", name)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def _open_tun(device: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
    fcntl.ioctl(descriptor, TUNSETOFFLOAD, TUN_F_CSUM)
    return descriptor


def carry(descriptors: Sequence[int], lanes: Sequence[Lane]) -> None:
    """Move packets between the two devices until an exception (of a signal) ends it."""
    roads = {descriptors[0]: (lanes[0], descriptors[1]), descriptors[1]: (lanes[1], descriptors[0])}
    poll = select.epoll()
    for descriptor in roads:
        poll.register(descriptor, select.EPOLLIN)
    read, write = os.read, os.write
    while True:
        is_busy = lanes[0].is_busy or lanes[1].is_busy
        if is_busy:
            sleep(TURN)
        for descriptor, _ in poll.poll(0 if is_busy else -1):
            put = roads[descriptor][0].put
            try:
                for _ in range(READ_TURN):
                    packet = read(descriptor, VNET_HEADER + MTU)
                    put(packet, len(packet) - VNET_HEADER, monotonic())
            except BlockingIOError:
                pass
        now = monotonic()
        for lane, out in roads.values():
            for packet in lane.due(now):
                try:
                    write(out, packet)
                except OSError:
                    lane.counters.refused += 1


class Link:
    """The hosts and their line, in a process of its own; `with` starts and stops it."""

    CLIENT, SERVER = CLIENT, SERVER

    def __init__(self, up: Line, down: Line | None = None, *, seed: int = 1) -> None:
        """`up` is from client to server; `down` is the same if it is None."""
        self._lines = up, down or up
        self._seed = seed
        self.counters: dict[str, dict[str, float]] = {}
        "of the lanes up and down, after the end"

    def __enter__(self) -> "Link":
        """Raises: RuntimeError with what the process said if it does not come to life."""
        script = str(Path(__file__).resolve())
        arguments = [f"--{key}={value}" for key, value in _arguments(*self._lines).items()]
        command = [sys.executable, script, f"--seed={self._seed}", *arguments]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        first = self._process.stdout.readline()
        if not first.startswith("{"):
            raise RuntimeError(f"no link: {self._process.communicate()[1]}")
        self._names: dict[str, str] = json.loads(first)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._process.terminate()
        out, _ = self._process.communicate(timeout=START_TIMEOUT)
        self.counters = json.loads(out.splitlines()[-1])

    @contextmanager
    def inside(self, host: str) -> Iterator[None]:
        """In the block, sockets that this thread makes and programs that it starts are on "client" or "server"."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            there = os.open(f"/run/netns/{self._names[host]}", os.O_RDONLY)
            try:
                _enter_network(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _enter_network(home)
        finally:
            os.close(home)


def _enter_network(descriptor: int) -> None:
    # os.setns, of Python 3.12, for 3.11 as well
    if ctypes.CDLL(None, use_errno=True).setns(descriptor, CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")


# -- the command line --------------------------------------------------------------------------------------


def _arguments(up: Line, down: Line) -> dict[str, float]:
    """Option names and values that describe the two lines."""
    both = {name.replace("_", "-"): value for name, value in asdict(up).items()}
    return both | {f"down-{name.replace('_', '-')}": value for name, value in asdict(down).items()}


def _lines(options: argparse.Namespace) -> tuple[Line, Line]:
    values: dict[str, Any] = vars(options)
    names = [field.name for field in fields(Line)]
    up = {name: values[name] for name in names}
    down = {name: up[name] if values[f"down_{name}"] is None else values[f"down_{name}"] for name in names}
    return Line(**up), Line(**down)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for field in fields(Line):
        name = field.name.replace("_", "-")
        parser.add_argument(f"--{name}", type=float, default=field.default, metavar="X", help=f"({field.default})")
        parser.add_argument(
            f"--down-{name}", type=float, metavar="X", help="the same for server to client, if it differs"
        )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of what is lost (1)")
    return parser.parse_args()


def main() -> None:
    """Make the hosts, say their names as JSON, carry until a signal comes, say the counters as JSON."""
    options = _parse_arguments()
    lanes = [Lane(line, Random(f"{options.seed} {way}")) for line, way in zip(_lines(options), "ud", strict=True)]
    names = {host: f"link{os.getpid()}-{host[0]}" for host in ("client", "server")}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with Hosts([*names.values()]) as hosts:
        print(json.dumps(names), flush=True)
        if sys.stdout.isatty():
            print(
                f"ip netns exec {names['client']} COMMAND reaches {SERVER}, {names['server']} {CLIENT}; Ctrl-C ends it"
            )
        # A line does not wait for its turn on the processor, however many programs it joins.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(LINK_PRIORITY))
        try:
            carry(hosts.descriptors, lanes)
        except (KeyboardInterrupt, SystemExit):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print(json.dumps({way: asdict(lane.counters) for way, lane in zip(("up", "down"), lanes, strict=True)}))


if __name__ == "__main__":
    try:
        main()
    except OSError as exc:
        sys.exit(f"{exc} (needs root, /dev/net/tun and iproute2)")
