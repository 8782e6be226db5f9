"""Fake TCP on loopback: the handshake, packets both ways, resets, strangers, the end."""

import os
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from errno import ECONNREFUSED, ECONNRESET

import pytest

from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.wire import MTU_MAX
from kcptun_lite.errors import ConfigError, TransportError
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.fake_tcp import connection as client_room
from kcptun_lite.net.fake_tcp import port as server_room
from kcptun_lite.net.fake_tcp import raw_socket
from kcptun_lite.net.fake_tcp.connection import WAITING_MAX, FakeTcpConnection
from kcptun_lite.net.fake_tcp.flow import ROOM_LEAST
from kcptun_lite.net.fake_tcp.port import UNUSED_FOR, FakeTcpPort
from kcptun_lite.net.fake_tcp.raw_socket import CHECKSUM_AT, IPV6_CHECKSUM, RawSocket
from kcptun_lite.net.fake_tcp.segment import ACK, HEADER, PSH, RST, SYN
from kcptun_lite.net.udp.udp_socket import UdpOptions
from tests.net.fakes import Clock, wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root has raw sockets")

SMALL = UdpOptions(sockbuf=1 << 20)
HOSTS = ["127.0.0.1", "::1"]


class Ends:
    """A server's port and a client of it, without an event loop's thread: the test calls what would be called."""

    def __init__(self, stack: ExitStack, host: str, listening: str) -> None:
        self._stack = stack
        self.loop = EventLoop()
        stack.callback(self.loop.stop)
        self.port = FakeTcpPort.open_port(listening, 0, SMALL, self.loop)
        stack.callback(self.port.close)
        self.client, (self.remote, *_) = self.dial(host)

    def dial(self, host: str) -> tuple[FakeTcpConnection, list[Address]]:
        client, remotes = FakeTcpConnection.dial(host, self.port.address[1], SMALL)
        self._stack.callback(client.close)
        return client, remotes

    def connect(self) -> None:
        """What the first packet begins."""
        self.say([b"hello"])
        wait_until(lambda: received(self.client) == [] and self.client.is_answered)

    def say(self, packets: list[bytes]) -> int:
        return self.client.send([memoryview(packet) for packet in packets], self.remote)

    def peer(self) -> Address:
        (flow,) = self.port._flows.values()
        return flow.peer


def received(end: FakeTcpConnection | FakeTcpPort, count: int = 0) -> list[bytes]:
    """What has come; `count`: what must come."""
    packets: list[bytes] = []

    def take() -> bool:
        batch = PacketBatch(memoryview(bytearray(1 << 17)))
        end.receive(batch, wait=False)
        packets.extend(bytes(packet) for packet in batch.packets())
        return len(packets) >= count

    wait_until(take)
    return packets


@pytest.fixture(params=HOSTS)
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    with ExitStack() as stack:
        yield Ends(stack, request.param, request.param)


def test_packets_go_both_ways(ends: Ends) -> None:
    """The first ones wait for the handshake."""
    sent = [os.urandom(size) for size in (1, 52, 1349, MTU_MAX, *[1350] * 20)]
    assert ends.say(sent) == len(sent)
    assert received(ends.client) == []
    assert received(ends.port, len(sent)) == sent
    assert ends.port.send([memoryview(packet) for packet in sent], ends.peer()) == len(sent)
    assert received(ends.client, len(sent)) == sent
    assert ends.client.is_answered and ends.client.last_error is None


def test_a_port_of_all_addresses_hears_both_families() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, "127.0.0.1", "")
        assert ends.port.address[0] == "::"
        ends.connect()
        assert received(ends.port, 1) == [b"hello"]
        assert ends.peer()[0] == "::ffff:127.0.0.1"
        ends.client, (ends.remote, *_) = ends.dial("::1")
        ends.connect()
        assert received(ends.port, 1) == [b"hello"]


def test_a_port_of_one_address_hears_nothing_of_a_service_of_another() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, "127.0.0.1", "127.0.0.1")
        ends.connect()
        assert received(ends.port, 1) == [b"hello"]
        other = stack.enter_context(socket.create_server(("127.0.0.2", ends.port.address[1])))
        stranger = stack.enter_context(socket.create_connection(other.getsockname()))
        stranger.sendall(b"not for us")  # with PSH, as ours have it
        assert stack.enter_context(other.accept()[0]).recv(100) == b"not for us"
        ends.say([b"after it"])
        assert received(ends.port, 1) == [b"after it"]
        assert ends.port._strays == 0


def test_whoever_says_that_nothing_fits_his_way_is_not_believed() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, "127.0.0.1", "127.0.0.1")
        small = stack.enter_context(socket.socket())
        small.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 88)  # the least that Linux lets us ask for
        small.connect(ends.port.address)
        small.sendall(b"x")
        assert received(ends.port, 1) == [b"x"]
        assert ends.port.room(ends.peer()) == ROOM_LEAST > 88


def test_packets_that_wait_are_not_many(ends: Ends) -> None:
    assert ends.say([b"x"] * 100) == WAITING_MAX
    assert ends.say([b"x"]) == 0
    wait_until(lambda: received(ends.client) == [] and ends.client.is_answered)
    assert len(received(ends.port, WAITING_MAX)) == WAITING_MAX


