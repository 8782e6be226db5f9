"""Many clients of one server: what all of them get, what the server pays, how fair it is, how long a newcomer waits.

In      kinds of server and client, how many clients, how many of them one process carries, bulk or thin traffic
Out     a table: throughput, processor time of both ends, the slowest client, the first answer of one more, memory
Knows   the programs from outside, /proc, TCP. Not: the wire
Cost    two processes beside the tunnels, target and load, of some 1 ms for each MB together

A client is a session: a process of its own, or one of `--per-process` sessions (`--conn`) of a process.

    bulk    each client uploads as fast as it can
    thin    each client sends 64 bytes 20 times a second (`--pace`), which come back
    idle    each client has one connection, on which nothing happens

    python tools/bench_clients.py                                          # ours and the real ones, 4, 16, 48 clients
    python tools/bench_clients.py --servers ours --workers 2 --clients 8
    python tools/bench_clients.py --load idle thin --clients 1000 --per-process 100 --pace 1
"""

import argparse
import ctypes
import multiprocessing
import os
import random
import select
import socket
import struct
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from math import inf
from pathlib import Path
from statistics import median
from time import monotonic, perf_counter, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, missing_programs, start_client, start_server  # noqa: E402
from tests.traffic import connect, receive_exactly  # noqa: E402

OPTIONS: dict[str, object] = {"mode": "fast2"}
CHUNK = 256 * 1024  # bytes
NOISE = random.Random(1).randbytes(8 << 20)
MESSAGE = bytes(range(64))
WARM_UP = 2.0  # s
PATIENCE = 60.0  # s for a first answer
NEWCOMERS = 3
MARGIN = 4  # times as many sessions and streams as clients are let in
TIMES_MAX = 1 << 20  # of the last messages
ORDER = struct.Struct("<HB")  # which client, and whether its bytes come back
READY = b"!"
TICK = os.sysconf("SC_CLK_TCK")

_processes = multiprocessing.get_context("spawn")  # a fork would take along the threads that read logs
# Written by one process each, a word at once.
Counts = Any


@dataclass(frozen=True)
class Result:
    """One run; a MB is 10^6 payload bytes."""

    mbit: float
    server_ms: float
    clients_ms: float
    "processor time for each MB; for each 1000 messages of thin traffic; in a second if there is none"
    busiest: float
    "share of a core that the server's busiest process had"
    slowest: float
    "the slowest client's part of the mean"
    answer_ms: float
    "first answer of one more client, median; inf: there was none"
    p99_ms: float
    "of a message"
    pss: int
    "bytes; all processes of the server, pages they share counted once"


# -- target and load -----------------------------------------------------------------------------------------


def serve(listening: socket.socket, received: Counts) -> None:
    """Count what each client sends, or send it back."""
    poller = select.epoll()
    poller.register(listening.fileno(), select.EPOLLIN)
    listening.setblocking(False)
    known: dict[int, tuple[socket.socket, int, bool]] = {}
    into = bytearray(CHUNK)
    while True:
        for number, _ in poller.poll():
            if number == listening.fileno():
                with suppress(OSError):
                    sock, _ = listening.accept()
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    sock.settimeout(PATIENCE)
                    known[sock.fileno()] = sock, -1, False
                    poller.register(sock.fileno(), select.EPOLLIN)
                continue
            sock, client, comes_back = known[number]
            try:
                if client < 0:
                    known[number] = (sock, *ORDER.unpack(receive_exactly(sock, ORDER.size)))
                    sock.sendall(READY)
                    continue
                count = sock.recv_into(into)
                if comes_back and count:
                    sock.sendall(memoryview(into)[:count])
            except OSError:
                count = 0
            if count:
                received[client] += count
            else:
                poller.unregister(number)
                del known[number]
                sock.close()


def begin(address: str, client: int, *, comes_back: bool) -> socket.socket:
    """A connection that the target has answered. Raises OSError."""
    sock = connect(address, PATIENCE)
    sock.sendall(ORDER.pack(client, comes_back))
    receive_exactly(sock, len(READY))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def upload(addresses: list[str], ready: Any) -> None:
    """The load's process: each client sends whenever it can. Raises OSError if a connection ends."""
    socks = [begin(address, client, comes_back=False) for client, address in enumerate(addresses)]
    poller = select.epoll()
    for sock in socks:
        sock.setblocking(False)
        poller.register(sock.fileno(), select.EPOLLOUT)
    by_number = {sock.fileno(): sock for sock in socks}
    noise, draw = memoryview(NOISE), random.Random(2)
    ready.set()
    while True:
        for number, _ in poller.poll():
            at = draw.randrange(len(noise) - CHUNK)
            with suppress(BlockingIOError):
                by_number[number].send(noise[at : at + CHUNK])


