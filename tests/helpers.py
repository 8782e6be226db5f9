"""Two ends, two simulated links and a fake clock: a second of test is an hour of protocol.

In      ends (`KcpEnd`, `ConversationEnd`) with data to write, links with faults, seeds
Out     what arrived, when in simulated ms, and what each link did to the packets
Knows   Kcp, Conversation and their batches. Not: encryption, sockets, threads, the real clock

A packet's buffer is poisoned once its receiver has returned, as a batch is overwritten by the next packets.
"""

import json
from collections import deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, POISON
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.kcp import Flush, Kcp, KcpParams
from kcptun_lite.core.mux.smux import Event, StreamOpened
from kcptun_lite.core.params import ConversationParams

CONV = 0x11223344
CRYPT_HEADROOM = 20  # bytes; nonce and CRC, which travel as zeros here
UDP_IP_BYTES = 28  # of every packet on a link with a rate
CHUNK = 16 * 1024  # bytes in one write

MODES = {
    "normal": (0, 40, 2, 1),
    "fast": (0, 30, 2, 1),
    "fast2": (1, 20, 2, 1),
    "fast3": (1, 10, 2, 1),
    "nc=0": (0, 30, 2, 0),
}
'nodelay, interval, resend, nc (docs/protocol.md, "Modes"), and one with the congestion window on'


def vectors(name: str) -> Any:
    """The content of a file of golden vectors."""
    return json.loads((Path(__file__).parent / "vectors" / f"{name}.json").read_text())


def kcp_params(mode: str = "fast", **changes: Any) -> KcpParams:
    """What `--mode` means, with windows of 1024, and with `changes`."""
    nodelay, interval, resend, nc = MODES[mode]
    settings = {"nodelay": nodelay, "interval": interval, "resend": resend, "nc": nc, "snd_wnd": 1024, "rcv_wnd": 1024}
    return KcpParams(**{**settings, **changes})


def noise(size: int, seed: int = 1) -> bytes:
    """`size` bytes without a pattern."""
    return Random(seed).randbytes(size)


class SimulatedLink:
    """One direction of a network path. Faults are drawn per packet from a seeded generator."""

    def __init__(
        self,
        *,
        loss: float = 0.0,
        delay: int = 0,
        jitter: int = 0,
        reorder: float = 0.0,
        duplicate: float = 0.0,
        rate: float | None = None,
        queue: int = 100,
        largest: int = 65_535,
        seed: int = 1,
    ) -> None:
        """A path that is up.

        Args:
            loss, reorder, duplicate: shares of all packets, 0..1. A reordered packet comes 1 to 20 ms late.
            delay: ms that every packet takes.
            jitter: ms that a packet takes longer at most; later ones may overtake it.
            rate: Mbit/s including UDP and IP headers; None is infinite.
            queue: ms that a packet may wait for its turn on a link with a rate; what would wait longer is lost.
            largest: bytes of a packet; larger ones are lost without a word.
        """
        self.loss = loss
        self.delay = delay
        self.jitter = jitter
        self.reorder = reorder
        self.duplicate = duplicate
        self.rate = rate
        self.queue = queue
        self.largest = largest
        self.sent = 0
        self.lost = 0
        self.overflowed = 0
        "of those lost: in the queue"
        self.bytes_sent = 0
        self._random = Random(seed)
        self._busy_until = 0.0
        self._order = count()
        self._in_flight: list[tuple[int, int, bytearray]] = []

    def send(self, packet: memoryview, now: int) -> None:
        self.sent += 1
        self.bytes_sent += len(packet)
        leaves_at = float(now)
        if self.rate is not None:
            leaves_at = max(leaves_at, self._busy_until) + (len(packet) + UDP_IP_BYTES) * 8 / (self.rate * 1000)
            if leaves_at - now > self.queue:
                self.overflowed += 1
                self.lost += 1
                return
            self._busy_until = leaves_at
        draw = self._random.random
        if len(packet) > self.largest or (self.loss and draw() < self.loss):
            self.lost += 1
            return
        self._put(packet, leaves_at)
        if self.duplicate and draw() < self.duplicate:
            self._put(packet, leaves_at)

    def _put(self, packet: memoryview, leaves_at: float) -> None:
        arrives = int(leaves_at) + self.delay
        if self.jitter:
            arrives += self._random.randint(0, self.jitter)
        if self.reorder and self._random.random() < self.reorder:
            arrives += self._random.randint(1, 20)
        heappush(self._in_flight, (arrives, next(self._order), bytearray(packet)))

    def receive(self, now: int) -> list[bytearray]:
        """All packets that have arrived by `now`, in order of arrival."""
        packets = []
        while self._in_flight and self._in_flight[0][0] <= now:
            packets.append(heappop(self._in_flight)[2])
        return packets

    @property
    def next_arrival(self) -> int | None:
        return self._in_flight[0][0] if self._in_flight else None


class End(Protocol):
    """What a `Pair` drives."""

    def receive(self, packets: Sequence[memoryview], now: int) -> None: ...
    def work(self, now: int) -> None:
        """What the application does at this moment: read, write, react."""

    def tick(self, now: int) -> None: ...
    def transmit(self, link: SimulatedLink, now: int) -> None: ...
    @property
    def deadline(self) -> int | None: ...


