"""pycryptodome under whichever of its two names it is installed.

In      module name
Out     the module
Knows   `Crypto` (PyPI pycryptodome, OpenWrt python3-cryptodome) and `Cryptodome` (Debian, pycryptodomex)
Cost    importing a cipher 1.2 MiB resident, when a method first asks for it; see core/lazy_imports

pycryptodome calls its C code through cffi if that is installed, else through ctypes. cffi brings a parser of C,
2 MiB; the search for libraries in ctypes brings subprocess, shutil, tempfile and more, 0.9 MiB, and is not for
pycryptodome's own libraries, which are files beside it. Without both, a batch costs 4 us more to seal, 10 us to open.
Its GCM wants one function of hmac, which loads OpenSSL, 4 MiB.
"""

from _operator import _compare_digest  # what hmac.compare_digest is
from types import ModuleType
from typing import Any

from kcptun_lite.core.lazy_imports import StandIns, import_beside
from kcptun_lite.errors import ConfigError


def load(name: str) -> Any:
    """Module `name` of pycryptodome, for example "Cipher.AES".

    Raises: ConfigError if pycryptodome is not installed.
    """
    no_search = ModuleType("ctypes.util")
    no_search.find_library = None  # type: ignore[attr-defined]
    comparing = ModuleType("hmac")
    comparing.compare_digest = _compare_digest  # type: ignore[attr-defined]
    lean: StandIns = {"cffi": None, "ctypes.util": no_search, "hmac": comparing}
    ways: tuple[StandIns, ...] = (lean, {})  # {}: cffi is there and no ctypes
    for stand_ins in ways:
        for package in ("Crypto", "Cryptodome"):
            try:
                return import_beside(stand_ins, f"{package}.{name}")
            except ImportError:
                continue
    raise ConfigError(
        "this encryption method needs pycryptodome; install it (pip: pycryptodome, OpenWrt: python3-cryptodome)"
    )
