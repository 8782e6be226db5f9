"""pycryptodome under whichever of its two names it is installed, and without what it brings but we do not need.

In      module name
Out     the module
Knows   `Crypto` (PyPI pycryptodome, OpenWrt python3-cryptodome) and `Cryptodome` (Debian, pycryptodomex)
Cost    importing a cipher 1.2 MiB resident (4.1 if it went its own way), when a method first asks for it

pycryptodome calls its C code through cffi if that is installed, else through ctypes. cffi brings a parser of C,
2 MiB; the search for libraries in ctypes brings subprocess, shutil, tempfile and more, 0.9 MiB, and is not for
pycryptodome's own libraries, which are files beside it. So cffi looks absent and the search is an empty module
while a cipher is loaded. The price is 4 us more per batch sealed, 10 us more per batch opened.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from kcptun_lite.errors import ConfigError


def load(name: str) -> Any:
    """Module `name` of pycryptodome, for example "Cipher.AES".

    Raises: ConfigError if pycryptodome is not installed.
    """
    no_search = ModuleType("ctypes.util")
    no_search.find_library = None  # type: ignore[attr-defined]
    for stand_ins in ({"cffi": None, "ctypes.util": no_search}, {}):  # nothing hidden: cffi without ctypes will do
        for package in ("Crypto", "Cryptodome"):
            try:
                return _import_beside(stand_ins, f"{package}.{name}")
            except ImportError:
                continue
    raise ConfigError(
        "this encryption method needs pycryptodome; install it (pip: pycryptodome, OpenWrt: python3-cryptodome)"
    )


def _import_beside(stand_ins: dict[str, ModuleType | None], name: str) -> Any:
    """Import a module while stand-ins are there for others, None for "not installed"; the loaded ones stay."""
    hidden = {other: stand_in for other, stand_in in stand_ins.items() if other not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]
    try:
        return import_module(name)
    finally:
        for other in hidden:
            del sys.modules[other]
