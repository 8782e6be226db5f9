"""Whatever the chunks, the pieces put together are the chunks put together, and all but the last are full."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from kcptun_lite.core.kcp.send_queue import SendQueue


@given(st.lists(st.binary(min_size=1, max_size=50), max_size=20), st.integers(1, 20), st.data())
def test_pieces_are_the_stream(chunks: list[bytes], mss: int, data: st.DataObject) -> None:
    queue = SendQueue(mss)
    pieces: list[bytes] = []
    waiting = list(chunks)
    while waiting or queue.size:
        if waiting and (not queue.size or data.draw(st.booleans())):
            queue.push(waiting.pop(0))
        elif data.draw(st.booleans()):
            full, whole = queue.cut_full(data.draw(st.integers(0, 5)))
            assert all(len(piece) == mss for piece in full)
            assert whole == b"".join(full)
            pieces += full
        else:
            piece = queue.cut()
            assert len(piece) == mss or not queue.size
            pieces.append(piece)
    assert b"".join(pieces) == b"".join(chunks)
    assert queue.size == 0


@given(
    st.lists(st.tuples(st.booleans(), st.integers(1, 50)), min_size=1, max_size=20), st.integers(1, 20), st.integers()
)
def test_what_goes_ahead_splits_no_chunk(chunks: list[tuple[bool, int]], mss: int, seed: int) -> None:
    """Each chunk comes whole, each kind in its order, and none that had not been begun comes before one ahead."""
    queue = SendQueue(mss)
    random = Random(seed)
    sent = b""
    expected: list[tuple[bool, int, int]] = []
    waiting = [(is_ahead, index, size) for index, (is_ahead, size) in enumerate(chunks)]
    left: list[tuple[bool, int, int]] = []  # as the queue must hold it; the first may have been begun
    begun = 0
    while waiting or queue.size:
        if waiting and (not queue.size or random.random() < 0.5):
            is_ahead, index, size = chunk = waiting.pop(0)
            queue.push(bytes([index]) * size, is_ahead=is_ahead)
            place = sum(other[0] or (at == 0 and begun > 0) for at, other in enumerate(left))
            left.insert(place if is_ahead else len(left), chunk)
            continue
        cut = queue.cut() if random.random() < 0.5 else bytes(queue.cut_full(random.randrange(6))[1])
        sent += cut
        begun += len(cut)
        while left and begun >= left[0][2]:
            begun -= left[0][2]
            expected.append(left.pop(0))
        assert queue.passed == sum(size for is_ahead, _, size in expected if not is_ahead) + (
            begun if left and not left[0][0] else 0
        )
    assert sent == b"".join(bytes([index]) * size for _, index, size in expected)
    assert queue.pushed == queue.passed
