"""One smux stream as its user sees it: writing blocks, reading blocks or is done by whoever has brought something.

In      bytes from a relay thread, events from the session
Out     lists of chunks to a reading thread, calls of a sink
Knows   waiting and being woken, who reads. Not: frames, sockets
Cost    one lock per call; a sink needs no thread and no wake-up
"""

from collections import deque
from collections.abc import Callable
from threading import Condition, Lock
from typing import Protocol

from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.wire import Buffer
from kcptun_lite.errors import RemoteProtocolError, SessionError, StreamClosed, StreamReset
from kcptun_lite.net.session.update_thread import monotonic_ms

READ_LIMIT = 262_144  # bytes taken at once; one gather write
DOUBT_TIME = 1000  # ms that a stream is written to when a kcptun may have closed it ...
DOUBT_BYTES = 256 * 1024  # ... and as many bytes, on a slow line
CUT_WITHIN = 12_000  # ms; a server that cannot reach its target ends the stream, ours after 10 s at most


class StreamCipher(Protocol):
    """What may stand between a stream and its user (core/crypt/qpp)."""

    def encrypt(self, data: Buffer) -> bytes: ...
    def decrypt(self, data: Buffer) -> bytes: ...


class StreamOwner(Protocol):
    """What a stream needs of its session."""

    lock: Lock
    conversation: Conversation
    writers: "deque[Stream]"
    "streams that wait for room in KCP, first come first served"
    cut_streams: int
    "streams in a row that the peer has ended soon and without a byte"
    has_delivered: bool
    "some stream has brought data"

    def transmit(self) -> None:
        """Send what the conversation wants sent; called without the lock."""

    def settle(self) -> None:
        """Tell everybody what reading or closing a stream has brought about; called without the lock."""

    def fail(self, error: RemoteProtocolError) -> None:
        """End the session, because what the peer has sent makes no sense; called without the lock."""

    def forget_locked(self, stream: "Stream") -> None: ...


