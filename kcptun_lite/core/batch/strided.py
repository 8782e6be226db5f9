"""Many equal fields of packets, read or written together.

In      a buffer, where the first field is, how far it is from one to the next, or which ones of those are meant
Out     the fields put side by side, or laid out from side by side
Knows   bytes; numpy where it is loaded already, a loop elsewhere. Not: what a field means
Cost    a field of 16 bytes 4 ns with numpy, 150 in a loop; a payload of 1300 bytes 30 and 200
"""

import struct
from collections.abc import Iterable, Sequence

from kcptun_lite.core.lazy_imports import loaded_numpy
from kcptun_lite.core.wire import Buffer

PACKET_ALIGNMENT = 16  # bytes; the largest cipher block, so that one running cipher can cross packets
MANY = 8  # fields from which a call of numpy (about 2 us) is cheaper than the loop


def scatter(buffer: memoryview, start: int, stride: int, size: int, data: Buffer) -> None:
    """Lay out `data`, fields of `size` bytes side by side, `stride` bytes apart from `start` on."""
    count = len(data) // size
    np = loaded_numpy() if count >= MANY else None
    if np:
        kind = f"V{size}"
        np.ndarray(count, kind, buffer, start, (stride,))[...] = np.frombuffer(data, kind, count)
        return
    for at in range(0, count * size, size):
        buffer[start : start + size] = data[at : at + size]
        start += stride


def gather(buffer: memoryview, offset: int, size: int, start: int, stride: int, places: Sequence[int]) -> bytes:
    """`size` bytes at `offset` of packets, side by side; `start`, `stride` and `places` are those of `find_grid`."""
    start += offset
    np = loaded_numpy() if len(places) >= MANY else None
    if np:
        grid = np.ndarray((len(buffer) - start - size) // stride + 1, f"V{size}", buffer, start, (stride,))
        chosen = grid[places.start : places.stop] if isinstance(places, range) else grid[places]
        fields: bytes = chosen.tobytes()
        return fields
    return b"".join([buffer[at : at + size] for at in [start + place * stride for place in places]])


def find_grid(starts: list[int]) -> tuple[int, int, Sequence[int]]:
    """(start, stride, places) of a grid, for `gather`, on which all packets lie that begin at `starts`.

    They are whole multiples of PACKET_ALIGNMENT apart, so there always is one. Equal distances make the best one.
    """
    count = len(starts)
    first = starts[0] if count else 0
    stride = starts[1] - first if count > 1 else PACKET_ALIGNMENT
    if stride > 0 and starts == list(range(first, first + count * stride, stride)):
        return first, stride, range(count)
    places = [start // PACKET_ALIGNMENT for start in starts]
    np = loaded_numpy() if count >= MANY else None
    return first % PACKET_ALIGNMENT, PACKET_ALIGNMENT, np.array(places) if np else places


def some_places(places: Sequence[int], indexes: list[int]) -> Sequence[int]:
    """Those of the places that have these indexes."""
    np = loaded_numpy() if len(indexes) >= MANY else None
    return np.array(places)[indexes] if np else [places[index] for index in indexes]


def stamp(buffer: memoryview, start: int, stride: int, header: bytes, number_at: int, numbers: Sequence[int]) -> None:
    """Write `header` once for each of `numbers`, with the number as 32 bits, little-endian, at `number_at` in it."""
    count = len(numbers)
    np = loaded_numpy() if count >= MANY else None
    if np:
        kind = f"V{len(header)}"
        np.ndarray(count, kind, buffer, start, (stride,))[...] = np.frombuffer(header, kind)
        np.ndarray(count, "<u4", buffer, start + number_at, (stride,))[...] = numbers
        return
    pack_into, size = _NUMBER.pack_into, len(header)
    for number in numbers:
        buffer[start : start + size] = header
        pack_into(buffer, start + number_at, number)
        start += stride


def split_numbers(fields: bytes) -> tuple[int, ...]:
    """The 32-bit numbers in `fields`, little-endian."""
    return struct.unpack(f"<{len(fields) // 4}I", fields)


def join_numbers(numbers: Iterable[int]) -> bytes:
    """The opposite of `split_numbers`."""
    listed = list(numbers)
    return struct.pack(f"<{len(listed)}I", *listed)


_NUMBER = struct.Struct("<I")
