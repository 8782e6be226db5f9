"""The form of the status, for those who make one: what they all keep to.

In      counters
Out     numbers; the keys that are made of counters
Knows   docs/status.md. Not: what else is in a status
"""

from kcptun_lite.core.counters import CSV_COLUMNS, Counters

SCHEMA = 2  # goes up when a key changes its meaning or goes; new keys leave it. 1, of before, had no number
LISTED = 100  # sessions and connections that are told one by one: those heard last, those opened last


def totals(counters: Counters) -> dict[str, int | dict[str, int]]:
    """The keys of a status that come from counters alone."""
    return {
        "bytes_in": counters.bytes_received,
        "bytes_out": counters.bytes_sent,
        "packets_in": counters.in_packets,
        "packets_out": counters.out_packets,
        "retransmitted": counters.retransmitted,
        "recovered": counters.fec_recovered,
        "lost": counters.lost,
        "checksum_errors": counters.in_checksum_errors,
        "counters": {column: getattr(counters, attribute) for column, attribute in CSV_COLUMNS.items()},
    }
