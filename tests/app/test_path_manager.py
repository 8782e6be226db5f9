"""The path manager: who is moved, when, and how often."""

from collections.abc import Iterator
from typing import Any

import pytest

from kcptun_lite.app import path_manager as room
from kcptun_lite.app.path_manager import FIRST_PAUSE, LAST_PAUSE, PathManager
from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError
from tests.net.fakes import Clock, wait_until


class FakeSession:
    """A session that only has a place and a conversation."""

    def __init__(self, remote: Address = ("a", 1)) -> None:
        self.remote = remote
        self.is_closed = False
        self.conversation = self.watch = self
        self.conv = 0x1234
        self.is_peer_ours = True
        self.is_answered = False
        self.asked = 0
        self.patience = 0
        self.heard_at = 1 << 60
        self.is_way_reset = False
        self.transport = "UDP"

    def probe(self) -> None:
        self.asked += 1

    def silence(self, now: int) -> int:
        return -1 if self.is_answered else 1 << 30


class Around:
    """Route and dialer in one: notes of what the path manager asks for."""

    def __init__(self) -> None:
        self.redialed: list[Any] = []
        self.probed: list[Any] = []
        self.probed_port: list[bool] = []
        "of each, whether to the session's own port"
        self.failed_at: list[Address] = []
        self.is_dead = False

        self.is_first_way_open = False
        self.preferred = 0
        "times that the first way was to be preferred again"

    def prefer_first_way(self) -> None:
        self.preferred += 1

    def is_heard_first_way(self, session: Any) -> bool:
        return self.is_first_way_open

    def failed(self, remote: Address) -> None:
        self.failed_at.append(remote)

    def redial(self, session: Any) -> None:
        self.redialed.append(session)
        session.remote = ("b", 2)

    def path_probe(self, session: Any, *, keeps_port: bool) -> Address:
        self.probed.append(session)
        self.probed_port.append(keeps_port)
        if self.is_dead:
            raise TransportError("no way")
        return ("b", session.remote[1] if keeps_port else 100 + len(self.probed))


class Room:
    """A running path manager, with everything around it."""

    def __init__(self, clock: Clock, *, has_second_way: bool = False) -> None:
        self.clock = clock
        self.around = Around()
        self.sessions: list[Any] = []
        self.path_manager = PathManager(self.around, self.around, lambda: self.sessions, has_second_way=has_second_way)  # type: ignore[arg-type]

    def report(self, session: Any) -> None:
        self.path_manager.report(session)
        self.settle()

    def settle(self) -> None:
        """Until the path manager has seen all there was: it handles a marker of ours last."""
        marker: Any = FakeSession()
        before = len(self.around.redialed)
        self.path_manager._troubled.put((marker, 0))
        wait_until(lambda: marker in self.around.redialed[before:])
        self.around.redialed.remove(marker)
        wait_until(lambda: marker in self.path_manager._tries)
        del self.path_manager._tries[marker]


@pytest.fixture
def managing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    clock = Clock()
    monkeypatch.setattr(room, "monotonic_ms", clock)
    managing = Room(clock)
    managing.path_manager.start()
    yield managing
    managing.path_manager.stop()


def test_a_session_in_trouble_is_tried_at_once(managing: Room) -> None:
    session = FakeSession()
    managing.report(session)
    assert managing.around.probed == [session]
    assert managing.around.failed_at == [("a", 1)]
    assert not managing.around.redialed, "it is only moved when there is an answer"


def test_each_pause_is_twice_the_one_before(managing: Room) -> None:
    session = FakeSession()
    start = managing.clock.now
    tried_at = []
    for _ in range(500):
        before = len(managing.around.probed)
        managing.path_manager.report(session)  # type: ignore[arg-type]
        managing.settle()
        if len(managing.around.probed) > before:
            tried_at.append(managing.clock.now - start)
        managing.clock.now += 100
    pauses = [later - earlier for earlier, later in zip(tried_at, tried_at[1:], strict=False)]
    assert pauses == [FIRST_PAUSE, 1000, 2000, 4000, 8000, LAST_PAUSE, LAST_PAUSE]


def test_a_new_trouble_after_a_good_time_begins_with_short_pauses(managing: Room) -> None:
    session = FakeSession()
    for _ in range(6):
        managing.report(session)
        managing.clock.now += LAST_PAUSE
    managing.clock.now += 2 * LAST_PAUSE
    managing.around.probed.clear()
    managing.report(session)
    managing.clock.now += FIRST_PAUSE
    managing.report(session)
    assert len(managing.around.probed) == 2


