"""Between a TCP (or unix) connection and a stream: a thread for what comes, and one more while it goes out slowly.

In      a connection, a stream
Out     their bytes, each way, until both ways have ended
Knows   half-close, resets, idleness after a half-close. Not: sessions, options
Wire    docs/protocol.md, "Half-close"; better than it between two of ours: each direction ends by itself
Cost    a thread of 16 KiB, two while the connection is slow; a buffer only while bytes move; one system call
        per 64 KiB and direction
"""

import select
import socket
import sys
from collections.abc import Callable, Sequence
from threading import Lock, Thread

from kcptun_lite import log
from kcptun_lite.core.batch.pool import BufferPool, borrow_some
from kcptun_lite.core.wire import Buffer
from kcptun_lite.errors import KcptunError, StreamReset, TransportError
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp.sockets import NO_RESET

WRITE_BUFFERS = 512  # per gather write; IOV_MAX is 1024 on Linux
READS_AT_ONCE = 8  # of 256 KiB, a whole window, that go out in the thread which has brought them
CALM = 1000  # ms in which the connection has taken all at once: then it needs no thread to wait for it
DOUBT_IDLE = 30  # s that a half-closed connection may idle if the other end may have closed it (kcptun's --closewait)
ARRIVAL_TIME = 2000  # ms at the most that the last bytes are given to arrive ...
READ_TIME = 100  # ms ... and then to be read ...
ARRIVAL_LOOK = 20  # ms ... with looks so often
MEMORY_PAUSE = 20  # ms between looks whether --memlimit leaves room for a buffer

Opener = Callable[[], socket.socket]


