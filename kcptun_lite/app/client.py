"""The client: TCP connections in, streams of a few sessions out.

In      a `ClientConfig`
Out     a running client
Knows   session slots, expiry (docs/protocol.md, "Client program"). Not: how a session works
"""

import errno
import math
import socket
from collections.abc import Callable, Sequence
from threading import Thread

from kcptun_lite import files, log
from kcptun_lite.app import memory
from kcptun_lite.app.config import ClientConfig
from kcptun_lite.app.diagnosis import diagnose
from kcptun_lite.app.dialects import describe_found, likely_dialects
from kcptun_lite.app.evidence import gather
from kcptun_lite.app.listening import cannot_listen
from kcptun_lite.app.path_manager import PathManager
from kcptun_lite.app.transport import ways_of_dialling
from kcptun_lite.app.tunnel import Tunnel
from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.crypt.crypt import fitting_methods
from kcptun_lite.core.mux.dialect import Dialect
from kcptun_lite.errors import (
    ConfigError,
    KcptunError,
    SessionError,
    SessionRefused,
    TransportError,
    describe_exception,
)
from kcptun_lite.net.ends.dialects import Dialects
from kcptun_lite.net.ends.dialer import Dialer
from kcptun_lite.net.ends.route import Route, Server
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp.acceptor import Acceptor, is_gone, name_of
from kcptun_lite.net.tcp.sockets import listen
from kcptun_lite.net.udp.address import format_address
from kcptun_lite.net.udp.sockopt import device_error
from kcptun_lite.net.udp.udp_socket import UdpOptions

REFUSED_PAUSE = 5000  # ms after a refusal in which no new session is tried while there is another one
TRANSPORTS = {
    "TCP": "UDP does not get through: going on over TCP; UDP is tried again now and then",
    "UDP": "UDP gets through again: going on over UDP",
}
"what is said of --transport auto"
REDIAL_PAUSE = 1.0  # s between attempts to make a session's socket (as kcptun)


