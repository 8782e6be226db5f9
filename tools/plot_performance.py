"""The pictures of docs/performance.md, from what tools/bench_link.py has measured.

In      JSON files of bench_link.py
Out     performance-latency.png and performance-goodput.png in a directory
Knows   matplotlib (pip install '.[bench]'). Not: how anything was measured

    python tools/plot_performance.py docs/performance.json
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tests.programs import ROOT
from tools.bench_link import RATE, RTT, Result, grouped

# Colours that people with any colour vision can tell apart (Okabe and Ito), and a shape for each besides.
NAMES = {"ours": "kcptun_lite", "go": "kcptun (Go)", "tcp": "plain TCP"}
STYLES = {"ours": ("#0072B2", "o"), "go": ("#D55E00", "s"), "tcp": ("#777777", "^")}
LOSS_NAMES = {False: "each packet by itself", True: "in outages of 20 ms"}
TICKS = (100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)  # ms
DPI = 110


def save(figure: Figure, title: str, path: Path) -> None:
    """Put one legend and a title on top and write the picture."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    figure.legend(handles.values(), handles.keys(), loc="upper right", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.96))
    figure.savefig(path, dpi=DPI)
    pyplot.close(figure)
    print(path)


def tidy(axes: Axes) -> None:
    axes.grid(axis="y", color="#dddddd", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def plot_latency(results: Sequence[Result], path: Path) -> None:
    """One panel for each line; in it, by mode, the median, the 95th and the 99th percentile of each tunnel."""
    by_line = grouped(results, "burst_ms", "loss")
    bursts = sorted({burst for burst, _ in by_line})
    losses = sorted({loss for _, loss in by_line})
    figure, grid = pyplot.subplots(
        len(bursts), len(losses), figsize=(3.1 * len(losses), 3.3 * len(bursts)), sharey=True, squeeze=False
    )
    for row, burst in enumerate(bursts):
        for column, loss in enumerate(losses):
            axes = grid[row][column]
            if (burst, loss) not in by_line:
                axes.set_visible(False)
                continue
            draw_percentiles(axes, by_line[burst, loss])
            axes.set_title(f"{loss:.0%} lost" + (f", {LOSS_NAMES[bool(burst)]}" if loss else ""), fontsize=9)
        shown = [axes for axes in grid[row] if axes.get_visible()]
        shown[0].set_ylabel("ms from request to answer")
        shown[0].tick_params(labelleft=True)
    highest = max(result["p99"] for result in results)
    ticks = [tick for tick in TICKS if tick < 2 * highest]
    grid[0][0].set_yscale("log")  # of all panels
    grid[0][0].set_yticks(ticks, [f"{tick}" for tick in ticks])
    grid[0][0].minorticks_off()
    grid[0][0].set_ylim(RTT * 0.85, highest * 1.2)
    save(figure, f"Answer times, round trip {RTT:g} ms: median, 95 %, 99 %", path)


def draw_percentiles(axes: Axes, results: Sequence[Result]) -> None:
    modes = [mode for (mode,) in grouped(results, "mode")]
    tunnels = [tunnel for (tunnel,) in grouped(results, "tunnel")]
    for index, tunnel in enumerate(tunnels):
        colour, shape = STYLES[tunnel]
        shift = (index - (len(tunnels) - 1) / 2) * 0.24
        found = {result["mode"]: result for result in results if result["tunnel"] == tunnel}
        places = [position + shift for position, mode in enumerate(modes) if mode in found]
        p50, p95, p99 = ([found[mode][name] for mode in modes if mode in found] for name in ("p50", "p95", "p99"))
        axes.vlines(places, p50, p99, color=colour, linewidth=1.5)
        axes.plot(places, p50, shape, color=colour, label=NAMES[tunnel], markersize=5)
        axes.plot(places, p95, shape, color=colour, markerfacecolor="white", markersize=5)
        axes.plot(places, p99, "_", color=colour, markersize=8, markeredgewidth=1.5)
    axes.set_xticks(range(len(modes)), modes)
    tidy(axes)


def plot_goodput(results: Sequence[Result], path: Path) -> None:
    """One panel for each direction and kind of loss; medians of the runs, and all runs as points."""
    clean = [result for result in results if not result["loss"]]
    bursts = sorted({result["burst_ms"] for result in results})
    directions = [direction for (direction,) in grouped(results, "direction")]
    figure, grid = pyplot.subplots(
        len(directions),
        len(bursts),
        figsize=(4.6 * len(bursts), 3.1 * len(directions)),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for row, direction in enumerate(directions):
        for column, burst in enumerate(bursts):
            axes = grid[row][column]
            here = [r for r in [*clean, *results] if r["direction"] == direction and r["burst_ms"] in (0, burst)]
            draw_goodput(axes, [r for r in here if r["burst_ms"] == burst or not r["loss"]])
            axes.set_title(f"{direction}load, lost {LOSS_NAMES[bool(burst)]}", fontsize=9)
            if column == 0:
                axes.set_ylabel("Mbit/s of payload")
            if row == len(directions) - 1:
                axes.set_xlabel("lost, %")
    save(figure, f"Goodput, {RATE:g} Mbit/s, round trip {RTT:g} ms", path)


def draw_goodput(axes: Axes, results: Sequence[Result]) -> None:
    losses = sorted({result["loss"] for result in results})
    for (tunnel,), found in grouped(results, "tunnel").items():
        if tunnel not in STYLES:
            continue
        colour, shape = STYLES[tunnel]
        medians = [median(r["mbit"] for r in found if r["loss"] == loss) for loss in losses]
        line = "--" if tunnel == "tcp" else "-"
        axes.plot([loss * 100 for loss in losses], medians, line + shape, color=colour, label=NAMES[tunnel])
        axes.plot([r["loss"] * 100 for r in found], [r["mbit"] for r in found], shape, color=colour, alpha=0.3, ms=3)
    axes.set_xticks([loss * 100 for loss in losses])
    axes.set_ylim(0, RATE)
    tidy(axes)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="from bench_link.py --json")
    parser.add_argument("--to", type=Path, default=ROOT / "docs", metavar="DIR", help="where the pictures go (docs)")
    options = parser.parse_args()
    files = [json.loads(path.read_text()) for path in options.files]
    if latency := [result for file in files for result in file["latency"]]:
        plot_latency(latency, options.to / "performance-latency.png")
    if goodput := [result for file in files for result in file["goodput"]]:
        plot_goodput(goodput, options.to / "performance-goodput.png")


if __name__ == "__main__":
    main()