@pytest.mark.parametrize("flags", [RST | ACK, SYN | ACK], ids=["reset", "handshake"])
def test_what_others_say_before_there_is_a_filter_is_nothing(flags: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A raw socket hears all connections of the machine from its first moment on."""
    with ExitStack() as stack:
        ends = Ends(stack, "127.0.0.1", "127.0.0.1")
        others = RawSocket(socket.AF_INET, SMALL)
        see_segments = client_room.see_segments

        def after_a_segment_of_others(raw: socket.socket, *args: int) -> None:
            header = HEADER.pack(1, 2, 3, 4, 5 << 4, flags, 0, 0, 0)
            others.send(header, memoryview(b""), ("127.0.0.1", 0), [])
            assert select.select([raw], [], [], 5)[0]
            see_segments(raw, *args)

        monkeypatch.setattr(client_room, "see_segments", after_a_segment_of_others)
        monkeypatch.setattr(client_room, "READS_MAX", 1)
        ends.say([b"hello"])
        assert received(ends.client) == []
        assert ends.client.last_error is None
        wait_until(lambda: received(ends.client) == [] and ends.client.is_answered)
        assert received(ends.port, 1) == [b"hello"]
        flow = ends.client._flow
        assert flow is not None and flow._ack != 4


def test_nobody_listens() -> None:
    with ExitStack() as stack:
        ends = Ends(stack, "127.0.0.1", "127.0.0.1")
        ends.port.close()
        ends.say([b"hello"])
        wait_until(lambda: received(ends.client) == [] and ends.client.last_error is not None)
        assert ends.client.last_error and ends.client.last_error.errno == ECONNREFUSED
        assert not ends.client.is_answered


def test_a_server_that_comes_back_is_reached_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(client_room, "monotonic_ms", clock)
    with ExitStack() as stack:
        ends = Ends(stack, "127.0.0.1", "127.0.0.1")
        ends.port.close()
        ends.say([b"lost?"])
        wait_until(lambda: received(ends.client) == [] and ends.client.last_error is not None)
        ends.port = FakeTcpPort.open_port("127.0.0.1", ends.remote[1], SMALL, ends.loop)
        stack.callback(ends.port.close)
        clock.now += client_room.FAILED_AGAIN
        ends.say([b"again"])
        wait_until(lambda: received(ends.client) == [] and ends.client.is_answered)
        assert received(ends.port, 2) == [b"lost?", b"again"]


def test_the_end_of_the_server_is_a_reset(ends: Ends) -> None:
    """And so is what a kernel says that knows nothing of the connection."""
    ends.connect()
    assert received(ends.port, 1) == [b"hello"]
    ends.port.close()
    wait_until(lambda: received(ends.client) == [] and ends.client.last_error is not None)
    assert ends.client.last_error and ends.client.last_error.errno == ECONNRESET


def test_a_reset_that_does_not_fit_is_none(ends: Ends) -> None:
    ends.connect()
    assert received(ends.port, 1) == [b"hello"]
    flow = ends.client._flow
    assert flow
    forge(ends, seq=flow._ack - 1, flags=RST | ACK)
    forge(ends, seq=flow._ack + 70_000, flags=RST)
    ends.port.send([memoryview(b"still here")], ends.peer())
    assert received(ends.client, 1) == [b"still here"] and ends.client.last_error is None


def forge(ends: Ends, *, seq: int, flags: int, payload: bytes = b"", source_port: int | None = None) -> None:
    """A segment of the server's host, as anybody may forge it; for IPv4 without a checksum, at which nobody looks."""
    family = socket.AF_INET6 if ":" in ends.remote[0] else socket.AF_INET
    to_port = ends.client.address[1] if source_port is None else ends.port.address[1]
    from_port = ends.port.address[1] if source_port is None else source_port
    header = HEADER.pack(from_port, to_port, seq & 0xFFFF_FFFF, 0, 5 << 4, flags, 0, 0, 0)
    with socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_TCP) as forger:
        if family == socket.AF_INET6:
            forger.setsockopt(socket.IPPROTO_IPV6, IPV6_CHECKSUM, CHECKSUM_AT)
        forger.sendto(header + payload, (ends.remote[0], 0))


def test_segments_without_a_connection_are_nothing(ends: Ends) -> None:
    ends.connect()
    for port in range(20_000, 20_100):
        forge(ends, seq=1, flags=PSH | ACK, payload=b"stranger", source_port=port)
    ends.say([b"friend"])
    assert received(ends.port, 2) == [b"hello", b"friend"]
    assert len(ends.port._flows) == 1


