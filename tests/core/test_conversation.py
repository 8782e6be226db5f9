"""Client and server in one room: streams both ways through all layers but encryption."""

from random import Random
from typing import Any

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.kcp import KcpParams
from kcptun_lite.core.mux.smux import SmuxSession, StreamFinished, StreamOpened, StreamReadable, StreamWritable
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.streams import KEEPALIVE_TIMEOUT
from kcptun_lite.core.wire import KCP_SEGMENT
from kcptun_lite.errors import KeepaliveTimeout, RemoteProtocolError
from tests.helpers import CONV, ConversationEnd, ConversationPair, kcp_params, noise

LOSSY = {"delay": 20, "loss": 0.1, "jitter": 5, "duplicate": 0.05}


def params(**changes: Any) -> ConversationParams:
    return ConversationParams(**{"kcp": kcp_params("fast", snd_wnd=128, rcv_wnd=512), **changes})


@pytest.mark.parametrize("fec", [(0, 0), (10, 3), (3, 1)], ids=["no-fec", "10-3", "3-1"])
@pytest.mark.parametrize("compress", [False, True], ids=["nocomp", "snappy"])
@pytest.mark.parametrize("version", [1, 2])
def test_many_streams_both_ways(version: int, compress: bool, fec: tuple[int, int]) -> None:
    settings = params(smux_version=version, compress=compress, data_shards=fec[0], parity_shards=fec[1])
    pair = ConversationPair(settings, link=LOSSY)
    data = {pair.a.open_stream(): (noise(20_000 + n, n), bytes(3_000 * n)) for n in range(8)}
    for sid, (there, _) in data.items():
        pair.a.write(sid, there, finish=True)
    pair.drive(lambda: len(pair.b.opened) == 8, limit=5_000)
    for sid, (_, back) in data.items():
        pair.b.write(sid, back, finish=True)
    pair.drive(lambda: pair.a.is_quiet and pair.b.is_quiet, limit=10_000)
    for sid, (there, back) in data.items():
        assert pair.b.received[sid] == there
        assert pair.a.received[sid] == back
        assert pair.a.conversation.is_finished(sid)
        assert pair.b.conversation.is_finished(sid)
    assert pair.a.conversation.held_bytes < 100_000  # packets kept for recovery, no stream data
    assert pair.a.conversation.kcp.send_bytes == pair.b.conversation.kcp.send_bytes == 0


@pytest.mark.parametrize("client_fec", [(0, 0), (10, 3), (5, 5)])
@pytest.mark.parametrize("server_fec", [(0, 0), (10, 3), (5, 5)])
def test_ends_with_different_fec(client_fec: tuple[int, int], server_fec: tuple[int, int]) -> None:
    client = params(data_shards=client_fec[0], parity_shards=client_fec[1])
    server = params(data_shards=server_fec[0], parity_shards=server_fec[1])
    pair = ConversationPair(client, params_b=server, link=LOSSY)
    sid = pair.a.open_stream()
    pair.a.write(sid, noise(40_000))
    pair.drive(lambda: pair.b.received.get(sid) == noise(40_000), limit=5_000)
    pair.b.write(sid, noise(40_000, 2))
    pair.drive(lambda: pair.a.received[sid] == noise(40_000, 2), limit=5_000)


@pytest.mark.parametrize("loss", [0.02, 0.1])
def test_fec_recovers_what_was_lost(loss: float) -> None:
    pair = ConversationPair(params(compress=False), link={"delay": 20, "loss": loss}, link_back={"delay": 20})
    sid = pair.a.open_stream()
    data = noise(1_000_000)
    pair.a.write(sid, data)
    pair.drive(lambda: pair.b.received.get(sid) == data, limit=20_000)
    lost = pair.a_to_b.lost
    # Ten of thirteen packets carry data; a group with four losses or more is lost for FEC.
    assert pair.b.counters.fec_recovered >= 0.55 * lost
    assert pair.a.counters.retransmitted <= 0.35 * lost
    assert pair.b.counters.kcp_in_errors == 0


# A server that takes smux version and compression from its client