class Client(Tunnel):
    """Accepts TCP connections and gives each a stream of the next session slot."""

    config: ClientConfig

    def __init__(self, config: ClientConfig) -> None:
        super().__init__(config)
        servers = [Server(remote.host, remote.port_min, remote.port_max, remote.weight) for remote in config.remoteaddr]
        options = UdpOptions(config.sockbuf, config.dscp, config.interface)
        self._route = route = Route(servers, options, self.stop_event, ways_of_dialling(config))
        self._likely = likely_dialects(config)
        self._dialects = Dialects(self._likely, self._note_found)
        self._dialer = Dialer(self.context, route, self._dialects)
        self._path_manager = PathManager(route, self._dialer, self._sessions, has_second_way=config.transport == "auto")
        self._slots: list[Session | None] = [None] * config.conn
        self._expired: list[Session] = []
        self._accepted = 0
        self._refused_at: int | None = None
        "ms; when a server had no room for a session"
        self._fitting: tuple[Address | None, Sequence[str]] = (None, ())
        "who sent the last packet that failed its check and told something, and the methods that fit it"
        self._transport = "UDP"
        "what carried the packets of all sessions when it was looked at last"
        self._dialling: Thread | None = None

    def _listen(self) -> None:
        local = self.config.localaddr
        try:
            self._listening = listen(local.host, local.port_min, local.path)
        except TransportError as exc:
            raise cannot_listen("--localaddr", local, exc) from exc.__cause__
        self._acceptor = Acceptor(self._listening, self.loop, has_room=self.has_room, serve=self._take)
        self._socket_file = files.identify(local.path) if local.path else None

    def _start(self) -> None:
        self._check_interface()
        self.log_start(name_of(self._listening))
        for remote in self.config.remoteaddr:
            self.look_up("--remoteaddr", remote)
        self._path_manager.start()
        self._acceptor.start()

    def _check_interface(self) -> None:
        """Raises: ConfigError if no socket can be held to --interface; its device may come later."""
        error = device_error(self.config.interface) if self.config.interface else None
        if error is None:
            return
        if error.errno == errno.EPERM:
            raise ConfigError(f"{error.strerror} (Linux before 5.7 lets only root choose: run it as root)")
        log.warning(f"{error.strerror}; it is tried again until there is one")

    def _stop_accepting(self) -> None:
        self._acceptor.close()
        if self._dialling and self._dialling.ident is not None:
            self._dialling.join()
        files.remove(self.config.localaddr.path, self._socket_file)
        self._path_manager.stop()

    def _redial(self) -> None:
        self._path_manager.redial_all()

    def _sessions(self) -> list[Session]:
        return [session for session in self._slots if session] + self._expired

    def _close_sessions(self) -> None:
        for session in self._sessions():
            session.close()

    # -- the network's thread ------------------------------------------------------------------

    def _take(self, tcp: socket.socket, source: str) -> None:
        """Serve a connection; if a session must be made first, in a thread, while others wait."""
        slot = self._accepted % len(self._slots)
        self._accepted += 1
        session = self._slots[slot]
        if session and self._is_usable(session):
            try:
                return self._serve(tcp, source, session, session.open_stream())
            except SessionError:
                pass  # closed just now, or out of stream ids: it takes another one
        self._acceptor.pause()
        self._dialling = Thread(target=self._serve_slowly, args=(tcp, source, slot), name="dial")
        try:
            self._dialling.start()
        except RuntimeError:
            self._acceptor.resume()
            raise

    def _serve_slowly(self, tcp: socket.socket, source: str, slot: int) -> None:
        try:
            self._serve(tcp, source, *self._open_stream(slot))
        except Exception as exc:
            tcp.close()
            if not (is_gone(exc) or self.is_stopping):
                log.limited("stream", f"no stream: {exc if isinstance(exc, KcptunError) else describe_exception(exc)}")
        finally:
            self.loop.call(self._acceptor.resume)

    def _serve(self, tcp: socket.socket, source: str, session: Session, stream: Stream) -> None:
        remote = f"{format_address(session.remote)}({stream.sid})"
        if not self.start_relay(lambda relay: relay.serve(tcp), stream, lambda: (source, remote)):
            tcp.close()

    def _open_stream(self, slot: int) -> tuple[Session, Stream]:
        session = self._session(slot)
        try:
            return session, session.open_stream()
        except SessionError:
            if not session.is_closed:  # it has no stream ids left; what it has open goes on
                self._retire(session)
            session = self._session(slot)  # else it was closed between the look at it and its use
            return session, session.open_stream()

    def _retire(self, session: Session) -> None:
        """No new streams for a session, whose old ones go on."""
        self._expired.append(session)
        self._slots = [None if other is session else other for other in self._slots]

    def _session(self, slot: int) -> Session:
        """The session of a slot, a new one if it is dead or has expired. Raises: SessionError on stop.

        While none can be made, or the server has just refused one, one of another slot must do; if there is none, the
        connection waits.
        """
        session = self._slots[slot]
        if session and self._is_usable(session):
            return session
        if self._refused_at is not None and monotonic_ms() - self._refused_at < REFUSED_PAUSE:
            if other := self._other_session():
                return other
        if session and not session.is_closed:
            self._retire(session)
        while not self.is_stopping:
            try:
                session = self._dialer.dial(self._path_manager.report, self.session_closed)
            except TransportError as exc:
                if self._spoken.is_due("re-connecting", monotonic_ms()):
                    log.warning(f"re-connecting: {exc}; trying again every {REDIAL_PAUSE:g} s")
                if other := self._other_session():
                    return other
                self.wait_for_stop(REDIAL_PAUSE)
                continue
            self.count_session(session)
            self._slots[slot] = session
            local, remote = format_address(session.local_address), format_address(session.remote)
            version, conv = session.conversation.smux_version, f"{session.conversation.conv:08x}"
            text = f"smux version: {version} on connection: {local} -> {remote}"
            log.info(text, "session opened", session=conv, peer=remote)
            return session
        raise SessionError("the client stops")

    def _note_found(self, session: Session, dialect: Dialect) -> None:
        if dialect != self._likely[0]:
            log.info(describe_found(format_address(session.remote), dialect))

    def _other_session(self) -> Session | None:
        """One of any slot, or else one that has expired, which is better than none."""
        usable = [other for other in self._slots if other and self._is_usable(other)]
        usable = usable or [other for other in self._sessions() if not other.is_ending]
        return usable[self._accepted % len(usable)] if usable else None

    def _is_usable(self, session: Session) -> bool:
        age = monotonic_ms() - session.opened_at
        is_fresh = not self.config.autoexpire or age < self.config.autoexpire * 1000
        conversation = session.conversation
        if (
            session.is_ending
            or session.is_unknown_elsewhere
            or not is_fresh
            or (conversation.is_held_up and self._may_put_aside())
        ):
            return False
        smux = conversation.smux
        if smux is None:
            return True
        return not (smux.remains.are_a_flood or (smux.is_peer_old and self._dialects.prefer(session.remote, 2)))

    def _may_put_aside(self) -> bool:
        """Whether there may be one session more, for the sake of streams that would wait for a reader that has stopped.

        With smux version 1 a kcptun stops all streams for one reader: new ones go round him.
        """
        if sum(not session.is_ending for session in self._expired) >= memory.SESSIONS_ASIDE:
            return False
        return not self.config.memlimit or self.pool.budget.free >= memory.least_limit(self.context.params, 1)

    # -- main thread ---------------------------------------------------------------------------

    def _chores(self) -> list[Callable[[int], None]]:
        return [*super()._chores(), self._scavenge, self._look_at_sessions, lambda now: self._look_at_transport()]

    def _look_at_transport(self) -> None:
        """Say when --transport auto has chosen the other one."""
        found = {session.transport for session in self._sessions() if not session.is_closed}
        if self.config.transport == "auto" and len(found) == 1 and self._transport not in found:
            self._transport = found.pop()
            log.info(TRANSPORTS[self._transport])

    def _scavenge(self, now: int) -> None:
        """Close expired sessions: those with nothing left to do, and all of them when --scavengettl is over too.

        A session whose server does not stop what it sends for a stream that has ended is as good as expired.
        """
        expiry = self.config.autoexpire * 1000 or math.inf
        grace = self.config.scavengettl
        limit = expiry + (math.inf if grace is None else grace * 1000)
        for session in self._sessions():
            age = now - session.opened_at
            smux = session.conversation.smux
            is_flooded = smux is not None and smux.remains.are_a_flood
            is_expired = age >= expiry or session in self._expired or is_flooded
            if is_expired and not session.stream_count and not session.is_ending:
                if is_flooded:
                    server = format_address(session.remote)
                    log.info(f"server {server} goes on sending what nobody wants: its session is ended")
                session.leave()  # so that the server forgets it as well; it is closed when that has arrived
            elif age >= limit or (is_expired and not session.stream_count and session.is_flushed()):
                session.close()
        for session in [session for session in self._expired if session.is_closed]:
            self._expired.remove(session)

    def _look_at_sessions(self, now: int) -> None:
        """Say what is wrong with the sessions, if something is."""
        if sample := self.context.failed_packets.take():
            fitting = fitting_methods(self.context.key, sample.packet)
            if fitting or self._fitting[0] != sample.source:
                self._fitting = sample.source, fitting
        findings = []
        is_understood = False
        for session in self._sessions():
            if session.is_closed:
                continue
            evidence = gather(session, self.config.crypt, now)
            is_understood = is_understood or evidence.understood
            if session.remote == self._fitting[0]:
                evidence = evidence._replace(fitting=self._fitting[1])
            if evidence.acknowledged and not evidence.understood:
                session.probe()  # one that has dropped us tells it in its answer
            if finding := diagnose(evidence):
                findings.append(finding)
        for finding in findings:
            self.diagnosed(finding.sentence, finding.sentence)
        if is_understood and not findings:
            self.diagnoses.clear()

    def session_closed(self, session: Session, reason: SessionError) -> None:
        super().session_closed(session, reason)
        if isinstance(reason, SessionRefused):
            self._refused_at = monotonic_ms()
            self._route.refused(session.remote)
            remote = format_address(session.remote)
            sentence = f"server {remote} takes no more sessions: its --maxsessions or --memlimit, or it is about to end"
            self.diagnosed(sentence, sentence)
        finding = diagnose(gather(session, self.config.crypt, monotonic_ms(), reason))
        if finding and finding.rule in ("stream", "dropped"):
            self.diagnosed(finding.sentence, finding.sentence)


def run(config: ClientConfig) -> int:
    """Run the client until it is told to stop; returns the exit code."""
    return Client(config).run()
