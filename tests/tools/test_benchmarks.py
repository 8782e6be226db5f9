"""What the benchmarks compute from what they have measured."""

import pytest

from tools.bench_layers import Stopwatch, quartile
from tools.bench_link import goodput_table, grouped, percentile, table


@pytest.mark.parametrize(
    ("count", "share", "expected"),
    [(1, 0.5, 1), (2, 0.5, 1), (3, 0.5, 2), (100, 0.5, 50), (100, 0.95, 95), (100, 1.0, 100), (101, 0.99, 100)],
)
def test_percentile_is_the_nearest_rank(count: int, share: float, expected: int) -> None:
    assert percentile(range(count, 0, -1), share) == expected


def test_quartile() -> None:
    assert quartile([4, 3, 2, 1]) == 2
    with pytest.raises(IndexError):
        quartile([])


def test_stopwatch_counts_full_batches_by_what_each_room_handled() -> None:
    watch = Stopwatch()
    for data, took in ((64, 64e-6), (1, 1.0)):
        watch.start()
        watch.lap("seal")
        watch.lap("kcp")
        watch._laps.update(seal=took, kcp=took)  # in place of the clock's
        watch.end_batch({"seal": 2 * data}, data, payload=data * 1000)
    costs = watch.costs()
    assert costs["kcp"].us_per_packet == pytest.approx(1.0)
    assert costs["seal"].us_per_packet == pytest.approx(0.5)
    assert costs["seal"].ms_per_mb == costs["kcp"].ms_per_mb == pytest.approx(1.0)


def test_tables() -> None:
    assert table(["a", "b"], [["1", "2"]]) == "| a | b |\n| --- | ---: |\n| 1 | 2 |"
    line = {"loss": 0.05, "burst_ms": 20.0, "queue_kb": 100.0}
    runs = [
        {
            "tunnel": "ours",
            "direction": "up",
            **line,
            "mbit": mbit,
            "wire_per_payload": 1.5,
            "cpu_ms_per_mb": {"client": mbit, "server": 40},
        }
        for mbit in (10, 30, 20)
    ]
    assert [*grouped(runs, "tunnel")] == [("ours",)]
    goodput, cost = goodput_table(runs).split("\n\n")
    assert goodput.splitlines()[-1] == "| up, 5%, bursts, queue 100 kB | 20.0 (1.50) |"
    assert cost.splitlines()[-1] == "| up, 5%, bursts, queue 100 kB | 20 / 40 |"
