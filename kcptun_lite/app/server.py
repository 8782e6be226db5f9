"""The server: streams in, connections to the target out.

In      a `ServerConfig`
Out     a running server
Knows   ports, the target (docs/protocol.md, "Server program"). Not: how a session works
"""

import socket
from collections.abc import Callable, Iterable
from os import getpid, kill
from signal import Signals
from typing import TYPE_CHECKING

from kcptun_lite import log
from kcptun_lite.app.config import ServerConfig
from kcptun_lite.app.diagnosis import (
    KEYLESS,
    UNKNOWN_EVERY,
    describe_adaptation,
    describe_refusal,
    describe_strictness,
    describe_unknown_source,
)
from kcptun_lite.app.listening import cannot_listen
from kcptun_lite.app.tunnel import Tunnel
from kcptun_lite.core.budget import SESSION_COST
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import fitting_methods
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.errors import RemoteProtocolError, SessionError, TransportError
from kcptun_lite.net.ends.listener import Listener, hint
from kcptun_lite.net.ends.session_table import SessionTable
from kcptun_lite.net.packet_socket import PacketSocket, PeerDoors
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.tcp.target import Target
from kcptun_lite.net.udp.address import format_address, format_host
from kcptun_lite.net.udp.peer_sockets import PeerSockets
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket

if TYPE_CHECKING:
    from kcptun_lite.app.health import Health
    from kcptun_lite.app.workers.drain import Drain
    from kcptun_lite.net.ends.siblings import Siblings

FREE_FOR_ALL = 3 / 4  # of --maxstreams; the rest is for sessions that have few ...
SMALL_SHARE = 16  # ... no more than this part of them


