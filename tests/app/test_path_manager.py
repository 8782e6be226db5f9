"""The keeper: who is moved, when, and how often."""

from collections.abc import Iterator
from typing import Any

import pytest

from kcptun_lite.app import path_manager as room
from kcptun_lite.app.path_manager import FIRST_PAUSE, LAST_PAUSE, Keeper
from kcptun_lite.core.batch.buffers import Address
from kcptun_lite.errors import TransportError
from tests.net.fakes import Clock, wait_until


class FakeSession:
    """A session that only has a place and a conversation."""

    def __init__(self, remote: Address = ("a", 1)) -> None:
        self.remote = remote
        self.is_closed = False
        self.conversation = self
        self.conv = 0x1234


class Around:
    """Route and dialer in one: notes of what the keeper asks for."""

    def __init__(self) -> None:
        self.redialed: list[Any] = []
        self.scouted: list[Any] = []
        self.failed_at: list[Address] = []
        self.is_dead = False

    def failed(self, remote: Address) -> None:
        self.failed_at.append(remote)

    def redial(self, session: Any) -> None:
        self.redialed.append(session)
        session.remote = ("b", 2)

    def scout(self, session: Any) -> Address:
        self.scouted.append(session)
        if self.is_dead:
            raise TransportError("no way")
        return ("b", len(self.scouted))


class Room:
    """A running keeper, with everything around it."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.around = Around()
        self.sessions: list[Any] = []
        self.keeper = Keeper(self.around, self.around, lambda: self.sessions)  # type: ignore[arg-type]

    def report(self, session: Any) -> None:
        self.keeper.report(session)
        self.settle()

    def settle(self) -> None:
        """Until the keeper has seen all there was: it handles a marker of ours last."""
        marker: Any = FakeSession()
        before = len(self.around.redialed)
        self.keeper._troubled.put((marker, True))
        wait_until(lambda: marker in self.around.redialed[before:])
        self.around.redialed.remove(marker)
        wait_until(lambda: marker in self.keeper._tries)
        del self.keeper._tries[marker]


@pytest.fixture
def keeping(monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    clock = Clock()
    monkeypatch.setattr(room, "monotonic_ms", clock)
    keeping = Room(clock)
    keeping.keeper.start()
    yield keeping
    keeping.keeper.stop()


def test_a_session_in_trouble_is_tried_at_once(keeping: Room) -> None:
    session = FakeSession()
    keeping.report(session)
    assert keeping.around.scouted == [session]
    assert keeping.around.failed_at == [("a", 1)]
    assert not keeping.around.redialed, "it is only moved when there is an answer"


def test_each_pause_is_twice_the_one_before(keeping: Room) -> None:
    session = FakeSession()
    start = keeping.clock.now
    tried_at = []
    for _ in range(500):
        before = len(keeping.around.scouted)
        keeping.keeper.report(session)  # type: ignore[arg-type]
        keeping.settle()
        if len(keeping.around.scouted) > before:
            tried_at.append(keeping.clock.now - start)
        keeping.clock.now += 100
    pauses = [later - earlier for earlier, later in zip(tried_at, tried_at[1:], strict=False)]
    assert pauses == [FIRST_PAUSE, 1000, 2000, 4000, 8000, LAST_PAUSE, LAST_PAUSE]


def test_a_new_trouble_after_a_good_time_begins_with_short_pauses(keeping: Room) -> None:
    session = FakeSession()
    for _ in range(6):
        keeping.report(session)
        keeping.clock.now += LAST_PAUSE
    keeping.clock.now += 2 * LAST_PAUSE
    keeping.around.scouted.clear()
    keeping.report(session)
    keeping.clock.now += FIRST_PAUSE
    keeping.report(session)
    assert len(keeping.around.scouted) == 2


def test_what_was_tried_last_is_what_has_failed(keeping: Room) -> None:
    session = FakeSession()
    for _ in range(3):
        keeping.report(session)
        keeping.clock.now += LAST_PAUSE
    assert keeping.around.failed_at == [("a", 1), ("b", 1), ("b", 2)], "its own server first, then the scouts'"
    keeping.clock.now += 2 * LAST_PAUSE
    keeping.report(session)
    assert keeping.around.failed_at[-1] == session.remote, "another trouble"


def test_sessions_do_not_wait_for_each_other(keeping: Room) -> None:
    sessions = [FakeSession(), FakeSession()]
    for session in sessions:
        keeping.report(session)
    assert keeping.around.scouted == sessions


def test_a_closed_session_is_left_alone_and_forgotten(keeping: Room) -> None:
    session = FakeSession()
    keeping.report(session)
    session.is_closed = True
    keeping.clock.now += LAST_PAUSE
    keeping.report(session)
    assert keeping.around.scouted == [session]
    assert not keeping.keeper._tries


def test_an_order_moves_all_at_once_and_blames_no_server(keeping: Room) -> None:
    keeping.sessions += [FakeSession(), FakeSession()]
    for _ in range(2):
        keeping.keeper.redial_all()
        keeping.settle()
    assert keeping.around.redialed == keeping.sessions * 2, "without a pause"
    assert not keeping.around.scouted
    assert not keeping.around.failed_at


def test_a_way_that_cannot_be_made_is_tried_again(keeping: Room) -> None:
    session = FakeSession()
    keeping.around.is_dead = True
    keeping.report(session)
    keeping.around.is_dead = False
    keeping.clock.now += FIRST_PAUSE
    keeping.report(session)
    assert keeping.around.scouted == [session] * 2
