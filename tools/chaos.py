"""A tunnel under every fault we know of, while checked streams run through it.

In      a time, a seed, which faults; "ours" or "ours@DIR" for each end
Out     counts; whether any stream was ever delivered wrong, missing or doubled bytes with a clean end
Knows   processes, signals, TCP, the lossy proxy. Not: what is in a packet
Cost    about one core for the streams and the proxy, beside the two programs

Each stream carries known bytes both ways, so at any moment what has arrived must be the beginning of what was sent.
An end of file says "that was all": then nothing may be missing. A reset says nothing, and that is right under faults.
The applications abort some of their streams themselves.

    python tools/chaos.py --seconds 600 --seed 7
"""

import argparse
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from time import monotonic, sleep, strftime

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, start_client, start_server  # noqa: E402
from tests.traffic import Target, connect
from tools.lossy_proxy import Link, LossyProxy  # noqa: E402

OPTIONS = {"mode": "fast3", "sndwnd": 512, "rcvwnd": 512, "datashard": 10, "parityshard": 3}
STREAMS = 8  # at once
PAUSE = (0.2, 2.5)  # s between the end of one fault and the next
GIVE_UP = 150.0  # s without a byte after which a stream hangs for ever: two keep-alives of ours
HEAL_WITHIN = 30.0  # s after the last fault until a stream works, on a busy machine
QUIET_WITHIN = 100.0  # s after the last fault until nothing is left of the streams it has cut: more than one keep-alive
MEMORY_SLACK = 16 << 20  # bytes of RSS that a program may have grown by from its first load to the end
PIECE = 16_384  # bytes sent and checked at a time

_ORDER = struct.Struct("<QQQ")  # seed, bytes up, bytes down
_RESET = struct.pack("ii", 1, 0)

ROUGH = (
    Link(loss=0.2),
    Link(loss=0.05, delay_ms=30, jitter_ms=30),
    Link(duplicate=0.3, reorder=0.3, reorder_ms=20),
    Link(spoil=0.2),
    Link(loss=0.05, duplicate=0.1, reorder=0.1, spoil=0.05, delay_ms=10, jitter_ms=10),
)


class Violation(Exception):
    """A stream has lied."""


class Checker:
    """What one side expects to receive, byte for byte."""

    def __init__(self, seed: int, size: int) -> None:
        self._random = Random(seed)
        self._left = size
        self._pending = b""
        self.received = 0

    def take(self, data: bytes) -> None:
        """Raises: Violation if `data` does not go on where the last left off."""
        while len(self._pending) < len(data) and self._left:
            piece = self._random.randbytes(PIECE)[: self._left]
            self._left -= len(piece)
            self._pending += piece
        if not self._pending.startswith(data):
            raise Violation(f"wrong bytes after {self.received}")
        self._pending = self._pending[len(data) :]
        self.received += len(data)

    @property
    def is_short(self) -> bool:
        return bool(self._left or self._pending)

    def end(self) -> None:
        """Raises: Violation if a clean end comes too early."""
        if self.is_short:
            raise Violation(f"a clean end after {self.received} bytes, {self._left + len(self._pending)} are missing")


def send(sock: socket.socket, seed: int, size: int, is_off: threading.Event) -> None:
    """The bytes a `Checker` of the same seed expects, then the end of this direction; `is_off` tells of errors."""
    random = Random(seed)
    try:
        while size:
            piece = memoryview(random.randbytes(PIECE)[:size])
            size -= len(piece)
            while piece:
                if is_off.is_set():
                    return
                if select.select([], [sock], [], 0.1)[1]:
                    piece = piece[sock.send(piece) :]
        sock.shutdown(socket.SHUT_WR)
    except OSError:
        is_off.set()


