"""Many short connections through one tunnel: does anything grow?

In      how many connections, how many at a time, which program
Out     a table of samples: memory, descriptors, threads and sessions of both ends
Knows   /proc, TCP. Not: anything inside the programs

    python tools/soak.py                                   # 100,000 connections of ours, 50 at a time
    python tools/soak.py --tunnel go --connections 20000
"""

import argparse
import os
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Options, Program, Tunnel
from tests.traffic import Target, connect, echo_handler, receive_exactly

REQUEST = bytes(range(256)) * 4
CALM = 3.0  # s after the last connection of a part, before its sample is taken
MIB = 2**20


@dataclass(frozen=True)
class Sample:
    """One program at one moment."""

    rss: int
    "bytes"
    descriptors: int
    threads: int
    sessions: int


@dataclass(frozen=True)
class Row:
    """Both ends after so many connections."""

    connections: int
    seconds: float
    client: Sample
    server: Sample


def soak(tunnel: Tunnel, connections: int, parallel: int, parts: int) -> Iterator[Row]:
    """Make the connections in so many parts, and give a row after each. Raises OSError if one of them fails."""
    seconds = 0.0
    for part in range(1, parts + 1):
        start = monotonic()
        _run_parallel(lambda: _one_connection(tunnel.address), connections // parts, parallel)
        seconds += monotonic() - start
        sleep(CALM)
        yield Row(part * (connections // parts), seconds, _sample(tunnel.client), _sample(tunnel.server))


def _one_connection(address: str) -> None:
    with connect(address) as sock:
        sock.sendall(REQUEST)
        assert receive_exactly(sock, len(REQUEST)) == REQUEST


def _run_parallel(work: Callable[[], None], times: int, parallel: int) -> None:
    left = iter(range(times))
    failures: list[BaseException] = []

    def run() -> None:
        try:
            while not failures and next(left, None) is not None:
                work()
        except (OSError, AssertionError) as exc:
            failures.append(exc)

    threads = [threading.Thread(target=run, name=f"soak-{number}") for number in range(parallel)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def _sample(program: Program) -> Sample:
    sessions = program.counters()["CurrEstab"]
    return Sample(program.rss(), program.descriptor_count(), program.thread_count(), sessions)


def print_rows(rows: Iterator[Row]) -> list[Row]:
    """Print rows as they come, and give them all."""
    print(f"{'connections':>11} {'per s':>6}   {'client MiB, fds, threads, sessions':<36} server", flush=True)
    seen = []
    for row in rows:
        ends = [
            f"{end.rss / MIB:7.2f} {end.descriptors:4} {end.threads:4} {end.sessions:4}"
            for end in (row.client, row.server)
        ]
        print(f"{row.connections:11} {row.connections / row.seconds:6.0f}   {ends[0]:<36} {ends[1]}", flush=True)
        seen.append(row)
    return seen


def growth(rows: list[Row]) -> tuple[int, int]:
    """Bytes that the client's and the server's memory has grown between the first row and the last."""
    return rows[-1].client.rss - rows[0].client.rss, rows[-1].server.rss - rows[0].server.rss


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tunnel", default="ours", help="ours, ours@DIR or go (ours)")
    parser.add_argument("--connections", type=int, default=100_000, metavar="N")
    parser.add_argument("--parallel", type=int, default=50, metavar="N")
    parser.add_argument("--parts", type=int, default=10, metavar="N", help="samples taken (10)")
    arguments = parser.parse_args()
    options: Options = {"quiet": True}
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # byte code from files, as an installed program has it
    with Target(echo_handler) as target, Tunnel(arguments.tunnel, arguments.tunnel, target.address, options) as tunnel:
        rows = print_rows(soak(tunnel, arguments.connections, arguments.parallel, arguments.parts))
    client, server = growth(rows)
    print(
        f"growth after the first {rows[0].connections}: client {client / MIB:+.2f} MiB, server {server / MIB:+.2f} MiB"
    )


if __name__ == "__main__":
    main()
