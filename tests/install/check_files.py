"""What is installed beside the programs: completions in fish and zsh, man pages; the packages for pip and pipx."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.install.machines import require
from tests.programs import ROOT
from tools import write_cli_files


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["client", "server"])
def test_fish_and_zsh_and_man_can_read_them(program: str) -> None:
    require("fish", "zsh", "mandoc")
    name = f"kcptun-lite-{program}"
    completions = write_cli_files.PACKAGING / "completions"
    fish = f"source {completions / name}.fish; complete -C '{name} --mode fast'; complete -C '{name} --gen'"
    lines = run(str(shutil.which("fish")), "--no-config", "-c", fish).splitlines()
    assert {"fast", "fast2", "fast3"} <= {line.split("\t")[0] for line in lines}
    assert lines[-1].startswith("--genkey\t")
    run("zsh", "-n", str(completions / f"_{name}"))
    page = write_cli_files.PACKAGING / "man" / f"{name}.1"
    done = subprocess.run(["mandoc", "-T", "lint", "-W", "error", page], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout
    text = run("mandoc", "-T", "utf8", str(page))
    assert "Go's time layout in the name: ./snmp-20060102.log" in " ".join(text.split())


def test_wheel_and_sdist_are_fit_for_pypi(tmp_path: Path) -> None:
    run_quietly(sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT))
    wheel, sdist = sorted(tmp_path.iterdir(), key=lambda path: path.suffix, reverse=True)
    assert wheel.suffix == ".whl" and sdist.suffix == ".gz"
    assert run_quietly(sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)).count("PASSED") == 2


def test_pipx_puts_the_programs_on_the_path(tmp_path: Path) -> None:
    """From a checkout, as the README has it."""
    require("pipx")
    places = {"PIPX_HOME": str(tmp_path / "home"), "PIPX_BIN_DIR": str(tmp_path / "bin")}
    run_quietly("pipx", "install", str(ROOT), **places)
    for program in ("client", "server"):
        assert run_quietly(f"{tmp_path}/bin/kcptun-lite-{program}", "--version").startswith("kcptun_lite version ")
    (environment,) = (tmp_path / "home" / "venvs").iterdir()
    assert (environment / "lib/systemd/system/kcptun-lite-server@.service").is_file()
    assert (environment / "share/man/man1/kcptun-lite-client.1").is_file()


def run_quietly(*command: str, **environment: str) -> str:
    """What a command that builds something prints. Raises: AssertionError with its end if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout
