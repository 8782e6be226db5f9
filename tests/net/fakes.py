"""Sessions without a network: what the tests of net/ and app/ build their rooms from.

In      settings
Out     plants, sessions at the two ends of a wire that a test holds in its hand
Knows   the insides of sessions. Not: encryption

Nothing here sleeps: time is a number that the test moves, or a condition that is waited for.
"""

import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from threading import Condition, Lock, Thread
from typing import Any, Self, cast

import pytest

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.kcp.kcp import Flush, KcpParams
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.wire import KCP_PUSH, KCP_SEGMENT, MTU_MAX
from kcptun_lite.errors import SessionError, TransportError
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.failed_packets import FailedPackets
from kcptun_lite.net.ends.path_sizes import PathSizes
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session import session as session_room
from kcptun_lite.net.session import stream as stream_room
from kcptun_lite.net.session import transmitter as transmitter_room
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import UpdateThread

PATIENCE_S = 10.0  # how long a condition may take on a busy machine; nothing waits that long when all is well
CONV = 0x11223344
CLIENT: Address = ("10.0.0.1", 1000)
SERVER: Address = ("10.0.0.9", 29900)
ELSEWHERE: Address = ("10.0.0.2", 2000)


def wait_until(condition: Callable[[], bool], what: str = "") -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what or condition}"
        time.sleep(0.001)


def noise(size: int, seed: int = 1) -> bytes:
    """`size` bytes without a pattern."""
    return Random(seed).randbytes(size)


# -- one end -----------------------------------------------------------------------------------------------


class FakeLoop:
    """Stands in for an EventLoop whose thread is the test's: nothing comes, and what is to be done later is noted."""

    is_here = True

    def __init__(self) -> None:
        self.later: list[Callable[[], None]] = []
        self.watched: set[int] = set()

    def watch(self, number: int, callback: Callable[[], None], *, to_write: bool = False) -> None:
        self.watched.add(number)

    def forget(self, number: int) -> None:
        self.watched.discard(number)

    def call(self, function: Callable[[], None]) -> None:
        function()

    def afterwards(self, function: Callable[[], None]) -> None:
        function()

    def call_later(self, delay_s: float, function: Callable[[], None]) -> None:
        self.later.append(function)


def make_context(
    params: ConversationParams | None = None, *, crypt: str = "null", rate: int = 0, loop: EventLoop | None = None
) -> SessionContext:
    """What sessions share; bare KCP in clear with small windows unless told otherwise. Its ticker is not started."""
    return SessionContext(
        params=params or small_params(),
        crypt=crypt,
        key=bytes(32),
        pool=BufferPool(Lock(), poison=True),
        ticker=UpdateThread(),
        loop=loop or cast(Any, FakeLoop()),
        rate=rate,
        failed_packets=FailedPackets(),
        path_sizes=PathSizes(),
    )


def small_params(*, snd_wnd: int = 32, rcv_wnd: int = 64, **changes: Any) -> ConversationParams:
    settings: dict[str, Any] = {"data_shards": 0, "parity_shards": 0, "compress": False, **changes}
    kcp = KcpParams(nodelay=1, interval=10, resend=2, nc=1, snd_wnd=snd_wnd, rcv_wnd=rcv_wnd, mtu=1400)
    return ConversationParams(kcp, **settings)


_SILENT = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # nothing ever comes in


class FakeUdp:
    """Stands in for a UdpSocket: what is sent stays here."""

    def __init__(self, address: Address = SERVER) -> None:
        self.address = address
        self.last_error: OSError | None = None
        self.is_closed = False
        self.sent: list[tuple[bytes, Address]] = []
        "every packet and where it was sent to"

    def fileno(self) -> int:
        return _SILENT.fileno()

    def for_peer(self, peer: Address, local: object = None) -> Self:
        raise OSError("no second socket without a network")

    def room(self, address: Address) -> int:
        return MTU_MAX

    def send(self, packets: Sequence[memoryview], address: Address, local: object = None) -> int:
        if self.is_closed:
            raise TransportError("the UDP socket is closed")
        self.sent += [(bytes(packet), address) for packet in packets]
        return len(packets)

    def close(self) -> None:
        self.is_closed = True


class Peer:
    """A plain UDP socket in the test's hand, on loopback."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.settimeout(PATIENCE_S)
        self.address: Address = self._socket.getsockname()

    def send(self, packet: memoryview, address: Address) -> None:
        self._socket.sendto(packet, ("127.0.0.1", address[1]))

    def receive(self) -> tuple[bytes, Address]:
        packet, source = self._socket.recvfrom(2048)
        return packet, source

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class End:
    """A session with a `FakeUdp`, and notes of what it tells its owner."""

    def __init__(self, context: SessionContext, now: int, *, is_client: bool, is_validated: bool = True) -> None:
        self.udp = FakeUdp(CLIENT if is_client else SERVER)
        self.opened: list[Stream] = []
        self.troubles = 0
        self.closed: list[SessionError] = []
        self.session = context.make_session(
            CONV,
            context.params,
            cast(Any, self.udp),
            SERVER if is_client else CLIENT,
            is_client=is_client,
            now=now,
            on_stream=lambda session, stream: self.opened.append(stream),
            on_trouble=self._note_trouble,
            on_closed=lambda session, reason: self.closed.append(reason),
        )
        if is_validated and not is_client:
            self.session.conversation.validation.is_validated = True
            self.session.conversation.kcp.is_terse = False

    def _note_trouble(self, session: Session) -> None:
        self.troubles += 1

    @property
    def sent_bytes(self) -> int:
        return sum(len(packet) for packet, _ in self.udp.sent)


# -- two ends ----------------------------------------------------------------------------------------------


class Clock:
    """ms that pass when the test says so."""

    def __init__(self, now: int = 1_000_000) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def set_clock(monkeypatch: pytest.MonkeyPatch, clock: Callable[[], int]) -> None:
    """Make it the clock of all that belongs to sessions: the machine's is its uptime, which might fit by chance."""
    for room in (session_room, stream_room, transmitter_room):
        monkeypatch.setattr(room, "monotonic_ms", clock)


