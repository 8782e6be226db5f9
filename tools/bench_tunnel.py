"""Throughput, CPU and memory of whole tunnels on loopback, ours beside the real kcptun, in turn.

In      which tunnels, which settings, iperf3
Out     a table of runs, medians of the ratios with their spread; JSON; with --profile, our hottest functions
Knows   iperf3, /proc, py-spy. Not: anything inside the programs

A tunnel is named by its programs: "ours", "go", "ours-go" (our client, the real server), "go-ours"; "ours@DIR"
is ours from another checkout. They run A B A B: a ratio compares two runs that were neighbours, so that what
else the machine does hits both. Every run starts its programs afresh and warms them up before it measures.

    python tools/bench_tunnel.py                                  # ours against go, anchor setting, upload
    python tools/bench_tunnel.py --setting anchor plain --direction up down --streams 1 8 64
    python tools/bench_tunnel.py --tunnels ours ours@../before --pairs 9
    python tools/bench_tunnel.py --profile
"""

import argparse
import json
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, Tunnel, Usage, kcptun_arguments, missing_programs

ANCHOR: dict[str, object] = {
    "crypt": "aes",
    "mode": "fast2",
    "sndwnd": 2048,
    "rcvwnd": 2048,
    "datashard": 10,
    "parityshard": 3,
}
SETTINGS: dict[str, dict[str, object]] = {
    "anchor": ANCHOR,
    "plain": {**ANCHOR, "crypt": "none", "datashard": 0, "parityshard": 0, "nocomp": True},
    "nofec": {**ANCHOR, "datashard": 0, "parityshard": 0},
    "nocomp": {**ANCHOR, "nocomp": True},
    "salsa20": {**ANCHOR, "crypt": "salsa20"},
    "gcm": {**ANCHOR, "crypt": "aes-128-gcm"},
    "smux2": {**ANCHOR, "smuxver": 2},
    "tcp": {**ANCHOR, "datashard": 0, "parityshard": 0, "tcp": True},
    "defaults": {},
}
AS_ROOT = {"tcp"}  # not among all
OURS_ONLY = {"gcm"}  # the Debian program is older than that cipher
GO_INSTEAD = {"defaults": "anchor"}  # with its default windows it moves 27 Mbit/s; ours is to beat its best
WARM_UP_BYTES = "2M"
PROFILE_RATE = 100  # samples a second


@dataclass(frozen=True)
class Load:
    """What iperf3 does in one run."""

    setting: str
    direction: str
    "up (client to server) or down"
    streams: int
    payload: str
    "random or repeating"
    seconds: int

    def __str__(self) -> str:
        streams = "1 stream" if self.streams == 1 else f"{self.streams} streams"
        return " · ".join((self.setting, self.direction, streams, f"{self.payload} payload", f"{self.seconds} s"))


@dataclass(frozen=True)
class Side:
    """What one process spent on one run."""

    user_s_per_mb: float
    system_s_per_mb: float
    peak_rss: int
    "bytes"
    retransmitted: float
    "share of the KCP segments it sent"

    @property
    def cpu_s_per_mb(self) -> float:
        return self.user_s_per_mb + self.system_s_per_mb


@dataclass(frozen=True)
class Run:
    """One measured run; a MB is 10^6 payload bytes as iperf3 received them."""

    tunnel: str
    load: Load
    mbit: float
    "Mbit/s of payload"
    client: Side
    server: Side

    @property
    def cpu_s_per_mb(self) -> float:
        return self.client.cpu_s_per_mb + self.server.cpu_s_per_mb


# What the ratios compare, and how they are called
MEASURES: dict[str, Callable[[Run], float]] = {
    "throughput": lambda run: run.mbit,
    "CPU per MB": lambda run: run.cpu_s_per_mb,
    "CPU per MB, client": lambda run: run.client.cpu_s_per_mb,
    "CPU per MB, server": lambda run: run.server.cpu_s_per_mb,
    "peak RSS, client": lambda run: run.client.peak_rss,
    "peak RSS, server": lambda run: run.server.peak_rss,
}


