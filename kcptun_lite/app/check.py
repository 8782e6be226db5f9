"""The check mode of the client: one session and one stream for each server, each step told as it passes.

In      a `ClientConfig`
Out     lines on standard output; exit code 0, or that of the first step that failed
Knows   what proves each step, with servers of every generation (docs/compatibility.md). Not: TCP, long life
Cost    four to five seconds for a server that works, seven for one that does not answer
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from enum import IntEnum
from socket import SOCK_DGRAM
from threading import Event, Lock
from time import sleep

from kcptun_lite.app.config import ClientConfig, Endpoint
from kcptun_lite.app.diagnosis import diagnose
from kcptun_lite.app.dialects import likely_dialects
from kcptun_lite.app.evidence import gather
from kcptun_lite.app.shared_context import make_context, make_pads
from kcptun_lite.app.transport import check_rights, ways_of_dialling
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.crypt.crypt import METHODS, fitting_methods
from kcptun_lite.core.crypt.qpp import QppStream
from kcptun_lite.core.mux.dialect import Dialect
from kcptun_lite.errors import ConfigError, SessionError, StreamError, TransportError
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.dialects import Dialects
from kcptun_lite.net.ends.dialer import Dialer
from kcptun_lite.net.ends.path_sizes import SIZES
from kcptun_lite.net.ends.route import Route, Server
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import UpdateThread, monotonic_ms
from kcptun_lite.net.udp.address import format_host, resolve
from kcptun_lite.net.udp.udp_socket import UdpOptions

IDLE = 2000  # ms, and four round trips; a server that cannot reach its target has closed the stream by then
LOOK_EVERY = 0.05  # s
LARGE_PROBES = 4
SAFE_MTU = SIZES[-1]
LINE_PINGS = 40  # two seconds of them
OTHERS_TIME = 2000  # ms that a server is given to answer to one of the other methods
PROBE_EVERY = 250  # ms between questions that show whether the server still knows our session


OnClosed = Callable[[Session, SessionError], None]


class Step(IntEnum):
    """What can fail, in the order of the check; the number is the exit code."""

    NAME = 10
    "--remoteaddr cannot be resolved"
    REFUSED = 11
    "nobody listens on the server's port"
    ANSWER = 12
    "nothing comes back"
    KEY = 13
    "what comes back cannot be decrypted"
    STREAM = 14
    "the stream protocols differ"
    TARGET = 15
    "the server closes the stream"


STEP_OF_RULE = {
    "refused": Step.REFUSED,
    "reset": Step.ANSWER,
    "unsent": Step.ANSWER,
    "unanswered": Step.ANSWER,
    "silent": Step.ANSWER,
    "nothing": Step.ANSWER,
    "gone": Step.ANSWER,
    "crypt": Step.KEY,
    "key": Step.KEY,
    "dropped": Step.STREAM,
    "stream": Step.STREAM,
    "target": Step.TARGET,
}
"the rules of app/diagnosis"
UNCLEAR = ("nothing", "silent", "key")
"rules that another --crypt might explain"


class Check:
    """The check of one configuration."""

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        self._ticker = UpdateThread()
        self._loop = EventLoop()
        context = make_context(config, BufferPool(Lock(), gogc=config.gogc), self._ticker, self._loop)
        # A set window: no copies hide what the line loses.
        kcp = context.params.kcp._replace(follows_line=False)
        self._context = context._replace(params=context.params._replace(kcp=kcp))
        self._pads = make_pads(config)
        self._likely = likely_dialects(config)
        self._options = UdpOptions(config.sockbuf, config.dscp, config.interface)
        self._ways = ways_of_dialling(config)
        self._way = self._ways[0]
        self._reason: SessionError | None = None

    def run(self) -> int:
        """Check all servers; returns the exit code. Raises: ConfigError."""
        check_rights(self._config)
        self._ticker.start()
        self._loop.start()
        try:
            codes = [self._check_all_ways(remote) for remote in self._config.remoteaddr]
        finally:
            self._loop.stop()
            self._ticker.stop()
        return next((int(code) for code in codes if code), 0)

    def _check_all_ways(self, remote: Endpoint) -> Step | None:
        """The step at which one server failed, the last way that was tried."""
        step: Step | None = None
        for name, way in zip(("UDP", "TCP"), self._ways, strict=False):
            self._way = way
            if len(self._ways) > 1:
                _say(f"over {name}:")
            step = self._check(remote)
            if step not in (Step.REFUSED, Step.ANSWER):
                break
        return step

    def _check(self, remote: Endpoint) -> Step | None:
        """The step at which one server failed."""
        _say(f"checking {remote}")
        try:
            _, address = resolve(remote.host, remote.port_min, SOCK_DGRAM)[0]
        except TransportError as exc:
            return _fail(Step.NAME, str(exc))
        _pass(Step.NAME, f"{remote.host} is {format_host(address)}")
        self._reason = None
        try:
            session = self._dial(remote, self._context, self._note_end)
        except TransportError as exc:
            return _fail(Step.ANSWER, str(exc))
        try:
            stream = session.open_stream()
            if self._pads:
                stream.cipher = QppStream(self._pads)
            step = self._watch(session, stream, remote)
            stream.close_write()  # a target that finds its connection reset may make a noise of it
            return step
        finally:
            session.close()

    def _dial(self, remote: Endpoint, context: SessionContext, on_closed: OnClosed) -> Session:
        servers = [Server(remote.host, remote.port_min, remote.port_max)]
        route = Route(servers, self._options, Event(), [self._way])
        return Dialer(context, route, Dialects(self._likely)).dial(lambda session: None, on_closed)

    def _find_crypt(self, remote: Endpoint) -> str:
        """The method under which a server answers that stays silent under ours, empty if there is none."""
        sessions: dict[str, Session] = {}
        with ExitStack() as stack:
            for crypt in METHODS:
                with suppress(ConfigError):  # a library is missing
                    context = self._context._replace(crypt=crypt)
                    session = sessions[crypt] = self._dial(remote, context, lambda session, reason: None)
                    stack.callback(session.close)
                    session.open_stream()
                    sleep(LOOK_EVERY)
            deadline = monotonic_ms() + OTHERS_TIME
            while monotonic_ms() < deadline:
                for crypt, session in sessions.items():
                    if session.conversation.kcp.progress()[0]:
                        return crypt
                sleep(LOOK_EVERY)
        return ""

    def _note_end(self, session: Session, reason: SessionError) -> None:
        self._reason = reason

    def _watch(self, session: Session, stream: Stream, remote: Endpoint) -> Step | None:
        """Wait for proofs and failures, whichever comes first."""
        crypt = self._config.crypt
        answered_at: int | None = None
        probed_at = 0
        while True:
            is_over = self._reason is not None
            chunks = _read(stream)
            now = monotonic_ms()
            evidence = gather(session, crypt, now, self._reason)
            if sample := self._context.failed_packets.take():
                evidence = evidence._replace(fitting=fitting_methods(self._context.key, sample.packet))
            rtt = session.conversation.kcp.rtt.srtt
            if answered_at is None and evidence.decrypted:
                answered_at = now
                _pass(Step.ANSWER, f"{evidence.server} answers, round trip {rtt} ms")
                _pass(Step.KEY, f"--key and --crypt {crypt} are right")
            if finding := diagnose(evidence):
                step = STEP_OF_RULE[finding.rule]
                if step is Step.TARGET:
                    _pass(Step.STREAM, self._about_streams(session))
                if finding.rule in UNCLEAR and (found := self._find_crypt(remote)):
                    return _fail(Step.KEY, f"server {evidence.server} uses --crypt {found}, this client {crypt}")
                return _fail(step, finding.sentence + self._about_silence(finding.rule))
            if is_over:
                return _fail(Step.STREAM, str(self._reason))
            if answered_at is None or session.conversation.guess:
                continue
            if chunks or now - answered_at >= IDLE + 4 * rtt:
                _pass(Step.STREAM, self._about_streams(session))
                _pass(Step.TARGET, "it speaks" if chunks else f"it has not hung up within {IDLE // 1000} s")
                _say(f"ok    line    {_measure_line(session)}")
                if not _is_large_answered(session):
                    mtu = session.conversation.kcp.mtu
                    _say(
                        f"note  size    packets of {mtu} bytes are lost on the way, small ones are not: give both ends"
                    )
                    _say(f"              --mtu {SAFE_MTU}, or the first connections with more to carry are reset")
                return None
            if now - probed_at >= PROBE_EVERY:
                probed_at = now
                session.probe()

    def _about_silence(self, rule: str) -> str:
        """What else it may be: a server of before 2021 drops all that comes with error correction if it has none."""
        if rule not in UNCLEAR:
            return ""
        has_fec = self._context.params.has_fec
        return (
            "; no other --crypt fits this --key; or it is of before 2021 and has "
            f"{'no' if has_fec else 'an'} error correction (--ds, --ps), unlike here"
        )

    def _about_streams(self, session: Session) -> str:
        conversation = session.conversation
        dialect = Dialect(conversation.smux_version, conversation.is_compressed)
        compression = "with" if dialect.compress else "without"
        found = f", as was found out ({dialect})" if dialect != self._likely[0] else ""
        return f"smux version {dialect.smux_version} {compression} compression is understood{found}"


def _read(stream: Stream) -> list[bytes] | None:
    """What the target has sent, after a moment's wait; [] at the end, None if it says nothing."""
    try:
        return stream.read_chunks(timeout_s=LOOK_EVERY)
    except StreamError:
        return None