class Wire:
    """A client, a server, and what lies between them: carried by hand (`carry`) or by a thread (`carrying`)."""

    def __init__(self, context: SessionContext, clock: Callable[[], int], *, is_validated: bool = True) -> None:
        self.client = End(context, clock(), is_client=True)
        self.server = End(context, clock(), is_client=False, is_validated=is_validated)
        self.is_cut = False
        "what is sent meanwhile is lost"
        self._clock = clock
        self._carried = {id(self.client): 0, id(self.server): 0}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.session.close()
        self.server.session.close()

    def carry(self) -> None:
        """Let time stand still and packets travel until neither end has more to say."""
        while any([self._carry_one(self.client, self.server), self._carry_one(self.server, self.client)]):
            for end in (self.client, self.server):
                if end.session.conversation.kcp.flush_wanted is not Flush.NOTHING:
                    end.session.transmit()

    def _carry_one(self, source: End, target: End) -> bool:
        sent = source.udp.sent
        first, last = self._carried[id(source)], len(sent)
        self._carried[id(source)] = last
        if first == last or self.is_cut:
            return False
        packets = [memoryview(bytearray(packet)) for packet, _ in sent[first:last]]
        target.session.receive(packets, self._clock())
        for packet in packets:
            packet[:] = b"\xdd" * len(packet)
        return True

    def pass_time(self, ms: int, step: int = 10) -> None:
        """Move the clock in steps, as the update thread would have it, and carry what comes of it."""
        clock = self._clock
        assert isinstance(clock, Clock)
        for _ in range(0, ms, step):
            clock.now += step
            self.client.session.update(clock.now)
            self.server.session.update(clock.now)
            self.carry()

    @contextmanager
    def carrying(self) -> Iterator[None]:
        """A thread that carries, on the real clock, until the block ends."""
        is_over = False
        turn = Condition()

        def work() -> None:
            while not is_over:
                now = self._clock()
                self.client.session.update(now)
                self.server.session.update(now)
                self.carry()
                with turn:
                    turn.wait(0.001)

        thread = Thread(target=work, name="wire")
        thread.start()
        try:
            yield
        finally:
            is_over = True
            thread.join()


def segment(
    *, conv: int = CONV, cmd: int = KCP_PUSH, sn: int = 0, una: int = 0, wnd: int = 128, ts: int = 0, data: bytes = b""
) -> memoryview:
    """One KCP datagram."""
    return memoryview(bytearray(KCP_SEGMENT.pack(conv, cmd, 0, wnd, ts, sn, una, len(data)) + data))


def write_and_finish(stream: Stream, data: bytes) -> None:
    stream.write(memoryview(data))
    stream.close_write()


def read_all(end: End) -> bytes:
    """What has come in on the first stream that the other end has opened."""
    return b"".join(end.opened[0].read_chunks(timeout_s=0) or [])


def in_background(work: Callable[..., object], *arguments: object) -> "Background":
    """Run something that may block, on a thread of its own."""
    background = Background(lambda: work(*arguments))
    background.start()
    return background


class Background(Thread):
    """A thread whose result, or exception, is asked for with `result`."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(name="background")
        self._work = work
        self._outcome: deque[tuple[object, BaseException | None]] = deque()

    def run(self) -> None:
        try:
            self._outcome.append((self._work(), None))
        except BaseException as exc:
            self._outcome.append((None, exc))

    def result(self) -> Any:
        """What the work returned, or the exception it raised, raised again."""
        self.join(PATIENCE_S)
        assert not self.is_alive(), "still blocked"
        value, failure = self._outcome[0]
        if failure:
            raise failure
        return value


def is_waiting(stream: Stream, *, to_write: bool) -> bool:
    """Whether some thread is blocked in the stream's `write` or `read_chunks`."""
    condition = stream._writable if to_write else stream._readable
    with stream._owner.lock:
        return condition is not None and bool(cast(Any, condition)._waiters)


def wait_until_waiting(*streams: Stream, to_write: bool) -> None:
    for stream in streams:
        wait_until(partial(is_waiting, stream, to_write=to_write), f"{stream!r} waits")


def wait_until_listening(*streams: Stream) -> None:
    """Until the streams have sinks and nobody is at them."""
    for stream in streams:
        wait_until(partial(_is_listening, stream), f"{stream!r} listens")


def _is_listening(stream: Stream) -> bool:
    return stream._sink is not None and not stream._is_being_read
