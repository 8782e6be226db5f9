"""Grids of packets: whoever deals with many at once comes to the same result as packet by packet."""

from contextlib import nullcontext
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcptun_lite.core import lazy_imports as lazy_imports
from kcptun_lite.core.batch import rows, strided
from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.batch.rows import PacketList, PacketRow
from kcptun_lite.core.batch.strided import find_grid, gather, join_numbers, scatter, split_numbers, stamp
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt import crypt as crypt_room
from kcptun_lite.core.crypt.crypt import CheckedCrypt, make_crypt
from kcptun_lite.core.fec.decoder import FecDecoder
from kcptun_lite.core.fec.encoder import FecEncoder
from kcptun_lite.core.kcp.kcp import Kcp, KcpParams
from kcptun_lite.core.lazy_imports import load_numpy
from kcptun_lite.core.wire import KCP_HEADER_SIZE, KCP_PUSH, KCP_SEGMENT, KCP_SN_AT

CONV = 0xCAFE0042


@pytest.fixture(params=[True, False], ids=["numpy", "plain"], autouse=True)
def numpy_or_not(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    load_numpy()
    monkeypatch.setattr(rows, "ROW", strided.MANY)  # as few as may be, so that a property meets many
    monkeypatch.setattr(crypt_room, "GRID", strided.MANY)
    if not request.param:
        monkeypatch.setattr(lazy_imports, "_has_numpy", False)


def grid_of(packets: list[bytes], room: int = 0, capacity: int = 1 << 20) -> PacketBatch:
    batch = PacketBatch(memoryview(bytearray(capacity)))
    batch.begin_grid(room or max(map(len, packets)))
    for packet in packets:
        batch.arena[batch.end : batch.end + len(packet)] = packet
        batch.commit(len(packet))
    return batch


@pytest.mark.parametrize("count", [1, strided.MANY - 1, strided.MANY, 100])
@pytest.mark.parametrize("size", [1, 4, 16, 1300])
def test_fields_are_laid_out_and_found_again(count: int, size: int) -> None:
    data = Random(size).randbytes(count * size)
    buffer = memoryview(bytearray(b"\xee" * (7 + count * 1312)))
    scatter(buffer, 7, 1312, size, data)
    assert gather(buffer, 0, size, 7, 1312, range(count)) == data
    odd = list(range(1, count, 2))
    for some in (odd, odd[::-1], [i for i in range(count) if i % 3]):
        assert gather(buffer, 0, size, *find_grid([7 + i * 1312 for i in some])) == b"".join(
            data[i * size :][:size] for i in some
        )
    assert all(set(buffer[7 + i * 1312 + size : 7 + (i + 1) * 1312]) <= {0xEE} for i in range(count)), "beside a field"


@pytest.mark.parametrize("count", [1, 50])
def test_headers_are_stamped_with_their_numbers(count: int) -> None:
    buffer = memoryview(bytearray(count * 64))
    numbers = [(0xFFFFFFF0 + i) & 0xFFFFFFFF for i in range(count)]
    header = KCP_SEGMENT.pack(CONV, KCP_PUSH, 0, 9, 8, 0, 7, 6)
    stamp(buffer, 3, 64, header, KCP_SN_AT, numbers)
    for i, number in enumerate(numbers):
        assert KCP_SEGMENT.unpack_from(buffer, 3 + 64 * i) == (CONV, KCP_PUSH, 0, 9, 8, number, 7, 6)


def test_numbers_are_little_endian() -> None:
    assert join_numbers(iter([1, 0xFFFFFFFF])) == b"\1\0\0\0\xff\xff\xff\xff"
    assert split_numbers(b"\1\0\0\0\xff\xff\xff\xff") == (1, 0xFFFFFFFF)


@given(lengths=st.lists(st.sampled_from([40, 40, 40, 40, 40, 40, 17, 33]), min_size=1, max_size=60))
def test_stretches_are_the_packets(lengths: list[int]) -> None:
    packets = [bytes([i]) * length for i, length in enumerate(lengths)]
    batch = grid_of(packets)
    found = batch.packets()
    assert [bytes(packet) for packet in found] == packets
    if isinstance(found, PacketList):
        stretches = list(found.stretches())
        assert [bytes(packet) for stretch in stretches for packet in stretch] == packets
        assert [bytes(packet) for packet in found[1:-1]] == packets[1:-1]
        for row in stretches:
            if isinstance(row, PacketRow):
                assert row.field(0, 1) == bytes(packet[0] for packet in row)
                assert [bytes(tail) for tail in row.behind(5, [0, 2, 5])] == [bytes(row[i][5:]) for i in (0, 2, 5)]


def test_a_packet_too_long_ends_the_grid() -> None:
    batch = grid_of([b"a" * 20, b"b" * 5, b"c" * 20], room=20)
    assert (batch.stride, batch.starts, batch.end) == (32, [0, 32, 64], 96)
    batch.commit(33)
    assert (batch.stride, batch.starts[-1], batch.end) == (0, 96, 144)
    batch.begin_grid(20)
    assert batch.stride == 0, "there are packets already"
    batch.clear()
    batch.begin_grid(20)
    assert batch.stride == 32


# -- the rooms that know about grids -----------------------------------------------------------------------------


def sealed(bodies: list[bytes], *, as_grid: bool) -> list[bytes]:
    """The packets with their encryption taken off again by another road than the room's own."""
    random = Random(5)
    crypt = make_crypt("aes", bytes(32), random.randbytes, BufferPool(nullcontext()))
    batch = grid_of([bytes(crypt.headroom) + body for body in bodies])
    if not as_grid:
        batch.stride = 0
    crypt.seal(batch)
    return [bytes(view) for view in batch.views()]


def opened(packets: list[bytes], *, as_grid: bool) -> tuple[list[bytes], Counters]:
    counters = Counters()
    crypt = make_crypt("aes", bytes(32), Random(5).randbytes, BufferPool(nullcontext()))
    assert isinstance(crypt, CheckedCrypt)
    batch = grid_of(packets)
    if not as_grid:
        batch.stride = 0
    crypt.open(batch, counters)
    return [bytes(batch.packet(i)) for i in range(len(batch))], counters


@pytest.mark.parametrize("size", [30, 400])  # 400 packets: more than one part of a batch when it is decrypted
def test_sealing_and_opening_a_grid_is_what_it_is_packet_by_packet(size: int) -> None:
    random = Random(size)
    bodies = [random.randbytes(random.choice([1300, 1300, 1300, 24, 700])) for _ in range(size)]
    one, other = sealed(bodies, as_grid=True), sealed(bodies, as_grid=False)
    for packets in (one, other):
        for as_grid in (True, False):
            found, counters = opened(packets, as_grid=as_grid)
            assert found == bodies
            assert (counters.in_packets, counters.in_bytes) == (size, sum(map(len, bodies)))


FLOOD = ("198.51.100.6", 6)
FRIENDS = [("192.0.2.1", 1), ("192.0.2.2", 2)]


@given(seed=st.integers(0, 2**32))
def test_a_flood_between_them_hides_no_packet(seed: int) -> None:
    random = Random(seed)
    bodies: dict[tuple[str, int], list[bytes]] = {friend: [] for friend in FRIENDS}
    incoming: list[tuple[tuple[str, int], bytes]] = []
    for _ in range(random.randrange(1, 60)):
        source = random.choice([*FRIENDS, FLOOD])
        if source == FLOOD:
            incoming += [(FLOOD, random.randbytes(random.choice([1, 19, 20, 43, 44, 100, 1500]))) for _ in range(3)]
        else:
            run = [random.randbytes(random.choice([100, 100, 100, 30])) for _ in range(random.randrange(1, 12))]
            bodies[source] += run
            incoming += [(source, packet) for packet in sealed(run, as_grid=True)]
    counters = Counters()
    batch = grid_of([packet for _, packet in incoming], room=random.choice([16, 1500]))
    batch.addresses += [source for source, _ in incoming]
    make_crypt("aes", bytes(32), Random(5).randbytes, BufferPool(nullcontext())).open(batch, counters)
    found: dict[tuple[str, int], list[bytes]] = {friend: [] for friend in FRIENDS}
    for source, packets in batch.by_source():
        for stretch in packets.stretches() if isinstance(packets, PacketList) else (packets,):
            found[source] += map(bytes, stretch)  # type: ignore[index]  # two items, as all of these
            if isinstance(stretch, PacketRow):
                assert stretch.field(5, 3) == b"".join(bytes(packet[5:8]) for packet in stretch)
    assert found == bodies
    good = sum(map(len, bodies.values()))
    assert (counters.in_packets, counters.in_checksum_errors) == (good, len(incoming) - good)


def fec_packets(datagrams: list[bytes], data: int, parity: int) -> list[bytes]:
    encoder = FecEncoder(data, parity, 0, 0)
    batch = grid_of([bytes(8) + datagram for datagram in datagrams])
    encoder.protect(batch, 0, 0)
    return [bytes(view) for view in batch.views()]


@pytest.mark.parametrize("shards", [(10, 3), (3, 1), (5, 5)])
@given(seed=st.integers(0, 2**32))
def test_error_correction_of_grids(shards: tuple[int, int], seed: int) -> None:
    random = Random(seed)
    datagrams = [random.randbytes(random.choice([60] * 30 + [20])) for _ in range(random.randrange(1, 150))]
    packets = fec_packets(datagrams, *shards)
    alone = fec_packets_one_by_one(datagrams, *shards)
    assert packets == alone
    loss = random.choice([0, 0.05])
    arrived = [packet for packet in packets if random.random() >= loss]
    if arrived and random.random() < 0.3:
        arrived.insert(random.randrange(len(arrived)), random.choice(arrived))
    in_grids, by_itself = FecDecoder(Counters()), FecDecoder(Counters())
    while arrived:
        cut = random.randrange(1, 80)
        incoming, arrived = arrived[:cut], arrived[cut:]
        grid = grid_of(incoming).packets()
        found: list[bytes] = []
        recovered: list[bytes] = []
        for stretch in grid.stretches() if isinstance(grid, PacketList) else (grid,):
            straight, won_back = in_grids.receive(stretch)
            found += map(bytes, straight)
            recovered += map(bytes, won_back)
        straight, won_back = by_itself.receive([memoryview(packet) for packet in incoming])
        assert found == list(map(bytes, straight))
        # Who looks at a stretch at a time may win back what comes later in the same batch.
        assert {*found, *recovered} == {*map(bytes, straight), *map(bytes, won_back)}
        assert in_grids.held_bytes <= by_itself.held_bytes + 60 * sum(shards)
    assert in_grids._counters.fec_parity == by_itself._counters.fec_parity


def fec_packets_one_by_one(datagrams: list[bytes], data: int, parity: int) -> list[bytes]:
    encoder = FecEncoder(data, parity, 0, 0)
    found = []
    for datagram in datagrams:
        batch = grid_of([bytes(8) + datagram], capacity=1 << 14)
        encoder.protect(batch, 0, 0)
        found += [bytes(view) for view in batch.views()]
    return found


@given(seed=st.integers(0, 2**32))
def test_kcp_reads_rows_as_it_reads_datagrams(seed: int) -> None:
    random = Random(seed)
    first_sn = random.choice([0, 0xFFFFFFE0])
    ends = [Kcp(CONV, KcpParams(rcv_wnd=64), Counters(), headroom=0, tailroom=0, first_sn=first_sn) for _ in range(2)]
    sn = first_sn
    for now in range(0, 200, 10):
        count = random.randrange(1, 40)
        datagrams = []
        for i in range(count):
            number = (sn + i + (random.random() < 0.02)) & 0xFFFFFFFF
            conv = CONV + (random.random() < 0.01)
            payload = random.randbytes(50)
            datagrams.append(KCP_SEGMENT.pack(conv, KCP_PUSH, 0, i, now, number, first_sn & 0xFFFFFFFF, 50) + payload)
        sn += count - (random.random() < 0.2)
        grid = grid_of(datagrams).packets()
        for stretch in grid.stretches() if isinstance(grid, PacketList) else (grid,):
            ends[0].receive(stretch, now)
        ends[1].receive([memoryview(datagram) for datagram in datagrams], now)
        most = random.choice([0, 5, 100])
        data = [b"".join(end.read(most)) if most else b"" for end in ends]
        assert data[0] == data[1]
        for end in ends:
            end.received.detach()
        assert ends[0].received.count == ends[1].received.count
        assert ends[0].progress() == ends[1].progress()
        assert ends[0].rmt_wnd == ends[1].rmt_wnd
        flushed = []
        for end in ends:
            batch = PacketBatch(memoryview(bytearray(1 << 16)))
            end.flush(batch, now, 20)
            flushed.append([bytes(view) for view in batch.views()])
        assert flushed[0] == flushed[1], "they owe the same acknowledgements"


def test_a_row_longer_than_the_window_is_not_taken_whole() -> None:
    kcp = Kcp(CONV, KcpParams(rcv_wnd=10), Counters(), headroom=0, tailroom=0)
    datagrams = [KCP_SEGMENT.pack(CONV, KCP_PUSH, 0, 1, 0, sn, 0, 4) + bytes([sn] * 4) for sn in range(20)]
    grid = grid_of(datagrams).packets()
    assert isinstance(grid, PacketList)
    for stretch in grid.stretches():
        kcp.receive(stretch, 0)
    assert kcp.received.count == 10
    assert kcp.received.unread_bytes <= 20 * (KCP_HEADER_SIZE + 4)


def test_who_is_thrifty_sends_the_same_and_keeps_no_scratch_for_many_groups() -> None:
    datagrams = [Random(i).randbytes(60) for i in range(120)]
    packets = []
    for is_thrifty in (False, True):
        encoder = FecEncoder(10, 3, 0, 0, is_thrifty=is_thrifty)
        batch = grid_of([bytes(8) + datagram for datagram in datagrams])
        encoder.protect(batch, 0, 0)
        packets.append([bytes(view) for view in batch.views()])
        assert not (is_thrifty and encoder._groups)
    assert packets[0] == packets[1]
