"""A client's fake TCP connection, with the face of a UDP socket (net/packet_socket).

In      packets and an address; or nothing, and then what has arrived
Out     packets as TCP segments; those of the peer, without their headers
Knows   when the handshake begins and ends, what waits for it. Not: what is in a packet, sessions
Wire    docs/protocol.md, "Fake TCP"
Cost    two descriptors

The kernel makes the connection, with the first packet that is sent, and sees nothing more of it then (`Flow.begin`):
so it neither answers what comes nor believes a reset that somebody on the way has made up. No firewall needs a rule.
"""

import errno
import os
import select
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Lock

from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.core.wire import MTU_MAX
from kcptun_lite.errors import TransportError
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.fake_tcp.bpf import see_segments
from kcptun_lite.net.fake_tcp.flow import Flow
from kcptun_lite.net.fake_tcp.raw_socket import ROOM, RawSocket, take
from kcptun_lite.net.fake_tcp.segment import HEADER, PSH, RST, SYN, Segment, parse
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.address import MAPPED, mapped, resolve
from kcptun_lite.net.udp.sockopt import bind, set_dscp
from kcptun_lite.net.udp.udp_socket import READS_MAX, UdpOptions

WAITING_MAX = 32  # packets that wait for the handshake; more than that is repeated by KCP
HANDSHAKE_AGAIN = 3000  # ms without an answer after which another one is begun ...
FAILED_AGAIN = 1000  # ms ... if the answer was a reset, or the kernel knows no way
KERNEL_TIME = 20  # ms
CLOSED = "the fake TCP socket is closed"


