"""Whether cost grows with the work and no faster: bulk by streams and by window, and what idle sessions take.

In      how many streams, which windows, how long
Out     tables for docs/performance.md; whether all figures of bulk are near the best of their row; JSON
Knows   /proc, TCP. Not: anything inside the programs

Each figure of bulk comes from fresh programs on loopback. Its load are two more processes: one sends random bytes on
all streams that take them, the other reads and counts (iperf3 knows 128 streams at most). The bytes that arrived and
the processor time of both ends of the tunnel are of the same seconds, and those begin after a second of warm-up.
Rounds go through all figures, so that what else the machine does hits all of them.

    python tools/bench_scaling.py --json scaling.json         # ten minutes
    python tools/bench_scaling.py --only streams --direction up --seconds 2 --repeat 1
"""

import argparse
import ctypes
import json
import multiprocessing
import selectors
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing.synchronize import Barrier
from pathlib import Path
from random import Random
from statistics import median
from threading import BrokenBarrierError
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import START_TIMEOUT, Program, Tunnel
from tests.traffic import CHUNK, Target, connect, echo_handler
from tools.bench_tunnel import ANCHOR

# What a table of bulk varies, by which field of a load, and the streams and windows of its columns
TABLES: dict[str, tuple[str, list[tuple[int, int]]]] = {
    "streams": ("streams", [(streams, 2048) for streams in (1, 8, 64, 512)]),
    "windows": ("window", [(1, window) for window in (128, 256, 512, 1024, 2048, 4096, 8192)]),
}
SESSIONS = (1, 100)
WARM_UP = 1.0  # s
SETTLE = 12.0  # s until a session is idle: longer than the keep-alive interval of 10 s
IDLE_TIME = 20.0  # s; two keep-alives of each session
NOISE = 8 << 20  # bytes of random payload; sent from anywhere in it, so that no window of snappy meets a repetition
SEND_BUFFERS = 4 << 20  # bytes in the kernel, for all streams together; else it lets each of them have as much
LEAST_BUFFER = 64 * 1024  # bytes, each stream
BOUND = 1.5  # a figure's ratio to the best of its row, at most

_processes = multiprocessing.get_context("spawn")  # a fork would take along the threads that read logs


@dataclass(frozen=True)
class Load:
    """What is moved in one run."""

    direction: str
    "up (client to server) or down"
    streams: int
    window: int
    "segments; --sndwnd and --rcvwnd of both ends"


@dataclass(frozen=True)
class Run:
    """One measured run; a MB is 10^6 payload bytes that arrived, CPU is user + system."""

    load: Load
    mbit: float
    client_ms_per_mb: float
    server_ms_per_mb: float

    @property
    def cpu_ms_per_mb(self) -> float:
        return self.client_ms_per_mb + self.server_ms_per_mb


@dataclass(frozen=True)
class Idle:
    """What one program does for sessions that carry nothing."""

    end: str
    "client or server"
    sessions: int
    wakeups: float
    "voluntary context switches of all its threads, 1/s"
    cpu: float
    "share of a core"


# -- bulk --------------------------------------------------------------------------------------------------


def far_end(listener: socket.socket, streams: int, sends: bool, ready: Barrier, received: ctypes.c_uint64) -> None:
    """The process the tunnel leads to."""
    move([listener.accept()[0] for _ in range(streams)], sends, ready, received)


def near_end(address: str, streams: int, sends: bool, ready: Barrier, received: ctypes.c_uint64) -> None:
    """The process that connects to the tunnel."""
    move([connect(address) for _ in range(streams)], sends, ready, received)


