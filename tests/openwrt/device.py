"""A device made of a directory: the packages installed by their Makefiles, and no more Python than they depend on.

In      a directory
Out     the same with /usr/bin, /usr/lib/pythonX.Y as python3-light has it, /etc
Knows   the feed's Makefiles, how OpenWrt splits Python. Not: the service

The standard library is linked file by file without what python3-light lacks, so a module is missing in every
process, also in those that the program starts itself.
"""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SDK = Path(__file__).resolve().parent / "sdk"
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"

# What openwrt/packages' lang/python/python3/files/python3-package-*.mk take out of python3-light.
NOT_IN_LIGHT: dict[str, tuple[str, ...]] = {
    "python3-asyncio": ("asyncio", "_asyncio"),
    "python3-cgi": ("cgi", "cgitb"),
    "python3-codecs": (
        "unicodedata",
        "_codecs_cn",
        "_codecs_hk",
        "_codecs_iso2022",
        "_codecs_jp",
        "_codecs_kr",
        "_codecs_tw",
    ),
    "python3-ctypes": ("ctypes", "_ctypes", "_ctypes_test"),
    "python3-dbm": ("dbm", "_dbm", "_gdbm"),
    "python3-decimal": ("decimal", "_decimal"),
    "python3-dev": ("config-*",),
    "python3-distutils": ("distutils",),
    "python3-email": ("email",),
    "python3-lib2to3": ("lib2to3",),
    "python3-logging": ("logging",),
    "python3-lzma": ("lzma", "_lzma"),
    "python3-multiprocessing": ("multiprocessing", "_multiprocessing"),
    "python3-ncurses": ("curses", "_curses", "_curses_panel"),
    "python3-openssl": ("_ssl", "_hashlib"),
    "python3-pip": ("ensurepip",),
    "python3-pydoc": ("pydoc", "pydoc_data"),
    "python3-readline": ("readline",),
    "python3-sqlite3": ("sqlite3", "_sqlite3"),
    "python3-unittest": ("unittest",),
    "python3-urllib": ("urllib",),
    "python3-uuid": ("uuid", "_uuid"),
    "python3-venv": ("venv",),
    "python3-webbrowser": ("webbrowser",),
    "python3-xml": ("xml", "xmlrpc", "pyexpat", "_elementtree"),
    "nowhere": ("site-packages", "test", "idlelib", "tkinter", "_tkinter", "turtledemo", "turtle"),
}
MISSING = {name for names in NOT_IN_LIGHT.values() for name in names}

# What the packages named in DEPENDS install; python3-cryptodome brings python3-cffi with it.
PACKAGES: dict[str, tuple[str, ...]] = {
    "python3-cryptodome": ("Crypto", "cffi", "_cffi_backend.*", "pycparser"),
    "python3-configargparse": ("configargparse.py",),
    "python3-numpy": ("numpy", "numpy.libs"),
    "python3-cramjam": ("cramjam",),
}


def build(root: Path, work: Path, *packages: str) -> None:
    """Install packages of openwrt/kcptun-lite below `root`, as OpenWrt's build would."""
    make("kcptun-lite", *packages, f"SDK_ROOT={root}", f"SDK_BUILD={work}")


def make(folder: str, *words: str) -> str:
    """Run the Makefile of openwrt/FOLDER with the stand-ins for OpenWrt's includes; its output."""
    variables = [f"TOPDIR={SDK}", f"PYTHON3={sys.executable}", f"PYTHON3_VERSION={VERSION}"]
    done = subprocess.run(
        ["make", "--silent", *words, *variables], cwd=ROOT / "openwrt" / folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def install_python(root: Path, *packages: str) -> None:
    """python3-light below `root`, and these packages of Python modules."""
    library = root / f"usr/lib/python{VERSION}"
    source = Path(sysconfig.get_path("stdlib"))
    (library / "lib-dynload").mkdir(parents=True)
    for entry in [*source.iterdir(), *(source / "lib-dynload").iterdir()]:
        if entry.name.partition(".")[0] in MISSING or entry.name in ("lib-dynload", "__pycache__"):
            continue
        (library / entry.relative_to(source)).symlink_to(entry)
    site = library / "site-packages"
    site.mkdir(exist_ok=True)
    for package in packages:
        for pattern in PACKAGES[package]:
            found = list(Path(sysconfig.get_path("platlib")).glob(pattern))
            assert found or pattern == "numpy.libs", f"{pattern} of {package} is not installed"
            for path in found:
                (site / path.name).symlink_to(path)
    python = root / "usr/bin/python3"
    python.parent.mkdir(exist_ok=True)
    interpreter = Path(getattr(sys, "_base_executable", sys.executable))
    python.write_text(
        # Debian's Python, when it is not in a venv, does not look into site-packages by itself.
        f"#!/bin/sh\nexport PYTHONHOME={root}/usr PYTHONPATH={site} PYTHONDONTWRITEBYTECODE=1\n"
        f'exec {os.path.realpath(interpreter)} "$@"\n'
    )
    python.chmod(0o755)
