"""A server with several workers, from outside: who notices what, and who does not."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

import pytest

from tests.nat import Nat
from tests.programs import ROOT, Program, require, require_newest, start_client, start_server, wait_until
from tests.traffic import Target, connect, echo_handler, receive_exactly

FAST = {"mode": "fast3", "key": "k"}


@contextmanager
def running(*programs: Program) -> Iterator[None]:
    try:
        yield
    finally:
        for program in programs:
            with suppress(subprocess.TimeoutExpired):
                program.stop(signal.SIGTERM, timeout=6.0)


def workers(server: Program) -> dict[int, int]:
    """Number, from 1 on, -> pid of each worker that runs; the latest of each number."""
    found = {}
    for pid in _children(server):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if match := re.search(r"worker (\d+)", Path(f"/proc/{pid}/cmdline").read_text()):
                found[int(match[1])] = pid
    return found


def start_workers(kind: str, options: dict[str, object]) -> tuple[Program, str]:
    """A server of whose workers all have been started, and its address."""
    server, address = start_server(kind, options)
    wait_until(lambda: len(workers(server)) == options["workers"], "all workers")
    return server, address


def status(path: Path) -> dict[str, object]:
    """What the server tells now."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10.0)
        sock.connect(f"{path}.sock")
        with sock.makefile() as lines:
            return dict(json.loads(lines.readline()))


def say(sock: socket.socket, text: bytes) -> bool:
    """Whether an echo comes back."""
    with suppress(OSError):
        sock.sendall(text)
        return receive_exactly(sock, len(text)) == text
    return False


def pss(pid: int) -> int:
    """KiB"""
    return int(re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)[1])  # type: ignore[index]


def test_only_the_clients_of_a_worker_that_is_killed_notice_it(tmp_path: Path) -> None:
    path = tmp_path / "status"
    with Target(echo_handler) as target, ExitStack() as stack:
        server, address = start_workers("ours", {**FAST, "target": target.address, "workers": 2, "status": path})
        stack.enter_context(running(server))
        client, local = start_client("ours", {**FAST, "remoteaddr": address, "conn": 16})
        stack.enter_context(running(client))
        streams = [stack.enter_context(connect(local)) for _ in range(16)]
        assert all(say(stream, b"before") for stream in streams)
        wait_until(lambda: Path(f"{path}.sock").exists() and status(path)["streams"] == 16, "all streams are told")
        of_pid = {one["pid"]: one["session_count"] for one in status(path)["workers"]}  # type: ignore[attr-defined]
        victim = workers(server)[1]
        assert 0 < of_pid[victim] < 16, "chance has put all sessions on one worker"
        os.kill(victim, signal.SIGKILL)
        began = monotonic()
        server.wait_for_log("worker 1 has ended .SIGKILL.; it is started again in 1 s")
        others = stack.enter_context(ThreadPoolExecutor(16))
        wait_until(lambda: all(others.map(_answers, [local] * 16)), "new connections work on all sessions", 8.0)
        print(f"after {monotonic() - began:.2f} s")
        alive = [stream for stream in streams if say(stream, b"after")]
        assert len(alive) == 16 - of_pid[victim]
        assert server.counters()["PassiveOpens"] >= 16


def _answers(local: str) -> bool:
    with suppress(OSError), connect(local, timeout=1.0) as sock:
        return say(sock, b"new")
    return False


def test_clients_that_change_their_address_live_on_whatever_worker_they_reach() -> None:
    with Target(echo_handler) as target, ExitStack() as stack:
        server, address = start_workers("ours", {**FAST, "target": target.address, "workers": 4})
        stack.enter_context(running(server))
        nat = stack.enter_context(Nat(address))
        client, local = start_client("ours", {**FAST, "remoteaddr": nat.address, "conn": 100})
        stack.enter_context(running(client))
        streams = [stack.enter_context(connect(local)) for _ in range(100)]
        assert all(say(stream, b"hello") for stream in streams)
        for number in range(3):
            nat.rebind()
            assert all(say(stream, b"again %d" % number) for stream in streams)
        counters = server.counters()
        assert counters["PassiveOpens"] == 100 == counters["CurrEstab"]


def test_a_recorded_first_packet_makes_no_session_at_another_worker() -> None:
    with Target(echo_handler) as target, ExitStack() as stack:
        server, address = start_workers("ours", {**FAST, "target": target.address, "workers": 4})
        stack.enter_context(running(server))
        nat = stack.enter_context(Nat(address))
        client, local = start_client("ours", {**FAST, "remoteaddr": nat.address})
        stack.enter_context(running(client))
        stream = stack.enter_context(connect(local))
        assert say(stream, b"hello")
        _replay(nat, address)
        assert say(stream, b"hello")
        assert server.counters()["PassiveOpens"] == 1 == target.connections
        client.stop()
        wait_until(lambda: server.counters()["CurrEstab"] == 0, "the session has ended")
        _replay(nat, address)
        assert server.counters()["PassiveOpens"] == 1 == target.connections