def test_a_flood_without_connections_does_not_reach_us(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel drops it, until it may be over; who is connected is heard, also who comes meanwhile."""
    clock = Clock()
    monkeypatch.setattr(server_room, "monotonic_ms", clock)
    monkeypatch.setattr(server_room, "STRAYS_MAX", 10)
    for port in range(20_000, 20_020):
        forge(ends, seq=1, flags=PSH | ACK, payload=b"stranger", source_port=port)
    assert received(ends.port) == []
    assert ends.port._guarded_until
    forge(ends, seq=1, flags=PSH | ACK, payload=b"stranger", source_port=20_000)
    assert ends.port._raws and not any(_waits(raw) for raw in ends.port._raws.values())
    ends.connect()
    wait_until(lambda: ends.port._accept() or len(ends.port._flows) == 1)
    ends.say([b"friend"])
    assert received(ends.port, 1) == [b"friend"]
    clock.now += server_room.GUARD_TIME
    ends.port.every_second(lambda address: True)
    assert not ends.port._guarded_until
    ends.port._end(next(iter(ends.port._flows.values())))
    forge(ends, seq=1, flags=PSH | ACK, payload=b"stranger", source_port=20_000)
    assert any(_waits(raw) for raw in ends.port._raws.values())


def _waits(raw: RawSocket) -> bool:
    return bool(select.select([raw.inner], [], [], 0)[0])


def test_unused_connections_give_way(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of the host, not those in use."""
    monkeypatch.setattr(server_room, "UNUSED_OF_HOST", 3)
    ends.connect()
    received(ends.port, 1)
    used = ends.peer()
    assert used not in ends.port
    ends.port.open(used)
    assert used in ends.port
    with ExitStack() as stack:
        there = ends.port.address[:2]
        others = [stack.enter_context(socket.create_connection(there, timeout=10)) for _ in range(5)]
        wait_until(lambda: received(ends.port) == [] and (ends.port._accept() or len(ends.port._unused) == 3))
        kept = set(ends.port._flows)
        wait_until(
            lambda: ends.port._accept() or kept == {used[:2], *(other.getsockname()[:2] for other in others[2:])}
        )


def test_broken_segments_of_a_peer_are_nothing(ends: Ends) -> None:
    ends.connect()
    for flags, payload in [(PSH, b""), (PSH, bytes(MTU_MAX + 1)), (SYN | PSH, b"x"), (ACK, b"x")]:
        forge(ends, seq=1, flags=flags, payload=payload, source_port=ends.client.address[1])
    ends.say([b"friend"])
    assert received(ends.port, 2)[-1] == b"friend"


def test_numbers_grow_whatever_comes(ends: Ends) -> None:
    ends.connect()
    received(ends.port, 1)
    flow = ends.client._flow
    assert flow
    seq, ack = flow._seq, flow._ack
    for back in (0, 100, 5000):  # as kcptun goes back
        forge(ends, seq=ack - back, flags=PSH | ACK, payload=bytes(50))
    received(ends.client, 3)
    assert flow._ack == (ack + 50) & 0xFFFF_FFFF and flow._seq == seq
    ends.say([b"x" * 10, b"y" * 5])
    assert flow._seq == (seq or 0) + 15 & 0xFFFF_FFFF


def test_a_connection_that_nobody_uses_is_ended(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    ends.connect()
    received(ends.port, 1)
    peer, (flow,) = ends.peer(), ends.port._flows.values()
    clock = Clock()
    clock.now = flow.used_at
    monkeypatch.setattr(server_room, "monotonic_ms", clock)
    clock.now += UNUSED_FOR
    ends.port.every_second(lambda address: address == peer)
    clock.now += UNUSED_FOR - 1
    ends.port.every_second(lambda address: False)
    assert list(ends.port._flows.values()) == [flow]
    clock.now += 1
    ends.port.every_second(lambda address: False)
    assert not ends.port._flows and flow.kernels.fileno() == -1
    assert ends.port.send([memoryview(b"x")], peer) == 0


def test_the_kernel_says_nothing(ends: Ends) -> None:
    """It sees nothing of what goes beside it: its numbers stand still."""
    ends.connect()
    received(ends.port, 1)
    for _ in range(20):
        ends.say([b"x" * 1000])
        ends.port.send([memoryview(b"y" * 1000)], ends.peer())
    received(ends.port, 20)
    received(ends.client, 20)
    for flow in (ends.client._flow, *ends.port._flows.values()):
        assert flow
        info = flow.kernels.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 232)
        state, sent = info[0], struct.unpack_from("=I", info, 136)[0]  # tcpi_state, tcpi_segs_out; linux/tcp.h
        assert (state, sent) == (1, 2) if flow is ends.client._flow else (1, 1)


def test_closed_is_closed(ends: Ends) -> None:
    ends.connect()
    peer = ends.peer() if received(ends.port, 1) else None
    for _ in range(2):
        ends.client.close()
        ends.port.close()
    with pytest.raises(TransportError):
        ends.say([b"x"])
    with pytest.raises(TransportError):
        received(ends.client)
    with pytest.raises(TransportError):
        received(ends.port)
    with pytest.raises(TransportError):
        ends.port.send([memoryview(b"x")], peer or ("", 0))
    assert "closed" in repr(ends.client) and "closed" in repr(ends.port)


def test_without_the_right_to_raw_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: RawSocket, family: int, options: UdpOptions) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(RawSocket, "__init__", fail)
    with pytest.raises(ConfigError, match="--tcp: it needs CAP_NET_RAW: run it as root, or give it that capability"):
        raw_socket.check("--tcp")