def converse(addresses: list[str], ready: Any, pause: float, times: Counts, count: Counts) -> None:
    """The load's process: each client sends a message when it is due, if the last one has come back.

    `pause`: s between two messages of a client. `times`: s that each took, and `count` how many there are; a queue
    between processes would hold the load up.
    """
    socks = [begin(address, client, comes_back=True) for client, address in enumerate(addresses)]
    poller = select.epoll()
    for sock in socks:
        poller.register(sock.fileno(), select.EPOLLIN)
    by_number = {sock.fileno(): sock for sock in socks}
    begun: dict[int, float] = {}
    left: dict[int, int] = defaultdict(int)
    due = [(monotonic() + pause * i / len(socks), sock.fileno()) for i, sock in enumerate(socks)]
    ready.set()
    while True:
        while due[0][0] <= monotonic():
            at, number = due.pop(0)
            due.append((at + pause, number))
            if not left[number]:
                begun[number], left[number] = perf_counter(), len(MESSAGE)
                by_number[number].sendall(MESSAGE)
        for number, _ in poller.poll(max(0.0, due[0][0] - monotonic())):
            left[number] -= len(by_number[number].recv(len(MESSAGE)))
            if not left[number]:
                times[count.value % len(times)] = perf_counter() - begun[number]
                count.value += 1


def rest(addresses: list[str], ready: Any) -> None:
    """The load's process: connections on which nothing happens."""
    socks = [begin(address, client, comes_back=False) for client, address in enumerate(addresses)]
    ready.set()
    while socks:
        sleep(PATIENCE)


# -- the programs --------------------------------------------------------------------------------------------


def family(pid: int) -> list[int]:
    """A process and all below it."""
    children = defaultdict(list)
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                children[int((entry / "stat").read_text().rpartition(")")[2].split()[1])].append(int(entry.name))
    found = [pid]
    for one in found:
        found += children[one]
    return found


def processor_time(pid: int) -> float:
    """s that a process has had, its ended children left out."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def proportional_size(pid: int) -> int:
    """bytes of a process, of what it shares its part."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise ValueError(f"no Pss for {pid}")


