"""A router of OpenWrt's own procd, ubus, uci and logd, in namespaces of its own.

In      the parts and the script that starts a router of them: OPENWRT and OPENWRT_PARTS in the environment (Makefile)
Out     commands run on it; what procd, the log and the routing tables say then
Knows   namespaces, ubus. Not: what the service should do
"""

import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType
from typing import Any, Self

from tests.networks import Host

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "openwrt/kcptun-lite/files"
SERVICE = "/etc/init.d/kcptun-lite"
STATUS = "/var/run/kcptun-lite"

# Run last on the router: the real log in place of the script's file of lines, then nothing for ever.
_SCRIPT = """
rm /usr/bin/logger
printf '#!/bin/sh\\nexec busybox logger "$@"\\n' >/usr/bin/logger
chmod 755 /usr/bin/logger
cp {parts}/sbin/logd {parts}/sbin/logread /usr/sbin/
(logd -S 256 >/tmp/logd.log 2>&1 &)
for _ in $(seq 200); do [ -S /dev/log ] || sleep 0.05; done
[ ! -S /dev/log ] || echo ready
while :; do sleep 1000; done
"""
_ENVIRONMENT = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """The condition's first value that is true."""
    deadline = monotonic() + seconds
    while not (value := condition()):
        assert monotonic() < deadline, f"no {what} within {seconds} s"
        sleep(0.05)
    return value


class Router(Host):
    """OpenWrt's service parts with our files installed. `run` is its shell."""

    def __init__(self) -> None:
        starter, parts = Path(os.environ["OPENWRT"]) / "run.sh", Path(os.environ["OPENWRT_PARTS"]).resolve()
        with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
            script.write(_SCRIPT.format(parts=parts))
            script.flush()
            self._process = subprocess.Popen(
                [str(starter), str(parts), script.name], cwd=ROOT, stdout=subprocess.PIPE, text=True
            )
            assert self._process.stdout
            assert self._process.stdout.readline() == "ready\n"
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        self.pid = int(children[0])
        self._mark = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()  # unshare, which takes its child and so all processes with it
        self._process.communicate()

    def path(self, path: str) -> Path:
        """A file of the router as we can open it; no link may be in the path."""
        return Path(f"/proc/{self.pid}/root{path}")

    def run(self, script: str, *, code: int | None = 0, errors: str = "") -> str:
        """Output of a shell script. It must end with this exit code (None: any) and write these errors."""
        done = subprocess.run(
            ["nsenter", "-t", str(self.pid), "-m", "-n", "-p", "-r", "-w", *_ENVIRONMENT, "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert code is None or done.returncode == code, (script, done)
        assert done.stderr == errors, (script, done)
        return done.stdout

    def service(self, *words: str, code: int | None = 0) -> str:
        """`service kcptun-lite ...` with ash, as a shell or procd runs it."""
        return self.run(f"{SERVICE} {' '.join(words)}", code=code)

    def configure(self, text: str, package: str = "kcptun-lite") -> None:
        self.path(f"/etc/config/{package}").write_text(text)

    def reset(self) -> None:
        """No instances, no configuration, an empty log."""
        if self.procd():
            self.service("stop")
            wait_for(lambda: not self.procd(), "end of all instances")
        self.run("rm -rf /etc/config/* /tmp/.uci/*")
        self.configure("")
        self._mark += 1
        self.run(f"logger -t test reset {self._mark}")
        wait_for(self._marked, "log")

    def procd(self) -> dict[str, Any]:
        """procd's view of the service."""
        answer = self.run('ubus call service list \'{"name": "kcptun-lite", "verbose": true}\'')
        return dict(json.loads(answer).get("kcptun-lite", {}))

    def instances(self) -> dict[str, dict[str, Any]]:
        return dict(self.procd().get("instances", {}))

    def pids(self) -> dict[str, int]:
        """Those that run."""
        return {name: found["pid"] for name, found in self.instances().items() if found["running"]}

    def event(self, kind: str, **data: str) -> None:
        """What netifd and reload_config tell procd."""
        self.run(f"ubus call service event '{json.dumps({'type': kind, 'data': data})}'")

    def log(self) -> list[str]:
        """Lines since the last reset: `daemon.err program[1]: text`."""
        return [line[25:] for line in self._marked()[1:]]

    def _marked(self) -> list[str]:
        """The log from the last mark on."""
        lines = self.run("logread").splitlines()
        return lines[next((at for at, line in enumerate(lines) if f"test: reset {self._mark}" in line), len(lines)) :]

    def wait_for_log(self, text: str) -> str:
        """The first line that has the text."""
        return str(wait_for(lambda: next((line for line in self.log() if text in line), ""), f"{text!r} in the log"))

    def status(self, section: str) -> dict[str, Any]:
        """The status file that the running tunnel has written."""
        pid = self.pids()[section]

        def read() -> dict[str, Any] | None:
            text = self.run(f"[ ! -e {STATUS}/{section}.json ] || cat {STATUS}/{section}.json")
            found: dict[str, Any] = json.loads(text or '{"pid": 0}')
            return found if found["pid"] == pid else None

        return dict(wait_for(read, f"status of {section}"))
