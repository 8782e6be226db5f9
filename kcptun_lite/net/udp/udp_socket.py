"""UDP sockets: whole batches of datagrams through few system calls.

In      packets and an address; or nothing, and then what has arrived
Out     `UdpSocket.receive` fills a batch, each packet at a multiple of 16; `send` says how many the kernel took
Knows   sockets, GSO and GRO. Not: what is in a packet, sessions, who is allowed to send
Wire    docs/protocol.md, "Client sessions", "Sizes", "Options"
Cost    receive 0.35 us per packet of a GRO run, 4 us alone; send 0.3 us per packet of a GSO run, 4.5 us alone

Sockets are blocking and unconnected, so one serves any number of peers (peer_sockets has more). On Linux a run of
equal packets goes down as one buffer for the kernel to cut (UDP_SEGMENT) and comes up as one (UDP_GRO).
A network in trouble is never an exception here: packets are lost, the caller counts them, KCP sends again.
"""

import errno
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from threading import Lock
from typing import Any, NamedTuple

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.core.batch.strided import PACKET_ALIGNMENT
from kcptun_lite.core.wire import MTU_MAX
from kcptun_lite.errors import TransportError
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.udp import pktinfo
from kcptun_lite.net.udp.address import format_address, mapped, resolve
from kcptun_lite.net.udp.sockopt import (
    ON_LINUX,
    SO_RCVBUFFORCE,
    SO_SNDBUFFORCE,
    bind,
    is_known,
    let_be_cut,
    may_come,
    set_buffer_size,
    set_dscp,
    set_timeout,
    try_option,
)

RECEIVE_TIMEOUT_MS = 1000  # after which an idle `receive` lets its thread look around
SEND_TIMEOUT_MS = 20  # a full socket buffer holds up a sender no longer than this

GSO_PACKETS = 64  # UDP_MAX_SEGMENTS of Linux 4.18 to 6.2; 128 since
GSO_REFUSALS_MAX = 8  # runs, one after the other, until no more are tried
GSO_BYTES = 65_507  # largest payload of an IPv4 datagram
GRO_ROOM = 65_536 + 128 * PACKET_ALIGNMENT  # bytes: the largest GRO run, 128 packets, with its gaps
READS_MAX = 512  # in one `receive`, so that a flood of datagrams we drop cannot keep good ones in the batch
ASKED_READS = 16  # before each of the first ones it is asked whether there is more; after so many there is
PLAIN_ROOM = MTU_MAX + 1  # bytes: one more than is allowed, to tell who is too long

# Linux, by number because the socket module does not know them.
SOL_UDP = 17
UDP_SEGMENT = 103
UDP_GRO = 104
UDP_GRO_SPACE = socket.CMSG_SPACE(4)  # bytes; the size of a run's packets, an int
SO_MEMINFO = 55
IP_RECVERR = 11
IPV6_RECVERR = 25
NOTHING_QUEUED = bytes(4)  # SK_MEMINFO_RMEM_ALLOC == 0
PENDING_ERRORS_MAX = 64  # ICMP errors thrown away at a time


class UdpOptions(NamedTuple):
    """What the command line says about UDP sockets (docs/protocol.md, "Options")."""

    sockbuf: int = 4_194_304
    "bytes, each direction"
    dscp: int = 0
    device: str = ""
    "the only one that a dialled socket sends and receives through; empty: as the routes say"
    offload: bool = True
    "False: one datagram per system call"


