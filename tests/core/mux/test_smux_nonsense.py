"""What is no smux: an error that names the remedy, the same wherever the bytes are cut, and nothing held behind it."""

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcptun_lite.core.mux.smux import Event
from kcptun_lite.core.wire import SMUX_FIN, SMUX_NOP, SMUX_PSH, SMUX_SYN, SMUX_UPD
from kcptun_lite.errors import SmuxError
from tests.core.mux.smux_frames import Frame, frame, make, sent, take_all


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (frame(SMUX_NOP, 0, version=2), "smux version 2, expected 1"),
        (frame(SMUX_NOP, 0, version=0), "smux version 0, expected 1"),
        (b"\xff\x06\x00\x00sNaPpY", "--nocomp"),
        (frame(5, 3), "unknown command 5"),
        (frame(255, 3, b"data"), "unknown command 255"),
        (frame(SMUX_SYN, 3, b"x"), "command 0 and length 1"),
        (frame(SMUX_FIN, 3, b"xy"), "command 1 and length 2"),
        (frame(SMUX_NOP, 0, b"xyz"), "command 3 and length 3"),
        (frame(SMUX_UPD, 3, b"1234567"), "command 4 and length 7"),
        (frame(SMUX_UPD, 3, b"123456789"), "command 4 and length 9"),
        (frame(SMUX_UPD, 3), "command 4 and length 0"),
    ],
)
def test_nonsense(data: bytes, said: str) -> None:
    good = frame(SMUX_SYN, 3) + frame(SMUX_PSH, 3, b"good")
    with pytest.raises(SmuxError, match=said):
        make(is_client=False).feed(good + data + good)
    slow = make(is_client=False)
    with pytest.raises(SmuxError, match=said):
        for byte in good + data:
            slow.feed(bytes([byte]))


def test_version_2_of_the_peer_is_named() -> None:
    with pytest.raises(SmuxError, match="smux version 1, expected 2: --smuxver"):
        make(version=2).feed(frame(SMUX_NOP, 0))


ANY_FRAME = st.builds(
    lambda version, command, sid, payload: frame(command, sid, payload, version),
    st.sampled_from([1, 1, 1, 1, 2]),
    st.sampled_from([SMUX_SYN, SMUX_FIN, SMUX_PSH, SMUX_PSH, SMUX_NOP, SMUX_UPD, 5]),
    st.sampled_from([0, 3, 5, 7, 0xFFFFFFFF]),
    st.one_of(st.just(b""), st.binary(min_size=8, max_size=8), st.binary(max_size=50)),
)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.sampled_from([1, 2]), st.lists(st.one_of(ANY_FRAME, st.binary(max_size=20)), max_size=20))
def test_only_smux_errors_come_out(version: int, pieces: list[bytes]) -> None:
    session = make(is_client=False, version=version, max_streams=2)
    sid = session.open_stream()
    fed = 0
    try:
        for piece in pieces:
            piece = bytes([version]) + piece[1:] if len(piece) >= 8 else piece
            fed += len(piece)
            session.feed(piece)
            assert session.stream_count <= 3
            assert session.held_bytes <= 3 * fed + 16, "a stream that is refused costs two frames"
    except SmuxError:
        pass
    for number in (sid, 0, 3, 5, 7, 0xFFFFFFFF):
        session.close(number)
    assert session.receive_budget == 4_194_304


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(ANY_FRAME, max_size=15), st.randoms(use_true_random=False))
def test_cuts_make_no_difference(frames: list[bytes], rng: random.Random) -> None:
    stream = b"".join(frames)

    def run(step: Callable[[], int]) -> tuple[list[Event], bool, dict[int, bytes], list[Frame]]:
        session = make(is_client=False)
        events: list[Event] = []
        broken = False
        start = 0
        try:
            while start < len(stream):
                size = step()
                events += session.feed(stream[start : start + size])
                start += size
        except SmuxError:
            broken = True
        return events, broken, {sid: take_all(session, sid) for sid in (0, 3, 5, 7, 0xFFFFFFFF)}, sent(session)

    whole, cut = run(lambda: len(stream)), run(lambda: rng.randint(1, 12))
    assert whole[1:] == cut[1:]
    if not whole[1]:  # the events of a feed that fails are lost with their session
        assert whole[0] == cut[0]
