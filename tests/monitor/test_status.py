"""What the monitor reads may be anybody's: nonsense is told as such, and nothing of it reaches the terminal."""

import json
from pathlib import Path
from typing import Any

import pytest

from kcptun_lite.monitor.history import KEPT, History
from kcptun_lite.monitor.status import LIST_MAX, NoStatus, parse
from kcptun_lite.monitor.words import duration, percent, rate, size
from tests.monitor.statuses import session, status
from tests.programs import Tunnel, wait_until
from tests.traffic import Target, connect, echo_handler


def parsed(**values: Any) -> Any:
    return parse(json.dumps(status(**values)).encode())


def test_the_status_of_a_real_tunnel_is_read_whole(tmp_path: Path) -> None:
    """Every key of the page has its place here, so a new one is not forgotten."""
    path = tmp_path / "c.json"
    with (
        Target(echo_handler) as target,
        Tunnel("ours", "ours", target.address, client_options={"status": path}) as tunnel,
        connect(tunnel.address),
    ):
        wait_until(lambda: path.exists() and bool(json.loads(path.read_bytes())["sessions"]), "a session is told")
        found = json.loads(path.read_bytes())
    read = parse(json.dumps(found).encode())
    assert {*vars(read), "schema"} == found.keys()
    assert vars(read.sessions[0]).keys() == found["sessions"][0].keys()
    assert vars(read.memory).keys() == found["memory"].keys()
    assert read.counters == found["counters"]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "no JSON"),
        (b"\xff\x00", "no JSON"),
        (b"[" * 200_000, "no JSON"),
        (b"[]", "no status"),
        (b"{}", "no status"),
        (b'{"pid": 1}', "its schema is 1, this monitor reads 2"),
        (b'{"pid": 1, "schema": "\\u001b[2J"}', "its schema is \\?\\[2J"),
        (b'{"pid": 1, "schema": 2}', "'sessions'"),
        (json.dumps(status(bytes_in="many")).encode(), "another kind"),
        (json.dumps(status(bytes_in=None)).encode(), "another kind"),
        (json.dumps(status(bytes_in=True)).encode(), "another kind"),
        (json.dumps(status(bytes_in=10**400)).encode(), "beyond all bounds"),
        (json.dumps(status(updated=float("nan"))).encode(), "no JSON"),
        (json.dumps(status(sessions={})).encode(), "another kind"),
        (json.dumps(status(sessions=[1])).encode(), "another kind"),
        (json.dumps(status(counters=[])).encode(), "another kind"),
        (json.dumps(status(counters={"a": {}})).encode(), "another kind"),
        (json.dumps(status(memory=None)).encode(), "another kind"),
    ],
)
def test_nonsense_is_told(data: bytes, why: str) -> None:
    with pytest.raises(NoStatus, match=why):
        parse(data)


def test_nothing_that_a_terminal_would_obey_comes_through() -> None:
    found = parsed(last_diagnosis="\x1b]0;title\x07 and\nmore " + "x" * 10_000, sessions=[session()] * 500)
    assert found.last_diagnosis.startswith("?]0;title? and?more") and len(found.last_diagnosis) == 300
    assert len(found.sessions) == LIST_MAX


def test_new_keys_do_no_harm() -> None:
    assert parsed(colour="blue").role == "client"


def test_the_busiest_session_stands_for_the_line() -> None:
    sessions = [session(conv="a", in_bytes_s=5), session(conv="b", in_bytes_s=9), session(conv="c", in_bytes_s=7)]
    found = parsed(sessions=[{**one, "out_bytes_s": 0} for one in sessions])
    assert found.busiest.conv == "b"
    assert parsed(sessions=[]).busiest is None


def test_a_history_has_gaps_where_nothing_is_known() -> None:
    history = History()
    counters = status()["counters"]
    history.add(parsed(counters={**counters, "OutSegs": 100, "RetransSegs": 10}), 1)
    history.add(parsed(counters={**counters, "OutSegs": 200, "RetransSegs": 15}), 2)
    history.add(None, 3)
    history.add(parsed(pid=7, sessions=[]), 4)
    first, second, gap, again = history.points
    assert (first.resent, second.resent, again.resent) == (None, 0.05, None)
    assert (second.in_bytes_s, second.rtt_ms, second.rtt_least_ms, second.loss) == (125_000, 182, 160, 0.015)
    assert gap[1:] == (None,) * 6
    assert again.rtt_ms is None
    for at in range(2 * KEPT):
        history.add(None, at)
    assert len(history.points) == KEPT


def test_words() -> None:
    assert [rate(value) for value in (None, 0, 100, 1_540_000, 1e12)] == ["–", "0", "800", "12.3M", "8000.0G"]
    assert [size(value) for value in (None, 12, 2048, 16_000_000)] == ["–", "12 B", "2.0 KiB", "15.3 MiB"]
    assert [percent(value) for value in (None, 0.0123)] == ["–", "1.2%"]
    assert [duration(value) for value in (7, 66, 3700, 90_000)] == ["7s", "1m 6s", "1h 1m", "1d 1h"]
