"""From what was seen to one sentence that says what is wrong, and which option to change.

In      `Evidence` of one session of a client; what a server found out about an unknown source's packet
Out     a sentence, or None while nothing is wrong; whether it is time to say it again
Knows   which mismatch looks like what (docs/compatibility.md). Not: sockets, the clock, the log
Cost    a few comparisons per session and second

Nothing here is negotiated and nobody in this protocol ever says no (docs/protocol.md, "Layers"), so a mismatch is told
by what fails to come. A server that cannot decrypt is silent. One whose stream protocol differs acknowledges the first
packets, drops its session, and acknowledges from zero when it hears more. One that cannot reach its target
closes the stream at once.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

PATIENCE = 4000  # ms after which something useful should have come back
QUICK = 900  # ms; enough where the network itself says no
SILENCE = 10_000  # ms without an answer from a server that used to give one
CUT_IN_A_ROW = 3  # streams that ended without a byte, on a session that has carried data before
REPEAT_AFTER = 60_000  # ms before the same sentence is said again
UNKNOWN_EVERY = 10_000  # ms between sentences about packets that no method fits: anybody can provoke them
RECENT = 8  # that the status tells with their times
REMEMBERED = 64  # sentences; unknown sources must not fill the memory

KEYLESS = {"none", "null"}
"methods that fit whatever the key is: their users have not shown that they know it"

REFUSED = "Connection refused"
"`Evidence.error` when an ICMP message, or a reset in place of a handshake, said that nobody listens"
RESET = "Connection reset"
"`Evidence.error` when a connection of --tcp was reset"


class Evidence(NamedTuple):
    """What a client knows of one of its sessions."""

    server: str
    "address and port as the log writes them"
    crypt: str
    age: int
    "ms since the session was opened, which is when its first packet was sent"
    received: int = 0
    "datagrams that came back, good or bad"
    decrypted: int = 0
    "those of them that passed their check, and are of this conversation"
    fitting: Sequence[str] | None = None
    "methods under which a bad one would have passed; None while none was looked at"
    acknowledged: bool = False
    understood: bool = False
    "bytes of the server's stream protocol came, and made sense"
    silence: int = 0
    "ms that something sent has gone unanswered"
    error: str = ""
    "why the system would not send, or REFUSED"
    restarted: bool = False
    "the server acknowledges from zero again: its session is a new one"
    failure: str = ""
    "what in the server's stream makes no sense"
    cut_streams: int = 0
    "streams in a row that the server ended soon and without a byte"
    delivered: bool = False
    "some stream has brought data"
    transport: str = "UDP"
    "or TCP"
    is_answered: bool = True
    "of TCP: the handshake is over"


class Rule(NamedTuple):
    """One row: the first that applies gives the sentence."""

    name: str
    applies: Callable[[Evidence], bool]
    sentence: str
    "with the names of Evidence in braces"


RULES = (
    Rule("stream", lambda e: bool(e.failure), "server {server}: {failure}"),
    Rule(
        "dropped",
        lambda e: e.restarted and not e.understood,
        "server {server} acknowledges packets, but drops the session: --nocomp or --smuxver differ",
    ),
    Rule(
        "refused",
        lambda e: e.error == REFUSED and e.silence >= QUICK,
        "server {server} refuses {transport}: no kcptun runs there{with_tcp}, or --remoteaddr has another port than "
        "its --listen",
    ),
    Rule(
        "reset",
        lambda e: e.error == RESET and e.silence >= QUICK,
        "the connection to {server} was reset: no kcptun runs there{with_tcp}, or something on the way cuts it",
    ),
    Rule(
        "unsent",
        lambda e: e.error not in ("", REFUSED) and e.silence >= QUICK,
        "packets to {server} cannot be sent: {error}",
    ),
    Rule(
        "crypt",
        lambda e: bool(e.fitting) and not e.decrypted,
        "server {server} uses --crypt {fits}, this client {crypt}",
    ),
    Rule(
        "key",
        lambda e: e.received > 0 and not e.decrypted and e.age >= PATIENCE,
        "what comes back from {server} cannot be decrypted: --key or --crypt differ, or it is not kcptun",
    ),
    Rule(
        "unanswered",
        lambda e: not e.is_answered and e.silence >= PATIENCE,
        "server {server} does not answer the TCP handshake: it is down, or a firewall drops TCP to this port",
    ),
    Rule(
        "silent",
        lambda e: e.transport == "TCP" and not e.received and e.age >= PATIENCE,
        "server {server} takes the TCP connection, and nothing comes back through it: --key or --crypt differ, or what "
        "listens there is no kcptun with --tcp, or something on the way stops what is no real TCP",
    ),
    Rule(
        "nothing",
        lambda e: not e.received and e.age >= PATIENCE,
        "nothing comes back from {server}: --key or --crypt differ, or the server is down, or UDP is blocked",
    ),
    Rule(
        "gone",
        lambda e: e.silence >= SILENCE,
        "server {server} has stopped answering: it is down, or {transport} is blocked",
    ),
    Rule(
        "target",
        lambda e: e.cut_streams >= (CUT_IN_A_ROW if e.delivered else 1),
        "server {server} closes streams at once without a byte: it cannot reach its --target, or that hangs up",
    ),
)


class Finding(NamedTuple):
    """What is wrong."""

    rule: str
    sentence: str


def diagnose(evidence: Evidence) -> Finding | None:
    """What the first rule that applies says, None if none does."""
    for rule in RULES:
        if rule.applies(evidence):
            fits = " or ".join(evidence.fitting or ())
            with_tcp = " with --tcp" if evidence.transport == "TCP" else ""
            return Finding(rule.name, rule.sentence.format(fits=fits, with_tcp=with_tcp, **evidence._asdict()))
    return None


def describe_unknown_source(client: str, fitting: Sequence[str], crypt: str) -> str:
    """What a server says about an address whose packets fail their check. `fitting`: of `crypt.fitting_methods`."""
    if not fitting:
        return f"client {client} uses another --key, or is not kcptun"
    sentence = f"client {client} uses --crypt {' or '.join(fitting)}, this server {crypt}"
    return f"{sentence} (or it is a --check, which tries all)" if KEYLESS.issuperset(fitting) else sentence


def describe_adaptation(client: str, differences: Sequence[str]) -> str:
    """What a server says about a client that it serves in another way than it is set to."""
    return f"client {client} uses {', '.join(differences)}, unlike this server, which adapts to it"


def describe_strictness(client: str, differences: Sequence[str]) -> str:
    """What a server says about a client whose error correction is not its own, if it does not adapt."""
    which = f"client {client} uses {', '.join(differences)}, unlike this server"
    return f"{which} (--strict): losses may break its connections, and one of before 2021 understands nothing"


def describe_refusal(client: str, failure: str, *, strict: bool) -> str:
    """What a server says about a client whose stream makes no sense to it."""
    return f"client {client} is refused{' (--strict)' if strict else ''}: {failure}"


class Diagnosed(NamedTuple):
    """A sentence that was true from one moment to another, seconds since 1970."""

    since: int
    until: int
    text: str


class Diagnoses:
    """What is wrong now, and what was lately."""

    def __init__(self) -> None:
        self.current = ""
        "the last sentence that said what is wrong; empty when all is well again"
        self.recent: Sequence[Diagnosed] = ()
        "the last RECENT different ones, the newest last"

    def note(self, sentence: str, unix_s: int) -> None:
        self.current = sentence
        since = min([found.since for found in self.recent if found.text == sentence], default=unix_s)
        others = [found for found in self.recent if found.text != sentence]
        self.recent = (*others, Diagnosed(since, unix_s, sentence))[-RECENT:]

    def clear(self) -> None:
        """All is well again."""
        self.current = ""


class Spoken:
    """Which sentences were said lately."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        "key -> ms from which on it may be said again, the oldest first"

    def is_due(self, key: str, now: int, pause: int = REPEAT_AFTER) -> bool:
        """Whether to say what `key` stands for; the caller does, and not again within `pause` ms."""
        if now < self._next.get(key, now):
            return False
        self._next.pop(key, None)
        while len(self._next) >= REMEMBERED:
            del self._next[next(iter(self._next))]
        self._next[key] = now + pause
        return True
