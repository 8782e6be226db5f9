"""The LuCI page in headless Chromium: it renders, validates, saves and shows what the tunnels do.

Not collected with the other tests, because it needs Chromium with its driver, and Selenium:

    python -m pytest tests/openwrt/luci/check_views.py

With KCPTUN_SCREENSHOTS=DIR it leaves pictures of the pages there. LuCI's own JavaScript is replaced by runtime.js;
its RPC by `Backend`, which lets through what our acl.d file grants and nothing else.
"""

import ast
import fnmatch
import json
import math
import os
import re
import shlex
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from kcptun_lite.app.options import OPTIONS
from tests.openwrt.router import FILES, ROOT

HERE = Path(__file__).resolve().parent
APP = ROOT / "openwrt" / "luci-app-kcptun-lite"
VIEWS = APP / "htdocs/luci-static/resources/view"
ACL = json.loads((APP / "root/usr/share/rpcd/acl.d/luci-app-kcptun-lite.json").read_text())["luci-app-kcptun-lite"]
PERMISSION_DENIED = 6  # ubus
NOT_FOUND = 4

Values = dict[str, Any]


# -- the router behind the page ----------------------------------------------------------------------------


def parse(text: str) -> Values:
    """The sections of a UCI file: name -> option -> value, the type under `.type`."""
    sections: Values = {}
    for words in (shlex.split(line, comments=True) for line in text.splitlines()):
        match words:
            case ["config", kind, name]:
                sections[name] = {".type": kind}
            case ["option", option, value]:
                sections[name][option] = value
    return sections


class Backend:
    """rpcd, with a configuration and the files of tunnels that run."""

    def __init__(self) -> None:
        self.values: Values = {}
        self.files: dict[str, str] = {}
        self.applied: list[Values] = []
        "every configuration that was saved"

    def configure(self, text: str) -> None:
        self.values = {name: {**options, ".name": name} for name, options in parse(text).items()}

    def run(self, name: str, pid: int, status: Values | None) -> None:
        self.files[f"/proc/{pid}/comm"] = "kcptun-lite-cli\n"
        if status is not None:
            self.files[f"/var/run/kcptun-lite/{name}.json"] = json.dumps({"pid": pid, **status})

    def call(self, what: str, method: str, parameters: Values) -> tuple[int, Values]:
        """ubus code and answer."""
        read, write = ACL["read"], ACL["write"]
        match what, method:
            case "uci", "get" if parameters["config"] in read["uci"]:
                return 0, {"values": self.values}
            case "uci", "apply" if parameters["config"] in write["uci"]:
                self.values = parameters["values"]
                self.applied.append(self.values)
                return 0, {}
            case "file", "read":
                granted = [path for path, rights in read["file"].items() if "read" in rights]
                if any(fnmatch.fnmatch(parameters["path"], path) for path in granted):
                    data = self.files.get(parameters["path"])
                    return (0, {"data": data}) if data is not None else (NOT_FOUND, {})
        return PERMISSION_DENIED, {}


@pytest.fixture
def backend() -> Iterator[Backend]:
    backend = Backend()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path.startswith("/view/"):
                self.reply((VIEWS / path.removeprefix("/view/")).read_bytes(), "text/javascript")
            elif path == "/runtime.js":
                self.reply((HERE / "runtime.js").read_bytes(), "text/javascript")
            else:
                self.reply((HERE / "index.html").read_bytes(), "text/html")

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            self.reply(json.dumps(backend.call(*request)).encode(), "application/json")

        def reply(self, body: bytes, kind: str) -> None:
            self.send_response(200)
            self.send_header("Content-Type", f"{kind}; charset=utf-8")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    backend.address = f"http://127.0.0.1:{server.server_port}"  # type: ignore[attr-defined]
    yield backend
    server.shutdown()
    server.server_close()
    thread.join()


# -- the browser -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1120,900",
        "--force-color-profile=srgb",
    ):
        options.add_argument(argument)
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield browser
    browser.quit()


