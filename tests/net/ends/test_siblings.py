"""What workers of one server tell each other."""

import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from kcptun_lite.core.batch.packets import Address, Local
from kcptun_lite.net.ends.session_table import SessionTable
from kcptun_lite.net.ends.siblings import MESSAGE_MAX, Siblings
from kcptun_lite.net.event_loop import EventLoop
from tests.net.fakes import wait_until

HERE: Address = ("127.0.0.1", 4000)
LOCAL: Local = (0, 8, b"0123456789ab")


class Port:
    """A listener that remembers what it was handed."""

    def __init__(self) -> None:
        self.handed: list[tuple[Address, Local | None, list[bytes]]] = []

    def receive_handed(self, address: Address, local: Local | None, packets: Sequence[memoryview], now: int) -> None:
        self.handed.append((address, local, [bytes(packet) for packet in packets]))


class Worker:
    """One worker's siblings, with a table and two ports."""

    def __init__(self, stack: ExitStack, slot: int, boxes: list[tuple[socket.socket, socket.socket]]) -> None:
        self.loop = EventLoop()
        self.loop.start()
        stack.callback(self.loop.stop)
        self.table = SessionTable(8)
        self.ports = [Port(), Port()]
        self.given: list[Any] = []
        self.is_greeted = False
        outboxes = {other: box[1] for other, box in enumerate(boxes) if other != slot}
        self.siblings = Siblings(slot, boxes[slot][0], outboxes, self.loop, self.table, self.given.append)
        self.siblings.ports = self.ports

    def greet(self, *awaited: int) -> None:
        def done() -> None:
            self.is_greeted = True

        self.loop.call(lambda: self.siblings.greet(awaited, done))
        wait_until(lambda: self.is_greeted)

    def knows(self, conv: int) -> bool:
        return conv in self.siblings._owners


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def boxes(stack: ExitStack) -> list[tuple[socket.socket, socket.socket]]:
    boxes = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
    for end in (end for box in boxes for end in box):
        end.setblocking(False)
        stack.callback(end.close)
    return boxes


def test_packets_of_a_siblings_conversation_are_handed_on_whole_and_in_order(stack: ExitStack, boxes: Any) -> None:
    first, second = Worker(stack, 0, boxes), Worker(stack, 1, boxes)
    first.greet()
    second.greet(0)
    second.siblings.have(7)
    wait_until(lambda: first.knows(7))
    packets = [bytes([number]) * 1400 for number in range(3 * MESSAGE_MAX // 1400)]
    views = [memoryview(packet) for packet in packets]
    assert first.siblings.hand_on(7, first.ports[1], HERE, LOCAL, views)
    wait_until(lambda: sum(len(handed) for _, _, handed in second.ports[1].handed) == len(packets))
    assert [packet for _, _, handed in second.ports[1].handed for packet in handed] == packets
    assert {(address, local) for address, local, _ in second.ports[1].handed} == {(HERE, LOCAL)}
    assert not first.siblings.hand_on(8, first.ports[1], HERE, None, views), "nobody has it"


def test_what_has_ended_is_known_and_what_has_moved_is_the_next_ones(stack: ExitStack, boxes: Any) -> None:
    workers = [Worker(stack, slot, boxes) for slot in range(3)]
    for worker in workers:
        worker.greet()
    watcher, old, new = workers
    old.siblings.have(7)
    old.siblings.have(8)
    wait_until(lambda: watcher.knows(7) and watcher.knows(8))
    new.siblings.have(7)
    wait_until(lambda: watcher.siblings._owners[7] == 2)
    old.siblings.gone(7)
    old.siblings.ended(8)
    wait_until(lambda: not watcher.knows(8))
    assert watcher.siblings._owners == {7: 2}
    assert watcher.table.has_ended(8) and not watcher.table.has_ended(7)


def test_a_new_worker_learns_what_is_there_and_what_it_was_before_is_forgotten(stack: ExitStack, boxes: Any) -> None:
    first, second = Worker(stack, 0, boxes), Worker(stack, 1, boxes)
    first.greet()
    second.greet(0)
    second.siblings.have(7)
    wait_until(lambda: first.knows(7))
    first.table.note_ended(range(5000))  # more than are remembered
    second.loop.forget(boxes[1][0].fileno())  # it was killed, and is started again
    again = Worker(stack, 1, boxes)
    again.greet(0)
    wait_until(lambda: not first.knows(7))
    assert again.table.ended() == first.table.ended()


def test_a_full_inbox_loses_and_counts_and_holds_nobody_up(stack: ExitStack, boxes: Any) -> None:
    first = Worker(stack, 0, boxes)
    first.siblings._owners[7] = 1
    packets = [memoryview(bytes(1400))] * 20
    for _ in range(200):
        assert first.siblings.hand_on(7, first.ports[0], HERE, None, packets)
    assert first.siblings.counters.send_drops > 100


def test_a_worker_that_takes_no_more_leaves_all_to_its_heir(stack: ExitStack, boxes: Any) -> None:
    old, new = Worker(stack, 0, boxes), Worker(stack, 1, boxes)
    old.greet()
    new.greet(0)
    assert not old.siblings.give((1, 2))
    old.siblings.heir = 1
    assert old.siblings.hand_on(9, old.ports[0], HERE, None, [memoryview(b"new")])
    assert old.siblings.give((1, b"state"))
    wait_until(lambda: bool(new.given and new.ports[0].handed))
    assert new.given == [(1, b"state")]