def test_what_was_tried_last_is_what_has_failed(managing: Room) -> None:
    session = FakeSession()
    for _ in range(3):
        managing.report(session)
        managing.clock.now += LAST_PAUSE
    assert managing.around.failed_at == [("a", 1), ("b", 1), ("b", 102)], "its own server first, then the path probe'"
    managing.clock.now += 2 * LAST_PAUSE
    managing.report(session)
    assert managing.around.failed_at[-1] == session.remote, "another trouble"


def test_the_own_port_is_tried_first_and_by_turns_with_others(managing: Room) -> None:
    session = FakeSession()
    for _ in range(4):
        managing.report(session)
        managing.clock.now += LAST_PAUSE
    assert managing.around.probed_port == [True, False, True, False]


def test_an_order_asks_at_the_own_port_whatever_was_tried_before(managing: Room) -> None:
    session = FakeSession()
    session.is_peer_ours = False
    managing.sessions.append(session)
    managing.report(session)
    managing.path_manager.redial_all()
    managing.settle()
    assert managing.around.probed_port == [True, True]


def test_sessions_do_not_wait_for_each_other(managing: Room) -> None:
    sessions = [FakeSession(), FakeSession()]
    for session in sessions:
        managing.report(session)
    assert managing.around.probed == sessions


def test_a_closed_session_is_left_alone_and_forgotten(managing: Room) -> None:
    session = FakeSession()
    managing.report(session)
    session.is_closed = True
    managing.clock.now += LAST_PAUSE
    managing.report(session)
    assert managing.around.probed == [session]
    assert not managing.path_manager._tries


def test_an_order_moves_all_at_once_and_blames_no_server(managing: Room) -> None:
    managing.sessions += [FakeSession(), FakeSession()]
    for _ in range(2):
        managing.path_manager.redial_all()
        managing.settle()
    assert managing.around.redialed == managing.sessions * 2, "without a pause"
    assert not managing.around.probed
    assert not managing.around.failed_at


def test_an_order_keeps_the_ways_that_answer(managing: Room) -> None:
    answers, silent = FakeSession(), FakeSession()
    answers.is_answered = True
    managing.sessions += [answers, silent]
    managing.path_manager.redial_all()
    managing.settle()
    assert (answers.asked, silent.asked) == (1, 1)
    assert managing.around.redialed == [silent]


def test_a_question_that_was_sent_late_is_no_answer(managing: Room) -> None:
    session = FakeSession()
    session.is_answered, session.heard_at = True, managing.clock.now - 1
    managing.sessions.append(session)
    managing.path_manager.redial_all()
    managing.settle()
    assert managing.around.redialed == [session]


def test_an_order_tries_another_way_beside_that_of_a_server_that_does_not_follow(managing: Room) -> None:
    session = FakeSession()
    session.is_peer_ours = False
    managing.sessions.append(session)
    managing.path_manager.redial_all()
    managing.settle()
    assert managing.around.probed == [session] and not managing.around.redialed


def test_a_way_that_cannot_be_made_is_tried_again(managing: Room) -> None:
    session = FakeSession()
    managing.around.is_dead = True
    managing.report(session)
    managing.around.is_dead = False
    managing.clock.now += FIRST_PAUSE
    managing.report(session)
    assert managing.around.probed == [session] * 2


def test_a_way_that_was_reset_is_left_at_once(managing: Room) -> None:
    """Where the peer is one of ours, who knows a session wherever it comes from."""
    session = FakeSession()
    session.is_way_reset = True
    managing.report(session)
    assert managing.around.redialed == [session] and not managing.around.probed


@pytest.mark.parametrize(("is_open", "is_ours"), [(True, True), (False, True), (True, False)])
def test_sessions_return_to_the_first_way_when_it_is_open(
    monkeypatch: pytest.MonkeyPatch, is_open: bool, is_ours: bool
) -> None:
    """After a while, or when the network has changed."""
    clock = Clock()
    monkeypatch.setattr(room, "monotonic_ms", clock)
    managing = Room(clock, has_second_way=True)
    managing.around.is_first_way_open = is_open
    strayed, other = FakeSession(), FakeSession()
    strayed.transport, strayed.is_peer_ours = "TCP", is_ours
    managing.sessions = [strayed, other]
    managing.path_manager._look_at_first_way()
    assert not managing.around.redialed
    clock.now += room.RETURN_AFTER
    for _ in range(2):
        managing.path_manager._look_at_first_way()
        assert managing.around.redialed == ([strayed] if is_open and is_ours else [])
    managing.path_manager.redial_all()
    assert managing.around.preferred
    clock.now += room.ANSWER_TIME
    managing.path_manager._look_at_first_way()
    assert len(managing.around.redialed) == (2 if is_open and is_ours else 0)
