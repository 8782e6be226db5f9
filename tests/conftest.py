"""For all tests: no thread outlives its test; hypothesis draws the same examples each time, however long one takes."""

import os
import signal
import threading
from collections.abc import Iterator
from time import monotonic

import pytest
from hypothesis import settings

settings.register_profile("suite", deadline=None, derandomize=True)
settings.load_profile("suite")

# As the worker has it (app/cli). Besides, threads of numpy's would take the signals that tests block and wait for.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# Whoever runs the tests in the background may have SIGINT ignored, nohup SIGHUP; the programs under test inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

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
