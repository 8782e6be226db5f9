"""A server's fake TCP port: connections that the kernel accepts, and what comes through them.

In      packets and the address of a peer; or nothing, and then what has arrived
Out     packets as TCP segments; those of the peers, without their headers
Knows   who has made a connection. Not: what is in a packet, sessions
Wire    docs/protocol.md, "Fake TCP"
Cost    a descriptor for each connection, one or two for the port

It has the face of a UDP socket and of a listener's doors at once (net/packet_socket), as all peers come through one
raw socket. What comes from who has no connection is nothing: the handshake proves the address.
"""

import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.core.wire import MTU_MAX
from kcptun_lite.errors import TransportError, describe_exception
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.fake_tcp.bpf import see_segments
from kcptun_lite.net.fake_tcp.flow import Flow
from kcptun_lite.net.fake_tcp.raw_socket import ROOM, RawSocket, take
from kcptun_lite.net.fake_tcp.segment import HEADER, PSH, parse
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.address import MAPPED, format_address, resolve
from kcptun_lite.net.udp.sockopt import bind, may_come, set_dscp
from kcptun_lite.net.udp.udp_socket import READS_MAX, UdpOptions

BACKLOG = 128
ACCEPTS_MAX = 64  # in one go; whoever comes later has his turn behind the packets of the others
UNUSED_FOR = 5000  # ms that a connection may have no session
UNUSED_MAX = 1024  # connections that no session has been validated for; the oldest gives way ...
UNUSED_OF_HOST = 64  # ... of those from one host also when they are more than these
ACCEPT_REST = 1.0  # s without new connections when there is no descriptor for one
STRAYS_MAX = 1000  # segments a second of nobody who is connected; when there are more ...
GUARD_TIME = 10_000  # ms ... the kernel lets only hosts through that are connected, for so long
CLOSED = "the fake TCP port is closed"
EARLY_MAX = 65_536  # bytes that have come before a connection was accepted


