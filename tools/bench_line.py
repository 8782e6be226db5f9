"""How much of a line a tunnel without options carries, how full it leaves the line's queue, and how soon it answers.

In      which tunnels, which lines, how long; root, for tools/link.py
Out     goodput, bytes on the line per byte, losses of its own making, a quiet stream beside it; first answers; sharing
Knows   tools/bench_link's roads. Not: anything inside

Every tunnel gets a key and addresses and nothing else. "tcp-bbr" and "tcp-cubic" are none at all. What a line can
carry is its rate, less its losses, less 6 % of headers.

    nice -n -10 python tools/bench_line.py --json results.json                 # all lines: an hour
    nice -n -10 python tools/bench_line.py --parts goodput --lines 100x100 --losses 0 0.03 --seconds 10
    python tools/bench_line.py --read results.json                             # the tables again
"""

import argparse
import json
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import start_client, start_server
from tests.traffic import Target, receive_exactly
from tools import bench_link
from tools.bench_link import ECHO, Bulk, FarEnd, Requests, Result, Road, summary
from tools.link import Line, Link

KEY = {"key": "bench"}
HEADERS = 0.94  # of a line is payload: IP, UDP, encryption, KCP, smux
WARM_UP = 3.0  # s
BURST = 20.0  # ms, the mean outage of a bursty line
TUNNELS = ("ours", "go", "tcp-bbr", "tcp-cubic")
LOSSES = (0.0, 0.01, 0.03, 0.05, 0.1)
QUEUES = (0.2, 1.0, 4.0)  # times what the line carries in a round trip


class Kind(NamedTuple):
    """A line to measure on."""

    rate: float
    "Mbit/s"
    rtt: float
    "ms"

    @property
    def name(self) -> str:
        return f"{self.rate:g}x{self.rtt:g}"

    def line(self, loss: float, queue: float, burst: float) -> Line:
        """`queue`: times what it carries in a round trip."""
        size = self.rate * self.rtt / 8  # kB
        return Line(loss, burst, self.rtt / 2, 0.0, self.rate, max(16.0, queue * size))


KINDS = [Kind(100, 100), Kind(100, 200), Kind(20, 40), Kind(200, 30), Kind(10, 300), Kind(500, 10)]


@contextmanager
def road_of(link: Link, tunnel: str) -> Iterator[Road]:
    """A tunnel with no option but its key, or plain TCP with a congestion control."""
    kind, _, control = tunnel.partition("-")
    if kind == "tcp":
        bench_link.tune = partial(tune, control=control)
    bench_link.OPTIONS = KEY
    road = Road(link, kind if kind == "tcp" else tunnel, "")
    road._options = dict(KEY)
    with road:
        yield road


def tune(sock: socket.socket, control: str) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, control.encode())


def measure_goodput(tunnel: str, direction: str, kind: Kind, line: Line, seconds: float) -> Result:
    """Bulk one way with a quiet stream beside it."""
    with Link(line, seed=1) as link, road_of(link, tunnel) as road:
        quiet = Requests(road.open(ECHO))
        sleep(1.0)
        bulk = Bulk(road, direction)
        sleep(WARM_UP)
        before, first, started = bulk.received, quiet.count, monotonic()
        sleep(seconds)
        payload, took, last = bulk.received - before, monotonic() - started, quiet.count
        total = bulk.received
        bulk.stop()
        quiet.finish()
    lane = link.counters[direction]
    can = line.rate_mbit * (1 - line.loss) * HEADERS
    return {
        "part": "goodput",
        "tunnel": tunnel,
        "direction": direction,
        "kind": kind.name,
        "line": asdict(line),
        "mbit": payload * 8e-6 / took,
        "of_line": payload * 8e-6 / took / can,
        "wire_per_payload": lane["offered_bytes"] / max(1, total),
        "overflowed": lane["overflowed"] / max(1, lane["offered"]),
        "quiet": summary(quiet.times(first, last)),
    }


def measure_requests(tunnel: str, line: Line, seconds: float) -> Result:
    """A request of 64 bytes every 25 ms over one connection with nothing beside it."""
    with Link(line, seed=1) as link, road_of(link, tunnel) as road:
        requests = Requests(road.open(ECHO))
        sleep(3.0)
        first = requests.count
        sleep(seconds)
        last = requests.count
        requests.finish()
    return {"part": "requests", "tunnel": tunnel, "line": asdict(line), **summary(requests.times(first, last))}


