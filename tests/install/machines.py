"""A Debian of its own that systemd boots in a container; and what the tests of packages need.

In      nothing but the network
Out     a machine whose shell runs commands
Knows   debootstrap, systemd-nspawn, namespaces. Not: what is installed on it
"""

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.programs import ROOT, missing_programs, wait_until

BUILD = ROOT / "build/install"
"where the base system and images are kept"
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


def bare_debian() -> Path:
    """The root of a Debian 12 with systemd, and nothing else that one can do without. Made once."""
    require_root()
    require("debootstrap")
    found = BUILD / "bookworm"
    if not found.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=BUILD))
        unfinished.chmod(0o755)
        options = ["--variant=minbase", "--include=systemd,systemd-sysv"]
        run(["debootstrap", *options, "bookworm", str(unfinished)], timeout=280)
        unfinished.rename(found)
    return found


def network_files() -> dict[Path, str]:
    """How apt and pip reach the network here -> where that is on a Debian that gets certificates of its own later."""
    files = {
        "/etc/resolv.conf": "/etc/resolv.conf",
        "/etc/pip.conf": "/etc/pip.conf",
        "/etc/ssl/certs/ca-certificates.crt": "/usr/local/share/ca-certificates/here.crt",
    }
    return {Path(here): there for here, there in files.items() if Path(here).exists()}


class Machine:
    """A bare Debian that systemd has booted, in this machine's network; what changes on it is forgotten at the end."""

    def __init__(self) -> None:
        require("systemd-nspawn", "nsenter")
        root = bare_debian()
        options = ["--quiet", "--boot", "--volatile=overlay", "--register=no", "--keep-unit"]
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
        for here, there in network_files().items():
            self.run(f"mkdir -p {Path(there).parent}; rm -f {there}")
            self.put(there, here.read_bytes(), 0o644)
        self.run("apt-get update", timeout=120)
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
        target = self.path(path)
        target.write_bytes(content if isinstance(content, bytes) else content.encode())
        target.chmod(mode)

    def serve(self, text: str, port: int) -> None:
        """A web server on a port of 127.0.0.1, whose first page is the text: where a tunnel may lead."""
        self.run(f"mkdir -p /srv/www && echo '{text}' >/srv/www/index.html")
        self.run(f"systemd-run --quiet --unit=www python3 -m http.server -b 127.0.0.1 -d /srv/www {port}")
        look = f"python3 -c \"__import__('socket').create_connection(('127.0.0.1', {port})); print('there')\""
        wait_until(lambda: self.run(look, check=False) == "there\n", "the web server listens")

    def path(self, path: str) -> Path:
        """A path of the machine, as this one sees it."""
        return Path(f"/proc/{self._init()}/root{path}")

    def shows(self, unit: str, name: str) -> str:
        """A property of a unit, as systemd knows it."""
        return self.run(f"systemctl show --property={name} --value {unit}").strip()

    def _init(self) -> str:
        """The process that is its first one; empty: not yet."""
        assert self._process.poll() is None, "systemd-nspawn has ended"
        pid = self._process.pid
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().partition(" ")[0]
