"""A client that guesses what its server speaks, over lossy links: nothing is lost, nothing is said twice to anybody."""

from itertools import product
from typing import Any

import pytest

from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.kcp.kcp import Flush
from kcptun_lite.core.mux.dialect import Dialect
from kcptun_lite.core.mux.smux import SmuxSession
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.errors import RemoteProtocolError
from tests.helpers import ConversationPair, kcp_params, noise

DIALECTS = [Dialect(version, compress) for compress in (True, False) for version in (1, 2)]
BAD_LINK = {"delay": 40, "loss": 0.1, "jitter": 30, "reorder": 0.05, "duplicate": 0.05}


def params(dialect: Dialect, **changes: Any) -> ConversationParams:
    base = ConversationParams(kcp=kcp_params("fast"), has_own_shards=False, adapts=False)
    return base.in_dialect(dialect, is_guess=False)._replace(**changes)


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """No end says that it is ours: a kcptun says nothing at all before its streams do."""
    monkeypatch.setattr(SmuxSession, "hello", lambda smux: None)


class Kcptun:
    """The server of a pair as a real one that does not understand: it acknowledges, and forgets the session."""

    def __init__(self, pair: ConversationPair, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pair = pair
        self.drops = 0
        receive = Conversation.receive_packets

        def receive_or_drop(conversation: Conversation, packets: Any, now: int, **options: Any) -> None:
            try:
                receive(conversation, packets, now, **options)
            except RemoteProtocolError:
                if conversation is not pair.b.conversation:
                    raise
                self.drops += 1
                self.forget()

        monkeypatch.setattr(Conversation, "receive_packets", receive_or_drop)

    def forget(self) -> None:
        """The session is closed, with a last flush; whatever comes next makes a new one of the same `conv`."""
        pair = self.pair
        pair.b.conversation.kcp.flush_wanted = Flush.EVERYTHING
        pair.b.transmit(pair.b_to_a, pair.now)
        self.meet(pair.b.conversation.conv)

    def meet(self, conv: int) -> None:
        """A session of whom nothing is known."""
        old = self.pair.b.conversation
        self.pair.b.conversation = Conversation(
            conv, old.params, self.pair.b.counters, is_client=False, headroom=20, tailroom=0, now=self.pair.now
        )


def find(pair: ConversationPair, kcptun: Kcptun, tries: list[Dialect]) -> list[Dialect]:
    """What the session does: the next dialect with each refutation, until one is understood; those that were tried."""
    client = pair.a.conversation
    tried = [tries[0]]
    conv = client.conv
    while client.guess:
        pair.drive(lambda: client.guess is None or client.guess.is_refuted, limit=10_000)
        if client.guess:
            conv += 1
            tried.append(tries[len(tried)])
            # what is still under way belongs to the old address
            pair.a_to_b._in_flight.clear()
            pair.b_to_a._in_flight.clear()
            kcptun.meet(conv)
            client.begin_again(conv, tried[-1], pair.now)
    return tried


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("link", [{"delay": 20}, BAD_LINK], ids=["clean", "bad"])
@pytest.mark.parametrize("spoken", DIALECTS, ids=str)
def test_whatever_is_spoken_is_found_and_all_arrives_once(
    spoken: Dialect, link: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = ConversationPair(params(DIALECTS[0], is_guess=True), params_b=params(spoken), link=link)
    kcptun = Kcptun(pair, monkeypatch)
    data = {pair.a.open_stream(): noise(1000 * n, n) for n in range(5)}
    for sid, text in data.items():
        pair.a.write(sid, text, finish=True)
    assert find(pair, kcptun, DIALECTS)[-1] == spoken
    pair.drive(lambda: pair.a.is_quiet, limit=20_000)
    assert pair.b.opened == list(data), "each stream once"
    assert {sid: bytes(pair.b.received[sid]) for sid in data} == data
    pair.b.write(3, b"answer")
    pair.drive(lambda: pair.a.received[3] == b"answer", limit=5_000)


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("seed", range(20))
def test_a_right_guess_is_never_refuted_whatever_the_link_does(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else streams would be opened twice. And it is confirmed though the server's stream is silent."""
    link = {**BAD_LINK, "loss": 0.3, "reorder": 0.3, "duplicate": 0.3, "jitter": 200}
    pair = ConversationPair(params(DIALECTS[0], is_guess=True), params_b=params(DIALECTS[0]), link=link, seed=seed)
    Kcptun(pair, monkeypatch)
    pair.a.write(pair.a.open_stream(), noise(3000))
    guess = pair.a.conversation.guess
    assert guess
    pair.drive(lambda: guess.is_decided, limit=60_000)
    assert guess.is_confirmed and pair.a.conversation.guess is None


@pytest.mark.parametrize(("guess", "spoken"), list(product(DIALECTS, DIALECTS)), ids=str)
def test_ours_takes_every_guess(guess: Dialect, spoken: Dialect) -> None:
    pair = ConversationPair(params(guess, is_guess=True), params_b=params(spoken, adapts=True), link={"delay": 20})
    sid = pair.a.open_stream()
    pair.a.write(sid, b"hello")
    took = pair.drive(lambda: pair.a.conversation.guess is None, limit=1000)
    assert took <= 60, "its hello confirms it, after one round trip"
    pair.drive(lambda: pair.b.received.get(sid) == b"hello", limit=1000)


@pytest.mark.usefixtures("silent")
def test_a_guess_without_an_answer_holds_little_and_lets_go_on_after(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ConversationPair(params(DIALECTS[0], is_guess=True), params_b=params(DIALECTS[0]), link={"delay": 500})
    Kcptun(pair, monkeypatch)
    data = noise(1_000_000)
    sid = pair.a.open_stream()
    pair.a.write(sid, data)
    pair.drive(limit=1200)
    guess = pair.a.conversation.guess
    assert guess and guess.held_bytes < 140 * 1024
    pair.drive(lambda: pair.b.received.get(sid) == data, limit=60_000)
    assert pair.a.conversation.guess is None


@pytest.mark.usefixtures("silent")
@pytest.mark.parametrize("shards", [(0, 0), (10, 3), (5, 5), (3, 1)])
def test_parity_goes_out_in_the_servers_numbers(shards: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    server = params(DIALECTS[0], data_shards=shards[0], parity_shards=shards[1], has_own_shards=True)
    pair = ConversationPair(params(DIALECTS[0]), params_b=server, link={"delay": 20})
    Kcptun(pair, monkeypatch)
    sid = pair.a.open_stream()
    pair.a.write(sid, noise(100_000))
    pair.drive(lambda: len(pair.b.received.get(sid, b"")) == 100_000, limit=10_000)
    pair.b.write(sid, noise(100_000, 2))
    pair.drive(lambda: len(pair.a.received[sid]) == 100_000, limit=10_000)
    before = pair.b.counters.fec_parity
    pair.a.write(sid, noise(100_000, 3))
    pair.drive(lambda: pair.a.is_quiet, limit=10_000)
    assert (pair.b.counters.fec_parity > before) == (shards != (0, 0))
    assert pair.b.conversation.peer_shards == shards
