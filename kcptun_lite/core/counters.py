"""What is counted: kcp-go's Snmp counters under Python names, and a few of our own behind them.

In      increments, each attribute from one thread at a time
Out     sums over many `Counters`, in the order of kcp-go's CSV file
Knows   names and order (docs/protocol.md, "Counters"). Not: files, sessions

One `Counters` belongs to one session or one socket, so that no increment is ever lost to a second
writer; `total()` sums them for a reader who can live with a number that is a moment old.
"""

from collections.abc import Iterable


class Counters:
    """Counts since the start; `current_established` and `max_connections` are levels."""

    # The class holds the zeros, an instance what has been counted.

    bytes_sent: int = 0
    "bytes given to KCP, after smux and snappy"
    bytes_received: int = 0
    "bytes read from KCP, before snappy and smux"
    max_connections: int = 0
    active_opens: int = 0
    passive_opens: int = 0
    current_established: int = 0
    in_errors: int = 0
    "FEC packets too short, datagrams from a foreign address"
    in_checksum_errors: int = 0
    kcp_in_errors: int = 0
    in_packets: int = 0
    out_packets: int = 0
    in_segments: int = 0
    out_segments: int = 0
    in_bytes: int = 0
    "bytes of valid packets without the crypto header"
    out_bytes: int = 0
    "bytes of packets sent, crypto header included"
    retransmitted: int = 0
    fast_retransmitted: int = 0
    early_retransmitted: int = 0
    lost: int = 0
    "segments sent again after a timeout"
    copied: int = 0
    "copies of thin traffic, sent before any loss is known"
    repeated: int = 0
    "PUSH segments received twice or outside the window"
    fec_parity: int = 0
    "parity packets received"
    fec_errors: int = 0
    fec_recovered: int = 0
    fec_short: int = 0
    "data shards thrown out before their group was complete"
    send_drops: int = 0
    "packets the kernel would not take"
    memory_held: int = 0
    "level: bytes held in buffers and queues"
    memory_peak: int = 0
    memory_waits: int = 0
    "times that something had to be smaller, or to wait, because of --memlimit"

    def __init__(self, **initial: int) -> None:
        vars(self).update(initial)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counters) and all(
            getattr(self, name) == getattr(other, name) for name in CSV_COLUMNS.values()
        )

    __hash__ = None  # type: ignore[assignment]

    def add(self, other: "Counters") -> None:
        for name in CSV_COLUMNS.values():
            setattr(self, name, getattr(self, name) + getattr(other, name))


def total(parts: Iterable[Counters]) -> Counters:
    """The sum of all parts."""
    result = Counters()
    for part in parts:
        result.add(part)
    return result


# kcp-go's name -> ours, in the order of the 2021 generation's CSV header; ours that kcp-go lacks come last.
CSV_COLUMNS: dict[str, str] = {
    "BytesSent": "bytes_sent",
    "BytesReceived": "bytes_received",
    "MaxConn": "max_connections",
    "ActiveOpens": "active_opens",
    "PassiveOpens": "passive_opens",
    "CurrEstab": "current_established",
    "InErrs": "in_errors",
    "InCsumErrors": "in_checksum_errors",
    "KCPInErrors": "kcp_in_errors",
    "InPkts": "in_packets",
    "OutPkts": "out_packets",
    "InSegs": "in_segments",
    "OutSegs": "out_segments",
    "InBytes": "in_bytes",
    "OutBytes": "out_bytes",
    "RetransSegs": "retransmitted",
    "FastRetransSegs": "fast_retransmitted",
    "EarlyRetransSegs": "early_retransmitted",
    "LostSegs": "lost",
    "RepeatSegs": "repeated",
    "FECParityShards": "fec_parity",
    "FECErrs": "fec_errors",
    "FECRecovered": "fec_recovered",
    "FECShortShards": "fec_short",
    "SendDrops": "send_drops",
    "CopiedSegs": "copied",
    "MemHeld": "memory_held",
    "MemPeak": "memory_peak",
    "MemWaits": "memory_waits",
}
