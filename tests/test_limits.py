"""What runs out, or is over: descriptors, the time of a session."""

import fcntl
import os
import re
import resource
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

from tests.programs import ROOT, Program, Tunnel, require, wait_until
from tests.traffic import Target, can_connect, connect, echo_handler, receive_exactly

FAST = {"mode": "fast3", "sndwnd": 512, "rcvwnd": 512, "datashard": 0, "parityshard": 0}


def ask(sock: socket.socket) -> None:
    sock.sendall(b"?")
    assert receive_exactly(sock, 1) == b"?"


def sessions(program: Program) -> int:
    return program.counters()["CurrEstab"]


@pytest.mark.parametrize("end", ["client", "server"])
def test_without_descriptors_connections_wait_or_fail_and_all_is_well_when_there_are_some(end: str) -> None:
    with Target(echo_handler) as target, Tunnel("ours", "ours", target.address, FAST) as tunnel, ExitStack() as stack:
        first = stack.enter_context(connect(tunnel.address))
        ask(first)
        program = {"client": tunnel.client, "server": tunnel.server}[end]
        limits = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (program.descriptor_count() + 2, limits[1]))
        socks = [stack.enter_context(connect(tunnel.address)) for _ in range(6)]
        program.wait_for_log("[Tt]oo many open files")
        ask(first)
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
        if end == "client":  # they have waited at the socket
            for sock in socks:
                ask(sock)
        ask(stack.enter_context(connect(tunnel.address)))


@pytest.mark.parametrize("end", ["client", "server"])
def test_without_descriptors_a_unknown_sources_packets_end_no_program(end: str) -> None:
    """What it takes to look into them is loaded late."""
    with Target(echo_handler) as target, Tunnel("ours", "ours", target.address, FAST) as tunnel, ExitStack() as stack:
        first = stack.enter_context(connect(tunnel.address))
        ask(first)
        program = {"client": tunnel.client, "server": tunnel.server}[end]
        limits = resource.prlimit(program.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, (program.descriptor_count(), limits[1]))
        unknown = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        for _ in range(3):
            before = program.counters()["InErrs"] + program.counters()["InCsumErrors"]
            unknown.sendto(bytes(range(100)), ("127.0.0.1", program.udp_port()))
            wait_until(
                lambda before=before: program.counters()["InErrs"] + program.counters()["InCsumErrors"] > before,  # type: ignore[misc]
                "the packet was counted",
            )
            program.counters()  # and each of these is a turn of the main thread, with all its chores
        ask(first)
        resource.prlimit(program.pid, resource.RLIMIT_NOFILE, limits)
        ask(stack.enter_context(connect(tunnel.address)))


@pytest.mark.parametrize("shards", [[], ["--datashard", "10", "--parityshard", "3"]], ids=["auto", "given"])
def test_what_sessions_need_is_loaded_before_the_program_listens(shards: list[str]) -> None:
    """And numpy only where parity is sent: two of ours send none, unless they are told to."""
    command = [sys.executable, "-X", "importtime", "-m", "kcptun_lite"]
    environment = {"PYTHONPATH": str(ROOT), "KCPTUN_KEY": "k"}
    with Target(echo_handler) as target, ExitStack() as stack:
        arguments = ["-l", "127.0.0.1:0", "-t", target.address, *shards]
        server = Program("server", [*command, "server", *arguments], env=environment)
        stack.callback(server.stop)
        server.wait_for_log("memory:")
        arguments = ["-l", "127.0.0.1:0", "-r", f"127.0.0.1:{server.udp_port()}", *shards]
        client = Program("client", [*command, "client", *arguments], env=environment)
        stack.callback(client.stop)
        client.wait_for_log("memory:")
        with connect(client.wait_for_log(r"listening on: (\S+)").group(1)) as sock:
            exchanged = b"x" * 100_000
            sock.sendall(exchanged)
            assert receive_exactly(sock, len(exchanged)) == exchanged
        for program in (client, server):
            program.counters()
            ready = next(number for number, line in enumerate(program.log) if "memory:" in line)
            loads = re.compile(r"import time:[^|]*\|[^|]*\| *(\S+)")
            early, late = (
                {match[1] for line in lines if (match := loads.match(line))}
                for lines in (program.log[:ready], program.log[ready:])
            )
            assert "cramjam" in early and ("numpy._core" in early) == bool(shards)
            assert not late - set(sys.builtin_module_names)  # which no file is read for


TELLING = 20  # answers of a kcptun, after which its shards are known