def iperf3(address: str, *arguments: str, timeout: float) -> dict[str, Any]:
    """The report of an iperf3 client run against "host:port". Raises RuntimeError with iperf3's own words."""
    host, _, port = address.rpartition(":")
    command = ["iperf3", "--json", "--client", host, "--port", port, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    try:
        report: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise RuntimeError(f"iperf3: {done.stderr or done.stdout}") from None
    if "error" in report:
        raise RuntimeError(f"iperf3: {report['error']}")
    return report


def start_iperf3_server() -> tuple[Program, str]:
    """An iperf3 server that is ready, and its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:  # iperf3 wants a number; this one was free a moment ago
        port = probe.getsockname()[1]
    server = Program("iperf3", ["iperf3", "--server", "--bind", "127.0.0.1", "--port", str(port), "--forceflush"])
    server.wait_for_log(r"Server listening")
    return server, f"127.0.0.1:{port}"


def measure(tunnel_name: str, load: Load, profile: "Profile | None" = None) -> Run:
    """One run on fresh programs. Raises RuntimeError or OSError if any of them fails."""
    client_kind, _, server_kind = tunnel_name.partition("-")
    iperf_server, target = start_iperf3_server()
    try:
        setting = GO_INSTEAD.get(load.setting, load.setting) if tunnel_name == "go" else load.setting
        with Tunnel(client_kind, server_kind or client_kind, target, SETTINGS[setting]) as tunnel:
            iperf3(tunnel.address, "--bytes", WARM_UP_BYTES, timeout=30)
            programs = tunnel.client, tunnel.server
            before = [(program.usage(), program.counters()) for program in programs]
            if profile:
                profile.start(tunnel_name, programs, load.seconds)
            report = iperf3(
                tunnel.address,
                *("--time", str(load.seconds), "--parallel", str(load.streams)),
                *(["--reverse"] if load.direction == "down" else []),
                *(["--repeating-payload"] if load.payload == "repeating" else []),
                timeout=load.seconds + 60,
            )
            received = report["end"]["sum_received"]
            megabytes = received["bytes"] / 1e6
            sides = [_side(program, *start, megabytes) for program, start in zip(programs, before, strict=True)]
            if profile:
                profile.wait()
    finally:
        iperf_server.stop()
    return Run(tunnel_name, load, received["bits_per_second"] / 1e6, *sides)


def _side(program: Program, before: Usage, counted_before: dict[str, int], megabytes: float) -> Side:
    after, counted = program.usage(), program.counters()
    sent = counted["OutSegs"] - counted_before["OutSegs"]
    retransmitted = counted["RetransSegs"] - counted_before["RetransSegs"]
    return Side(
        (after.user - before.user) / megabytes,
        (after.system - before.system) / megabytes,
        after.peak_rss,
        retransmitted / max(1, sent),
    )


class Profile:
    """py-spy beside our processes of a run: where their time went, by function."""

    def __init__(self, directory: Path) -> None:
        """Raw profiles (folded stacks with counts) are left in `directory`. Raises FileNotFoundError without py-spy."""
        beside_python = Path(sys.executable).with_name("py-spy")
        found = str(beside_python) if beside_python.exists() else shutil.which("py-spy")
        if found is None:
            raise FileNotFoundError("py-spy is missing: pip install py-spy")
        self._py_spy = found
        self._directory = directory
        self._running: list[tuple[str, Path, Program]] = []

    def start(self, tunnel_name: str, programs: Sequence[Program], seconds: int) -> None:
        """Record those of `programs` that are ours for the time of the run."""
        for program in programs:
            if program.name.startswith("ours"):
                path = self._directory / f"{tunnel_name.replace('/', '_')}-{program.name.rpartition(' ')[2]}.raw"
                arguments = ["--pid", str(program.pid), "--duration", str(seconds), "--rate", str(PROFILE_RATE)]
                command = [self._py_spy, "record", "--format", "raw", "--output", str(path), *arguments]
                self._running.append((program.name, path, Program("py-spy", command)))

    def wait(self) -> None:
        """Wait for the recordings of the run and print their hottest functions."""
        for name, path, recorder in self._running:
            recorder.wait_for_log(r"Wrote raw flamegraph data|Samples: ", timeout=120)
            print(f"\n{name}: self time by function ({path})")
            for share, function in hottest(path.read_text()):
                print(f"  {share:6.1%}  {function}")
        self._running.clear()


def hottest(folded: str, count: int = 30) -> list[tuple[float, str]]:
    """Share of all samples and name of the functions on top of the stacks, the most frequent first."""
    self_time: Counter[str] = Counter()
    for line in folded.splitlines():
        stack, _, samples = line.rpartition(" ")
        self_time[stack.rpartition(";")[2].rpartition(":")[0]] += int(samples)
    everything = max(1, self_time.total())
    return [(samples / everything, function) for function, samples in self_time.most_common(count)]


# -- words -------------------------------------------------------------------------------------------------

COLUMNS = "  {:>3} {:<12} {:>8}   {:>22}   {:>22}   {:>11}   {:>6}"
HEADER = COLUMNS.format("", "tunnel", "Mbit/s", "CPU ms/MB client", "CPU ms/MB server", "RSS MiB", "resent")


def row(number: int, run: Run) -> str:
    """One line of the table. CPU is total (user + system); the resent share is the data sender's."""

    def cpu(side: Side) -> str:
        parts = f"({side.user_s_per_mb * 1000:.1f} + {side.system_s_per_mb * 1000:.1f})"
        return f"{side.cpu_s_per_mb * 1000:7.1f} {parts:>14}"

    rss = f"{run.client.peak_rss / 2**20:.0f} / {run.server.peak_rss / 2**20:.0f}"
    resent = (run.client if run.load.direction == "up" else run.server).retransmitted
    name = run.tunnel if len(run.tunnel) <= 12 else "…" + run.tunnel[-11:]
    return COLUMNS.format(number, name, f"{run.mbit:.1f}", cpu(run.client), cpu(run.server), rss, f"{resent:.2%}")


def ratios(first: Sequence[Run], second: Sequence[Run]) -> dict[str, tuple[float, float, float]]:
    """Median, least and greatest of first[i] / second[i] for every measure."""
    result = {}
    for name, value in MEASURES.items():
        quotients = [value(a) / max(value(b), 1e-9) for a, b in zip(first, second, strict=True)]
        result[name] = median(quotients), min(quotients), max(quotients)
    return result


def bench(tunnels: Sequence[str], load: Load, pairs: int, profile: Profile | None) -> dict[str, Any]:
    """Run the tunnels in turn, print the table, and give all of it for JSON."""
    words = kcptun_arguments(SETTINGS[load.setting])
    print(f"\n{load}\n  {' '.join(words) or 'no options'}", flush=True)
    if "go" in tunnels and load.setting in GO_INSTEAD:
        print(f"  go: {' '.join(kcptun_arguments(SETTINGS[GO_INSTEAD[load.setting]]))}")
    print(HEADER, flush=True)
    runs: dict[str, list[Run]] = {name: [] for name in tunnels}
    for number in range(1, pairs + 1):
        for name in tunnels:
            runs[name].append(measure(name, load, profile))
            print(row(number, runs[name][-1]), flush=True)
    compared = {}
    for other in tunnels[1:]:
        compared[f"{tunnels[0]} / {other}"] = found = ratios(runs[tunnels[0]], runs[other])
        print(f"  {tunnels[0]} / {other}, median (least .. greatest) of {pairs}:")
        for measure_name, (middle, least, greatest) in found.items():
            print(f"    {measure_name:<20} {middle:6.3f}  ({least:.3f} .. {greatest:.3f})")
    return {
        "load": asdict(load),
        "options": SETTINGS[load.setting],
        "runs": {name: [asdict(run) for run in done] for name, done in runs.items()},
        "ratios": compared,
    }


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tunnels", nargs="+", default=["ours", "go"], metavar="NAME", help="ratios: first to each other (ours go)")
    add("--setting", nargs="+", default=["anchor"], choices=[*SETTINGS, "all"], help="(anchor)")
    add("--direction", nargs="+", default=["up"], choices=["up", "down"], help="(up)")
    add("--streams", nargs="+", type=int, default=[1], metavar="N", help="parallel iperf3 streams (1)")
    add(
        "--payload",
        nargs="+",
        default=["random"],
        choices=["random", "repeating"],
        help="repeating compresses (random)",
    )
    add("--pairs", type=int, default=5, help="runs of each tunnel (5)")
    add("--seconds", type=int, default=8, help="length of a run (8)")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    add("--profile", action="store_true", help="record our processes with py-spy; its sampling costs them time")
    options = parser.parse_args(arguments)
    if "all" in options.setting:
        options.setting = [name for name in SETTINGS if name not in AS_ROOT]
    needed = ["iperf3"]
    if any("go" in name.split("-") for name in options.tunnels):
        needed += ["kcptun-client", "kcptun-server"]
    if missing := missing_programs(*needed):
        parser.error(f"not on the PATH: {', '.join(missing)} (Debian packages iperf3 and kcptun)")
    return options


def run_all(options: argparse.Namespace, results: list[dict[str, Any]]) -> None:
    """Every load that was asked for; `results` grows as they end, so that a failure loses nothing measured."""
    profile = Profile(Path(tempfile.mkdtemp(prefix="kcptun-profile-"))) if options.profile else None
    for setting in options.setting:
        tunnels = options.tunnels
        if setting in OURS_ONLY:
            tunnels = [name for name in tunnels if "go" not in name.split("-")]
            if not tunnels:
                print(f"\n{setting}: the real program does not know this cipher; nothing to run")
                continue
        for direction in options.direction:
            for streams in options.streams:
                for payload in options.payload:
                    load = Load(setting, direction, streams, payload, options.seconds)
                    results.append(bench(tunnels, load, options.pairs, profile))


def main() -> None:
    """The command line."""
    options = parse_arguments()
    results: list[dict[str, Any]] = []
    try:
        run_all(options, results)
    except (OSError, RuntimeError, subprocess.TimeoutExpired) as exc:
        print(f"\n{exc}", *getattr(exc, "__notes__", []), sep="\n", file=sys.stderr)
        sys.exit(1)
    finally:
        if options.json:
            options.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
