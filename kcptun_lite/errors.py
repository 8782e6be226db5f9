"""The whole error tree, with the exit code each error ends the program with.

A bad *packet* is never an exception: it is dropped and counted. A bad *byte stream* (after KCP has put
it in order) is a `RemoteProtocolError` and ends its session. Everything else below is about our own side.
"""


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


class SessionError(KcptunError):
    """The session is over."""


class SessionClosed(SessionError):
    """The session was closed by this end."""


class DeadLink(SessionError):
    """The peer has stopped answering."""


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
