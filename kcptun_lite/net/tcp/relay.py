"""Between a TCP (or unix) connection and a stream.

In      a connection, a stream
Out     their bytes, each way, until both ways have ended
Knows   half-close, resets, idleness after a half-close. Not: sessions, options
Wire    docs/protocol.md, "Half-close"; better than it between two of ours: each direction ends by itself
Cost    no thread while little moves: the event loop reads the connection, who brings data writes it. A thread of
        16 KiB for each direction in which much moves, with a buffer while bytes move; one system call per 64 KiB
"""

import select
import socket
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import Enum
from threading import Lock, Thread

from kcptun_lite import log
from kcptun_lite.core.batch.pool import BufferPool, borrow_some
from kcptun_lite.core.wire import Buffer
from kcptun_lite.errors import KcptunError, StreamReset, TransportError, describe_exception
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.stream import READ_LIMIT, Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp.sockets import NO_RESET
from kcptun_lite.net.tcp.target import is_connected

WRITE_BUFFERS = 512  # per gather write; IOV_MAX is 1024 on Linux
READS_AT_ONCE = 8  # of 256 KiB, a whole window, that go out in the thread which has brought them ...
SLOW_READ = 16 * 1024  # bytes; ... or one of so many, where each byte costs (--QPP): that thread serves all sessions
CALM = 1000  # ms without a wait for the connection, or for its bytes: then it needs no thread for that
QUICK_CONNECT = 0.5  # s that a connection to the target may take without a thread
DOUBT_IDLE = 30  # s that a half-closed connection may idle if the other end may have closed it (kcptun's --closewait)
FULL_IDLE = 5  # s ... or if others wait for its place, or are refused: its application may have gone altogether
ARRIVAL_TIME = 2000  # ms at the most that the last bytes are given to arrive ...
READ_TIME = 100  # ms ... and then to be read ...
ARRIVAL_LOOK = 20  # ms ... with looks so often
MEMORY_PAUSE = 20  # ms between looks whether --memlimit leaves room for a buffer

Opener = Callable[[], socket.socket]


class _Up(Enum):
    """Who reads the connection."""

    NOBODY_YET = 0
    LOOP = 1
    THREAD = 2
    NOBODY_ANY_MORE = 3


