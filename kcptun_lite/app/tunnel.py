"""What the client and the server have in common: the shared context, the relays, the life from start to stop.

In      a configuration
Out     a running program; sums of counters
Knows   lifetimes and their order. Not: who dials whom
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from contextlib import suppress
from os import environ, getpid, getppid, kill
from signal import Signals
from socket import SOCK_STREAM
from threading import Condition, Event, Lock, Thread
from time import time
from typing import TYPE_CHECKING, Any

from kcptun_lite import log
from kcptun_lite.app import memory, signals
from kcptun_lite.app.config import ClientConfig, Endpoint, ServerConfig, describe
from kcptun_lite.app.diagnosis import REPEAT_AFTER, Diagnoses, Spoken
from kcptun_lite.app.limits import Limits
from kcptun_lite.app.listening import listen_patiently
from kcptun_lite.app.shared_context import make_context, make_pads
from kcptun_lite.app.stats import SnmpLog, snmp_line
from kcptun_lite.app.transport import check_rights
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.budget import Budget
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import CSV_COLUMNS, Counters, total
from kcptun_lite.core.crypt.crypt import METHODS
from kcptun_lite.core.crypt.qpp import QppStream
from kcptun_lite.core.fec.encoder import speed_up
from kcptun_lite.core.mux.snappy import cramjam_if_any
from kcptun_lite.errors import SessionClosed, SessionError, TransportError
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import UpdateThread, monotonic_ms
from kcptun_lite.net.tcp.relay import Relay
from kcptun_lite.net.udp.address import format_address, format_host, resolve

if TYPE_CHECKING:
    from kcptun_lite.app.notify import Notifier
    from kcptun_lite.app.status_file import StatusFile

WITHOUT_CRAMJAM = (
    "cramjam is not installed: what a compressed session sends is not made smaller, and what it receives takes up to a "
    "hundred times as long to read; install it (python3-cramjam), or give --nocomp at both ends"
)
HOUSEKEEPING = 1.0  # s between looks at expiry, statistics, idle buffers
FLUSH_LIMIT = 1500  # ms that a stopping program waits for its peers to acknowledge what was queued
STOP_LIMIT = 2500  # ms after which it ends without those threads that wait for the system: a resolver, a slow reader


Ends = Callable[[], tuple[str, str]]
"where a connection comes in and where it goes out, as the log writes it"


class Tunnel(ABC):
    """The frame of a program; `Client` and `Server` fill in `_start`, `_stop_accepting` and `_sessions`."""

    speaks_for_all = True
    "no parent tells what the program does"

    def __init__(self, config: ClientConfig | ServerConfig) -> None:
        self.config = config
        self.pool = BufferPool(
            Lock(), gogc=config.gogc, budget=Budget(Lock(), config.memlimit), factor=memory.bulk_factor(config)
        )
        self.ticker = UpdateThread()
        self.loop = EventLoop()
        self.context = make_context(config, self.pool, self.ticker, self.loop)
        self.pads = make_pads(config)
        self.retired = Counters()
        "what closed sessions have counted"
        self.listening = ""
        "the address really bound, or the range of ports"
        self.diagnoses = Diagnoses()
        self.stop_event = Event()
        self._lock = Lock()
        self._relay_gone = Condition(self._lock)
        self._relays: dict[Relay, tuple[Stream, Ends]] = {}
        self._snmp_log = SnmpLog(config.snmplog, config.snmpperiod)
        self._limits = Limits()
        self._started_at = monotonic_ms()
        self._status_file = self._make_status_file() if config.status else None
        self._established = self._max_established = 0
        self._is_quiet = True
        "no buffer was wanted for a second"
        self._has_fast_parity = False
        self._memory_waits = 0
        self._notifier: Notifier | None = None
        memory.check_limit(config, self.context.params)
        self._spoken = Spoken()

    # -- for the two programs ------------------------------------------------------------------

    @property
    def is_stopping(self) -> bool:
        return self.stop_event.is_set()

    @property
    def relay_count(self) -> int:
        """Connections that are served now."""
        return len(self._relays)

    def wait_for_stop(self, timeout_s: float) -> bool:
        return self.stop_event.wait(timeout_s)

    def is_full(self) -> bool:
        """Whether --maxstreams are open."""
        return len(self._relays) >= self.config.maxstreams

    def has_room(self) -> bool:
        """Whether --maxstreams and --memlimit leave room for one connection more; somebody asks who wants it."""
        if self.is_full():
            if self._spoken.is_due("maxstreams", monotonic_ms()):
                open_now = f"--maxstreams {self.config.maxstreams} are open"
                log.warning(f"{open_now}: connections wait until one of them has ended")
            return False
        return self.pool.budget.free >= self.pool.relay_bytes

    def start_relay(self, begin: Callable[[Relay], None], stream: Stream, ends: Ends) -> bool:
        """Serve a stream, if there is room: `begin` gives the relay its connection.

        `ends` gives where it comes in and where it goes out, for the log and the status.
        """
        if self.pads:
            stream.cipher = QppStream(self.pads)
        relay = Relay(
            stream,
            self.pool,
            self.loop,
            closewait_s=self.config.closewait,
            is_full=self.is_full,
            on_closed=lambda relay: self._relay_closed(relay, ends),
        )
        with self._lock:
            is_welcome = not self.is_stopping and not self.is_full()
            if is_welcome:
                self._relays[relay] = stream, ends
        if not is_welcome:
            why = "the program stops" if self.is_stopping else f"--maxstreams {self.config.maxstreams} are open"
            log.limited("maxstreams", f"stream refused: {why}")
            stream.close()
            return False
        log.stream(f"stream opened {_name(ends)}", "stream opened", id=stream.sid)
        begin(relay)
        return True

    def _relay_closed(self, relay: Relay, ends: Ends) -> None:
        cause = f" ({relay.failure})" if relay.failure else ""
        text = f"stream closed {_name(ends)}{cause}"
        log.stream(text, "stream closed", id=relay.stream.sid, cause=str(relay.failure or ""))
        with self._lock:
            self._relays.pop(relay, None)
            self._relay_gone.notify_all()

    def diagnosed(self, sentence: str, key: str, pause: int = REPEAT_AFTER) -> None:
        """Say what is wrong, unless the same (`key`) was said within the last `pause` ms."""
        self.note_diagnosis(sentence)
        if self._spoken.is_due(key, monotonic_ms(), pause):
            log.limited("diagnosis", sentence)

    def note_diagnosis(self, sentence: str) -> None:
        """Have the status tell what is wrong."""
        self.diagnoses.note(sentence, int(time()))

    def session_closed(self, session: Session, reason: SessionError) -> None:
        """Remember the counts of a session that is over."""
        with self._lock:
            self._established -= 1
            self.retired.add(session.counters)
        if not isinstance(reason, SessionClosed):
            conv, peer = f"{session.conversation.conv:08x}", format_address(session.remote)
            text = f"session {conv} with {format_host(session.remote)} closed: {reason}"
            fields = {"event": "session closed", "session": conv, "peer": peer, "cause": str(reason)}
            if session.is_validated:
                log.info(text, **fields)
            else:
                log.limited("closed", text, log.Level.INFO, **fields)

    def count_session(self, session: Session) -> None:
        with self._lock:
            self._established += 1
            self._max_established = max(self._max_established, self._established)

    def counters(self) -> Counters:
        """The sum over all sessions, closed ones included."""
        with self._lock:
            parts = [self.retired, *self._other_counters(), *(s.counters for s in self._sessions() if not s.is_closed)]
            result = total(parts)
            result.current_established = self._established
            result.max_connections = self._max_established
        budget = self.pool.budget
        result.memory_held, result.memory_peak, result.memory_waits = budget.used, budget.peak, budget.waits
        return result

    # -- life ----------------------------------------------------------------------------------

    def run(self) -> int:
        """Work until SIGTERM or SIGINT; returns the exit code.

        Raises: ConfigError, TransportError, RuntimeError if it cannot begin; nothing of it is left then.
        """
        log.info(f"initiating key derivation with {self.config.crypt}")
        if remark := METHODS[self.config.crypt].remark:
            log.warning(f"--crypt {self.config.crypt}: {remark}")
        self.check()
        listen_patiently(self._listen)
        signals.block()
        try:
            self.ticker.start()
            self.loop.start()
        except RuntimeError:
            self._stop_accepting()
            self._stop_threads()
            raise
        try:
            self._start()
            self._tell_ready()
            self._work()
        finally:
            self._shut_down()
        if self.speaks_for_all:
            log.info("stopped", "stopped")
        return 0

    def check(self) -> None:
        """Look at all that can be looked at before anything begins. Raises: ConfigError."""
        self._snmp_log.check()
        check_rights(self.config)
        if self._status_file:
            self._status_file.check()
        self._load_libraries()

    def _load_libraries(self) -> None:
        """What a session needs, by making what one is made of: later there may be no descriptor to load it with.

        Numpy is for those alone who send parity: at once if shards are given, else when a peer is known to be none of
        ours. Raises: ConfigError if something is not installed.
        """
        if not self.config.nocomp and cramjam_if_any() is None:
            log.warning(WITHOUT_CRAMJAM)
        crypt = self.context.make_crypt()
        params = self.context.params._replace(adapts=False)  # else it waits for its peer's first bytes
        if params.has_fec and params.has_own_shards:
            speed_up(params.data_shards, params.parity_shards)
            self._has_fast_parity = True
        Conversation(
            0, params, Counters(), is_client=True, headroom=crypt.headroom, tailroom=crypt.tailroom, now=monotonic_ms()
        )

    def _tell_ready(self) -> None:
        if "NOTIFY_SOCKET" not in environ:
            return
        from kcptun_lite.app.notify import Notifier

        self._notifier = Notifier(environ)
        if self._notifier.interval:
            self.ticker.attach(self._notifier)
        self._notifier.ready(f"listening on {self.listening}")

    def _work(self) -> None:
        """Until a signal to stop. Nothing that fails here ends the program: neither a bug nor a system that has no more
        descriptors, memory or threads."""
        while (number := signals.wait(HOUSEKEEPING)) not in signals.STOP:
            if number == signals.REPORT:
                self._try(self._report)
            elif number == signals.REDIAL:
                self._try(log.reopen)
                self._try(self._redial)
            elif number == signals.RELOAD:
                log.info("SIGUSR2: a reload is for a server with --workers 2 or more; nothing has changed")
            elif number == signals.DRAIN:
                self._try(self.drain)
            self._every_second(monotonic_ms())
        if self.speaks_for_all:
            log.info(f"stopping: {Signals(number).name}", "stopping", signal=Signals(number).name)

    def drain(self) -> None:
        """SIGQUIT: end when what is open has ended. A client's connections would be refused meanwhile: it stops."""
        kill(getpid(), Signals.SIGTERM)

    def _report(self) -> None:
        counters = self.counters()
        log.info(
            snmp_line(counters), "counters", **{name: getattr(counters, CSV_COLUMNS[name]) for name in CSV_COLUMNS}
        )

    def _try(self, step: Callable[[], None]) -> None:
        """A step of the main thread, whose failure is told and must not keep the others from being taken."""
        with log.told("housekeeping"):
            step()

    def _every_second(self, now: int) -> None:
        for chore in self._chores():
            self._try(lambda chore=chore: chore(now))  # type: ignore[misc]

    def _chores(self) -> list[Callable[[int], None]]:
        """What is to be done each second (ms)."""
        return [
            lambda now: self._snmp_log.tick(now, self.counters),
            lambda now: self._speed_parity_up(),
            lambda now: self._give_memory_back(),
            self._tell_of_memory,
            lambda now: self._limits.look(self._sessions(), now),
            lambda now: self._look_at_parent(),
            *([self._status_file.tick] if self._status_file else ()),
        ]

    def _look_at_parent(self) -> None:
        if self.config.parent and getppid() != self.config.parent:
            log.info("the program that has started this one is gone")
            kill(getpid(), Signals.SIGTERM)

    def _make_status_file(self) -> "StatusFile":
        from kcptun_lite.app.status_file import StatusFile

        return StatusFile(self.config.status, self.loop, self.status)

    def status(self) -> dict[str, Any]:
        """What the program tells about itself (app/status)."""
        from kcptun_lite.app.status import Facts, describe
        from kcptun_lite.app.status_form import LISTED

        role = "client" if isinstance(self.config, ClientConfig) else "server"
        with self._lock:
            connections = list(self._relays.values())[-LISTED:]
        told = [(stream, ends()) for stream, ends in connections]
        facts = Facts(self._sessions(), told, self.counters(), self._limits, self.pool, self.diagnoses)
        now = monotonic_ms()
        return describe(facts, role=role, name=self.config.name, uptime=now - self._started_at, now=now)

    def _speed_parity_up(self) -> None:
        """In the main thread, as it takes its time, and the streams go on meanwhile."""
        if self._has_fast_parity:
            return
        for session in self._sessions():
            if session.conversation.wants_fast_parity:
                params = session.conversation.params
                self._has_fast_parity = True  # or has not, and will not have
                return speed_up(params.data_shards, params.parity_shards)

    def _give_memory_back(self) -> None:
        was_quiet, self._is_quiet = self._is_quiet, self.pool.trim()
        if self._is_quiet and not was_quiet:
            memory.release_heap()

    def _tell_of_memory(self, now: int) -> None:
        waits = self.pool.budget.waits
        if waits > self._memory_waits and self._spoken.is_due("memory", now, REPEAT_AFTER):
            log.warning(f"near --memlimit {self.config.memlimit}: windows are smaller and reads wait, so it is slower")
        self._memory_waits = waits

    def _shut_down(self) -> None:
        """Stop from the outside in: peer sockets, relays, sessions, update thread. Whatever fails, the rest is done."""
        deadline = monotonic_ms() + STOP_LIMIT
        if self._notifier:
            self._notifier.stopping()
        with self._lock:
            self.stop_event.set()
            self._relay_gone.notify_all()  # who waits for a relay's end waits no more
            relays = list(self._relays)
        self._try(self._stop_accepting)
        for relay in relays:
            self._try(relay.stop)
        self._try(self._wait_until_flushed)
        with self._lock:
            self._relay_gone.wait_for(lambda: not self._relays, max(0, deadline - monotonic_ms()) / 1000)
        self._try(self._close_sessions)
        self._stop_threads()
        if self._status_file:
            self._status_file.remove()
        if self._notifier:
            self._notifier.close()

    def _stop_threads(self) -> None:
        self.loop.stop()
        self.ticker.stop()

    def _wait_until_flushed(self) -> None:
        for session in self._sessions():
            session.leave()
        deadline = monotonic_ms() + FLUSH_LIMIT
        pause = Event()
        while monotonic_ms() < deadline and not all(map(_is_done, self._sessions())):
            pause.wait(0.01)

    def log_start(self, listening: str) -> None:
        """Tell all that is set; `listening` is the address really bound."""
        self.listening = listening
        for line in describe(self.config, listening):
            log.info(line, "start")
        log.info(memory.describe(self.config, self.context.params), "start")

    def look_up(self, option: str, endpoint: Endpoint) -> None:
        """Tell in the log if a name is not known now, in a thread, as the resolver may take its time."""

        def look() -> None:
            try:
                resolve(endpoint.host, endpoint.port_min, SOCK_STREAM)
            except TransportError as exc:
                if not self.is_stopping:
                    log.warning(f"{option} {endpoint}: {exc}; it is tried again each time it is needed")

        if not endpoint.path:
            with suppress(RuntimeError):  # no thread to be had: the first use will tell
                Thread(target=look, name="look-up", daemon=True).start()

    # -- what differs --------------------------------------------------------------------------

    @abstractmethod
    def _listen(self) -> None:
        """Take the addresses that the program listens on, all or none. Raises: TransportError that names the option."""

    @abstractmethod
    def _start(self) -> None: ...

    @abstractmethod
    def _stop_accepting(self) -> None: ...

    @abstractmethod
    def _close_sessions(self) -> None: ...

    @abstractmethod
    def _sessions(self) -> list[Session]: ...

    @abstractmethod
    def _redial(self) -> None:
        """SIGHUP: the network has changed."""

    def _other_counters(self) -> Iterable[Counters]:
        return ()


def _name(ends: Ends) -> str:
    source, target = ends()
    return f"in: {source} out: {target}"


def _is_done(session: Session) -> bool:
    """Whether nothing is to be waited for: whoever has not shown where he is may never acknowledge anything."""
    return session.is_flushed() or not session.is_validated
