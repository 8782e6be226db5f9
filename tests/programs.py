"""The finished programs, run from outside: ours and the real kcptun.

In      which programs ("ours", "ours@DIR" from another checkout, "go", "newest"), kcptun options, a `Link` between them
Out     a running `Tunnel`: its address, each program's log, counters, CPU time and memory
Knows   processes, signals, /proc, TCP. Not: the wire
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic, sleep
from types import TracebackType

from tools.lossy_proxy import Link

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 20.0  # s until a program must have said that it is ready, on a busy machine
NEWEST = "NEWEST_KCPTUN"  # environment variable: the directory with the newest kcptun

Options = Mapping[str, object]
"kcptun options by long name; True is a bare flag, False leaves it out"


# -- processes ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Usage:
    """CPU seconds since the start (children excluded) and peak memory of a process."""

    user: float
    system: float
    peak_rss: int
    "bytes"


class Program:
    """A child process whose log (both outputs) is collected line by line."""

    def __init__(self, name: str, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> None:
        """Starts it. `env` is added to our environment. Raises OSError if it cannot be started."""
        self.name = name
        self.log: list[str] = []
        self._grown = threading.Condition()
        self._ended = False
        self._process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(env or {})},
            text=True,
            errors="replace",
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read_log, name=f"log-{name}", daemon=True)
        self._reader.start()

    def wait_for_log(self, pattern: str, *, since: int = 0, timeout: float = START_TIMEOUT) -> re.Match[str]:
        """The first match of `pattern` in log[since:]. Raises RuntimeError if it ends or does not come in time."""
        wanted = re.compile(pattern)
        deadline = monotonic() + timeout
        with self._grown:
            while True:
                for line in self.log[since:]:
                    if match := wanted.search(line):
                        return match
                since = len(self.log)
                if self._ended or not self._grown.wait(max(0.0, deadline - monotonic())):
                    raise RuntimeError(f"{self.name}: no {pattern!r} in its log:\n" + "\n".join(self.log[-30:]))

    def counters(self) -> dict[str, int]:
        """What it prints on SIGUSR1, under kcp-go's names (docs/protocol.md, "Log and signals")."""
        since = len(self.log)
        os.kill(self.pid, signal.SIGUSR1)
        line = self.wait_for_log(r"KCP SNMP:&\{(.*)\}", since=since).group(1)
        return {name: int(value) for name, _, value in (field.partition(":") for field in line.split())}

    def usage(self) -> Usage:
        """CPU time and peak memory so far."""
        stat = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        tick = os.sysconf("SC_CLK_TCK")
        return Usage(int(stat[11]) / tick, int(stat[12]) / tick, self._status("VmHWM") * 1024)

    def rss(self) -> int:
        """Resident memory now, in bytes; exact, which VmRSS is not for a process of many threads."""
        text = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Rss:\s+(\d+)", text, re.MULTILINE)[1]) * 1024  # type: ignore[index]

    def thread_count(self) -> int:
        return self._status("Threads")

    def descriptor_count(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def udp_port(self, timeout: float = START_TIMEOUT) -> int:
        """The port of the UDP socket it has bound, waiting until there is one."""
        deadline = monotonic() + timeout
        while monotonic() < deadline and self.is_running():
            mine = set()
            for descriptor in os.listdir(f"/proc/{self.pid}/fd"):
                with suppress(FileNotFoundError):  # closed since
                    mine.add(os.readlink(f"/proc/{self.pid}/fd/{descriptor}"))
            for table in ("udp", "udp6"):
                for line in Path(f"/proc/{self.pid}/net/{table}").read_text().splitlines()[1:]:
                    fields = line.split()
                    if f"socket:[{fields[9]}]" in mine:
                        return int(fields[1].rpartition(":")[2], 16)
            sleep(0.01)
        raise RuntimeError(f"{self.name}: no UDP socket; its log:\n" + "\n".join(self.log[-30:]))

    def is_running(self) -> bool:
        return self._process.poll() is None

    def stop(self, number: int = signal.SIGTERM, timeout: float = 10.0) -> int:
        """Send a signal and give the exit status. Raises subprocess.TimeoutExpired, after killing it, if it stays."""
        if self.is_running():
            self._process.send_signal(number)
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            self._reader.join()

    def _status(self, field: str) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]

    def _read_log(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._grown:
                self.log.append(line.rstrip())
                self._grown.notify_all()
        self._process.stdout.close()
        with self._grown:
            self._ended = True
            self._grown.notify_all()


def wait_until(condition: Callable[[], bool], what: str, timeout: float = START_TIMEOUT) -> None:
    """Ask every 10 ms until `condition` holds. Raises AssertionError, saying `what`, if it does not come in time."""
    deadline = monotonic() + timeout
    while not condition():
        assert monotonic() < deadline, f"not within {timeout} s: {what}"
        sleep(0.01)


def missing_programs(*names: str) -> list[str]:
    """Those of the named executables that are not on the PATH."""
    return [name for name in names if shutil.which(name) is None]


def go_knows(option: str) -> bool:
    """Whether the installed kcptun is of a generation that has the option."""
    done = subprocess.run(["kcptun-server", "--help"], capture_output=True, text=True, timeout=START_TIMEOUT)
    return f"--{option} " in done.stdout


def require(*names: str) -> None:
    """Fail the test if an executable is missing; on a machine of no CI, skip it and say what to install."""
    import pytest  # the demo and the benchmarks use this file without it

    if missing := missing_programs(*names):
        packages = "kcptun, iperf3, busybox, nftables, iptables, conntrack, nginx, libnginx-mod-stream, curl"
        text = f"not on the PATH: {', '.join(missing)} (Debian packages {packages})"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def require_newest() -> None:
    """As `require`, for the newest kcptun; the environment says where it is."""
    import pytest

    if not (Path(os.environ.get(NEWEST, "")) / "kcptun-server").is_file():
        text = (
            f"{NEWEST} names no directory with kcptun-client and kcptun-server of 20260314 or later (Debian unstable)"
        )
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)


