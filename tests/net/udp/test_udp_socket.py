"""The UDP socket's socket: a kernel that refuses, ports nobody listens on, how it is closed, opened and addressed."""

import errno
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError
from kcptun_lite.net.udp import sockopt
from kcptun_lite.net.udp import udp_socket as peer_socket
from kcptun_lite.net.udp.address import format_address, mapped, resolve
from kcptun_lite.net.udp.sockopt import set_timeout
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket
from tests.net.fakes import PATIENCE_S, wait_until
from tests.net.udp.datagrams import BOTH_ROADS, FAST, Opener, make_batch, make_packets, receive_all

# -- a kernel that refuses ---------------------------------------------------------------------


class RefusingSocket(socket.socket):
    """Fails sending calls as told."""

    def __init__(self) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.bind(("127.0.0.1", 0))
        self.sendmsg_errors: list[int] = []
        self.sendto_errors: list[int] = []
        self.sendmsg_calls = 0

    def sendmsg(self, *arguments: Any) -> int:
        self.sendmsg_calls += 1
        if self.sendmsg_errors and (number := self.sendmsg_errors.pop(0)):
            raise OSError(number, "injected")
        return super().sendmsg(*arguments)

    def sendto(self, *arguments: Any) -> int:
        if self.sendto_errors and (number := self.sendto_errors.pop(0)):
            raise OSError(number, "injected")
        return super().sendto(*arguments)


@pytest.fixture
def refusing() -> Iterator[tuple[RefusingSocket, UdpSocket]]:
    inner = RefusingSocket()
    udp = UdpSocket(inner, FAST)
    yield inner, udp
    udp.close()


@pytest.mark.parametrize(("number", "runs"), [(errno.EIO, 1), (errno.EINVAL, peer_socket.GSO_REFUSALS_MAX)])
def test_a_device_without_segmentation_switches_it_off_for_good(
    refusing: tuple[RefusingSocket, UdpSocket],
    open_udp: Opener,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    runs: int,
) -> None:
    """EINVAL may be one peer's trouble: only when it is always so."""
    inner, here = refusing
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    there = open_udp()
    packets = make_packets([1350] * 40 + [80])
    inner.sendmsg_errors = [number] * (runs - 1) + [0] + [number] * runs if runs > 1 else [number]
    for _ in range(len(inner.sendmsg_errors)):
        assert not lines and "gso" in repr(here)
        assert here.send(packets, there.address) == 41
        assert receive_all(there, 41)[0] == [bytes(packet) for packet in packets]
    assert len(lines) == 1 and "injected" in lines[0]
    assert "gso" not in repr(here)
    calls = inner.sendmsg_calls
    assert here.send(packets, there.address) == 41
    assert inner.sendmsg_calls == calls
    assert receive_all(there, 41)[0] == [bytes(packet) for packet in packets]


def test_one_peer_s_narrow_path_does_not_slow_the_others(
    refusing: tuple[RefusingSocket, UdpSocket], open_udp: Opener
) -> None:
    inner, here = refusing
    there = open_udp()
    packets = make_packets([1350] * 10)
    inner.sendmsg_errors = [errno.EMSGSIZE]
    assert here.send(packets, there.address) == 10
    assert receive_all(there, 10)[0] == [bytes(packet) for packet in packets]
    assert "gso" in repr(here)


def test_an_address_nobody_can_send_to_does_not_switch_segmentation_off(open_udp: Opener) -> None:
    here = open_udp()
    assert here.send(make_packets([1350] * 10), ("127.0.0.1", 0)) == 0
    assert here.last_error is not None and here.last_error.errno == errno.EINVAL
    assert "gso" in repr(here)


def test_a_full_socket_buffer_loses_the_rest_and_says_so(refusing: tuple[RefusingSocket, UdpSocket]) -> None:
    inner, here = refusing
    target = ("127.0.0.1", here.address[1])
    inner.sendmsg_errors = [0, errno.EAGAIN]
    assert here.send(make_packets([1350] * 140), target) == 48
    assert isinstance(here.last_error, BlockingIOError)
    inner.sendto_errors = [0, 0, errno.EAGAIN]
    assert here.send(make_packets([5, 6, 7, 8]), target) == 2


def test_one_refused_packet_does_not_take_the_others_with_it(
    refusing: tuple[RefusingSocket, UdpSocket], open_udp: Opener
) -> None:
    inner, here = refusing
    there = open_udp()
    inner.sendto_errors = [0, errno.EPERM]
    packets = make_packets([5, 6, 7, 8])
    assert here.send(packets, there.address) == 3
    assert [len(packet) for packet in receive_all(there, 3)[0]] == [5, 7, 8]
    assert here.last_error is not None and here.last_error.errno == errno.EPERM


