"""What packets of a conversation say, looked at before they are taken in, or instead of it.

In      opened packets, the state of a KCP
Out     answers
Knows   segments. Not: what becomes of the answers
Cost    0.6 us per segment
"""

from collections.abc import Sequence

from kcptun_lite.core.kcp.kcp import Kcp
from kcptun_lite.core.wire import (
    KCP_ACK,
    KCP_HEADER_SIZE,
    KCP_PUSH,
    KCP_REFUSAL_TS,
    KCP_SEGMENT,
    KCP_WINS,
    MASK32,
    datagram_of,
    diff32,
)


def bring_news(kcp: Kcp, packets: Sequence[memoryview]) -> bool:
    """Whether packets acknowledge or carry what we have not had; replayed ones do not.

    Nor do those that are late, sent before those that have come already.
    """
    unpack = KCP_SEGMENT.unpack_from
    una, rcv_nxt, _ = kcp.progress()
    una, rcv_nxt, peer_ts = una & MASK32, rcv_nxt & MASK32, kcp.peer_ts
    for packet in packets:
        datagram = datagram_of(packet)
        at, last = 0, len(datagram) - KCP_HEADER_SIZE
        while at <= last:
            _, cmd, _, _, ts, sn, una_field, length = unpack(datagram, at)
            if diff32(una_field, una) > 0:
                return True
            if cmd == KCP_PUSH and diff32(sn, rcv_nxt) >= 0 and diff32(ts, peer_ts) >= 0:
                return True
            at += KCP_HEADER_SIZE + length
    return False


def are_answer(packets: Sequence[memoryview]) -> bool:
    """Whether there is an ACK or a WINS among the segments."""
    for datagram in map(datagram_of, packets):
        at, last = 0, len(datagram) - KCP_HEADER_SIZE
        while at <= last:
            _, cmd, _, _, _, _, _, length = KCP_SEGMENT.unpack_from(datagram, at)
            if cmd in (KCP_ACK, KCP_WINS):
                return True
            at += KCP_HEADER_SIZE + (length if cmd == KCP_PUSH else 0)
    return False


def are_reset(kcp: Kcp, packets: Sequence[memoryview]) -> bool:
    """Whether all packets are of a peer that acknowledges from zero what was acknowledged before."""
    return all(kcp.is_from_zero(packet) for packet in map(datagram_of, packets) if packet)


def are_refusal(kcp: Kcp, packets: Sequence[memoryview]) -> bool:
    """Whether a server of ours has no room for this conversation, of which it has acknowledged nothing."""
    if kcp.progress()[0]:
        return False
    for datagram in map(datagram_of, packets):
        if len(datagram) == KCP_HEADER_SIZE:
            conv, cmd, _, _, ts, _, _, _ = KCP_SEGMENT.unpack_from(datagram)
            if (conv, cmd, ts) == (kcp.conv, KCP_WINS, KCP_REFUSAL_TS):
                return True
    return False