class Page:
    """One view, as a person uses it."""

    def __init__(
        self, browser: webdriver.Chrome, backend: Backend, view: str, catalogue: dict[str, str] | None = None
    ) -> None:
        self.browser = browser
        browser.get(backend.address)  # type: ignore[attr-defined]
        browser.execute_script("translate(arguments[0])", catalogue or {})  # type: ignore[no-untyped-call]
        browser.execute_script("load_view(arguments[0])", f"kcptun-lite/{view}")  # type: ignore[no-untyped-call]
        WebDriverWait(browser, 20).until(lambda _: self.all("body.ready, #failure"))
        assert not self.all("#failure"), self.text("#failure")

    def all(self, selector: str) -> list[WebElement]:
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        return self.browser.find_element(By.CSS_SELECTOR, selector).text

    def click(self, selector: str) -> None:
        self.browser.find_element(By.CSS_SELECTOR, selector).click()

    def rows(self, table: str) -> list[list[str]]:
        rows = self.all(f"{table} tr:not(.table-titles)")
        return [[cell.text for cell in row.find_elements(By.CSS_SELECTOR, "td")] for row in rows]

    def poll(self) -> None:
        self.browser.execute_async_script("poll_now().then(arguments[0])")  # type: ignore[no-untyped-call]

    def edit(self, section: str) -> None:
        self.click(f'[data-section-id="{section}"] .edit')

    def tab(self, name: str) -> None:
        self.click(f'.tabs [data-tab="{name}"]')

    def fill(self, option: str, value: str) -> None:
        """Type into a field of the dialog; the right tab must be open."""
        field = self.browser.find_element(By.CSS_SELECTOR, f'[data-name="{option}"] input')
        field.clear()
        field.send_keys(value)

    def value(self, option: str) -> str:
        found = self.browser.find_element(
            By.CSS_SELECTOR, f'[data-name="{option}"] input, [data-name="{option}"] select'
        )
        return found.get_attribute("value") or ""

    def error(self, option: str) -> str:
        return self.text(f'[data-name="{option}"] .error')

    def visible(self, option: str) -> bool:
        return self.browser.find_element(By.CSS_SELECTOR, f'[data-name="{option}"]').is_displayed()

    def save_dialog(self) -> bool:
        """Whether the dialog let itself be closed."""
        self.click("#modal .save")
        return not self.all("#modal")

    def apply(self, backend: Backend) -> Values:
        count = len(backend.applied)
        self.click("#apply")
        WebDriverWait(self.browser, 20).until(lambda _: len(backend.applied) > count)
        return backend.applied[-1]

    def picture(self, name: str) -> None:
        if folder := os.environ.get("KCPTUN_SCREENSHOTS"):
            self.browser.save_screenshot(f"{folder}/openwrt-{name}.png")


def chinese() -> dict[str, str]:
    """The catalogue that po2lmo would make."""
    text = (APP / "po/zh_Hans/kcptun-lite.po").read_text()
    pairs = re.findall(r'^msgid ("(?:.+)")\nmsgstr (".+")$', text, re.M)
    return {ast.literal_eval(source): ast.literal_eval(target) for source, target in pairs}


CONFIG = """
config client 'home'
	option enabled '1'
	option server 'vps.example.org'
	option server_port '29900-29910'
	option local_port '12948'
	option bind_address '192.168.1.1'
	option key 'it is a secret'
	option mtu '1350'

config client 'office'
	option enabled '1'
	option remoteaddr 'a.example.org:29900,b.example.org:29900'
	option localaddr '127.0.0.1:12949'
	option key 'k'

config server 'hub'
	option enabled '0'
	option listen '29900'
	option target '127.0.0.1'
	option target_port '22'
	option key 'k'
"""


def status(updated: int, **values: object) -> Values:
    common: Values = {
        "role": "client", "version": "0.1.0", "uptime_s": 11_100, "sessions": [], "streams": 0, "bytes_in": 0,
        "bytes_out": 0, "packets_in": 0, "packets_out": 0, "retransmitted": 0, "recovered": 0, "lost": 0,
        "checksum_errors": 0, "memory_bytes": 15_938_355, "last_diagnosis": "", "updated": updated,
    }  # fmt: skip
    return common | values


# -- the status page ---------------------------------------------------------------------------------------


