"""All sessions of a server, on whichever of its ports: who is who, and who gives way when there are too many.

In      sessions as they begin, are validated, move and end
Out     the session of a packet; whom to close; whether a newcomer is let in
Knows   addresses, conversations, limits. Not: packets, threads, how a session works
Cost    two look-ups for each batch and peer; 100 bytes for each of the conversations that are remembered

A session is known by its conversation, and by the address and port through which it is reached: parity says nothing of
its conversation. It has that place for itself from the moment when it is validated; before that, its packets are told
by their conversation alone, so a recorded first packet puts nobody out.
"""

import socket
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator
from threading import Lock

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.net.session.session import Session

SHARE_OF_UNVALIDATED = 16  # one host may have this part of --maxsessions that have not shown where they are ...
MOST_OF_ONE_HOST = 3 / 4  # ... and so much in all: an office, or a provider's NAT, is one host
IDLE_BEFORE = (
    10_000  # ms without a stream after which a session gives way to a newcomer of its host, if there are so many
)
ENDED_MAX = 4096  # conversations remembered after they are over, so that their first packets begin nothing again
EARLY_MAX = 32  # sessions that reach the target before they are validated, at once ...
EARLY_PER_SECOND = 8  # ... and new ones; further ones wait the round trip that it takes

Place = tuple[Hashable, Address]
"the port, as whoever listens there names it, and the peer's address"