class Server(Tunnel):
    """One listener per UDP port; each stream gets a connection to the target."""

    config: ServerConfig

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)
        self._table = SessionTable(config.maxsessions)
        self._target = Target(config.target.host, config.target.port_min, config.target.path)
        self._small_share = config.maxstreams // SMALL_SHARE
        self._listeners: list[Listener] = []
        self._adapted: set[Session] = set()
        "sessions whose differences were told"
        self._health: Health | None = None
        self._drain: Drain | None = None

    def _listen(self) -> None:
        config = self.config
        options = UdpOptions(config.sockbuf, config.dscp)
        sockets: list[tuple[PacketSocket, PeerDoors]] = []
        try:
            for port in range(config.listen.port_min, config.listen.port_max + 1):
                udp = UdpSocket.listen(config.listen.host, port, options)
                sockets.append((udp, PeerSockets(udp, self.loop)))
                if config.tcp:
                    sockets.append(self._listen_to_tcp(udp.address[1], options))
        except TransportError as exc:
            for opened, _ in sockets:
                opened.close()
            raise cannot_listen("--listen", config.listen, exc) from exc.__cause__
        self._listeners = [self._make_listener(opened, doors) for opened, doors in sockets]

    def _make_listener(self, opened: PacketSocket, doors: PeerDoors, siblings: "Siblings | None" = None) -> Listener:
        return Listener(
            self.context,
            opened,
            doors,
            self._table,
            on_stream=self._on_stream,
            on_session=self.count_session,
            on_validated=self._on_validated,
            on_closed=self.session_closed,
            siblings=siblings,
        )

    def _listen_to_tcp(self, port: int, options: UdpOptions) -> tuple[PacketSocket, PeerDoors]:
        """The same port again, for clients with --tcp."""
        from kcptun_lite.net.fake_tcp.port import FakeTcpPort

        fake = FakeTcpPort.open_port(self.config.listen.host, port, options, self.loop)
        return fake, fake

    def _start(self) -> None:
        if self.config.health:
            from kcptun_lite.app.health import open_health

            self._health = open_health(self.config.health, self.loop, self.trouble)
        has_range = self.config.listen.port_min != self.config.listen.port_max
        self.log_start(str(self.config.listen) if has_range else format_address(self._listeners[0].address))
        self.look_up("--target", self.config.target)
        for listener in self._listeners:
            listener.start()

    def _chores(self) -> list[Callable[[int], None]]:
        return [
            *super()._chores(),
            self._look_after_newcomers,
            self._look_at_unknown_sources,
            lambda now: self._look_at_adaptations(),
            self._look_at_drain,
        ]

    def trouble(self) -> str:
        """Why new sessions are not welcome, in a word; nothing if they are."""
        if self.is_stopping:
            return "stopping"
        if self._drain:
            return "draining"
        return "full" if self._table.is_full or self.pool.budget.free < SESSION_COST else ""

    def drain(self) -> None:
        """Have no new sessions, and end when the streams of those there are have ended, or --drain seconds are over."""
        if self.speaks_for_all:
            log.info(f"draining: no new sessions; what is open may go on for {self.config.drain} s", "draining")
        self._table.is_draining = True
        # A kcptun cannot be told to go elsewhere: its session is served until the end.
        self._begin_drain(lambda session: None)

    def _begin_drain(self, give_away: Callable[[Session], None]) -> None:
        from kcptun_lite.app.workers.drain import Drain

        self._drain = self._drain or Drain(self.config.drain * 1000, give_away, self._cut_streams)

    def _look_at_drain(self, now: int) -> None:
        if self._drain and self._drain.is_over(self._sessions(), now):
            log.info("all sessions have ended or moved")
            kill(getpid(), Signals.SIGTERM)

    def _cut_streams(self) -> None:
        with self._lock:
            relays = list(self._relays)
        for relay in relays:
            relay.stop()

    def _look_after_newcomers(self, now: int) -> None:
        self._table.every_second()
        for listener in self._listeners:
            listener.every_second(now)

    def _look_at_unknown_sources(self, now: int) -> None:
        """Say what is wrong with packets that fail their check, if a sample of them has come in."""
        sample = self.context.failed_packets.take()
        if sample is None or any(session.remote == sample.source for session in self._sessions()):
            return  # a client we understand may send noise: kcptun of 2017 does (docs/protocol.md, "NAT ping of 2017")
        host = format_host(sample.source)
        fitting = fitting_methods(self.context.key, sample.packet)
        sentence = describe_unknown_source(host, fitting, self.config.crypt)
        if fitting:
            self.diagnosed(sentence, sentence)
            if not KEYLESS.issuperset(fitting):
                hint(self.context, sample)
        elif self._spoken.is_due(sentence, now):
            self.diagnosed(sentence, "unknown sources", UNKNOWN_EVERY)

    def _look_at_adaptations(self) -> None:
        """Say once per session what it has in common with its client and not with our options."""
        sessions = self._sessions()
        self._adapted.intersection_update(sessions)
        for session in sessions:
            differences = differences_from(self.context.params, session.conversation)
            if differences and session not in self._adapted:
                self._adapted.add(session)
                host = format_host(session.remote)
                if self.config.strict:
                    sentence = describe_strictness(host, differences)
                    self.diagnosed(sentence, sentence)
                else:
                    log.info(describe_adaptation(host, differences))

    def session_closed(self, session: Session, reason: SessionError) -> None:
        super().session_closed(session, reason)
        if isinstance(reason.__cause__, RemoteProtocolError):
            sentence = describe_refusal(format_host(session.remote), str(reason.__cause__), strict=self.config.strict)
            if session.is_validated:
                self.diagnosed(sentence, sentence)
            else:
                self.diagnosed(sentence, "unknown sources", UNKNOWN_EVERY)

    def _redial(self) -> None:
        """A server is found, it does not search."""

    def _sessions(self) -> list[Session]:
        return list(self._table)

    def _other_counters(self) -> Iterable[Counters]:
        return [listener.counters for listener in self._listeners]

    def _stop_accepting(self) -> None:
        """Sessions still open go on until they are flushed; `_close_sessions` closes the ports."""

    def _close_sessions(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _stop_threads(self) -> None:
        super()._stop_threads()
        if self._health:
            self._health.close()

    def _on_validated(self, session: Session) -> None:
        peer = format_address(session.remote)
        log.info(f"remote address: {peer}", "session opened", session=f"{session.conversation.conv:08x}", peer=peer)

    def _on_stream(self, session: Session, stream: Stream) -> None:
        if self.relay_count >= self.config.maxstreams * FREE_FOR_ALL and session.stream_count > self._small_share:
            log.limited("maxstreams", f"stream refused: {format_host(session.remote)} has enough of --maxstreams")
            stream.close()
            return
        ends = f"{format_address(session.remote)}({stream.sid})", str(self.config.target)
        self.start_relay(lambda relay: relay.dial(self._target.begin, self._connect), stream, lambda: ends)

    def _connect(self) -> socket.socket:
        try:
            return self._target.connect(lambda: self.is_stopping)
        except TransportError as exc:
            sentence = f"--target: {exc}"
            self.note_diagnosis(sentence)
            raise TransportError(sentence) from exc


def differences_from(own: ConversationParams, conversation: Conversation) -> list[str]:
    """The options in which a client differs from what we are set to, as far as its packets have shown them."""
    if not conversation.smux_version:
        return []
    found = []
    if conversation.smux_version != own.smux_version:
        found.append(f"--smuxver {conversation.smux_version}")
    if conversation.is_compressed != own.compress:
        found.append("compression" if conversation.is_compressed else "--nocomp")
    shards = conversation.peer_shards
    if own.adapts:  # one of ours begins with error correction, and goes on as its server does
        shards = (0, 0) if not conversation.params.has_fec else None if shards == (0, 0) else shards
    elif conversation.smux and conversation.smux.is_peer_ours:  # which takes what comes
        shards = None
    if shards and shards != ((own.data_shards, own.parity_shards) if own.has_fec else (0, 0)):
        data, parity = shards
        found.append(f"--datashard {data} --parityshard {parity}" if data else "--datashard 0")
    return found


def run(config: ServerConfig) -> int:
    """Run the server until it is told to stop; returns the exit code."""
    return Server(config).run()