@pytest.mark.parametrize("loss", [0.0, 0.2])
@pytest.mark.parametrize("compress", [False, True], ids=["nocomp", "snappy"])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("own", [(1, True), (2, False)])
def test_server_adapts(own: tuple[int, bool], version: int, compress: bool, loss: float) -> None:
    client = params(smux_version=version, compress=compress)
    server = params(smux_version=own[0], compress=own[1], adapts=True)
    pair = ConversationPair(client, params_b=server, link={"delay": 20, "loss": loss})
    assert pair.b.conversation.smux_version == 0
    sid = pair.a.open_stream()
    pair.a.write(sid, b"request")
    pair.drive(lambda: pair.b.received.get(sid) == b"request", limit=5_000)
    assert (pair.b.conversation.smux_version, pair.b.conversation.is_compressed) == (version, compress)
    pair.b.write(sid, b"answer", finish=True)
    pair.drive(lambda: pair.a.received[sid] == b"answer", limit=5_000)


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("shards", [(5, 5), (3, 1), (20, 10), (10, 3)])
@pytest.mark.parametrize("own", [(10, 3), (30, 15)])
def test_server_sends_parity_in_its_clients_numbers_or_none(
    own: tuple[int, int], shards: tuple[int, int], loss: float
) -> None:
    """So that a client of 2017 or 2021, whose decoder is set to its own numbers, is never led astray."""
    client = params(data_shards=shards[0], parity_shards=shards[1])
    server = params(data_shards=own[0], parity_shards=own[1], adapts=True)
    pair = ConversationPair(client, params_b=server, link={"delay": 20, "loss": loss})
    sid = pair.a.open_stream()
    pair.a.write(sid, noise(40_000))
    pair.drive(lambda: pair.b.received.get(sid) == noise(40_000), limit=5_000)
    pair.b.write(sid, noise(400_000, 2))
    pair.drive(lambda: pair.a.received[sid] == noise(400_000, 2), limit=10_000)
    assert pair.a.conversation._decoder.shards == pair.b.conversation._decoder.shards == shards
    assert pair.a.counters.fec_parity > 0
    if loss:
        assert pair.a.counters.fec_recovered > 0


def test_a_client_that_wants_most_of_all_parity_gets_none() -> None:
    pair = ConversationPair(params(data_shards=1, parity_shards=3), params_b=params(adapts=True))
    sid = pair.a.open_stream()
    pair.a.write(sid, noise(10_000))
    pair.drive(lambda: pair.b.received.get(sid) == noise(10_000), limit=5_000)
    pair.b.write(sid, noise(10_000))
    pair.drive(lambda: pair.a.received[sid] == noise(10_000), limit=5_000)
    assert pair.b.conversation._decoder.shards == (1, 3)
    assert pair.a.counters.fec_parity == 0


def test_server_that_has_heard_nothing_can_be_driven() -> None:
    end = ConversationEnd(params(adapts=True), is_client=False)
    end.conversation.tick(1_000_000)
    assert end.conversation.next_deadline() is None
    assert end.conversation.held_bytes == 0
    assert end.conversation.take_events() == []


@pytest.mark.parametrize(
    ("client", "server"), [({"smux_version": 2}, {}), ({"compress": False}, {}), ({}, {"compress": False})]
)
def test_a_mismatch_is_the_peers_error(client: dict[str, Any], server: dict[str, Any]) -> None:
    pair = ConversationPair(params(**client), params_b=params(**server))
    pair.a.open_stream()
    with pytest.raises(RemoteProtocolError):
        pair.drive(limit=100)


# Events


def test_events_come_in_order_and_once() -> None:
    pair = ConversationPair(params(smux_version=1), link={"delay": 20})
    sid = pair.a.open_stream()
    pair.a.write(sid, b"hello", finish=True)
    pair.drive(lambda: pair.b.conversation.is_finished(sid) and sid in pair.b.received, limit=1_000)
    assert pair.b.events == [StreamOpened(sid), StreamReadable(sid), StreamFinished(sid)]
    pair.b.write(sid, b"back", finish=True)
    pair.drive(lambda: pair.a.conversation.is_finished(sid), limit=1_000)
    assert pair.a.events == [StreamReadable(sid), StreamFinished(sid)]
    assert pair.a.received[sid] == b"back"


def test_half_close_leaves_the_other_direction_open() -> None:
    pair = ConversationPair(params(), link=LOSSY)
    sid = pair.a.open_stream()
    pair.a.write(sid, b"question", finish=True)
    pair.drive(lambda: any(isinstance(event, StreamFinished) for event in pair.b.events), limit=5_000)
    answer = noise(100_000)
    pair.b.write(sid, answer)
    pair.drive(lambda: pair.a.received[sid] == answer, limit=10_000)
    assert not pair.a.conversation.is_finished(sid)