class Tally:
    """What has happened so far; thread-safe."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.violations: list[str] = []
        self._lock = threading.Lock()

    def add(self, what: str, count: int = 1) -> None:
        with self._lock:
            self.counts[what] += count

    def blame(self, text: str) -> None:
        with self._lock:
            self.violations.append(text)
        print("VIOLATION", text, file=sys.stderr, flush=True)


def exchange(sock: socket.socket, tally: Tally, where: str, out: tuple[int, int], into: tuple[int, int]) -> None:
    """Send and check at once, each direction a (seed, bytes); leaves the result in the tally."""
    is_off = threading.Event()
    sender = threading.Thread(target=send, args=(sock, *out, is_off), name=f"send-{where}")
    sender.start()
    checker = Checker(*into)
    try:
        while data := sock.recv(PIECE):
            checker.take(data)
        # The kernel tells of a reset once: if it has told the sender, we have read an end of file.
        if checker.is_short and is_off.wait(0.5):
            raise ConnectionResetError
        checker.end()
        sender.join()
        tally.add(f"{where}: complete")
        return
    except Violation as exc:
        tally.blame(f"{where}: {exc}")
    except TimeoutError:
        tally.blame(f"{where}: hangs after {checker.received} bytes")
    except OSError:
        tally.add(f"{where}: reset")
    finally:
        tally.add("bytes checked", checker.received)
    is_off.set()
    sender.join()
    reset(sock)


def reset(sock: socket.socket) -> None:
    """Have the socket closed with a reset: what was sent is not all."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class Streams:
    """Applications at the client's socket, and the target behind the server."""

    def __init__(self, tally: Tally, seed: int) -> None:
        self._tally = tally
        self._seed = seed
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.address = ""
        "the client's socket"

    def start(self) -> None:
        for number in range(STREAMS):
            random = Random(f"{self._seed}/{number}")
            thread = threading.Thread(target=self._apply, args=(random,), name=f"app-{number}")
            self._threads.append(thread)
            thread.start()

    def stop(self) -> None:
        """Let the last ones come to their end."""
        self._over.set()
        for thread in self._threads:
            thread.join()

    def serve(self, sock: socket.socket) -> None:
        """The target's handler."""
        sock.settimeout(GIVE_UP)
        with suppress(OSError):
            header = b""
            while len(header) < _ORDER.size:
                data = sock.recv(_ORDER.size - len(header))
                if not data:
                    self._tally.blame(f"target: a clean end after {len(header)} bytes of the order")
                    return
                header += data
            seed, up, down = _ORDER.unpack(header)
            exchange(sock, self._tally, "target", (seed + 1, down), (seed, up))

    def _apply(self, random: Random) -> None:
        while not self._over.is_set():
            seed, kind = random.getrandbits(60), random.random()
            up, down = (int(2 ** random.uniform(0, 21)) for _ in range(2))
            pause = random.uniform(0, 0.3)
            try:
                sock = connect(self.address, timeout=GIVE_UP)
            except OSError:  # the client has been killed
                self._tally.add("app: refused")
                self._over.wait(0.1)
                continue
            with sock:
                try:
                    sock.sendall(_ORDER.pack(seed, up, down))
                except OSError:
                    self._tally.add("app: reset")
                    continue
                if kind < 0.15:  # an application that gives up
                    self._over.wait(pause)
                    self._tally.add("app: aborted")
                    reset(sock)
                else:
                    exchange(sock, self._tally, "app", (seed, up), (seed + 1, down))
            self._over.wait(pause)


class World:
    """The two programs and the link between them, and what can be done to them."""

    def __init__(
        self, kinds: tuple[str, str], streams: Streams, target: str, seed: int, options: dict[str, object]
    ) -> None:
        self._client_kind, self._server_kind = kinds
        self._options = options
        self._target = target
        self._streams = streams
        self._programs: list[Program] = []
        self._server_address = "127.0.0.1:0"
        self._start_server()
        self.proxy = LossyProxy(self._server_address, Link(), seed=seed)
        self.proxy.__enter__()
        streams.address = "127.0.0.1:0"
        self._start_client()

    def close(self) -> None:
        for program in (self.client, self.server):
            program.stop(signal.SIGKILL)
        self.proxy.__exit__(None, None, None)

    def bugs(self) -> list[str]:
        """What the programs have logged of exceptions nobody expected."""
        lines = [line for program in self._programs for line in program.log]
        return [line for line in lines if "Traceback" in line or "Error(" in line]

    def _start_server(self) -> None:
        options = {"target": self._target, **self._options, "listen": self._server_address}
        self.server, self._server_address = start_server(self._server_kind, options)
        self._programs.append(self.server)

    def _start_client(self) -> None:
        options = {"remoteaddr": self.proxy.address, "localaddr": self._streams.address, **self._options}
        self.client, self._streams.address = start_client(self._client_kind, options)
        self._programs.append(self.client)

    # Faults: each does its harm, repairs what must be repaired, and returns.

    def kill_server(self, random: Random) -> None:
        self.server.stop(signal.SIGKILL)
        sleep(random.uniform(0, 2))
        self._start_server()

    def restart_server(self, random: Random) -> None:
        self.server.stop(signal.SIGTERM, timeout=30)
        self._start_server()

    def kill_client(self, random: Random) -> None:
        self.client.stop(signal.SIGKILL)
        self._start_client()

    def restart_client(self, random: Random) -> None:
        self.client.stop(signal.SIGTERM, timeout=30)
        self._start_client()

    def rough_link(self, random: Random) -> None:
        self.proxy.change(random.choice(ROUGH))
        sleep(random.uniform(1, 4))
        self.proxy.change(Link())

    def cut_link(self, random: Random) -> None:
        self.proxy.change(Link(loss=1.0))
        sleep(random.choice([0.3, 2, 5, 12]))
        self.proxy.change(Link())

    def new_address(self, random: Random) -> None:
        for _ in range(random.randint(1, 3)):
            self.proxy.rebind()
            sleep(random.uniform(0, 0.5))

    def blackhole(self, random: Random) -> None:
        self.proxy.blackhole()
        sleep(4)

    def hang_up(self, random: Random) -> None:
        os.kill(self.client.pid, signal.SIGHUP)

    def freeze(self, random: Random) -> None:
        program = random.choice([self.client, self.server])
        os.kill(program.pid, signal.SIGSTOP)
        sleep(random.uniform(0.5, 6))
        os.kill(program.pid, signal.SIGCONT)

    def starve(self, random: Random) -> None:
        """No descriptor is to be had for a while."""
        program = random.choice([self.client, self.server])
        limits = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (program.descriptor_count() + 1, limits[1]))
        sleep(random.uniform(1, 3))
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)