def test_an_old_kernel_gets_the_plain_road(monkeypatch: pytest.MonkeyPatch, open_udp: Opener) -> None:
    for name in ("UDP_SEGMENT", "UDP_GRO", "SO_MEMINFO"):
        monkeypatch.setattr(peer_socket, name, 30_000)
    here, there = open_udp(), open_udp()
    assert repr(here).endswith("plain>")
    packets = make_packets([1350] * 20)
    assert here.send(packets, there.address) == 20
    assert receive_all(there, 20)[0] == [bytes(packet) for packet in packets]


def test_a_system_that_is_not_linux_gets_the_plain_road(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_socket, "ON_LINUX", False)
    here, addresses = UdpSocket.dial("127.0.0.1", 9, FAST)
    assert repr(here).endswith("plain>") and addresses == [("127.0.0.1", 9)]
    assert here.send(make_packets([10, 10]), ("127.0.0.1", here.address[1])) == 2
    assert len(receive_all(here, 2)[0]) == 2
    here.close()


# -- ICMP --------------------------------------------------------------------------------------


@BOTH_ROADS
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_closed_port_is_noticed_and_costs_no_packets(open_udp: Opener, options: UdpOptions, host: str) -> None:
    gone = open_udp(host)
    port = gone.address[1]
    gone.close()
    here, (address,) = UdpSocket.dial(host, port, options)
    packets = make_packets([100, 100, 30, 1350])
    for _ in range(3):
        assert here.send(packets, address) == 4
    assert isinstance(here.last_error, ConnectionRefusedError)
    there = UdpSocket.listen(host, port, options)
    assert here.send(packets, address) == 4
    arrived, sources = receive_all(there, 4)
    assert arrived == [bytes(packet) for packet in packets]
    there.send(packets, sources.pop())
    assert receive_all(here, 4)[0] == arrived
    assert here.last_error is None
    there.close()
    here.close()


def test_a_pending_refusal_ends_a_receive_with_nothing(open_udp: Opener) -> None:
    gone = open_udp()
    gone.close()
    here, (address,) = UdpSocket.dial("127.0.0.1", gone.address[1], FAST)
    here._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))  # no time limit: only the error ends it
    assert here.send(make_packets([10]), address) == 1
    assert here.receive(make_batch()) == 0
    assert isinstance(here.last_error, ConnectionRefusedError)
    with pytest.raises(BlockingIOError):  # and nothing is left to fill the receive buffer
        here._socket.recvmsg(1, 0, socket.MSG_ERRQUEUE)
    here.close()


def test_a_listening_socket_hears_nothing_of_refusals(open_udp: Opener) -> None:
    gone, here = open_udp(), open_udp()
    gone.close()
    for _ in range(5):
        assert here.send(make_packets([10, 20]), gone.address) == 2
    assert here.last_error is None


# -- closing -----------------------------------------------------------------------------------


@BOTH_ROADS
def test_close_wakes_a_blocked_receive(options: UdpOptions) -> None:
    udp = UdpSocket.listen("127.0.0.1", 0, options)
    udp._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))  # no time limit: only close ends it
    ended: list[TransportError] = []

    def receive() -> None:
        try:
            udp.receive(make_batch())
        except TransportError as exc:
            ended.append(exc)

    thread = threading.Thread(target=receive)
    thread.start()
    wait_until(lambda: udp._calls == 1)
    udp.close()
    thread.join(PATIENCE_S)
    assert not thread.is_alive() and len(ended) == 1
    assert udp._socket.fileno() == -1


def test_a_descriptor_stays_until_the_last_send_under_way_is_over() -> None:
    entered, closed = threading.Event(), threading.Event()
    descriptors: list[int] = []

    class SlowSocket(RefusingSocket):
        def sendto(self, *arguments: Any) -> int:
            entered.set()
            assert closed.wait(PATIENCE_S)
            descriptors.append(self.fileno())
            return super().sendto(*arguments)

    udp = UdpSocket(SlowSocket(), FAST)
    failures: list[TransportError] = []

    def send() -> None:
        try:
            udp.send(make_packets([10]), udp.address)
        except TransportError as exc:
            failures.append(exc)

    thread = threading.Thread(target=send)
    thread.start()
    assert entered.wait(PATIENCE_S)
    udp.close()
    closed.set()
    thread.join(PATIENCE_S)
    assert len(failures) == 1
    assert descriptors[0] >= 0 and udp._socket.fileno() == -1


@BOTH_ROADS
def test_a_closed_socket_says_so(options: UdpOptions) -> None:
    udp = UdpSocket.listen("127.0.0.1", 0, options)
    address = udp.address
    udp.close()
    udp.close()
    assert udp.is_closed
    assert udp.address == address
    assert repr(udp) == f"<UdpSocket 127.0.0.1:{address[1]} closed>"
    with pytest.raises(TransportError, match="closed"):
        udp.receive(make_batch())
    for count in (1, 5):
        with pytest.raises(TransportError, match="closed"):
            udp.send(make_packets([10] * count), address)
    UdpSocket.listen("127.0.0.1", address[1], options).close()  # the port is free again


