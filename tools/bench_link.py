"""What a tunnel does for its user on a bad line: ours, the real kcptun and plain TCP on the same emulated one.

In      which tunnels, which losses, how long; root, for tools/link.py
Out     answer times of small requests; goodput of bulk; a quiet stream beside bulk. JSON, tables in Markdown
Knows   TCP, the programs from outside, their counters. Not: anything inside

A tunnel is named by its programs: "ours", "go", "ours-go" (our client, the real server), "go-ours"; "ours@DIR" is
ours from another checkout; "tcp" is none at all. In the request test all of them run at the same time over the same
line, in which there is room for a thousand of them. Bulk runs one after the other, in turn, each on a line of its own
whose losses come from the same seed.

    nice -n -10 python tools/bench_link.py --json results.json           # everything: an hour
    nice -n -10 python tools/bench_link.py --parts goodput --losses 0 0.05 --seconds 5
    python tools/bench_link.py --read results.json                       # the tables again
"""

import argparse
import json
import os
import platform
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from math import ceil
from pathlib import Path
from random import Random
from statistics import median
from time import monotonic, sleep
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, missing_programs, start_client, start_server
from tests.traffic import Target, connect, receive_exactly
from tools.link import Line, Link

RTT = 100.0  # ms
RATE = 100.0  # Mbit/s
QUEUE = 1250.0  # kB; what the line carries in a round trip
BURST = 20.0  # ms; the mean outage of a bursty line
OPTIONS: dict[str, object] = {
    "key": "bench",
    "crypt": "aes",
    "sndwnd": 1024,
    "rcvwnd": 1024,
    "datashard": 10,
    "parityshard": 3,
}
BULK_MODE = "fast2"
MODES = ("normal", "fast", "fast2", "fast3")
LOSSES = (0.0, 0.01, 0.05, 0.1)
TUNNELS = ("ours", "go", "tcp")

REQUEST = struct.Struct("<Id52x")  # number, when it was sent; 64 bytes
PERIOD = 0.025  # s from request to request, answered or not
WARM_UP = 3.0  # s of bulk, and 1/3 of that of requests, that are not counted
LAST_ANSWER = 20.0  # s after the last request; what is not answered by then counts as this long
CHUNK = 256 * 1024  # bytes per send and receive call
ECHO, SOURCE, SINK = b"e", b"s", b"d"  # the first byte of a connection says what it is for
NOISE = Random(1).randbytes(1 << 20)  # repeats farther apart than snappy looks back

Result = dict[str, Any]
LINE_KEYS = ("loss", "burst_ms", "queue_kb")
"what in a result tells its line"


# -- the far end and the roads to it -----------------------------------------------------------------------


class FarEnd:
    """What connections lead to: an echo, a source or a sink that counts."""

    def __init__(self) -> None:
        self.received = 0

    def serve(self, sock: socket.socket) -> None:
        """Do what the connection's first byte says, until it ends."""
        tune(sock)
        order = receive_exactly(sock, 1)
        if order == ECHO:
            while data := sock.recv(CHUNK):
                sock.sendall(data)
        elif order == SOURCE:
            pour(sock)
        else:
            while data := sock.recv(CHUNK):
                self.received += len(data)


def tune(sock: socket.socket) -> None:
    """What matters where this connection itself crosses the line ("tcp")."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"cubic")


def pour(sock: socket.socket) -> None:
    """Send noise until the connection ends. Raises OSError then."""
    while True:
        sock.sendall(NOISE)


class Road:
    """A running tunnel across the link, or none ("tcp"), to a far end."""

    def __init__(self, link: Link, tunnel: str, mode: str) -> None:
        """`with` starts and stops it."""
        self.tunnel = tunnel
        self.far_end = FarEnd()
        self.programs: dict[str, Program] = {}
        self._link = link
        self._options = {**OPTIONS, "mode": mode}

    def __enter__(self) -> "Road":
        link = self._link
        with ExitStack() as stack:
            with link.inside("server"):
                host = link.SERVER if self.tunnel == "tcp" else "127.0.0.1"
                target = stack.enter_context(Target(self.far_end.serve, f"{host}:0"))
            self._address = target.address
            if self.tunnel != "tcp":
                client_kind, _, server_kind = self.tunnel.partition("-")
                with link.inside("server"):
                    options = {"listen": f"{link.SERVER}:0", "target": target.address, **self._options}
                    server, remote = start_server(server_kind or client_kind, options)
                stack.callback(server.stop)
                with link.inside("client"):
                    client, self._address = start_client(client_kind, {"remoteaddr": remote, **self._options})
                stack.callback(client.stop)
                self.programs = {"client": client, "server": server}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def open(self, order: bytes) -> socket.socket:
        """A connection for ECHO, SOURCE or SINK."""
        with self._link.inside("client"):
            sock = connect(self._address, LAST_ANSWER)
        tune(sock)
        sock.sendall(order)
        return sock

    def state(self) -> dict[str, dict[str, float]]:
        """Each program's counters, and its CPU seconds as "cpu"."""
        found = {}
        for end, program in self.programs.items():
            usage = program.usage()
            found[end] = {**program.counters(), "cpu": usage.user + usage.system}
        return found