FAULTS: dict[str, Callable[[World, Random], None]] = {
    "kill-server": World.kill_server,
    "restart-server": World.restart_server,
    "kill-client": World.kill_client,
    "restart-client": World.restart_client,
    "rough-link": World.rough_link,
    "cut-link": World.cut_link,
    "new-address": World.new_address,
    "blackhole": World.blackhole,
    "hang-up": World.hang_up,
    "freeze": World.freeze,
    "starve": World.starve,
}


class Footprint:
    """Threads, descriptors and memory of a program that has been at work and is at rest."""

    def __init__(self, program: Program) -> None:
        self.threads = program.thread_count()
        self.descriptors = program.descriptor_count()
        self.memory = program.rss()

    def __str__(self) -> str:
        return f"{self.threads} threads, {self.descriptors} descriptors, {self.memory / (1 << 20):.1f} MiB"

    def holds(self, later: "Footprint") -> bool:
        return (
            later.threads <= self.threads
            and later.descriptors <= self.descriptors
            and later.memory <= self.memory + MEMORY_SLACK
        )


def ask(address: str, size: int = 1 << 20, timeout: float = 5.0) -> bool:
    """Whether a fresh stream of `size` bytes each way works."""
    tally = Tally()
    with suppress(OSError), connect(address, timeout) as sock:
        sock.sendall(_ORDER.pack(1, size, size))
        exchange(sock, tally, "app", (1, size), (2, size))
    return tally.counts["app: complete"] == 1


def wait_for(condition: Callable[[], bool], seconds: float) -> float | None:
    """Seconds until the condition held; None if it did not in time."""
    start = monotonic()
    while monotonic() - start < seconds:
        if condition():
            return monotonic() - start
        sleep(0.05)
    return None


def wait_for_rest(program: Program, first: Footprint) -> Footprint:
    """The footprint once it is no more than it was, or the last one looked at."""
    wait_for(lambda: first.holds(Footprint(program)), QUIET_WITHIN)
    return Footprint(program)


def run(
    seconds: float, seed: int, faults: Sequence[str], kinds: tuple[str, str], options: dict[str, object], report: float
) -> Tally:
    """Chaos for a time, then order; everything that was wrong is in the tally's violations."""
    random = Random(seed)
    tally = Tally()
    streams = Streams(tally, seed)
    with Target(streams.serve) as target:
        world = World(kinds, streams, target.address, seed, options)
        try:
            for _ in range(3):
                if not ask(streams.address, 4 << 20, 30.0):
                    tally.blame("the tunnel does not work before anything has been done to it")
            before = [Footprint(program) for program in (world.client, world.server)]
            streams.start()
            end = monotonic() + seconds
            next_report = monotonic() + report
            while monotonic() < end and not tally.violations:
                name = random.choice(faults)
                FAULTS[name](world, random)
                tally.add(name)
                sleep(random.uniform(*PAUSE))
                if monotonic() >= next_report:
                    next_report += report
                    state = [str(Footprint(program)) for program in (world.client, world.server)]
                    print(strftime("%H:%M:%S"), dict(tally.counts), *state, flush=True)
            if wait_for(lambda: ask(streams.address), HEAL_WITHIN) is None:
                tally.blame(f"no stream works {HEAL_WITHIN:g} s after the last fault")
            streams.stop()
            for program, first in zip((world.client, world.server), before, strict=True):
                last = wait_for_rest(program, first)
                print(f"{program.name}: {first} before, {last} after", flush=True)
                if not first.holds(last):
                    tally.blame(f"{program.name}: {first} before, {last} after")
        finally:
            world.close()
        for line in world.bugs():
            tally.blame(line)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60, help="of chaos; order takes up to two minutes more")
    parser.add_argument("--seed", type=int, default=1, help="the same seed has the same faults in the same order")
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS), metavar="FAULT")
    parser.add_argument("--client", default="ours", help='"ours" or "ours@DIR" for another checkout')
    parser.add_argument("--server", default="ours")
    parser.add_argument("--smuxver", type=int, default=1)
    parser.add_argument("--report", type=float, default=60, help="seconds between lines of counts")
    given = parser.parse_args()
    options = {**OPTIONS, "smuxver": given.smuxver}
    tally = run(given.seconds, given.seed, given.faults, (given.client, given.server), options, given.report)
    for what, count in sorted(tally.counts.items()):
        print(f"{count:>14,} {what}")
    print("no violation" if not tally.violations else f"{len(tally.violations)} VIOLATIONS")
    return bool(tally.violations)


if __name__ == "__main__":
    sys.exit(main())
