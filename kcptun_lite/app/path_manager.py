"""Keeps the client's sessions on a way that works: new sockets, other addresses, other servers.

In      sessions in trouble, `redial_all`
Out     the same sessions on another path
Knows   when to try again. Not: how trouble is noticed (net/session/session), where the servers are (net/ends/route)
Cost    one thread that sleeps until there is trouble
"""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Event, Thread

from kcptun_lite import log
from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError
from kcptun_lite.net.ends.dialer import Dialer
from kcptun_lite.net.ends.route import Route
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.address import format_address

ANSWER_LOOK = 0.02  # s between looks whether a question was answered
FIRST_PAUSE = 500  # ms between the first and the second try for a session
RETURN_AFTER = 600_000  # ms between looks whether the way that is preferred gets through again ...
ANSWER_TIME = 5000  # ms ... and after the network has changed
RETURN_LOOK = 5.0  # s between looks whether that is due; without a second way the thread sleeps
LAST_PAUSE = 15_000  # ms; each pause is twice the one before, up to this


class PathManager:
    """The thread that moves sessions; `report` and `redial_all` may be called from any thread."""

    def __init__(
        self, route: Route, dialer: Dialer, sessions: Callable[[], list[Session]], *, has_second_way: bool = False
    ) -> None:
        """`has_second_way`: the route goes on another way where the first one does not get through."""
        self._route = route
        self._dialer = dialer
        self._sessions = sessions
        self._has_second_way = has_second_way
        self._return_at = monotonic_ms() + RETURN_AFTER
        "ms; when the first way is looked at again"
        self._is_stopping = Event()
        self._troubled: SimpleQueue[tuple[Session, int | None] | None] = SimpleQueue()
        "who, and if it was an order, when it was asked for an answer (ms)"
        self._tries: dict[Session, tuple[int, int, Address | None]] = {}
        "ms of the next try, the pause after it, and where the last one went, if there was one"
        self._thread = Thread(target=self._run, name="path manager")

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._is_stopping.set()
        self._troubled.put(None)
        if self._thread.ident is not None:  # else there was no thread to be had
            self._thread.join()

    def report(self, session: Session) -> None:
        """The session gets no answer."""
        self._troubled.put((session, None))

    def redial_all(self) -> None:
        """The network may have changed (SIGHUP): ask on all ways, and leave those that do not answer soon.

        A way that answers is kept: a server of kcptun would lose its session, and nothing is wrong.
        """
        self._route.prefer_first_way()
        self._return_at = monotonic_ms() + ANSWER_TIME
        sessions = self._sessions()
        asked_at = monotonic_ms()  # before they are asked: the answer may be here within the millisecond
        for session in sessions:
            session.probe()
        for session in sessions:
            self._troubled.put((session, asked_at))

    def _run(self) -> None:
        while trouble := self._next_trouble():
            session, asked_at = trouble
            is_order = asked_at is not None
            if asked_at is not None and self._is_answered(session, asked_at):
                continue
            now = monotonic_ms()
            for known in [known for known in self._tries if known.is_closed]:
                del self._tries[known]
            due, pause, tried = self._tries.get(session, (now, FIRST_PAUSE, None))
            if due + LAST_PAUSE < now:
                pause, tried = FIRST_PAUSE, None  # that trouble is over, this is another
            if session.is_closed or (now < due and not is_order):
                continue
            if not is_order:
                self._route.failed(tried or session.remote)
            # The session's own port first, and by turns with others: the line may have been dead, or that port alone.
            keeps_port = is_order or not tried or tried[1] != session.remote[1]
            try:
                tried = self._redial(session, is_order or session.is_way_reset, keeps_port)
            except Exception as exc:  # a bug, or no thread to be had: it is reported again while it is in trouble
                log.limited("redial", f"{session!r}: {exc!r}", log.Level.ERROR)
            self._tries[session] = now + pause, min(2 * pause, LAST_PAUSE), tried

    def _next_trouble(self) -> tuple[Session, int | None] | None:
        """Wait for it; look at what is preferred meanwhile."""
        while True:
            try:
                return self._troubled.get(timeout=RETURN_LOOK if self._has_second_way else None)
            except Empty:
                with log.told("looking for the way that is preferred"):
                    self._look_at_first_way()

    def _look_at_first_way(self) -> None:
        """Have the sessions go over UDP again, with --transport auto, if that gets through by now."""
        if monotonic_ms() < self._return_at:
            return
        self._return_at = monotonic_ms() + RETURN_AFTER
        strayed = [one for one in self._sessions() if one.transport == "TCP" and one.conversation.is_peer_ours]
        if strayed and self._dialer.is_heard_first_way(strayed[0]):
            self._route.prefer_first_way()
            for session in strayed:
                self._dialer.redial(session)

    def _is_answered(self, session: Session, asked_at: int) -> bool:
        """Wait for the answer to a question; whether there is one."""
        watch = session.watch
        while not session.is_closed and not self._is_stopping.is_set():
            waited = monotonic_ms() - asked_at
            # Another thread may have sent the question, after `asked_at`: that it is young is no answer.
            if watch.heard_at >= asked_at and watch.silence(monotonic_ms()) < waited:
                return True
            if waited >= watch.patience:
                return False
            self._is_stopping.wait(ANSWER_LOOK)
        return True

    def _redial(self, session: Session, is_left: bool, keeps_port: bool) -> Address:
        """Where it is tried now; `is_left`: the way of now is not waited for."""
        remote = session.remote
        try:
            if is_left and session.conversation.is_peer_ours:  # who follows us
                self._dialer.redial(session)
                remote = session.remote
                text = f"going on from a new socket to {format_address(remote)}"
            else:
                text = f"no answer from {format_address(remote)}, trying another way"
                remote = self._dialer.path_probe(session, keeps_port=keeps_port)
        except TransportError as exc:
            log.limited("redial", f"no way to the server: {exc}")
        else:
            log.limited("redial", f"session {session.conversation.conv:08x}: {text}", log.Level.INFO)
        return remote
