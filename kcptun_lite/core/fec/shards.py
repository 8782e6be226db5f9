"""The sender's shards: the cycle of its seqids, and how to find its parameters from what arrives.

In      runs of data and parity packets
Out     (data shards, parity shards)
Knows   seqids. Not: what is in a packet
Wire    WIRE.md 3.2, 3.6
"""

from collections import deque

from kcptun_lite.core.wire import (
    FEC_MAX_SHARDS,
    MASK32,
)

TUNE_RUNS = 64  # runs of packets remembered for tuning: 32 groups without loss, about 250 packets at 10 % loss


def seqid_end(data_shards: int, parity_shards: int) -> int:
    """The seqid that is never used because the count starts again at 0 (`paws`, WIRE.md 3.2)."""
    group = data_shards + parity_shards
    return MASK32 // group * group


class AutoTune:
    """Finds the sender's parameters in the order of data and parity packets (WIRE.md 3.6, new)."""

    def __init__(self) -> None:
        self._runs: deque[tuple[int, int, bool]] = deque(maxlen=TUNE_RUNS)
        "seqids first..end-1 came one after the other, all data or all parity"

    def sample(self, first: int, end: int, is_data: bool) -> None:
        """Remember a run of packets."""
        runs = self._runs
        if runs and runs[-1][1] == first and runs[-1][2] == is_data:
            first = runs.pop()[0]
        runs.append((first, end, is_data))

    def find(self) -> tuple[int, int] | None:
        """(data shards, parity shards), or None while that cannot be told.

        A run counts when its neighbours on both sides are there and of the other kind. The newest such run of
        data and of parity must agree with each other on where groups begin.
        """
        merged: list[tuple[int, int, bool]] = []
        for first, end, is_data in sorted(self._runs):
            if merged and merged[-1][2] == is_data and first <= merged[-1][1]:
                first, end = merged[-1][0], max(end, merged[-1][1])
                merged.pop()
            merged.append((first, end, is_data))
        newest: dict[bool, tuple[int, int]] = {}
        for before, (first, end, is_data), after in zip(merged, merged[1:], merged[2:], strict=False):
            if before[1] == first and end == after[0]:
                newest[is_data] = (first, end - first)
        if len(newest) < 2:
            return None
        (data_first, data), (parity_first, parity) = newest[True], newest[False]
        group = data + parity
        if group > FEC_MAX_SHARDS or data_first % group or parity_first % group != data:
            return None
        return data, parity
