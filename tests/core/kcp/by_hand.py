"""One Kcp in the hand of a test: segments made and read one by one."""

from collections.abc import Iterable
from typing import NamedTuple

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.kcp import Kcp
from kcptun_lite.core.wire import KCP_HEADER_SIZE, KCP_PUSH, KCP_SEGMENT, MASK32
from tests.helpers import CONV, kcp_params


class Seen(NamedTuple):
    """A segment as it was sent."""

    cmd: int
    wnd: int
    ts: int
    sn: int
    una: int
    payload: bytes


def make_kcp(first_sn: int = 0, **changes: int | bool) -> Kcp:
    return Kcp(CONV, kcp_params("fast", **changes), Counters(), headroom=0, tailroom=0, first_sn=first_sn)


def segment(
    cmd: int = KCP_PUSH,
    sn: int = 0,
    payload: bytes = b"",
    *,
    conv: int = CONV,
    wnd: int = 128,
    ts: int = 0,
    una: int = 0,
    length: int | None = None,
) -> bytes:
    size = len(payload) if length is None else length
    return KCP_SEGMENT.pack(conv, cmd, 0, wnd, ts & MASK32, sn & MASK32, una & MASK32, size) + payload


def receive(kcp: Kcp, *datagrams: bytes, now: int = 0, recovered: bool = False) -> None:
    kcp.receive([memoryview(datagram) for datagram in datagrams], now, recovered=recovered)


def read(kcp: Kcp) -> bytes:
    read = b""
    while parts := kcp.read():
        read += b"".join(parts)
    return read


def flush(kcp: Kcp, now: int = 0, *, max_packets: int = 64) -> list[list[Seen]]:
    """All that is due, as the segments of each datagram; each batch holds `max_packets`."""
    datagrams = []
    batch = PacketBatch(memoryview(bytearray(128 * 1024)))
    more = True
    while more:
        more = kcp.flush(batch, now, max_packets)
        assert len(batch) <= max_packets
        assert len(batch) or not more, "asks for another batch, but puts nothing in it"
        datagrams += [list(parse(packet)) for packet in batch.views()]
        batch.clear()
    return datagrams


def parse(datagram: memoryview) -> Iterable[Seen]:
    at = 0
    while at < len(datagram):
        conv, cmd, frg, wnd, ts, sn, una, length = KCP_SEGMENT.unpack_from(datagram, at)
        at += KCP_HEADER_SIZE
        assert (conv, frg) == (CONV, 0)
        yield Seen(cmd, wnd, ts, sn, una, bytes(datagram[at : at + length]))
        at += length


def segments(datagrams: list[list[Seen]], cmd: int) -> list[Seen]:
    return [seen for datagram in datagrams for seen in datagram if seen.cmd == cmd]