E = TypeVar("E", bound=End)


class Pair(Generic[E]):
    """Two ends and the links between them."""

    def __init__(self, a: E, b: E, a_to_b: SimulatedLink, b_to_a: SimulatedLink, *, now: int = 0) -> None:
        self.a = a
        self.b = b
        self.a_to_b = a_to_b
        self.b_to_a = b_to_a
        self.now = now
        self._agenda: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()

    def at(self, ms: int, action: Callable[[], None]) -> None:
        """Do something at a moment of simulated time."""
        heappush(self._agenda, (ms, next(self._order), action))

    def drive(self, until: Callable[[], bool] | None = None, *, limit: int) -> int:
        """Let time pass until the condition holds, and give the ms it took; without one, let `limit` ms pass.

        Raises AssertionError when the condition does not hold within `limit` ms, or can never.
        """
        start, end = self.now, self.now + limit
        while True:
            self._step()
            if until is not None and until():
                return self.now - start
            if self.now >= end:
                assert until is None, f"not done after {limit} ms"
                return limit
            coming = self._next_event()
            assert until is None or coming is not None, f"nothing will happen any more, after {self.now - start} ms"
            self.now = end if coming is None else min(coming, end)

    def _step(self) -> None:
        now = self.now
        while self._agenda and self._agenda[0][0] <= now:
            heappop(self._agenda)[2]()
        for end, link in ((self.a, self.b_to_a), (self.b, self.a_to_b)):
            packets = link.receive(now)
            if packets:
                end.receive([memoryview(packet) for packet in packets], now)
                for packet in packets:
                    packet[:] = bytes([POISON]) * len(packet)
        for end, link in ((self.a, self.a_to_b), (self.b, self.b_to_a)):
            end.tick(now)
            end.work(now)
            end.transmit(link, now)
            deadline = end.deadline
            assert deadline is None or deadline > now, "a deadline that doing the work does not move"

    def _next_event(self) -> int | None:
        coming = (
            self.a_to_b.next_arrival,
            self.b_to_a.next_arrival,
            self.a.deadline,
            self.b.deadline,
            self._agenda[0][0] if self._agenda else None,
        )
        return min((ms for ms in coming if ms is not None), default=None)


class KcpEnd:
    """One Kcp with a reader and a writer: no FEC, no streams."""

    def __init__(self, params: KcpParams, *, first_sn: int = 0, max_packets: int = 64) -> None:
        """`max_packets` is the size of the batch for one flush."""
        self.counters = Counters()
        self.kcp = Kcp(CONV, params, self.counters, headroom=CRYPT_HEADROOM, tailroom=0, first_sn=first_sn)
        self.received = bytearray()
        self.is_reading = True
        self.flushes = 0
        self.on_data: Callable[[], None] = lambda: None
        self._backlog: deque[bytes] = deque()
        self._max_packets = max_packets
        self._batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))

    def write(self, data: bytes) -> None:
        """Hand data over as fast as there is room for it."""
        self._backlog.extend(data[at : at + CHUNK] for at in range(0, len(data), CHUNK))

    @property
    def is_quiet(self) -> bool:
        """Whether all that was written is acknowledged."""
        return not self._backlog and self.kcp.is_quiet

    @property
    def deadline(self) -> int | None:
        return self.kcp.next_deadline()

    def receive(self, packets: Sequence[memoryview], now: int) -> None:
        self.kcp.receive([packet[CRYPT_HEADROOM:] for packet in packets], now)
        self._read()
        self.kcp.received.detach()

    def tick(self, now: int) -> None:
        deadline = self.kcp.next_deadline()
        if deadline is not None and now >= deadline:
            self.kcp.flush_wanted = Flush.EVERYTHING

    def work(self, now: int) -> None:
        self._read()
        kcp = self.kcp
        while self._backlog and kcp.send_room > 0:
            kcp.send(self._backlog.popleft())

    def transmit(self, link: SimulatedLink, now: int) -> None:
        more = self.kcp.flush_wanted is not Flush.NOTHING
        while more:
            self.flushes += 1
            more = self.kcp.flush(self._batch, now, self._max_packets)
            for packet in self._batch.views():
                link.send(packet, now)
            self._batch.clear()
            self.work(now)
            more = more or self.kcp.flush_wanted is Flush.EVERYTHING

    def _read(self) -> None:
        while self.is_reading and (parts := self.kcp.read()):
            for part in parts:
                self.received += part
            self.on_data()


