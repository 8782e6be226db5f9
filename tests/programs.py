"""The finished programs, run from outside: ours and the real kcptun, and what they carry.

In      which programs ("ours", "ours@DIR" from another checkout, "go", "newest"), kcptun options, a `Link` between them
Out     a running `Tunnel`: its address, each program's log, counters, CPU time and memory
Knows   processes, signals, /proc, TCP. Not: the wire

Payload goes through `Target` and `exchange`: the client's header says how much each side sends and from
which seed, so both directions carry different data. Everything ends by length, because the real program
cuts both directions at the first end of file (docs/protocol.md, "Half-close").
"""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from time import monotonic, sleep
from types import TracebackType

from tools.lossy_proxy import Link

ROOT = Path(__file__).resolve().parent.parent
START_TIMEOUT = 20.0  # s until a program must have said that it is ready, on a busy machine
STALL_TIMEOUT = (
    9.0  # s without a byte after which a transfer has failed: less than keep-alive, which hides lost wake-ups
)
TARGET_TIMEOUT = 60.0  # s after which a target's thread gives up, so that none is left for ever
NEWEST = "NEWEST_KCPTUN"  # environment variable: the directory with the newest kcptun
CHUNK = 256 * 1024  # bytes per send and receive call

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
        text = f"not on the PATH: {', '.join(missing)} (Debian packages kcptun, iperf3, busybox, nftables)"
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


# -- payload -----------------------------------------------------------------------------------------------

_ORDER = struct.Struct("<QQQQB")  # bytes up, seed up, bytes down, seed down, compressible
_DIGEST_SIZE = 32  # bytes; SHA-256


def payload(size: int, seed: int, *, compressible: bool = False) -> bytes:
    """`size` bytes that depend on the seed: noise, or log-like lines that snappy halves several times."""
    random = Random(seed)
    if not compressible:
        return random.randbytes(size)
    lines = [b"%016x connection closed after %d bytes\n" % (random.getrandbits(64), size) * 8 for _ in range(200)]
    text = b"".join(lines)
    return (text * (size // len(text) + 1))[:size]


def connect(address: str, timeout: float = STALL_TIMEOUT) -> socket.socket:
    """A TCP connection to "host:port", "[v6]:port" or the path of a unix socket."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        sock.connect(address)
        return sock
    return socket.create_connection((host.strip("[]"), int(port)), timeout)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes. Raises ConnectionError if the stream ends before, TimeoutError if it stalls."""
    received = bytearray(size)
    view, at = memoryview(received), 0
    while at < size:
        count = sock.recv_into(view[at:], min(CHUNK, size - at))
        if not count:
            raise ConnectionError(f"the stream ended after {at} of {size} bytes")
        at += count
    return bytes(received)


def exchange(
    sock: socket.socket,
    *,
    up: int,
    down: int,
    seed: int,
    compressible: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Move `up` and `down` bytes at the same time to and from an `exchange_handler`, check both, close `sock`.

    `progress` is called with the number of bytes received or sent by each call.
    Raises AssertionError if any byte arrived wrong, OSError if the connection broke or stalled.
    """
    data = payload(up, seed, compressible=compressible)
    failures: list[OSError] = []

    def send() -> None:
        try:
            for at in range(0, up, CHUNK):
                sock.sendall(data[at : at + CHUNK])
                progress(min(CHUNK, up - at))
        except OSError as exc:
            failures.append(exc)

    with sock:
        sock.sendall(_ORDER.pack(up, seed, down, seed + 1, compressible))
        sender = threading.Thread(target=send, name="exchange-send")
        sender.start()
        try:
            digest = hashlib.sha256()
            left = down
            while left:
                piece = sock.recv(min(CHUNK, left))
                if not piece:
                    raise ConnectionError(f"the stream ended {left} of {down} bytes too early")
                digest.update(piece)
                left -= len(piece)
                progress(len(piece))
            echo = receive_exactly(sock, _DIGEST_SIZE)
        except BaseException:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the sender
            raise
        finally:
            sender.join()
    if failures:
        raise failures[0]
    expected = hashlib.sha256(payload(down, seed + 1, compressible=compressible)).digest()
    assert digest.digest() == expected, "downward data arrived wrong"
    assert echo == hashlib.sha256(data).digest(), "upward data arrived wrong"


def exchange_across_outage(tunnel: Tunnel, seconds: float) -> None:
    """An exchange of 4 MiB each way, the link interrupted in the midst of it. Raises as `exchange` does."""
    moved = 0

    def count(size: int) -> None:
        nonlocal moved
        moved += size

    with ThreadPoolExecutor(1) as pool:
        sock = connect(tunnel.address, timeout=seconds + 3 * STALL_TIMEOUT)
        running = pool.submit(exchange, sock, up=4 << 20, down=4 << 20, seed=1, progress=count)
        wait_until(lambda: moved > 4 << 20, "half of the data on its way")
        tunnel.interrupt_link(seconds)
        running.result()


def exchange_handler(sock: socket.socket) -> None:
    """The other side of `exchange`: sends what it is asked for, then the SHA-256 of what it got; waits for the end."""
    up, _, down, seed, compressible = _ORDER.unpack(receive_exactly(sock, _ORDER.size))
    sender = threading.Thread(target=_send_all, args=(sock, payload(down, seed, compressible=bool(compressible))))
    sender.start()
    digest = hashlib.sha256(receive_exactly(sock, up)).digest()
    sender.join()
    sock.sendall(digest)
    sock.recv(1)


def echo_handler(sock: socket.socket) -> None:
    """Sends back what comes until the end."""
    while data := sock.recv(CHUNK):
        sock.sendall(data)


def digest_handler(sock: socket.socket) -> None:
    """Reads to the end of file, only then answers: length (8 bytes), SHA-256 and the data itself, and ends."""
    received = b"".join(iter(lambda: sock.recv(CHUNK), b""))
    sock.sendall(struct.pack("<Q", len(received)) + hashlib.sha256(received).digest() + received)


def _send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # the reading half of the connection reports it
        sock.sendall(data)


class Target:
    """A TCP or unix server with a thread for each connection, as the place a tunnel leads to."""

    def __init__(self, handler: Callable[[socket.socket], None], address: str = "127.0.0.1:0") -> None:
        """`address` is "host:0", "[v6]:0" or the path of a unix socket."""
        self._handler = handler
        host, _, port = address.rpartition(":")
        if port.isdigit():
            family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
            self._listener = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=1024)
            self.address = f"{host}:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(address)
            self._listener.listen(1024)
            self.address = address
        self.connections = 0
        "accepted so far"
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="target", daemon=True)

    def __enter__(self) -> "Target":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread out of accept
        self._thread.join()
        self._listener.close()
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            sock.settimeout(TARGET_TIMEOUT)
            threading.Thread(target=self._serve, args=(sock,), name="target-connection", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        with suppress(OSError), sock:  # cut off: the other side of the tunnel judges
            self._handler(sock)
        self._open.discard(sock)
