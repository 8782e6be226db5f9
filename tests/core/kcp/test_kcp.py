"""One Kcp, segment by segment: what it acknowledges, what it refuses, what it sends when the batch is small."""

from random import Random

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.kcp import QUICK_ACKS, QUICK_COUNT, Flush, Kcp, KcpParams
from kcptun_lite.core.wire import KCP_ACK, KCP_HEADER_SIZE, KCP_PUSH, KCP_WASK, KCP_WINS
from tests.core.kcp.by_hand import Seen, flush, make_kcp, parse, read, receive, segment, segments
from tests.helpers import CONV, KcpPair, kcp_params, noise

ACK_DELAY = 15  # ms; half the interval of mode fast


# Sending


def test_first_datagram_is_as_in_the_worked_example() -> None:
    """docs/protocol.md, "Worked example": bare KCP, a SYN frame of smux as the payload."""
    kcp = Kcp(0xAD8217B2, KcpParams(), Counters(), headroom=0, tailroom=0)
    kcp.send(bytes.fromhex("0100000003000000"))
    batch = PacketBatch(memoryview(bytearray(4096)))
    kcp.flush(batch, 0x1D9, 2)
    assert batch.packet(0).hex() == "b21782ad51000002d9010000000000000000000008000000" + "0100000003000000"


def test_bytes_become_full_segments_and_one_rest() -> None:
    kcp = make_kcp()
    data = noise(3 * kcp.mss + 10)
    for start in range(0, len(data), 1000):
        kcp.send(data[start : start + 1000])
    sent = segments(flush(kcp), KCP_PUSH)
    assert [len(seen.payload) for seen in sent] == [kcp.mss, kcp.mss, kcp.mss, 10]
    assert [seen.sn for seen in sent] == [0, 1, 2, 3]
    assert b"".join(seen.payload for seen in sent) == data


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_size_make_the_same_stream(seed: int) -> None:
    random = Random(seed)
    kcp = make_kcp(mtu=random.choice((200, 576, 1350, 1500)))
    receive(kcp, segment(KCP_WINS, wnd=1024))
    data = noise(60_000, seed)
    at, sent = 0, []
    while at < len(data):
        size = random.choice((1, 8, 100, kcp.mss - 1, kcp.mss, kcp.mss + 1, 2 * kcp.mss, 5000))
        kcp.send(data[at : at + size])
        at += size
        if random.random() < 0.3:
            sent += segments(flush(kcp, max_packets=random.choice((1, 2, 64))), KCP_PUSH)
            receive(kcp, segment(KCP_WINS, wnd=1024, una=len(sent)))
    sent += segments(flush(kcp), KCP_PUSH)
    assert b"".join(seen.payload for seen in sent) == data
    assert [seen.sn for seen in sent] == list(range(len(sent)))


@pytest.mark.parametrize(("headroom", "tailroom"), [(0, 0), (20, 0), (28, 0), (12, 16)])
def test_a_packet_never_exceeds_the_mtu(headroom: int, tailroom: int) -> None:
    kcp = Kcp(CONV, KcpParams(mtu=1350), Counters(), headroom=headroom, tailroom=tailroom)
    kcp.send(noise(20_000))
    receive(kcp, segment(sn=1, payload=b"early"))
    batch = PacketBatch(memoryview(bytearray(128 * 1024)))
    assert not kcp.flush(batch, 0, 64)
    assert max(batch.lengths) == 1350
    for packet in batch.views():
        assert list(parse(packet[headroom : len(packet) - tailroom]))


def test_the_window_of_either_side_limits_what_is_in_flight() -> None:
    kcp = make_kcp(snd_wnd=10)
    kcp.send(noise(100 * kcp.mss))
    assert len(segments(flush(kcp), KCP_PUSH)) == 10
    receive(kcp, segment(KCP_ACK, sn=3, una=4, wnd=7))
    assert [seen.sn for seen in segments(flush(kcp), KCP_PUSH)] == [10]  # 4 + 7
    assert kcp.send_room < 0


