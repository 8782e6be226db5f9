"""Fixtures for all tests: no thread outlives its test; where kcptun's own programs are."""

import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest

THREADS_END_WITHIN_S = 5.0  # a bound for slow machines; tests that clean up do not wait at all


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    deadline = monotonic() + THREADS_END_WITHIN_S
    started = [thread for thread in threading.enumerate() if thread not in before]
    for thread in started:
        thread.join(max(0.0, deadline - monotonic()))
    left = [thread.name for thread in started if thread.is_alive()]
    assert not left, f"threads left running: {left}"


@pytest.fixture(scope="session")
def upstream() -> tuple[Path, Path]:
    """kcptun's client and server; where CI is set they must be there."""
    client, server = shutil.which("kcptun-client"), shutil.which("kcptun-server")
    if client is None or server is None:
        if os.environ.get("CI"):
            pytest.fail("kcptun-client and kcptun-server are not installed (Debian: apt-get install kcptun)")
        pytest.skip("kcptun-client and kcptun-server are not installed")
    return Path(client), Path(server)