def kcptun_arguments(options: Options) -> list[str]:
    """The command line of some options."""
    arguments = []
    for name, value in options.items():
        if value is not False:
            arguments += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return arguments


def start_kcptun(kind: str, role: str, options: Options) -> Program:
    """Start a "client" or "server" (role) of a kind; it may not be ready yet. Raises OSError without the program."""
    if kind == "go":  # whose own default is 2 since November 2025
        return Program(f"go {role}", [f"kcptun-{role}", *kcptun_arguments({"smuxver": 1, **options})])
    arguments = kcptun_arguments(options)
    if kind == "newest":
        return Program(f"newest {role}", [str(Path(os.environ[NEWEST]) / f"kcptun-{role}"), *arguments])
    name, _, checkout = kind.partition("@")
    if name != "ours":
        raise ValueError(f"{kind}: not a program; ours, ours@DIR, go or newest")
    command = [sys.executable, "-m", "kcptun_lite", role, *arguments]
    # Safe path: else -m would find the package of the current directory before that of the checkout.
    return Program(f"{kind} {role}", command, env={"PYTHONPATH": checkout or str(ROOT), "PYTHONSAFEPATH": "1"})


def free_address(address: str, kind: socket.SocketKind) -> str:
    """The address with a free port in place of 0, which kcptun refuses since it knows ranges of ports."""
    host, _, port = address.rpartition(":")
    if port != "0":
        return address
    with socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET, kind) as probe:
        probe.bind((host.strip("[]"), 0))
        return f"{host}:{probe.getsockname()[1]}"