def move(connections: Sequence[socket.socket], sends: bool, ready: Barrier, received: ctypes.c_uint64) -> None:
    """Send on all connections, or read and count, for ever. Raises ConnectionError if one ends."""
    random = Random(1)
    noise = memoryview(random.randbytes(NOISE)) if sends else memoryview(b"")
    into = bytearray(CHUNK)
    with selectors.DefaultSelector() as selector:
        for sock in connections:
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, max(LEAST_BUFFER, SEND_BUFFERS // len(connections)))
            selector.register(sock, selectors.EVENT_WRITE if sends else selectors.EVENT_READ, sock)
        ready.wait()
        while True:
            for key, _ in selector.select():
                sock = key.data
                if sends:
                    at = random.randrange(NOISE - CHUNK)
                    with suppress(BlockingIOError):  # short of kernel memory after all
                        sock.send(noise[at : at + CHUNK])
                elif count := sock.recv_into(into):
                    received.value += count
                else:
                    raise ConnectionError("a stream ended")


@contextmanager
def moving(tunnel: Tunnel, listener: socket.socket, load: Load) -> Iterator[ctypes.c_uint64]:
    """Both processes of a load at work, and the count of bytes that arrived. Raises RuntimeError if they fail."""
    ready = _processes.Barrier(3)
    received = _processes.RawValue(ctypes.c_uint64)  # one writer, and a word is written at once
    up = load.direction == "up"
    ends = [
        _processes.Process(target=far_end, args=(listener, load.streams, not up, ready, received)),
        _processes.Process(target=near_end, args=(tunnel.address, load.streams, up, ready, received)),
    ]
    for end in ends:
        end.start()
    try:
        try:
            ready.wait(START_TIMEOUT)
        except BrokenBarrierError:
            raise RuntimeError(f"{load}: not all streams open within {START_TIMEOUT:.0f} s") from None
        yield received
        if not all(end.is_alive() for end in ends):
            raise RuntimeError(f"{load}: a stream ended")
    finally:
        for end in ends:
            end.kill()  # both before either sees the other's connections end
        for end in ends:
            end.join()


def measure(load: Load, seconds: float) -> Run:
    """One run on fresh programs. Raises RuntimeError or OSError if any of them fails."""
    with socket.create_server(("127.0.0.1", 0), backlog=load.streams) as listener:
        target = f"127.0.0.1:{listener.getsockname()[1]}"
        options = {**ANCHOR, "sndwnd": load.window, "rcvwnd": load.window}
        with Tunnel("ours", "ours", target, options) as tunnel, moving(tunnel, listener, load) as received:

            def snapshot() -> tuple[float, int, float, float]:
                return monotonic(), received.value, cpu_seconds(tunnel.client), cpu_seconds(tunnel.server)

            sleep(WARM_UP)
            before = snapshot()
            sleep(seconds)
            elapsed, size, client, server = (b - a for a, b in zip(before, snapshot(), strict=True))
    if not size:
        raise RuntimeError(f"{load}: nothing arrived")
    return Run(load, size * 8 / 1e6 / elapsed, client * 1e9 / size, server * 1e9 / size)


def cpu_seconds(program: Program) -> float:
    usage = program.usage()
    return usage.user + usage.system


# -- idle --------------------------------------------------------------------------------------------------


def measure_idle() -> list[Idle]:
    """A tunnel for each number of sessions, all in the same seconds. Raises as `measure`, or AssertionError."""
    with Target(echo_handler) as target, ExitStack() as stack:
        tunnels = []
        for sessions in SESSIONS:
            tunnel = stack.enter_context(Tunnel("ours", "ours", target.address, client_options={"conn": sessions}))
            for _ in range(sessions):  # connections take the sessions in turn
                sock = stack.enter_context(connect(tunnel.address))
                sock.sendall(b"x")
                assert sock.recv(1) == b"x", "no echo"
            established = tunnel.server.counters()["CurrEstab"]
            assert established == sessions, f"{established} sessions instead of {sessions}"
            tunnels.append(tunnel)
        sleep(SETTLE)
        before = [[activity(tunnel.client), activity(tunnel.server)] for tunnel in tunnels]
        sleep(IDLE_TIME)
        after = [[activity(tunnel.client), activity(tunnel.server)] for tunnel in tunnels]
    found = []
    for sessions, earlier, later in zip(SESSIONS, before, after, strict=True):
        for end, start, stop in zip(("client", "server"), earlier, later, strict=True):
            elapsed, wakeups, cpu = (b - a for a, b in zip(start, stop, strict=True))
            found.append(Idle(end, sessions, wakeups / elapsed, cpu / elapsed))
    return found


def activity(program: Program) -> tuple[float, int, float]:
    """Now, voluntary context switches and CPU seconds of all threads. An idle program starts and ends none."""
    switches = nanoseconds = 0
    for task in Path(f"/proc/{program.pid}/task").iterdir():
        _, _, rest = (task / "status").read_text().partition("\nvoluntary_ctxt_switches:")
        switches += int(rest.split(maxsplit=1)[0])
        nanoseconds += int((task / "schedstat").read_text().split()[0])
    return monotonic(), switches, nanoseconds / 1e9


# -- words -------------------------------------------------------------------------------------------------

# What a row of bulk shows, whether more is better, and with how many decimals
MEASURES: dict[str, tuple[Callable[[Run], float], bool, int]] = {
    "Mbit/s": (lambda run: run.mbit, True, 0),
    "ms of processor time per MB, both ends": (lambda run: run.cpu_ms_per_mb, False, 1),
}


def bulk_table(runs: Sequence[Run], parameter: str) -> tuple[str, dict[str, float]]:
    """Medians by "streams" or "window", each with its ratio to the best of the row; all ratios by name."""
    values = sorted({getattr(run.load, parameter) for run in runs})
    lines = [f"| {parameter} | {' | '.join(map(str, values))} |", f"| --- |{' ---: |' * len(values)}"]
    ratios = {}
    for direction in dict.fromkeys(run.load.direction for run in runs):
        for name, (figure, is_more_better, decimals) in MEASURES.items():
            mine = [run for run in runs if run.load.direction == direction]
            row = [median(figure(run) for run in mine if getattr(run.load, parameter) == value) for value in values]
            factors = [max(row) / x if is_more_better else x / min(row) for x in row]
            cells = [f"{x:.{decimals}f} ({factor:.2f})" for x, factor in zip(row, factors, strict=True)]
            lines.append(f"| {direction}, {name} | {' | '.join(cells)} |")
            for value, factor in zip(values, factors, strict=True):
                ratios[f"{direction}, {name}, {parameter} {value}"] = factor
    return "\n".join(lines), ratios


def verdict(ratios: dict[str, float]) -> str:
    """Whether all figures keep the bound, and which do not."""
    beyond = [f"* {name}: {ratio:.2f}" for name, ratio in ratios.items() if ratio > BOUND]
    if not beyond:
        return f"All {len(ratios)} figures are within {BOUND} times the best of their row."
    return "\n".join(
        [f"{len(beyond)} of {len(ratios)} figures are beyond {BOUND} times the best of their row:", *beyond]
    )


def idle_table(found: Sequence[Idle]) -> str:
    """Medians by program."""
    lines = ["| idle | wake-ups per second | % of a core |", "| --- | ---: | ---: |"]
    for end, sessions in dict.fromkeys((idle.end, idle.sessions) for idle in found):
        mine = [idle for idle in found if (idle.end, idle.sessions) == (end, sessions)]
        wakeups, cpu = median(idle.wakeups for idle in mine), median(idle.cpu for idle in mine)
        words = f"{sessions} session{'s' * (sessions > 1)}"
        lines.append(f"| {end}, {words} | {wakeups:.2f} | {cpu * 100:.3f} |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--only", nargs="+", default=[*TABLES, "idle"], choices=[*TABLES, "idle"], help="(all)")
    add("--direction", nargs="+", default=["up", "down"], choices=["up", "down"], help="of bulk (both)")
    add("--repeat", type=int, default=3, metavar="N", help="rounds, of which the tables have the medians (3)")
    add("--seconds", type=float, default=5, help="length of a run of bulk, after its warm-up (5)")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args(arguments)


def run_all(options: argparse.Namespace, runs: dict[str, list[Run]], idle: list[Idle]) -> None:
    """All rounds; `runs` by table and `idle` grow as they end, so that a failure loses nothing measured."""
    for number in range(1, options.repeat + 1):
        for name in options.only:
            if name == "idle":
                idle += measure_idle()
                continue
            for direction, (streams, window) in product(options.direction, TABLES[name][1]):
                run = measure(Load(direction, streams, window), options.seconds)
                runs.setdefault(name, []).append(run)
                parts = f"({run.client_ms_per_mb:.1f} + {run.server_ms_per_mb:.1f})"
                figures = f"{run.mbit:.0f} Mbit/s, {run.cpu_ms_per_mb:.1f} {parts} ms/MB"
                print(f"{number} {direction}, streams {streams}, window {window}: {figures}", file=sys.stderr)


def main() -> None:
    """The command line."""
    options = parse_arguments()
    runs: dict[str, list[Run]] = {}
    idle: list[Idle] = []
    try:
        run_all(options, runs, idle)
    except (AssertionError, OSError, RuntimeError) as exc:
        print(f"\n{exc}", *getattr(exc, "__notes__", []), sep="\n", file=sys.stderr)
        sys.exit(1)
    finally:
        if options.json:
            found = {name: [asdict(run) for run in done] for name, done in runs.items()}
            options.json.write_text(json.dumps({**found, "idle": [asdict(one) for one in idle]}, indent=1) + "\n")
    ratios: dict[str, float] = {}
    for name, done in runs.items():
        table, more = bulk_table(done, TABLES[name][0])
        ratios |= more
        print(f"\n{table}")
    if idle:
        print(f"\n{idle_table(idle)}")
    if ratios:
        print(f"\n{verdict(ratios)}")


if __name__ == "__main__":
    main()
