"""The programs as they are started: what a shell sees, and what crosses into the worker."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from kcptun_lite import __version__
from kcptun_lite.app import signals
from tests.programs import Program, wait_until

ROOT = Path(__file__).parent.parent.parent

# Stands in for the worker: tells what reached it, instead of carrying a tunnel.
SPY = """
import json, os, sys
import kcptun_lite.app.cli as cli
cli.BOOTSTRAP = cli.BOOTSTRAP.replace(
    "from kcptun_lite.app.{module} import main; os._exit(main(*job))",
    "import kcptun_lite.app.worker, json; print(json.dumps(dict(job=job, pid=os.getpid(), argv=sys.orig_argv, "
    "environ=dict(os.environ), path=sys.path, flags=repr(sys.flags), x=list(sys._xoptions), modules=list(sys.modules), "
    "files=sorted(map(int, os.listdir('/proc/self/fd'))), "
    "blocked=list(map(int, __import__('signal').pthread_sigmask(0, ()))))))",
)
print(json.dumps(dict(pid=os.getpid(), path=sys.path)), flush=True)
cli.main("client", sys.argv[1:])
"""


def run(arguments: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PATH": os.defpath, "KCPTUN_REMOTEADDR": "server:29900", **environment},
        timeout=60,
    )


def spy(*arguments: str, python: Sequence[str] = (), **environment: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the started process and the worker tell about themselves."""
    done = run([*python, "-c", SPY, *arguments], **environment)
    assert done.returncode == 0, done.stderr
    started, worker = map(json.loads, done.stdout.splitlines())
    return started, worker


# What a shell sees


@pytest.mark.parametrize("flag", ["-v", "--version", "-version"])
def test_version(flag: str) -> None:
    done = run(["-m", "kcptun_lite", "client", flag])
    assert (done.returncode, done.stdout) == (0, f"kcptun_lite version {__version__}\n")


@pytest.mark.parametrize("program", ["client", "server"])
def test_help_fits_a_terminal_and_is_grouped(program: str) -> None:
    done = run(["-m", "kcptun_lite", program, "-h"], COLUMNS="100")
    everything = run(["-m", "kcptun_lite", program, "--help-all"], COLUMNS="100")
    assert done.returncode == everything.returncode == 0 and not done.stderr + everything.stderr
    groups = re.findall(r"^(.*) options:$", everything.stdout, re.MULTILINE)
    assert groups == ["basic", "tuning", "streams and memory", "log and statistics", "expert"]
    assert re.findall(r"^(.*) options:$", done.stdout, re.MULTILINE) == ["basic"]
    assert "--parityshard N" in everything.stdout and "[default 1350, KCPTUN_MTU]" in everything.stdout
    assert "--mtu" not in done.stdout and "--help-all" in done.stdout
    for output in (done.stdout, everything.stdout):
        assert max(map(len, output.splitlines())) <= 100


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["client", "--mtu", "20"], "kcptun-lite-client: --mtu: 20 is out of range; it must be 50 to 1500\n"),
        (["server", "-c", "/none"], "kcptun-lite-server: -c: /none cannot be read: No such file or directory\n"),
        (["server", "-c", "."], "kcptun-lite-server: -c: . cannot be read: Is a directory\n"),
        (["server", "-c", "/dev/zero"], "kcptun-lite-server: -c: /dev/zero cannot be read: it is larger than 1 MiB\n"),
        (["client", "--key", "x" * 70_000], "kcptun-lite-client: the options together are too long; shorten --key\n"),
        (["client", "a\nb"], "kcptun-lite-client: 'a\\\\nb' belongs to no option; options begin with a dash"),
        ([], "usage: python -m kcptun_lite client|server [options]\n"),
        (["proxy"], "usage: python -m kcptun_lite client|server [options]\n"),
    ],
)
def test_mistakes_end_with_one_line_and_exit_code_2(arguments: list[str], line: str) -> None:
    done = run(["-m", "kcptun_lite", *arguments])
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(line.replace("\\\\", "\\"))


