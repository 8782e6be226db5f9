"""One Kcp, and datagrams that no good peer sends: each costs a counter, and nothing grows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcptun_lite.core.wire import KCP_ACK, KCP_HEADER_SIZE, KCP_WINS, MASK32
from tests.core.kcp.by_hand import flush, make_kcp, read, receive, segment
from tests.helpers import CONV, noise


@pytest.mark.parametrize("size", range(KCP_HEADER_SIZE))
def test_truncated_header_is_an_error(size: int) -> None:
    kcp = make_kcp()
    receive(kcp, segment()[:size])
    assert kcp._counters.kcp_in_errors == 1
    assert kcp._counters.in_segments == 0


@pytest.mark.parametrize("cut", [1, 5, 99])
def test_truncated_payload_is_an_error(cut: int) -> None:
    kcp = make_kcp()
    receive(kcp, segment(payload=bytes(100))[:-cut])
    assert (kcp._counters.kcp_in_errors, kcp.received.count) == (1, 0)


@pytest.mark.parametrize("good", [0, 1, 3])
@pytest.mark.parametrize(
    "bad",
    [
        segment(conv=CONV ^ 1, sn=9, payload=b"x"),
        segment(80, sn=9),
        segment(85, sn=9),
        segment(0),
        segment(255),
        segment(length=30, sn=9),  # 29 follow
        segment(length=0xFFFFFFFF, sn=9),
        segment(length=0x80000000, sn=9),
        segment(KCP_ACK, sn=9, length=100),
    ],
    ids=["conv", "cmd-80", "cmd-85", "cmd-0", "cmd-255", "len-30", "len-max", "len-half", "ack-len"],
)
def test_bad_segment_ends_the_datagram_but_not_what_stood_before(good: int, bad: bytes) -> None:
    kcp = make_kcp()
    before = b"".join(segment(sn=sn, payload=b"ok") for sn in range(good))
    receive(kcp, before + bad + segment(sn=good, payload=b"never"))
    assert read(kcp) == b"ok" * good
    assert kcp._counters.kcp_in_errors == 1
    assert [seen.una for seen in flush(kcp)[0]] == [good] if good else flush(kcp) == []


def test_a_short_tail_is_ignored_as_by_every_generation() -> None:
    kcp = make_kcp()
    receive(kcp, segment(payload=b"ok") + bytes(KCP_HEADER_SIZE - 1))
    assert read(kcp) == b"ok"
    assert kcp._counters.kcp_in_errors == 0


def test_every_single_byte_changed_costs_at_most_a_counter() -> None:
    whole = segment(KCP_ACK, sn=0, ts=5, una=1) + segment(sn=0, payload=b"data") + segment(sn=1, payload=b"more")
    for at in range(len(whole)):
        for value in (0, 1, 0x7F, 0x80, 0xFF):
            kcp = make_kcp()
            kcp.send(b"in flight")
            flush(kcp)
            receive(kcp, whole[:at] + bytes([value]) + whole[at + 1 :], now=10)
            assert kcp.received.unread_bytes <= 8
            assert kcp.send_bytes in (0, 9)
            read(kcp)
            flush(kcp, 20)


@pytest.mark.parametrize("una", [2, 3, 0x7FFFFFFF, 0x80000000, MASK32])
def test_una_of_what_was_never_sent_frees_nothing(una: int) -> None:
    kcp = make_kcp()
    kcp.send(b"x")
    flush(kcp)
    receive(kcp, segment(KCP_WINS, una=una))
    assert kcp.send_bytes == 1


def test_timestamps_from_the_future_are_no_measurement() -> None:
    kcp = make_kcp()
    receive(kcp, segment(KCP_ACK, sn=0, ts=1000), now=999)
    assert kcp.rtt.srtt == 0
    receive(kcp, segment(KCP_ACK, sn=0, ts=0x80000000), now=999)
    assert kcp.rtt.rto <= 60_000


def test_recovered_datagrams_tell_neither_window_nor_time() -> None:
    kcp = make_kcp()
    kcp.send(b"x")
    flush(kcp)
    receive(
        kcp, segment(KCP_ACK, sn=0, una=1, wnd=3), segment(sn=0, payload=b"y", una=1, wnd=3), now=40, recovered=True
    )
    assert kcp.is_quiet
    assert (kcp.rmt_wnd, kcp.rtt.srtt) == (32, 0)
    assert read(kcp) == b"y"
    receive(kcp, segment(sn=0, payload=b"y", una=1), now=40, recovered=True)
    assert kcp._counters.repeated == 0


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_noise_never_raises(datagrams: list[bytes]) -> None:
    kcp = make_kcp(rcv_wnd=4)
    receive(kcp, *datagrams)
    flush(kcp)


FIELD = st.sampled_from([0, 1, 2, 3, 7, 8, 100, 0x7FFFFFFF, 0x80000000, 0xFFFFFFF0, MASK32])
SEGMENTS = st.lists(
    st.tuples(
        st.sampled_from([80, 81, 82, 83, 84, 85]),
        st.sampled_from([0, 1, 128, 65535]),
        FIELD,
        FIELD,
        FIELD,
        st.binary(max_size=20),
        st.booleans(),
    ),
    max_size=6,
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.lists(SEGMENTS, max_size=5), st.sampled_from([0, MASK32 - 2]), st.booleans(), st.sampled_from([0, 1]))
def test_well_formed_nonsense_never_raises_nor_grows(
    datagrams: list[list[tuple[int, int, int, int, int, bytes, bool]]], first_sn: int, recovered: bool, nc: int
) -> None:
    kcp = make_kcp(first_sn, rcv_wnd=4, nc=nc)
    kcp.send(noise(9 * kcp.mss))
    flush(kcp)
    now = 0
    for parts in datagrams:
        now += 100
        datagram = b"".join(
            segment(cmd, sn, payload, wnd=wnd, ts=ts, una=una, length=len(payload) + is_cut)
            for cmd, wnd, ts, sn, una, payload, is_cut in parts
        )
        receive(kcp, datagram, now=now, recovered=recovered)
        flush(kcp, now)
        assert kcp.received.unread_bytes <= 8 * 20
        assert 0 <= kcp.send_bytes <= 9 * kcp.mss
        deadline = kcp.next_deadline()
        assert deadline is None or deadline > now
