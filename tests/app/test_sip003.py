"""Settings from shadowsocks: addresses by role, options with their escapes, and what goes before what."""

import os
import signal
import subprocess
import sys

import pytest

from kcptun_lite.app.config import Endpoint
from tests.app.configs import complaint, read
from tests.programs import Program, wait_until

SHADOWSOCKS = {
    "SS_REMOTE_HOST": "192.0.2.1",
    "SS_REMOTE_PORT": "29900",
    "SS_LOCAL_HOST": "127.0.0.1",
    "SS_LOCAL_PORT": "1234",
    "SS_PLUGIN_OPTIONS": "key=k",
}


def environment(options: str = "key=k", **others: str) -> dict[str, str]:
    return {**SHADOWSOCKS, "SS_PLUGIN_OPTIONS": options, **others}


def test_addresses_by_role() -> None:
    config, warnings = read("client", [], SHADOWSOCKS)
    assert (config.localaddr, config.remoteaddr) == (
        Endpoint("127.0.0.1", 1234, 1234),
        (Endpoint("192.0.2.1", 29900, 29900),),
    )
    assert config.parent == os.getppid() and not warnings
    config, warnings = read("server", [], SHADOWSOCKS)
    assert (config.listen, config.target) == (Endpoint("192.0.2.1", 29900, 29900), Endpoint("127.0.0.1", 1234, 1234))
    assert not warnings


@pytest.mark.parametrize(
    ("host", "listening"),
    [
        ("::", "[::]:29900"),
        ("0.0.0.0", "0.0.0.0:29900"),
        ("::0|0.0.0.0", ":29900"),
        ("2001:db8::1", "[2001:db8::1]:29900"),
    ],
)
def test_a_server_listens_where_shadowsocks_says(host: str, listening: str) -> None:
    assert str(read("server", [], environment(SS_REMOTE_HOST=host))[0].listen) == listening


def test_several_servers_are_tried_by_a_client() -> None:
    config, _ = read("client", [], environment(SS_REMOTE_HOST="a|::1"))
    assert list(map(str, config.remoteaddr)) == ["a:29900", "[::1]:29900"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("key=k", "k"),
        ("key=a=b", "a=b"),
        (r"key=a\;b\=c\\d", r"a;b=c\d"),
        (r"key=\\\;x", r"\;x"),
        (r"mtu=1000;key=\;;", ";"),
        ("key=", ""),
    ],
)
def test_escapes(text: str, key: str) -> None:
    assert read("client", [], environment(text))[0].key == key


def test_options_go_before_the_environment_and_behind_the_command_line_and_the_file() -> None:
    config, warnings = read(
        "client",
        ["--mtu", "1100"],
        environment("key=k;crypt=none;mtu=1000;sockbuf=5;nocomp;c=file", KCPTUN_CRYPT="xor", KCPTUN_CONN="2"),
        '{"sockbuf": 6, "remoteaddr": "elsewhere:1"}',
    )
    assert (config.crypt, config.mtu, config.sockbuf, config.nocomp, config.conn) == ("none", 1100, 6, True, 2)
    assert str(config.remoteaddr[0]) == "192.0.2.1:29900"
    assert warnings == ["file: line 1, column 16: 'remoteaddr' gives way to the addresses of shadowsocks"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"SS_LOCAL_PORT": ""}, "SS_LOCAL_PORT is missing, which shadowsocks sets for a plug-in beside SS_REMOTE_HOST"),
        ({"SS_PLUGIN_OPTIONS": "kee=k"}, "SS_PLUGIN_OPTIONS: kee is not an option (did you mean key?)"),
        ({"SS_PLUGIN_OPTIONS": "listen=:1"}, "SS_PLUGIN_OPTIONS: listen is an option of the server, not of the client"),
        ({"SS_PLUGIN_OPTIONS": "help"}, "SS_PLUGIN_OPTIONS: help is for the command line alone; remove it"),
        ({"SS_PLUGIN_OPTIONS": "key"}, "SS_PLUGIN_OPTIONS: key needs a value: key=..."),
        ({"SS_PLUGIN_OPTIONS": "key=a\\"}, "SS_PLUGIN_OPTIONS: a \\ at the end of 'a\\\\'; write \\\\ for one"),
        ({"SS_PLUGIN_OPTIONS": "mtu=20"}, "SS_PLUGIN_OPTIONS: mtu: 20 is out of range; it must be 50 to 1500"),
        (
            {"SS_LOCAL_PORT": "99999"},
            "shadowsocks (SS_REMOTE_..., SS_LOCAL_...): '127.0.0.1:99999' has no usable port; "
            "ports are 0 to 65535, the lower one first",
        ),
    ],
)
def test_what_cannot_be_used(changes: dict[str, str], sentence: str) -> None:
    assert complaint(environment={**SHADOWSOCKS, **changes}) == sentence


def test_a_server_cannot_listen_on_a_few_addresses() -> None:
    sentence = complaint(program="server", environment=environment(SS_REMOTE_HOST="192.0.2.1|192.0.2.2"))
    assert "one, or on all" in sentence


def test_it_ends_with_the_program_that_has_started_it() -> None:
    """Killed, shadowsocks can stop nobody."""
    code = "import subprocess, sys; print(subprocess.Popen(sys.argv[1:]).pid, flush=True); sys.stdin.read()"
    command = [sys.executable, "-m", "kcptun_lite", "client"]
    parent = subprocess.Popen(
        [sys.executable, "-c", code, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **environment(SS_LOCAL_PORT="0")},
        text=True,
    )
    assert parent.stdin and parent.stdout
    try:
        plugin = int(parent.stdout.readline())
        while "memory:" not in parent.stdout.readline():
            pass
        parent.kill()
        lines = parent.stdout.read()  # to its end: nobody has it open any more
        assert "the program that has started this one is gone" in lines
        assert lines.endswith("stopped\n")
        wait_until(lambda: not is_running(plugin), "it has ended")
    finally:
        parent.kill()
        parent.wait()
        parent.stdin.close()
        parent.stdout.close()


def is_running(pid: int) -> bool:
    """Whether there is such a process that is more than a zombie."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_it_stays_while_the_program_that_has_started_it_does() -> None:
    program = Program("client", [sys.executable, "-m", "kcptun_lite", "client"], env=environment(SS_LOCAL_PORT="0"))
    try:
        program.wait_for_log("memory:")
        program.counters()  # a turn of its main thread later
        assert program.is_running()
    finally:
        assert program.stop(signal.SIGTERM) == 0