class FakeTcpConnection:
    """One connection, which begins with the first packet. One thread receives, any number send, any may close."""

    transport = "TCP"

    def __init__(self, kernels: socket.socket, options: UdpOptions) -> None:
        """Takes over a bound TCP socket; `dial` makes one."""
        self.address: Address = kernels.getsockname()
        self.last_error: OSError | None = None
        """Why nothing gets through; None again once a packet came in.
        ConnectionRefusedError: there was a reset for an answer to our SYN. ECONNRESET: there was one later."""
        self._kernels = kernels
        self._options = options
        self._lock = Lock()
        self._raw: RawSocket | None = None
        self._flow: Flow | None = None
        self._waiting: list[bytes] = []
        "packets for a handshake that is not over"
        self._began_at: int | None = None
        "ms; the latest handshake"
        self._is_closed = False
        self._watcher: tuple[EventLoop, Callable[[], None]] | None = None

    @classmethod
    def dial(cls, host: str, port: int, options: UdpOptions) -> tuple["FakeTcpConnection", list[Address]]:
        """A socket on a free port, and all addresses of the peer that it can connect to, best first.

        As with UDP, IPv4 addresses come as IPv4-mapped ones when the peer has IPv6 as well.
        Raises: TransportError if the name has no address or there is no socket to be had.
        """
        found = resolve(host, port, socket.SOCK_STREAM)
        addresses = [address for family, address in found if family == socket.AF_INET]
        try:
            if len(addresses) == len(found):
                return cls(_bind(socket.AF_INET, options), options), addresses
            try:
                kernels = _bind(socket.AF_INET6, options)
            except OSError:
                if not addresses:
                    raise
                return cls(_bind(socket.AF_INET, options), options), addresses
            return cls(kernels, options), [mapped(address) for _, address in found]
        except OSError as exc:
            raise TransportError(f"no TCP socket for {host}:{port}: {exc.strerror}") from exc

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self.is_answered else "not connected"
        return f"<FakeTcpConnection {self.address[0]}:{self.address[1]} {state}>"

    @property
    def is_answered(self) -> bool:
        """Whether the handshake is over."""
        return self._flow is not None and self._flow.is_open

    def room(self, address: Address) -> int:
        """Not known before the handshake, and sessions are made before that."""
        return MTU_MAX

    def watch(self, loop: EventLoop, on_ready: Callable[[], None]) -> None:
        """Have the event loop call `on_ready` when something has come, until the socket is closed."""
        with self._lock:
            self._watcher = loop, on_ready
            if self._raw and not self._is_closed:
                loop.watch(self._raw.fileno(), on_ready)

    def close(self) -> None:
        """End the connection; idempotent."""
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            self._let_go_locked()
            self._kernels.close()

    # -- in ------------------------------------------------------------------------------------

    def receive(self, batch: PacketBatch, *, wait: bool = True) -> int:
        """Put what has come into a batch, while it has room; returns the number of packets.

        `wait`: for a second at most, if nothing has. Raises: TransportError once the socket is closed.
        """
        raw, before = self._open_raw(), len(batch)
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            for _ in range(READS_MAX):
                if not raw or not batch.has_room(ROOM):
                    break
                self._take(raw, batch, flags)
                flags = socket.MSG_DONTWAIT
        except BlockingIOError:  # the second is over, or the queue is empty
            pass
        except OSError as exc:
            self.last_error = exc
        if len(batch) > before:
            self.last_error = None
        return len(batch) - before

    def _open_raw(self) -> RawSocket | None:
        if self._is_closed:
            raise TransportError(CLOSED)
        return self._raw

    def _take(self, raw: RawSocket, batch: PacketBatch, flags: int) -> None:
        data, _ = raw.read(batch, flags)
        segment, flow = parse(data), self._flow
        if segment is None or flow is None or raw is not self._raw:  # of a handshake that was begun again
            return
        if segment.flags & RST:
            if not flow.is_open:
                self.last_error = ConnectionRefusedError(errno.ECONNREFUSED, os.strerror(errno.ECONNREFUSED))
            elif flow.may_be_reset(segment):
                self.last_error = ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
        elif segment.flags & SYN and not flow.is_open:
            self._finish_handshake(raw, flow, segment, data[HEADER.size : segment.size])
        elif segment.flags & PSH and flow.is_open:
            payload = data[segment.size :]
            flow.heard(segment, data[HEADER.size : segment.size], len(payload))
            take(batch, payload, flow.peer)

    def _finish_handshake(self, raw: RawSocket, flow: Flow, segment: Segment, options: memoryview) -> None:
        """The peer's kernel has answered; ours is about to know it, as a raw socket hears it first."""
        poll = select.poll()
        poll.register(flow.kernels, select.POLLOUT)
        poll.poll(KERNEL_TIME)
        flow.begin()
        self.address = flow.kernels.getsockname()
        flow.heard(segment, options, 0)
        self.last_error = None
        with self._lock:
            waiting, self._waiting = self._waiting, []
        self._send(raw, flow, [memoryview(packet) for packet in waiting])

    # -- out -----------------------------------------------------------------------------------

    def send(self, packets: Sequence[memoryview], address: Address, local: Local | None = None) -> int:
        """Send packets in order; returns how many were taken. The first ones begin the connection to `address`.

        The others are lost: `last_error` says why. Raises: TransportError once the socket is closed.
        """
        raw, flow = self._open_raw(), self._flow
        if raw and flow and flow.is_open:
            return self._send(raw, flow, packets)
        with self._lock:
            if self._is_closed:
                raise TransportError(CLOSED)
            if self._is_handshake_due():
                self._connect_locked(address)
            kept = packets[: WAITING_MAX - len(self._waiting)]
            self._waiting += [bytes(packet) for packet in kept]
        return len(kept)

    def _is_handshake_due(self) -> bool:
        """The kernel repeats its SYN ever more rarely; who has just come back shall not wait for that."""
        patience = FAILED_AGAIN if self.last_error else HANDSHAKE_AGAIN
        return self._began_at is None or monotonic_ms() - self._began_at >= patience

    def _send(self, raw: RawSocket, flow: Flow, packets: Sequence[memoryview]) -> int:
        taken, error = flow.send(raw, packets)
        self.last_error = error or self.last_error
        return taken

    def _connect_locked(self, peer: Address) -> None:
        """Begin the handshake, or begin it again."""
        self._began_at = monotonic_ms()
        self._let_go_locked()
        host = peer[0].removeprefix(MAPPED)
        try:
            if self._flow:
                self._kernels = _bind(self._kernels.family, self._options)
                self.address = self._kernels.getsockname()
            flow = Flow(self._kernels, peer)
            raw = RawSocket(socket.AF_INET6 if ":" in host else socket.AF_INET, self._options)
            see_segments(raw.inner, PSH | SYN | RST, self.address[1], peer[1])
            raw.inner.connect((host, 0, *peer[2:]) if ":" in host else (host, 0))
            raw.forget_all()
            self._kernels.setblocking(False)
            with suppress(BlockingIOError):
                self._kernels.connect(peer)
        except OSError as exc:
            self.last_error = exc
            return
        self._raw, self._flow = raw, flow
        if self._watcher:
            self._watcher[0].watch(raw.fileno(), self._watcher[1])

    def _let_go_locked(self) -> None:
        raw, self._raw = self._raw, None
        if raw and self._watcher:
            self._watcher[0].forget(raw.fileno())
        if self._flow:
            self._flow.close(raw)


def _bind(family: int, options: UdpOptions) -> socket.socket:
    address: Address = ("::", 0, 0, 0) if family == socket.AF_INET6 else ("0.0.0.0", 0)
    kernels = bind(family, address, kind=socket.SOCK_STREAM, device=options.device)
    if options.dscp:
        set_dscp(kernels, options.dscp)
    return kernels