def test_an_idle_receive_returns_nothing_after_its_time(open_udp: Opener) -> None:
    udp = open_udp()
    set_timeout(udp._socket, socket.SO_RCVTIMEO, 1)
    assert udp.receive(make_batch()) == 0
    assert udp.last_error is None


# -- opening -----------------------------------------------------------------------------------


def test_timeouts_are_what_they_say(open_udp: Opener) -> None:
    udp = open_udp()
    for option, wanted in ((socket.SO_RCVTIMEO, (1, 0)), (socket.SO_SNDTIMEO, (0, 20_000))):
        value = udp._socket.getsockopt(socket.SOL_SOCKET, option, 16)
        seconds, us = struct.unpack("=qq" if len(value) == 16 else "=ii", value)
        assert seconds == wanted[0] and wanted[1] <= us <= wanted[1] + 10_000  # rounded up to the kernel's tick


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", ""])
def test_dscp_marks_both_families(open_udp: Opener, host: str) -> None:
    inner = open_udp(host, UdpOptions(dscp=46))._socket
    assert inner.getsockopt(socket.IPPROTO_IP, socket.IP_TOS) == 46 << 2
    if inner.family == socket.AF_INET6:
        assert inner.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_TCLASS) == 46 << 2


def test_sockbuf_is_granted_or_the_limit_to_raise_is_named_once(
    open_udp: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    sockopt._warn_once.cache_clear()
    inner = open_udp(options=UdpOptions(sockbuf=65_536))._socket
    assert inner.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * 65_536
    assert inner.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 65_536
    assert lines == []
    monkeypatch.setattr(peer_socket, "SO_RCVBUFFORCE", 30_000)
    monkeypatch.setattr(peer_socket, "SO_SNDBUFFORCE", 30_000)
    for _ in range(3):
        open_udp(options=UdpOptions(sockbuf=1 << 30))
    assert len(lines) == 2
    assert lines[0].endswith("net.core.rmem_max=1073741824") and lines[1].endswith("net.core.wmem_max=1073741824")


def test_an_address_in_use_is_a_transport_error(open_udp: Opener) -> None:
    port = open_udp("127.0.0.1").address[1]
    with pytest.raises(TransportError, match=f"cannot listen on 127.0.0.1:{port} .UDP.: Address already in use"):
        UdpSocket.listen("127.0.0.1", port, FAST)


def answer_with(*addresses: str) -> Callable[..., list[Any]]:
    def getaddrinfo(host: object, port: int, **_: object) -> list[Any]:
        return [
            (socket.AF_INET6, socket.SOCK_DGRAM, 17, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port))
            for address in addresses
        ]

    return getaddrinfo