def test_a_log_that_cannot_be_opened_ends_with_exit_code_2() -> None:
    done = run(["-m", "kcptun_lite", "client", "--log", "/none/log", "--key", "k"])
    assert done.returncode == 2
    assert done.stderr.endswith("error: --log: /none/log cannot be opened: No such file or directory\n")


# What crosses into the worker


def test_the_worker_is_the_same_process_with_the_whole_configuration() -> None:
    started, worker = spy("--key", "k", "--remoteaddr", "a:1-2,b:3", "--mtu=1000", "--pprof")
    assert worker["pid"] == started["pid"]
    program, plain, warnings = worker["job"]
    assert (program, plain["mtu"], plain["key"]) == ("client", 1000, "k")
    assert plain["remoteaddr"] == [["a", 1, 2, "", 0], ["b", 3, 3, "", 0]]
    assert warnings == ["--pprof does nothing in kcptun_lite"]


@pytest.mark.parametrize("arguments", [["--key", "very secret"], []])
def test_the_key_is_in_no_place_that_others_can_read(arguments: list[str]) -> None:
    _, worker = spy(*arguments, KCPTUN_KEY="very secret", KCPTUN_MTU="1000")
    assert worker["job"][1]["key"] == "very secret"
    assert not any("secret" in text for text in worker["argv"])
    assert "KCPTUN_KEY" not in worker["environ"] and worker["environ"]["KCPTUN_MTU"] == "1000"


def test_nor_is_the_key_that_shadowsocks_has_given() -> None:
    addresses = {"SS_REMOTE_HOST": "a", "SS_REMOTE_PORT": "1", "SS_LOCAL_HOST": "b", "SS_LOCAL_PORT": "2"}
    _, worker = spy(**addresses, SS_PLUGIN_OPTIONS="key=very secret")
    assert worker["job"][1]["key"] == "very secret"
    assert not any("secret" in text for text in [*worker["argv"], *worker["environ"].values()])


@pytest.mark.parametrize(("name", "title"), [("", "kcptun-lite-client"), ("home", "kcptun-lite-client home")])
def test_ps_shows_the_program_and_the_tunnels_name(name: str, title: str) -> None:
    _, worker = spy("--key", "k", KCPTUN_NAME=name)
    assert os.path.basename(worker["argv"][0]) == title


def test_the_worker_carries_no_parser_and_no_open_pipe() -> None:
    _, worker = spy("--key", "k")
    heavy = {"argparse", "configargparse", "json", "logging", "numpy", "site", "subprocess", "hashlib", "ssl"}
    ours = set(worker["modules"]) - {"json"}  # the spy's own
    assert not ours & heavy
    assert "kcptun_lite.app.options" not in ours
    assert worker["files"][:3] == [0, 1, 2] and len(worker["files"]) == 4  # the fourth is listdir's


def test_the_worker_imports_from_where_the_program_did(tmp_path: Path) -> None:
    started, worker = spy("--key", "k", PYTHONPATH=str(tmp_path))
    assert str(tmp_path) in worker["path"]
    assert worker["path"] == [os.path.abspath(os.path.join(ROOT, entry)) for entry in started["path"]]


def test_options_of_the_interpreter_hold_for_the_worker(tmp_path: Path) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r})"
    done = run(["-I", "-B", "-X", "utf8=1", "-Xfaulthandler", "-W", "ignore", "-c", code + SPY, "--key", "k"])
    assert done.returncode == 0, done.stderr
    worker = json.loads(done.stdout.splitlines()[1])
    for flag in (
        "isolated=1",
        "dont_write_bytecode=1",
        "ignore_environment=1",
        "no_site=1",
        "safe_path=True",
        "utf8_mode=1",
    ):
        assert flag in worker["flags"]
    assert worker["x"] == ["utf8", "faulthandler"]


