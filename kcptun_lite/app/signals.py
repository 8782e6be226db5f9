"""Signals as an answer to a question, not as an interruption.

In      nothing
Out     the number of the next signal that concerns the program, or None
Knows   which signals stop, drain, report, redial, reload. Not: what is done about them
Cost    one system call per wait

A Python signal handler runs between any two steps of the main thread, also while that holds a lock
which the handler then waits for, for ever. So the signals are blocked in every thread, and the main
thread asks for them.

The start takes a tenth of a second on a PC and seconds on a router. A report or a redial that is wanted
meanwhile waits (`hold`), a reload too, a stop ends the program at once: nothing has begun that would need an end.
"""

import signal

STOP = (signal.SIGTERM, signal.SIGINT)
REPORT = signal.SIGUSR1
REDIAL = signal.SIGHUP
RELOAD = signal.SIGUSR2
DRAIN = signal.SIGQUIT  # as nginx has it: an end that waits for what is open
CHILD = signal.SIGCHLD  # a worker has ended; for their parent alone

_AWAITED = (*STOP, REPORT, REDIAL, RELOAD, DRAIN)
OF_PARENT = (*_AWAITED, CHILD)


def hold() -> None:
    """Keep reports and redials for `wait`, and have a stop end the program without a word; the first thing to do."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored: that may stay
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_BLOCK, (REPORT, REDIAL, RELOAD))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP)


def block(which: tuple[int, ...] = _AWAITED) -> None:
    """Keep all signals for `wait`; the main thread does so before it starts others, which inherit it, as does exec."""
    signal.pthread_sigmask(signal.SIG_BLOCK, which)


def wait(timeout_s: float, among: tuple[int, ...] = _AWAITED) -> int | None:
    """The next signal, or None if none came within the time; those that are not `among` these wait."""
    found = signal.sigtimedwait(among, timeout_s)
    return found.si_signo if found else None


def is_stop_pending() -> bool:
    """Whether a signal to stop waits to be asked for; whoever is busy with something longer looks."""
    return not signal.sigpending().isdisjoint(STOP)