def test_closed_stream_drops_what_still_comes() -> None:
    pair = ConversationPair(params(), link={"delay": 20})
    sid = pair.a.open_stream()
    pair.a.write(sid, b"x")
    pair.drive(lambda: bool(pair.b.opened), limit=1_000)
    pair.b.write(sid, noise(200_000))
    pair.drive(limit=30)
    pair.a.conversation.close_stream(sid)
    del pair.a.received[sid]
    pair.drive(lambda: any(isinstance(event, StreamFinished) for event in pair.b.events), limit=1_000)
    pair.drive(lambda: pair.b.is_quiet, limit=5_000)
    assert pair.a.conversation.kcp.received.unread_bytes == 0


def test_version_2_writer_waits_for_the_peers_window() -> None:
    settings = params(smux_version=2, stream_buffer=65_536, compress=False)
    pair = ConversationPair(settings, link={"delay": 20})
    pair.b.is_reading = False
    sid = pair.a.open_stream()
    data = noise(1_000_000)
    pair.a.write(sid, data)
    pair.drive(limit=3_000)
    assert pair.a.conversation.stream_room(sid) == 0
    assert pair.a.conversation.kcp.is_quiet  # it waits, and nothing is repeated
    other = pair.a.open_stream()  # one that is stuck does not stop the others
    pair.a.write(other, b"small", finish=True)
    pair.drive(lambda: StreamFinished(other) in pair.b.events, limit=200)
    pair.b.is_reading = True
    pair.b.work(pair.now)  # the application reads
    pair.drive(lambda: pair.b.received[sid] == data, limit=20_000)
    assert StreamWritable(sid) in pair.a.events


# A reader that stops


