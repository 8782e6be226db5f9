"""Small things through whole tunnels on loopback: echoes and short connections, ours beside the real kcptun, in turn.

In      which tunnels, which cases, how long
Out     a table: messages or connections a second, how long each took, processor time of both ends for each
Knows   TCP from outside, /proc. Not: anything inside the programs
Cost    all is done by two processes beside the tunnel, a target and a load, of some 15 us per message each

    echo N      N connections, each sends 64 bytes, waits for them to come back, and sends again
    paced N     the same, but each sends 20 messages a second
    short N     connections that send 500 bytes, get 10 kB and are closed, N at a time

    python tools/bench_small.py                                   # ours, Debian's ("go"), the newest, all cases
    python tools/bench_small.py --cases echo:1 --tunnels ours ours@../before floor --rounds 5
    python tools/bench_small.py --cases short:16 --tunnels ours --profile
"""

import argparse
import multiprocessing
import select
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, Tunnel, missing_programs  # noqa: E402
from tools.bench_tunnel import Profile  # noqa: E402

OPTIONS: dict[str, object] = {"crypt": "aes", "mode": "fast2", "datashard": 10, "parityshard": 3}
NOCOMP_OPTIONS = {**OPTIONS, "nocomp": True}
CASES = ["echo:1", "echo:8", "echo:32", "echo:256", "paced:20", "short:16"]
MESSAGE = bytes(range(64))
PACE = 0.05  # s between the messages of a paced connection
QUESTION, ANSWER = bytes(500), bytes(range(250)) * 40
WARM_UP = 0.5  # s


@dataclass(frozen=True)
class Result:
    """One case through one tunnel."""

    per_s: float
    p50_ms: float
    p99_ms: float
    client_us: float
    server_us: float
    "processor time for each message or connection"
    datagrams: float
    "of both ends, for each"


def serve_target(listening: socket.socket, kind: str) -> None:
    """Echo what comes, or answer each question, and close when the other end does."""
    poller = select.epoll()
    listening.setblocking(False)
    poller.register(listening.fileno(), select.EPOLLIN)
    known: dict[int, socket.socket] = {}
    asked: dict[int, int] = {}
    while True:
        for number, _ in poller.poll():
            if number == listening.fileno():
                try:
                    sock, _ = listening.accept()
                except OSError:  # gone again
                    continue
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                known[sock.fileno()] = sock
                poller.register(sock.fileno(), select.EPOLLIN)
                continue
            sock = known[number]
            data = b""
            with suppress(OSError):
                data = sock.recv(65536)
                asked[number] = asked.get(number, 0) + len(data)
                if data and kind != "short":
                    sock.sendall(data)
                elif asked[number] == len(QUESTION):
                    asked[number] = 0
                    sock.sendall(ANSWER)
            if not data:
                asked.pop(number, None)
                poller.unregister(number)
                known.pop(number).close()


class FloorTunnel:
    """As `Tunnel`, of `tools/floor.py`: the least that can be done; echoes only."""

    def __init__(self, target: str) -> None:
        self._target = target

    def _start(self, role: str, listen: str, other: str) -> tuple[Program, str]:
        script = str(Path(__file__).with_name("floor.py"))
        program = Program(f"floor {role}", [sys.executable, script, role, listen, other])
        host, port = program.wait_for_log(r"listening on: (\S+) (\d+)").groups()
        return program, f"{host}:{port}"

    def __enter__(self) -> "FloorTunnel":
        self.server, remote = self._start("server", "127.0.0.1:0", self._target)
        self.client, self.address = self._start("client", "127.0.0.1:0", remote)
        return self

    def __exit__(self, *exc: object) -> None:
        self.client.stop()
        self.server.stop()