class SessionTable:
    """The sessions of one server; thread-safe."""

    def __init__(self, max_sessions: int) -> None:
        self.is_draining = False
        "no session begins any more"
        self._max = max_sessions
        self._max_of_host = max(1, int(max_sessions * MOST_OF_ONE_HOST))
        self._max_unvalidated = max(1, max_sessions // SHARE_OF_UNVALIDATED)
        self._lock = Lock()
        self._places: dict[Session, Place] = {}
        self._by_place: dict[Place, Session] = {}
        self._by_conv: dict[int, Session] = {}
        self._unvalidated: dict[Session, None] = {}
        "oldest first"
        self._per_host: Counter[str] = Counter()
        self._unvalidated_per_host: Counter[str] = Counter()
        self._ended: dict[int, None] = {}
        "oldest first"
        self._early: set[Session] = set()
        self._early_left = EARLY_MAX

    def __iter__(self) -> Iterator[Session]:
        with self._lock:
            return iter(list(self._places))

    def at(self, place: Place) -> Session | None:
        """Whose packets come from there, if they do not say it themselves."""
        return self._by_place.get(place)

    def find(self, conv: int) -> Session | None:
        return self._by_conv.get(conv)

    def place_of(self, session: Session) -> Place | None:
        return self._places.get(session)

    @property
    def is_full(self) -> bool:
        """Whether there are as many sessions as may be, of peers that have shown where they are."""
        return len(self._places) - len(self._unvalidated) >= self._max

    def has_ended(self, conv: int) -> bool:
        """Whether a session of this conversation was validated and is over: what begins it again is a replay."""
        return conv in self._ended

    def refusal(self, address: Address, now: int) -> tuple[str, Session | None]:
        """Why there is no room for a session from this address, "" if there is; then who must be closed for it.

        A client of kcptun with --autoexpire keeps what has expired for ten minutes, and will not use it again.
        """
        host = host_of(address)
        with self._lock:
            if self._unvalidated_per_host[host] >= self._max_unvalidated:
                return "", next(one for one in self._unvalidated if host_of(self._places[one][1]) == host)
            if self._per_host[host] >= self._max_of_host:
                idle = self._longest_idle_locked(host, now)
                return ("", idle) if idle else (f"allow {self._max_of_host} from one address", None)
            if len(self._places) < self._max:
                return "", None
            oldest = next(iter(self._unvalidated), None) or self._longest_idle_locked(host, now)
            return ("", oldest) if oldest else ("are open", None)

    def add(self, session: Session, place: Place) -> None:
        """A session has begun; it is not validated."""
        with self._lock:
            self._by_conv[session.conversation.conv] = session
            self._unvalidated[session] = None
            self._by_place.setdefault(place, session)
            self._take_place_locked(session, place)

    def validate(self, session: Session) -> Session | None:
        """The session's peer has shown to be where it is, so the place is its own; returns who had it."""
        with self._lock:
            if session not in self._unvalidated:
                return None
            place = self._places[session]
            del self._unvalidated[session]
            _count(self._unvalidated_per_host, host_of(place[1]), -1)
            self._early.discard(session)
            return self._take_locked(session, place)

    def is_unvalidated(self, session: Session) -> bool:
        """Whether `validate` has not been called yet for a session that goes on."""
        return session in self._unvalidated

    def move(self, session: Session, place: Place) -> Session | None:
        """The session goes on from there; returns who had that place and must be closed."""
        with self._lock:
            if session not in self._places:
                return None  # it has ended meanwhile
            self._leave_locked(session)
            self._take_place_locked(session, place)
            if session in self._unvalidated:
                self._by_place.setdefault(place, session)
                return None
            return self._take_locked(session, place)

    def forget(self, session: Session) -> None:
        """The session is over."""
        with self._lock:
            if session not in self._places:
                return
            self._leave_locked(session)
            self._early.discard(session)
            conv = session.conversation.conv
            if self._by_conv.get(conv) is session:
                del self._by_conv[conv]
            if session in self._unvalidated:
                del self._unvalidated[session]
                return
            self._note_ended_locked(conv)

    def note_ended(self, convs: Iterable[int]) -> None:
        """Conversations that were another process's are over."""
        with self._lock:
            for conv in convs:
                self._note_ended_locked(conv)

    def ended(self) -> list[int]:
        """The conversations that are remembered though they are over, oldest first."""
        with self._lock:
            return list(self._ended)

    def may_go_early(self, session: Session) -> bool:
        """Whether a session may reach the target before it is validated: not if many of these have just begun."""
        with self._lock:
            if session in self._early:
                return True
            if self._early_left <= 0 or len(self._early) >= EARLY_MAX:
                return False
            self._early_left -= 1
            self._early.add(session)
            return True

    def every_second(self) -> None:
        with self._lock:
            self._early_left = min(EARLY_MAX, self._early_left + EARLY_PER_SECOND)

    # -- inside --------------------------------------------------------------------------------

    def _note_ended_locked(self, conv: int) -> None:
        self._ended[conv] = None
        if len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]

    def _longest_idle_locked(self, host: str, now: int) -> Session | None:
        """Whose client is this host and has had no stream for the longest time, if that is long enough."""
        idle = [
            session
            for session, place in self._places.items()
            if not session.stream_count and now - session.idle_since >= IDLE_BEFORE and host_of(place[1]) == host
        ]
        return min(idle, key=lambda session: session.idle_since, default=None)

    def _take_place_locked(self, session: Session, place: Place) -> None:
        self._places[session] = place
        self._count_locked(session, place, 1)

    def _take_locked(self, session: Session, place: Place) -> Session | None:
        before = self._by_place.get(place)
        self._by_place[place] = session
        return before if before is not session else None

    def _leave_locked(self, session: Session) -> None:
        place = self._places.pop(session)
        if self._by_place.get(place) is session:
            del self._by_place[place]
        self._count_locked(session, place, -1)

    def _count_locked(self, session: Session, place: Place, change: int) -> None:
        host = host_of(place[1])
        _count(self._per_host, host, change)
        if session in self._unvalidated:
            _count(self._unvalidated_per_host, host, change)


def _count(counts: Counter[str], host: str, change: int) -> None:
    counts[host] += change
    if not counts[host]:
        del counts[host]


def host_of(address: Address) -> str:
    """What counts as one host: an IPv4 address; of IPv6 the /64, of which any host has all addresses."""
    host = address[0]
    if ":" not in host or "." in host:
        return host
    try:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8].hex()
    except OSError:
        return host