class KcpPair(Pair[KcpEnd]):
    """Two `KcpEnd`s."""

    def __init__(
        self,
        params: KcpParams | None = None,
        *,
        params_b: KcpParams | None = None,
        link: dict[str, Any] | None = None,
        link_back: dict[str, Any] | None = None,
        first_sn: int = 0,
        now: int = 0,
        max_packets: int = 64,
        seed: int = 1,
    ) -> None:
        """`link` are `SimulatedLink`'s arguments, for both directions unless `link_back` has others."""
        params = params or kcp_params()
        super().__init__(
            KcpEnd(params, first_sn=first_sn, max_packets=max_packets),
            KcpEnd(params_b or params, first_sn=first_sn, max_packets=max_packets),
            SimulatedLink(**{"seed": 2 * seed, **(link or {})}),
            SimulatedLink(**{"seed": 2 * seed + 1, **(link_back or link or {})}),
            now=now,
        )

    def exchange(self, to_b: bytes, to_a: bytes, *, limit: int) -> int:
        """Send both ways at once until all is read and acknowledged; the ms it took."""
        self.a.write(to_b)
        self.b.write(to_a)
        before_b, before_a = len(self.b.received), len(self.a.received)
        took = self.drive(lambda: self.a.is_quiet and self.b.is_quiet, limit=limit)
        assert self.b.received[before_b:] == to_b
        assert self.a.received[before_a:] == to_a
        return took


class ConversationEnd:
    """One Conversation whose streams are read at once, unless told otherwise."""

    def __init__(self, params: ConversationParams, *, is_client: bool, now: int = 0) -> None:
        self.counters = Counters()
        self.conversation = Conversation(
            CONV, params, self.counters, is_client=is_client, headroom=CRYPT_HEADROOM, tailroom=0, now=now
        )
        self.events: list[Event] = []
        self.opened: list[int] = []
        "streams of the peer, as they came"
        self.received: dict[int, bytearray] = {}
        self.is_reading = True
        self.on_data: Callable[[int], None] = lambda sid: None
        self._backlog: dict[int, deque[bytes]] = {}
        self._ending: set[int] = set()
        self._batch = PacketBatch(memoryview(bytearray(self.conversation.params.batch_bytes)))

    def open_stream(self) -> int:
        sid = self.conversation.open_stream()
        self.received[sid] = bytearray()
        return sid

    def write(self, sid: int, data: bytes, *, finish: bool = False) -> None:
        """Hand data over as fast as the stream takes it, and then end it if told so."""
        self._backlog.setdefault(sid, deque()).extend(data[at : at + CHUNK] for at in range(0, len(data), CHUNK))
        if finish:
            self._ending.add(sid)

    @property
    def is_quiet(self) -> bool:
        return not self._backlog and not self._ending and self.conversation.kcp.is_quiet

    @property
    def deadline(self) -> int | None:
        return self.conversation.next_deadline()

    def receive(self, packets: Sequence[memoryview], now: int) -> None:
        self.conversation.receive_packets([packet[CRYPT_HEADROOM:] for packet in packets], now)

    def tick(self, now: int) -> None:
        self.conversation.tick(now)

    def work(self, now: int) -> None:
        self._note_events()
        if self.is_reading:
            self._read()
        self._write()

    def transmit(self, link: SimulatedLink, now: int) -> None:
        more = self.conversation.kcp.flush_wanted is not Flush.NOTHING
        while more:
            more = self.conversation.packets_to_send(self._batch, now)
            for packet in self._batch.views():
                link.send(packet, now)
            self._batch.clear()
            self._write()
            more = more or self.conversation.kcp.flush_wanted is Flush.EVERYTHING

    def _note_events(self) -> None:
        for event in self.conversation.take_events():
            self.events.append(event)
            if isinstance(event, StreamOpened):
                self.opened.append(event.sid)
                self.received[event.sid] = bytearray()

    def _read(self) -> None:
        is_fresh = True
        while is_fresh:
            is_fresh = False
            for sid, received in self.received.items():
                while chunks := self.conversation.take_stream_data(sid, CHUNK):
                    received += b"".join(chunks)
                    is_fresh = True
                    self.on_data(sid)
            self._note_events()

    def _write(self) -> None:
        conversation = self.conversation
        for sid in list(self._backlog):
            backlog = self._backlog[sid]
            while backlog:
                chunk = memoryview(backlog[0])
                taken = conversation.send_ahead(sid, chunk) or conversation.send_stream_data(sid, chunk)
                if taken == len(backlog[0]):
                    backlog.popleft()
                elif taken:
                    backlog[0] = backlog[0][taken:]
                else:
                    break
            if not backlog:
                del self._backlog[sid]
        for sid in self._ending - self._backlog.keys():
            conversation.finish_stream(sid)
            self._ending.discard(sid)


class ConversationPair(Pair[ConversationEnd]):
    """A client (`a`) and a server (`b`)."""

    def __init__(
        self,
        params: ConversationParams,
        *,
        params_b: ConversationParams | None = None,
        link: dict[str, Any] | None = None,
        link_back: dict[str, Any] | None = None,
        now: int = 0,
        seed: int = 1,
    ) -> None:
        """As `KcpPair`'s; the client's params for both unless the server has its own."""
        super().__init__(
            ConversationEnd(params, is_client=True, now=now),
            ConversationEnd(params_b or params, is_client=False, now=now),
            SimulatedLink(**{"seed": 2 * seed, **(link or {})}),
            SimulatedLink(**{"seed": 2 * seed + 1, **(link_back or link or {})}),
            now=now,
        )
