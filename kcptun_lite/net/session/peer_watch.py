"""Whether what a session sends arrives: how long the peer has been silent, when to ask it, when to give it up.

In      the state of a KCP before and after packets have come; time
Out     silence in ms; whether a question, or something new to say, is due
Knows   times. Not: sockets, other paths
Cost    1 us per batch

What counts as an answer: an acknowledgement, or the window told, as only who has heard something sends them. Data are
none: in an outage of our direction alone the peer goes on and on with what it repeats.
"""

from collections.abc import Sequence

from kcptun_lite.core.glance import are_answer
from kcptun_lite.core.kcp.kcp import Kcp

PROBE_TIMEOUT = 1000  # ms without an answer after which the peer is asked whether it is there; or 2 RTO if that is more
SILENCE = 3000  # ms without an answer after which the way to the peer is in doubt; or 4 RTO if that is more
DEAD_AFTER = 75_000  # ms without an answer after which the session is over
UNHEARD_AFTER = 20_000  # ms without an answer after which a stream is reset that was opened when there was none already
REFUSED_AFTER = 5_000  # ms ... if the server's host says that nobody listens
IDLE_DEAD_AFTER = 20_000  # ms; at a server, of a session without streams: its client has no reason to be silent
PROBE_PERIOD = 1000  # ms between questions to a silent peer; a server without streams asks ever less
BULK = 64 * 1024  # bytes received; when more than these just stop coming, the client speaks up


class PeerWatch:
    """The times of one session; guarded by its lock."""

    def __init__(self, kcp: Kcp, now: int, *, is_client: bool) -> None:
        self.heard_at = now
        "ms; when anything came last"
        self._kcp = kcp
        self._is_client = is_client
        self._asked_at = 0
        self._answered_at = now
        self._news_at = now
        self._received_at_pause = 0
        self._before = kcp.progress()
        self._since_before: int | None = None

    def silence(self, now: int) -> int:
        """ms since something was sent that wants an answer, if none has come since."""
        since = self._kcp.unanswered_since
        return 0 if since is None else now - since

    @property
    def patience(self) -> int:
        """ms after which silence means something."""
        return max(PROBE_TIMEOUT, 2 * self._kcp.rtt.rto)

    def is_silent(self, now: int, *, is_refused: bool = False) -> bool:
        """Whether the way to the peer is in doubt; sooner if its host says that nobody listens."""
        return self.silence(now) >= (2 * self.patience if is_refused else max(SILENCE, 4 * self._kcp.rtt.rto))

    def is_dead(self, now: int, has_streams: bool) -> bool:
        return self.silence(now) >= (DEAD_AFTER if has_streams or self._is_client else IDLE_DEAD_AFTER)

    def is_hopeless(self, opened_at: int, now: int, *, is_refused: bool) -> bool:
        """Whether a stream of a client, opened since the last answer, has waited long enough for another."""
        if not self._is_client or self._kcp.unanswered_since is None or opened_at < self._answered_at:
            return False
        return now - opened_at >= (REFUSED_AFTER if is_refused else UNHEARD_AFTER)

    # -- when packets come ---------------------------------------------------------------------

    def before_packets(self) -> None:
        kcp = self._kcp
        self._before, self._since_before = kcp.progress(), kcp.unanswered_since

    def after_packets(self, packets: Sequence[memoryview], now: int) -> bool:
        """Whether they have brought anything new."""
        kcp = self._kcp
        self.heard_at = now
        after = kcp.progress()
        is_new = after != self._before
        if is_new:
            self._news_at = now
        if after[0] != self._before[0] or (self._since_before is not None and are_answer(packets)):
            self._answered_at = now
        elif self._since_before is not None and kcp.unanswered_since is None:
            kcp.unanswered_since = self._since_before
        return is_new

    # -- when time has passed ------------------------------------------------------------------

    def is_question_due(self, now: int, has_streams: bool, has_no_way: bool) -> bool:
        """Whether to ask the peer for an answer; if so, it counts as done."""
        silence = self.silence(now)
        period = PROBE_PERIOD if has_streams or self._is_client else max(PROBE_PERIOD, silence // 4)
        if not (has_no_way or silence >= self.patience) or now - self._asked_at < period:
            return False
        self._asked_at = now
        return True

    def is_word_due(self, now: int, bytes_received: int) -> bool:
        """Whether a client must say something new, to find out if it is heard; if so, it counts as done.

        A download has stopped: a NAT on the way may have given us a new address, which only we can tell the server.
        Or all that comes has come before: our acknowledgements may not arrive.
        """
        if not self._is_client or now - self._news_at < PROBE_TIMEOUT or self._kcp.unanswered_since is not None:
            return False
        if bytes_received - self._received_at_pause < BULK and self.heard_at <= self._news_at:
            return False
        self._received_at_pause = bytes_received
        self._news_at = now
        return True
