"""What keeps each session from sending faster, told once where it is something that can be changed.

In      sessions, once a second
Out     a word and rates for the status; a sentence for the log when the same thing has been the limit for a while
Knows   who sets which limit. Not: how sending works (core/kcp/sender)
Cost    a look at each session per second
"""

from collections.abc import Iterable

from kcptun_lite import log
from kcptun_lite.core.kcp.sender import Limit
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.udp.address import format_address

LASTING = 10  # s in a row, then it is worth a sentence
LEAST_RATE = 100_000  # bytes/s; slower than that nobody waits for the window

Pair = tuple[int, int]
"of something received and sent"


class Limits:
    """Remembers what was the limit of each session, and for how long."""

    def __init__(self) -> None:
        self._seconds: dict[Session, tuple[Limit, int]] = {}
        self._bytes: dict[Session, Pair] = {}
        self._rates: dict[Session, Pair] = {}
        self._looked_at = 0
        self._told: set[tuple[str, Limit]] = set()

    def of(self, session: Session) -> Limit:
        """What limits what the session sends."""
        return self._seconds.get(session, (Limit.APPLICATION, 0))[0]

    def rates(self, session: Session) -> Pair:
        """Bytes of streams, compressed, that the session has received and sent in the last second."""
        return self._rates.get(session, (0, 0))

    def look(self, sessions: Iterable[Session], now: int) -> None:
        """To be called once a second (`now` in ms)."""
        elapsed, self._looked_at = max(now - self._looked_at, 1), now
        seconds: dict[Session, tuple[Limit, int]] = {}
        counts: dict[Session, Pair] = {}
        rates: dict[Session, Pair] = {}
        for session in sessions:
            if session.is_closed:
                continue
            with session.lock:
                limit = session.conversation.kcp.sender.take_limit()
            before, lasted = self._seconds.get(session, (limit, 0))
            lasted = lasted + 1 if limit is before else 1
            seconds[session] = limit, lasted
            received, sent = counts[session] = session.counters.bytes_received, session.counters.bytes_sent
            before_in, before_out = self._bytes.get(session, counts[session])
            rates[session] = _, rate = (received - before_in) * 1000 // elapsed, (sent - before_out) * 1000 // elapsed
            if lasted >= LASTING and rate >= LEAST_RATE:
                self._tell(session, limit, rate)
        self._seconds, self._bytes, self._rates = seconds, counts, rates
        remotes = {format_address(session.remote) for session in seconds} if self._told else ()
        self._told = {told for told in self._told if told[0] in remotes}

    def _tell(self, session: Session, limit: Limit, rate: int) -> None:
        kcp = session.conversation.kcp
        window = kcp.control.window
        causes = {
            Limit.PEER: f"the other end's receive window (--rcvwnd there): {kcp.rmt_wnd} packets in {kcp.rtt.srtt} ms",
            Limit.WINDOW: f"--sndwnd {window} in {kcp.rtt.srtt} ms; without it the window follows the line",
        }
        remote = format_address(session.remote)
        if limit in causes and (remote, limit) not in self._told:
            self._told.add((remote, limit))
            log.info(f"what is sent to {remote} is limited to {rate * 8e-6:.1f} Mbit/s by {causes[limit]}")
