"""A router made of a directory: our files where the packages put them, stand-ins for what OpenWrt brings.

In      a directory, UCI texts
Out     what procd would be told, log lines, the files afterwards
Knows   busybox ash, the stand-ins' protocol. Not: what the service should do
"""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = ROOT / "openwrt" / "kcptun-lite" / "files"
STANDIN = Path(__file__).resolve().parent / "standin"

_PATH_IN_SCRIPT = re.compile(r"(?<![\w./$}])/(?=(?:usr|var|etc|lib|sbin)/)")


@dataclass
class Service:
    """The message procd would get, and what was asked of it besides."""

    name: str = ""
    instances: dict[str, dict[str, Any]] = field(default_factory=dict)
    triggers: list[list[str]] = field(default_factory=list)
    validate: dict[str, dict[str, str]] = field(default_factory=dict)
    "section type -> option -> datatype"
    signals: list[list[str]] = field(default_factory=list)
    killed: bool = False


@dataclass
class Result:
    """One run of a script."""

    code: int
    output: str
    errors: str
    service: Service


class Router:
    """/etc, /usr, /var below `root`; `run` is the shell's /etc/init.d/kcptun-lite."""

    def __init__(self, root: Path, programs: tuple[str, ...] = ("client", "server")) -> None:
        self.root = root
        self.config = root / "etc/config"
        self.status = root / "var/run/kcptun-lite"
        self.log_file = root / "log"
        for directory in ("etc/config", "etc/init.d", "usr/bin", "bin", "lib", "var/run"):
            (root / directory).mkdir(parents=True, exist_ok=True)
        for tool in ("uci", "validate_data", "jsonfilter", "logger", "chown"):
            link = root / "bin" / tool
            if not link.exists():
                link.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S {STANDIN}/tools.py {tool} "$@"\n')
                link.chmod(0o755)
        for program in programs:
            launcher = root / f"usr/bin/kcptun-lite-{program}"
            if not launcher.exists():
                launcher.touch(mode=0o755)
        (root / "lib/functions.sh").write_text((STANDIN / "functions.sh").read_text())
        self._place("kcptun-lite.init", "etc/init.d/kcptun-lite")
        self._place("kcptun-lite.defaults", "etc/uci-defaults/80-kcptun-lite")

    def _place(self, name: str, where: str) -> None:
        """Copy a script with its absolute paths moved below our root."""
        path = self.root / where
        path.parent.mkdir(exist_ok=True)
        first, rest = (FILES / name).read_text().split("\n", 1)
        path.write_text(first + "\n" + _PATH_IN_SCRIPT.sub(f"{self.root}/", rest))

    def configure(self, text: str, package: str = "kcptun-lite") -> None:
        (self.config / package).write_text(text)

    def run(self, *arguments: str, procd_status: str = "running") -> Result:
        """The init script with these arguments, under busybox ash."""
        return self._ash(
            [str(STANDIN / "rc.common"), str(self.root / "etc/init.d/kcptun-lite"), *arguments], procd_status
        )

    def migrate(self) -> Result:
        return self._ash([str(self.root / "etc/uci-defaults/80-kcptun-lite")], "")

    def log(self) -> list[str]:
        """What logger was told, a line each."""
        lines = self.log_file.read_text().splitlines() if self.log_file.exists() else []
        return [line.removeprefix("logger ") for line in lines if line.startswith("logger ")]

    def _ash(self, words: list[str], procd_status: str) -> Result:
        record = self.root / "procd"
        record.write_bytes(b"")
        environment = {
            "PATH": f"{self.root}/bin:{os.environ['PATH']}",
            "STANDIN": str(STANDIN),
            "UCI_DIR": str(self.config),
            "PROCD_RECORD": str(record),
            "PROCD_STATUS": procd_status,
            "LOG": str(self.log_file),
        }
        done = subprocess.run(["busybox", "ash", *words], env=environment, capture_output=True, text=True, timeout=60)
        return Result(done.returncode, done.stdout, done.stderr, read_record(record.read_bytes()))


def read_record(data: bytes) -> Service:
    """What procd.sh would have made of the calls."""
    words = data.decode().split("\0")[:-1]
    calls = []
    while words:
        count = int(words[0])
        calls.append(words[1 : 1 + count])
        words = words[1 + count :]
    service = Service()
    instance: dict[str, Any] = {}
    section: dict[str, str] = {}
    for call, *rest in calls:
        match call:
            case "open_service":
                service.name = rest[0]
            case "open_instance":
                instance = service.instances[rest[0]] = {}
            case "set_param":
                instance[rest[0]] = _parameter(*rest)
            case "add_jail":
                instance["jail"] = {"name": rest[0], "flags": rest[1:], "mount": {}}
            case "add_jail_mount" | "add_jail_mount_rw":
                instance["jail"]["mount"] |= dict.fromkeys(rest, "1" if call.endswith("rw") else "0")
            case "add_reload_trigger":
                service.triggers += [["config.change", package, "reload"] for package in rest]
            case "add_interface_trigger":
                service.triggers.append(rest)
            case "send_signal":
                service.signals.append(rest)
            case "kill":
                service.killed = True
            case "json_add_string" if rest[0] == "type":
                section = service.validate[rest[1]] = {}
            case "json_add_string" if rest[0] != "package":
                section[rest[0]] = rest[1]
    return service


def _parameter(kind: str, *values: str) -> Any:
    if kind in ("env", "limits"):
        # procd.sh stops at the first empty word and takes a word without `=` for a name without a value.
        stop = values.index("") if "" in values else len(values)
        return {name: value for name, _, value in (word.partition("=") for word in values[:stop])}
    if kind in ("command", "respawn"):
        return list(values)
    return values[0]
