"""Whatever the chunks, the pieces put together are the chunks put together, and all but the last are full."""

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
