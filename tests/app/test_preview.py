"""--test-config, --print-config and --genkey: what would run, and nothing runs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.configs import NEEDED, complaint, read
from tests.app.test_cli import run

ROOT = Path(__file__).parent.parent.parent


def rows(output: str) -> dict[str, list[str]]:
    """Option -> value and source, from the table of --test-config."""
    lines = (line.split(maxsplit=1) for line in output.splitlines()[1:])
    return {name: [part.strip() for part in rest.split("  ") if part.strip()] for name, rest in lines}


def test_each_value_is_told_with_its_source(tmp_path: Path) -> None:
    path = tmp_path / "home.json"
    path.write_text('{\n  "key": "very secret",\n  "mtu": 1000\n}')
    arguments = ["client", "--test-config", "-c", str(path), "--crypt", "none"]
    done = run(["-m", "kcptun_lite", *arguments], KCPTUN_CONN="2", GOGC="50")
    assert (done.returncode, done.stderr) == (0, "")
    found = rows(done.stdout)
    assert found["remoteaddr"] == ["server:29900", "KCPTUN_REMOTEADDR"]
    assert found["key"] == ["(11 characters)", f"{path}: line 2, column 3: 'key'"]
    assert found["mtu"] == ["1000", f"{path}: line 3, column 3: 'mtu'"]
    assert found["crypt"] == ["none", "--crypt"]
    assert found["conn"] == ["2", "KCPTUN_CONN"]
    assert found["gogc"] == ["50", "GOGC"]
    assert found["interval"] == ["30", "mode fast"]
    assert found["sockbuf"] == ["4194304", "default"]
    assert "secret" not in done.stdout


def test_what_a_start_would_find_is_found_and_no_file_is_made(tmp_path: Path) -> None:
    log, status = tmp_path / "log", tmp_path / "status"
    command = ["-m", "kcptun_lite", "server", "--test-config", "--key", "k"]
    assert run([*command, "--log", str(log), "--status", str(status)]).returncode == 0
    assert not list(tmp_path.iterdir())
    for arguments, option in (
        (["--log", "/none/log"], "--log"),
        (["--status", "/none/status"], "--status"),
        (["--snmplog", "/none/snmp"], "--snmplog"),
        (["--memlimit", "1M"], "--memlimit"),
        (["--mtu", "20"], "--mtu"),
    ):
        done = run([*command, *arguments])
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"kcptun-lite-server: {option}") and done.stderr.count("\n") == 1


def test_warnings_are_told_and_are_no_failure() -> None:
    done = run(["-m", "kcptun_lite", "server", "--test-config", "--pprof"])
    assert done.returncode == 0
    assert "warning: --pprof does nothing in kcptun_lite\n" in done.stderr and "kcptun's default" in done.stderr
    assert rows(done.stdout)["key"] == ["kcptun's default", "default"]


def test_the_printed_file_brings_the_same_configuration_back(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--mtu", "0x500", "--nocomp", "--ds", "auto", "--scavengettl", "-1", "--QPP=false", "--log", "/tmp/é"]
    environment = {**NEEDED, "KCPTUN_MEMLIMIT": "24M", "GOGC": "off", "KCPTUN_KEY": 'a"b\\c'}
    with pytest.raises(SystemExit) as ended:
        read("client", ["--print-config", *arguments], environment)
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert json.loads(printed)["mtu"] == 1280 and json.loads(printed)["qpp"] is False
    assert "crypt" not in json.loads(printed), "defaults stay defaults"
    assert read("client", ["-c", "file"], {}, printed) == read("client", arguments, environment)


def test_what_json_cannot_carry_is_refused() -> None:
    sentence = complaint("--print-config", "--log", os.fsdecode(b"/tmp/\xff"))
    assert sentence.startswith("--log: ") and "UTF-8" in sentence
    sentence = complaint("--print-config", "--key", os.fsdecode(b"secret\xff"))
    assert sentence.startswith("--key: ") and "UTF-8" in sentence and "secret" not in sentence


def test_the_printed_file_can_be_read_back_whatever_the_encoding_of_stdout() -> None:
    for encoding in ("ascii", "latin-1"):
        done = run(["-m", "kcptun_lite", "client", "--print-config", "--key", "clé"], PYTHONIOENCODING=encoding)
        assert done.returncode == 0, done.stderr
        assert read("client", ["-c", "file"], file=done.stdout)[0].key == "clé"


def test_keys_are_new_each_time_and_fit_everywhere() -> None:
    keys = {run(["-m", "kcptun_lite", "client", "--genkey"]).stdout for _ in range(2)}
    assert len(keys) == 2
    assert all(len(key) == 33 and key[:-1].isalnum() and key[-1] == "\n" for key in keys)


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("--test-confg", "--test-confg is not an option (did you mean test-config?)"),
        ("--genkey=1", "--genkey=1: --genkey takes no value"),
        ("genkey", "genkey lacks its dashes: write --genkey"),
    ],
)
def test_slips_are_told(word: str, sentence: str) -> None:
    assert complaint(word) == sentence


def test_the_worker_never_loads_what_previews_need() -> None:
    code = (
        "import sys, kcptun_lite.app.parsing; print('kcptun_lite.app.preview' in sys.modules, 'secrets' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.stdout == "False False\n"
