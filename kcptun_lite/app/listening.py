"""Listening at the start of a program: a port that is still in use, and sentences about what goes wrong.

In      a function that listens; an option and what it names
Out     its result, or an error with the option's name and what can be done
Knows   what users do wrong. Not: sockets
"""

from collections.abc import Callable
from errno import EACCES, EADDRINUSE
from time import monotonic, sleep
from typing import TypeVar

from kcptun_lite import log
from kcptun_lite.app.config import Endpoint
from kcptun_lite.errors import REMEDIES, TransportError

Listening = TypeVar("Listening")

PATIENCE = 5  # s that a port may be in use at the start: by the program that was killed just now
LOOK = 0.1  # s


def listen_patiently(listen: Callable[[], Listening]) -> Listening:
    """`listen`, again for a while if the port is in use: whoever restarts a program does not wait for its end.

    Raises: TransportError.
    """
    deadline = monotonic() + PATIENCE
    has_told = False
    while True:
        try:
            return listen()
        except TransportError as exc:
            is_in_use = isinstance(exc.__cause__, OSError) and exc.__cause__.errno == EADDRINUSE
            if not is_in_use or monotonic() >= deadline:
                raise
            if not has_told:
                log.info(f"{exc}; trying for {PATIENCE} s")
            has_told = True
        sleep(LOOK)


def cannot_listen(option: str, endpoint: Endpoint, exc: TransportError) -> TransportError:
    """What stopped an option's address from being listened on, with the option's name and what can be done."""
    text, cause = str(exc), exc.__cause__
    if isinstance(cause, OSError):
        remedy = REMEDIES.get(cause.errno or 0, "")
        if cause.errno == EACCES and 0 < endpoint.port_min < 1024:
            remedy = "ports below 1024 are for root, or need CAP_NET_BIND_SERVICE"
        if remedy and remedy not in text:
            text += f" ({remedy})"
    return TransportError(f"{option}: {text}")