def conditions(line: Line) -> Result:
    """In what the lines of the measurements differ."""
    return {key: getattr(line, key) for key in LINE_KEYS}


# -- measurements ------------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that `share` of the values do not exceed (nearest rank). Raises IndexError without values."""
    return sorted(values)[max(0, ceil(share * len(values)) - 1)]


class Requests:
    """A request every PERIOD, whether or not the ones before were answered, over one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._times: list[float] = []
        self._sent = 0
        self._is_over = False
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]
        for thread in self._threads:
            thread.start()

    @property
    def count(self) -> int:
        """Requests sent so far."""
        return self._sent

    def times(self, first: int, last: int) -> list[float]:
        """ms from request to answer of the requests first <= number < last."""
        times = self._times[first:last]
        return times + [LAST_ANSWER * 1000] * (last - first - len(times))

    def finish(self) -> None:
        """Send no more, wait for the last answers and close."""
        self._is_over = True
        for thread in self._threads:
            thread.join()
        self._sock.close()

    def _send(self) -> None:
        started = monotonic()
        while not self._is_over:
            sleep(max(0.0, started + self._sent * PERIOD - monotonic()))
            self._sock.sendall(REQUEST.pack(self._sent, monotonic()))
            self._sent += 1

    def _receive(self) -> None:
        with suppress(OSError):
            while not (self._is_over and len(self._times) == self._sent):
                _, sent_at = REQUEST.unpack(receive_exactly(self._sock, REQUEST.size))
                self._times.append((monotonic() - sent_at) * 1000)


def summary(times: Sequence[float]) -> Result:
    """Percentiles of answer times."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {"requests": len(times)} | {name: round(percentile(times, share), 1) for name, share in shares.items()}


def measure_latency(tunnels: Sequence[str], mode: str, line: Line, seconds: float) -> list[Result]:
    """Answer times of all tunnels at once, on one line."""
    with ExitStack() as stack:
        link = stack.enter_context(Link(line))
        roads = [stack.enter_context(Road(link, tunnel, mode)) for tunnel in tunnels]
        streams = [Requests(road.open(ECHO)) for road in roads]
        sleep(WARM_UP / 3)
        first = [stream.count for stream in streams]
        sleep(seconds)
        last = [stream.count for stream in streams]
        for stream in streams:
            stream.finish()
    return [
        {"tunnel": tunnel, "mode": mode, **conditions(line), **summary(stream.times(start, end))}
        for tunnel, stream, start, end in zip(tunnels, streams, first, last, strict=True)
    ]


class Bulk:
    """One connection that is kept full in one direction; `received` grows."""

    def __init__(self, road: Road, direction: str) -> None:
        self._road = road
        self._direction = direction
        self._received = 0
        self._sock = road.open(SINK if direction == "up" else SOURCE)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def received(self) -> int:
        """Bytes that have reached the other end."""
        return self._road.far_end.received if self._direction == "up" else self._received

    def stop(self) -> None:
        """Raises: RuntimeError, with the last lines of the logs, if the connection had ended by itself."""
        if not self._thread.is_alive():
            logs = "\n".join(line for program in self._road.programs.values() for line in program.log[-10:])
            raise RuntimeError(f"{self._road.tunnel}: the bulk connection was cut\n{logs}")
        self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        with suppress(OSError):
            if self._direction == "up":
                pour(self._sock)
            while data := self._sock.recv(CHUNK):
                self._received += len(data)