class Load:
    """Connections to the tunnel, each with one message under way."""

    def __init__(self, address: tuple[str, int], kind: str, count: int) -> None:
        self._address = address
        self._kind = kind
        self._count = count
        self._poller = select.epoll()
        self._socks: dict[int, socket.socket] = {}
        self._begun: dict[int, float] = {}
        self._left: dict[int, int] = {}
        self.times: list[float] = []
        "s that each message or connection took"
        for _ in range(count):
            self._connect()

    def _connect(self) -> None:
        begun = perf_counter()
        sock = socket.create_connection(self._address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        number = sock.fileno()
        self._socks[number] = sock
        self._poller.register(number, select.EPOLLIN)
        if self._kind == "short":
            self._begun[number] = begun
            self._left[number] = len(ANSWER)
            sock.sendall(QUESTION)
        elif self._kind == "echo":
            self._send(number)

    def _send(self, number: int) -> None:
        self._begun[number] = perf_counter()
        self._left[number] = len(MESSAGE)
        self._socks[number].sendall(MESSAGE)

    def run(self, seconds: float) -> None:
        """Raises: RuntimeError if a connection ends too early."""
        end = monotonic() + seconds
        due = [(monotonic() + PACE * i / self._count, number) for i, number in enumerate(self._socks)]
        while (now := monotonic()) < end:
            timeout = 1.0
            if self._kind == "paced":
                while due[0][0] <= now:
                    at, number = due.pop(0)
                    due.append((at + PACE, number))
                    if not self._left.get(number):
                        self._send(number)
                timeout = max(0.0, due[0][0] - now)
            for number, _ in self._poller.poll(timeout):
                self._receive(number)

    def _receive(self, number: int) -> None:
        data = self._socks[number].recv(65536)
        if not data:
            raise RuntimeError(f"a connection has ended {self._left[number]} bytes too early")
        self._left[number] -= len(data)
        if self._left[number]:
            return
        self.times.append(perf_counter() - self._begun[number])
        if self._kind == "echo":
            self._send(number)
        elif self._kind == "short":
            self._poller.unregister(number)
            self._socks.pop(number).close()
            self._connect()

    def close(self) -> None:
        for sock in self._socks.values():
            sock.close()


def measure(tunnel_name: str, case: str, seconds: float, options: dict[str, object], profile: Profile | None) -> Result:
    """One case through fresh programs. Raises: RuntimeError, OSError."""
    kind, _, count = case.partition(":")
    client, _, server = tunnel_name.partition("-")
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listening:
        target = multiprocessing.get_context("fork").Process(target=serve_target, args=(listening, kind), daemon=True)
        target.start()
        host, port = listening.getsockname()
    try:
        where = f"{host}:{port}"
        is_floor = tunnel_name == "floor"
        with FloorTunnel(where) if is_floor else Tunnel(client, server or client, where, options) as tunnel:
            host, _, number = tunnel.address.rpartition(":")
            load = Load((host, int(number)), kind, int(count))
            load.run(WARM_UP)
            load.times.clear()
            programs = tunnel.client, tunnel.server
            before = [(program.usage(), {} if is_floor else program.counters()) for program in programs]
            if profile:
                profile.start(tunnel_name, programs, int(seconds))
            begin = monotonic()
            load.run(seconds)
            took = monotonic() - begin
            usages = [program.usage() for program in programs]
            counted = [{} if is_floor else program.counters() for program in programs]
            times = sorted(load.times)
            done = len(times)
            load.close()
            if profile:
                profile.wait()
    finally:
        target.kill()
        target.join()
    spent = [
        (after.user + after.system - old.user - old.system) / done * 1e6
        for after, (old, _) in zip(usages, before, strict=True)
    ]
    sent = sum(after.get("OutPkts", 0) - old.get("OutPkts", 0) for after, (_, old) in zip(counted, before, strict=True))
    return Result(done / took, times[done // 2] * 1e3, times[done * 99 // 100] * 1e3, *spent, sent / done)


COLUMNS = "  {:<10} {:<14} {:>9} {:>9} {:>9} {:>9} {:>18} {:>10}"


def row(case: str, name: str, runs: list[Result]) -> str:
    """The medians of a tunnel's runs."""

    def middle(value: Callable[[Result], float]) -> float:
        return median(map(value, runs))

    client, server = middle(lambda run: run.client_us), middle(lambda run: run.server_us)
    return COLUMNS.format(
        case,
        name if len(name) <= 14 else "…" + name[-13:],
        f"{middle(lambda run: run.per_s):.0f}",
        f"{middle(lambda run: run.p50_ms):.2f}",
        f"{middle(lambda run: run.p99_ms):.2f}",
        f"{middle(lambda run: run.client_us + run.server_us):.0f}",
        f"{client:.0f} + {server:.0f}",
        f"{middle(lambda run: run.datagrams):.1f}",
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tunnels", nargs="+", default=["ours", "go", "newest"], metavar="NAME", help="(ours go newest)")
    add("--cases", nargs="+", default=CASES, metavar="KIND:N", help=f"({' '.join(CASES)})")
    add("--rounds", type=int, default=3, help="runs of each, of which the medians are shown (3)")
    add("--seconds", type=float, default=3, help="length of a run (3)")
    add("--nocomp", action="store_true", help="without compression")
    add("--profile", action="store_true", help="record our processes with py-spy; its sampling costs them time")
    options = parser.parse_args()
    if "go" in options.tunnels and (missing := missing_programs("kcptun-client", "kcptun-server")):
        parser.error(f"not on the PATH: {', '.join(missing)} (Debian package kcptun)")
    return options


def main() -> None:
    """The command line."""
    given = parse_arguments()
    profile = Profile(Path(tempfile.mkdtemp(prefix="kcptun-profile-"))) if given.profile else None
    options: dict[str, Any] = NOCOMP_OPTIONS if given.nocomp else OPTIONS
    print(COLUMNS.format("case", "tunnel", "per s", "p50 ms", "p99 ms", "CPU us", "client + server", "datagrams"))
    for case in given.cases:
        runs: dict[str, list[Result]] = {name: [] for name in given.tunnels}
        for _ in range(given.rounds):
            for name in given.tunnels:
                runs[name].append(measure(name, case, given.seconds, options, profile))
        for name in given.tunnels:
            print(row(case, name, runs[name]), flush=True)


if __name__ == "__main__":
    main()