def test_status(browser: webdriver.Chrome, backend: Backend) -> None:
    session = {"conv": "001a2b3c", "remote": "198.51.100.7:29904", "rtt_ms": 182, "rto_ms": 240, "streams": 5}
    session |= {"age_s": 190, "idle_s": 2}
    counters = {"packets_out": 2000, "retransmitted": 25, "recovered": 12, "checksum_errors": 4}
    backend.configure(CONFIG)
    backend.run(
        "home", 4242, status(100, sessions=[session], streams=5, bytes_in=12_897_485, bytes_out=1_048_576, **counters)
    )
    page = Page(browser, backend, "status")
    (home, office, hub) = page.rows("#tunnels")
    assert home[:2] == ["home", "Running\n3 h 5 min"]
    assert home[2:] == [
        "1 / 5",
        "…",
        "↓ 12.3 MiB\n↑ 1.0 MiB",
        "1.3 % sent again, 12 recovered, 4 damaged",
        "15.2 MiB",
    ]
    assert office[:2] == ["office", "Not running"]
    assert hub[:2] == ["hub", "Disabled"]
    assert page.rows("#sessions") == [["home", "198.51.100.7:29904", "182 ms", "5", "3 min 10 s", "2 s ago"]]
    assert not page.all(".alert-message")

    later = status(103, sessions=[session], streams=5, bytes_in=12_897_485 + 3 * 1_572_864, bytes_out=1_048_576 + 3072)
    backend.run("home", 4242, later | {"last_diagnosis": "Packets come in damaged: key or crypt differ."} | counters)
    page.poll()
    (home, office, hub) = page.rows("#tunnels")
    assert home[3] == "↓ 1.5 MiB/s\n↑ 1.0 KiB/s"
    assert page.text(".alert-message") == "home: Packets come in damaged: key or crypt differ."


def test_charts_move(browser: webdriver.Chrome, backend: Backend) -> None:
    """A point for each status, however often the page looks; none where nothing is known; six minutes at most."""
    backend.configure(CONFIG)
    received = sent = 0

    def tell(second: int, rtt: int, loss: float | None) -> None:
        nonlocal received, sent
        received += int(5 * 1_200_000 * (1 + math.sin(second / 40)))
        sent += int(5 * 150_000 * (1 + math.cos(second / 25)))
        session = {"conv": "001a2b3c", "remote": "198.51.100.7:29904", "rtt_ms": rtt, "rtt_least_ms": 160, "loss": loss,
                   "in_bytes_s": 1, "out_bytes_s": 1, "streams": 5, "age_s": second, "idle_s": 0}  # fmt: skip
        told = status(second, sessions=[session], session_count=1, streams=5, bytes_in=received, bytes_out=sent)
        backend.run("home", 4242, told)

    tell(0, 170, None)
    page = Page(browser, backend, "status")

    def points(key: str) -> list[tuple[float, float]]:
        line = page.all(f'[data-tunnel="home"] polyline[data-key="{key}"]')[0].get_attribute("points") or ""
        return [(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())]

    assert [len(page.all(".charts")), points("received"), len(points("rtt")), points("loss")] == [1, [], 1, []]
    page.poll()
    assert len(points("rtt")) == 1, "the same status is no new point"
    tell(5, 180, 0.02)
    page.poll()
    first = points("rtt")
    assert [len(points(key)) for key in ("received", "sent", "rtt", "rtt_least", "loss")] == [1, 1, 2, 2, 1]
    assert first[1][0] == 320 and 0 < first[1][1] < first[0][1] < 90, "the newest is at the right edge, more is higher"
    for number in range(2, 90):
        tell(5 * number, 175 + number % 7 * 9, 0.02 + number % 5 / 300)
        page.poll()
    assert len(points("rtt")) == len(points("received")) == 72
    assert all(0 <= x <= 320 and 0 <= y <= 90 for key in ("received", "sent", "rtt", "loss") for x, y in points(key))
    words = [element.text for element in page.all(".charts span")]
    assert words[2:] == ["220 ms", "≥ 160 ms", "3.3 %"] and words[0].startswith("↓ ") and words[0].endswith("iB/s")
    page.picture("status")
    complaints = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry["message"] for entry in complaints if "favicon" not in entry["message"]] == []