def measure_goodput(tunnel: str, direction: str, line: Line, seconds: float, seed: int) -> Result:
    """Bulk in one direction, and what it cost."""
    with Link(line, seed=seed) as link, Road(link, tunnel, BULK_MODE) as road:
        bulk = Bulk(road, direction)
        sleep(WARM_UP)
        before, state, started = bulk.received, road.state(), monotonic()
        sleep(seconds)
        took, payload = monotonic() - started, bulk.received - before
        after = road.state()
        total = bulk.received
        bulk.stop()
    lane = link.counters[direction]
    return {
        "tunnel": tunnel,
        "direction": direction,
        **conditions(line),
        "mbit": payload * 8e-6 / took,
        "wire_per_payload": lane["offered_bytes"] / max(1, total),
        "overflowed": lane["overflowed"] / max(1, lane["offered"]),
        "cpu_ms_per_mb": {end: (after[end]["cpu"] - state[end]["cpu"]) * 1e9 / max(1, payload) for end in after},
        "counters": {
            end: {name: int(value - state[end][name]) for name, value in values.items() if value != state[end][name]}
            for end, values in after.items()
        },
        "load": os.getloadavg()[0],
    }


def measure_sharing(tunnel: str, direction: str, line: Line, seconds: float) -> Result:
    """Answer times of a quiet stream, first alone, then beside a bulk stream of the same session."""
    with Link(line) as link, Road(link, tunnel, BULK_MODE) as road:
        quiet = Requests(road.open(ECHO))
        sleep(WARM_UP / 3)
        alone = quiet.count
        sleep(seconds)
        alone_end = quiet.count
        bulk = Bulk(road, direction)
        sleep(WARM_UP)
        beside, received = quiet.count, bulk.received
        sleep(seconds)
        beside_end, payload = quiet.count, bulk.received - received
        quiet.finish()
        bulk.stop()
    return {
        "tunnel": tunnel,
        "direction": direction,
        **conditions(line),
        "alone": summary(quiet.times(alone, alone_end)),
        "beside": summary(quiet.times(beside, beside_end)),
        "mbit": payload * 8e-6 / seconds,
    }


# -- tables ------------------------------------------------------------------------------------------------


