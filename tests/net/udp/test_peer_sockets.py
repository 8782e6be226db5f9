"""The sockets of a port: validated peers have their own queue, unknown sources another, and nobody waits for ever."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any, cast

import pytest

from kcptun_lite.core.batch.packets import Address, PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES
from kcptun_lite.errors import TransportError
from kcptun_lite.net.udp import peer_sockets as peer_sockets_module
from kcptun_lite.net.udp.peer_sockets import UNKNOWN_TURN, PeerSockets
from kcptun_lite.net.udp.udp_socket import ON_LINUX, UdpOptions, UdpSocket
from tests.net.fakes import FakeLoop, Peer, wait_until

pytestmark = pytest.mark.skipif(not ON_LINUX, reason="others have one socket only")

SMALL = UdpOptions(sockbuf=262_144)


class Room:
    """A port, and who comes to it."""

    def __init__(self, stack: ExitStack) -> None:
        self.listening = UdpSocket.listen("127.0.0.1", 0, SMALL)
        self.loop = FakeLoop()
        self.peer_sockets = PeerSockets(self.listening, cast(Any, self.loop))
        self.friend, self.unknown = stack.enter_context(Peer()), stack.enter_context(Peer())
        self.came: list[tuple[bytes, Address]] = []

    def receive(self) -> list[tuple[bytes, Address]]:
        """What one call brings."""
        batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
        received = self.peer_sockets.receive(batch)
        assert received == len(batch) == len(batch.addresses)
        batch = [(bytes(packet), source) for source, packets in batch.by_source() for packet in packets]
        self.came += batch
        return batch

    def receive_until(self, packet: bytes) -> None:
        wait_until(lambda: packet in [content for content, _ in self.receive()])

    def send(self, peer: Peer, *packets: bytes) -> None:
        for packet in packets:
            peer.send(memoryview(packet), self.listening.address)


@pytest.fixture
def room() -> Iterator[Room]:
    with ExitStack() as stack:
        room = Room(stack)
        yield room
        room.listening.close()
        room.peer_sockets.close()


def test_an_unknown_source_comes_in_through_the_listening_socket(room: Room) -> None:
    room.send(room.unknown, b"one", b"two")
    room.receive_until(b"two")
    assert room.came == [(b"one", room.unknown.address), (b"two", room.unknown.address)]


def test_a_full_queue_of_unknown_sources_costs_a_peer_nothing(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    assert room.friend.address in room.peer_sockets
    room.send(room.unknown, *[bytes(1000)] * 500)  # far more than the queue takes: the kernel has dropped some
    words = [b"%d" % number for number in range(20)]
    room.send(room.friend, *words)
    room.receive_until(words[-1])
    assert [packet for packet, source in room.came if source == room.friend.address] == words
    wait_until(lambda: not room.receive())
    assert 0 < sum(source == room.unknown.address for _, source in room.came) < 500


def test_both_have_their_turn(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    for _ in range(4):
        room.send(room.unknown, *[b"flood"] * (2 * UNKNOWN_TURN))  # more than one turn
        room.send(room.friend, b"hello")
        sources = [{source for _, source in room.receive()} for _ in range(2)]
        assert {*sources[0], *sources[1]} == {room.unknown.address, room.friend.address}
        wait_until(lambda: not room.receive())


def test_a_turn_of_unknown_sources_is_bounded(room: Room) -> None:
    room.send(room.unknown, *[b"x"] * (2 * UNKNOWN_TURN))  # within what the queue takes
    assert len(room.receive()) == UNKNOWN_TURN


def test_unknown_sources_that_are_to_wait_are_heard_a_little_later(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    room.peer_sockets.rest_unknown()
    room.peer_sockets.rest_unknown()
    room.send(room.unknown, b"noise")
    assert room.receive() == []
    room.send(room.friend, b"hello")
    room.receive_until(b"hello")
    assert room.receive() == []
    (wake_up,) = room.loop.later
    wake_up()
    room.receive_until(b"noise")


def test_who_has_gone_is_a_unknown_source_again(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    room.send(room.friend, b"one")
    room.receive_until(b"one")
    room.peer_sockets.shut(room.friend.address)
    room.peer_sockets.shut(room.friend.address)
    assert room.friend.address not in room.peer_sockets
    room.send(room.friend, b"two")
    room.receive_until(b"two")


def test_peers_of_both_families_have_peer_sockets_of_a_port_for_both() -> None:
    listening = UdpSocket.listen("", 0, UdpOptions())
    peer_sockets = PeerSockets(listening, cast(Any, FakeLoop()))
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as peer:  # a machine may have no IPv6
            peer.connect((host, listening.address[1]))
            peer.send(b"hello")
            for is_known in (False, True):
                batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
                assert peer_sockets.receive(batch) == 1
                assert (batch.addresses[0] in peer_sockets) == is_known
                if not is_known:
                    peer_sockets.open(batch.addresses[0])
                assert batch.addresses[0] in peer_sockets
                peer.send(b"once more")
            peer_sockets.receive(PacketBatch(memoryview(bytearray(BATCH_BYTES))))
    listening.close()
    peer_sockets.close()


def test_a_busy_peer_does_not_keep_another_one_out(room: Room) -> None:
    for peer in (room.friend, room.unknown):
        room.peer_sockets.open(peer.address)
    for source, other in ((room.friend, room.unknown), (room.unknown, room.friend)):
        wait_until(lambda: not room.receive())
        room.send(source, *[bytes(1400)] * 100)  # more than a batch takes
        room.send(other, b"hello")
        for _ in range(20):
            room.send(source, *[bytes(1400)] * 100)
            if (b"hello", other.address) in room.receive():
                break
        else:
            raise AssertionError("in vain")


def test_what_was_read_at_a_peer_socket_that_is_shut_just_then_is_not_left_in_the_batch(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = UdpSocket.receive

    def receive(self: UdpSocket, batch: PacketBatch, **how: Any) -> int:
        received = read(self, batch, **how)
        if self is not room.listening:
            room.peer_sockets.shut(room.friend.address)
            raise TransportError("the UDP socket is closed")
        return received

    monkeypatch.setattr(UdpSocket, "receive", receive)
    room.peer_sockets.open(room.friend.address)
    room.send(room.friend, b"last words")
    assert room.receive() == [(b"last words", room.friend.address)]


def test_who_brings_nothing_at_all_waits_as_well(room: Room) -> None:
    room.send(room.unknown, b"", bytes(1501))
    assert room.receive() == []
    assert room.loop.later, "unknown sources rest"


def test_a_peer_that_is_heard_ends_the_trouble_of_sending(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    room.listening.last_error = OSError("no way")
    room.send(room.friend, b"here I am")
    room.receive_until(b"here I am")
    assert room.listening.last_error is None


def test_without_descriptors_all_come_through_the_listening_socket(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> UdpSocket:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(UdpSocket, "for_peer", fail)
        room.peer_sockets.open(room.friend.address)
    assert room.friend.address not in room.peer_sockets
    room.send(room.friend, b"hello")
    room.receive_until(b"hello")
    room.peer_sockets.open(room.friend.address)
    assert room.friend.address not in room.peer_sockets, "so soon it is not tried again"
    room.peer_sockets._refused_until = 0
    room.peer_sockets.open(room.friend.address)
    assert room.friend.address in room.peer_sockets


def test_there_are_only_so_many_peer_sockets(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_sockets_module, "PEER_SOCKETS_MAX", 1)
    room.peer_sockets.open(room.friend.address)
    room.peer_sockets.open(room.unknown.address)
    assert room.friend.address in room.peer_sockets and room.unknown.address not in room.peer_sockets


def test_what_a_peer_has_sent_waits_until_it_is_read(room: Room) -> None:
    """A copy that somebody sends from elsewhere may be read first, and must not be taken for the original."""
    room.peer_sockets.open(room.friend.address)
    assert not room.peer_sockets.has_waiting(room.friend.address)
    room.send(room.friend, b"original")
    wait_until(lambda: room.peer_sockets.has_waiting(room.friend.address))
    assert not room.peer_sockets.has_waiting(room.unknown.address)
    room.receive_until(b"original")
    assert not room.peer_sockets.has_waiting(room.friend.address)


def test_a_port_that_is_closed_while_it_is_read_ends_without_a_failure(room: Room) -> None:
    """What the loop's thread may be about to ask is closed by that thread."""
    room.loop.call = room.loop.later.append  # type: ignore[method-assign]
    room.listening.close()
    room.peer_sockets.close()
    assert room.receive() == []
    assert room.peer_sockets._epoll is not None and not room.peer_sockets._epoll.closed
    for function in room.loop.later:
        function()
    assert room.peer_sockets._epoll.closed