def _measure_line(session: Session) -> str:
    """What some signs of life, one after the other, have shown of the way there and back."""
    kcp, counters = session.conversation.kcp, session.counters
    before = counters.retransmitted
    rtts = []
    for _ in range(LINE_PINGS):
        with session.lock:
            session.conversation.ping()
        session.transmit()
        sleep(LOOK_EVERY)
        rtts.append(kcp.rtt.latest)
    repeated = counters.retransmitted - before
    return (
        f"round trips of {min(rtts)} to {max(rtts)} ms; "
        f"{repeated} of {LINE_PINGS} packets were lost, there or back ({repeated / LINE_PINGS:.0%})"
    )


def _is_large_answered(session: Session) -> bool:
    """Whether packets of the full size reach the server as small ones do."""
    for _ in range(LARGE_PROBES):
        asked_at = monotonic_ms()
        with session.lock:
            session.conversation.kcp.probe(is_large=True)
        session.transmit()
        sleep(max(LOOK_EVERY, 2 * session.conversation.kcp.rtt.rto / 1000))
        if session.watch.heard_at >= asked_at:
            return True
    return False


def _pass(step: Step, text: str) -> None:
    _say(f"ok    {step.name.lower():8}{text}")


def _fail(step: Step, text: str) -> Step:
    _say(f"FAIL  {step.name.lower():8}{text}")
    return step


def _say(text: str) -> None:
    print(text, flush=True)


def run(config: ClientConfig) -> int:
    """Check the servers of a configuration; returns the exit code."""
    return Check(config).run()