def test_dial_offers_every_address_to_one_socket(open_udp: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    there = open_udp("127.0.0.1")
    monkeypatch.setattr(socket, "getaddrinfo", answer_with("::1", "127.0.0.2", "127.0.0.1"))
    here, addresses = UdpSocket.dial("many.example", there.address[1], FAST)
    port = there.address[1]
    assert addresses == [("::1", port, 0, 0), ("::ffff:127.0.0.2", port, 0, 0), ("::ffff:127.0.0.1", port, 0, 0)]
    for address in addresses:
        assert here.send(make_packets([1350] * 3), address) == 3
    assert len(receive_all(there, 3)[0]) == 3
    here.close()


def test_dial_without_ipv6_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def bind_ipv4_only(family: socket.AddressFamily, address: Address, **options: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return bind(family, address, **options)

    bind = sockopt.bind
    monkeypatch.setattr(peer_socket, "bind", bind_ipv4_only)
    monkeypatch.setattr(socket, "getaddrinfo", answer_with("::1", "127.0.0.1"))
    here, addresses = UdpSocket.dial("both.example", 9, FAST)
    assert addresses == [("127.0.0.1", 9)]
    here.close()
    monkeypatch.setattr(socket, "getaddrinfo", answer_with("::1"))
    with pytest.raises(TransportError, match="no UDP socket for six.example:9: Address family not supported"):
        UdpSocket.dial("six.example", 9, FAST)


def test_an_ipv4_peer_is_dialled_from_an_ipv4_socket() -> None:
    here, addresses = UdpSocket.dial("127.0.0.1", 9, FAST)
    assert addresses == [("127.0.0.1", 9)]
    assert here.address[0] == "0.0.0.0" and here.address[1] > 0
    here.close()


def test_an_unknown_name_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(TransportError, match="cannot resolve "):
        UdpSocket.dial("ü" * 70, 9, FAST)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    with pytest.raises(TransportError, match="cannot resolve nowhere.example: Name or service not known"):
        UdpSocket.dial("nowhere.example", 9, FAST)
    monkeypatch.setattr(socket, "getaddrinfo", answer_with())
    with pytest.raises(TransportError, match="no IPv4 or IPv6 address"):
        resolve("nothing.example", 9, socket.SOCK_DGRAM)


def test_an_empty_host_is_every_interface_or_loopback() -> None:
    assert resolve("", 9, socket.SOCK_DGRAM, to_listen=True)[0] == (socket.AF_INET6, ("::", 9, 0, 0))
    assert {address[0] for _, address in resolve("", 9, socket.SOCK_STREAM)} <= {"::1", "127.0.0.1"}


def test_addresses_are_written_as_people_know_them() -> None:
    assert format_address(("192.0.2.1", 5)) == "192.0.2.1:5"
    assert format_address(("::ffff:192.0.2.1", 5, 0, 0)) == "192.0.2.1:5"
    assert format_address(("2001:db8::1", 5, 0, 0)) == "[2001:db8::1]:5"
    assert mapped(("192.0.2.1", 5)) == ("::ffff:192.0.2.1", 5, 0, 0)
    assert mapped(("2001:db8::1", 5, 0, 0)) == ("2001:db8::1", 5, 0, 0)


# -- many addresses ----------------------------------------------------------------------------


@BOTH_ROADS
@pytest.mark.parametrize("listening", ["0.0.0.0", ""])
@pytest.mark.parametrize("asked", ["127.0.0.1", "127.0.0.12", "127.0.0.13"])
def test_answers_come_from_the_address_that_was_asked(
    open_udp: Opener, listening: str, asked: str, options: UdpOptions
) -> None:
    """Runs as well as single packets, of both families' sockets, and from the socket for one peer."""
    server, client = open_udp(listening, options), open_udp("127.0.0.1")
    packets = make_packets([1350] * 20 + [80])
    client.send(packets, (asked, server.address[1]))
    batch = make_batch()
    while len(batch) < 21:
        server.receive(batch)
    (peer,) = set(batch.addresses)
    local = batch.asked[peer]
    for sent in (packets, packets[:1]):
        assert server.send(sent, peer, local) == len(sent)
        received, sources = receive_all(client, len(sent))
        assert received == [bytes(packet) for packet in sent]
        assert {source[:2] for source in sources} == {(asked, server.address[1])}
    with closing(server.for_peer(peer, local)) as own:
        client.send(packets, (asked, server.address[1]))
        batch.clear()
        while len(batch) < 21:
            own.receive(batch)
        assert not batch.asked and own.send(packets[:1], peer) == 1
        assert {source[:2] for source in receive_all(client, 1)[1]} == {(asked, server.address[1])}


def test_who_listens_on_one_address_is_not_told_which_one(open_udp: Opener) -> None:
    server, client = open_udp("127.0.0.1"), open_udp("127.0.0.1")
    client.send(make_packets([100]), server.address)
    batch = make_batch()
    server.receive(batch)
    assert not batch.asked


def test_a_device_that_is_not_there_is_named() -> None:
    for host in "127.0.0.1", "::1":
        with pytest.raises(TransportError, match=r"no UDP socket for \S+: --interface nosuchdevice: No such device"):
            UdpSocket.dial(host, 9, UdpOptions(device="nosuchdevice"))


def test_a_device_holds_the_packets_of_a_dialled_socket(open_udp: Opener) -> None:
    there = open_udp()
    udp, addresses = UdpSocket.dial("127.0.0.1", there.address[1], UdpOptions(device="lo"))
    with closing(udp):
        assert udp._socket.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).rstrip(b"\0") == b"lo"
        assert udp.send([memoryview(b"x")], addresses[0]) == 1
        batch = make_batch()
        assert there.receive(batch) == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_that_no_interface_has_yet(host: str) -> None:
    with closing(UdpSocket.listen(host, 0, UdpOptions())) as udp:
        assert udp.address[0] == host
        with pytest.raises(TransportError, match="cannot listen on .*in use"):
            UdpSocket.listen(host, udp.address[1], UdpOptions())


def test_an_error_that_only_the_queue_tells_of_keeps_nobody_awake(open_udp: Opener) -> None:
    """Who sends is told of it as well, and then `receive` finds neither a datagram nor an error."""
    gone = open_udp()
    gone.close()
    here, (address,) = UdpSocket.dial("127.0.0.1", gone.address[1], FAST)
    waiting = select.poll()
    waiting.register(here.fileno(), select.POLLIN)
    with closing(here):
        assert here.send(make_packets([10]), address) == 1
        assert waiting.poll(PATIENCE_S * 1000)
        here._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        assert waiting.poll(0)
        assert here.receive(make_batch(), wait=False) == 0
        assert not waiting.poll(0)
