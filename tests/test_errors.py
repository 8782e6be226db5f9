"""Errors: the exit codes that docs and init scripts rely on, and the system's errors in words."""

import errno
import os
import socket

import pytest

from kcptun_lite import errors
from kcptun_lite.errors import describe_exception, describe_os_error


def test_exit_codes_are_those_that_are_promised() -> None:
    codes = {name: kind.exit_code for name, kind in vars(errors).items() if hasattr(kind, "exit_code")}
    assert {name: code for name, code in codes.items() if code != 1} == {"ConfigError": 2, "TransportError": 3}


def test_the_systems_words_come_with_what_can_be_done() -> None:
    error = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    assert describe_os_error(error) == "Too many open files (raise the limit: ulimit -n, LimitNOFILE= of systemd)"
    assert describe_os_error(OSError(errno.ENOSPC, "No space left on device")) == "No space left on device"
    assert describe_os_error(OSError("odd")) == "odd"


def test_a_bug_is_told_with_the_last_place_of_ours() -> None:
    from kcptun_lite.net.udp.address import resolve

    with pytest.raises(TypeError) as caught:
        resolve(None, 1, socket.SOCK_STREAM)  # type: ignore[arg-type]
    text = describe_exception(caught.value)
    assert text.startswith("TypeError(") and " at net.udp.address:" in text
    assert describe_exception(ValueError("x")) == "ValueError('x')"
