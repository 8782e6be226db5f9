"""Parity of whole groups by additions: the same bytes as from tables."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kcptun_lite.core.fec.batched_parity import BatchedParity, share_pairs
from kcptun_lite.core.fec.reed_solomon import PlainSums, parity_rows
from kcptun_lite.core.lazy_imports import load_numpy


@pytest.mark.parametrize("code", [(10, 3), (2, 1), (3, 4), (5, 5), (21, 3)])
@pytest.mark.parametrize(("groups", "length"), [(4, 1), (5, 63), (7, 64), (4, 1326)])
def test_parity_is_that_of_the_tables(code: tuple[int, int], groups: int, length: int) -> None:
    load_numpy()
    data, parity = code
    stride, start = length + 11, 5
    parity_start = start + groups * data * stride
    buffer = memoryview(bytearray(Random(length).randbytes(parity_start + groups * parity * stride)))
    expected = bytearray(buffer)
    for group in range(groups):
        sums = PlainSums(parity_rows(data, parity))
        sums.add(buffer, start + group * data * stride, stride, data, length)
        sums.write(memoryview(expected), parity_start + group * parity * stride, stride)
    for _ in range(2):  # with fresh scratch, and with scratch that is used already
        room = BatchedParity(data, parity)
        room.write(buffer, start, parity_start, stride, length, groups)
        room.write(buffer, start, parity_start, stride, length, groups)
        assert buffer == expected, "parity is wrong, or something beside it was written"
        room.rest()


@given(st.lists(st.frozensets(st.integers(0, 9), max_size=10), max_size=24))
def test_a_schedule_adds_up_what_is_wanted(wanted: list[frozenset[int]]) -> None:
    pairs, sums = share_pairs(wanted, 10)
    operands = [frozenset([i]) for i in range(10)]
    for one, other in pairs:
        operands.append(operands[one] ^ operands[other])
    for terms, operand in zip(sums, wanted, strict=True):
        total: frozenset[int] = frozenset()
        for term in terms:
            total ^= operands[term]
        assert total == operand


def test_the_usual_code_takes_59_additions() -> None:
    rows = parity_rows(10, 3)
    wanted = [frozenset(i for i, c in enumerate(row) if c >> bit & 1) for bit in range(8) for row in rows]
    pairs, sums = share_pairs(wanted, 10)
    assert len(pairs) + sum(map(len, sums)) <= 59 < sum(map(len, wanted))