class Stream:
    """One stream of a session; writing and reading are each for one thread at a time.

    A stream is read with `read_chunks`, which waits; or a sink is attached. The thread that brings something
    calls it, and from then on is the reader, or any other thread that the sink has appointed, until `read_ready`
    or `finish_reading` finds nothing left, or `stand_by` or `release` is called. All state is guarded by the session's
    lock.
    """

    def __init__(self, owner: StreamOwner, sid: int) -> None:
        self.sid = sid
        self.cipher: StreamCipher | None = None
        "set before the first byte, or never"
        self.on_over: Callable[[], None] | None = None
        "called once, without a lock, when the stream is closed and nobody reads it any more"
        self._unsent = b""
        "what `write_now` has left, encrypted already"
        self._owner = owner
        self.opened_at = monotonic_ms()
        self._has_received = False
        self._has_finished = False
        self._readable: Condition | None = None
        self._writable: Condition | None = None
        "made when they are first waited for: an idle stream saves 0.9 KiB each"
        self._has_news = False
        "something may have happened since the last reading"
        self._sink: Callable[[], None] | None = None
        self._is_being_read = False
        "the sink was called, and somebody is at it"
        self._doubted_at = self._doubted_bytes = 0
        "ms and bytes, since the peer may have gone"
        self._is_closed = False
        self._cause: SessionError | None = None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "dead" if self._cause else "open"
        return f"<Stream {self.sid} {state} of {self._owner!r}>"

    # -- reading -------------------------------------------------------------------------------

    def read_chunks(self, limit: int = READ_LIMIT, timeout_s: float | None = None) -> list[bytes] | None:
        """The next bytes, about `limit`; [] at the end of the stream, None when `timeout_s` has passed.

        Raises: StreamReset if the peer cut it or the session died before the end; StreamClosed after `close`.
        """
        while True:
            chunks = self._read(limit, to_go_on=True)
            self._owner.settle()
            if chunks is not None or not self._wait_for_news(timeout_s):
                return chunks

    def attach(self, sink: Callable[[], None]) -> None:
        """Have `sink` called by whoever brings data or an end, one at a time and without a lock; now, by us, as well.

        It must not block, must not raise, and reads on until there is nothing left (`read_ready`), unless it
        has another thread do so. That one ends with another `attach`, or with `release` if all is over.
        """
        with self._owner.lock:
            self._sink = sink
            self._is_being_read = True
        sink()
        self._owner.settle()

    def read_ready(self, limit: int = READ_LIMIT) -> list[bytes] | None:
        """For a sink: as `read_chunks`, but None if nothing is there now; then the next who brings something reads.

        What reading has brought about is told by whoever called the sink.
        """
        return self._read(limit, to_go_on=False)

    def finish_reading(self) -> bool:
        """For a sink that has done with what it had: whether nothing has come since, and it is the reader no more."""
        owner = self._owner
        try:
            with owner.lock:
                if self._is_closed or self._cause or not owner.conversation.is_read_up(self.sid):
                    return False
                self._is_being_read = False
                return True
        except RemoteProtocolError as exc:  # in what there was room for now
            owner.fail(exc)
            raise StreamReset(f"stream {self.sid}: {exc}") from exc

    def stand_by(self) -> bool:
        """For a sink that has come to the end: it is called again when the peer listens no more. False if that is so.

        Raises: StreamReset, StreamClosed.
        """
        with self._owner.lock:
            self._check_alive_locked()
            self._is_being_read = not self._owner.conversation.is_listening(self.sid)
            return not self._is_being_read

    def call_sink(self) -> None:
        """Call the sink; for whom `wake_reader_locked` has told to."""
        assert self._sink is not None
        self._sink()

    def release(self) -> None:
        """The reader has finished with the stream; nothing more is read unless it is attached again."""
        with self._owner.lock:
            self._is_being_read = False
            self._sink = None
        self._tell_over()

    def _read(self, limit: int, *, to_go_on: bool) -> list[bytes] | None:
        owner = self._owner
        try:
            with owner.lock:
                chunks = self._take_locked(limit)
                if chunks is None and not to_go_on:
                    self._is_being_read = False
        except RemoteProtocolError as exc:  # in what there was room for now
            owner.fail(exc)
            raise StreamReset(f"stream {self.sid}: {exc}") from exc
        if chunks and self.cipher:
            return [self.cipher.decrypt(chunk) for chunk in chunks]
        return chunks

    def _take_locked(self, limit: int) -> list[bytes] | None:
        owner = self._owner
        conversation = owner.conversation
        self._has_news = False
        self._check_alive_locked()
        if chunks := conversation.take_stream_data(self.sid, limit):
            self._has_received = owner.has_delivered = True
            owner.cut_streams = 0
            return chunks
        if not conversation.is_finished(self.sid):
            return None
        if conversation.is_cut(self.sid):
            raise StreamReset(f"stream {self.sid} was cut by the other end")
        return []

    def _wait_for_news(self, timeout_s: float | None) -> bool:
        with self._owner.lock:
            return self._has_news or self._wait_readable_locked(timeout_s)

    # -- writing -------------------------------------------------------------------------------

    def write(self, data: memoryview) -> bool:
        """Send all of `data`; True when the session has taken it, False if the peer listens no more.

        Raises: StreamReset if the session died; StreamClosed after `close` or `close_write`.
        """
        owner = self._owner
        data = self._outgoing(data)
        while data:
            with owner.lock:
                taken = self._write_some_locked(data)
            if not taken:
                return False
            owner.transmit()
            data = data[taken:]
        return True

    def write_now(self, data: memoryview) -> bool:
        """Take `data` without waiting, in the network's thread. False: the rest is for `write`.

        Raises: as `write`.
        """
        data = self._outgoing(data)
        with self._owner.lock:
            self._check_alive_locked()
            conversation = self._owner.conversation
            if conversation.is_listening(self.sid) and not conversation.is_doubtful(self.sid):
                # Small as it is, it need not stand in line with those who wait for room for more.
                taken = conversation.send_ahead(self.sid, data) or conversation.send_stream_data(self.sid, data)
                data = data[taken:]
        self._unsent = bytes(data)
        self._owner.settle()
        return not data

    def _outgoing(self, data: memoryview) -> memoryview:
        """What is to be sent now, behind what was left."""
        if self.cipher:
            data = memoryview(self.cipher.encrypt(data))
        if self._unsent:
            data, self._unsent = memoryview(self._unsent + data), b""
        return data

    def _write_some_locked(self, data: memoryview) -> int:
        """Bytes that the session has taken; 0 if the peer listens no more."""
        conversation = self._owner.conversation
        self._check_alive_locked()
        while conversation.is_listening(self.sid) and not self._is_in_vain_locked():
            if not conversation.stream_room(self.sid):
                is_doubtful = conversation.is_doubtful(self.sid)
                has_waited = self._wait_writable_locked(DOUBT_TIME / 1000 if is_doubtful else None)
                self._check_alive_locked()
                if is_doubtful and not has_waited:
                    return 0
            elif taken := self._take_turn_locked(data):
                self._doubted_bytes += taken if self._doubted_at else 0
                return taken
        return 0

    def _is_in_vain_locked(self) -> bool:
        """Whether what goes on after an end that may have meant both directions has gone on for long enough.

        A reply that follows at once is to arrive whole, and a download that was cancelled is to stop. With smux 2 the
        peer's window tells: it opens if somebody reads.
        """
        conversation = self._owner.conversation
        if not conversation.is_doubtful(self.sid) or conversation.smux_version != 1:
            return False
        now = monotonic_ms()
        self._doubted_at = self._doubted_at or now
        return now - self._doubted_at > DOUBT_TIME and self._doubted_bytes > DOUBT_BYTES

    def _take_turn_locked(self, data: memoryview) -> int:
        """Stand in line for room in the session, so that a bulk stream cannot starve a quiet one.

        0 if the peer has shut the stream meanwhile; who waits for that would hold up everybody behind him.
        """
        owner = self._owner
        writers = owner.writers
        conversation = owner.conversation
        if taken := conversation.send_ahead(self.sid, data):
            return taken
        writers.append(self)
        try:
            while conversation.is_listening(self.sid) and conversation.stream_room(self.sid):
                if writers[0] is self and (taken := conversation.send_stream_data(self.sid, data)):
                    return taken
                self._wait_writable_locked()
                self._check_alive_locked()
            return 0
        finally:
            writers.remove(self)
            if writers and conversation.kcp.send_room > 0:
                writers[0].wake_writer_locked()

    @property
    def is_doubtful(self) -> bool:
        """Whether the peer may have closed both directions, where it has ended one."""
        with self._owner.lock:
            return not self._is_closed and not self._cause and self._owner.conversation.is_doubtful(self.sid)

    @property
    def is_last_word(self) -> bool:
        """Whether a kcptun listens that has ended its own direction: our end is the last it will hear of the stream."""
        with self._owner.lock:
            conversation = self._owner.conversation
            is_over = self._is_closed or self._cause or not conversation.is_listening(self.sid)
            return not is_over and not conversation.is_peer_ours and conversation.is_finished(self.sid)

    @property
    def is_delivered(self) -> bool:
        """Whether the peer has acknowledged all that the session has sent."""
        with self._owner.lock:
            return self._owner.conversation.kcp.is_quiet

    def close_write(self) -> None:
        """End our direction; the peer's goes on."""
        owner = self._owner
        with owner.lock:
            if self._is_closed or self._cause:
                return
            self._has_finished = True
            owner.conversation.finish_stream(self.sid)
        owner.settle()

    # -- the end -------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the stream up in both directions; the other thread of the relay is woken. Idempotent.

        The peer is told that it was cut, unless `close_write` was called before.
        """
        owner = self._owner
        failure: RemoteProtocolError | None = None
        with owner.lock:
            if self._is_closed:
                return
            self._is_closed = True
            owner.forget_locked(self)
            self._wake_reader_locked()
            self.wake_writer_locked()
            if not self._cause:
                try:
                    owner.conversation.close_stream(self.sid)
                except RemoteProtocolError as exc:  # in what there was room for now
                    failure = exc
        if failure:
            owner.fail(failure)
        else:
            owner.settle()
        self._tell_over()

    def _tell_over(self) -> None:
        with self._owner.lock:
            if not self._is_closed or self._is_being_read:
                return
            on_over, self.on_over = self.on_over, None
        if on_over:
            on_over()

    # -- for the session -----------------------------------------------------------------------

    def wake_reader_locked(self) -> bool:
        """There is data, or an end has come; True if who says so is to call `call_sink` when the lock is free.

        An end without a byte, soon and unasked, is a sign of something wrong.
        """
        is_unasked = not (self._has_received or self._has_finished)
        if is_unasked and self._owner.conversation.is_finished(self.sid):
            self._owner.cut_streams += monotonic_ms() - self.opened_at < CUT_WITHIN
        return self._call_reader_locked()

    def wake_writer_locked(self) -> None:
        if self._writable:
            self._writable.notify()  # there is one writer

    def _wait_writable_locked(self, timeout_s: float | None = None) -> bool:
        self._writable = self._writable or Condition(self._owner.lock)
        return self._writable.wait(timeout_s)

    def _wait_readable_locked(self, timeout_s: float | None) -> bool:
        self._readable = self._readable or Condition(self._owner.lock)
        return self._readable.wait(timeout_s)

    def _wake_reader_locked(self) -> None:
        self._has_news = True
        if self._readable:
            self._readable.notify()  # there is one reader

    def _call_reader_locked(self) -> bool:
        self._wake_reader_locked()
        is_free = self._sink is not None and not (self._is_being_read or self._is_closed)
        self._is_being_read = self._is_being_read or is_free
        return is_free

    def die_locked(self, cause: SessionError) -> bool:
        """The session is over before the stream was; True as `wake_reader_locked`."""
        self._cause = cause
        self.wake_writer_locked()
        return self._call_reader_locked()

    def _check_alive_locked(self) -> None:
        if self._is_closed:
            raise StreamClosed(f"stream {self.sid} is closed")
        if self._cause:
            raise StreamReset(f"stream {self.sid}: {self._cause}")