def start_server(kind: str, options: Options) -> tuple[Program, str]:
    """A server that is ready, and its UDP address. `options` need a target; listen defaults to a free port."""
    options = {"listen": "127.0.0.1:0", **options}
    if kind in ("go", "newest"):
        options["listen"] = free_address(str(options["listen"]), socket.SOCK_DGRAM)
    server = start_kcptun(kind, "server", options)
    try:
        port = server.udp_port()
        if kind not in (
            "go",
            "newest",
        ):  # ours says the port itself, once it is really ready; the real one repeats its option
            server.wait_for_log(r"listening on: ")
    except BaseException:
        server.stop(signal.SIGKILL)
        raise
    return server, f"{str(options['listen']).rpartition(':')[0]}:{port}"


def start_client(kind: str, options: Options) -> tuple[Program, str]:
    """A client that is ready, and its address. `options` need a remoteaddr; localaddr defaults to a free port."""
    options = {"localaddr": "127.0.0.1:0", **options}
    if kind == "newest":
        options["localaddr"] = free_address(str(options["localaddr"]), socket.SOCK_STREAM)
    client = start_kcptun(kind, "client", options)
    try:
        address = client.wait_for_log(r"[Ll]istening on: (\S+?)(?:/tcp)?(?:\s|$)").group(1)
    except BaseException:
        client.stop(signal.SIGKILL)
        raise
    return client, address


def start_proxy(server: str, link: Link, seed: int, only: str = "both") -> tuple[Program, str]:
    """The lossy proxy as a process of its own, so that it shares no interpreter with what it serves."""
    arguments = [f"--{name.replace('_', '-')}={value}" for name, value in asdict(link).items()]
    script = str(ROOT / "tools" / "lossy_proxy.py")
    proxy = Program(
        "proxy", [sys.executable, script, "--server", server, "--seed", str(seed), "--only", only, *arguments]
    )
    return proxy, proxy.wait_for_log(r"listening on: (\S+)").group(1)


class Tunnel:
    """client -> [lossy link] -> server -> target, each a process; `with` starts and stops them."""

    def __init__(
        self,
        client: str,
        server: str,
        target: str,
        options: Options | None = None,
        *,
        client_options: Options | None = None,
        server_options: Options | None = None,
        link: Link | None = None,
        link_only: str = "both",
        seed: int = 1,
    ) -> None:
        """`options` go to both ends; `link` None joins them directly; `link_only` up or down leaves the other clean."""
        self._kinds = client, server
        self._client_options = {**(options or {}), **(client_options or {})}
        self._server_options = {"target": target, **(options or {}), **(server_options or {})}
        self._link, self._link_only, self._seed = link, link_only, seed
        self.link_counters: dict[str, dict[str, int]] = {}
        "the proxy's counters (up, down), after the end"

    def __enter__(self) -> "Tunnel":
        client_kind, server_kind = self._kinds
        self._proxy: Program | None = None
        with ExitStack() as stack:
            self.server, self.server_address = start_server(server_kind, self._server_options)
            stack.callback(self.server.stop)
            remote = self.server_address
            if self._link is not None:
                self._proxy, remote = start_proxy(remote, self._link, self._seed, self._link_only)
                stack.callback(self._proxy.stop)
            self.client, self.address = start_client(client_kind, {"remoteaddr": remote, **self._client_options})
            stack.callback(self.client.stop)
            stack.callback(self.server.stop)  # first to go, while its peer can still acknowledge its last words
            self._stack = stack.pop_all()
        return self

    def interrupt_link(self, seconds: float) -> None:
        """Nothing crosses the link for that long; then what its socket could hold comes all at once."""
        assert self._proxy is not None, "a tunnel without a link"
        os.kill(self._proxy.pid, signal.SIGSTOP)
        sleep(seconds)
        os.kill(self._proxy.pid, signal.SIGCONT)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._stack.close()
        if self._proxy is not None:
            self.link_counters = json.loads(self._proxy.log[-1])
        if exc is not None:
            for program in (self.client, self.server):
                exc.add_note(f"--- end of the log of {program.name}\n" + "\n".join(program.log[-20:]))
            return
        for program in (self.client, self.server):
            if any(line.startswith(("Traceback", "panic:", "fatal error:")) for line in program.log):
                raise AssertionError(f"{program.name} crashed:\n" + "\n".join(program.log[-40:]))