def test_before_the_peer_has_told_its_window_is_32() -> None:
    kcp = make_kcp()
    kcp.send(noise(100 * kcp.mss))
    assert len(segments(flush(kcp), KCP_PUSH)) == 32


def test_send_bytes_count_down_to_nothing() -> None:
    kcp = make_kcp()
    kcp.send(noise(5000))
    assert kcp.send_bytes == 5000
    flush(kcp)
    assert kcp.send_bytes == 5000
    receive(kcp, segment(KCP_ACK, sn=3, una=4))
    assert kcp.send_bytes == 0
    assert kcp.is_quiet
    assert kcp.next_deadline() is None


def test_fast_retransmission_needs_no_timer() -> None:
    kcp = make_kcp()
    kcp.send(noise(10 * kcp.mss))
    flush(kcp, 0)
    receive(kcp, segment(KCP_ACK, sn=1), segment(KCP_ACK, sn=2), now=50)
    assert kcp.flush_wanted is Flush.EVERYTHING
    assert [seen.sn for seen in segments(flush(kcp, 50), KCP_PUSH)] == [0]


def test_one_skip_is_enough_when_there_is_nothing_new_to_send() -> None:
    kcp = make_kcp()
    kcp.send(noise(2 * kcp.mss))
    flush(kcp, 0)
    receive(kcp, segment(KCP_ACK, sn=1), now=50)
    assert [seen.sn for seen in segments(flush(kcp, 60), KCP_PUSH)] == [0]


# Receiving


def test_in_order_segments_make_one_acknowledgement() -> None:
    kcp = make_kcp()
    receive(kcp, *(segment(sn=sn, payload=b"x%d" % sn, ts=100 + sn) for sn in range(3)), now=7)
    assert read(kcp) == b"x0x1x2"
    assert kcp.flush_wanted is Flush.NOTHING
    assert kcp.next_deadline() == 7 + ACK_DELAY
    (acks,) = flush(kcp, 7 + ACK_DELAY)
    assert acks == [Seen(KCP_ACK, 1024, 102, 2, 3, b"")]
    assert kcp.next_deadline() is None


def test_what_comes_thick_at_the_start_is_acknowledged_at_once() -> None:
    """Its sender learns the round trip without our delay, before a queue can have grown."""
    kcp = make_kcp()
    receive(kcp, *(segment(sn=sn, payload=b"x") for sn in range(QUICK_COUNT)))
    assert kcp.flush_wanted is Flush.ACKS
    flush(kcp)
    receive(kcp, *(segment(sn=sn, payload=b"x") for sn in range(QUICK_COUNT, QUICK_ACKS)))
    flush(kcp)
    receive(kcp, *(segment(sn=QUICK_ACKS + sn, payload=b"x") for sn in range(QUICK_COUNT)))
    assert kcp.flush_wanted is Flush.NOTHING


def test_holes_are_named_and_filled() -> None:
    kcp = make_kcp()
    receive(kcp, *(segment(sn=sn, payload=b"%d" % sn, ts=sn) for sn in (0, 2, 5, 4)))
    assert read(kcp) == b"0"
    (acks,) = flush(kcp)
    assert [(seen.sn, seen.ts, seen.una) for seen in acks] == [(2, 2, 1), (5, 5, 1), (4, 4, 1)]
    assert kcp.received.early_bytes == 3
    receive(kcp, segment(sn=1, payload=b"1", ts=9))
    assert read(kcp) == b"12"
    receive(kcp, segment(sn=3, payload=b"3", ts=10))
    assert read(kcp) == b"345"
    assert kcp.received.early_bytes == 0
    (acks,) = flush(kcp)
    assert [(seen.sn, seen.ts, seen.una) for seen in acks] == [(3, 10, 6)]