@contextmanager
def running(process: Any) -> Iterator[None]:
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def measure(server_kind: str, client_kind: str, load: str, clients: int, given: argparse.Namespace) -> Result:
    """One run of fresh programs. Raises RuntimeError or OSError if any of them fails."""
    received: Counts = _processes.RawArray(ctypes.c_uint64, clients + NEWCOMERS)
    own: dict[str, object] = {}
    if server_kind.startswith("ours"):  # all come from one address, which may have three quarters
        own = {"workers": given.workers, "maxsessions": MARGIN * clients, "maxstreams": MARGIN * clients}
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=1024))
        stack.enter_context(running(_processes.Process(target=serve, args=(listening, received), daemon=True)))
        target = f"127.0.0.1:{listening.getsockname()[1]}"
        server, remote = start_server(server_kind, {"target": target, **OPTIONS, **own})
        stack.callback(server.stop)

        def start(conn: int) -> tuple[Program, str]:
            program, address = start_client(client_kind, {"remoteaddr": remote, "conn": conn, **OPTIONS})
            stack.callback(program.stop)
            return program, address

        started = [start(min(given.per_process, clients - at)) for at in range(0, clients, given.per_process)]
        newcomers = [start(1) for _ in range(NEWCOMERS)]
        # Connections take turns in the sessions of a process, so these are one for each session.
        addresses = [started[client // given.per_process][1] for client in range(clients)]
        ready, count = _processes.Event(), _processes.RawValue(ctypes.c_uint64)
        times: Counts = _processes.RawArray(ctypes.c_double, TIMES_MAX)
        work = {
            "bulk": (upload, (addresses, ready)),
            "thin": (converse, (addresses, ready, 1 / given.pace, times, count)),
        }
        target_of, arguments = work.get(load, (rest, (addresses, ready)))
        stack.enter_context(running(_processes.Process(target=target_of, args=arguments, daemon=True)))
        if not ready.wait(PATIENCE):
            raise RuntimeError("the load's connections do not come through")
        sleep(WARM_UP)
        pids, clients_pids = family(server.pid), [program.pid for program, _ in started]
        before, count_before = list(received), count.value
        spent = {pid: processor_time(pid) for pid in (*pids, *clients_pids)}
        begun = monotonic()
        sleep(given.seconds)
        after, count_after = list(received), count.value
        spent = {pid: processor_time(pid) - old for pid, old in spent.items()}
        took = monotonic() - begun
        answers = []
        for index, (_, address) in enumerate(newcomers):
            asked = perf_counter()
            with suppress(OSError):
                begin(address, clients + index, comes_back=False).close()
                answers.append(perf_counter() - asked)
        pss = sum(map(proportional_size, pids))
        waits = sorted(times[at % TIMES_MAX] for at in range(count_before, count_after)[-TIMES_MAX:])
    moved = [new - old for new, old in zip(after[:clients], before[:clients], strict=True)]
    units = {"bulk": sum(moved) / 1e6, "thin": sum(moved) / len(MESSAGE) / 1e3, "idle": took}[load]
    return Result(
        sum(moved) * 8 / 1e6 / took,
        sum(spent[pid] for pid in pids) * 1e3 / units,
        sum(spent[pid] for pid in clients_pids) * 1e3 / units,
        max(spent[pid] for pid in pids) / took,
        min(moved) / (sum(moved) / clients) if sum(moved) else 1.0,
        median(answers) * 1e3 if answers else inf,
        waits[len(waits) * 99 // 100] * 1e3 if waits else 0.0,
        pss,
    )


COLUMNS = "  {:<5} {:>7} {:<18} {:>8} {:>10} {:>11} {:>8} {:>8} {:>10} {:>8} {:>9}"


def row(load: str, clients: int, name: str, runs: list[Result]) -> str:
    """The medians of some runs."""

    def middle(field: str) -> float:
        return median(getattr(run, field) for run in runs)

    return COLUMNS.format(
        load,
        clients,
        name[-18:],
        f"{middle('mbit'):.1f}",
        f"{middle('server_ms'):.2f}",
        f"{middle('clients_ms'):.2f}",
        f"{middle('busiest'):.2f}",
        f"{middle('slowest'):.2f}",
        f"{middle('answer_ms'):.0f}",
        f"{middle('p99_ms'):.1f}",
        f"{middle('pss') / 2**20:.1f}",
    )


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--servers", nargs="+", default=["ours", "go", "newest"], metavar="NAME", help="(ours go newest)")
    add("--client", metavar="NAME", help="the clients' kind (as the server)")
    add("--clients", nargs="+", type=int, default=[4, 16, 48], metavar="N", help="(4 16 48)")
    add("--per-process", type=int, default=1, metavar="N", help="clients that one process carries (1)")
    add("--load", nargs="+", choices=["bulk", "thin", "idle"], default=["bulk"], help="(bulk)")
    add("--workers", type=int, default=1, metavar="N", help="of our server (1)")
    add("--pace", type=float, default=20, metavar="N", help="messages that a thin client sends each second (20)")
    add("--rounds", type=int, default=3, help="runs of each, of which the medians are shown (3)")
    add("--seconds", type=float, default=5, help="length of a run (5)")
    given = parser.parse_args()
    if "go" in (*given.servers, given.client) and (missing := missing_programs("kcptun-client", "kcptun-server")):
        parser.error(f"not on the PATH: {', '.join(missing)} (Debian package kcptun)")
    return given


def main() -> None:
    """The command line."""
    given = parse_arguments()
    heads = ("server ms", "clients ms", "busiest", "slowest", "answer ms", "p99 ms", "PSS MiB")
    print(COLUMNS.format("load", "clients", "server", "Mbit/s", *heads))
    for load in given.load:
        for clients in given.clients:
            runs: dict[str, list[Result]] = {name: [] for name in given.servers}
            for _ in range(given.rounds):
                for name in given.servers:
                    runs[name].append(measure(name, given.client or name, load, clients, given))
            for name in given.servers:
                print(row(load, clients, name, runs[name]), flush=True)


if __name__ == "__main__":
    main()