def test_a_port_that_is_closed_brings_nothing_more(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    room.peer_sockets.watch(lambda: None)
    assert room.loop.watched
    room.listening.close()
    room.peer_sockets.close()
    room.peer_sockets.close()
    assert not room.loop.watched
    with pytest.raises(TransportError):
        room.receive()


def test_a_second_server_still_learns_that_the_port_is_taken(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    with pytest.raises(TransportError, match="cannot listen"):
        UdpSocket.listen("127.0.0.1", room.listening.address[1], UdpOptions())


def test_unknown_sources_may_be_left_to_another_process_while_peers_are_heard(room: Room) -> None:
    room.peer_sockets.open(room.friend.address)
    room.peer_sockets.listen(False)
    room.peer_sockets.rest_unknown()
    room.peer_sockets._end_rest()  # hears no more than before
    room.send(room.unknown, b"unknown")
    room.send(room.friend, b"friend")
    room.receive_until(b"friend")
    assert not room.receive()
    room.peer_sockets.listen(True)
    room.receive_until(b"unknown")


def test_where_a_group_of_sockets_cannot_be_steered_there_are_no_others() -> None:
    listening = UdpSocket.listen("127.0.0.1", 0, SMALL)
    peer_sockets = PeerSockets(listening, cast(Any, FakeLoop()), may_open=False)
    peer_sockets.open(("127.0.0.1", 9))
    assert ("127.0.0.1", 9) not in peer_sockets
    listening.close()
    peer_sockets.close()
