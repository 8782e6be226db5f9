"""What packets say before they are taken in: whether they are news, also where numbers wrap."""

import pytest

from kcptun_lite.core.glance import bring_news
from kcptun_lite.core.wire import KCP_ACK, KCP_PUSH, KCP_SEGMENT, MASK32
from tests.helpers import CONV, KcpPair, kcp_params, noise

WRAP = 1 << 32


def packet(*, cmd: int = KCP_PUSH, ts: int = 0, sn: int = 0, una: int = 0) -> list[memoryview]:
    return [memoryview(KCP_SEGMENT.pack(CONV, cmd, 0, 128, ts & MASK32, sn & MASK32, una & MASK32, 0))]


@pytest.mark.parametrize("first_sn", [0, WRAP - 30, WRAP // 2 - 30])
@pytest.mark.parametrize("begin", [1000, WRAP - 50, WRAP // 2 - 50])
def test_only_what_is_new_and_not_late_is_news(first_sn: int, begin: int) -> None:
    pair = KcpPair(kcp_params("fast3"), first_sn=first_sn, now=begin)
    pair.exchange(noise(60_000, 1), noise(60_000, 2), limit=5_000)
    kcp = pair.a.kcp
    una, rcv_nxt, _ = kcp.progress()
    assert una > first_sn + 40, "the number has wrapped, where it was near to that"
    ts = kcp.peer_ts = WRAP - 1 if begin == WRAP - 50 else kcp.peer_ts
    assert bring_news(kcp, packet(sn=rcv_nxt, ts=ts, una=una))
    assert bring_news(kcp, packet(sn=rcv_nxt + 1, ts=ts + 1, una=una))
    assert not bring_news(kcp, packet(sn=rcv_nxt, ts=ts - 1, una=una)), "late"
    assert not bring_news(kcp, packet(sn=rcv_nxt - 1, ts=ts + 1, una=una)), "had before"
    for step in (0, 1, 40):
        assert not bring_news(kcp, packet(cmd=KCP_ACK, sn=una - 1, ts=ts + 1, una=una - step))
    assert bring_news(kcp, packet(cmd=KCP_ACK, sn=una, ts=ts, una=una + 1))
