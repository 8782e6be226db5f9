"""The plan of the house: who may import whom, what may not be imported at all, and the card at every door."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "kcptun_lite"

# A module imports only from modules of a lower level.
LEVELS = {
    "": 0,
    "errors": 0,
    "core.wire": 0,
    "core.counters": 0,
    "core.pacing": 0,
    "files": 0,
    "log": 1,
    "core.budget": 1,
    "core.guests": 0,
    "core.strided": 1,
    "core.rows": 2,
    "core.buffers": 3,
    "core.reed_solomon": 2,
    "core.group_parity": 3,
    "core.pbkdf2": 2,
    "core.cryptodome": 2,
    "core.gcm": 3,
    "core.ciphers": 4,
    "core.qpp": 3,
    "core.recovery": 3,
    "core.snappy": 3,
    "core.smux": 3,
    "core.datagrams": 4,
    "core.queue": 3,
    "core.reception": 3,
    "core.fec": 4,
    "core.crypt": 5,
    "core.kcp": 5,
    "core.conversation": 6,
    "net.address": 7,
    "net.sockopt": 7,
    "net.ticker": 7,
    "net.udp": 8,
    "net.doors": 9,
    "net.stream": 8,
    "net.scout": 9,
    "net.session": 10,
    "net.suspects": 10,
    "net.endpoint": 11,
    "net.relay": 11,
    "net.route": 10,
    "net.dialer": 12,
    "net.listener": 12,
    "app.config": 13,
    "app.diagnosis": 13,
    "app.evidence": 14,
    "app.signals": 13,
    "app.stats": 13,
    "app.status": 13,
    "app.memory": 14,
    "app.tunnel": 15,
    "app.keeper": 15,
    "app.check": 16,
    "app.client": 16,
    "app.server": 16,
    "app.worker": 17,
    "app.values": 18,
    "app.options": 19,
    "app.parsing": 20,
    "app.cli": 21,
    "__main__": 22,
}

# OpenWrt's python3-light lacks some of these, and all cost memory.
NOWHERE = {"asyncio", "ctypes", "decimal", "logging", "multiprocessing", "ssl", "urllib"}
# The core computes; sockets, threads, clocks, chance and logs are its callers' business.
NOT_IN_CORE = {"os", "random", "secrets", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"}
# Megabytes that only those pay for who use them: imported inside functions.
LATE = {"Crypto", "cramjam", "cryptography", "hashlib", "numpy"}

PATHS = sorted(PACKAGE.rglob("*.py"))
ROOMS = [path for path in PATHS if path.name not in ("__init__.py", "errors.py")]


def module_name(path: Path) -> str:
    """core/kcp.py -> core.kcp; the package itself is the empty name."""
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


@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_imports_go_down(path: Path) -> None:
    name = module_name(path)
    if path.name == "__init__.py":
        assert not list(imports(path)), f"{name} holds more than a docstring and the version"
        return
    assert name in LEVELS, f"{name} has no level yet"
    for imported in imports(path):
        below = imported.removeprefix("kcptun_lite").removeprefix(".")
        if imported.startswith("kcptun_lite") and below in LEVELS:
            assert LEVELS[below] < LEVELS[name], f"{name} (level {LEVELS[name]}) imports {below} ({LEVELS[below]})"


@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_forbidden_imports_are_absent(path: Path) -> None:
    assert not roots(path) & NOWHERE
    assert not roots(path, only_early=True) & LATE
    if "core" in path.parts:
        assert not roots(path) & NOT_IN_CORE


@pytest.mark.parametrize("path", ROOMS, ids=module_name)
def test_every_room_has_its_card(path: Path) -> None:
    card = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    first, *rest = card.splitlines()
    assert first.endswith("."), "the first line is one sentence"
    headings = [line.split()[0] for line in rest if line and not line.startswith(" ")]
    assert {"In", "Out", "Knows"} <= set(headings)


@pytest.mark.parametrize("path", PATHS, ids=module_name)
def test_files_can_be_read_in_one_sitting(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 500


def test_this_test_sees_imports_wherever_they_hide(tmp_path: Path) -> None:
    path = tmp_path / "room.py"
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import numpy\n"
        "def late() -> None:\n    from kcptun_lite.core import kcp\n    import hashlib\n"
    )
    assert {"kcptun_lite.core.kcp", "numpy", "hashlib"} <= set(imports(path))
    assert roots(path, only_early=True) == {"typing"}
