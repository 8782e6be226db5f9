"""The picture of docs/line.md: a download over a simulated line, as the model of the line sees it.

In      nothing: the line is slow for a while, then as fast as before, and loses a packet in a hundred
Out     line.png in a directory
Knows   matplotlib (pip install '.[bench]'), tests/sim. Not: real time; each run draws the same picture

    python tools/draw_line.py docs
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib import pyplot

from tests.sim.bulk import HEADERS, Bulk

FAST, SLOW = 100.0, 20.0  # Mbit/s
DELAY = 50  # ms each way
QUEUE = 400  # ms that a packet may wait at the slow rate
LOSS = 0.01
SLOW_FROM, SLOW_UNTIL, END = 6_000, 14_000, 20_000  # ms
STEP = 50  # ms
SEGMENT_BITS = 1350 * 8
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#777777"  # colours that people with any colour vision can tell apart


class Moment(NamedTuple):
    """What was so at one time."""

    at: float  # s
    line: float  # Mbit/s of payload that it carries
    goodput: float  # Mbit/s since the moment before
    rate: float  # Mbit/s that the model believes in
    rtt: float  # ms, of the packet that is sent now
    least: int  # ms, of the model
    flight: int  # segments
    window: int  # segments


def watch() -> list[Moment]:
    """A download from its first packet on."""
    bulk = Bulk(rate=FAST, delay=DELAY, queue=QUEUE, loss=LOSS)
    pair, link = bulk.pair, bulk.pair.a_to_b
    moments = []
    while pair.now < END:
        link.rate = SLOW if SLOW_FROM <= pair.now < SLOW_UNTIL else FAST
        goodput = bulk.goodput(STEP)
        model, kcp = bulk.model, pair.a.kcp
        moments.append(
            Moment(
                pair.now / 1000,
                link.rate * (1 - LOSS) * HEADERS,
                goodput,
                model.rate * SEGMENT_BITS / 1000,
                2 * DELAY + max(0.0, link._busy_until - pair.now),
                model.min_rtt,
                kcp.window.unacked,
                model.window,
            )
        )
    return moments


def draw(moments: Sequence[Moment], path: Path) -> None:
    figure, (rates, rtts, flights) = pyplot.subplots(3, 1, figsize=(8.4, 7.2), sharex=True)
    times = [moment.at for moment in moments]
    rates.plot(times, [moment.line for moment in moments], color=GREY, linewidth=4, alpha=0.4, label="the line carries")
    rates.plot(times, _smooth([moment.goodput for moment in moments]), color=BLUE, label="arrives")
    rates.plot(times, [moment.rate for moment in moments], color=ORANGE, linewidth=1, label="the model's rate")
    rates.set_ylabel("Mbit/s")
    rtts.plot(times, [moment.rtt for moment in moments], color=BLUE, label="round trip")
    rtts.plot(times, [moment.least for moment in moments], color=ORANGE, linewidth=1, label="the model's least")
    rtts.set_ylabel("ms")
    flights.plot(times, [moment.flight for moment in moments], color=BLUE, label="under way")
    flights.plot(times, [moment.window for moment in moments], color=ORANGE, linewidth=1, label="the window")
    flights.set_ylabel("packets")
    flights.set_xlabel("s")
    for axes in (rates, rtts, flights):
        axes.set_ylim(bottom=0)
        axes.grid(color="#dddddd")
        axes.legend(loc="upper right", ncols=3, frameon=False)
    rates.set_ylim(top=1.35 * FAST)
    figure.suptitle(f"{FAST:.0f} Mbit/s, for 8 s {SLOW:.0f}; {2 * DELAY} ms; {LOSS:.0%} of all packets lost")
    figure.tight_layout()
    figure.savefig(path, dpi=100)


def _smooth(values: Sequence[float], over: int = 4) -> list[float]:
    return [sum(values[max(0, i - over + 1) : i + 1]) / min(over, i + 1) for i in range(len(values))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    path = parser.parse_args().directory / "line.png"
    draw(watch(), path)
    print(path)


if __name__ == "__main__":
    main()
