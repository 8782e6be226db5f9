"""A plug-in of the real shadowsocks, at both its ends, and at one of them with kcptun at the other."""

import signal
import socket
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.install.machines import require
from tests.programs import Program, free_address, start_kcptun, wait_until
from tests.traffic import Target, exchange, exchange_handler

SECRET = "secret"  # of shadowsocks
OPTIONS = r"key=a\;b\=c;crypt=aes-128;mode=fast2"  # of the tunnel: a key with the marks of the format in it
KCPTUN = {"key": "a;b=c", "crypt": "aes-128", "mode": "fast2"}


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Role -> a program of this checkout, as shadowsocks wants it: one word without arguments."""
    require("ss-local", "ss-server", "kcptun-server")
    found = {}
    for role in ("client", "server"):
        path = tmp_path_factory.mktemp("bin") / f"kcptun-lite-{role}"
        path.write_text(f"#!/bin/sh\nexec {sys.executable} -m kcptun_lite {role}\n")
        path.chmod(0o755)
        found[role] = str(path)
    return found


def shadowsocks(role: str, address: str, listening: str, plugin: str = "") -> Program:
    """ss-server (address: where it listens) or ss-local (address: the server)."""
    host, _, port = address.rpartition(":")
    command = [f"ss-{role}", "-s", host, "-p", port, "-k", SECRET, "-m", "aes-256-gcm", "-v"]
    if listening:
        command += ["-b", "127.0.0.1", "-l", listening.rpartition(":")[2]]
    if plugin:
        command += ["--plugin", plugin, "--plugin-opts", OPTIONS]
    return Program(f"ss-{role}", command)


@contextmanager
def running(program: Program, *ready: str) -> Iterator[Program]:
    try:
        for pattern in ready:
            program.wait_for_log(pattern)
        yield program
    finally:
        program.stop()


def connect_through(socks: str, target: str) -> socket.socket:
    """A connection to the target, by SOCKS5 (RFC 1928) without authentication."""
    proxy, port = socks.rpartition(":")[::2]
    with socket.socket() as probe:  # ss-local says that it listens before it does
        wait_until(lambda: not probe.connect_ex((proxy, int(port))), "ss-local listens")
    sock = socket.create_connection((proxy, int(port)), 20)
    sock.sendall(b"\x05\x01\x00")
    assert sock.recv(2) == b"\x05\x00"
    host, _, port = target.rpartition(":")
    sock.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(host) + struct.pack(">H", int(port)))
    reply = sock.recv(10)
    assert reply[:2] == b"\x05\x00"
    return sock


@pytest.mark.parametrize("ends", [("ours", "ours"), ("ours", "go"), ("go", "ours")], ids="-".join)
def test_data_goes_through_both(ends: tuple[str, str], plugins: dict[str, str]) -> None:
    public = free_address("127.0.0.1:0", socket.SOCK_DGRAM)
    socks = free_address("127.0.0.1:0", socket.SOCK_STREAM)
    inner = free_address("127.0.0.1:0", socket.SOCK_STREAM)
    with ExitStack() as stack:
        target = stack.enter_context(Target(exchange_handler))
        if ends[1] == "ours":
            server = shadowsocks("server", public, "", plugins["server"])
            stack.enter_context(running(server, "listening on:", "tcp server listening"))
        else:
            stack.enter_context(running(shadowsocks("server", inner, ""), "tcp server listening"))
            go = start_kcptun("go", "server", {"listen": public, "target": inner, **KCPTUN})
            stack.enter_context(running(go, "listening on"))
        if ends[0] == "ours":
            stack.enter_context(running(shadowsocks("local", public, socks, plugins["client"]), "listening on:"))
        else:
            entry = free_address("127.0.0.1:0", socket.SOCK_STREAM)
            go = start_kcptun("go", "client", {"localaddr": entry, "remoteaddr": public, **KCPTUN})
            stack.enter_context(running(go, "listening on"))
            stack.enter_context(running(shadowsocks("local", entry, socks), "listening at"))
        exchange(connect_through(socks, target.address), up=1 << 20, down=1 << 20, seed=7)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_plug_in_outlives_its_shadowsocks(number: int, plugins: dict[str, str]) -> None:
    public = free_address("127.0.0.1:0", socket.SOCK_DGRAM)
    program = shadowsocks("server", public, "", plugins["server"])
    program.wait_for_log("listening on:")
    children = Path(f"/proc/{program.pid}/task/{program.pid}/children").read_text().split()
    assert children
    program.stop(number, timeout=20)  # and waits until nobody has its output open any more
    wait_until(lambda: not any(is_running(int(child)) for child in children), "the plug-in has ended")


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_mistake_in_the_options_is_told_in_the_log(plugins: dict[str, str]) -> None:
    public = free_address("127.0.0.1:0", socket.SOCK_DGRAM)
    host, _, port = public.rpartition(":")
    command = ["ss-server", "-s", host, "-p", port, "-k", SECRET, "-m", "aes-256-gcm"]
    program = Program("ss-server", [*command, "--plugin", plugins["server"], "--plugin-opts", "crypto=aes"])
    try:
        program.wait_for_log(r"SS_PLUGIN_OPTIONS: crypto is not an option \(did you mean crypt\?\)")
    finally:
        program.stop()
