"""The doors of a port: known peers have their own queue, strangers another one, and nobody waits for ever."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Thread
from typing import Any

import pytest

from kcptun_lite.core.batch.buffers import BATCH_BYTES, Address, PacketBatch
from kcptun_lite.errors import TransportError
from kcptun_lite.net.udp import peer_sockets as doors_module
from kcptun_lite.net.udp.peer_sockets import STRANGERS_TURN, Doors
from kcptun_lite.net.udp.udp_socket import ON_LINUX, UdpOptions, UdpSocket
from tests.net.fakes import Peer, wait_until

pytestmark = pytest.mark.skipif(not ON_LINUX, reason="others have one door only")

SMALL = UdpOptions(sockbuf=262_144)


class Room:
    """A port, and who comes to it."""

    def __init__(self, stack: ExitStack) -> None:
        self.front = UdpSocket.listen("127.0.0.1", 0, SMALL)
        self.doors = Doors(self.front)
        self.friend, self.stranger = stack.enter_context(Peer()), stack.enter_context(Peer())
        self.came: list[tuple[bytes, Address]] = []

    def receive(self) -> list[tuple[bytes, Address]]:
        """What one call brings."""
        batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
        received = self.doors.receive(batch)
        assert received == len(batch) == len(batch.addresses)
        tray = [(bytes(packet), source) for source, packets in batch.by_source() for packet in packets]
        self.came += tray
        return tray

    def receive_until(self, packet: bytes) -> None:
        wait_until(lambda: packet in [content for content, _ in self.receive()])

    def send(self, peer: Peer, *packets: bytes) -> None:
        for packet in packets:
            peer.send(memoryview(packet), self.front.address)


@pytest.fixture
def room(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    monkeypatch.setattr(doors_module, "RECEIVE_TIMEOUT_MS", 20)
    with ExitStack() as stack:
        room = Room(stack)
        yield room
        room.front.close()
        room.doors.close()


def test_a_stranger_comes_in_through_the_front(room: Room) -> None:
    room.send(room.stranger, b"one", b"two")
    room.receive_until(b"two")
    assert room.came == [(b"one", room.stranger.address), (b"two", room.stranger.address)]


def test_a_full_queue_of_strangers_costs_a_peer_nothing(room: Room) -> None:
    room.doors.open(room.friend.address)
    assert room.friend.address in room.doors
    room.send(room.stranger, *[bytes(1000)] * 500)  # far more than the queue takes: the kernel has dropped some
    words = [b"%d" % number for number in range(20)]
    room.send(room.friend, *words)
    room.receive_until(words[-1])
    assert [packet for packet, source in room.came if source == room.friend.address] == words
    wait_until(lambda: not room.receive())
    assert 0 < sum(source == room.stranger.address for _, source in room.came) < 500


def test_both_have_their_turn(room: Room) -> None:
    room.doors.open(room.friend.address)
    for _ in range(4):
        room.send(room.stranger, *[b"flood"] * 20)
        room.send(room.friend, b"hello")
        sources = [{source for _, source in room.receive()} for _ in range(2)]
        assert {*sources[0], *sources[1]} == {room.stranger.address, room.friend.address}
        wait_until(lambda: not room.receive())


def test_a_turn_of_strangers_is_bounded(room: Room) -> None:
    room.send(room.stranger, *[b"x"] * (2 * STRANGERS_TURN))  # within what the queue takes
    assert len(room.receive()) == STRANGERS_TURN


def test_strangers_that_are_to_wait_are_heard_a_little_later(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(doors_module, "monotonic", lambda: now)
    room.doors.open(room.friend.address)
    room.doors.let_strangers_wait()
    room.send(room.stranger, b"noise")
    assert room.receive() == []
    room.send(room.friend, b"hello")
    room.receive_until(b"hello")
    assert room.receive() == []
    now += doors_module.STRANGERS_REST
    room.receive_until(b"noise")


def test_who_has_gone_is_a_stranger_again(room: Room) -> None:
    room.doors.open(room.friend.address)
    room.send(room.friend, b"one")
    room.receive_until(b"one")
    room.doors.shut(room.friend.address)
    room.doors.shut(room.friend.address)
    assert room.friend.address not in room.doors
    room.send(room.friend, b"two")
    room.receive_until(b"two")


def test_peers_of_both_families_have_doors_of_a_port_for_both() -> None:
    front = UdpSocket.listen("", 0, UdpOptions())
    doors = Doors(front)
    for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as peer:  # a machine may have no IPv6
            peer.connect((host, front.address[1]))
            peer.send(b"hello")
            for is_known in (False, True):
                batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
                assert doors.receive(batch) == 1
                assert (batch.addresses[0] in doors) == is_known
                if not is_known:
                    doors.open(batch.addresses[0])
                assert batch.addresses[0] in doors
                peer.send(b"once more")
            doors.receive(PacketBatch(memoryview(bytearray(BATCH_BYTES))))
    front.close()
    doors.close()


def test_a_busy_peer_does_not_keep_another_one_out(room: Room) -> None:
    for peer in (room.friend, room.stranger):
        room.doors.open(peer.address)
    for source, other in ((room.friend, room.stranger), (room.stranger, room.friend)):
        wait_until(lambda: not room.receive())
        room.send(source, *[bytes(1400)] * 100)  # more than a tray takes
        room.send(other, b"hello")
        for _ in range(20):
            room.send(source, *[bytes(1400)] * 100)
            if (b"hello", other.address) in room.receive():
                break
        else:
            raise AssertionError("in vain")


def test_what_was_read_at_a_door_that_is_shut_just_then_is_not_left_in_the_tray(
    room: Room, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = UdpSocket.receive

    def receive(self: UdpSocket, batch: PacketBatch, **how: Any) -> int:
        received = read(self, batch, **how)
        if self is not room.front:
            room.doors.shut(room.friend.address)
            raise TransportError("the UDP socket is closed")
        return received

    monkeypatch.setattr(UdpSocket, "receive", receive)
    room.doors.open(room.friend.address)
    room.send(room.friend, b"last words")
    assert room.receive() == [(b"last words", room.friend.address)]


def test_who_brings_nothing_at_all_waits_as_well(room: Room) -> None:
    room.send(room.stranger, b"", bytes(1501))
    assert room.receive() == []
    assert room.doors._rest_until > 0


def test_a_peer_that_is_heard_ends_the_trouble_of_sending(room: Room) -> None:
    room.doors.open(room.friend.address)
    room.front.last_error = OSError("no way")
    room.send(room.friend, b"here I am")
    room.receive_until(b"here I am")
    assert room.front.last_error is None


def test_without_descriptors_everybody_comes_through_the_front(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: UdpSocket, peer: Address) -> UdpSocket:
        raise OSError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(UdpSocket, "for_peer", fail)
        room.doors.open(room.friend.address)
    assert room.friend.address not in room.doors
    room.send(room.friend, b"hello")
    room.receive_until(b"hello")
    room.doors.open(room.friend.address)
    assert room.friend.address not in room.doors, "so soon it is not tried again"
    room.doors._refused_until = 0
    room.doors.open(room.friend.address)
    assert room.friend.address in room.doors


def test_there_are_only_so_many_doors(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors_module, "DOORS_MAX", 1)
    room.doors.open(room.friend.address)
    room.doors.open(room.stranger.address)
    assert room.friend.address in room.doors and room.stranger.address not in room.doors


def test_closing_the_front_ends_the_wait(room: Room) -> None:
    ended: list[bool] = []

    def wait() -> None:
        try:
            while True:
                room.receive()
        except TransportError:
            ended.append(True)

    room.doors.open(room.friend.address)
    thread = Thread(target=wait)
    thread.start()
    room.front.close()
    thread.join()
    assert ended


def test_a_second_server_still_learns_that_the_port_is_taken(room: Room) -> None:
    room.doors.open(room.friend.address)
    with pytest.raises(TransportError, match="cannot listen"):
        UdpSocket.listen("127.0.0.1", room.front.address[1], UdpOptions())