class FakeTcpPort:
    """One port. `receive` is for the event loop's thread, `send` and `close` for any."""

    transport = "TCP"
    is_answered = True

    def __init__(self, listening: socket.socket, options: UdpOptions, loop: EventLoop) -> None:
        """Takes over a bound TCP socket; `open_port` makes one. Raises: OSError."""
        listening.setblocking(False)
        if options.dscp:
            set_dscp(listening, options.dscp)
        listening.listen(BACKLOG)
        self.address: Address = listening.getsockname()
        self.last_error: OSError | None = None
        "why the kernel would not send the latest of those that it refused"
        self._listening = listening
        self._loop = loop
        self._lock = Lock()
        self._flows: dict[tuple[str, int], Flow] = {}
        "by host and port of the peer"
        self._unused: dict[tuple[str, int], Flow] = {}
        "those of them that no session has been validated for, the oldest first"
        families = [socket.AF_INET]
        if listening.family == socket.AF_INET6:
            families = [socket.AF_INET6] if self.address[0] != "::" else [socket.AF_INET6, socket.AF_INET]
        self._raws = {family: RawSocket(family, options) for family in families}
        if self.address[0] not in ("::", "0.0.0.0"):  # another address may have another service on this port
            self._raws[listening.family].hear_only(self.address)
        self._is_mapped = socket.AF_INET6 in self._raws
        "whether IPv4 addresses are written as IPv4-mapped ones, as the kernel gives them"
        self._strays = 0
        "segments of nobody who is connected, this second"
        self._guarded_until = 0
        "ms; until when only connected hosts are heard; 0: all are"
        self._is_closed = False
        self._set_filters()

    @classmethod
    def open_port(cls, host: str, port: int, options: UdpOptions, loop: EventLoop) -> "FakeTcpPort":
        """The TCP port beside a UDP one; as `UdpSocket.listen`. Raises: TransportError."""
        failures: list[OSError] = []
        for is_absent in False, True:
            for family, address in resolve(host, port, socket.SOCK_STREAM, to_listen=True):
                try:
                    return cls(bind(family, address, kind=socket.SOCK_STREAM, is_absent=is_absent), options, loop)
                except OSError as exc:
                    failures.append(exc)
            if not may_come(failures):
                break
        raise TransportError(f"cannot listen on {host}:{port} (TCP): {failures[-1].strerror}") from failures[-1]

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"{len(self._flows)} connections"
        return f"<FakeTcpPort {format_address(self.address)} {state}>"

    # -- connections ---------------------------------------------------------------------------

    def _accept(self) -> None:
        """Take the connections that the kernel has made."""
        try:
            for _ in range(ACCEPTS_MAX):
                self._add(*self._listening.accept())
        except (BlockingIOError, ConnectionAbortedError):
            pass
        except OSError as exc:
            if not self._is_closed:
                log.limited("fake tcp", f"--tcp: no new connections for a moment: {describe_exception(exc)}")
                self._loop.forget(self._listening.fileno())
                self._loop.call_later(ACCEPT_REST, self._watch_newcomers)

    def _watch_newcomers(self) -> None:
        with self._lock:
            if not self._is_closed:
                self._loop.watch(self._listening.fileno(), self._accept)

    def _add(self, kernels: socket.socket, peer: Address) -> None:
        try:
            flow = Flow(kernels, peer)
            flow.begin()
            kernels.setblocking(False)
            with suppress(BlockingIOError):  # what has come before: the raw socket has it as well
                while kernels.recv(EARLY_MAX):
                    pass
        except OSError:  # it has ended already
            kernels.close()
            return
        with self._lock:
            stale = [self._flows.pop(peer[:2], None), self._giving_way_locked(peer[0])]
            if self._is_closed:
                stale.append(flow)
            else:
                self._flows[peer[:2]] = self._unused[peer[:2]] = flow
        for old in stale:
            if old:
                self._end(old)
        if self._guarded_until:
            self._set_filters()

    def _giving_way_locked(self, host: str) -> Flow | None:
        """Who must go for one more from this host."""
        same = [flow for flow in self._unused.values() if flow.peer[0] == host]
        if len(same) >= UNUSED_OF_HOST:
            return same[0]
        return next(iter(self._unused.values())) if len(self._unused) >= UNUSED_MAX else None

    def _set_filters(self) -> None:
        """Let the kernel drop what is not for us, and while there is a flood what is of nobody who is connected."""
        with self._lock:
            hosts = {flow.host for flow in self._flows.values()}
        for family, raw in self._raws.items():
            known = [host for host in hosts if (":" in host) == (family == socket.AF_INET6)]
            see_segments(raw.inner, PSH, self.address[1], hosts=known if self._guarded_until else None)

    def _end(self, flow: Flow) -> None:
        with self._lock:
            for flows in self._flows, self._unused:
                if flows.get(flow.peer[:2]) is flow:
                    del flows[flow.peer[:2]]
        flow.close(self._raws.get(socket.AF_INET6 if ":" in flow.host else socket.AF_INET))

    def _flow(self, host: str, port: int) -> Flow | None:
        if self._is_mapped and ":" not in host:
            host = MAPPED + host
        return self._flows.get((host, port))

    # -- as a listener's doors -----------------------------------------------------------------

    def __contains__(self, peer: Address) -> bool:
        """Whether `open` has been called for its connection."""
        return peer[:2] in self._flows and peer[:2] not in self._unused

    def has_waiting(self, peer: Address) -> bool:
        """Not known: all peers have one queue."""
        return False

    def open(self, peer: Address, local: Local | None = None) -> None:
        """A session is validated: its connection does not give way any more."""
        with self._lock:
            self._unused.pop(peer[:2], None)

    def shut(self, peer: Address) -> None:
        """A session has left its address; the connection goes if no other one takes it (`every_second`)."""

    def listen(self, wanted: bool) -> None:
        """The port is no other process's (--workers)."""

    def rest_unknown(self) -> None:
        """There are no unknown sources."""

    def every_second(self, has_session: Callable[[Address], bool]) -> None:
        """End connections that nobody uses, and guards against floods that are over."""
        now = monotonic_ms()
        self._strays = 0
        if self._guarded_until and now >= self._guarded_until:
            self._guarded_until = 0
            self._set_filters()
        with self._lock:
            flows = list(self._flows.values())
        for flow in flows:
            if has_session(flow.peer):
                flow.used_at = now
            elif now - flow.used_at >= UNUSED_FOR:
                self._end(flow)

    def watch(self, on_ready: Callable[[], None]) -> None:
        """Have the event loop call `on_ready` when something has come, until `close`."""
        self._watch_newcomers()
        for raw in self._raws.values():
            self._loop.watch(raw.fileno(), on_ready)

    def close(self) -> None:
        """End all connections and the port; idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            flows, raws = list(self._flows.values()), self._raws
        self._loop.forget(self._listening.fileno())
        self._listening.close()
        for flow in flows:
            self._end(flow)
        for raw in raws.values():
            self._loop.forget(raw.fileno())
        self._raws = {}

    # -- in and out ----------------------------------------------------------------------------

    def receive(self, batch: PacketBatch, *, wait: bool = False) -> int:
        """Put what has come into a batch, while it has room; returns the number of packets.

        Raises: TransportError once the port is closed.
        """
        if self._is_closed:
            raise TransportError(CLOSED)
        before = len(batch)
        for raw in self._raws.values():
            try:
                for _ in range(READS_MAX):
                    if not batch.has_room(ROOM):
                        break
                    self._take(raw, batch)
            except BlockingIOError:
                pass
            except OSError as exc:
                self.last_error = exc
        return len(batch) - before

    def _take(self, raw: RawSocket, batch: PacketBatch) -> None:
        data, host = raw.read(batch, socket.MSG_DONTWAIT)
        segment = parse(data)
        if segment is None:
            return
        flow = self._flow(host, segment.source_port)
        if flow is None:
            self._accept()  # it may be waiting there
            flow = self._flow(host, segment.source_port)
        if flow is None:
            self._note_stray()
        else:
            payload = data[segment.size :]
            flow.heard(segment, data[HEADER.size : segment.size], len(payload))
            take(batch, payload, flow.peer)

    def room(self, address: Address) -> int:
        """As the handshake has told, and routers on the way that have corrected it (MSS clamping)."""
        flow = self._flows.get(address[:2])
        return flow.room if flow else MTU_MAX

    def _note_stray(self) -> None:
        self._strays += 1
        if self._strays > STRAYS_MAX and not self._guarded_until:
            self._guarded_until = monotonic_ms() + GUARD_TIME
            self._set_filters()
            text = "--tcp: a flood of segments without a connection; for a while only hosts with one are heard"
            log.limited("fake tcp flood", text)

    def send(self, packets: Sequence[memoryview], address: Address, local: Local | None = None) -> int:
        """Send packets in order; returns how many the kernel took. Who has no connection gets none.

        Raises: TransportError once the port is closed.
        """
        if self._is_closed:
            raise TransportError(CLOSED)
        flow = self._flows.get(address[:2])
        raw = self._raws.get(socket.AF_INET6 if flow and ":" in flow.host else socket.AF_INET)
        if not (raw and flow and flow.is_open):
            return 0
        taken, error = flow.send(raw, packets)
        self.last_error = error or self.last_error
        return taken
