"""Libraries come without their ballast, and come all the same where that cannot be left out."""

import subprocess
import sys
from importlib import import_module

ROOT_CODE = """
import sys
from kcptun_lite.core.crypt.cryptodome import load
from kcptun_lite.core.lazy_imports import load_numpy
"""


def run(code: str) -> str:
    """What a fresh interpreter prints that runs the code."""
    done = subprocess.run([sys.executable, "-c", ROOT_CODE + code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_cipher_brings_no_parser_and_no_search_for_libraries() -> None:
    code = """
load("Cipher.AES")
print(sorted(name for name in ("cffi", "pycparser", "ctypes.util", "shutil", "tempfile") if name in sys.modules))
import ctypes.util  # the real one is there for others
assert ctypes.util.find_library
"""
    assert run(code) == "[]"


def test_a_cipher_works_through_cffi_where_there_is_no_ctypes() -> None:
    import_module("cffi")  # in the test extra: without it nothing is tested here
    code = """
sys.modules["ctypes"] = sys.modules["_ctypes"] = None
aes = load("Cipher.AES")
print(aes.new(bytes(16), aes.MODE_ECB).encrypt(bytes(16)).hex())
"""
    assert run(code) == "66e94bd4ef8a2c3b884cfa59ca342b2e"


def test_numpy_comes_without_inspect_and_counts_all_the_same() -> None:
    code = """
load_numpy()
import numpy
print("inspect" in sys.modules, numpy.bitwise_xor.reduce(numpy.array([[1, 2], [3, 4]]), axis=0).tolist())
import inspect
assert inspect.signature(run := lambda a: a).parameters and inspect.isfunction(run)
"""
    assert run(code) == "False [2, 6]"


def test_the_stand_in_for_inspect_gives_what_else_is_wanted() -> None:
    code = """
from kcptun_lite.core.lazy_imports import _Inspect
sys.modules.pop("inspect", None)
stand_in = sys.modules["inspect"] = _Inspect("inspect")
print(stand_in.isfunction(load), stand_in.isclass(load), stand_in.cleandoc("a"))
"""
    assert run(code) == "True False a"


def test_a_missing_numpy_is_an_import_error() -> None:
    code = """
sys.modules["numpy"] = None
try:
    load_numpy()
except ImportError:
    print("missing")
"""
    assert run(code) == "missing"
