"""The monitor in headless Chromium, over tunnels that carry data: charts move, keys work, nothing goes wrong.

Not collected with the other tests, because it needs Debian's chromium and chromium-driver, and Selenium:

    make test-monitor

With KCPTUN_SCREENSHOTS=DIR it leaves a picture of the page there.
"""

import os
import shutil
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from tests.programs import Program, Tunnel, free_address, wait_until
from tests.traffic import Target, connect, exchange, exchange_handler
from tools.lossy_proxy import Link

PATIENCE = 60.0  # s; a browser and a screen start, beside other tests
LINE = Link(loss=0.02, delay_ms=20, rate_mbit=20)
# What xterm.js has in its buffer; it draws on a canvas. textual-serve's page keeps the terminal to itself, so the text
# is taken where it comes in.
LISTEN = """
window.texts = [];
const Real = window.WebSocket;
window.WebSocket = class extends Real {
    constructor(...args) {
        super(...args);
        this.addEventListener('message', async event => {
            const data = event.data instanceof Blob ? await event.data.arrayBuffer() : event.data;
            window.texts.push(typeof data === 'string' ? data : new TextDecoder().decode(data));
        });
    }
};
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,800"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": LISTEN})
    yield browser
    browser.quit()


@pytest.fixture(scope="module")
def tunnels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory with the status of a client and a server that carry data."""
    directory = tmp_path_factory.mktemp("run")
    over = threading.Event()

    def carry(address: str) -> None:
        while not over.is_set():
            with suppress(OSError):  # cut at the end
                exchange(connect(address, timeout=30), up=200_000, down=4_000_000, seed=1)
            over.wait(1)

    with (
        Target(exchange_handler) as target,
        Tunnel(
            "ours",
            "ours",
            target.address,
            link=LINE,
            client_options={"status": directory / "home.json"},
            server_options={"status": directory / "hub.json"},
        ) as tunnel,
    ):
        traffic = threading.Thread(target=carry, args=(tunnel.address,))
        traffic.start()
        wait_until(lambda: len([*directory.glob("*.json")]) == 2, "both tell their status")
        yield directory
        over.set()
        tunnel.client.stop()
        traffic.join()


def start_monitor(place: str, directory: Path) -> tuple[Program, str]:
    monitor = Program("monitor", [sys.executable, "-m", "kcptun_lite.monitor", "--web", place, str(directory)])
    return monitor, monitor.wait_for_log(r"open (\S+)").group(1)


class Page:
    """The page as a person with a keyboard sees it."""

    def __init__(self, browser: webdriver.Chrome, url: str) -> None:
        self._browser = browser
        browser.get_log("browser")
        browser.get(url)
        self.wait_for("hub")

    def texts(self) -> str:
        """All that has come since the last `forget`."""
        return "".join(self._browser.execute_script("return window.texts"))  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        self._browser.execute_script("window.texts.length = 0")  # type: ignore[no-untyped-call]

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.texts(), f"{text!r} is shown", PATIENCE)

    def press(self, *keys: str) -> None:
        field = self._browser.find_element(By.CSS_SELECTOR, "textarea")
        field.send_keys(*keys)

    def picture(self) -> bytes:
        return self._browser.get_screenshot_as_png()

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self._browser.get_log("browser") if entry["level"] == "SEVERE"]


def test_charts_move_and_keys_work(browser: webdriver.Chrome, tunnels: Path) -> None:
    monitor, url = start_monitor(free_address("127.0.0.1:0", socket.SOCK_STREAM), tunnels)
    try:
        page = Page(browser, url)
        page.wait_for("Mbit/s")
        before = page.picture()
        wait_until(lambda: page.picture() != before, "the charts move", PATIENCE)
        for _ in range(3):
            page.forget()
            page.wait_for("now ")  # the legend of the round trip, drawn anew
        page.forget()
        page.press("4")
        page.wait_for("RetransSegs")
        page.forget()
        page.press(Keys.ARROW_LEFT)
        page.wait_for("127.0.0.1:")
        page.forget()
        page.press("?")
        page.wait_for("this help")
        page.forget()
        page.press("x")
        page.wait_for("127.0.0.1:")
        page.forget()
        page.press("1")
        page.wait_for("Mbit/s")
        if folder := os.environ.get("KCPTUN_SCREENSHOTS"):
            page.forget()
            threading.Event().wait(60)  # until there is something in the charts
            Path(folder, "monitor-web.png").write_bytes(page.picture())
        page.press("q")
        wait_until(lambda: "-closed" in str(browser.find_element(By.TAG_NAME, "body").get_attribute("class")),
                   "the session has ended", PATIENCE)  # fmt: skip
        assert page.complaints() == []
        hosts = {entry["message"] for entry in browser.get_log("performance") if "googleapis" in entry["message"]}
        assert not hosts, "nothing is asked of other hosts"
    finally:
        monitor.stop()


def test_from_elsewhere_only_with_the_token(browser: webdriver.Chrome, tunnels: Path) -> None:
    port = free_address("127.0.0.1:0", socket.SOCK_STREAM).rpartition(":")[2]
    monitor, url = start_monitor(f"0.0.0.0:{port}", tunnels)
    try:
        browser.get(f"http://127.0.0.1:{port}/")
        assert "token is needed" in browser.find_element(By.TAG_NAME, "body").text
        Page(browser, url.replace("0.0.0.0", "127.0.0.1"))
        assert "token" not in browser.current_url
        (screen,) = Path(f"/proc/{monitor.pid}/task/{monitor.pid}/children").read_text().split()
    finally:
        monitor.stop(signal.SIGKILL)
    # A zombie, where nobody collects it, has no command line.
    command = Path(f"/proc/{screen}/cmdline")
    wait_until(lambda: not command.exists() or not command.read_bytes(), "the screen goes with its server", PATIENCE)
