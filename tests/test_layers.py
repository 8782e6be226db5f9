"""The plan of the house: who may import whom, what may not be imported at all, and the card at every socket."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kcptun_lite"

# The floors, lowest first. A module imports from its own package and from floors below, not from its neighbours.
FLOORS: tuple[set[str], ...] = (
    {"", "errors", "files", "core.wire", "core.counters", "core.lazy_imports", "core.question", "core.validation"},
    {"log", "core.budget"},
    {"core.batch"},
    {"core.kcp", "core.fec", "core.crypt", "core.mux"},
    {"core.params", "core.glance", "core.overtaking"},
    {"core.streams"},
    {"core.conversation"},
    {"core.resting"},
    {"net.event_loop"},
    {"net.packet_socket"},
    {"net.udp"},
    {"net.session"},
    {"net.tcp", "net.ends", "net.fake_tcp"},
    {"app"},
    {"__main__"},
    {"monitor"},
)
FLOOR_OF = {name: floor for floor, names in enumerate(FLOORS) for name in names}

# OpenWrt's python3-light lacks some of these, and all cost memory.
NOWHERE = {"asyncio", "ctypes", "decimal", "logging", "multiprocessing", "ssl", "urllib"}
# The core computes; sockets, threads, clocks, chance and logs are its callers' business.
NOT_IN_CORE = {"os", "random", "secrets", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"}
# Megabytes that only those pay for who use them: imported inside functions.
LATE = {"Crypto", "cramjam", "cryptography", "hashlib", "numpy"}

# The monitor is another program: it reads what the tunnels tell, and has libraries that they must not pay for.
MONITOR = "monitor"
OF_MONITOR = {"", MONITOR}

PATHS = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in PATHS if path.name not in ("__init__.py", "errors.py")]


def module_name(path: Path) -> str:
    """core/kcp/kcp.py -> core.kcp.kcp; the package itself is the empty name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path, *, only_early: bool = False) -> Iterator[str]:
    """Every module a file imports, `a.b` for `from a import b` too; `only_early`: those run by importing the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    late = set()
    if only_early:
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
        typing = [
            node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        ]
        late = {inner for outer in (*functions, *typing) for inner in ast.walk(outer)}
    for node in ast.walk(tree):
        if node in late:
            continue
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{name.name}" for name in node.names)


def roots(path: Path, *, only_early: bool = False) -> set[str]:
    return {name.partition(".")[0] for name in imports(path, only_early=only_early)}


def package_of(name: str) -> str:
    """The name on a floor that holds a module: itself, or its package."""
    while name not in FLOOR_OF and "." in name:
        name = name.rpartition(".")[0]
    return name


def is_ours(imported: str) -> bool:
    return imported == "kcptun_lite" or imported.startswith("kcptun_lite.")


def own_imports(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    names = {module_name(other) for other in PATHS}
    found = {name.removeprefix("kcptun_lite").removeprefix(".") for name in imports(path) if is_ours(name)}
    return found & names


@pytest.mark.once
@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    name = module_name(path)
    if path.name == "__init__.py":
        assert not list(imports(path)), f"{name} holds more than a docstring and the version"
        return
    package = package_of(name)
    assert package in FLOOR_OF, f"{name} is on no floor"
    for below in own_imports(path):
        if package_of(below) != package:
            floors = FLOOR_OF[package_of(below)], FLOOR_OF[package]
            assert floors[0] < floors[1], f"{name} imports {below}, which is not below it"


def test_there_is_no_circle_in_a_package() -> None:
    left = {module_name(path): own_imports(path) for path in PATHS}
    while free := {name for name, below in left.items() if not below & set(left)}:
        left = {name: below for name, below in left.items() if name not in free}
    assert not left


@pytest.mark.once
@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_forbidden_imports_are_absent(path: Path) -> None:
    if MONITOR in path.parts:
        return
    assert not roots(path) & NOWHERE
    assert not roots(path, only_early=True) & LATE
    if "core" in path.parts:
        assert not roots(path) & NOT_IN_CORE


def test_the_monitor_stands_alone() -> None:
    """It imports nothing of the tunnels, and nothing of them imports it."""
    for path in PATHS:
        packages = {package_of(name) for name in own_imports(path)}
        assert packages <= OF_MONITOR if MONITOR in path.parts else MONITOR not in packages, path


def test_programs_start_without_the_monitors_libraries() -> None:
    """Also where they are installed."""
    code = "import sys, kcptun_lite.app.client, kcptun_lite.app.server, kcptun_lite.app.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    loaded |= {name for name in done.stdout.split() if name.startswith("kcptun_lite.")}
    assert not loaded & {"textual", "rich", "aiohttp", "prometheus_client", "asyncio", "json", "kcptun_lite.monitor"}
    assert not {name for name in loaded if name.startswith("kcptun_lite.net.fake_tcp")}
    assert not loaded & {"kcptun_lite.app.status", "kcptun_lite.app.status_file", "kcptun_lite.app.status_socket"}


@pytest.mark.once
@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_module_has_its_card(path: Path) -> None:
    card = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first, *rest = card.splitlines()
    assert first.endswith("."), "the first line is one sentence"
    headings = [line.split()[0] for line in rest if line and not line.startswith(" ")]
    assert {"In", "Out", "Knows"} <= set(headings)


@pytest.mark.once
@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 500


def test_this_test_sees_imports_wherever_they_hide(tmp_path: Path) -> None:
    path = tmp_path / "room.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\n"
        "def late() -> None:\n    from kcptun_lite.core.kcp.kcp import kcp\n    import hashlib\n"
    )
    assert {"kcptun_lite.core.kcp.kcp", "numpy", "hashlib"} <= set(imports(path))
    assert roots(path, only_early=True) == {"typing"}
