"""A tunnel at work: our client and server move checked data across a link that loses datagrams.

In      nothing; everything runs on loopback, on free ports, and is gone afterwards
Out     a page of plain text; exit status 0 only if every byte arrived right
Knows   the programs from outside, the lossy proxy. Not: anything inside

    python tools/demo.py
    python tools/demo.py --loss 0.2 --rtt-ms 150 --mib 4
"""

import argparse
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import start_client, start_server
from tests.traffic import Target, connect, exchange, exchange_handler
from tools.lossy_proxy import LaneCounters, Link, LossyProxy

OPTIONS: dict[str, object] = {"key": "a demo", "crypt": "aes", "mode": "fast3", "sndwnd": 1024, "rcvwnd": 1024}
BAR_WIDTH = 30  # characters
REFRESH = 0.2  # s between looks at the progress


class Progress:
    """Bytes moved so far, as a line that is written over again; one line a second where that is not possible."""

    def __init__(self, expected: int, proxy: LossyProxy) -> None:
        self._expected = expected
        self._proxy = proxy
        self._moved = 0
        self._lock = threading.Lock()
        self._started = monotonic()
        self._is_terminal = sys.stdout.isatty()
        self._next_line = self._started

    def add(self, count: int) -> None:
        """Count moved bytes; called by the transfers' threads."""
        with self._lock:
            self._moved += count

    def show(self, *, is_end: bool = False) -> None:
        """Write the line if it is time to."""
        if not (self._is_terminal or is_end) and monotonic() < self._next_line:
            return
        self._next_line = monotonic() + 1
        share = self._moved / self._expected
        bar = ("#" * int(BAR_WIDTH * share)).ljust(BAR_WIDTH, ".")
        mbit = self._moved * 8e-6 / max(1e-3, monotonic() - self._started)
        lost = self._proxy.up.counters.lost + self._proxy.down.counters.lost
        line = f"  [{bar}] {share:4.0%}   {mbit:5.1f} Mbit/s   {lost:,} datagrams lost on the link"
        if self._is_terminal:
            width = shutil.get_terminal_size().columns - 1
            print("\r" + line[:width].ljust(width), end="\n" if is_end else "", flush=True)
        else:
            print(line, flush=True)


def transfer(address: str, size: int, progress: Progress) -> float:
    """Noise and compressible data, each `size` bytes both ways at once, all checked; returns the seconds it took."""
    started = monotonic()
    with ThreadPoolExecutor(2) as pool:
        running = {
            pool.submit(
                exchange,
                connect(address, timeout=15),
                up=size,
                down=size,
                seed=2 * number,
                compressible=number == 1,
                progress=progress.add,
            )
            for number in range(2)
        }
        while not all(one.done() for one in running):
            progress.show()
            threading.Event().wait(REFRESH)
        for one in as_completed(running):
            one.result()
    return monotonic() - started


# -- the page ----------------------------------------------------------------------------------------------


def table(heads: tuple[str, str], rows: list[tuple[str, str, str]]) -> None:
    print(f"\n  {'':<34} {heads[0]:>15} {heads[1]:>15}")
    for name, left, right in rows:
        print(f"  {name:<34} {left:>15} {right:>15}")


def report_link(up: LaneCounters, down: LaneCounters) -> None:
    """What the link did, and what of it reached the user: nothing, or `transfer` would have raised."""

    def row(name: str, field: str) -> tuple[str, str, str]:
        cells = []
        for lane in (up, down):
            count = getattr(lane, field)
            cells.append(f"{count:,} ({count / max(1, lane.received):.1%})")
        return name, cells[0], cells[1]

    table(
        ("up", "down"),
        [
            ("datagrams sent", f"{up.received:,}", f"{down.received:,}"),
            row("  lost on the link", "lost"),
            row("  came late, out of order", "reordered"),
            row("  came twice", "duplicated"),
            ("bytes lost by the user", "0", "0"),
        ],
    )


def report_repairs(client: dict[str, int], server: dict[str, int], moved: int) -> None:
    """How the tunnel made up for it, from the counters both programs print on SIGUSR1."""

    def row(name: str, counter: str) -> tuple[str, str, str]:
        return name, f"{client[counter]:,}", f"{server[counter]:,}"

    table(
        ("client", "server"),
        [
            row("packets won back by FEC", "FECRecovered"),
            row("segments sent again, acks missing", "FastRetransSegs"),
            row("  ... with nothing new to send", "EarlyRetransSegs"),
            row("  ... after a timeout", "LostSegs"),
            row("segments that came twice", "RepeatSegs"),
            row("bytes sent in UDP", "OutBytes"),
            row("bytes sent, compressed", "BytesSent"),
            ("bytes sent by the user", f"{moved:,}", f"{moved:,}"),
        ],
    )


def report_counters(client: dict[str, int], server: dict[str, int]) -> None:
    table(("client", "server"), [(name, f"{client[name]:,}", f"{server[name]:,}") for name in client])


def run(link: Link, size: int) -> None:
    """The whole demo. Raises AssertionError, OSError or RuntimeError if anything went wrong."""
    print(
        "\n  kcptun_lite: TCP through a bad network\n\n"
        "  you --TCP--> client ====UDP====> bad link ====UDP====> server --TCP--> target\n\n"
        f"  The link loses {link.loss:.0%} of the datagrams each way, lets {link.reorder:.0%} come late and\n"
        f"  {link.duplicate:.0%} come twice; a round trip takes {2 * link.delay_ms:.0f} ms. Two connections move\n"
        f"  {size / 2**20:g} MiB of noise and {size / 2**20:g} MiB of text, each way, at the same time.\n"
    )
    with ExitStack() as stack:
        target = stack.enter_context(Target(exchange_handler))
        server, server_address = start_server("ours", {**OPTIONS, "target": target.address})
        stack.callback(server.stop)
        proxy = stack.enter_context(LossyProxy(server_address, link))
        client, address = start_client("ours", {**OPTIONS, "remoteaddr": proxy.address})
        stack.callback(client.stop)
        progress = Progress(4 * size, proxy)
        try:
            seconds = transfer(address, size, progress)
        except BaseException as exc:
            for program in (client, server):
                exc.add_note(f"--- end of the log of {program.name}\n" + "\n".join(program.log[-10:]))
            raise
        progress.show(is_end=True)
        counted = client.counters(), server.counters()
        statuses = server.stop(), client.stop()
        assert statuses == (0, 0), f"server and client ended with status {statuses}"
    print(f"\n  Every byte arrived right: {4 * size:,} bytes, SHA-256 compared at both ends.")
    print(f"  {seconds:.1f} s, {2 * size * 8e-6 / seconds:.1f} Mbit/s up and as much down at the same time.")
    report_link(proxy.up.counters, proxy.down.counters)
    report_repairs(*counted, 2 * size)
    print("\n  All counters, as SIGUSR1 prints them:", end="")
    report_counters(*counted)
    print()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loss", type=float, default=0.05, help="share of datagrams lost, each way (%(default)s)")
    parser.add_argument("--rtt-ms", type=float, default=40, help="round trip time (%(default)s)")
    parser.add_argument(
        "--mib", type=float, default=16, help="MiB for each of the two connections and ways (%(default)s)"
    )
    options = parser.parse_args()
    link = Link(loss=options.loss, reorder=0.02, duplicate=0.01, delay_ms=options.rtt_ms / 2)
    try:
        run(link, int(options.mib * 2**20))
    except (AssertionError, OSError, RuntimeError) as exc:
        print(f"\n  The demo failed: {exc}", *getattr(exc, "__notes__", []), sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