@pytest.mark.parametrize("seed", range(10))
def test_acknowledged_is_exactly_what_has_arrived(seed: int) -> None:
    random = Random(seed)
    kcp = make_kcp(rcv_wnd=32)
    arrived: set[int] = set()
    expected = 0
    for _ in range(100):
        for _ in range(random.randint(1, 6)):
            sn = max(0, expected + random.choice((-5, -1, 0, 0, 1, 2, 9, 31, 32, 40)))
            if sn < expected + 32:
                arrived.add(sn)
            while expected in arrived:
                expected += 1
            receive(kcp, segment(sn=sn, payload=b"x", ts=sn))
            read(kcp)
        if random.random() < 0.5:
            for datagram in flush(kcp):
                for ack in datagram:
                    assert (ack.cmd, ack.sn) == (KCP_ACK, ack.ts)
                    assert ack.sn in arrived
                    assert ack.una == expected


def test_duplicates_are_acknowledged_again_but_not_read_again() -> None:
    kcp = make_kcp()
    receive(kcp, segment(sn=0, payload=b"a", ts=1))
    receive(kcp, segment(sn=2, payload=b"c", ts=1))
    flush(kcp)
    receive(kcp, segment(sn=0, payload=b"A", ts=2))
    receive(kcp, segment(sn=2, payload=b"C", ts=3))
    (acks,) = flush(kcp)
    assert {(seen.sn, seen.ts) for seen in acks} == {(2, 3)}
    receive(kcp, segment(sn=0, payload=b"A", ts=4))
    assert [(seen.sn, seen.una) for seen in flush(kcp)[0]] == [(0, 1)]
    receive(kcp, segment(sn=1, payload=b"b"))
    assert read(kcp) == b"abc"
    assert kcp._counters.repeated == 3


def test_beyond_the_window_is_neither_kept_nor_acknowledged() -> None:
    kcp = make_kcp(rcv_wnd=8)
    receive(kcp, segment(sn=8, payload=b"x"), segment(sn=1000, payload=b"x"), segment(sn=0x7FFFFFFF, payload=b"x"))
    assert kcp.received.unread_bytes == 0
    assert flush(kcp, 100) == []
    receive(kcp, segment(sn=7, payload=b"x"))
    assert [seen.sn for seen in flush(kcp, 200)[0]] == [7]


def test_a_full_receive_window_keeps_one_more_window_and_then_says_it_is_open() -> None:
    kcp = make_kcp(rcv_wnd=4)
    receive(kcp, *(segment(sn=sn, payload=b"%d" % sn) for sn in range(9)))
    assert (kcp.received.count, kcp.received.early_bytes) == (4, 4)  # 8 is beyond 4 + 4
    assert {seen.wnd for seen in flush(kcp)[0]} == {0}
    assert read(kcp) == b"01234567"
    assert [(seen.wnd, seen.una) for seen in segments(flush(kcp), KCP_WINS)] == [(4, 8)]


def test_a_question_for_the_window_is_answered_at_once() -> None:
    kcp = make_kcp()
    receive(kcp, segment(KCP_WASK))
    assert kcp.flush_wanted is Flush.EVERYTHING
    assert [seen.cmd for seen in flush(kcp)[0]] == [KCP_WINS]


def test_an_open_window_after_a_shut_one_is_used_at_once() -> None:
    kcp = make_kcp()
    receive(kcp, segment(KCP_WINS, wnd=0))
    kcp.send(b"hello")
    assert flush(kcp) == []
    assert kcp.next_deadline() == 500
    receive(kcp, segment(KCP_WINS, wnd=5), now=10)
    assert kcp.flush_wanted is Flush.EVERYTHING
    assert [seen.payload for seen in flush(kcp, 10)[0]] == [b"hello"]


def test_a_shut_window_is_told_as_open_only_when_something_was_read() -> None:
    kcp = make_kcp(rcv_wnd=2)
    receive(kcp, segment(sn=0, payload=b"x"), segment(sn=1, payload=b"y"))
    flush(kcp)
    assert kcp.read(0) == [] and kcp.flush_wanted is Flush.NOTHING
    assert kcp.read(1) and kcp.flush_wanted is Flush.EVERYTHING