def measure_first(tunnel: str, line: Line, count: int) -> Result:
    """ms from the connection to the first answer, in new clients: nothing is warm but the server."""
    times = []
    far_end = FarEnd()
    client_kind, _, server_kind = tunnel.partition("-")
    with Link(line, seed=1) as link, ExitStack() as stack:
        with link.inside("server"):
            target = stack.enter_context(Target(far_end.serve, "127.0.0.1:0"))
            server, remote = start_server(
                server_kind or client_kind, {"listen": f"{link.SERVER}:0", "target": target.address, **KEY}
            )
        stack.callback(server.stop)
        for _ in range(count):
            with link.inside("client"):
                client, address = start_client(client_kind, {"remoteaddr": remote, **KEY})
                sleep(1.0)
                host, _, port = address.rpartition(":")
                started = monotonic()
                with socket.create_connection((host, int(port)), 20) as sock:
                    sock.sendall(ECHO + bytes(64))
                    receive_exactly(sock, 64)
                    times.append((monotonic() - started) * 1000)
            client.stop()
    return {"part": "first", "tunnel": tunnel, "line": asdict(line), **summary(times)}


def measure_sharing(first: str, second: str, kind: Kind, line: Line, seconds: float) -> Result:
    """Two downloads at once, the second joining 3 s later: what each gets."""
    with Link(line, seed=1) as link, ExitStack() as stack:
        roads = [stack.enter_context(road_of(link, first)), stack.enter_context(road_of(link, second))]
        bulks = []
        for road, tunnel in zip(roads, (first, second), strict=True):
            if tunnel.startswith("tcp"):
                bench_link.tune = partial(tune, control=tunnel.partition("-")[2])
            bulks.append(Bulk(road, "down"))
            sleep(WARM_UP)
        before = [bulk.received for bulk in bulks]
        sleep(seconds)
        got = [(bulk.received - start) * 8e-6 / seconds for bulk, start in zip(bulks, before, strict=True)]
        for bulk in bulks:
            bulk.stop()
    return {
        "part": "sharing",
        "tunnel": f"{first} + {second}",
        "kind": kind.name,
        "line": asdict(line),
        "mbit": got,
        "shares": [value / max(sum(got), 1e-9) for value in got],
    }


def show(result: Result) -> str:
    line = result["line"]
    where = f"{line['rate_mbit']:g} Mbit/s {2 * line['delay_ms']:g} ms queue {line['queue_kb']:.0f} kB"
    where += f" loss {line['loss']:.0%}"
    where += " bursts" if line["burst_ms"] else ""
    if result["part"] == "goodput":
        quiet = result["quiet"]
        what = (
            f"{result['direction']:4} {result['mbit']:6.1f} Mbit/s {result['of_line']:4.0%} "
            f"wire {result['wire_per_payload']:.2f} own loss {result['overflowed']:.2%} "
            f"quiet p50 {quiet['p50']} p95 {quiet['p95']}"
        )
    elif result["part"] == "sharing":
        what = " : ".join(
            f"{mbit:.1f} ({share:.0%})" for mbit, share in zip(result["mbit"], result["shares"], strict=True)
        )
    else:
        what = f"{result['part']} p50 {result['p50']} p95 {result['p95']} p99 {result['p99']} max {result['max']}"
    return f"{where:55} {result['tunnel']:12} {what}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["goodput", "requests", "first", "sharing"])
    parser.add_argument("--tunnels", nargs="+", default=list(TUNNELS))
    parser.add_argument("--lines", nargs="+", default=[kind.name for kind in KINDS], help="RATExRTT")
    parser.add_argument("--losses", nargs="+", type=float, default=list(LOSSES))
    parser.add_argument("--queues", nargs="+", type=float, default=[1.0])
    parser.add_argument("--directions", nargs="+", default=["up", "down"])
    parser.add_argument("--bursts", action="store_true", help="losses come in outages")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--read", type=Path)
    options = parser.parse_args(arguments)
    if options.read:
        for result in json.loads(options.read.read_text()):
            print(show(result))
        return
    results: list[Any] = []

    def note(result: Result) -> None:
        results.append(result)
        print(show(result), flush=True)
        if options.json:
            options.json.write_text(json.dumps(results, indent=1))

    burst = BURST if options.bursts else 0.0
    kinds = [kind for kind in KINDS if kind.name in options.lines]
    kinds += [Kind(*map(float, name.split("x"))) for name in options.lines if name not in {kind.name for kind in KINDS}]
    for kind in kinds:
        for queue in options.queues:
            for loss in options.losses:
                line = kind.line(loss, queue, burst if loss else 0.0)
                if "goodput" in options.parts:
                    for direction in options.directions:
                        for tunnel in options.tunnels:
                            note(measure_goodput(tunnel, direction, kind, line, options.seconds))
                tunnels = [tunnel for tunnel in options.tunnels if not tunnel.startswith("tcp")]
                if "requests" in options.parts:
                    for tunnel in tunnels:
                        note(measure_requests(tunnel, line, options.seconds))
                if "first" in options.parts:
                    for tunnel in tunnels:
                        note(measure_first(tunnel, replace(line, rate_mbit=0.0), 5))
                if "sharing" in options.parts and not loss:
                    for other in ("ours", "tcp-cubic", "tcp-bbr"):
                        note(measure_sharing("ours", other, kind, line, 3 * options.seconds))


if __name__ == "__main__":
    main()
