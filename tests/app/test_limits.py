"""What limits a session is told, once, and only when it lasts and matters."""

from typing import Any, cast

import pytest

from kcptun_lite import log
from kcptun_lite.app.limits import LASTING, LEAST_RATE, Limits
from kcptun_lite.core.kcp.sender import Limit
from tests.net.fakes import End, make_context, small_params


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(log, "_write", lambda level, text, fields: found.append(text))
    return found


class Second:
    """A session that is limited by whatever the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.end = End(make_context(small_params()), 0, is_client=True)
        self.limits = Limits()
        self.limit = Limit.PEER
        self.now = 0
        sender = self.end.session.conversation.kcp.sender
        monkeypatch.setattr(sender, "take_limit", lambda: self.limit)

    def pass_seconds(self, count: int, rate: int = 2 * LEAST_RATE) -> None:
        for _ in range(count):
            self.end.session.counters.bytes_sent += rate
            self.now += 1000
            self.limits.look([self.end.session], self.now)


def test_what_lasts_is_told_once_with_its_cause(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    second = Second(monkeypatch)
    second.pass_seconds(LASTING - 1)
    assert not lines
    second.pass_seconds(3 * LASTING)
    (line,) = lines
    assert line.startswith("what is sent to 10.0.0.9:29900 is limited to 1.6 Mbit/s by the other end's receive window")
    assert second.limits.of(second.end.session) is Limit.PEER
    second.limit = Limit.WINDOW
    second.pass_seconds(LASTING)
    assert "--sndwnd 32 " in lines[1] and len(lines) == 2


@pytest.mark.parametrize("limit", [Limit.APPLICATION, Limit.LINE])
def test_what_nobody_can_change_is_not_told(monkeypatch: pytest.MonkeyPatch, lines: list[str], limit: Limit) -> None:
    second = Second(monkeypatch)
    second.limit = limit
    second.pass_seconds(3 * LASTING)
    assert not lines


def test_nobody_is_told_of_a_trickle(monkeypatch: pytest.MonkeyPatch, lines: list[str]) -> None:
    second = Second(monkeypatch)
    second.pass_seconds(3 * LASTING, rate=LEAST_RATE // 2)
    assert not lines


def test_a_session_that_has_gone_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    second = Second(monkeypatch)
    second.pass_seconds(1)
    second.end.session.close()
    second.limits.look([second.end.session], second.now + 1000)
    assert not cast(Any, second.limits)._seconds
