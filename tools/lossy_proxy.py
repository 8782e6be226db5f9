"""A bad network on loopback: a UDP relay that loses, delays, reorders, doubles and spoils datagrams.

In      datagrams from clients and from one server, a `Link` for each direction, a seed
Out     the same datagrams, less some, later, in another order; counts of what was done to them
Knows   UDP sockets, epoll. Not: what is in a datagram
Cost    10 us per datagram: 45,000 a second take less than half a core

The fate of the n-th datagram of a direction depends on the seed and on n alone, never on the clock, so
that a loss pattern comes back with its seed. Every client address gets a server-side socket of its own,
as behind a NAT: the server sees as many peers as there are.

    python tools/lossy_proxy.py --server 127.0.0.1:29900 --loss 0.05 --delay-ms 20 --seed 7
"""

import argparse
import json
import select
import signal
import socket
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from random import Random
from time import monotonic
from types import TracebackType

MAX_DATAGRAM = 65_535  # bytes
RECEIVE_TURN = 64  # datagrams taken from one socket before the others and the delayed ones get their turn
SOCKET_BUFFER = 4 << 20  # bytes; a burst of one whole KCP window must fit, or the proxy would lose by itself


@dataclass(frozen=True)
class Link:
    """What one direction does to datagrams. Probabilities run from 0 to 1."""

    loss: float = 0.0
    duplicate: float = 0.0
    reorder: float = 0.0
    "probability of being held back by `reorder_ms` while later ones pass"
    reorder_ms: float = 5.0
    spoil: float = 0.0
    "probability of a damaged copy (bits flipped, cut short, or noise) behind the good one"
    delay_ms: float = 0.0
    "one way"
    jitter_ms: float = 0.0
    "up to this much more delay, drawn for each datagram; it reorders"
    rate_mbit: float = 0.0
    "0: unlimited"
    queue_kb: float = 256.0
    "what waits for the rate before datagrams overflow"
    largest: float = 65_535
    "bytes of a datagram; larger ones are lost without a word"

    def __post_init__(self) -> None:
        for name in ("loss", "duplicate", "reorder", "spoil"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a probability from 0 to 1")
        for name in ("reorder_ms", "delay_ms", "jitter_ms", "rate_mbit", "queue_kb", "largest"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative")


@dataclass
class LaneCounters:
    """What happened to the datagrams of one direction."""

    received: int = 0
    received_bytes: int = 0
    largest: int = 0
    "bytes of the largest datagram received"
    lost: int = 0
    overflowed: int = 0
    duplicated: int = 0
    reordered: int = 0
    spoilt: int = 0
    delivered: int = 0
    refused: int = 0
    "not taken by the kernel, or nobody there"


Deliver = Callable[[bytes], object]


class Lane:
    """One direction: takes datagrams, gives them back when their time has come."""

    def __init__(self, link: Link, seed: int) -> None:
        self.counters = LaneCounters()
        self._link = link
        self._random = Random(seed)
        self._noise = Random(seed)
        self._waiting: list[tuple[float, int, bytes, Deliver]] = []
        self._order = 0  # breaks ties in the heap
        self._free_at = 0.0  # s; when the rate-limited line has sent all it holds

    def change(self, link: Link) -> None:
        """From the next datagram on the lane is like this."""
        self._link = link

    def offer(self, data: bytes, deliver: Deliver, now: float) -> None:
        """Decide the fate of a datagram; `deliver` is called with it, or its copies, now or in `release`."""
        link, draw, counters = self._link, self._random.random, self.counters
        counters.received += 1
        counters.received_bytes += len(data)
        counters.largest = max(counters.largest, len(data))
        # Each feature in use draws once for each datagram, whatever else becomes of it: the pattern is the seed's.
        lost = (link.loss and draw() < link.loss) or len(data) > link.largest
        doubled = link.duplicate and draw() < link.duplicate
        held_back = link.reorder and draw() < link.reorder
        spoilt = link.spoil and draw() < link.spoil
        delay = link.delay_ms / 1000
        if link.jitter_ms:
            delay += link.jitter_ms / 1000 * draw()
        due = now
        if link.rate_mbit:
            begin = max(self._free_at, now)
            if (begin - now) * link.rate_mbit * 125_000 + len(data) > link.queue_kb * 1024:
                counters.overflowed += 1
                return
            due = self._free_at = begin + len(data) / (link.rate_mbit * 125_000)
        due += delay
        if spoilt:
            counters.spoilt += 1
            self._schedule(self._spoil(data), deliver, due, now)
        if lost:
            counters.lost += 1
            return
        if doubled:
            counters.duplicated += 1
            self._schedule(data, deliver, due, now)
        if held_back:
            counters.reordered += 1
            due += link.reorder_ms / 1000
        self._schedule(data, deliver, due, now)

    def release(self, now: float) -> None:
        """Deliver all whose time has come."""
        waiting = self._waiting
        while waiting and waiting[0][0] <= now:
            _, _, data, deliver = heappop(waiting)
            self._deliver(data, deliver)

    def next_due(self) -> float | None:
        """The time (s, monotonic) of the earliest waiting datagram."""
        return self._waiting[0][0] if self._waiting else None

    def _schedule(self, data: bytes, deliver: Deliver, due: float, now: float) -> None:
        if due <= now:
            self._deliver(data, deliver)
            return
        self._order += 1
        heappush(self._waiting, (due, self._order, data, deliver))

    def _deliver(self, data: bytes, deliver: Deliver) -> None:
        try:
            deliver(data)
        except OSError:
            self.counters.refused += 1
        else:
            self.counters.delivered += 1

    def _spoil(self, data: bytes) -> bytes:
        random = self._noise
        damage = random.randrange(3) if data else 2
        if damage == 0:
            damaged = bytearray(data)
            for _ in range(random.randint(1, 8)):
                damaged[random.randrange(len(damaged))] ^= 1 << random.randrange(8)
            return bytes(damaged)
        if damage == 1:
            return data[: random.randrange(len(data))]
        return random.randbytes(random.randint(0, 1500))


def resolve(address: str) -> tuple[socket.AddressFamily, tuple[str, int]]:
    """Family and socket address of "host:port" or "[v6]:port"."""
    host, _, port = address.rpartition(":")
    found = socket.getaddrinfo(host.strip("[]") or "127.0.0.1", int(port), type=socket.SOCK_DGRAM)
    family, _, _, _, (number, *_) = found[0]
    return family, (str(number), int(port))


class LossyProxy:
    """Relays between any number of clients and `server`; `with` runs it in a thread of its own."""

    def __init__(
        self, server: str, up: Link, down: Link | None = None, *, seed: int = 1, listen: str = "127.0.0.1:0"
    ) -> None:
        """`up` is client to server; `down` None means the same as `up`. Raises OSError if `listen` is taken."""
        self.up = Lane(up, seed)
        self.down = Lane(up if down is None else down, seed + 1)
        self._server_family, self._server = resolve(server)
        family, here = resolve(listen)
        self._front = socket.socket(family, socket.SOCK_DGRAM)
        self._front.bind(here)
        host, port = self._front.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        "where clients go: host:port"
        self._ways: dict[tuple[str, int], Deliver] = {}
        self._backs: dict[int, tuple[socket.socket, Deliver]] = {}
        self._orders: deque[str] = deque()
        self._bell, self._waker = socket.socketpair()
        self._epoll = select.epoll()
        for sock in (self._front, self._bell):
            self._watch(sock)
        self._thread: threading.Thread | None = None

    def run(self) -> None:
        """Relay until `stop` is called, from another thread or from a signal handler."""
        front, bell = self._front.fileno(), self._bell.fileno()
        while True:
            dues = [due for lane in (self.up, self.down) if (due := lane.next_due()) is not None]
            timeout = max(0.0, min(dues) - monotonic()) if dues else None
            ready = self._epoll.poll(timeout)
            while self._orders:
                self._obey(self._orders.popleft())
            for fd, _ in ready:
                if fd == bell:
                    return
                if fd == front:
                    self._from_clients()
                elif fd in self._backs:
                    self._from_server(*self._backs[fd])
            now = monotonic()
            self.up.release(now)
            self.down.release(now)

    def stop(self) -> None:
        """End `run`; safe in a signal handler and when it has ended already."""
        self._waker.send(b"!")

    def close(self) -> None:
        """Close all sockets; waiting datagrams are dropped."""
        self._epoll.close()
        for sock in (self._front, self._bell, self._waker, *(back for back, _ in self._backs.values())):
            sock.close()

    def __enter__(self) -> "LossyProxy":
        self._thread = threading.Thread(target=self.run, name="lossy-proxy")
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
        assert self._thread is not None
        self._thread.join()
        self.close()

    def change(self, link: Link) -> None:
        """Both directions are like this from now on; from any thread."""
        self.up.change(link)
        self.down.change(link)

    def rebind(self) -> None:
        """The server sees all clients at new addresses from their next datagram on, as behind a NAT that restarts."""
        self._orders.append("rebind")

    def blackhole(self) -> None:
        """What clients send from the sockets they have now leads nowhere from now on; new sockets are well."""
        self._orders.append("blackhole")

    def _obey(self, order: str) -> None:
        for back, _ in self._backs.values():
            self._epoll.unregister(back)
            back.close()
        self._backs.clear()
        for client in list(self._ways):
            del self._ways[client]
            if order == "blackhole":
                self._ways[client] = len

    def _watch(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SOCKET_BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER)
        self._epoll.register(sock, select.EPOLLIN)

    def _from_clients(self) -> None:
        receive, offer, ways = self._front.recvfrom, self.up.offer, self._ways
        now = monotonic()
        try:
            for _ in range(RECEIVE_TURN):
                data, client = receive(MAX_DATAGRAM)
                offer(data, ways.get(client) or self._new_way(client), now)
        except OSError:  # nothing left, or a returned ICMP error
            return

    def _from_server(self, back: socket.socket, deliver: Deliver) -> None:
        receive, offer = back.recv, self.down.offer
        now = monotonic()
        try:
            for _ in range(RECEIVE_TURN):
                offer(receive(MAX_DATAGRAM), deliver, now)
        except OSError:
            return

    def _new_way(self, client: tuple[str, int]) -> Deliver:
        back = socket.socket(self._server_family, socket.SOCK_DGRAM)
        back.connect(self._server)
        self._watch(back)
        send_front = self._front.sendto
        self._backs[back.fileno()] = back, lambda data: send_front(data, client)
        self._ways[client] = back.send
        return back.send


def main() -> None:
    """The command line; counters of both directions go to standard output as JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], epilog="SIGTERM or SIGINT ends it.")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="where clients go (%(default)s)")
    parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where their datagrams go")
    parser.add_argument("--seed", type=int, default=1, help="the same seed loses the same datagrams (%(default)s)")
    parser.add_argument(
        "--only", default="both", choices=["up", "down", "both"], help="leave the other direction clean"
    )
    for name, default in asdict(Link()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=float, default=default, help="(%(default)s)")
    options = vars(parser.parse_args())
    try:
        link = Link(**{name: options[name] for name in asdict(Link())})
        up, down = (Link() if options["only"] == other else link for other in ("down", "up"))
        proxy = LossyProxy(options["server"], up, down, seed=options["seed"], listen=options["listen"])
    except (OSError, ValueError) as exc:
        parser.error(str(exc))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: proxy.stop())
    print(f"listening on: {proxy.address}", file=sys.stderr, flush=True)
    proxy.run()
    proxy.close()
    print(json.dumps({"up": asdict(proxy.up.counters), "down": asdict(proxy.down.counters)}))


if __name__ == "__main__":
    main()