def test_numpy_is_loaded_when_parity_goes_to_a_kcptun() -> None:
    require("kcptun-server")
    with Target(echo_handler) as target, Tunnel("ours", "go", target.address) as tunnel:
        client = tunnel.client
        assert "numpy" not in Path(f"/proc/{client.pid}/maps").read_text()
        with connect(tunnel.address) as sock:
            for _ in range(TELLING):
                ask(sock)
            wait_until(lambda: "numpy" in Path(f"/proc/{client.pid}/maps").read_text(), "numpy is loaded")
            ask(sock)


def test_numpy_that_cannot_be_loaded_costs_only_speed() -> None:
    require("kcptun-server")
    with Target(echo_handler) as target, Tunnel("ours", "go", target.address) as tunnel:
        client = tunnel.client
        with connect(tunnel.address) as sock:
            wait_until(lambda: any("stream opened" in line for line in client.log), "the stream has its descriptors")
            limits = resource.prlimit(client.pid, resource.RLIMIT_NOFILE)
            resource.prlimit(client.pid, resource.RLIMIT_NOFILE, (client.descriptor_count(), limits[1]))
            for _ in range(TELLING):
                ask(sock)
                client.counters()  # and each of these is a turn of the main thread, with all its chores
            assert "numpy" not in Path(f"/proc/{client.pid}/maps").read_text()
            resource.prlimit(client.pid, resource.RLIMIT_NOFILE, limits)
        with connect(tunnel.address) as sock:
            ask(sock)


@pytest.mark.parametrize("end", ["client", "server"])
def test_a_log_that_nobody_reads_holds_nothing_up(end: str) -> None:
    """A pipe of 4 KiB takes thirty lines."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    with Target(echo_handler) as target, ExitStack() as stack:
        stack.callback(os.close, reader)
        with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            local, remote = (f"127.0.0.1:{sock.getsockname()[1]}" for sock in (tcp, udp))
        arguments = {
            "client": ["client", "-l", local, "-r", remote],
            "server": ["server", "-l", remote, "-t", target.address],
        }
        command = [sys.executable, "-m", "kcptun_lite"]
        other = Program(
            "other", command + arguments["server" if end == "client" else "client"], env={"PYTHONPATH": str(ROOT)}
        )
        stack.callback(other.stop)
        other.wait_for_log("memory:")
        mute = subprocess.Popen(command + arguments[end], stdout=writer, stderr=writer, cwd=ROOT)
        stack.callback(mute.wait)
        stack.callback(mute.kill)
        os.close(writer)
        wait_until(lambda: can_connect(local), "both listen")
        for _ in range(50):
            with connect(local) as sock:
                ask(sock)
        mute.terminate()
        assert mute.wait(10) == 0


def test_a_program_takes_as_many_descriptors_as_it_may() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    try:
        with Target(echo_handler) as target, Tunnel("ours", "ours", target.address, FAST) as tunnel:
            for program in (tunnel.client, tunnel.server):
                assert resource.prlimit(program.pid, resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_server_that_connects_to_a_silent_target_stops_at_once_all_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=0) as target, ExitStack() as stack:
        where = f"127.0.0.1:{target.getsockname()[1]}"
        for _ in range(2):  # then its queue is full, and the kernel answers nobody
            stack.enter_context(sock := socket.socket()).setblocking(False)
            sock.connect_ex(target.getsockname())
        with Tunnel("ours", "ours", where, FAST) as tunnel:
            stack.enter_context(connect(tunnel.address))
            tunnel.server.wait_for_log("stream opened")
            assert tunnel.server.stop(timeout=3.0) == 0


def test_an_expired_session_is_closed_with_its_last_stream() -> None:
    options = {"autoexpire": 1}
    with (
        Target(echo_handler) as target,
        Tunnel("ours", "ours", target.address, FAST, client_options=options) as tunnel,
    ):
        with connect(tunnel.address) as old:
            ask(old)
            start = monotonic()
            wait_until(lambda: monotonic() - start > 1.1, "its time is over")
            with connect(tunnel.address) as new:
                ask(new)
                ask(old)
                assert sessions(tunnel.client) == 2
        wait_until(lambda: sessions(tunnel.client) == 0, "both are closed")
        with connect(tunnel.address) as sock:
            ask(sock)


def test_an_expired_session_is_cut_when_the_scavenger_comes() -> None:
    options = {"autoexpire": 1, "scavengettl": 1}
    with (
        Target(echo_handler) as target,
        Tunnel("ours", "ours", target.address, FAST, client_options=options) as tunnel,
        connect(tunnel.address) as sock,
    ):
        ask(sock)
        with pytest.raises(ConnectionResetError):
            sock.recv(1)
        with connect(tunnel.address) as sock:
            ask(sock)
