"""Signals as an answer to a question, not as an interruption.

In      nothing
Out     the number of the next signal that concerns the program, or None
Knows   which signals stop, report, redial. Not: what is done about them
Cost    one system call per wait

A Python signal handler runs between any two steps of the main thread, also while that holds a lock
which the handler then waits for, for ever. So the signals are blocked in every thread, and the main
thread asks for them.
"""

import signal

STOP = (signal.SIGTERM, signal.SIGINT)
REPORT = signal.SIGUSR1
REDIAL = signal.SIGHUP

_AWAITED = (*STOP, REPORT, REDIAL)


def block() -> None:
    """Keep the signals for `wait`; called by the main thread before it starts others, which inherit this."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _AWAITED)


def wait(timeout_s: float) -> int | None:
    """The next signal, or None if none came within the time."""
    found = signal.sigtimedwait(_AWAITED, timeout_s)
    return found.si_signo if found else None
