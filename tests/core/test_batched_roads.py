"""Bulk traffic takes the short roads: what they do is the same, so only the calls show that they are taken."""

from random import Random
from typing import Any

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.rows import PacketList, PacketRow
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.fec.encoder import FecEncoder
from kcptun_lite.core.kcp.kcp import Kcp, KcpParams
from kcptun_lite.core.kcp.receive_window import ReceiveWindow
from kcptun_lite.core.wire import FEC_HEADER_SIZE, KCP_ACK, KCP_PUSH, KCP_SEGMENT
from tests.helpers import CONV

BULK = 64  # packets of one batch
SIZE = 1300


def batch_of(packets: list[bytes]) -> PacketBatch:
    batch = PacketBatch(memoryview(bytearray(1 << 19)))
    for packet in packets:
        batch.arena[batch.end : batch.end + len(packet)] = packet
        batch.commit(len(packet))
    return batch


def forbid(monkeypatch: pytest.MonkeyPatch, room: type, name: str) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError(f"{room.__name__}.{name} was called")

    monkeypatch.setattr(room, name, fail)


def test_a_row_of_segments_in_order_is_taken_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, Kcp, "_receive_one")
    kcp = Kcp(CONV, KcpParams(rcv_wnd=2 * BULK), Counters(), headroom=0, tailroom=0)
    appended: list[int] = []
    append = ReceiveWindow.append

    def note(window: ReceiveWindow, data: Any, count: int = 1) -> None:
        appended.append(count)
        append(window, data, count)

    monkeypatch.setattr(ReceiveWindow, "append", note)
    payload = Random(1).randbytes(SIZE)
    segments = [KCP_SEGMENT.pack(CONV, KCP_PUSH, 0, 128, 0, sn, 0, SIZE) + payload for sn in range(BULK)]
    packets = batch_of(segments).packets()
    stretches = list(packets.stretches()) if isinstance(packets, PacketList) else [packets]
    assert all(isinstance(stretch, PacketRow) for stretch in stretches)
    for stretch in stretches:
        kcp.receive(stretch, 0)
    assert appended == [BULK]


def test_whole_groups_get_their_parity_together(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, FecEncoder, "_add_piece")
    encoder = FecEncoder(10, 3, 0, 0)
    batch = batch_of([bytes(FEC_HEADER_SIZE) + Random(n).randbytes(SIZE) for n in range(80)])
    encoder.protect(batch, 0, 0)
    assert len(batch) == 80 + 8 * 3


def test_who_repeats_what_is_beyond_our_window_is_counted() -> None:
    kcp = Kcp(CONV, KcpParams(rcv_wnd=8), Counters(), headroom=0, tailroom=0)
    for sn, repeated in ((0, 0), (0, 1), (4, 1), (4, 2), (1 + 8, 3)):
        kcp.receive([memoryview(KCP_SEGMENT.pack(CONV, KCP_PUSH, 0, 128, 0, sn, 0, 1) + b"x")], 0)
        assert kcp._counters.repeated == repeated, sn
    assert kcp.received.unread_count == 2


def test_what_is_sent_again_is_counted_by_its_cause() -> None:
    """Two ACKs beyond it, or one where nothing new is to be sent (early), or neither (lost)."""
    for acknowledged, cause in (([1, 2], "fast_retransmitted"), ([2], "early_retransmitted"), ([], "lost")):
        params = KcpParams(nodelay=1, interval=10, resend=2, nc=1, snd_wnd=8, rcv_wnd=8)
        kcp = Kcp(CONV, params, Counters(), headroom=0, tailroom=0)
        kcp.send(bytes(3 * kcp.mss))
        batch = PacketBatch(memoryview(bytearray(1 << 16)))
        kcp.flush(batch, 0, 16)
        for sn in acknowledged:
            kcp.receive([memoryview(KCP_SEGMENT.pack(CONV, KCP_ACK, 0, 128, 0, sn, 0, 0))], 50)
        kcp.flush(batch, 60 if acknowledged else 5_000, 16)
        counters = kcp._counters
        found = {name for name in ("fast_retransmitted", "early_retransmitted", "lost") if getattr(counters, name)}
        assert found == {cause}
