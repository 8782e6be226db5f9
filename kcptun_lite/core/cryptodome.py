"""pycryptodome under whichever of its two names it is installed.

In      module name
Out     the module
Knows   `Crypto` (PyPI pycryptodome, OpenWrt python3-cryptodome) and `Cryptodome` (Debian, pycryptodomex)
Cost    importing a cipher 2.1 MiB resident (4.1 with cffi), so it happens when a method first asks for it
"""

import sys
from importlib import import_module
from typing import Any

from kcptun_lite.errors import ConfigError


def load(name: str) -> Any:
    """Module `name` of pycryptodome, for example "Cipher.AES".

    Raises: ConfigError if pycryptodome is not installed.
    """
    # Where cffi is installed pycryptodome calls its C code through it, otherwise through ctypes. cffi brings a
    # parser of C, 2 MiB; ctypes costs 4 us more per batch sealed and 10 us more per batch opened.
    for blocked in (("cffi",), ()):  # OpenWrt's Python may have cffi and no ctypes
        for package in ("Crypto", "Cryptodome"):
            try:
                return _import_without(blocked, f"{package}.{name}")
            except ImportError:
                continue
    raise ConfigError(
        "this encryption method needs pycryptodome; install it (pip: pycryptodome, OpenWrt: python3-cryptodome)"
    )


def _import_without(blocked: tuple[str, ...], name: str) -> Any:
    """Import a module while others look as if they were not installed; those already imported are left alone."""
    hidden = {other: None for other in blocked if other not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None is the documented way to say so
    try:
        return import_module(name)
    finally:
        for other in hidden:
            del sys.modules[other]