class Relay:
    """Moves bytes between a connection and a stream until both directions have ended, or one has failed.

    A direction that ends is passed on as such (`shutdown`, FIN). Then the other one may go on as long as it moves:
    `closewait_s` without a byte ends it, and so does a peer that listens no more. Those of kcptun do not say which they
    mean: they are written to for a second more, as long as the data follow at once. A failure ends both at once, with a
    TCP reset.
    """

    def __init__(
        self,
        open_tcp: Opener,
        stream: Stream,
        pool: BufferPool,
        *,
        closewait_s: float,
        on_closed: Callable[["Relay"], None],
    ) -> None:
        """`open_tcp` runs in the relay's own thread: connecting to a target may take its time."""
        self.stream = stream
        self.failure: KcptunError | None = None
        self._open_tcp = open_tcp
        self._pool = pool
        self._closewait_s = closewait_s
        self._on_closed = on_closed
        self._tcp: socket.socket | None = None
        self._lock = Lock()
        self._is_stopped = False
        self._is_shut = False
        self._moved = 0
        self._has_up_ended = False
        self._has_down_ended = False
        self._up = Thread(target=self._run_up, name=f"up-{stream.sid}")
        self._down: Thread | None = None
        "while what comes down has to wait"

    def start(self) -> None:
        self._up.start()

    def abandon(self) -> None:
        """Give up what could not be started."""
        self.stream.close()
        self._on_closed(self)

    def stop(self) -> None:
        """End both directions now; the connection is reset if they had not ended."""
        self._end(StreamReset("stopped"))

    def join(self) -> None:
        self._up.join()
        if self._down and self._down.ident is not None:
            self._down.join()

    # -- TCP to stream -------------------------------------------------------------------------

    def _run_up(self) -> None:
        try:
            try:
                tcp = self._open_tcp()
            except TransportError as exc:
                log.limited("target", str(exc))
                raise
            with self._lock:
                self._tcp = tcp
                if self._is_stopped:
                    return
            self.stream.attach(self._deliver)
            self._copy_up(tcp)
            self._let_all_arrive()
            self.stream.close_write()
            self._has_up_ended = True
            self._outlive(self.stream.wait_until_over)
        except Exception as exc:
            self._fail(exc)
        finally:
            self._has_up_ended = True
            self._finish()

    def _copy_up(self, tcp: socket.socket) -> None:
        readable = select.poll()
        readable.register(tcp, select.POLLIN)
        while True:
            readable.poll()
            with borrow_some(self._pool, self._pool.relay_bytes) as buffer:
                if buffer is None:
                    select.poll().poll(MEMORY_PAUSE)
                    continue
                try:
                    while size := tcp.recv_into(buffer, 0, socket.MSG_DONTWAIT):
                        if not self.stream.write(buffer[:size]):
                            return  # the peer has all it wants
                        self._moved += size
                except BlockingIOError:
                    continue  # nothing there: wait without a buffer
                except OSError as exc:
                    raise TransportError(f"connection: {exc.strerror or exc}") from exc
            if self._is_stopped or self._is_reset(tcp, readable):
                raise TransportError("connection: reset")
            return

    def _let_all_arrive(self) -> None:
        """Before the end of a stream that a kcptun has half-closed, which drops what lies unread when an end comes."""
        looks = ARRIVAL_TIME // ARRIVAL_LOOK
        while looks and self.stream.is_last_word and not self._is_stopped:
            select.poll().poll(ARRIVAL_LOOK)
            looks = min(looks, READ_TIME // ARRIVAL_LOOK) - 1 if self.stream.is_delivered else looks - 1

    def _is_reset(self, tcp: socket.socket, readable: select.poll) -> bool:
        """Whether what looks like the end of file is none.

        Linux tells of a reset once, to whichever thread asks first: when that was the other one, sending, we
        read an end of file. But then the connection has ended both ways, and not by our own `shutdown`.
        """
        if sys.platform != "linux" or tcp.family == socket.AF_UNIX:  # whose POLLHUP says less
            return False
        is_over = any(events & select.POLLHUP for _, events in readable.poll(0))
        return is_over and not self._is_shut

    # -- stream to TCP -------------------------------------------------------------------------

    def _deliver(self) -> None:
        """Write what has come, in the thread that has brought it. What would keep it is left to a thread of ours."""
        try:
            unsent = self._write_ready()
            if unsent is not None:
                self._down = Thread(target=self._run_down, args=(unsent,), name=f"down-{self.stream.sid}")
                self._down.start()
        except Exception as exc:
            self._fail(exc)
            self._leave()

    def _write_ready(self) -> list[Buffer] | None:
        """Write as much as goes at once; None when that was all, else what must wait, if only for the other's end."""
        for _ in range(READS_AT_ONCE):
            chunks = self.stream.read_ready()
            if chunks is None:
                return None
            if not chunks:
                self._pass_end_on()
                if self._closewait_s and not self.stream.wait_for_write_end(0):
                    return []
                self._end(None)
                self._leave()
                return None
            if unsent := self._send(chunks, socket.MSG_DONTWAIT):
                return unsent
        return []

    def _run_down(self, unsent: list[Buffer]) -> None:
        try:
            is_over = self._has_down_ended or self._copy_down(unsent)
            if is_over:
                self._outlive(self.stream.wait_for_write_end)
                self._end(None)
        except Exception as exc:
            is_over = True
            self._fail(exc)
        if is_over:
            self._leave()
        else:
            self.stream.attach(self._deliver)

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

    def _leave(self) -> None:
        """Nothing goes down any more: what the thread waits for that reads the connection and will close it."""
        self._has_down_ended = True
        self.stream.release()

    # -- the end -------------------------------------------------------------------------------

    def _outlive(self, wait_for_other: Callable[[float], bool]) -> None:
        """Our direction has ended: wait for the other one as long as it moves."""
        if not self._closewait_s:  # kcptun's way: the first end is the end of both (docs/protocol.md, "Half-close")
            self._end(None)
            return
        moved = -1
        while not wait_for_other(self._patience()):
            if moved == self._moved and self.stream.is_doubtful:
                self._end(None)
                return
            if moved == self._moved:
                raise StreamReset(f"half-closed and idle for {self._closewait_s:g} s")
            moved = self._moved

    def _patience(self) -> float:
        """s that a half-closed connection may idle."""
        return min(self._closewait_s, DOUBT_IDLE) if self.stream.is_doubtful else self._closewait_s

    def _fail(self, exc: Exception) -> None:
        """End both directions with a reset; a bug concerns this stream and not the tunnel."""
        if not isinstance(exc, KcptunError):
            log.error(f"relay of stream {self.stream.sid}: {exc!r}")
            exc = StreamReset(repr(exc))
        self._end(exc)

    def _end(self, cause: KcptunError | None) -> None:
        """End both directions, with a reset if there is a cause and they had not ended by themselves."""
        with self._lock:
            if self._is_stopped:
                return
            self._is_stopped = True
            is_over = self._has_up_ended and self._has_down_ended
            if not is_over:
                self.failure = cause
            tcp = self._tcp
        # The stream first: the thread that reads the connection must not take the shutdown for an end of the
        # application's, and pass a cut on as a good end.
        if cause is None:
            self.stream.close_write()
        self.stream.close()
        if tcp is not None:
            try:
                if cause is None:
                    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_RESET)
                tcp.shutdown(socket.SHUT_RD)  # wakes the thread in poll; a full shutdown would send a clean FIN
            except OSError:
                pass

    def _finish(self) -> None:
        """Close the connection as soon as nobody is writing to it."""
        self.stream.close()
        self.stream.wait_until_over(None)
        if self._tcp is not None:
            self._tcp.close()
        self._on_closed(self)