def _replay(nat: Nat, address: str) -> None:
    """Send what opened the session from so many addresses that each worker gets it, and wait until it was read."""
    host, _, port = address.rpartition(":")
    for _ in range(32):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(20.0)  # some workers may still be starting; what comes meanwhile waits
            sock.sendto(next(iter(nat.first.values())), (host, int(port)))
            sock.recv(2048)  # it is told what has come already, or that there is nothing


def test_a_range_of_ports_is_shared_and_a_session_may_move_between_them() -> None:
    with Target(echo_handler) as target, ExitStack() as stack:
        first = _free_range(4)
        listen = f"127.0.0.1:{first}-{first + 3}"
        server, _ = start_workers("ours", {**FAST, "target": target.address, "workers": 2, "listen": listen})
        stack.enter_context(running(server))
        server.wait_for_log("listening on: 127.0.0.1")
        nats = [stack.enter_context(Nat(f"127.0.0.1:{first + number}")) for number in range(4)]
        for nat in nats:
            client, local = start_client("ours", {**FAST, "remoteaddr": nat.address})
            stack.enter_context(running(client))
            stream = stack.enter_context(connect(local))
            assert say(stream, b"hello")
            nat._server = ("127.0.0.1", first + (nats.index(nat) + 1) % 4)  # another port, which another worker reads
            nat.rebind()
            assert say(stream, b"again")
        assert server.counters()["PassiveOpens"] == 4


def _free_range(count: int) -> int:
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        with suppress(OSError), ExitStack() as stack:
            for number in range(count):
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.bind(("127.0.0.1", first + number))
            return first


@pytest.mark.parametrize("kind", ["ours", "go", pytest.param("newest", marks=pytest.mark.once)])
def test_a_reload_resets_no_stream_and_new_ones_work_at_once(kind: str) -> None:
    if kind == "go":
        require("kcptun-client")
    if kind == "newest":
        require_newest()
    with Target(echo_handler) as target, ExitStack() as stack:
        options = {**FAST, "target": target.address, "workers": 2}
        server, address = start_workers("ours", options)
        stack.enter_context(running(server))
        client, local = start_client(kind, {**FAST, "smuxver": 1, "remoteaddr": address, "conn": 4})
        stack.enter_context(running(client))
        streams = [stack.enter_context(connect(local)) for _ in range(2)]
        assert all(say(stream, b"before") for stream in streams)
        resting = [stack.enter_context(connect(local)) for _ in range(2)]
        assert all(say(stream, b"before") for stream in resting)
        for stream in resting:
            stream.close()
        before = workers(server)
        server._process.send_signal(signal.SIGUSR2)
        server.wait_for_log("reload: new workers take over")
        wait_until(lambda: len(_children(server)) == 4, "old and new workers")
        deadline = monotonic() + 4.0
        while monotonic() < deadline:  # while sessions move
            assert all(say(stream, b"meanwhile") for stream in streams)
            assert _answers(local)
            sleep(0.02)  # who asks without a break takes the processors from those who reload
        for stream in streams:
            stream.close()
        wait_until(lambda: len(_children(server)) == 2, "only new workers")
        assert all(_answers(local) for _ in range(8))
        assert not set(before.values()) & set(_children(server))


def test_a_stream_that_outlasts_the_drain_is_cut_and_its_session_goes_on() -> None:
    """With a client of Go, which would else take half a minute to notice that its session is gone."""
    require("kcptun-client")
    with Target(echo_handler) as target, ExitStack() as stack:
        server, address = start_workers("ours", {**FAST, "target": target.address, "workers": 2, "drain": 1})
        stack.enter_context(running(server))
        client, local = start_client("go", {**FAST, "remoteaddr": address})
        stack.enter_context(running(client))
        stream = stack.enter_context(connect(local))
        assert say(stream, b"before")
        server._process.send_signal(signal.SIGUSR2)
        for number in 1, 2:
            server.wait_for_log(f"old worker {number} has ended")
        assert stream.recv(1) == b""
        assert all(_answers(local) for _ in range(3))
        assert server.counters()["PassiveOpens"] == 1


