"""Sums over workers, the share of one."""

from contextlib import ExitStack
from marshal import dumps
from signal import SIGKILL
from socket import AF_UNIX, SOCK_SEQPACKET, socketpair
from subprocess import Popen
from typing import Any

from kcptun_lite.app.config import ServerConfig
from kcptun_lite.app.status import describe
from kcptun_lite.app.status_form import LISTED
from kcptun_lite.app.workers import merge, share
from kcptun_lite.app.workers import parent as parent_room
from kcptun_lite.app.workers.parent import Parent
from kcptun_lite.app.workers.process import Python, Worker
from kcptun_lite.app.workers.reload import Origin
from kcptun_lite.core.counters import CSV_COLUMNS, Counters
from tests.app.configs import complaint, server
from tests.app.test_status import check, facts
from tests.net.fakes import PATIENCE_S


def told(**values: Any) -> dict[str, Any]:
    """The status of one worker."""
    status = describe(facts(), role="server", name="", uptime=3000, now=0)
    return {**status, **values}


def own() -> dict[str, Any]:
    return {name: value for name, value in told(pid=1).items() if name in list(told())[:7]}


def test_the_whole_has_the_form_of_a_single_process() -> None:
    for parts in ([], [told()], [told(), told()]):
        whole = merge.status(parts, Counters(), own())
        check(whole)
        assert list(whole)[:7] == list(told())[:7]
        assert whole["pid"] == 1 and len(whole["workers"]) == len(parts)
        assert whole.keys() == told().keys()


def test_sums_are_sums_and_lists_keep_the_newest() -> None:
    session = {"conv": "7", "idle_s": 0}
    parts = [
        told(streams=2, sessions=[{**session, "idle_s": 100 + number} for number in range(LISTED)], last_diagnosis="a"),
        told(streams=3, sessions=[session] * 2, diagnoses=[{"since": 1, "until": 2, "text": "a"}]),
    ]
    counters = merge.total([{"bytes_received": 5, "max_connections": 2}, {"bytes_received": 7}])
    whole = merge.status(parts, counters, own())
    assert whole["streams"] == 5
    assert whole["bytes_in"] == 12 == whole["counters"]["BytesReceived"]
    assert len(whole["sessions"]) == LISTED and whole["sessions"][:2] == [session] * 2
    assert (whole["last_diagnosis"], len(whole["diagnoses"])) == ("a", 1)
    assert [worker["streams"] for worker in whole["workers"]] == [2, 3]


def test_a_worker_that_has_ended_leaves_what_it_counted_and_holds_nothing() -> None:
    counted = dict.fromkeys(CSV_COLUMNS.values(), 3)
    left = merge.retire(counted)
    assert left["bytes_sent"] == 3
    assert not {"current_established", "memory_held"} & left.keys()


def test_each_worker_has_its_part_of_what_is_meant_for_all() -> None:
    whole = server("--workers=3", "--maxsessions=100", "--memlimit=30M", "--ratelimit=9", "--status=/x", "--snmplog=/y")
    part = ServerConfig.unpack(share.of_worker(whole.pack()))
    assert (part.maxsessions, part.maxstreams, part.memlimit) == (33, 341, 10 << 20)
    assert (part.ratelimit, part.status, part.snmplog) == (9, "", ""), "a session is whole on one worker"


def test_a_worker_that_hangs_is_killed_and_one_that_answers_late_is_not(monkeypatch: Any) -> None:
    monkeypatch.setattr(parent_room, "HUNG_AFTER", 3)
    origin: Origin = {"command": [], "environment": {}, "warnings": []}
    parent = Parent(Python("", "", (), (), ""), server("--workers=2").pack(), origin)
    with ExitStack() as stack:
        processes, ends = [], []
        for index in range(2):
            channel, its = map(stack.enter_context, socketpair(AF_UNIX, SOCK_SEQPACKET))
            processes.append(stack.enter_context(Popen(["sleep", "60"])))
            stack.callback(processes[index].kill)
            ends.append(its)
            worker = parent._workers[index] = Worker(index, index, processes[index].pid, channel, 0)
            worker.listening = "somewhere"
        late, hung = processes
        for second in range(3):
            parent._ask()
            if second == 1:
                ends[0].send(dumps(("counters", {})))
                assert parent._workers[0].hear(0)
            parent._end_hung()
        assert hung.wait(PATIENCE_S) == -SIGKILL
        assert late.poll() is None


def test_auto_is_one_for_each_core_but_no_more_than_ports(monkeypatch: Any) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(3)), raising=False)
    assert server("--workers=auto").workers == 3
    assert server("--workers=auto", "--listen=:1000-1001").workers == 2
    assert server("--workers=2", "--listen=:1000-1004").workers == 2
    assert server("--workers=auto", "--maxsessions=2").workers == 2
    sentence = complaint("--workers=4", "--maxsessions=1", program="server")
    assert sentence == "--maxsessions: 1 cannot be shared by 4 workers; write 4 or more"
    sentence = complaint("--workers=3", "--listen=:1000-1001", program="server")
    assert sentence == "--workers: 3 cannot share the 2 ports of --listen; write 2 or less"
