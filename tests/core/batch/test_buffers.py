"""The pool gives memory back, and the batch keeps its packets apart."""

from contextlib import nullcontext
from mmap import PAGESIZE
from random import Random
from threading import Lock

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, POISON, BufferPool, borrow, borrow_batch
from kcptun_lite.core.batch.strided import PACKET_ALIGNMENT
from kcptun_lite.core.budget import Budget


def make_pool(gogc: int | None = 100, floor_pages: int = 0, *, poison: bool = False) -> BufferPool:
    return BufferPool(Lock(), gogc=gogc, floor_bytes=floor_pages * PAGESIZE, poison=poison)


# Pool


@pytest.mark.parametrize(
    ("asked", "pages"), [(1, 1), (PAGESIZE, 1), (PAGESIZE + 1, 2), (BATCH_BYTES, BATCH_BYTES // PAGESIZE)]
)
def test_sizes_are_whole_pages(asked: int, pages: int) -> None:
    buffer = make_pool().take(asked)
    assert len(buffer) == pages * PAGESIZE
    assert not buffer.readonly


def test_what_is_given_back_is_used_again() -> None:
    pool = make_pool(gogc=None)
    buffer = pool.take(PAGESIZE)
    buffer[:5] = b"hello"
    pool.give(buffer)
    assert pool.take(PAGESIZE)[:5] == b"hello"
    assert pool.take(PAGESIZE)[:5] == bytes(5)  # fresh from the system


def test_poison_shows_who_keeps_a_view() -> None:
    pool = make_pool(poison=True)
    buffer = pool.take(100)
    kept = buffer[:10]
    pool.give(buffer)
    assert kept == bytes([POISON]) * 10


def test_usage_adds_up() -> None:
    pool = make_pool(gogc=100)
    held = [pool.take(PAGESIZE) for _ in range(4)]
    assert pool.usage() == (4 * PAGESIZE, 0)
    for buffer in held[:3]:
        pool.give(buffer)
    assert pool.usage() == (PAGESIZE, 3 * PAGESIZE)  # 4 were in use at once
    pool.trim()
    assert pool.usage() == (PAGESIZE, PAGESIZE)
    pool.give(held[3])
    pool.trim()
    assert pool.usage() == (0, 0)


def test_floor_is_kept_when_nothing_is_in_use() -> None:
    pool = make_pool(gogc=0, floor_pages=3)
    held = [pool.take(PAGESIZE) for _ in range(5)]
    for buffer in held:
        pool.give(buffer)
    pool.trim()
    assert pool.usage() == (0, 3 * PAGESIZE)


def test_without_gogc_nothing_is_released() -> None:
    pool = make_pool(gogc=None)
    for buffer in [pool.take(PAGESIZE) for _ in range(50)]:
        pool.give(buffer)
    pool.trim()
    assert pool.usage() == (0, 50 * PAGESIZE)


@pytest.mark.parametrize("gogc", [0, 20, 100, 400])
def test_idle_never_exceeds_its_share_after_trim(gogc: int) -> None:
    random = Random(gogc)
    pool = make_pool(gogc, floor_pages=2)
    held: list[memoryview] = []
    for _ in range(500):
        if held and random.random() < 0.5:
            pool.give(held.pop(random.randrange(len(held))))
        else:
            held.append(pool.take(random.choice((1, 3, 8)) * PAGESIZE))
        pool.trim()
        usage = pool.usage()
        assert usage.in_use_bytes == sum(map(len, held))
        assert usage.idle_bytes <= max(2 * PAGESIZE, usage.in_use_bytes * gogc // 100)


def test_borrowed_buffers_come_home_whatever_happens() -> None:
    pool = make_pool()
    with pytest.raises(ValueError, match="x"), borrow(pool, PAGESIZE) as outer, borrow_batch(pool) as batch:
        assert len(outer) == PAGESIZE
        assert batch.capacity == BATCH_BYTES
        raise ValueError("x")
    assert pool.usage().in_use_bytes == 0


# Batch


def make_batch(size: int = 4096) -> PacketBatch:
    return PacketBatch(memoryview(bytearray(size)))


def test_packets_stand_side_by_side_and_aligned() -> None:
    batch = make_batch()
    for index, size in enumerate((1, 16, 17, 100)):
        batch.arena[batch.end : batch.end + size] = bytes([index]) * size
        assert batch.commit(size) == index
    assert all(start % PACKET_ALIGNMENT == 0 for start in batch.starts)
    assert [bytes(view) for view in batch.views()] == [b"\0", b"\1" * 16, b"\2" * 17, b"\3" * 100]
    assert bytes(batch.packet(2)) == b"\2" * 17
    assert batch.end == 16 + 16 + 32 + 112


def test_room_ends_with_the_arena() -> None:
    batch = make_batch(100)
    assert batch.has_room(100)
    assert not batch.has_room(101)
    batch.commit(50)
    assert batch.has_room(100 - 64)
    assert not batch.has_room(100 - 63)


def test_dropped_packets_are_skipped() -> None:
    batch = make_batch()
    for index in range(4):
        batch.arena[batch.end] = index
        batch.commit(1)
        batch.addresses.append(("192.0.2.1", index))
    batch.drop(0)
    batch.drop(2)
    assert [view[0] for view in batch.views()] == [1, 3]
    found = [(address, *map(bytes, packets)) for address, packets in batch.by_source()]
    assert found == [(("192.0.2.1", 1), b"\1"), (("192.0.2.1", 3), b"\3")]
    assert len(batch) == 4


def test_a_cleared_batch_is_as_new() -> None:
    batch = make_batch()
    batch.commit(10)
    batch.addresses.append(("192.0.2.1", 1))
    batch.clear()
    assert (len(batch), batch.end, batch.views(), batch.addresses) == (0, 0, [], [])
    assert batch.has_room(4096)


def test_where_more_is_held_than_may_be_no_idle_buffer_is_kept() -> None:
    budget = Budget(nullcontext(), 64 << 20)
    pool = BufferPool(nullcontext(), gogc=None, budget=budget)
    pool.give(pool.take(4096))
    assert pool.usage().idle_bytes == 4096
    buffer = pool.take(4096)
    budget.update(64 << 20)
    pool.give(buffer)
    assert pool.usage().idle_bytes == 0
