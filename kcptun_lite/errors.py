"""The whole error tree, with the exit code each error ends the program with, and errors of others in words.

A bad *packet* is never an exception: it is dropped and counted. A bad *byte stream* (after KCP has put
it in order) is a `RemoteProtocolError` and ends its session. Everything else below is about our own side.
"""

import errno

REMEDIES = {
    errno.EMFILE: "raise the limit: ulimit -n, LimitNOFILE= of systemd",
    errno.ENFILE: "raise the system's limit: sysctl -w fs.file-max=N",
    errno.EADDRINUSE: "another program listens there: end that one, or name another port",
    errno.EADDRNOTAVAIL: "no interface of this machine has the address",
    errno.EAFNOSUPPORT: "this system has no IPv6",
}
"what the user can do about an error of the system, where its number says enough"


DROPPED = "the other end knows nothing of this session: it was restarted, or has dropped it"


class KcptunError(Exception):
    """Something went wrong that this program raises on purpose."""

    exit_code = 1


class ConfigError(KcptunError):
    """An option, a file or a library is not usable; the text names it and says what to change."""

    exit_code = 2


class ProtocolError(KcptunError):
    """A rule of the protocol was broken; see the two subclasses for by whom."""


class LocalProtocolError(ProtocolError):
    """We used one of our own rooms wrongly: always a bug here."""


class RemoteProtocolError(ProtocolError):
    """The peer's ordered bytes make no sense: the session ends."""


class SnappyError(RemoteProtocolError):
    """The compressed stream is broken."""


class SmuxError(RemoteProtocolError):
    """The stream of smux frames is broken."""


class SmuxVersionError(SmuxError):
    """The frames are of another version; what lies around them was understood."""


class SessionError(KcptunError):
    """The session is over."""


class SessionClosed(SessionError):
    """The session was closed by this end."""


class SessionMoved(SessionClosed):
    """Another process goes on with the session."""


class SessionRefused(SessionError):
    """The server has no room for another session."""


class DeadLink(SessionError):
    """The peer has stopped answering."""


class PathTooNarrow(DeadLink):
    """What is large is lost on the way, and nothing else."""


class KeepaliveTimeout(DeadLink):
    """Nothing was heard from the peer for a whole keep-alive period."""


class StreamError(KcptunError):
    """The stream is over."""


class StreamClosed(StreamError):
    """The stream was closed by this end, or its session died."""


class StreamReset(StreamError):
    """The stream was cut before its end: what was read so far is not all there was."""


class TransportError(KcptunError):
    """A socket failed; `__cause__` is the OSError."""

    exit_code = 3


def nonsense(error: RemoteProtocolError) -> SessionError:
    """What a session ends with when the peer's bytes make no sense."""
    failure = SessionError(f"the peer's stream makes no sense: {error}")
    failure.__cause__ = error
    return failure


def describe_os_error(error: OSError) -> str:
    """The system's words for an error, and what can be done about it."""
    text = error.strerror or str(error)
    return f"{text} ({REMEDIES[error.errno]})" if error.errno in REMEDIES else text


def describe_exception(error: BaseException) -> str:
    """One line about an error that nobody expected, with the place that raised it."""
    if isinstance(error, MemoryError):
        return "no memory left"
    if isinstance(error, RuntimeError) and "new thread" in str(error):
        return "no thread can be started (raise the limit: ulimit -u, TasksMax= of systemd, or free memory)"
    text = describe_os_error(error) if isinstance(error, OSError) else repr(error)
    place = ""
    trace = error.__traceback__
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.startswith("kcptun_lite."):  # the last place of ours, not that in a library
            place = f" at {module.removeprefix('kcptun_lite.')}:{trace.tb_lineno}"
        trace = trace.tb_next
    return text + place
