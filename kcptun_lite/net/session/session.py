"""A conversation with its locks, its streams and its way out to the network.

In      opened packets, calls of the update thread, streams' bytes
Out     sealed packets through a UDP socket; opened streams to whoever serves them
Knows   its lock, what is to be told to whom. Not: TCP, options
Cost    one lock per batch received
"""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address, Local
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import PacketCrypt
from kcptun_lite.core.glance import are_refusal, are_reset
from kcptun_lite.core.kcp.kcp import Flush
from kcptun_lite.core.mux.dialect import Dialect, Guess
from kcptun_lite.core.mux.smux import StreamOpened, StreamReadable, StreamWritable
from kcptun_lite.errors import (
    DROPPED,
    DeadLink,
    KeepaliveTimeout,
    PathTooNarrow,
    RemoteProtocolError,
    SessionClosed,
    SessionError,
    SessionMoved,
    SessionRefused,
    nonsense,
)
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.packet_socket import PacketSocket
from kcptun_lite.net.session.path_probe import PathProbe, Verdict, is_cut_off, is_refused, send_all
from kcptun_lite.net.session.peer_watch import PROBE_TIMEOUT, PeerWatch
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.transmitter import Transmitter
from kcptun_lite.net.session.update_thread import UpdateThread, monotonic_ms

SLOW_RHYTHM = 1000  # ms between looks at the keep-alive of a session in which nothing is under way