def test_status_of_a_program_before_the_charts(browser: webdriver.Chrome, backend: Backend) -> None:
    """A router's programs may be older than its page."""
    backend.configure(CONFIG)
    session = {"conv": "1", "remote": "198.51.100.7:1", "rtt_ms": 50, "streams": 1, "age_s": 1, "idle_s": 0}
    backend.run("home", 4242, status(100, sessions=[session], streams=1))
    page = Page(browser, backend, "status")
    assert page.rows("#tunnels")[0][2] == "1 / 1"
    assert len(page.all(".charts svg")) == 3


def test_status_of_a_process_that_is_gone_is_not_shown(browser: webdriver.Chrome, backend: Backend) -> None:
    backend.configure(CONFIG)
    backend.run("home", 1, status(100, streams=5))
    del backend.files["/proc/1/comm"]
    backend.run("office", 2, status(100, streams=5))
    backend.files["/proc/2/comm"] = "dropbear\n"
    page = Page(browser, backend, "status")
    assert [row[:3] for row in page.rows("#tunnels")][:2] == [
        ["home", "Not running", ""],
        ["office", "Not running", ""],
    ]
    assert page.rows("#sessions") == [["There are no sessions. A client makes one when it is first used."]]


def test_switches_in_words(browser: webdriver.Chrome, backend: Backend) -> None:
    text = CONFIG.replace("option enabled '1'", "option enabled 'Yes'", 1).replace("enabled '1'", "disabled '0'", 1)
    backend.configure(text.replace("enabled '0'", "enabled 'off'"))
    page = Page(browser, backend, "status")
    assert [row[1] for row in page.rows("#tunnels")] == ["Not running", "Not running", "Disabled"]
    page = Page(browser, backend, "tunnels")
    assert page.all('[data-section-id="home"] input[type=checkbox]')[0].is_selected()
    page.edit("home")
    assert page.save_dialog()
    assert page.apply(backend)["home"]["enabled"] in ("Yes", "1")


# -- the page of settings ----------------------------------------------------------------------------------


def test_list_of_tunnels(browser: webdriver.Chrome, backend: Backend) -> None:
    backend.configure(CONFIG)
    page = Page(browser, backend, "tunnels")
    assert [row[2] for row in page.rows("#cbi-client")] == [
        "192.168.1.1:12948 → vps.example.org:29900-29910",
        "127.0.0.1:12949 → a.example.org:29900,b.example.org:29900",
    ]
    assert [row[2] for row in page.rows("#cbi-server")] == ["29900 → 127.0.0.1:22"]
    page.picture("tunnels")
    page.click('[data-section-id="hub"] input[type=checkbox]')
    applied = page.apply(backend)
    assert applied["hub"]["enabled"] == "1"
    assert applied["home"] == {**parse(CONFIG)["home"], ".name": "home"}, "nothing else has changed"


def test_validation_and_saving(browser: webdriver.Chrome, backend: Backend) -> None:
    backend.configure(CONFIG)
    page = Page(browser, backend, "tunnels")
    page.edit("home")
    page.picture("client")
    page.fill("server", "not a host")
    page.fill("server_port", "29910-29900")
    page.fill("key", "")
    assert page.error("server") and page.error("server_port") and page.error("key")
    assert not page.save_dialog()
    page.fill("server", "2001:db8::7")
    page.fill("server_port", "29900")
    page.fill("key", 'it\'s "secret" $HOME `id`')

    page.tab("tuning")
    page.fill("mtu", "9000")
    page.fill("datashard", "200")
    page.fill("parityshard", "57")
    page.fill("memlimit", "many")
    assert page.error("mtu") and page.error("parityshard") and page.error("memlimit")
    assert not page.save_dialog()
    page.picture("validation")
    page.fill("mtu", "1300")
    page.fill("parityshard", "56")
    page.fill("memlimit", "24 MiB")

    page.tab("expert")
    page.fill("smuxbuf", "1048576")
    assert "must not be larger" in page.error("streambuf"), "the default does not fit any more"
    assert not page.save_dialog()
    page.fill("streambuf", "1048576")
    assert not page.visible("interval")
    page.tab("basic")
    page.browser.find_element(By.CSS_SELECTOR, '[data-name="mode"] option[value="manual"]').click()
    page.tab("expert")
    page.fill("interval", "25")
    assert page.save_dialog()

    home = page.apply(backend)["home"]
    assert home["server"] == "2001:db8::7"
    assert home["key"] == 'it\'s "secret" $HOME `id`'
    assert (home["mtu"], home["datashard"], home["parityshard"], home["memlimit"]) == ("1300", "200", "56", "24 MiB")
    assert (home["smuxbuf"], home["streambuf"], home["mode"], home["interval"]) == (
        "1048576",
        "1048576",
        "manual",
        "25",
    )
    assert "nocomp" not in home, "what was not set and not touched stays the program's default"


