"""A conversation with its locks, its streams and its way out to the network.

In      opened packets from a receiver thread, calls of the update thread, streams' bytes
Out     sealed packets through a UDP socket; opened streams to whoever serves them
Knows   the two locks (DESIGN: `_tx_lock` before `lock`), when to transmit. Not: TCP, options
Cost    two locks and one cipher call per tray
"""

from collections import deque
from collections.abc import Callable, Sequence
from threading import Lock, Thread, current_thread

from kcptun_lite.core.buffers import Address, BufferPool, PacketBatch, borrow
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt import PacketCrypt
from kcptun_lite.core.kcp import Flush
from kcptun_lite.core.smux import StreamFinished, StreamOpened, StreamReadable, StreamWritable
from kcptun_lite.errors import KeepaliveTimeout, RemoteProtocolError, SessionClosed, SessionError, TransportError
from kcptun_lite.net.stream import Stream
from kcptun_lite.net.ticker import UpdateThread, monotonic_ms
from kcptun_lite.net.udp import UdpSocket

SLOW_RHYTHM = 1000  # ms between looks at the keep-alive of a session in which nothing is under way


class Session:
    """One end of one conversation on the network; thread-safe."""

    def __init__(
        self,
        conversation: Conversation,
        crypt: PacketCrypt,
        udp: UdpSocket,
        remote: Address,
        *,
        pool: BufferPool,
        ticker: UpdateThread,
        counters: Counters,
        on_stream: Callable[["Session", Stream], None],
        on_closed: Callable[["Session", SessionError], None],
    ) -> None:
        """`crypt` seals for this session alone; callbacks run without any lock held."""
        self.lock = Lock()
        self.conversation = conversation
        self.writers: deque[Stream] = deque()
        self.remote = remote
        self.counters = counters
        self.opened_at = monotonic_ms()
        self.receiver: Thread | None = None
        "the thread that receives for this session alone (clients)"
        self._udp = udp
        self._crypt = crypt
        self._pool = pool
        self._ticker = ticker
        self._on_stream = on_stream
        self._on_closed = on_closed
        self._streams: dict[int, Stream] = {}
        self._closed: SessionError | None = None
        self._tx_lock = Lock()
        self._tx_wanted = False

    def __repr__(self) -> str:
        state = f"closed: {self._closed}" if self._closed else f"{len(self._streams)} streams"
        return f"<Session {self.conversation.conv:08x} {self.remote[0]}:{self.remote[1]} {state}>"

    def start(self) -> None:
        self._ticker.attach(self)

    @property
    def is_closed(self) -> bool:
        return self._closed is not None

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def local_address(self) -> Address:
        return self._udp.address

    def open_stream(self) -> Stream:
        """A new stream. Raises: SessionError if the session is over, StreamClosed if ids have run out."""
        with self.lock:
            if self._closed:
                raise self._closed
            stream = Stream(self, self.conversation.open_stream())
            self._streams[stream.sid] = stream
        self.transmit()
        return stream

    # -- receiver thread -----------------------------------------------------------------------

    def receive(self, packets: Sequence[memoryview], now: int) -> None:
        """Take opened packets; they are free again when this returns."""
        failure: SessionError | None = None
        with self.lock:
            if self._closed:
                return
            try:
                self.conversation.receive_packets(packets, now)
            except RemoteProtocolError as exc:
                failure = SessionError(f"the peer's stream makes no sense: {exc}")
            opened = self._dispatch_locked()
            is_flush_wanted = self.conversation.flush_wanted is not Flush.NOTHING
            deadline = self.conversation.next_deadline()
        for stream in opened:
            self._on_stream(self, stream)
        if failure:
            self.close(failure)
        elif is_flush_wanted:
            self.transmit()
        elif deadline is not None:
            self._ticker.wake(self, deadline)

    def _dispatch_locked(self) -> list[Stream]:
        """Wake those whom the conversation's events concern; returns streams the peer has opened."""
        opened: list[Stream] = []
        for event in self.conversation.take_events():
            stream = self._streams.get(event.sid)
            match event:
                case StreamOpened():
                    stream = self._streams[event.sid] = Stream(self, event.sid)
                    opened.append(stream)
                case StreamReadable() | StreamFinished():
                    if stream:
                        stream.wake_reader_locked()
                case StreamWritable():
                    if stream:
                        stream.wake_writer_locked()
        if self.writers and self.conversation.kcp.send_room > 0:
            self.writers[0].wake_writer_locked()
        return opened

    # -- update thread -------------------------------------------------------------------------

    def update(self, now: int) -> int | None:
        """Do what time has made due; returns the ms of the next call."""
        failure: SessionError | None = None
        with self.lock:
            if self._closed:
                return None
            try:
                self.conversation.tick(now)
            except KeepaliveTimeout as exc:
                failure = exc
            is_flush_wanted = self.conversation.flush_wanted is not Flush.NOTHING
        if failure:
            self.close(failure)
            return None
        if is_flush_wanted:
            self.transmit()
        with self.lock:
            deadline = self.conversation.next_deadline()
        idle = now + SLOW_RHYTHM
        return idle if deadline is None else min(deadline, idle)

    # -- the one way out -----------------------------------------------------------------------

    def transmit(self) -> None:
        """Send what the conversation wants sent.

        One thread at a time is at it; who comes meanwhile leaves a note and goes back to its own work
        instead of waiting, and the one at it looks for notes before it leaves.
        """
        self._tx_wanted = True
        while self._tx_wanted and self._tx_lock.acquire(blocking=False):
            try:
                self._tx_wanted = False
                self._transmit_held()
            finally:
                self._tx_lock.release()

    def _transmit_held(self) -> None:
        conversation = self.conversation
        counters = self.counters
        with borrow(self._pool, conversation.tray_bytes) as arena:
            batch = PacketBatch(arena)
            more = True
            while more:
                now = monotonic_ms()
                with self.lock:
                    if self._closed and not conversation.flush_wanted:
                        return
                    more = conversation.packets_to_send(batch, now)
                    if self.writers and conversation.kcp.send_room > 0:
                        self.writers[0].wake_writer_locked()
                    deadline = conversation.next_deadline()
                if batch.starts:
                    self._crypt.seal(batch)
                    packets = batch.views()
                    try:
                        sent = self._udp.send(packets, self.remote)
                    except TransportError:
                        return  # closed while we were at it
                    counters.out_packets += sent
                    counters.send_drops += len(packets) - sent
                    counters.out_bytes += sum(batch.lengths)
                    batch.clear()
            if deadline is not None:
                self._ticker.wake(self, deadline)

    # -- the end -------------------------------------------------------------------------------

    def close(self, reason: SessionError | None = None) -> None:
        """End the session: streams still open are told (FIN), and die here. Idempotent."""
        reason = reason or SessionClosed("the session was closed")
        with self.lock:
            if self._closed:
                return
            self._closed = reason
            for sid, stream in list(self._streams.items()):
                self.conversation.close_stream(sid)
                stream.die_locked(reason)
            self._streams.clear()
        self._ticker.detach(self)
        self.transmit()
        self._on_closed(self, reason)

    def join(self) -> None:
        """Wait for the receiver thread of a closed session."""
        if self.receiver and self.receiver is not current_thread():
            self.receiver.join()

    def is_flushed(self) -> bool:
        """Whether everything sent has been acknowledged."""
        with self.lock:
            return self._closed is not None or self.conversation.kcp.is_quiet

    def forget_locked(self, stream: Stream) -> None:
        self._streams.pop(stream.sid, None)

