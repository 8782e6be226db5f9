"""The blocking face of one smux stream.

In      bytes from a relay thread, events from the session
Out     lists of chunks to a relay thread
Knows   waiting and being woken. Not: frames, sockets
Cost    one lock and at most one wake-up per chunk, not per packet
"""

from collections import deque
from threading import Condition, Lock
from typing import Protocol

from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.wire import Buffer
from kcptun_lite.errors import RemoteProtocolError, SessionError, StreamClosed, StreamReset
from kcptun_lite.net.ticker import monotonic_ms

READ_LIMIT = 262_144  # bytes taken at once; one gather write
CUT_WITHIN = 12_000  # ms; a server that cannot reach its target ends the stream, ours after 10 s at most


class StreamCipher(Protocol):
    """What may stand between a stream and its user (core/qpp)."""

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
    """One stream of a session; `read_chunks` and `write` are each for one thread at a time.

    All state is guarded by the session's lock.
    """

    def __init__(self, owner: StreamOwner, sid: int) -> None:
        self.sid = sid
        self.cipher: StreamCipher | None = None
        "set before the first byte, or never"
        self._owner = owner
        self._opened_at = monotonic_ms()
        self._has_received = False
        self._has_finished = False
        self._readable = Condition(owner.lock)
        self._writable: Condition | None = None
        "made when it is first waited for: an idle stream saves 0.9 KiB"
        self._is_closed = False
        self._cause: SessionError | None = None

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "dead" if self._cause else "open"
        return f"<Stream {self.sid} {state} of {self._owner!r}>"

    def read_chunks(self, limit: int = READ_LIMIT, timeout_s: float | None = None) -> list[bytes] | None:
        """The next bytes, about `limit`; [] at the end of the stream, None when `timeout_s` has passed.

        Raises: StreamReset if the peer cut it or the session died before the end; StreamClosed after `close`.
        """
        owner = self._owner
        try:
            with owner.lock:
                chunks = self._read_locked(limit, timeout_s)
        except RemoteProtocolError as exc:  # in what there was room for now
            owner.fail(exc)
            raise StreamReset(f"stream {self.sid}: {exc}") from exc
        if not chunks:
            return chunks
        owner.settle()
        if self.cipher:
            return [self.cipher.decrypt(chunk) for chunk in chunks]
        return chunks

    def _read_locked(self, limit: int, timeout_s: float | None) -> list[bytes] | None:
        owner = self._owner
        conversation = owner.conversation
        while True:
            self._check_alive_locked()
            if chunks := conversation.take_stream_data(self.sid, limit):
                self._has_received = owner.has_delivered = True
                owner.cut_streams = 0
                return chunks
            if conversation.is_finished(self.sid):
                if conversation.is_cut(self.sid):
                    raise StreamReset(f"stream {self.sid} was cut by the other end")
                return []
            if not self._readable.wait(timeout_s):
                return None

    def write(self, data: memoryview) -> bool:
        """Send all of `data`; True when the session has taken it, False if the peer listens no more.

        Raises: StreamReset if the session died; StreamClosed after `close` or `close_write`.
        """
        owner = self._owner
        if self.cipher:
            data = memoryview(self.cipher.encrypt(data))
        while data:
            with owner.lock:
                taken = self._write_some_locked(data)
            if not taken:
                return False
            owner.transmit()
            data = data[taken:]
        return True

    def _write_some_locked(self, data: memoryview) -> int:
        """Bytes that the session has taken; 0 if the peer listens no more."""
        conversation = self._owner.conversation
        self._check_alive_locked()
        while conversation.is_listening(self.sid):
            if not conversation.stream_room(self.sid):
                self._wait_writable_locked()
                self._check_alive_locked()
            elif taken := self._take_turn_locked(data):
                return taken
        return 0

    def _take_turn_locked(self, data: memoryview) -> int:
        """Stand in line for room in the session, so that a bulk stream cannot starve a quiet one.

        0 if the peer has shut the stream meanwhile; who waits for that would hold up everybody behind him.
        """
        owner = self._owner
        writers = owner.writers
        conversation = owner.conversation
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

    def close_write(self) -> None:
        """End our direction; the peer's goes on."""
        owner = self._owner
        with owner.lock:
            if self._is_closed or self._cause:
                return
            self._has_finished = True
            owner.conversation.finish_stream(self.sid)
            self._readable.notify_all()
        owner.transmit()

    def wait_for_write_end(self, timeout_s: float) -> bool:
        """Wait until our direction is over: ended by `close_write` or `close`, or because the peer listens no more.

        For the reading thread, when it has come to the end. False when `timeout_s` has passed.
        """
        owner = self._owner
        with owner.lock:
            return self._readable.wait_for(
                lambda: self._is_closed or bool(self._cause) or not owner.conversation.is_listening(self.sid), timeout_s
            )

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
            self._readable.notify_all()
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

    # -- for the session -----------------------------------------------------------------------

    def wake_reader_locked(self) -> None:
        """There is data, or its end has come; one without a byte, soon and unasked, is a sign of something wrong."""
        is_unasked = not (self._has_received or self._has_finished)
        if is_unasked and self._owner.conversation.is_finished(self.sid):
            self._owner.cut_streams += monotonic_ms() - self._opened_at < CUT_WITHIN
        self._readable.notify()

    def wake_writer_locked(self) -> None:
        if self._writable:
            self._writable.notify()  # there is one writer

    def _wait_writable_locked(self) -> None:
        self._writable = self._writable or Condition(self._owner.lock)
        self._writable.wait()

    def die_locked(self, cause: SessionError) -> None:
        """The session is over before the stream was."""
        self._cause = cause
        self._readable.notify_all()
        self.wake_writer_locked()

    def _check_alive_locked(self) -> None:
        if self._is_closed:
            raise StreamClosed(f"stream {self.sid} is closed")
        if self._cause:
            raise StreamReset(f"stream {self.sid}: {self._cause}")
