"""The server: streams in, connections to the target out.

In      a `ServerConfig`
Out     a running server
Knows   ports, the target (WIRE.md 8.5). Not: how a session works
"""

from collections.abc import Iterable

from kcptun_lite import log
from kcptun_lite.app.config import ServerConfig
from kcptun_lite.app.tunnel import Tunnel
from kcptun_lite.core.counters import Counters
from kcptun_lite.net.address import format_address
from kcptun_lite.net.listener import Listener
from kcptun_lite.net.relay import connect
from kcptun_lite.net.session import Session
from kcptun_lite.net.stream import Stream
from kcptun_lite.net.udp import UdpOptions, UdpSocket


class Server(Tunnel):
    """One listener per UDP port; each stream gets a connection to the target."""

    config: ServerConfig

    def __init__(self, config: ServerConfig) -> None:
        super().__init__(config)
        self._listeners: list[Listener] = []

    def _start(self) -> None:
        config = self.config
        for port in range(config.listen.port_min, config.listen.port_max + 1):
            udp = UdpSocket.listen(config.listen.host, port, UdpOptions(config.sockbuf, config.dscp))
            self._listeners.append(
                Listener(
                    self.plant,
                    udp,
                    max_sessions=config.maxsessions,
                    on_stream=self._on_stream,
                    on_session=self._on_session,
                    on_closed=self.session_closed,
                )
            )
        self.log_start(", ".join(format_address(listener.address) for listener in self._listeners[:1]))
        for listener in self._listeners:
            listener.start()

    def _every_second(self, now: int) -> None:
        super()._every_second(now)
        for listener in self._listeners:
            listener.drop_half_open(now)

    def _sessions(self) -> list[Session]:
        return [session for listener in self._listeners for session in listener.sessions()]

    def _other_counters(self) -> Iterable[Counters]:
        return [listener.counters for listener in self._listeners]

    def _stop_accepting(self) -> None:
        """Sessions still open go on until they are flushed; `_close_sessions` closes the ports."""

    def _close_sessions(self) -> None:
        for listener in self._listeners:
            listener.close()

    def _on_session(self, session: Session) -> None:
        self.count_session(session)
        log.info(f"remote address: {session.remote[0]}:{session.remote[1]}")

    def _on_stream(self, session: Session, stream: Stream) -> None:
        target = self.config.target
        name = f"in: {session.remote[0]}:{session.remote[1]}({stream.sid}) out: {target}"
        self.start_relay(lambda: connect(target.host, target.port_min, target.path), stream, lambda: name)


def run(config: ServerConfig) -> int:
    """Run the server until it is told to stop; returns the exit code."""
    return Server(config).run()
