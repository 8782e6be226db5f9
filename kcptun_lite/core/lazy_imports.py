"""Libraries imported late, and without the modules that they bring along and we have no use for.

In      the name of a library's module
Out     the module; for numpy nothing, it can be imported then
Knows   what pycryptodome and numpy import besides what they need. Not: what they are used for
Cost    a cipher 1.2 MiB resident instead of 4.1, numpy 12.1 instead of 13.0

A stand-in takes the place of such a module while the library is imported, and what is loaded already stays:
then nothing is to be saved. No library is changed, and every import that fails is tried again without stand-ins.
"""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

StandIns = Mapping[str, ModuleType | None]
"module -> what to find in its place; None: nothing, as if it were not installed"


def import_beside(stand_ins: StandIns, name: str) -> Any:
    """Import a module while stand-ins are there for others. Raises: ImportError."""
    hidden = {other: stand_in for other, stand_in in stand_ins.items() if other not in sys.modules}
    sys.modules.update(hidden)  # type: ignore[arg-type]  # None is the documented way to say "not there"
    try:
        return import_module(name)
    finally:
        for other in hidden:
            del sys.modules[other]


def load_numpy() -> None:
    """Make sure that numpy can be imported. Raises: ImportError, whatever it is that fails.

    Left out: its docstrings, and the signatures of its functions, which `inspect` (ast, dis, tokenize) would compute.
    """
    global _has_numpy, _is_numpy_broken
    if _is_numpy_broken:
        raise ImportError("numpy could not be loaded before")
    try:
        _import_numpy()
    except ModuleNotFoundError:
        raise
    except Exception as exc:  # no descriptors, no memory; half of it may be there, and a second try would fail as well
        _is_numpy_broken = True
        raise ImportError(f"numpy cannot be loaded: {exc}") from exc
    _has_numpy = True


def _import_numpy() -> None:
    if not sys.modules.get("numpy"):
        no_docstrings = ("numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars")
        stand_ins = {name: ModuleType(name) for name in no_docstrings}
        import_beside({**stand_ins, "inspect": _Inspect("inspect")}, "numpy")
    import_module("numpy")  # waits for another thread that is at it


_has_numpy = _is_numpy_broken = False


def loaded_numpy() -> Any:
    """numpy if `load_numpy` has loaded it, else None: what it only makes faster is not worth 12 MiB."""
    return sys.modules["numpy"] if _has_numpy else None


class _Inspect(ModuleType):
    """The two functions that numpy calls when it is imported; whatever else it may want comes from the real one."""

    def cleandoc(self, text: str) -> str:
        return text

    def signature(self, function: object) -> None:
        return None

    def __getattr__(self, name: str) -> Any:
        sys.modules.pop("inspect", None)
        real = import_module("inspect")
        sys.modules["inspect"] = self
        vars(self).update(vars(real))
        return getattr(real, name)
