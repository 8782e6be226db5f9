"""Numbers for Prometheus, read anew at each scrape.

In      the status of each tunnel
Out     metrics over HTTP
Knows   names and units by Prometheus' conventions (prometheus.io/docs/practices/naming). Not: how a status is got
Cost    30 MiB; 5 ms for each tunnel and scrape
"""

import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from kcptun_lite.monitor.status import Session, Status
from kcptun_lite.monitor.tunnels import find, read_now


class Counter(NamedTuple):
    """How one of kcptun's counters is called here; some share a name and differ in a label."""

    name: str
    help: str
    labels: dict[str, str]


# Counters are given without `_total`, which the library adds.
COUNTERS: dict[str, Counter] = {
    "BytesReceived": Counter("kcptun_bytes", "Bytes of streams, compressed", {"direction": "in"}),
    "BytesSent": Counter("kcptun_bytes", "Bytes of streams, compressed", {"direction": "out"}),
    "InBytes": Counter("kcptun_packet_bytes", "Bytes of UDP packets", {"direction": "in"}),
    "OutBytes": Counter("kcptun_packet_bytes", "Bytes of UDP packets", {"direction": "out"}),
    "InPkts": Counter("kcptun_packets", "UDP packets", {"direction": "in"}),
    "OutPkts": Counter("kcptun_packets", "UDP packets", {"direction": "out"}),
    "InSegs": Counter("kcptun_segments", "KCP segments", {"direction": "in"}),
    "OutSegs": Counter("kcptun_segments", "KCP segments", {"direction": "out"}),
    "ActiveOpens": Counter("kcptun_sessions_opened", "Sessions since the start", {"by": "us"}),
    "PassiveOpens": Counter("kcptun_sessions_opened", "Sessions since the start", {"by": "peer"}),
    "FastRetransSegs": Counter(
        "kcptun_retransmitted_segments", "Segments sent again, by reason", {"reason": "skipped"}
    ),
    "EarlyRetransSegs": Counter("kcptun_retransmitted_segments", "Segments sent again, by reason", {"reason": "early"}),
    "LostSegs": Counter("kcptun_retransmitted_segments", "Segments sent again, by reason", {"reason": "timeout"}),
    "CopiedSegs": Counter("kcptun_copied_segments", "Copies of thin traffic, sent before any loss is known", {}),
    "RepeatSegs": Counter("kcptun_repeated_segments", "Segments received twice or outside the window", {}),
    "InErrs": Counter("kcptun_receive_errors", "Packets that were dropped, by reason", {"reason": "malformed"}),
    "InCsumErrors": Counter("kcptun_receive_errors", "Packets that were dropped, by reason", {"reason": "checksum"}),
    "KCPInErrors": Counter("kcptun_receive_errors", "Packets that were dropped, by reason", {"reason": "kcp"}),
    "FECParityShards": Counter("kcptun_fec_parity_packets", "Parity packets received", {}),
    "FECRecovered": Counter("kcptun_fec_recovered_packets", "Packets won back by error correction", {}),
    "FECErrs": Counter("kcptun_fec_errors", "Groups that could not be computed", {}),
    "FECShortShards": Counter("kcptun_fec_discarded_packets", "Data packets whose group was never complete", {}),
    "SendDrops": Counter("kcptun_send_drops", "Packets that the system did not take", {}),
    "MemWaits": Counter("kcptun_memory_waits", "Times that --memlimit made something wait", {}),
}
NO_COUNTERS = ("CurrEstab", "MaxConn", "MemHeld", "MemPeak", "RetransSegs")
"levels, which have their gauge below, and the sum of the three reasons"

MEMORY_KINDS = ("sending", "receiving", "buffers_used", "buffers_idle")


