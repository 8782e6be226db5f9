"""The check mode: one run for each step that can fail, against ours and against the real program."""

import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from kcptun_lite.app.check import STEP_OF_RULE
from kcptun_lite.app.diagnosis import RULES
from tests.programs import ROOT, Options, go_knows, kcptun_arguments, start_server
from tests.traffic import Target, echo_handler

NOWHERE = "127.0.0.1:1"


def check(options: Options) -> tuple[int, list[str]]:
    """Exit code and the lines of a check."""
    command = [sys.executable, "-m", "kcptun_lite", "client", "--check", *kcptun_arguments(options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    return done.returncode, done.stdout.splitlines()


def speak(sock: socket.socket) -> None:
    sock.sendall(b"220 ready\r\n")
    sock.recv(1)


def steps(lines: list[str]) -> list[str]:
    return [" ".join(line.split()[:2]) for line in lines[1:]]


@pytest.mark.parametrize("server", ["ours", "go"])
@pytest.mark.parametrize("smuxver", [1, 2])
def test_all_is_well(server: str, smuxver: int) -> None:
    at_once = {"closewait": 0} if server == "go" and go_knows("closewait") else {}
    with Target(speak if smuxver == 2 else echo_handler) as target:
        program, address = start_server(server, {"target": target.address, "smuxver": smuxver, **at_once})
        try:
            code, lines = check({"remoteaddr": address, "smuxver": smuxver, "crypt": "aes"})
            program.wait_for_log(r"stream closed in: \S+ out: \S+$")  # by an end of file, and not by a reset
        finally:
            program.stop()
    assert code == 0, lines
    assert steps(lines) == ["ok name", "ok answer", "ok key", "ok stream", "ok target", "ok line"]
    assert re.fullmatch(r"ok    line    round trips of \d+ to \d+ ms; \d+ of 40 packets were lost, .*", lines[-1])
    assert lines[-2].endswith("it speaks" if smuxver == 2 else "it has not hung up within 2 s")


FAILURES: list[tuple[str, Options, Options, int, int]] = [
    ("ours", {"remoteaddr": "nowhere.invalid:1"}, {}, 10, 0),
    ("ours", {"remoteaddr": NOWHERE}, {}, 11, 1),
    ("go", {"key": "another"}, {}, 12, 1),
    ("ours", {"crypt": "salsa20"}, {}, 13, 1),
    ("go", {"nocomp": True}, {}, 14, 3),
    ("go", {"smuxver": 2}, {}, 14, 3),
    ("ours", {"smuxver": 2}, {"strict": True}, 14, 3),
    ("go", {}, {"target": NOWHERE}, 15, 4),
    ("ours", {}, {"target": NOWHERE}, 15, 4),
]
"server, client's and server's options, exit code, number of steps that pass"


def test_each_step_has_its_exit_code() -> None:
    def fail(server: str, client_options: Options, server_options: Options, code: int, passed: int) -> None:
        program, address = start_server(server, {"target": target.address, **server_options})
        try:
            found, lines = check({"remoteaddr": address, **client_options})
        finally:
            program.stop()
        assert found == code, lines
        assert [step.split()[0] for step in steps(lines)] == ["ok"] * passed + ["FAIL"]
        assert ("of before 2021 and has no error correction" in lines[-1]) == (code == 12)

    with Target(echo_handler) as target, ThreadPoolExecutor(3) as pool:  # they mostly wait
        outcomes = [pool.submit(fail, *case) for case in FAILURES]
    failures = [(case, error) for case, out in zip(FAILURES, outcomes, strict=True) if (error := out.exception())]
    assert not failures


@pytest.mark.parametrize("crypt", ["aes", "null"])
@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (lambda packet: packet, 14, "what answers sends back what it is sent: it is no kcptun"),
        (
            lambda packet: os.urandom(len(packet)),
            13,
            "cannot be decrypted: --key or --crypt differ, or it is not kcptun",
        ),
    ],
    ids=["a reflector", "noise"],
)
def test_what_answers_is_no_kcptun(crypt: str, answer: Callable[[bytes], bytes], code: int, says: str) -> None:
    """A method without a check takes noise for packets, but not for packets of its conversation."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.1)
        done = threading.Event()

        def serve() -> None:
            while not done.is_set():
                with suppress(TimeoutError):
                    packet, source = server.recvfrom(65536)
                    server.sendto(answer(packet), source)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            found, lines = check({"remoteaddr": f"127.0.0.1:{server.getsockname()[1]}", "crypt": crypt})
        finally:
            done.set()
            thread.join()
    assert found == code, lines
    assert says in lines[-1]


def test_several_servers_are_all_checked() -> None:
    with Target(speak) as target:
        program, address = start_server("ours", {"target": target.address})
        try:
            code, lines = check({"remoteaddr": f"{NOWHERE},{address}"})
        finally:
            program.stop()
    assert code == 11
    assert lines[0] == f"checking {NOWHERE}" and f"checking {address}" in lines
    assert lines[-1].startswith("ok    line")


def test_every_rule_of_the_diagnosis_has_a_step() -> None:
    assert STEP_OF_RULE.keys() == {rule.name for rule in RULES}