def line_name(loss: float, burst_ms: float, queue_kb: float) -> str:
    """What a table calls a line."""
    return f"{loss:.0%}" + (", bursts" if burst_ms else "") + (f", queue {queue_kb:g} kB" if queue_kb != QUEUE else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; numbers to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def grouped(results: Sequence[Result], *keys: str) -> dict[tuple[Any, ...], list[Result]]:
    """Results by the values of some keys, in order of appearance."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:
        groups.setdefault(tuple(result[key] for key in keys), []).append(result)
    return groups


def latency_table(results: Sequence[Result]) -> str:
    tunnels = [tunnel for (tunnel,) in grouped(results, "tunnel")]
    rows = []
    for (mode, *line), found in grouped(results, "mode", *LINE_KEYS).items():
        by_tunnel = {result["tunnel"]: result for result in found}
        cells = [
            " / ".join(f"{by_tunnel[tunnel][name]:.0f}" for name in ("p50", "p95", "p99"))
            if tunnel in by_tunnel
            else ""
            for tunnel in tunnels
        ]
        rows.append([f"{mode}, {line_name(*line)}", *cells])
    return table(["ms: p50 / p95 / p99", *tunnels], rows)


def goodput_table(results: Sequence[Result]) -> str:
    def goodput(runs: Sequence[Result]) -> str:
        mbit, wire = (median(run[key] for run in runs) for key in ("mbit", "wire_per_payload"))
        return f"{mbit:.1f} ({wire:.2f})"

    def cost(runs: Sequence[Result]) -> str:
        if not runs[0]["cpu_ms_per_mb"]:
            return ""  # plain TCP: it is the kernel's
        client, server = (median(run["cpu_ms_per_mb"][end] for run in runs) for end in ("client", "server"))
        return f"{client:.0f} / {server:.0f}"

    tables = [("Mbit/s (bytes on the line per byte)", goodput), ("ms of processor time per MB, client / server", cost)]
    return "\n\n".join(_bulk_table(what, cell, results) for what, cell in tables)


def _bulk_table(what: str, cell: Callable[[Sequence[Result]], str], results: Sequence[Result]) -> str:
    tunnels = [tunnel for (tunnel,) in grouped(results, "tunnel")]
    rows = []
    for (direction, *line), found in grouped(results, "direction", *LINE_KEYS).items():
        runs = {tunnel: list_ for (tunnel,), list_ in grouped(found, "tunnel").items()}
        rows.append(
            [f"{direction}, {line_name(*line)}", *(cell(runs[tunnel]) if tunnel in runs else "" for tunnel in tunnels)]
        )
    return table([what, *tunnels], rows)


def sharing_table(results: Sequence[Result]) -> str:
    rows = []
    for result in results:
        times = [f"{result[when]['p50']:.0f} / {result[when]['p95']:.0f}" for when in ("alone", "beside")]
        line = line_name(*(result[key] for key in LINE_KEYS))
        name = f"{result['tunnel']}, {result['direction']}, {line}"
        rows.append([name, *times, f"{result['mbit']:.1f}"])
    return table(["ms: p50 / p95", "alone", "beside bulk", "bulk, Mbit/s"], rows)


PARTS: dict[str, Callable[[Sequence[Result]], str]] = {
    "latency": latency_table,
    "goodput": goodput_table,
    "sharing": sharing_table,
}


# -- the command line --------------------------------------------------------------------------------------


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--parts", nargs="+", default=[*PARTS], choices=[*PARTS], help="(all)")
    add("--tunnels", nargs="+", default=[*TUNNELS], metavar="NAME", help=f"({' '.join(TUNNELS)})")
    add("--modes", nargs="+", default=[*MODES], choices=MODES, help="of the request test (all)")
    add("--losses", nargs="+", type=float, default=[*LOSSES], metavar="SHARE", help="(0 0.01 0.05 0.1)")
    add("--bursts", nargs="+", type=float, default=[0.0, BURST], metavar="MS", help=f"mean outages (0 {BURST:g})")
    add("--queue", type=float, default=QUEUE, metavar="KB", help=f"of the line, in each direction ({QUEUE:g})")
    add("--directions", nargs="+", default=["up", "down"], choices=["up", "down"], help="of bulk (both)")
    add("--seconds", type=float, default=10.0, help="that are measured in each run (10)")
    add("--rounds", type=int, default=3, metavar="N", help="bulk runs of each tunnel, each with another seed (3)")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    add("--read", nargs="+", type=Path, metavar="FILE", help="measure nothing, print the tables of these")
    options = parser.parse_args()
    if any("go" in name.split("-") for name in options.tunnels) and not options.read:
        if missing := missing_programs("kcptun-client", "kcptun-server"):
            parser.error(f"not on the PATH: {', '.join(missing)} (Debian package kcptun)")
    return options


def run_all(options: argparse.Namespace) -> Iterator[tuple[str, Result]]:
    """Every measurement that was asked for, with the name of its part, as they end."""
    lines = [
        Line(loss=loss, burst_ms=burst, delay_ms=RTT / 2, rate_mbit=RATE, queue_kb=options.queue)
        for burst in options.bursts
        for loss in options.losses
        if loss or not burst
    ]
    if "latency" in options.parts:
        for mode in options.modes:
            for line in lines:
                for result in measure_latency(options.tunnels, mode, line, options.seconds):
                    yield "latency", result
    if "goodput" in options.parts:
        for direction in options.directions:
            for line in lines:
                for seed in range(1, options.rounds + 1):
                    for tunnel in options.tunnels:
                        yield "goodput", measure_goodput(tunnel, direction, line, options.seconds, seed)
    if "sharing" in options.parts:
        for direction in options.directions:
            for line in lines:
                for tunnel in options.tunnels:
                    yield "sharing", measure_sharing(tunnel, direction, line, options.seconds)


def measure_all(options: argparse.Namespace) -> dict[str, Any]:
    """Run everything; what was measured is in the file even if a later run fails."""
    results: dict[str, Any] = {part: [] for part in PARTS}
    results["about"] = {"python": platform.python_version(), "kernel": platform.release(), "cpus": os.cpu_count()}
    try:
        for part, result in run_all(options):
            results[part].append(result)
            shown = {key: value for key, value in result.items() if key not in ("counters", "cpu_ms_per_mb")}
            print(part, json.dumps(shown), file=sys.stderr, flush=True)
    finally:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")
    return results


def main() -> None:
    """The command line."""
    options = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that hosts and programs do not outlive it
    if options.read:
        found = [json.loads(path.read_text()) for path in options.read]
        results = {part: [result for file in found for result in file[part]] for part in PARTS}
    else:
        results = measure_all(options)
    for part, make_table in PARTS.items():
        if results[part]:
            print(f"\n{make_table(results[part])}")


if __name__ == "__main__":
    main()