class UdpSocket:
    """One bound UDP socket. One thread receives, any number send, any of them may close."""

    transport = "UDP"
    is_answered = True

    def __init__(self, bound: socket.socket, options: UdpOptions) -> None:
        """Takes over a bound blocking socket; `listen` and `dial` make one."""
        self._socket = bound
        self._options = options
        self._is_closed = False
        self._is_ours_alone = True
        self._calls = 0  # of receive and send, under way now
        self._calls_lock = Lock()  # for the two above
        self._loop: EventLoop | None = None
        self.address: Address = bound.getsockname()
        "where it is bound"
        self.last_error: OSError | None = None
        """The latest refusal by the kernel or, after `dial`, by the network; None again once a datagram came in.
        ConnectionRefusedError: an ICMP message said that the peer's port is closed."""

        set_timeout(bound, socket.SO_RCVTIMEO, RECEIVE_TIMEOUT_MS)
        set_timeout(bound, socket.SO_SNDTIMEO, SEND_TIMEOUT_MS)
        set_buffer_size(bound, "rmem_max", socket.SO_RCVBUF, SO_RCVBUFFORCE, options.sockbuf)
        set_buffer_size(bound, "wmem_max", socket.SO_SNDBUF, SO_SNDBUFFORCE, options.sockbuf)
        if options.dscp:
            set_dscp(bound, options.dscp)
        let_be_cut(bound)
        self._has_error_queue = False
        self._gso_refusals = 0
        "of runs, since the last one that was taken"
        self._tells_queue = ON_LINUX and is_known(bound, socket.SOL_SOCKET, SO_MEMINFO)
        self._gso = options.offload and ON_LINUX and is_known(bound, SOL_UDP, UDP_SEGMENT)
        self._gro = options.offload and ON_LINUX and try_option(bound, SOL_UDP, UDP_GRO, 1) is None
        self._is_told_asked = False
        "whether it comes with each datagram which of our addresses it was sent to"

    @classmethod
    def listen(cls, host: str, port: int, options: UdpOptions) -> "UdpSocket":
        """A socket on the first address of `host` that can be bound; "" is every interface, IPv6 and IPv4.

        If no interface has any of them, it is on the first one and hears what comes once one has (Linux).
        Raises: TransportError if there is none.
        """
        addresses = resolve(host, port, socket.SOCK_DGRAM, to_listen=True)
        failures: list[OSError] = []
        for is_absent in False, True:
            for family, address in addresses:
                try:
                    udp = cls(bind(family, address, is_absent=is_absent), options)
                except OSError as exc:
                    failures.append(exc)
                    continue
                udp._want_asked()
                return udp
            if not may_come(failures):
                break
        raise TransportError(f"cannot listen on {host}:{port} (UDP): {failures[-1].strerror}") from failures[-1]

    @classmethod
    def adopt(cls, number: int, options: UdpOptions) -> "UdpSocket":
        """A bound socket that other processes have as well, by its descriptor: it goes on when we close ours."""
        udp = cls(socket.socket(fileno=number), options)
        udp._is_ours_alone = False
        udp._want_asked()
        return udp

    @classmethod
    def dial(cls, host: str, port: int, options: UdpOptions) -> tuple["UdpSocket", list[Address]]:
        """A socket on a free port, and all addresses of the peer it can send to, best first.

        IPv4 addresses come as IPv4-mapped ones when the peer has IPv6 as well, so that this one socket
        can try them all. It also learns of closed ports and missing routes, see `last_error`.
        Raises: TransportError if the name has no address or there is no socket to be had.
        """
        found = resolve(host, port, socket.SOCK_DGRAM)
        addresses = [address for family, address in found if family == socket.AF_INET]
        try:
            if len(addresses) < len(found):
                try:
                    bound = bind(socket.AF_INET6, ("::", 0, 0, 0), device=options.device)
                    addresses = [mapped(address) for _, address in found]
                except OSError:
                    if not addresses:
                        raise
                    bound = bind(socket.AF_INET, ("0.0.0.0", 0), device=options.device)  # a machine without IPv6
            else:
                bound = bind(socket.AF_INET, ("0.0.0.0", 0), device=options.device)
        except OSError as exc:
            raise TransportError(f"no UDP socket for {host}:{port}: {exc.strerror}") from exc
        udp = cls(bound, options)
        udp._want_errors()
        return udp, addresses

    def __repr__(self) -> str:
        roads = [name for name, is_on in (("gso", self._gso), ("gro", self._gro)) if is_on]
        state = "closed" if self._is_closed else "+".join(roads) or "plain"
        return f"<UdpSocket {format_address(self.address)} {state}>"

    def for_peer(self, peer: Address, local: Local | None = None) -> "UdpSocket":
        """Another socket on the same port, to which Linux gives what comes from `peer` to our address `local`.

        Raises: OSError.
        """
        # Not set before `listen` has bound: a second server on the same port must learn that it is taken.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        address = pktinfo.host_of(local, self.address) if local else self.address
        bound = bind(self._socket.family, address, shares_port=True)
        try:
            bound.connect(peer)
        except OSError:
            bound.close()
            raise
        return UdpSocket(bound, self._options)

    def fileno(self) -> int:
        return self._socket.fileno()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """For who waits for `fileno` in a block: `close` wakes him, because the descriptor lives until he leaves.

        Raises: TransportError once the socket is closed.
        """
        self._enter()
        try:
            yield
        finally:
            self._leave()

    def watch(self, loop: EventLoop, on_ready: Callable[[], None]) -> None:
        """Have the event loop call `on_ready` when something has come, until the socket is closed."""
        with suppress(TransportError), self.kept_open():
            self._loop = loop
            loop.watch(self._socket.fileno(), on_ready)
            if self._is_closed:  # meanwhile
                loop.forget(self._socket.fileno())

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    def close(self) -> None:
        """End what is under way on other threads, a blocked `receive` at once; idempotent.

        The port is free when the last of those calls has returned.
        """
        with self._calls_lock:
            if self._is_closed:
                return
            self._calls += 1
            self._is_closed = True
        if self._loop:
            self._loop.forget(self._socket.fileno())
        if self._is_ours_alone:
            with suppress(OSError):  # ENOTCONN as there is no peer; Linux wakes the receiver all the same
                self._socket.shutdown(socket.SHUT_RDWR)
        self._leave()

    def _enter(self) -> None:
        with self._calls_lock:
            if self._is_closed:
                raise TransportError("the UDP socket is closed")
            self._calls += 1

    def _leave(self) -> None:
        # The last one out closes the descriptor. Earlier, its number could go to a TCP connection while
        # another thread is about to send datagrams to that number.
        with self._calls_lock:
            self._calls -= 1
            is_last = self._is_closed and not self._calls
        if is_last:
            self._socket.close()

    # -- in ------------------------------------------------------------------------------------

    def receive(self, batch: PacketBatch, *, wait: bool = True, reads: int = READS_MAX) -> int:
        """Wait for a datagram, then take all that have arrived while the batch has room; returns their number.

        `wait` False: take what is there. `reads`: datagrams or GRO runs, at the most.
        Each packet goes to the next multiple of 16 in the arena, which must have GRO_ROOM bytes free, its source
        to `batch.addresses`. 0 when nothing came for a second, or an ICMP error did instead. Empty datagrams
        and those above MTU_MAX are dropped.
        Raises: TransportError once the socket is closed, also when that happens during the wait.
        """
        before = len(batch)
        read = self._read_run if self._gro else self._read_one
        room = GRO_ROOM if self._gro else PLAIN_ROOM
        self._enter()
        try:
            read(batch, 0 if wait else socket.MSG_DONTWAIT)
            for done in range(1, reads):
                if not batch.has_room(room) or (done < ASKED_READS and not self._may_have_more()):
                    break
                read(batch, socket.MSG_DONTWAIT)
        except BlockingIOError:  # the second is over, or the queue is empty
            if len(batch) == before and not wait:  # no datagram has woken us, but an error that nobody has taken
                self._drop_errors()
        except OSError as exc:
            self._note(exc)
        finally:
            self._leave()
        if self._is_closed:
            raise TransportError("the UDP socket is closed")
        received = len(batch) - before
        if received:
            self.last_error = None
        return received

    def has_waiting(self) -> bool:
        """Whether datagrams wait to be received, where the system can tell."""
        return self._tells_queue and not self._is_closed and self._may_have_more()

    def _may_have_more(self) -> bool:
        # Asking costs a third of a read that finds nothing (no exception), and the GIL stays here.
        if not self._tells_queue:
            return True
        return self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, len(NOTHING_QUEUED)) != NOTHING_QUEUED

    def _read_one(self, batch: PacketBatch, flags: int) -> None:
        if self._is_told_asked:
            self._read_run(batch, flags)
            return
        length, address = self._socket.recvfrom_into(batch.arena[batch.end :], PLAIN_ROOM, flags)
        self._take(batch, length, length, address)

    def _read_run(self, batch: PacketBatch, flags: int) -> None:
        room = batch.arena[batch.end :] if self._gro else batch.arena[batch.end : batch.end + PLAIN_ROOM]
        space = UDP_GRO_SPACE + pktinfo.PKTINFO_SPACE if self._is_told_asked else UDP_GRO_SPACE
        total, control, _, address = self._socket.recvmsg_into([room], space, flags)
        self._take(batch, total, _segment_size(control) or total, address)
        if self._is_told_asked and (local := pktinfo.asked(control)):
            batch.asked[address] = local

    def _take(self, batch: PacketBatch, total: int, size: int, address: Address) -> None:
        if size > MTU_MAX:
            return
        if size == total > 0:
            batch.commit(total)
            batch.addresses.append(address)
        elif total:
            _lay_run(batch, size, total)
            batch.addresses.extend([address] * (len(batch) - len(batch.addresses)))

    def room(self, address: Address) -> int:
        """Not known: routers cut what is too large, or the session finds out (net/ends/path_sizes)."""
        return MTU_MAX

    # -- out -----------------------------------------------------------------------------------

    def send(self, packets: Sequence[memoryview], address: Address, local: Local | None = None) -> int:
        """Send packets to one address, in order, from `local` if given; returns how many the kernel took.

        The others are lost: `last_error` says why, and nothing waits longer than SEND_TIMEOUT_MS for room.
        `address` is of the socket's own family, as `receive` and `dial` give it.
        Raises: TransportError once the socket is closed.
        """
        self._enter()
        try:
            if self._gso and len(packets) > 1:
                return self._send_runs(packets, address, local)
            return self._send_one_by_one(packets, address, local)
        finally:
            self._leave()

    def _send_runs(self, packets: Sequence[memoryview], address: Address, local: Local | None) -> int:
        taken = 0
        for run in _runs(packets):
            if len(run) == 1:
                error = self._send_one(run[0], address, local)
            else:
                control = [(SOL_UDP, UDP_SEGMENT, struct.pack("=H", len(run[0])))]
                if local:
                    control.append(local)
                error = self._attempt(self._socket.sendmsg, run, control, 0, address)
            if error is None:
                taken += len(run)
                if len(run) > 1:
                    self._gso_refusals = 0
            elif isinstance(error, BlockingIOError):
                break
            elif len(run) > 1 and error.errno in (errno.EIO, errno.EINVAL, errno.EMSGSIZE):
                taken += self._send_refused_run(run, address, local, error)
        return taken

    def _send_refused_run(
        self, run: Sequence[memoryview], address: Address, local: Local | None, error: OSError
    ) -> int:
        """The plain path for a run that the fast one refused; if it is always better, the fast one is closed for good.

        EIO: the device cannot checksum. EINVAL: some tunnels and transforms, and short paths on older kernels, which
        may be one peer's trouble; EMSGSIZE: packets longer than one peer's path, which always is. No reason to be slow
        for all the others.
        """
        taken = self._send_one_by_one(run, address, local)
        if taken and error.errno != errno.EMSGSIZE and self._gso:
            self._gso_refusals += 1
            if error.errno == errno.EIO or self._gso_refusals >= GSO_REFUSALS_MAX:
                self._gso = False
                log.warning(f"UDP segmentation offload is off for {format_address(self.address)}: {error.strerror}")
        return taken

    def _send_one_by_one(self, packets: Sequence[memoryview], address: Address, local: Local | None) -> int:
        taken = 0
        for packet in packets:
            error = self._send_one(packet, address, local)
            if error is None:
                taken += 1
            elif isinstance(error, BlockingIOError):
                break
        return taken

    def _send_one(self, packet: memoryview, address: Address, local: Local | None) -> OSError | None:
        if local:
            return self._attempt(self._socket.sendmsg, [packet], [local], 0, address)
        return self._attempt(self._socket.sendto, packet, address)

    def _attempt(self, call: Callable[..., int], *arguments: Any) -> OSError | None:
        """Make a sending call; returns None when the kernel took it, else why not.

        With an error queue, a failure may be the ICMP error of an earlier packet, reported on whatever call
        comes next, so there is a second try.
        """
        error: OSError | None = None
        for _ in range(2 if self._has_error_queue else 1):
            try:
                call(*arguments)
                return None
            except BlockingIOError as exc:  # SO_SNDTIMEO is over
                self.last_error = exc
                return exc
            except OSError as exc:
                if self._is_closed:
                    raise TransportError("the UDP socket is closed") from exc
                self._note(exc)
                error = exc
        return error

    # -- errors from the network ---------------------------------------------------------------

    def _want_asked(self) -> None:
        """Have it told for each datagram which of our addresses it was sent to, if we listen on all of them."""
        if self.address[0] in ("0.0.0.0", "::") and ON_LINUX:
            with suppress(OSError):
                pktinfo.want(self._socket)
                self._is_told_asked = True

    def _want_errors(self) -> None:
        """Have ICMP errors reported; without this Linux keeps them from unconnected sockets."""
        if ON_LINUX and try_option(self._socket, socket.IPPROTO_IP, IP_RECVERR, 1) is None:
            if self._socket.family == socket.AF_INET6:
                try_option(self._socket, socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            self._has_error_queue = True

    def _note(self, error: OSError) -> None:
        """Remember an error and throw away the ICMP messages behind it: they take room from datagrams."""
        self.last_error = error
        self._drop_errors()

    def _drop_errors(self) -> None:
        if not self._has_error_queue:
            return
        try:
            for _ in range(PENDING_ERRORS_MAX):
                self._socket.recvmsg(1, 0, socket.MSG_ERRQUEUE)
        except OSError:  # the queue is empty
            pass


def _segment_size(control: list[tuple[int, int, bytes]]) -> int:
    """Bytes of each packet of a GRO run but the last; 0 if the datagram came alone."""
    for level, kind, value in control:
        if level == SOL_UDP and kind == UDP_GRO and len(value) == 4:
            return int.from_bytes(value, sys.byteorder)
    return 0


def _lay_run(batch: PacketBatch, size: int, total: int) -> None:
    """Make the `total` bytes at `batch.end` packets of `size`, moved apart to 16-byte starts.

    In place, from the last to the first, so that none lands on one that has not moved; the arena needs no
    second buffer beside it, and sizes that are multiples of 16 no moving.
    """
    arena, start = batch.arena, batch.end
    batch.begin_grid(size)
    count = -(-total // size)
    if start + count * batch.stride_for(size) > batch.capacity:
        batch.stride = 0  # small ones after large ones: for a grid there is no room
    stride = batch.stride_for(size)
    count = min(count, (batch.capacity - start) // stride)
    if stride != size:
        for i in range(count - 1, 0, -1):
            source, target = start + i * size, start + i * stride
            arena[target : target + size] = arena[source : source + size]
    batch.commit(size, count)
    batch.lengths[-1] = min(size, total - (count - 1) * size)


def _runs(packets: Sequence[memoryview]) -> Iterator[Sequence[memoryview]]:
    """The packets in order, cut into what one GSO call takes: equal sizes, only the last may be shorter."""
    lengths = [len(packet) for packet in packets]
    first = 0
    while first < len(lengths):
        size = lengths[first]
        most = min(len(lengths), first + min(GSO_PACKETS, GSO_BYTES // size)) if size else first
        end = first + 1
        while end < most and lengths[end] == size:
            end += 1
        if end < most and 0 < lengths[end] < size:
            end += 1
        yield packets[first:end]
        first = end