class Session:
    """One end of one conversation on the network; thread-safe."""

    def __init__(
        self,
        conversation: Conversation,
        crypt: PacketCrypt,
        udp: PacketSocket,
        remote: Address,
        *,
        pool: BufferPool,
        ticker: UpdateThread,
        loop: EventLoop,
        counters: Counters,
        rate: int,
        owns_socket: bool,
        on_stream: Callable[["Session", Stream], None],
        on_trouble: Callable[["Session"], None],
        on_closed: Callable[["Session", SessionError], None],
        on_verdict: Callable[["Session", Guess], bool] = lambda session, guess: False,
    ) -> None:
        """`crypt` seals for this session alone; callbacks run without any lock held.

        `rate`: bytes a second sent at most, 0 for no limit.
        `owns_socket`: nobody else uses `udp`; it is closed with the session (clients).
        `on_trouble`: the way to the peer is in doubt; called every second.
        `on_verdict`: what is spoken is right, or wrong; True if the session goes on elsewhere (`begin_again`, clients).
        """
        self.lock = Lock()
        self.conversation = conversation
        self.writers: deque[Stream] = deque()
        self.remote = remote
        self.local: Local | None = None
        "which of our addresses the peer has asked, where the answers come from (servers)"
        self.counters = counters
        self.opened_at = self.idle_since = monotonic_ms()
        self.watch = PeerWatch(conversation.kcp, self.opened_at, is_client=owns_socket)
        self._nonsense: SessionError | None = None
        "the peer's stream makes none: the session ends as soon as the peer could be told what we speak"
        self._send_error: OSError | None = None
        self._has_said_goodbye = self.has_delivered = False
        self.cut_streams = 0
        self._owns_socket, self._udp = owns_socket, udp
        self._ticker, self._loop = ticker, loop
        self._transmitter = Transmitter(self, crypt, pool, ticker, rate, self.opened_at)
        self._on_stream, self._on_trouble = on_stream, on_trouble
        self._on_closed, self._on_verdict = on_closed, on_verdict
        self._streams: dict[int, Stream] = {}
        self._ready: list[Stream] = []
        "streams whose sinks are to be called; whoever takes one out does it"
        self._closed: SessionError | None = None
        self._path_probe: PathProbe | None = None
        self._verdict = Verdict()

    def __repr__(self) -> str:
        state = f"closed: {self._closed}" if self._closed else f"{len(self._streams)} streams"
        return f"<Session {self.conversation.conv:08x} {self.remote[0]}:{self.remote[1]} {state}>"

    def start(self) -> None:
        self._ticker.attach(self)

    @property
    def is_validated(self) -> bool:
        """Whether the peer is known to be where its packets come from; until then it is sent little."""
        return self.conversation.validation.is_validated

    @property
    def is_closed(self) -> bool:
        return self._closed is not None

    @property
    def is_ending(self) -> bool:
        """Whether it is over, or soon will be: one of the two ends has said goodbye, or it was closed."""
        return self._closed is not None or self._has_said_goodbye or self.conversation.has_peer_left

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    @property
    def local_address(self) -> Address:
        return self._udp.address

    def open_stream(self) -> Stream:
        """A new stream. Raises: SessionError if the session is over or its stream ids are used up."""
        with self.lock:
            if self._closed:
                raise self._closed
            stream = Stream(self, self.conversation.open_stream())
            self._streams[stream.sid] = stream
        try:
            self.settle()
        except BaseException:  # nobody has the stream yet who would close it
            stream.close()
            raise
        return stream

    # -- the network's thread ------------------------------------------------------------------

    def receive_through(self, udp: PacketSocket, packets: Sequence[memoryview], now: int) -> None:
        """Take opened packets from the session's own socket or from its path probe's (clients)."""
        with self.lock:
            path_probe = self._path_probe
            is_own = udp is self._udp
        if is_own:
            self.receive(packets, now)
            if path_probe and self.watch.silence(now) < PROBE_TIMEOUT:
                self._set_path_probe(None)  # the old way is not dead after all
                with self.lock:
                    self.conversation.ping()  # the server may believe that we have moved to the other
                self._transmitter.transmit_briefly()
        elif path_probe and udp is path_probe.udp:
            self._receive_from_path_probe(path_probe, packets, now)

    def _receive_from_path_probe(self, path_probe: PathProbe, packets: Sequence[memoryview], now: int) -> None:
        """The peer is reached the other way. If it knows us there, we go that way; a Go server never does."""
        with self.lock:
            if self._path_probe is not path_probe:
                return  # dismissed meanwhile
            is_reset = are_reset(self.conversation.kcp, packets)
            if not is_reset:
                self._path_probe = None  # nobody else dismisses it now
            is_over = is_reset and self._verdict.add(now)  # the old way may still come back: one counts for nothing
        if not is_reset:
            self.change_path(*path_probe)
            self.receive(packets, now)
        elif is_over:
            self.close(DeadLink("the server is reached another way only, and does not know this session there"))

    def receive(
        self,
        packets: Sequence[memoryview],
        now: int,
        source: Address | None = None,
        udp: PacketSocket | None = None,
        local: Local | None = None,
    ) -> bool:
        """Take opened packets; they are free again when this returns. `udp`, `local`: to which they were sent.

        If `source` is not where the peer was, those that bring anything new move the session there; True if they did.
        Until the peer is validated to be where it was, old ones do so as well.
        """
        failure: SessionError | None = None
        has_moved = False
        with self.lock:
            if self._closed:
                return False
            guess = self.conversation.guess
            was_cut_off = self.watch.silence(now) >= self.watch.patience
            self._send_error = None
            is_elsewhere = source is not None and (source != self.remote or udp is not self._udp)
            self.watch.before_packets()
            try:
                self.conversation.receive_packets(packets, now, is_elsewhere=is_elsewhere)
            except RemoteProtocolError as exc:
                self._nonsense = self._nonsense or nonsense(exc)
            except Exception as exc:  # a bug: what was being done is half done, so this session ends
                log.limited("session", f"{self!r}: {exc!r}", log.Level.ERROR)
                failure = SessionError(repr(exc))
            is_new = self.watch.after_packets(packets, now)
            if was_cut_off and self.conversation.kcp.unanswered_since is None:
                self.conversation.kcp.resume(now)
            if source is not None and is_elsewhere and (is_new or not self.is_validated):
                self.remote, self._udp, self.local = source, udp or self._udp, local
                has_moved = True
            if self._owns_socket and are_refusal(self.conversation.kcp, packets):
                failure = SessionRefused("the server has no room for another session")
            if self.conversation.has_peer_restarted(now):
                failure = DeadLink(DROPPED)
            opened = self._dispatch_locked()
            ready, self._ready = self._ready, []
        for stream in ready:
            stream.call_sink()
        for stream in opened:
            self._on_stream(self, stream)
        if guess and guess.is_decided:
            if self._on_verdict(self, guess):
                return False
            failure = failure or guess.error
        if self._nonsense:
            self._settle()
        elif not failure:
            self.settle()
        if failure or (self._nonsense and not self.conversation.is_holding_back):
            self.close(failure)
        return has_moved

    def _dispatch_locked(self) -> list[Stream]:
        """Tell those whom the conversation's events concern; returns streams the peer has opened."""
        opened: list[Stream] = []
        for event in self.conversation.take_events():
            if isinstance(event, StreamOpened):
                stream = self._streams[event.sid] = Stream(self, event.sid)
                opened.append(stream)
            elif known := self._streams.get(event.sid):
                if not isinstance(event, StreamReadable):
                    known.wake_writer_locked()
                if not isinstance(event, StreamWritable) and known.wake_reader_locked():
                    self._ready.append(known)
        self.wake_writers_locked()
        return opened

    def settle(self) -> None:
        """Tell all what using a stream has brought about, and send; in the network's thread once for all streams."""
        if self._loop.is_here:
            self._loop.afterwards(self._settle)
        else:
            self._settle()

    def _settle(self) -> None:
        with self.lock:
            opened = [] if self._closed else self._dispatch_locked()
            has_ready = bool(self._ready)
            is_flush_wanted = self.conversation.kcp.flush_wanted is not Flush.NOTHING
            deadline = None if is_flush_wanted else self.conversation.next_deadline()
        for stream in opened:
            self._on_stream(self, stream)
        if has_ready:
            self._ticker.wake(self)
        if is_flush_wanted:
            self._transmitter.transmit_briefly()
        elif deadline is not None:
            self._ticker.wake(self, deadline)

    def fail(self, error: RemoteProtocolError) -> None:
        self.close(nonsense(error))

    # -- update thread -------------------------------------------------------------------------

    def update(self, now: int) -> int | None:
        """Do what time has made due; returns the ms of the next call."""
        try:
            return self._update(now)
        except Exception as exc:  # a bug: without updates the session would neither live nor die
            log.limited("session", f"{self!r}: {exc!r}", log.Level.ERROR)
            self.close(SessionError(repr(exc)))
            return None

    def _update(self, now: int) -> int | None:
        with self.lock:
            ready, self._ready = self._ready, []
        for stream in ready:
            stream.call_sink()
        if ready:
            self.settle()
        failure: SessionError | None = None
        with self.lock:
            if self._closed:
                return None
            watch, has_streams = self.watch, bool(self._streams)
            if self.conversation.has_peer_left and not has_streams:
                failure = SessionClosed("the other end has left")
            try:
                self.conversation.tick(now)
            except KeepaliveTimeout as exc:
                failure = exc
            self._reset_hopeless_locked(now)
            if watch.is_dead(now, has_streams):
                failure = DeadLink(f"no answer for {watch.silence(now) // 1000} s")
            if (kcp := self.conversation.kcp).window.loses_large:
                failure = PathTooNarrow(f"packets of {kcp.mtu} bytes are lost on the way, smaller ones are not")
            has_no_way = self._owns_socket and is_cut_off(self._udp)  # a socket of many peers tells nothing of ours
            is_question_due = self.is_validated and watch.is_question_due(now, has_streams, has_no_way)
            if is_question_due:
                kcp.probe()
            if watch.is_word_due(now, self.counters.bytes_received):
                self.conversation.ping()
            is_in_doubt = has_no_way or watch.is_silent(now, is_refused=is_refused(self._udp))
            is_trouble = is_question_due and is_in_doubt and not self._verdict.is_pending(now)
            is_flush_wanted = self.conversation.kcp.flush_wanted is not Flush.NOTHING
        if failure:
            self.close(failure)
            return None
        if is_flush_wanted:
            self._transmitter.transmit_briefly()
        if is_trouble:
            self._on_trouble(self)
        with self.lock:
            deadline = now if self._ready else self.conversation.next_deadline()
        idle = (now // SLOW_RHYTHM + 1) * SLOW_RHYTHM  # the same for all sessions: a hundred idle ones wake us once
        paced_until = self._transmitter.paced_until
        due = paced_until if paced_until > now else deadline
        return idle if due is None else min(due, idle)

    def _reset_hopeless_locked(self, now: int) -> None:
        for stream in list(self._streams.values()):
            if self.watch.is_hopeless(stream.opened_at, now, is_refused=is_refused(self._udp)):
                self._cut_locked(stream, DeadLink("no answer from the server"))

    def probe(self) -> None:
        """Ask something that any living peer answers, and one that has forgotten us answers from zero."""
        with self.lock:
            self.conversation.kcp.probe()
        self._transmitter.transmit_briefly()

    # -- the path ------------------------------------------------------------------------------

    @property
    def send_error(self) -> OSError | None:
        """Why nothing gets through, if the kernel or an ICMP message has said so since the peer was last heard."""
        return self._udp.last_error or self._send_error

    @property
    def transport(self) -> str:
        """`UDP` or `TCP`."""
        return self._udp.transport

    @property
    def is_way_answered(self) -> bool:
        """Whether the peer's kernel has taken the connection of --tcp; there is no such question with UDP."""
        return self._udp.is_answered

    @property
    def is_way_reset(self) -> bool:
        """Whether somebody says that the connection we send through is none (--tcp): another one costs little."""
        return isinstance(self._udp.last_error, ConnectionResetError)

    @property
    def is_unknown_elsewhere(self) -> bool:
        """Whether its own way is silent, and whoever is reached another way does not know it: it may be over soon."""
        return self._path_probe is not None and self._verdict.is_pending(monotonic_ms())

    def start_path_probe(self, path_probe: PathProbe) -> None:
        """Send through another socket as well, until one of the two ways brings an answer (clients)."""
        with self.lock:
            self.conversation.ping()
            self.conversation.kcp.probe()
        self._set_path_probe(path_probe)
        self._transmitter.transmit_briefly()

    def _set_path_probe(self, path_probe: PathProbe | None) -> None:
        with self.lock:
            dismissed = [self._path_probe, path_probe] if self._closed else [self._path_probe]
            self._path_probe = None if self._closed else path_probe
            self._verdict = Verdict()
        for old in dismissed:
            if old:
                old.udp.close()

    def change_path(self, udp: PacketSocket, remote: Address) -> None:
        """Go on through another socket, perhaps to another address; what is in flight is sent again (clients)."""
        with self.lock:
            old = self._udp
            self._send_error = self._udp.last_error or self._send_error
            self._udp, self.remote = udp, remote
            is_over = self._closed is not None
            self.conversation.ping()
            self.conversation.kcp.resend_all(monotonic_ms())
        old.close()
        if is_over:
            udp.close()
        else:
            self._transmitter.transmit_briefly()

    def begin_again(self, conv: int, dialect: Dialect, udp: PacketSocket, remote: Address) -> None:
        """Say all again in another dialect and from another socket, as the server has understood nothing (clients)."""
        with self._transmitter.lock, self.lock:
            now, old = monotonic_ms(), self._udp
            if not self._closed:
                self.conversation.begin_again(conv, dialect, now)
                self.watch = PeerWatch(self.conversation.kcp, now, is_client=True)
                self._udp, self.remote, udp = udp, remote, old
        udp.close()
        self.settle()

    # -- the one way out (net/session/transmitter) ---------------------------------------------

    def transmit(self) -> None:
        """Send what the conversation wants sent."""
        self._transmitter.transmit()

    def send_packets(self, packets: list[memoryview]) -> int:
        """Send sealed packets on the path of now, and on the one that is tried; returns how many the kernel took."""
        with self.lock:  # so that a path which is changed just now is the old one or the new one
            udp, remote, local, path_probe = self._udp, self.remote, self.local, self._path_probe
        sent = send_all(udp, packets, remote, local)
        if path_probe:
            sent = max(sent, send_all(path_probe.udp, packets, path_probe.remote))
        return sent

    def wake_writers_locked(self) -> None:
        if self.writers and self.conversation.kcp.send_room > 0:
            self.writers[0].wake_writer_locked()

    # -- the end -------------------------------------------------------------------------------

    def leave(self) -> None:
        """Tell the peer that no more comes, and go on until it has heard that and the streams have ended."""
        with self.lock:
            self._say_goodbye_locked()
        self._transmitter.transmit_briefly()

    def close(self, reason: SessionError | None = None) -> None:
        """End the session: the peer is told that streams still open are cut, and they die here. Idempotent."""
        reason = self._nonsense or reason or SessionClosed("the session was closed")
        with self.lock:
            if self._closed:
                return
            self._closed = reason
            for stream in list(self._streams.values()):
                self._cut_locked(stream, reason)
            with log.told("closing a session"):
                self._say_goodbye_locked()
            ready, self._ready = self._ready, []
            self.conversation.share.close()
        self._ticker.detach(self)
        with log.told("closing a session"):
            self._transmitter.say_last_words()
        with log.told("closing a session"):
            self._set_path_probe(None)
        if self._owns_socket:
            self._udp.close()
        for stream in ready:
            with log.told("closing a session"):
                stream.call_sink()
        self._on_closed(self, reason)

    def hand_over(self, give: Callable[[Conversation], bool]) -> bool:
        """Let another process go on, without a word to the peer, if `give` takes the conversation as it is now.

        `give` runs under the session's lock, as nothing may be sent or received meanwhile; it must not wait.
        """
        with self.lock:
            if self._closed or self._streams or not give(self.conversation):
                return False
            self._closed = reason = SessionMoved("another process goes on with it")
            self.conversation.share.close()
        self._ticker.detach(self)
        self._on_closed(self, reason)
        return True

    def _cut_locked(self, stream: Stream, cause: SessionError) -> None:
        """Whoever reads, writes or waits hears of it, even if telling the peer fails."""
        del self._streams[stream.sid]
        with log.told("cutting a stream"), suppress(RemoteProtocolError):  # in what there was room for now
            self.conversation.close_stream(stream.sid)
        if stream.die_locked(cause):
            self._ready.append(stream)

    def _say_goodbye_locked(self) -> None:
        if not self._has_said_goodbye and not self.conversation.has_peer_left:
            self._has_said_goodbye = True
            self.conversation.say_goodbye()

    def is_flushed(self) -> bool:
        """Whether everything sent has been acknowledged."""
        with self.lock:
            return self._closed is not None or self.conversation.kcp.is_quiet

    def forget_locked(self, stream: Stream) -> None:
        self._streams.pop(stream.sid, None)
        self.idle_since = monotonic_ms()