def test_closed_standard_files_are_filled_in() -> None:
    script = f"exec {sys.executable} -m kcptun_lite client --mtu 20 <&- >&- 2>&-"
    assert subprocess.run(["sh", "-c", script], cwd=ROOT, timeout=60).returncode == 2
    done = subprocess.run(
        ["sh", "-c", f'exec {sys.executable} -c "$CODE" --key k -r a:1 <&- 2>&-'],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={"PATH": os.defpath, "CODE": SPY},
        timeout=60,
    )
    worker = json.loads(done.stdout.splitlines()[1])
    assert worker["files"][:3] == [0, 1, 2]


# Signals


def test_no_signal_comes_while_the_interpreter_starts_again() -> None:
    """One to stop would end in a traceback there; they wait until the worker wants them."""
    _, worker = spy("--key", "k")
    assert set(worker["blocked"]) == {
        signal.SIGHUP,
        signal.SIGQUIT,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGTERM,
        signal.SIGINT,
    }


def test_signals_to_stop_end_a_worker_that_waits_for_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = ["client", "-r", "127.0.0.1:1", "-l", f"127.0.0.1:{taken.getsockname()[1]}"]
        program = Program("client", [sys.executable, "-m", "kcptun_lite", *arguments], env={"KCPTUN_KEY": "k"})
        program.wait_for_log("trying for 5 s")
        assert program.stop() == -signal.SIGTERM


def test_blocked_signals_wait_to_be_asked_for() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        signals.block()
        assert signals.wait(0.0) is None
        thread = threading.Thread(target=os.kill, args=(os.getpid(), signal.SIGUSR1))
        thread.start()
        assert signals.wait(30.0) == signals.REPORT
        thread.join()
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.wait(30.0) in signals.STOP
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@pytest.fixture
def starting(tmp_path: Path) -> Iterator[tuple[Program, Callable[[], None]]]:
    """A server in the middle of its start, reading its file; and how to let it go on."""
    fifo = tmp_path / "config.json"
    os.mkfifo(fifo)
    program = Program(
        "server", [sys.executable, "-m", "kcptun_lite", "server", "-c", str(fifo)], env={"KCPTUN_KEY": "k"}
    )
    with open(fifo, "w") as file:  # waits until the program has it open

        def go_on() -> None:
            file.write('{"listen": "127.0.0.1:0"}')
            file.close()

        try:
            yield program, go_on
        finally:
            program.stop(signal.SIGKILL)


def test_signals_to_go_on_are_kept_during_the_start(starting: tuple[Program, Callable[[], None]]) -> None:
    program, go_on = starting
    for number in (signal.SIGHUP, signal.SIGUSR1):
        os.kill(program.pid, number)
    go_on()
    program.wait_for_log("KCP SNMP")
    assert program.is_running()
    assert program.stop() == 0
    assert [line[20:] for line in program.log[-2:]] == ["stopping: SIGTERM", "stopped"]


def test_a_signal_that_an_init_script_has_ignored_is_heard_when_the_program_runs(tmp_path: Path) -> None:
    """What comes before Python has read its first line of ours cannot be kept otherwise."""
    path = tmp_path / "log"
    arguments = f"-m kcptun_lite server -l 127.0.0.1:0 --log {path}"
    script = f"trap '' HUP USR1; kill -HUP $$; exec {sys.executable} {arguments}"
    program = Program("server", ["sh", "-c", script], env={"KCPTUN_KEY": "k"})
    try:
        wait_until(lambda: path.exists() and "memory:" in path.read_text(), "it runs")
        path.rename(tmp_path / "log.1")
        os.kill(program.pid, signal.SIGHUP)
        wait_until(path.exists, "the log is opened anew")
        os.kill(program.pid, signal.SIGUSR1)
        wait_until(lambda: "KCP SNMP" in path.read_text(), "it writes there")
    finally:
        assert program.stop() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_to_stop_end_the_start_at_once(number: int, starting: tuple[Program, Callable[[], None]]) -> None:
    program, _ = starting
    assert program.stop(number) == -number
    assert not program.log