def test_settings_are_read_again_and_bad_ones_change_nothing(tmp_path: Path) -> None:
    settings = tmp_path / "server.json"
    with Target(echo_handler) as target, ExitStack() as stack:

        def reload(**values: object) -> None:
            nonlocal since
            settings.write_text(json.dumps({"target": target.address, **values}))
            since = len(server.log)
            server._process.send_signal(signal.SIGUSR2)

        since = 0
        settings.write_text(json.dumps({"target": "127.0.0.1:1"}))
        server, address = start_workers("ours", {**FAST, "target": "127.0.0.1:1", "workers": 2, "c": settings})
        stack.enter_context(running(server))
        client, local = start_client("ours", {**FAST, "remoteaddr": address})
        stack.enter_context(running(client))
        server.wait_for_log("listening on")
        before = workers(server)
        for values, sentence in (
            ({"mtu": 2000}, "reload: kcptun-lite-server: .*mtu.* out of range.*; nothing has changed"),
            ({"workers": 3}, "reload: --workers has changed from 2 to 3, which takes a restart; nothing has changed"),
            (
                {"listen": ":1"},
                "reload: --listen has changed from .* to :1, which takes a restart; nothing has changed",
            ),
        ):
            reload(**values)
            server.wait_for_log(sentence, since=since)
        assert workers(server) == before and not _answers(local)
        reload()
        for number in 1, 2:
            server.wait_for_log(f"old worker {number} has ended", since=since)
        assert _answers(local)


def test_a_stop_does_not_wait_for_settings_that_do_not_come(tmp_path: Path) -> None:
    settings = tmp_path / "server.json"
    settings.write_text("{}")
    server, _ = start_workers("ours", {**FAST, "target": "127.0.0.1:1", "workers": 2, "c": settings})
    with running(server):
        settings.unlink()
        os.mkfifo(settings)
        server._process.send_signal(signal.SIGUSR2)
        wait_until(lambda: _is_being_read(settings), "the settings are being read")
        assert server.stop(signal.SIGTERM, timeout=6.0) == 0


def _is_being_read(fifo: Path) -> bool:
    """Somebody has opened it, and goes on waiting for what this process leaves open."""
    with suppress(OSError):
        os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        return True
    return False


def test_an_upgrade_comes_in_and_a_broken_one_leaves_the_old_workers(tmp_path: Path) -> None:
    installed = tmp_path / "kcptun_lite"
    shutil.copytree(ROOT / "kcptun_lite", installed, ignore=shutil.ignore_patterns("__pycache__"))
    with Target(echo_handler) as target, ExitStack() as stack:
        server, address = start_workers(f"ours@{tmp_path}", {**FAST, "target": target.address, "workers": 2})
        stack.enter_context(running(server))
        client, local = start_client("ours", {**FAST, "remoteaddr": address})
        stack.enter_context(running(client))
        (installed / "__init__.py").write_text('"""A newer one."""\n\n__version__ = "9.9.9"\n')
        server._process.send_signal(signal.SIGUSR2)
        server.wait_for_log("version: 9.9.9")
        for number in 1, 2:
            server.wait_for_log(f"old worker {number} has ended")
        stream = stack.enter_context(connect(local))
        assert say(stream, b"before")
        before = workers(server)
        broken = installed / "app" / "workers" / "server.py"
        for content, sentence in (
            ("no Python", "reload: SyntaxError.*; nothing has changed"),
            ("def run(*arguments): return 1", "reload: new workers cannot serve .*; the old ones go on"),
        ):
            broken.write_text(f"{content}\n")
            server._process.send_signal(signal.SIGUSR2)
            server.wait_for_log(sentence)
        assert workers(server) == before
        assert say(stream, b"after") and _answers(local)


def test_who_stops_or_loses_the_parent_stops_the_workers() -> None:
    for number in signal.SIGTERM, signal.SIGKILL:
        server, _ = start_workers("ours", {**FAST, "target": "127.0.0.1:1", "workers": 2})
        pids = _children(server)
        assert server.stop(number, timeout=8.0) == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        wait_until(lambda pids=pids: not any(Path(f"/proc/{pid}").exists() for pid in pids), "no worker is left", 8.0)


def test_the_parent_is_small_and_each_worker_no_larger_than_one_process() -> None:
    with ExitStack() as stack:
        options = {**FAST, "target": "127.0.0.1:1"}
        alone, _ = start_server("ours", options)
        stack.enter_context(running(alone))
        server, _ = start_workers("ours", {**options, "workers": 2})
        stack.enter_context(running(server))
        server.counters()  # all have answered
        assert pss(server.pid) <= 12 * 1024
        assert all(pss(pid) <= 1.1 * pss(alone.pid) for pid in _children(server))


def test_a_reload_of_a_single_process_is_told_and_changes_nothing() -> None:
    server, _ = start_server("ours", {**FAST, "target": "127.0.0.1:1"})
    with running(server):
        server._process.send_signal(signal.SIGUSR2)
        server.wait_for_log("SIGUSR2: a reload is for a server with --workers 2 or more; nothing has changed")
        assert server.is_running()


def _children(server: Program) -> list[int]:
    return list(map(int, Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()))
