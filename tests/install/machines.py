"""A Debian of its own that systemd boots in a container, without a network; and what the tests of packages need.

In      names of Debian packages
Out     a machine whose shell runs commands
Knows   debootstrap, systemd-nspawn, namespaces. Not: what is installed on it
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.programs import ROOT, missing_programs, wait_until

BASES = ROOT / "build/install"
"where base systems are kept; made once"
BOOT_TIMEOUT = 90.0  # s
ENVIRONMENT = ["env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]


def require(*names: str) -> None:
    """Fail the test if an executable is missing; on a machine of no CI, skip it and say what to install."""
    if missing := missing_programs(*names):
        text = f"not on the PATH: {', '.join(missing)} (CONTRIBUTING.md, `make test-install`, says what it needs)"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def require_root() -> None:
    """As `require`, for what only root may do."""
    if os.geteuid():
        if os.environ.get("CI"):
            pytest.fail("needs root")
        pytest.skip("needs root")


def run(command: Sequence[str], *, timeout: float = 240, check: bool = True, **environment: str) -> str:
    """What a command prints. Raises: AssertionError with its end if it fails."""
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
        env={**os.environ, **environment},
    )
    assert not check or done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout[-3000:]}"
    return done.stdout


def base(name: str, packages: Sequence[str] = ()) -> Path:
    """The root of Debian 12 with some packages more than the least it can have."""
    require_root()
    require("debootstrap")
    found = BASES / name
    if not found.exists():
        BASES.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=BASES))
        unfinished.chmod(0o755)
        include = [f"--include={','.join(packages)}"] if packages else []
        cache = BASES / "cache"
        cache.mkdir(exist_ok=True)
        options = ["--variant=minbase", f"--cache-dir={cache.resolve()}", *include]
        run(["debootstrap", *options, "bookworm", str(unfinished)], timeout=280)
        shutil.rmtree(unfinished / "var/cache/apt/archives", ignore_errors=True)
        unfinished.rename(found)
    return found


class Machine:
    """A base that systemd has booted; what changes on it is forgotten at the end."""

    def __init__(self, root: Path) -> None:
        require("systemd-nspawn", "nsenter")
        options = ["--quiet", "--boot", "--volatile=overlay", "--private-network", "--register=no", "--keep-unit"]
        self._console = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            ["systemd-nspawn", *options, f"--directory={root}", f"--machine=kcptun-lite-{os.getpid()}"],
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
        )

    def __enter__(self) -> Self:
        wait_until(
            lambda: bool(self._init()) and self.run("systemctl is-system-running", check=False) == "running\n",
            "a boot",
            BOOT_TIMEOUT,
        )
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if exc is not None:
            exc.add_note(self.run("journalctl --no-pager -o short | tail -60", check=False))
        self._process.terminate()  # systemd-nspawn takes the machine with it
        self._process.wait(30)
        self._console.close()

    def run(self, script: str, *, check: bool = True, timeout: float = 60) -> str:
        """What a shell of the machine prints. Raises: AssertionError if it fails."""
        inside = ["nsenter", "--target", self._init(), "--mount", "--uts", "--ipc", "--pid", "--net", "--cgroup"]
        return run([*inside, *ENVIRONMENT, "sh", "-c", script], check=check, timeout=timeout)

    def put(self, path: str, content: str | bytes, mode: int = 0o600) -> None:
        target = Path(f"/proc/{self._init()}/root{path}")
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)

    def shows(self, unit: str, name: str) -> str:
        """A property of a unit, as systemd knows it."""
        return self.run(f"systemctl show --property={name} --value {unit}").strip()

    def _init(self) -> str:
        """The process that is its first one; empty: not yet."""
        assert self._process.poll() is None, "systemd-nspawn has ended"
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().partition(" ")[0]
