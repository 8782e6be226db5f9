"""Many streams in one: stream data in, frames out, and back again, with flow control and keep-alive.

In      data and wishes of streams; bytes of the peer's frames, cut anywhere; `now`
Out     frames as buffers in order; events; the peer's data
Knows   frames, versions 1 and 2. Not: compression, segments, the clock, who reads a stream
Wire    docs/protocol.md, "smux"; smux session.go, stream.go
Cost    feed 1 us per call and 1 us per frame, one copy of the payload; send_data 1 us per frame, no copy

A stream is two halves, and each ends with the FIN of its sender. It is there until its user has closed it, even if
both have ended: so its number is never another stream's while somebody still holds it. What comes for a stream we do
not know is dropped, as every generation of smux does.

In kcptun a FIN means that its sender has closed both halves, and since 26 January 2026 that it has ended its own. The
first FIN does not say which. A second FIN means both halves; an UPD means only one, because only a reader sends it.
Two frames that
mean nothing to it, put before FIN, tell one of ours more: NOP with the stream's id, that only this half has ended and
the other one goes on; PSH without payload, that the stream was cut, and what came of it is not all there was. A FIN
after a FIN gives up the other half. And a NOP with the id HELLO_SID, the first thing that each of us says, tells the
other end that we are of its kind; one with BYE_SID, the last thing, that the session is over. One with WINDOWS_SID says
that we heed UPD in version 1, too: there it is sent when a reader has stopped, so that he alone waits.
"""

from kcptun_lite.core.mux.stream_state import OPEN_WINDOW, Remains, StreamState
from kcptun_lite.core.wire import (
    MASK32,
    SMUX_FIN,
    SMUX_HEADER,
    SMUX_HEADER_SIZE,
    SMUX_NOP,
    SMUX_PSH,
    SMUX_SYN,
    SMUX_UPD,
    SMUX_UPDATE,
    SNAPPY_IDENTIFIER,
    Buffer,
    diff32,
)
from kcptun_lite.errors import KeepaliveTimeout, SessionClosed, SmuxError, SmuxVersionError, StreamClosed

SMUX_MAX_STREAMS = 1024  # opened by the peer, at once; smux defaultAcceptBacklog
HELLO_SID = 0x4B4C0001  # "KL"; no client counts that far by twos in one session
BYE_SID = 0x4B4C0002
WINDOWS_SID = 0x4B4C0004
UNREAD_PART = 4  # of what is left of the buffer: so much of it one stream may hold before its sender is told to wait
UNREAD_LEAST = 32 * 1024  # bytes; and no less
UNDER_WAY = 3  # times the buffer; what may still come of streams that were told to wait
_JOINED_CHUNK_MAX = 1024  # bytes; smaller pieces are joined, else 2 bytes of payload would hold 56 of memory


class Event:
    """Something happened to the stream `sid`."""

    __slots__ = ("sid",)

    def __init__(self, sid: int) -> None:
        self.sid = sid

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.sid})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Event) and type(other) is type(self) and other.sid == self.sid

    __hash__ = None  # type: ignore[assignment]


class StreamOpened(Event):
    """The peer has opened a stream."""

    __slots__ = ()


class StreamReadable(Event):
    """There is data where there was none."""

    __slots__ = ()


class StreamWritable(Event):
    """The peer's window has opened where it was closed (version 2)."""

    __slots__ = ()


class StreamFinished(Event):
    """The peer will send no more, or listens no more; data received before may still be there to take."""

    __slots__ = ()