def test_a_datagram_full_of_acknowledgements_goes_at_once() -> None:
    kcp = make_kcp()
    room = (kcp.mss + KCP_HEADER_SIZE) // KCP_HEADER_SIZE
    receive(kcp, *(segment(sn=sn, payload=b"x") for sn in range(QUICK_ACKS)))
    flush(kcp)
    receive(kcp, *(segment(sn=QUICK_ACKS + sn, payload=b"x") for sn in range(room - 1)))
    assert kcp.flush_wanted is Flush.NOTHING
    receive(kcp, segment(sn=QUICK_ACKS + room - 1, payload=b"x"))
    assert kcp.flush_wanted is Flush.ACKS


def test_the_first_sign_of_a_loss_is_acknowledged_at_once() -> None:
    kcp = make_kcp()
    receive(kcp, segment(sn=0, payload=b"x"))
    assert kcp.flush_wanted is Flush.NOTHING
    receive(kcp, segment(sn=2, payload=b"x"))
    assert kcp.flush_wanted is Flush.EVERYTHING
    flush(kcp)
    receive(kcp, segment(sn=3, payload=b"x"))
    assert kcp.flush_wanted is Flush.NOTHING, "it knows"


def test_acknodelay_acknowledges_at_once_and_alone() -> None:
    kcp = make_kcp(acknodelay=True)
    receive(kcp, segment(sn=0, payload=b"x"))
    assert kcp.flush_wanted is Flush.ACKS
    assert [seen.cmd for seen in flush(kcp)[0]] == [KCP_ACK]


def test_empty_push_takes_a_number_and_no_bytes() -> None:
    kcp = make_kcp()
    receive(kcp, segment(sn=0), segment(sn=2), segment(sn=1, payload=b"x"))
    assert read(kcp) == b"x"
    assert flush(kcp, 100)[0][-1].una == 3


def test_many_empty_pushes_are_bounded_by_the_window() -> None:
    kcp = make_kcp(rcv_wnd=16)
    for sn in range(1000):
        receive(kcp, segment(sn=sn))
    assert kcp.received.count == 16
    assert len(flush(kcp)[0]) <= 17


# Small batches


@pytest.mark.parametrize("max_packets", [1, 2, 3])
@pytest.mark.parametrize("mode", ["fast", "nc=0"])
def test_small_batches_lose_and_double_nothing(max_packets: int, mode: str) -> None:
    """Every flush is cut after a packet or two: between ACKs, probes, repetitions and new data."""
    link = {"loss": 0.15, "delay": 20, "jitter": 10, "duplicate": 0.1}
    params = kcp_params(mode, snd_wnd=64, rcv_wnd=64, mtu=300)
    pair = KcpPair(params, link=link, max_packets=max_packets)
    pair.exchange(noise(30_000, 1), noise(30_000, 2), limit=30_000)
    reference = KcpPair(params, link=link, max_packets=64)
    reference.exchange(noise(30_000, 1), noise(30_000, 2), limit=30_000)
    assert pair.a.flushes > reference.a.flushes


def test_a_cut_flush_goes_on_where_it_stopped() -> None:
    kcp = make_kcp(mtu=KCP_HEADER_SIZE * 4)
    kcp.send(noise(20 * kcp.mss))
    receive(kcp, *(segment(sn=sn) for sn in range(1, 21)), segment(KCP_WASK))
    whole = flush(kcp, max_packets=1)
    acks = segments(whole, KCP_ACK)
    assert [seen.sn for seen in acks] == list(range(1, 21))
    assert len(segments(whole, KCP_WINS)) == 1
    assert [seen.sn for seen in segments(whole, KCP_PUSH)] == list(range(20))
    order = [seen.cmd for datagram in whole for seen in datagram]
    assert order == sorted(order, key=[KCP_ACK, KCP_WINS, KCP_PUSH].index)


def test_no_room_at_all_says_there_is_more() -> None:
    kcp = make_kcp()
    kcp.send(b"x")
    batch = PacketBatch(memoryview(bytearray(4096)))
    assert kcp.flush(batch, 0, 0)
    assert len(batch) == 0
    assert not kcp.flush(batch, 0, 1)
    assert [seen.payload for seen in parse(batch.packet(0))] == [b"x"]
