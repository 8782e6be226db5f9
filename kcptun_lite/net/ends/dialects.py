"""Finds out what a server speaks, by trying: which dialect next, and what was found at which server.

In      dialects in the order of their likelihood; sessions that were understood, or dropped
Out     what to speak to a server; the same session in the next dialect
Knows   what was found since the start. Not: how a session tells (core/mux/dialect), options
Cost    two round trips and some 50 ms for each dialect that is not the server's
"""

from collections.abc import Callable, Sequence
from threading import Lock

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.mux.dialect import Dialect, Guess
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.udp.address import format_host


class Dialects:
    """What may be spoken, and what was found; thread-safe."""

    def __init__(
        self, likely: Sequence[Dialect], on_found: Callable[[Session, Dialect], None] = lambda session, dialect: None
    ) -> None:
        """`likely`: what may be tried, the likeliest first; one alone is no guess.

        `on_found` is told of the first session of a server that is understood, and when that server has changed.
        """
        self._likely = tuple(likely)
        self._on_found = on_found
        self._found: dict[str, Dialect] = {}
        "host -> what its server spoke last"
        self._lock = Lock()

    def order(self, remote: Address) -> list[Dialect]:
        """What to try at a server, one after the other: first what was found there."""
        known = self._found.get(format_host(remote))
        return sorted(self._likely, key=lambda dialect: dialect != known)

    def prefer(self, remote: Address, version: int) -> bool:
        """Speak this version to a server from the next session on, as it takes any; False if it may not be spoken."""
        first = next((dialect for dialect in self.order(remote) if dialect.smux_version == version), None)
        if first:
            self._found[format_host(remote)] = first
        return first is not None

    def found(self, session: Session, dialect: Dialect) -> None:
        """The server has understood this."""
        with self._lock:
            host = format_host(session.remote)
            is_news = self._found.get(host) != dialect
            self._found[host] = dialect
        if is_news:
            self._on_found(session, dialect)


class Search:
    """Of one session: what is left to be tried."""

    def __init__(self, dialects: Dialects, remote: Address, move: Callable[[Session, Dialect], bool]) -> None:
        """`move` has a session begin again in another dialect; False if it cannot."""
        self._dialects = dialects
        self._left = dialects.order(remote)
        self._move = move
        self.is_guess = len(self._left) > 1

    @property
    def dialect(self) -> Dialect:
        """What is spoken now."""
        return self._left[0]

    def on_verdict(self, session: Session, guess: Guess) -> bool:
        """The server has understood what is spoken, or dropped the session; whether that goes on in another dialect."""
        if guess.is_confirmed:
            self._dialects.found(session, self.dialect)
            return False
        if len(self._left) == 1:
            return False
        del self._left[0]
        return self._move(session, self.dialect)
