"""How an old worker parts with its sessions after a reload.

In      its sessions, once a second
Out     whether it may end
Knows   what each kind of client does when its session goes. Not: why there is a reload

A client of ours is told at once that the session ends (`Session.leave`): its further streams take a new session, which
comes to a new worker, and what is open goes on. One of Go has no word for that, and waits for half a minute until it
believes that a session is dead. So its session, when it has no stream and nothing is under way, goes to the new worker
as it is: some numbers. What is still open after --drain seconds is cut; then these sessions can go as well.
"""

from collections.abc import Callable, Sequence

from kcptun_lite.errors import SessionClosed
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.update_thread import monotonic_ms

LINGER = 2000  # ms that a session of ours stays after its last stream: a new one may have begun before it heard of this
UNHEARD_LINGER = 6000  # ms ... if it has not acknowledged it: one that ends at once does not
CUT_LIMIT = 3000  # ms after the cut in which ends of streams arrive


class Drain:
    """One worker's."""

    def __init__(self, limit: int, give_away: Callable[[Session], None], cut_streams: Callable[[], None]) -> None:
        """`limit`: ms that streams may go on. `give_away` has another worker go on with a session, if it rests."""
        self._cut_at = monotonic_ms() + limit
        self._give_away = give_away
        self._cut_streams = cut_streams
        self._has_cut = False
        self._told: dict[Session, int] = {}
        "ms; when a client of ours was told that its session ends"

    def is_over(self, sessions: Sequence[Session], now: int) -> bool:
        """Part with those that can go (`now` in ms); True if all have gone, or time is over."""
        if now >= self._cut_at and not self._has_cut:
            self._has_cut = True
            self._cut_streams()
        for session in sessions:
            if session.conversation.is_peer_ours:
                self._part_with_ours(session, now)
            elif not session.stream_count and session.is_validated:
                self._give_away(session)
        left = [session for session in sessions if not session.is_closed]
        return not left or now >= self._cut_at + CUT_LIMIT

    def _part_with_ours(self, session: Session, now: int) -> None:
        if session not in self._told:
            self._told[session] = now
            session.leave()
        since = max(self._told[session], session.idle_since)
        if not session.stream_count and now - since >= (LINGER if session.is_flushed() else UNHEARD_LINGER):
            session.close(SessionClosed("the worker ends"))