class SmuxSession:
    """One end of a session. What it wants to send waits in `frames_to_send`, all else is answered at once."""

    def __init__(
        self,
        *,
        is_client: bool,
        version: int,
        max_frame: int,
        receive_buffer: int,
        stream_buffer: int,
        keepalive_ms: int,
        keepalive_timeout_ms: int,
        now: int,
        max_streams: int = SMUX_MAX_STREAMS,
    ) -> None:
        """A session that has sent and heard nothing.

        Args:
            version: 1 or 2, the same on both ends; nothing is negotiated.
            max_frame: most bytes of payload in a frame we send, up to 65,535.
            receive_buffer: bytes of all streams that may wait to be taken (`--smuxbuf`).
            stream_buffer: window of one stream, in bytes (`--streambuf`); used by version 2.
            max_streams: how many streams the peer may have open; one more is cut at once.
        """
        self._version = version
        self._max_frame = max_frame
        self._receive_buffer = receive_buffer
        self._stream_buffer = stream_buffer
        self._keepalive_ms = keepalive_ms
        self._keepalive_timeout_ms = keepalive_timeout_ms
        self._max_streams = max_streams

        self.receive_budget = receive_buffer
        "bytes that may still come before readers must take some"
        self.frames_received = 0
        self.is_peer_ours = False
        "it has said so, with HELLO_SID"
        self.has_peer_left = False
        "it has said so, with BYE_SID"
        self.remains = Remains()
        self._heeds_windows = version == 2
        "the peer has windows for streams as well; in version 1 it has said so, with WINDOWS_SID"

        self._streams: dict[int, StreamState] = {}
        self._streams_from_peer = 0
        self._next_sid = 3 if is_client else 2  # smux counts up by 2 before the first use, too

        self._to_send: list[Buffer] = []
        self._to_send_bytes = 0

        # Where the peer's bytes have been cut: inside a header, or inside a payload.
        self._header = b""
        self._payload_sid = 0
        self._payload_left = 0

        self._heard = False
        self._next_nop = now + keepalive_ms
        self._next_check = now + keepalive_timeout_ms

    def __repr__(self) -> str:
        return (
            f"<SmuxSession v{self._version} streams={len(self._streams)} "
            f"budget={self.receive_budget}/{self._receive_buffer} to_send={self._to_send_bytes}>"
        )

    # Questions

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def has_room(self) -> bool:
        """Whether more may be fed. What is under way when a reader has stopped must not stop the others."""
        return self.receive_budget > (-UNDER_WAY * self._receive_buffer if self._tells_of_readers else 0)

    @property
    def is_filling(self) -> bool:
        """Whether so much lies unread that soon nothing more may be fed."""
        return not self.has_room if self._tells_of_readers else 2 * self.unread_bytes > self._receive_buffer

    @property
    def is_peer_old(self) -> bool:
        """Whether the peer is ours, and of a time when only version 2 had windows."""
        return self.is_peer_ours and not self._heeds_windows

    @property
    def _tells_of_readers(self) -> bool:
        return self._version == 1 and self._heeds_windows

    @property
    def held_bytes(self) -> int:
        """Bytes kept: received and not taken, queued to be sent, the start of a header."""
        return self.unread_bytes + self._to_send_bytes + len(self._header)

    @property
    def unread_bytes(self) -> int:
        """Bytes received and not taken."""
        return self._receive_buffer - self.receive_budget

    def is_readable(self, sid: int) -> bool:
        """Whether data are there to take, or an end."""
        stream = self._streams.get(sid)
        return stream is None or bool(stream.chunks) or stream.fin_received

    def is_finished(self, sid: int) -> bool:
        """Whether nothing is there to take nor ever will be."""
        stream = self._streams.get(sid)
        return stream is None or (stream.fin_received and not stream.chunks)

    def is_cut(self, sid: int) -> bool:
        """Whether a finished stream ended before its data did: its sender has given up."""
        stream = self._streams.get(sid)
        return stream is not None and stream.is_cut and not stream.chunks

    def is_listening(self, sid: int) -> bool:
        """Whether the peer still takes data of the stream, and we have not ended it."""
        stream = self._streams.get(sid)
        return stream is not None and not (stream.fin_sent or stream.peer_is_gone)

    def is_doubtful(self, sid: int) -> bool:
        """Whether the peer has sent a FIN that may have meant both halves."""
        stream = self._streams.get(sid)
        return stream is not None and stream.peer_may_be_gone and not stream.peer_is_gone

    # Sending

    def open_stream(self) -> int:
        """Give the sid of a new stream and queue its SYN; data may follow at once.

        Raises SessionClosed when all ids are used up: only a new session has more.
        """
        while self._next_sid in self._streams:  # a peer may count as it likes
            self._next_sid += 2
        sid = self._next_sid
        if sid > MASK32:
            raise SessionClosed("all stream ids of the session are used up")
        self._next_sid += 2
        self._streams[sid] = StreamState(from_peer=False, has_window=self._version == 2)
        self._queue_frame(SMUX_SYN, sid)
        return sid

    def send_room(self, sid: int) -> int:
        """Bytes of the stream the peer has a window for; 0 means to wait for StreamWritable.

        Raises StreamClosed as `send_data` does.
        """
        return self._sending_stream(sid).send_room()

    def send_data(self, sid: int, data: memoryview) -> int:
        """Queue as much of `data` as there is room for, in frames, and give its length in bytes.

        `data` is not copied: it must stay as it is until the frames are taken and put together.
        Raises StreamClosed when the stream was finished or closed by us, or is over.
        """
        accepted = min(len(data), self.send_room(sid))
        self._streams[sid].written += accepted
        for start in range(0, accepted, self._max_frame):
            payload = data[start : min(start + self._max_frame, accepted)]
            self._queue_frame(SMUX_PSH, sid, payload)
        return accepted

    def finish(self, sid: int) -> None:
        """Queue FIN behind all data of the stream: we send no more, receiving goes on."""
        stream = self._streams.get(sid)
        if stream is not None and not stream.fin_sent:
            if not stream.fin_received:
                self._queue_frame(SMUX_NOP, sid)
            stream.fin_sent = True
            self._queue_frame(SMUX_FIN, sid)

    def close(self, sid: int) -> None:
        """End the stream both ways; what it still had to take is gone, and the budget for it is back.

        If `finish` was not called before, the peer is told that the stream was cut.
        """
        stream = self._streams.get(sid)
        if stream is None:
            return
        if not (stream.fin_sent or stream.peer_is_gone):
            self._queue_frame(SMUX_PSH, sid)
        if not (stream.fin_sent and stream.fin_received):
            self._queue_frame(SMUX_FIN, sid)
        self.receive_budget += stream.unread_bytes
        del self._streams[sid]
        self._streams_from_peer -= stream.from_peer

    def frames_to_send(self) -> list[Buffer]:
        """Give the queued frames in order, as buffers to be put together; the queue is empty then."""
        frames, self._to_send = self._to_send, []
        self._to_send_bytes = 0
        return frames

    # Receiving

    def feed(self, data: Buffer) -> list[Event]:
        """Take bytes of the peer in and give what they brought about, in order.

        The payload of a frame goes to its stream as it comes, nobody waits for the end of the frame.
        Raises SmuxError: another version, an unknown command, an impossible length or window.
        """
        self._heard = self._heard or len(data) > 0
        data = self._header + bytes(data) if self._header else bytes(data)
        events: list[Event] = []
        at, size = 0, len(data)
        while at < size:
            if self._payload_left:
                end = min(at + self._payload_left, size)
                self._payload_left -= end - at
                self._receive_payload(self._payload_sid, data[at:end], events)
                at = end
                continue
            if size - at < SMUX_HEADER_SIZE:
                break
            self.frames_received += 1
            version, command, length, sid = SMUX_HEADER.unpack_from(data, at)
            if version != self._version:
                raise self._explain_version(data[at:])
            if command == SMUX_PSH and length:
                self._payload_sid, self._payload_left = sid, length
            elif command == SMUX_UPD and length == SMUX_UPDATE.size:
                if size - at < SMUX_HEADER_SIZE + SMUX_UPDATE.size:
                    break
                consumed, window = SMUX_UPDATE.unpack_from(data, at + SMUX_HEADER_SIZE)
                self._receive_update(sid, consumed, window, events)
                at += SMUX_UPDATE.size
            elif command > SMUX_UPD:
                raise SmuxError(f"smux frame with unknown command {command}")
            elif command == SMUX_UPD or length:  # smux of 2021 would take what follows for a header
                raise SmuxError(f"smux frame with command {command} and length {length}")
            elif command == SMUX_SYN:
                self._receive_syn(sid, events)
            elif command == SMUX_FIN:
                self._receive_fin(sid, events)
            elif sid in self._streams:  # PSH without payload, NOP
                self._streams[sid].mark = command
            elif command == SMUX_NOP and sid == HELLO_SID:
                self.is_peer_ours = True
            elif command == SMUX_NOP and sid == BYE_SID:
                self.has_peer_left = True
            elif command == SMUX_NOP and sid == WINDOWS_SID:
                self._heeds_windows = True
            at += SMUX_HEADER_SIZE
        self._header = data[at:]
        return events

    def take(self, sid: int, limit: int) -> list[bytes]:
        """Give received data in order: at most `limit` bytes, but a first chunk whole; [] if there is none.

        The budget for it is back, and the peer is told of it by the rules of version 2.
        """
        stream = self._streams.get(sid)
        if stream is None or not stream.chunks:
            return []
        count, taken = 0, 0
        for chunk in stream.chunks:
            if count and taken + len(chunk) > limit:
                break
            count += 1
            taken += len(chunk)
        chunks = stream.chunks[:count]
        del stream.chunks[:count]
        self.receive_budget += taken
        stream.consumed += taken
        self._maybe_queue_update(sid, stream)
        return chunks

    # Time

    def begin_again(self, version: int) -> None:
        """Speak another version; for a peer that has understood nothing so far. What waits to be sent is said anew."""
        self._version = version
        self._heeds_windows = version == 2
        for sid, stream in self._streams.items():
            fresh = self._streams[sid] = StreamState(from_peer=False, has_window=version == 2)
            fresh.written, fresh.fin_sent = stream.written, stream.fin_sent
        self._to_send, self._to_send_bytes = [], 0
        self._header, self._payload_left = b"", 0
        self.frames_received = 0

    def ping(self) -> None:
        """Queue a NOP: nothing to the peer's streams, but something for its KCP to acknowledge."""
        self._queue_frame(SMUX_NOP, 0)

    def hello(self) -> None:
        """Queue a NOP that tells one of ours that we are one, too."""
        self._queue_frame(SMUX_NOP, HELLO_SID)
        if self._version == 1:
            self._queue_frame(SMUX_NOP, WINDOWS_SID)

    def bye(self) -> None:
        """Queue a NOP that tells one of ours that nothing comes after it; one in the other version ends a flood."""
        self._queue_frame(SMUX_NOP, BYE_SID, version=3 - self._version if self.remains.are_a_flood else None)

    def tick(self, now: int) -> None:
        """Queue NOP when it is due, and look whether the peer is alive (docs/protocol.md, "Keep-alive").

        Raises KeepaliveTimeout when nothing was heard between two looks. While there is no budget we do not
        listen ourselves, so silence says nothing.
        """
        if now >= self._next_nop:
            self._next_nop = now + self._keepalive_ms
            self.ping()
        if now >= self._next_check:
            self._next_check = now + self._keepalive_timeout_ms
            if not self._heard and self.has_room:
                raise KeepaliveTimeout(f"nothing heard from the peer for {self._keepalive_timeout_ms // 1000} s")
            self._heard = False

    # Inside

    def _queue_frame(self, command: int, sid: int, payload: Buffer = b"", version: int | None = None) -> None:
        self._to_send.append(SMUX_HEADER.pack(version or self._version, command, len(payload), sid))
        if payload:
            self._to_send.append(payload)
        self._to_send_bytes += SMUX_HEADER_SIZE + len(payload)

    def _sending_stream(self, sid: int) -> StreamState:
        stream = self._streams.get(sid)
        if stream is None or stream.fin_sent:
            raise StreamClosed(f"stream {sid} is closed for sending")
        return stream

    def _receive_syn(self, sid: int, events: list[Event]) -> None:
        if known := self._streams.get(sid):
            if not known.from_peer:
                raise SmuxError("what answers sends back what it is sent: it is no kcptun")
            return
        if self._streams_from_peer >= self._max_streams:
            self._queue_frame(SMUX_PSH, sid)
            self._queue_frame(SMUX_FIN, sid)
            return
        self._streams[sid] = StreamState(from_peer=True, has_window=self._version == 2)
        self._streams_from_peer += 1
        events.append(StreamOpened(sid))

    def _receive_payload(self, sid: int, payload: bytes, events: list[Event]) -> None:
        stream = self._streams.get(sid)
        if stream is None or stream.fin_received:
            self.remains.add(sid, len(payload))
            return
        self.receive_budget -= len(payload)
        stream.received += len(payload)
        if self._version == 1 and not stream.limit:
            self._look_at_reader(sid, stream)
        chunks = stream.chunks
        if not chunks:
            events.append(StreamReadable(sid))
            chunks.append(payload)
        elif len(chunks[-1]) + len(payload) <= _JOINED_CHUNK_MAX:
            chunks[-1] += payload
        else:
            chunks.append(payload)

    def _receive_fin(self, sid: int, events: list[Event]) -> None:
        stream = self._streams.get(sid)
        if stream is None or stream.peer_is_gone:
            return
        mark, stream.mark = stream.mark, None
        stream.is_cut = stream.is_cut or (mark == SMUX_PSH and not stream.fin_received)
        stream.peer_may_be_gone = mark is None and not self.is_peer_ours
        stream.peer_is_gone = stream.fin_received or not (mark == SMUX_NOP or stream.peer_may_be_gone)
        stream.fin_received = True
        events.append(StreamFinished(sid))

    def _receive_update(self, sid: int, consumed: int, window: int, events: list[Event]) -> None:
        """Set the peer's window anew; smux of 2021 lets UPD pass in version 1, where it means nothing."""
        stream = self._streams.get(sid)
        if stream is None or not self._heeds_windows:
            return
        in_flight = diff32(stream.written & MASK32, consumed)
        if in_flight < 0:
            raise SmuxError(f"stream {sid}: the peer has consumed {-in_flight} bytes more than were sent")
        stream.peer_may_be_gone = False
        was_closed = stream.send_room() == 0
        stream.peer_consumed = stream.written - in_flight
        stream.peer_window = min(window, OPEN_WINDOW)
        if was_closed and stream.send_room() and not stream.fin_sent:
            events.append(StreamWritable(sid))

    def _maybe_queue_update(self, sid: int, stream: StreamState) -> None:
        """Bytes were taken: tell the peer what that opens."""
        is_two = self._version == 2
        window = stream.window_for_reader(self._stream_buffer) if is_two else stream.window_for_slow_reader()
        if window is not None and not stream.fin_received:
            self._queue_update(sid, stream, window)

    def _look_at_reader(self, sid: int, stream: StreamState) -> None:
        """Tell a peer that heeds it in version 1 to wait with a stream whose reader leaves much behind."""
        limit = max(UNREAD_LEAST, self.receive_budget // UNREAD_PART)
        if self._tells_of_readers and stream.unread_bytes > limit:
            stream.limit = limit
            self._queue_update(sid, stream, limit)

    def _queue_update(self, sid: int, stream: StreamState, window: int) -> None:
        stream.announced = stream.consumed
        self._queue_frame(SMUX_UPD, sid, SMUX_UPDATE.pack(stream.consumed & MASK32, window))

    def _explain_version(self, start: bytes) -> SmuxError:
        if SNAPPY_IDENTIFIER.startswith(start[: len(SNAPPY_IDENTIFIER)]):
            return SmuxError("a snappy stream in place of smux frames: --nocomp must be the same on both ends")
        return SmuxVersionError(
            f"frame of smux version {start[0]}, expected {self._version}: --smuxver must be the same on both ends"
        )
