"""A conversation that rests, and goes on in another process."""

import marshal
from typing import Any

import pytest

from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.resting import go_on_with, rest_of
from tests.helpers import ConversationEnd, ConversationPair, kcp_params, noise

LOSSY = {"delay": 20, "loss": 0.1, "jitter": 5, "duplicate": 0.05}


def params(**changes: Any) -> ConversationParams:
    return ConversationParams(**{"kcp": kcp_params("fast", snd_wnd=128, rcv_wnd=512), **changes})


def exchange(pair: ConversationPair, seed: int) -> None:
    """A stream with data both ways, from its opening to its end."""
    there, back = noise(40_000, seed), noise(60_000, seed + 1)
    sid = pair.a.open_stream()
    pair.a.write(sid, there)
    pair.drive(lambda: pair.b.received.get(sid) == there, limit=10_000)
    pair.b.write(sid, back)
    pair.drive(lambda: pair.a.received[sid] == back, limit=10_000)
    assert rest_of(pair.b.conversation) is None, "a stream is open"
    for end in pair.a, pair.b:
        end.conversation.close_stream(sid)


@pytest.mark.parametrize("adapts", [False, True], ids=["strict", "adapts"])
@pytest.mark.parametrize("fec", [(0, 0), (10, 3), (3, 1)], ids=["no-fec", "10-3", "3-1"])
@pytest.mark.parametrize("compress", [False, True], ids=["nocomp", "snappy"])
@pytest.mark.parametrize("version", [1, 2])
def test_it_goes_on_where_it_was(version: int, compress: bool, fec: tuple[int, int], adapts: bool) -> None:
    client = params(smux_version=version, compress=compress, data_shards=fec[0], parity_shards=fec[1])
    server = params(smux_version=1, adapts=True).answering(fec=fec[0] > 0) if adapts else client
    pair = ConversationPair(client, params_b=server, link=LOSSY)
    for seed in range(3):
        exchange(pair, seed)
        pair.drive(lambda: rest_of(pair.b.conversation) is not None, limit=20_000)
        state = marshal.loads(marshal.dumps(rest_of(pair.b.conversation)))
        pair.b = ConversationEnd(server, is_client=False, now=pair.now)
        go_on_with(pair.b.conversation, state, pair.now)
    exchange(pair, 4)
    assert pair.a.counters.kcp_in_errors == pair.b.counters.kcp_in_errors == 0


def test_what_is_under_way_keeps_it_where_it_is() -> None:
    pair = ConversationPair(params(), link={"delay": 20})
    sid = pair.a.open_stream()
    pair.a.write(sid, b"hello")
    pair.drive(lambda: pair.b.received.get(sid) == b"hello", limit=5_000)
    for end in pair.a, pair.b:
        end.conversation.close_stream(sid)
    assert rest_of(pair.b.conversation) is None, "its end has not been acknowledged"
    pair.drive(lambda: rest_of(pair.b.conversation) is not None, limit=5_000)
    pair.b.conversation.ping()
    assert rest_of(pair.b.conversation) is None