def test_whole_addresses_stand_for_their_parts(browser: webdriver.Chrome, backend: Backend) -> None:
    backend.configure(CONFIG)
    page = Page(browser, backend, "tunnels")
    page.edit("office")
    assert not page.error("server") and not page.error("local_port")
    page.tab("expert")
    page.fill("remoteaddr", "")
    page.tab("basic")
    assert page.error("server") and page.error("server_port")
    page.click("#modal .dismiss")
    assert page.apply(backend)["office"]["remoteaddr"] == "a.example.org:29900,b.example.org:29900"


@pytest.mark.parametrize("kind", ["client", "server"])
def test_a_new_tunnel_suits_a_small_device(browser: webdriver.Chrome, backend: Backend, kind: str) -> None:
    """It gets what the shipped example has."""
    backend.configure(CONFIG)
    page = Page(browser, backend, "tunnels")
    page.all(f"#cbi-{kind} .cbi-section-create-name")[0].send_keys("new")
    page.click(f"#cbi-{kind} .add")
    assert page.value("crypt") == "aes"
    assert page.error("key")
    page.fill("key", "k")
    if kind == "client":
        page.fill("server", "vps")
    page.click('[data-name="enabled"] input')
    assert page.save_dialog()
    new = page.apply(backend)["new"]
    assert new["enabled"] == "1"
    defaults = {option.dest: option.default(kind) for option in OPTIONS}
    shipped = parse((FILES / "kcptun-lite.config").read_text())[kind]
    for name in (new | shipped).keys() - {"enabled", "key", "server", ".name"}:
        assert new.get(name, defaults.get(name)) == shipped.get(name, defaults.get(name)), name


# -- the rest of the app -----------------------------------------------------------------------------------


def test_chinese(browser: webdriver.Chrome, backend: Backend) -> None:
    backend.configure(CONFIG)
    page = Page(browser, backend, "tunnels", chinese())
    assert page.text("#cbi-client h3") == "客户端"
    page.edit("home")
    assert page.text('[data-name="key"] label') == "密钥"
    page.picture("chinese")


def test_every_text_is_in_the_catalogues() -> None:
    texts = {"kcptun-lite"}
    for path in VIEWS.rglob("*.js"):
        texts |= {ast.literal_eval(found) for found in re.findall(r"\b_\(('(?:[^'\\]|\\.)*')\)", path.read_text())}
    for path in (APP / "root").rglob("*.json"):
        texts |= set(re.findall(r'"(?:title|description)": "([^"]*)"', path.read_text()))
    for catalogue in APP.rglob("po/*/kcptun-lite.po*"):
        ids = {ast.literal_eval(found) for found in re.findall(r'^msgid (".+")$', catalogue.read_text(), re.M)}
        assert ids == texts, catalogue
    for source, target in chinese().items():
        assert re.findall(r"%\w", source) == re.findall(r"%\w", target)
        assert target


def test_the_menu_leads_to_our_views() -> None:
    menu = json.loads((APP / "root/usr/share/luci/menu.d/luci-app-kcptun-lite.json").read_text())
    paths = [entry["action"]["path"] for entry in menu.values() if entry["action"]["type"] == "view"]
    assert sorted(paths) == ["kcptun-lite/status", "kcptun-lite/tunnels"]
    assert all((VIEWS / f"{path}.js").is_file() for path in paths)
    top = menu["admin/services/kcptun-lite"]
    assert top["action"]["path"] in menu
    assert top["depends"]["acl"] == ["luci-app-kcptun-lite"]
