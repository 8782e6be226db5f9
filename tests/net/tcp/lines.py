"""A tunnel whose streams end in relays, inside the test's process.

In      the test's moves: applications' connections, the streams' other ends
Out     lines: connection, relay, stream, and what comes out of the tunnel
Knows   relays' insides. Not: UDP, encryption
"""

import socket
import threading

from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.tcp.relay import Relay
from kcptun_lite.net.tcp.sockets import tune
from tests.net.fakes import PATIENCE_S, Wire, make_context, small_params, wait_until


class Line:
    """An application's connection, a relay, a stream, and the stream's other end."""

    def __init__(self, wire: Wire, context: SessionContext, *, closewait_s: float = PATIENCE_S) -> None:
        self.tcp, self._relays_end = tcp_pair()
        self.stream = wire.client.session.open_stream()
        self.closed: list[Relay] = []
        self.is_tunnel_full = False
        self.relay = Relay(
            self.stream,
            context.pool,
            context.loop,
            closewait_s=closewait_s,
            is_full=lambda: self.is_tunnel_full,
            on_closed=lambda relay: self.closed.append(relay),
        )
        self.may_open = threading.Event()
        self.may_open.set()
        self._wire = wire

    def open_tcp(self) -> socket.socket:
        self.may_open.wait()
        tune(self._relays_end)
        return self._relays_end

    def start(self) -> None:
        self.relay.dial(lambda: None, self.open_tcp)

    def has_thread(self, name: str) -> bool:
        """Whether the relay has a thread for a direction."""
        return f"{name}-{self.stream.sid}" in [thread.name for thread in threading.enumerate()]

    @property
    def peer(self) -> Stream:
        """The stream at the other end of the tunnel."""
        opened = self._wire.server.opened
        wait_until(lambda: self.stream.sid in [stream.sid for stream in opened])
        return next(stream for stream in opened if stream.sid == self.stream.sid)

    def received(self) -> bytes:
        """All that comes out of the tunnel until its end."""
        data = b""
        while chunks := self.peer.read_chunks(timeout_s=PATIENCE_S):
            data += b"".join(chunks)
        assert chunks is not None
        return data

    def wait_for_end(self) -> None:
        wait_until(lambda: self.closed == [self.relay])


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname(), timeout=PATIENCE_S)
        theirs, _ = server.accept()
    return ours, theirs


def send_and_finish(tcp: socket.socket, data: bytes) -> None:
    tcp.sendall(data)
    tcp.shutdown(socket.SHUT_WR)


def read_to_end(tcp: socket.socket) -> bytes:
    data = b""
    while piece := tcp.recv(65_536):
        data += piece
    return data


def is_reset(tcp: socket.socket) -> bool:
    try:
        read_to_end(tcp)
    except ConnectionResetError:
        return True
    return False


class Relays:
    """Makes lines through one tunnel and cleans up behind them."""

    def __init__(self) -> None:
        self.context = make_context(small_params(snd_wnd=256, rcv_wnd=256), loop=EventLoop())
        self.context.loop.start()
        self.wire = Wire(self.context, monotonic_ms)
        self.lines: list[Line] = []

    def start(self, *, closewait_s: float = PATIENCE_S) -> Line:
        self.lines.append(Line(self.wire, self.context, closewait_s=closewait_s))
        self.lines[-1].start()
        return self.lines[-1]