@pytest.mark.parametrize("loss", [0.0, 0.1])
@pytest.mark.parametrize("compress", [False, True], ids=["nocomp", "snappy"])
def test_full_buffers_shut_the_window_and_reading_opens_it(
    compress: bool, loss: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a kcptun, which sends on whether somebody reads or not."""
    monkeypatch.setattr(SmuxSession, "hello", lambda self: None)
    windows = kcp_params(rcv_wnd=32, snd_wnd=64)
    settings = params(compress=compress, smux_buffer=100_000, stream_buffer=100_000, kcp=windows)
    pair = ConversationPair(settings, link={"delay": 20, "loss": loss})
    pair.b.is_reading = False
    sid = pair.a.open_stream()
    data = noise(1_000_000)
    pair.a.write(sid, data)
    pair.drive(limit=15_000)
    server = pair.b.conversation
    assert pair.a.conversation.kcp.rmt_wnd == 0
    # smux holds its buffer and what came in one piece; KCP a window in order and one out of order; FEC its packets.
    assert 100_000 <= server.held_bytes <= 100_000 + 64 * 1400 + 64 * 1400 + 128 * 1024
    pair.b.is_reading = True
    pair.b.work(pair.now)
    pair.drive(lambda: pair.b.received[sid] == data, limit=60_000)


def test_budget_of_a_closed_stream_lets_the_next_one_through() -> None:
    settings = params(smux_buffer=50_000, stream_buffer=50_000, kcp=kcp_params(rcv_wnd=16))
    pair = ConversationPair(settings, link={"delay": 10})
    pair.b.is_reading = False
    stuck, behind = pair.a.open_stream(), pair.a.open_stream()
    pair.a.write(stuck, noise(300_000))
    pair.drive(limit=2_000)
    pair.a.write(behind, b"me too")
    pair.drive(limit=2_000)
    # The server gives up the stream nobody reads; what is left of it flows past.
    pair.b.conversation.close_stream(stuck)
    pair.b.received.pop(stuck)
    pair.b.is_reading = True
    pair.drive(lambda: pair.b.received.get(behind) == b"me too", limit=30_000)


# Keep-alive


def test_silence_ends_the_session() -> None:
    pair = ConversationPair(params(), link={"delay": 20})
    pair.a.open_stream()
    pair.drive(limit=500)
    pair.b_to_a.loss = 1.0

    def tick() -> None:
        pair.at(pair.now + 1000, tick)

    tick()
    began = pair.now
    with pytest.raises(KeepaliveTimeout):
        pair.drive(limit=2 * KEEPALIVE_TIMEOUT + 2_000)
    assert KEEPALIVE_TIMEOUT - 1_000 <= pair.now - began <= 2 * KEEPALIVE_TIMEOUT + 1_000


def test_keepalive_holds_a_session_without_streams() -> None:
    pair = ConversationPair(params(), link={"delay": 20, "loss": 0.1})
    sid = pair.a.open_stream()
    pair.a.write(sid, b"x", finish=True)

    def tick() -> None:
        pair.at(pair.now + 1000, tick)

    tick()
    pair.drive(limit=3_600_000)
    sid = pair.a.open_stream()
    pair.a.write(sid, b"still there")
    pair.drive(lambda: pair.b.received.get(sid) == b"still there", limit=3_000)


# Garbage


@pytest.mark.parametrize("seed", range(30))
def test_a_garbage_stream_is_the_peers_error_and_nothing_else(seed: int) -> None:
    """KCP puts it in order, and then it is neither snappy nor smux."""
    random = Random(seed)
    settings = params(compress=random.random() < 0.5, smux_version=random.choice((1, 2)), adapts=random.random() < 0.5)
    conversation = Conversation(CONV, settings, Counters(), is_client=False, headroom=0, tailroom=0, now=0)
    batch = PacketBatch(memoryview(bytearray(conversation.params.batch_bytes)))
    try:
        for sn in range(200):
            start = random.choice((b"", b"\xff\x06\x00\x00sNaPpY", b"\x01\x02", b"\x02\x04\x08\x00")) if sn < 2 else b""
            payload = start + random.randbytes(random.randint(0, 300))
            packet = KCP_SEGMENT.pack(CONV, 81, 0, 128, 0, sn, 0, len(payload)) + payload
            conversation.receive_packets([memoryview(packet)], sn)
            conversation.take_events()
            while conversation.packets_to_send(batch, sn):
                batch.clear()
            batch.clear()
    except RemoteProtocolError:
        return
    assert conversation.held_bytes < 2_000_000


@pytest.mark.parametrize("seed", range(10))
def test_garbage_packets_cost_counters(seed: int) -> None:
    random = Random(seed)
    pair = ConversationPair(params(), link=LOSSY, seed=seed)
    sid = pair.a.open_stream()
    data = noise(50_000, seed)
    pair.a.write(sid, data)

    def disturb() -> None:
        for end in (pair.a, pair.b):
            packet = bytearray(random.randbytes(random.randint(0, 1400)))
            if random.random() < 0.5:
                packet[4:6] = random.choice((b"\xf1\0", b"\xf2\0", b"\xf3\0"))
            end.conversation.receive_packets([memoryview(packet)], pair.now)
        pair.at(pair.now + 3, disturb)

    disturb()
    pair.drive(lambda: pair.b.received.get(sid) == data, limit=20_000)
    assert pair.a.counters.kcp_in_errors + pair.a.counters.in_errors + pair.a.counters.fec_errors > 0


# Batches


@pytest.mark.parametrize("fec", [(0, 0), (1, 1), (10, 3), (20, 20), (3, 60), (128, 128)])
def test_a_batch_holds_data_and_its_parity(fec: tuple[int, int]) -> None:
    settings = params(data_shards=fec[0], parity_shards=fec[1], kcp=KcpParams(snd_wnd=1024, mtu=1500), compress=False)
    end = ConversationEnd(settings, is_client=True)
    conversation = end.conversation
    conversation.kcp.rmt_wnd = 1024
    sid = conversation.open_stream()
    while conversation.send_stream_data(sid, memoryview(bytes(30_000))):
        pass
    batch = PacketBatch(memoryview(bytearray(conversation.params.batch_bytes)))
    more, data = True, 0
    while more:
        more = conversation.packets_to_send(batch, 0)
        assert batch.end <= batch.capacity
        assert max(batch.lengths) <= 1500
        assert sum(batch.lengths) <= batch.end
        data += len(batch)
        batch.clear()
    segments = conversation.kcp.window.snd_nxt
    if fec[0]:
        # With one data shard the first group has no packet before it, so new programs give it no parity
        # (docs/protocol.md, "Parity at the sender").
        assert data == segments + (segments // fec[0] - (fec[0] == 1)) * fec[1]
    else:
        assert data == segments
