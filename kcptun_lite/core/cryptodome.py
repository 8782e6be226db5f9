"""pycryptodome under whichever of its two names it is installed.

In      module name
Out     the module
Knows   `Crypto` (PyPI pycryptodome, OpenWrt python3-cryptodome) and `Cryptodome` (Debian, pycryptodomex)
Cost    importing a cipher 3 to 5 MiB resident, so it happens when a method first asks for it
"""

from importlib import import_module
from typing import Any

from kcptun_lite.errors import ConfigError


def load(name: str) -> Any:
    """Module `name` of pycryptodome, for example "Cipher.AES".

    Raises: ConfigError if pycryptodome is not installed.
    """
    for package in ("Crypto", "Cryptodome"):
        try:
            return import_module(f"{package}.{name}")
        except ImportError:
            continue
    raise ConfigError(
        "this encryption method needs pycryptodome; install it (pip: pycryptodome, OpenWrt: python3-cryptodome)"
    )
