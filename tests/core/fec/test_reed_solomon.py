"""The Reed-Solomon room: kcp-go's matrices and shards, with numpy and without, whole and in pieces."""

import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kcptun_lite.core.fec.reed_solomon import (
    GATHER_ROWS,
    PackedSums,
    PlainSums,
    Rows,
    ShardSums,
    interpolation,
    multiples,
    packed_tables,
    parity_rows,
    parity_sums,
    reconstruct,
)

VECTORS: list[dict[str, Any]] = json.loads((Path(__file__).parents[2] / "vectors" / "reedsolomon.json").read_text())[
    "cases"
]
CODES = [(10, 3), (3, 1), (1, 1), (2, 2), (5, 5), (20, 10), (70, 30), (200, 56), (1, 255), (255, 1), (4, 9)]


def plain(rows: Rows) -> ShardSums:
    return PlainSums(rows)


def packed(rows: Rows) -> ShardSums:
    return PackedSums(packed_tables(rows), len(rows), 1500)


MAKERS = [plain, packed]


def written(sums: ShardSums, count: int) -> list[bytes]:
    """The sums, written 5 bytes apart into a buffer that must stay untouched in between."""
    stride = sums.longest + 5
    buffer = bytearray(b"\xee" * (stride * count + 3))
    sums.write(memoryview(buffer), 3, stride)
    shards = [bytes(buffer[3 + stride * i :][: sums.longest]) for i in range(count)]
    assert all(buffer[3 + stride * i + sums.longest :][:5] == b"\xee" * 5 for i in range(count))
    return shards


def encode(sums: ShardSums, shards: list[bytes], parity: int) -> list[bytes]:
    for shard in shards:
        sums.add(shard, 0, 0, 1, len(shard))
    return written(sums, parity)


def shards_of(case: dict[str, Any], key: str) -> list[bytes]:
    return [bytes.fromhex(shard) for shard in case[key]]


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['data']}/{case['parity']}")
def test_matrix_is_kcp_gos(case: dict[str, Any]) -> None:
    assert [row.hex() for row in parity_rows(case["data"], case["parity"])] == case["parity_rows"]


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['data']}/{case['parity']}")
def test_parity_is_kcp_gos(case: dict[str, Any], make: Callable[[Rows], ShardSums]) -> None:
    data, parity = case["data"], case["parity"]
    shards = shards_of(case, "data_shards")
    size = len(shards[0])
    sums = make(parity_rows(data, parity))
    sums.add(b"".join(shards), 0, size, data, size)
    assert sums.filled == data
    assert written(sums, parity) == shards_of(case, "parity_shards")


@pytest.mark.parametrize("case", VECTORS, ids=lambda case: f"{case['data']}/{case['parity']}")
def test_reconstruction_is_kcp_gos(case: dict[str, Any]) -> None:
    shards = shards_of(case, "data_shards") + shards_of(case, "parity_shards")
    for step in case["reconstruct"]:
        have = {index: shard for index, shard in enumerate(shards) if index not in step["missing"]}
        found = reconstruct(have, case["data"])
        assert {str(index): shard.hex() for index, shard in found.items()} == step["recovered_data"]


def test_multiples_form_the_field() -> None:
    """Multiplication by shifting and reducing, the definition."""

    def product(a: int, b: int) -> int:
        result = 0
        while b:
            if b & 1:
                result ^= a
            a <<= 1
            if a & 0x100:
                a ^= 0x11D
            b >>= 1
        return result

    for factor in range(256):
        assert multiples(factor) == bytes(product(factor, value) for value in range(256))


def test_interpolation_of_a_constant() -> None:
    """The weights of every row add up to one: equal shards give equal shards."""
    rng = random.Random(1)
    for _ in range(50):
        indexes = rng.sample(range(256), 40)
        for row in interpolation(bytes(indexes[:30]), bytes(indexes[30:])):
            total = 0
            for weight in row:
                total ^= weight
            assert total == 1


@pytest.mark.parametrize(("data", "parity"), CODES)
def test_both_ways_give_the_same_bytes(data: int, parity: int) -> None:
    """Shards of mixed lengths, added in pieces at odd distances; and again after `clear` and `rest`."""
    rng = random.Random(data * 1000 + parity)
    ways = [make(parity_rows(data, parity)) for make in MAKERS]
    for _ in range(3):
        left = data
        while left:
            count = min(left, rng.choice([1, 1, 2, 3, GATHER_ROWS, GATHER_ROWS + 1, 40]))
            length = rng.choice([2, 31, 64, 257, 300])
            stride, start = length + rng.randrange(40), rng.randrange(20)
            buffer = memoryview(rng.randbytes(start + stride * count))
            for sums in ways:
                sums.add(buffer, start, stride, count, length)
            left -= count
        one, other = (written(sums, parity) for sums in ways)
        assert one == other
        for sums in ways:
            sums.clear()
            sums.rest()
            assert (sums.filled, sums.longest) == (0, 0)


@pytest.mark.parametrize("has_numpy", [True, False])
@pytest.mark.parametrize(("data", "parity"), CODES)
def test_any_shards_replace_any_lost_ones(
    data: int, parity: int, has_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any `data` of the shards, data shards unpadded, give all data shards back."""
    if not has_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    rng = random.Random(data * 1000 + parity)
    shards = [rng.randbytes(rng.randint(2, 40)) for _ in range(data)]
    longest = max(map(len, shards))
    coded = shards + encode(parity_sums(data, parity), shards, parity)
    for _ in range(10):
        kept = rng.sample(range(data + parity), data)
        found = reconstruct({index: memoryview(coded[index]) for index in kept}, data)
        assert found.keys() == set(range(data)) - set(kept)
        for index, shard in found.items():
            # as long as the longest shard used: all of them, if a parity shard was
            assert shard == shards[index].ljust(longest, b"\0")


def test_more_shards_than_needed_are_fine() -> None:
    shards = [bytes([index]) * 8 for index in range(4)]
    coded = dict(enumerate(shards + encode(parity_sums(4, 3), shards, 3)))
    del coded[2]
    assert reconstruct(coded, 4) == {2: shards[2]}


def test_without_numpy_the_plain_way_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(parity_sums(10, 3), PackedSums)
    assert isinstance(parity_sums(10, 1), PlainSums), "a single sum is as fast without numpy"
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert isinstance(parity_sums(10, 3), PlainSums)


def test_reconstruction_never_imports_numpy() -> None:
    """An import of a tenth of a second has no place in the middle of traffic."""
    code = (
        "import sys; from kcptun_lite.core.fec.reed_solomon import reconstruct;"
        "reconstruct({index: bytes(9) for index in range(4, 12)}, 8); assert 'numpy' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