class Tunnels(Collector):
    """Collects from all tunnels that there are when it is asked."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._paths = paths

    def describe(self) -> list[Metric]:
        """Nothing, so that registering reads nothing."""
        return []

    def collect(self) -> Iterator[Metric]:
        found = {name: read_now(path).status for name, path in find(self._paths).items()}
        up = GaugeMetricFamily("kcptun_up", "Whether the tunnel runs and tells its status", labels=["tunnel"])
        for name, status in found.items():
            up.add_metric([name], status is not None)
        yield up
        running = {name: status for name, status in found.items() if status is not None}
        yield from _info(running)
        yield from _counters(running)
        yield from _gauges(running)
        yield from _sessions(running)


def _info(running: dict[str, Status]) -> Iterator[Metric]:
    info = InfoMetricFamily("kcptun_tunnel", "What the tunnel is", labels=["tunnel"])
    for name, status in running.items():
        info.add_metric([name], {"role": status.role, "version": status.version})
    yield info


def _counters(running: dict[str, Status]) -> Iterator[Metric]:
    families: dict[str, CounterMetricFamily] = {}
    for key, counter in COUNTERS.items():
        if counter.name not in families:
            labels = ["tunnel", *counter.labels]
            families[counter.name] = CounterMetricFamily(counter.name, counter.help, labels=labels)
        for name, status in running.items():
            if key in status.counters:
                families[counter.name].add_metric([name, *counter.labels.values()], status.counters[key])
    yield from families.values()


def _gauges(running: dict[str, Status]) -> Iterator[Metric]:
    def gauge(name: str, help: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"kcptun_{name}", help, labels=["tunnel"])

    start = gauge("start_time_seconds", "When the tunnel was started, since 1970")
    sessions = gauge("sessions", "Open sessions")
    most = gauge("sessions_peak", "Most sessions that were open at once")
    streams = gauge("connections", "Open connections")
    workers = gauge("workers", "Workers that run, of a server with --workers")
    trouble = gauge("trouble", "Whether the tunnel says that something is wrong")
    resident = gauge("resident_memory_bytes", "Resident memory of the process")
    limit = gauge("memory_limit_bytes", "--memlimit, 0 for none")
    held = gauge("memory_held_bytes", "All that counts for --memlimit")
    peak = gauge("memory_peak_bytes", "Most that ever counted for --memlimit")
    kinds = GaugeMetricFamily("kcptun_memory_bytes", "What is buffered, by purpose", labels=["tunnel", "purpose"])
    for name, status in running.items():
        start.add_metric([name], status.updated - status.uptime_s)
        sessions.add_metric([name], status.session_count)
        most.add_metric([name], status.counters.get("MaxConn", 0))
        streams.add_metric([name], status.streams)
        workers.add_metric([name], len(status.workers))
        trouble.add_metric([name], bool(status.last_diagnosis))
        resident.add_metric([name], status.memory_bytes)
        limit.add_metric([name], status.memory.limit_bytes)
        held.add_metric([name], status.memory.held_bytes)
        peak.add_metric([name], status.memory.peak_bytes)
        for kind in MEMORY_KINDS:
            kinds.add_metric([name, kind], getattr(status.memory, f"{kind}_bytes"))
    yield from (start, sessions, most, streams, workers, trouble, resident, limit, held, peak, kinds)


def _sessions(running: dict[str, Status]) -> Iterator[Metric]:
    labels = ["tunnel", "remote", "session"]

    def gauge(name: str, help: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"kcptun_session_{name}", help, labels=labels)

    def values(session: Session) -> dict[str, float | None]:
        return {
            "rtt_seconds": session.rtt_ms / 1000,
            "rtt_least_seconds": None if session.rtt_least_ms is None else session.rtt_least_ms / 1000,
            "loss_ratio": session.loss,
            "line_bytes_per_second": session.line_bytes_s,
            "connections": session.streams,
            "age_seconds": session.age_s,
            "idle_seconds": session.idle_s,
        }

    families = {
        "rtt_seconds": gauge("rtt_seconds", "Round-trip time, averaged"),
        "rtt_least_seconds": gauge("rtt_least_seconds", "The least round trip: the way without a queue"),
        "loss_ratio": gauge("loss_ratio", "Share of what is sent that is lost"),
        "line_bytes_per_second": gauge("line_bytes_per_second", "What the line carries to the other end"),
        "connections": gauge("connections", "Open connections"),
        "age_seconds": gauge("age_seconds", "Since the session began"),
        "idle_seconds": gauge("idle_seconds", "Since anything has come"),
    }
    bytes_moved = CounterMetricFamily(
        "kcptun_session_bytes", "Bytes of streams, compressed", labels=[*labels, "direction"]
    )
    for name, status in running.items():
        for session in status.sessions:
            who = [name, session.remote, session.conv]
            for key, value in values(session).items():
                if value is not None:
                    families[key].add_metric(who, value)
            bytes_moved.add_metric([*who, "in"], session.bytes_in)
            bytes_moved.add_metric([*who, "out"], session.bytes_out)
    yield from families.values()
    yield bytes_moved


def run(paths: Sequence[str], host: str, port: int) -> int:
    """Serve until the process is ended. Raises: OSError if the address is not to be had."""
    registry = CollectorRegistry()
    registry.register(Tunnels(paths))
    start_http_server(port, host or "0.0.0.0", registry)
    print(f"kcptun-lite-monitor: metrics at http://{host or '0.0.0.0'}:{port}/metrics", flush=True)
    threading.Event().wait()
    return 0
