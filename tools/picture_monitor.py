"""Draws docs/monitor.svg: the monitor's screen while two of our programs carry data over a lossy line.

    python tools/picture_monitor.py [FILE]

In      nothing
Out     the picture, of real tunnels and a real run of a minute
Knows   how a screen is left as SVG. Not: what is on it
"""

import asyncio
import re
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import sleep

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from kcptun_lite.monitor.screen import Monitor  # noqa: E402
from tests.programs import Tunnel  # noqa: E402
from tests.traffic import Target, connect, exchange, exchange_handler  # noqa: E402
from tools.lossy_proxy import Link  # noqa: E402

LINE = Link(loss=0.02, delay_ms=40, rate_mbit=30)
SECONDS = 75
SIZE = 100, 30


def carry(address: str, over: threading.Event) -> None:
    """Downloads of several sizes with pauses, until it is over."""
    number = 0
    while not over.is_set():
        number += 1
        with suppress(OSError):  # cut at the end
            exchange(connect(address, timeout=30), up=500_000 * (number % 4), down=9_000_000, seed=number)
        over.wait(2.5)


async def photograph(directory: Path) -> str:
    monitor = Monitor([str(directory)])
    async with monitor.run_test(size=SIZE) as pilot:
        await pilot.pause(SECONDS)
        return monitor.export_screenshot(title="kcptun-lite-monitor")


def main() -> None:
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "monitor.svg"
    over = threading.Event()
    with tempfile.TemporaryDirectory() as name, Target(exchange_handler) as target:
        directory = Path(name)
        with Tunnel(
            "ours",
            "ours",
            target.address,
            link=LINE,
            client_options={"status": directory / "home.json"},
            server_options={"status": directory / "hub.json"},
        ) as tunnel:
            traffic = threading.Thread(target=carry, args=(tunnel.address, over))
            traffic.start()
            sleep(1)
            picture = asyncio.run(photograph(directory))
            over.set()
            tunnel.client.stop()
            traffic.join()
    # The fonts of Textual's pictures come from another host; a browser has one of its own.
    path.write_text(re.sub(r"@font-face\s*{[^}]*}", "", picture), encoding="utf-8")
    print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