class Relay:
    """Moves bytes between a connection and a stream until both directions have ended, or one has failed.

    A direction that ends is passed on as such (`shutdown`, FIN). Then the other one may go on as long as it moves:
    `closewait_s` without a byte ends it, less while the tunnel `is_full`, and so does a peer that listens no more. A
    kcptun's FIN does not say whether it still listens: so it is written to for a second more, as long as the data
    follow at once. A failure ends both at once, with a TCP reset.
    """

    def __init__(
        self,
        stream: Stream,
        pool: BufferPool,
        loop: EventLoop,
        *,
        closewait_s: float,
        is_full: Callable[[], bool],
        on_closed: Callable[["Relay"], None],
    ) -> None:
        self.stream = stream
        self.failure: KcptunError | None = None
        self._pool = pool
        self._loop = loop
        self._closewait_s = closewait_s
        self._is_full = is_full
        self._on_closed = on_closed
        self._tcp: socket.socket | None = None
        self._lock = Lock()
        self._up = _Up.NOBODY_YET
        self._is_down_over = False
        "nobody writes to the connection any more"
        self._is_stopped = False
        self._is_shut = False
        self._moved = 0
        self._has_up_ended = False
        self._has_down_ended = False
        self._idle_since = self._moved_before = 0
        stream.on_over = self._down_is_over

    def serve(self, tcp: socket.socket) -> None:
        """Begin with an open connection, which is the relay's from now on."""
        with self._lock:
            self._tcp = tcp
        try:
            self._begin()
        except Exception as exc:
            self._fail_up(exc)
        if self._loop.is_here and self._up is _Up.LOOP:
            self._read_little()  # who connects has mostly something to say, and it goes with the stream's beginning

    def dial(self, begin: Callable[[], socket.socket | None], open_tcp: Opener) -> None:
        """Begin with a connection to be made: one that `begin` gives under way, or else `open_tcp` in a thread."""
        try:
            tcp = begin()
            with self._lock:
                self._tcp = tcp
            if tcp is None:
                Thread(target=self._run_open, args=(open_tcp,), name=f"open-{self.stream.sid}").start()
            else:
                self._loop.call(lambda: self._wait_for_connection(open_tcp))
        except Exception as exc:
            self._fail_up(exc)

    def stop(self) -> None:
        """End both directions now; the connection is reset if they had not ended."""
        self._end(StreamReset("stopped"))

    # -- the connection ------------------------------------------------------------------------

    def _wait_for_connection(self, open_tcp: Opener) -> None:
        tcp = self._tcp
        assert tcp is not None

        def look() -> None:
            if self._up is not _Up.NOBODY_YET or self._tcp is not tcp:
                return
            self._loop.forget(tcp.fileno())
            if self._is_stopped:
                self._up_is_over()
            elif is_connected(tcp):
                self._begin()
            else:
                tcp.close()
                self.dial(lambda: None, open_tcp)  # it takes its time, or fails once more and says why

        try:
            self._loop.watch(tcp.fileno(), look, to_write=True)
            self._loop.call_later(QUICK_CONNECT, look)
        except Exception as exc:
            self._fail_up(exc)

    def _run_open(self, open_tcp: Opener) -> None:
        try:
            try:
                tcp = open_tcp()
            except TransportError as exc:
                log.limited("target", str(exc))
                raise
            self.serve(tcp)
        except Exception as exc:
            self._fail_up(exc)

    def _begin(self) -> None:
        assert self._tcp is not None
        if not self._is_stopped:
            self.stream.attach(self._write_down)
        self._loop.call(self._read_in_loop)

    # -- TCP to stream -------------------------------------------------------------------------

    def _read_in_loop(self) -> None:
        """Have the event loop read the connection from now on."""
        assert self._tcp is not None
        try:
            if self._is_read_by(_Up.LOOP):
                self._loop.watch(self._tcp.fileno(), self._read_little)
        except Exception as exc:
            self._fail_up(exc)

    def _is_read_by(self, up: _Up) -> bool:
        """Note who reads the connection from now on; False, and nobody does, if the relay was stopped meanwhile."""
        with self._lock:
            if not self._is_stopped:
                self._up = up
                return True
        self._up_is_over()
        return False

    def _read_little(self) -> None:
        """Take what has come; if it is much, a thread takes it from there."""
        assert self._tcp is not None
        scratch = self._loop.scratch
        try:
            try:
                size = self._tcp.recv_into(scratch, 0, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            except OSError as exc:
                raise TransportError(f"connection: {exc.strerror or exc}") from exc
            if not size:
                self._end_up_in_loop()
                return
            self._moved += size
            is_taken = self.stream.write_now(scratch[:size])
            if not is_taken or size == len(scratch):
                self._start_up()
        except Exception as exc:
            self._fail_up(exc)

    def _end_up_in_loop(self) -> None:
        if self._is_cut():
            raise TransportError("connection: reset")
        if self.stream.is_last_word:
            self._start_up()  # to wait until all has arrived
            return
        self._end_up()
        self._up_is_over()

    def _start_up(self) -> None:
        """Have a thread of its own read the connection; an end of file is there for it once more."""
        assert self._tcp is not None
        self._loop.forget(self._tcp.fileno())
        if self._is_read_by(_Up.THREAD):
            Thread(target=self._run_up, name=f"up-{self.stream.sid}").start()

    def _run_up(self) -> None:
        try:
            if self._copy_up():
                self._loop.call(self._read_in_loop)
                return
            if self._is_cut():
                raise TransportError("connection: reset")
            self._let_all_arrive()
            self._end_up()
            self._up_is_over()
        except Exception as exc:
            self._fail_up(exc)

    def _copy_up(self) -> bool:
        """Read and wait; True when nothing has come for a while, False at the end."""
        tcp = self._tcp
        assert tcp is not None
        if not self.stream.write(memoryview(b"")):  # what was left
            return False
        readable = select.poll()
        readable.register(tcp, select.POLLIN)
        while readable.poll(CALM):
            with borrow_some(self._pool, self._pool.relay_bytes) as buffer:
                if buffer is None:
                    if self._is_stopped:
                        return False
                    select.poll().poll(MEMORY_PAUSE)
                    continue
                try:
                    while size := tcp.recv_into(buffer, 0, socket.MSG_DONTWAIT):
                        if not self.stream.write(buffer[:size]):
                            return False  # the peer has all it wants
                        self._moved += size
                except BlockingIOError:
                    continue  # nothing there: wait without a buffer
                except OSError as exc:
                    raise TransportError(f"connection: {exc.strerror or exc}") from exc
            return False
        return True

    def _end_up(self) -> None:
        self.stream.close_write()
        self._has_up_ended = True
        if self._has_down_ended or not self._closewait_s:
            self._end(None)  # kcptun's way: the first end is the end of both (docs/protocol.md, "Half-close")
        else:
            self._outlive()

    def _let_all_arrive(self) -> None:
        """Before the end of a stream that a kcptun has half-closed, which drops what lies unread when an end comes."""
        looks = ARRIVAL_TIME // ARRIVAL_LOOK
        while looks and self.stream.is_last_word and not self._is_stopped:
            select.poll().poll(ARRIVAL_LOOK)
            looks = min(looks, READ_TIME // ARRIVAL_LOOK) - 1 if self.stream.is_delivered else looks - 1

    def _is_cut(self) -> bool:
        """Whether what looks like the end of file is none.

        Linux tells of a reset once, to whichever thread asks first: when that was the other one, sending, we
        read an end of file. But then the connection has ended both ways, and not by our own `shutdown`.
        """
        if self._is_stopped:
            return True
        assert self._tcp is not None
        if sys.platform != "linux" or self._tcp.family == socket.AF_UNIX:  # whose POLLHUP says less
            return False
        readable = select.poll()
        readable.register(self._tcp, select.POLLIN)
        is_over = any(events & select.POLLHUP for _, events in readable.poll(0))
        return is_over and not self._is_shut

    # -- stream to TCP -------------------------------------------------------------------------

    def _write_down(self) -> None:
        """Write what has come, in the thread that has brought it. What would keep it is left to a thread of ours."""
        try:
            if self._has_down_ended:
                self._end_down()
            elif unsent := self._write_ready():
                Thread(target=self._run_down, args=(unsent,), name=f"down-{self.stream.sid}").start()
        except Exception as exc:
            self._fail(exc)
            self._leave()

    def _write_ready(self) -> list[Buffer]:
        """Write as much as goes at once; what must wait, [b""] if it is only a turn."""
        is_slow = self.stream.cipher is not None
        for _ in range(1 if is_slow else READS_AT_ONCE):
            chunks = self.stream.read_ready(SLOW_READ if is_slow else READ_LIMIT)
            if chunks is None:
                return []
            if not chunks:
                self._pass_end_on()
                self._end_down()
                return []
            if unsent := self._send(chunks, socket.MSG_DONTWAIT):
                return unsent
            if self.stream.finish_reading():
                return []
        return [b""]

    def _run_down(self, unsent: list[Buffer]) -> None:
        try:
            if self._copy_down(unsent):
                self._end_down()
                return
        except Exception as exc:
            self._fail(exc)
            self._leave()
            return
        self.stream.attach(self._write_down)

    def _copy_down(self, unsent: list[Buffer]) -> bool:
        """Write and wait; True at the end of the stream, False when the connection has been calm for a while."""
        calm_at = monotonic_ms() + CALM
        while unsent or monotonic_ms() < calm_at:
            if unsent:
                unsent = self._send(unsent, 0)
                if unsent and self._is_stopped:
                    raise StreamReset("stopped")
                calm_at = monotonic_ms() + CALM
            elif chunks := self.stream.read_chunks(timeout_s=CALM / 1000):
                unsent = self._send(chunks, socket.MSG_DONTWAIT)
            elif chunks is not None:
                self._pass_end_on()
                return True
        return False

    def _send(self, chunks: Sequence[Buffer], flags: int) -> list[Buffer]:
        """What the connection does not take, at once or within SO_SNDTIMEO: nobody reads at its other end."""
        assert self._tcp is not None
        unsent = list(chunks)
        try:
            while unsent:
                sent = self._tcp.sendmsg(unsent[:WRITE_BUFFERS], (), flags)
                self._moved += sent
                done = 0
                while done < len(unsent) and sent >= len(unsent[done]):
                    sent -= len(unsent[done])
                    done += 1
                del unsent[:done]
                if sent:
                    unsent[0] = memoryview(unsent[0])[sent:]
        except BlockingIOError:
            pass
        except OSError as exc:
            raise TransportError(f"connection: {exc.strerror or exc}") from exc
        return unsent

    def _pass_end_on(self) -> None:
        assert self._tcp is not None
        try:
            self._is_shut = True
            self._tcp.shutdown(socket.SHUT_WR)
            # What is on its way to the application was all: a reset would take it back.
            self._tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_RESET)
        except OSError as exc:
            raise TransportError(f"connection: {exc.strerror or exc}") from exc
        self._has_down_ended = True

    def _end_down(self) -> None:
        """The stream has ended, and the application knows; the other direction goes on as long as the peer listens."""
        if not self._has_up_ended and self._closewait_s and self.stream.stand_by():
            self._outlive()
        else:
            self._end(None)
            self._leave()

    def _leave(self) -> None:
        """Nothing goes down any more."""
        self._has_down_ended = True
        self.stream.release()

    # -- the end -------------------------------------------------------------------------------

    def _outlive(self) -> None:
        """One direction has ended: look after the other one as long as it moves."""
        self._idle_since, self._moved_before = monotonic_ms(), self._moved
        self._loop.each_second(self._look, wanted=True)

    def _look(self) -> None:
        if self._is_stopped:
            self._loop.each_second(self._look, wanted=False)
            return
        now, is_doubtful = monotonic_ms(), self.stream.is_doubtful
        if self._moved != self._moved_before:
            self._idle_since, self._moved_before = now, self._moved
        patience = min(self._closewait_s, DOUBT_IDLE) if is_doubtful else self._closewait_s
        if self._is_full():
            patience = min(patience, FULL_IDLE)
        if now - self._idle_since >= patience * 1000:
            self._end(None if is_doubtful else StreamReset(f"half-closed and idle for {patience:g} s"))

    def _fail(self, exc: Exception) -> None:
        """End both directions with a reset; a bug concerns this stream and not the tunnel."""
        if not isinstance(exc, KcptunError):
            log.limited("relay", f"relay of stream {self.stream.sid}: {describe_exception(exc)}", log.Level.ERROR)
            exc = StreamReset(repr(exc))
        self._end(exc)

    def _fail_up(self, exc: Exception) -> None:
        """As `_fail`, by whoever reads the connection or was about to; nobody does from now on."""
        self._fail(exc)
        self._up_is_over()

    def _end(self, cause: KcptunError | None) -> None:
        """End both directions, with a reset if there is a cause and they had not ended by themselves."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            is_over = self._has_up_ended and self._has_down_ended
            if not is_over:
                self.failure = cause
            tcp, up = self._tcp, self._up
        # The stream first: the thread that reads the connection must not take the shutdown for an end of the
        # application's, and pass a cut on as a good end.
        if cause is None:
            self.stream.close_write()
        if tcp is not None and cause is None:
            with suppress(OSError):
                tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_RESET)
        self.stream.close()
        if up is _Up.LOOP:
            self._loop.call(self._up_is_over)
        elif tcp is not None:
            with suppress(OSError):
                tcp.shutdown(socket.SHUT_RD)  # wakes the thread in poll; a full shutdown would send a clean FIN

    def _up_is_over(self) -> None:
        """Nobody reads the connection any more. In the loop's thread, or in the one that was the last to read."""
        with self._lock:
            if self._up is _Up.NOBODY_ANY_MORE:
                return
            if self._up is _Up.LOOP and self._tcp is not None:
                self._loop.forget(self._tcp.fileno())
            self._up = _Up.NOBODY_ANY_MORE
            is_last = self._is_down_over
        if is_last:
            self._close()

    def _down_is_over(self) -> None:
        with self._lock:
            self._is_down_over = True
            is_last = self._up is _Up.NOBODY_ANY_MORE
        if is_last:
            self._close()

    def _close(self) -> None:
        """Nobody holds the connection any more."""
        if self._tcp is not None:
            self._tcp.close()
        self._on_closed(self)
