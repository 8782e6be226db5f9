"""The smux room: the Go vectors in both roles, a capture, every state with every input, flow control, garbage."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcptun_lite.core.smux import (
    SMUX_MAX_STREAMS,
    Event,
    SmuxSession,
    StreamFinished,
    StreamOpened,
    StreamReadable,
    StreamWritable,
)
from kcptun_lite.core.wire import SMUX_FIN, SMUX_NOP, SMUX_PEER_WINDOW_INITIAL, SMUX_PSH, SMUX_SYN, SMUX_UPD
from kcptun_lite.errors import KeepaliveTimeout, SessionClosed, SmuxError, StreamClosed

VECTORS = Path(__file__).parent.parent / "vectors"
Frame = tuple[int, int, bytes]  # command, sid, payload


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def make(is_client: bool = True, version: int = 1, **changes: int) -> SmuxSession:
    options = {
        "max_frame": 4096,
        "receive_buffer": 4_194_304,
        "stream_buffer": 16_384,
        "keepalive_ms": 10_000,
        "keepalive_timeout_ms": 30_000,
        "now": 0,
    }
    return SmuxSession(is_client=is_client, version=version, **(options | changes))


def frame(command: int, sid: int, payload: bytes = b"", version: int = 1) -> bytes:
    return struct.pack("<BBHI", version, command, len(payload), sid) + payload


def update(sid: int, consumed: int, window: int) -> bytes:
    return frame(SMUX_UPD, sid, struct.pack("<II", consumed, window), version=2)


def parse(stream: bytes) -> list[Frame]:
    frames = []
    while stream:
        _, command, length, sid = struct.unpack_from("<BBHI", stream)
        assert len(stream) >= 8 + length
        frames.append((command, sid, stream[8 : 8 + length]))
        stream = stream[8 + length :]
    return frames


def sent_bytes(session: SmuxSession) -> bytes:
    return b"".join(session.frames_to_send())


def sent(session: SmuxSession) -> list[Frame]:
    return parse(sent_bytes(session))


def is_mark(parts: Frame) -> bool:
    """Whether a frame is one of ours that tell our own kind what the FIN behind it means."""
    command, sid, payload = parts
    return (command == SMUX_PSH and not payload) or (command == SMUX_NOP and sid != 0)


def take_all(session: SmuxSession, sid: int) -> bytes:
    return b"".join(session.take(sid, 1 << 30))


# The recorded sessions


@pytest.mark.parametrize("recorded", load("smux.json")["sessions"], ids=lambda recorded: f"v{recorded['version']}")
@pytest.mark.parametrize("is_client", [True, False], ids=["client", "server"])
def test_vectors(recorded: Any, is_client: bool) -> None:
    """Our end does what the recorded end did, its peer's frames come from the record: all but marks must agree."""
    session = make(is_client, recorded["version"], keepalive_ms=1500)
    payloads: dict[int, bytes] = {}
    read: dict[int, bytes] = {}
    waiting: list[bytes] = []
    for event in recorded["events"]:
        if "note" in event:
            continue
        data = bytes.fromhex(event["hex"])
        command, sid, payload = parse(data)[0]
        if (event["dir"] == "C>S") != is_client:
            if command == SMUX_PSH:
                payloads[sid] = payloads.get(sid, b"") + payload
            for what in session.feed(data):
                if isinstance(what, StreamReadable):
                    read[what.sid] = read.get(what.sid, b"") + take_all(session, what.sid)
        elif command == SMUX_SYN:
            assert session.open_stream() == sid
        elif command == SMUX_PSH:
            assert session.send_data(sid, memoryview(payload)) == len(payload)
        elif command == SMUX_FIN:
            session.close(sid)
        elif command == SMUX_NOP:
            session.tick(1499)
            session.tick(event["t_ms"])
        waiting += [frame(*parts, version=recorded["version"]) for parts in sent(session) if not is_mark(parts)]
        if (event["dir"] == "C>S") == is_client:
            assert waiting.pop(0) == data
    assert waiting == []
    assert read == payloads
    assert session.stream_count == 0


def test_ten_thousand_bytes_are_cut_as_recorded() -> None:
    recorded = load("smux.json")["sessions"][0]
    frames = [bytes.fromhex(e["hex"]) for e in recorded["events"] if len(e.get("hex", "")) > 2 * 1000]
    payload = b"".join(data[8:] for data in frames)
    assert len(payload) == 10_000
    session = make()
    sid = session.open_stream()
    sent_bytes(session)
    assert session.send_data(sid, memoryview(payload)) == 10_000
    assert sent_bytes(session) == b"".join(frames)


def captured_stream(capture: Any, direction: str) -> bytes:
    """What KCP carried one way, from the bare datagrams of a capture."""
    segments: dict[int, bytes] = {}
    for datagram in capture["datagrams"]:
        rest = bytes.fromhex(datagram["hex"])
        while direction == datagram["dir"] and len(rest) >= 24:
            _, cmd, _, _, _, sn, _, length = struct.unpack_from("<IBBHIIII", rest)
            if cmd == 81:
                segments[sn] = rest[24 : 24 + length]
            rest = rest[24 + length :]
    assert sorted(segments) == list(range(len(segments)))
    return b"".join(segments[sn] for sn in sorted(segments))


@pytest.mark.parametrize("step", [1, 7, 1_000_000])
@pytest.mark.parametrize(("direction", "field"), [("C>S", "client_sent"), ("S>C", "client_received")])
def test_capture_of_the_go_programs(direction: str, field: str, step: int) -> None:
    capture = load("cap_new_null.json")
    stream = captured_stream(capture, direction)
    session = make(is_client=direction == "S>C")
    expected = [bytes.fromhex(connection[field]) for connection in capture["connections"]]
    sids = [3 + 2 * n for n in range(len(expected))]
    if direction == "S>C":
        assert [session.open_stream() for _ in expected] == sids
    got = dict.fromkeys(sids, b"")
    for start in range(0, len(stream), step):
        for event in session.feed(stream[start : start + step]):
            if isinstance(event, StreamReadable):
                got[event.sid] += take_all(session, event.sid)
    assert [got[sid] for sid in sids] == expected


# Every state with every input

SID = 3
UNKNOWN, OPEN, FIN_SENT, FIN_RECEIVED, BOTH = "unknown", "open", "fin sent", "fin received", "both, data unread"


def in_state(state: str) -> SmuxSession:
    """A version 2 server with stream 3 in `state`; where it is known, 1 byte of it is unread."""
    session = make(is_client=False, version=2)
    if state != UNKNOWN:
        session.feed(frame(SMUX_SYN, SID, version=2) + frame(SMUX_PSH, SID, b"x", version=2))
    if state in (FIN_SENT, BOTH):
        session.finish(SID)
    if state in (FIN_RECEIVED, BOTH):
        session.feed(frame(SMUX_FIN, SID, version=2))
    session.frames_to_send()
    return session


def state_of(session: SmuxSession) -> str:
    """What the session shows of stream 3 from outside; spends the session."""
    if not session.has_stream(SID):
        return UNKNOWN
    try:
        session.send_room(SID)
        fin_sent = False
    except StreamClosed:
        fin_sent = True
    budget = session.receive_budget
    session.feed(frame(SMUX_PSH, SID, b"probe", version=2))
    fin_received = session.receive_budget == budget
    return {(False, False): OPEN, (True, False): FIN_SENT, (False, True): FIN_RECEIVED, (True, True): BOTH}[
        fin_sent, fin_received
    ]


def feeding(command: int, payload: bytes = b"") -> Callable[[SmuxSession], object]:
    return lambda session: session.feed(frame(command, SID, payload, version=2))


INPUTS: dict[str, Callable[[SmuxSession], object]] = {
    "send": lambda session: session.send_data(SID, memoryview(b"data")),
    "finish": lambda session: session.finish(SID),
    "close": lambda session: session.close(SID),
    "take": lambda session: session.take(SID, 10),
    "SYN": feeding(SMUX_SYN),
    "PSH": feeding(SMUX_PSH, b"more"),
    "FIN": feeding(SMUX_FIN),
    "UPD": feeding(SMUX_UPD, struct.pack("<II", 0, 1000)),
}

# (state, input) -> state after it, result (or error), commands sent, change of the budget
TABLE: dict[tuple[str, str], tuple[str, object, list[int], int]] = {
    (UNKNOWN, "send"): (UNKNOWN, StreamClosed, [], 0),
    (UNKNOWN, "finish"): (UNKNOWN, None, [], 0),
    (UNKNOWN, "close"): (UNKNOWN, None, [], 0),
    (UNKNOWN, "take"): (UNKNOWN, [], [], 0),
    (UNKNOWN, "SYN"): (OPEN, [StreamOpened(SID)], [], 0),
    (UNKNOWN, "PSH"): (UNKNOWN, [], [], 0),
    (UNKNOWN, "FIN"): (UNKNOWN, [], [], 0),
    (UNKNOWN, "UPD"): (UNKNOWN, [], [], 0),
    (OPEN, "send"): (OPEN, 4, [SMUX_PSH], 0),
    (OPEN, "finish"): (FIN_SENT, None, [SMUX_NOP, SMUX_FIN], 0),
    (OPEN, "close"): (UNKNOWN, None, [SMUX_PSH, SMUX_FIN], 1),
    (OPEN, "take"): (OPEN, [b"x"], [SMUX_UPD], 1),
    (OPEN, "SYN"): (OPEN, [], [], 0),
    (OPEN, "PSH"): (OPEN, [], [], -4),
    (OPEN, "FIN"): (FIN_RECEIVED, [StreamFinished(SID)], [], 0),
    (OPEN, "UPD"): (OPEN, [], [], 0),
    (FIN_SENT, "send"): (FIN_SENT, StreamClosed, [], 0),
    (FIN_SENT, "finish"): (FIN_SENT, None, [], 0),
    (FIN_SENT, "close"): (UNKNOWN, None, [SMUX_FIN], 1),
    (FIN_SENT, "take"): (FIN_SENT, [b"x"], [SMUX_UPD], 1),
    (FIN_SENT, "SYN"): (FIN_SENT, [], [], 0),
    (FIN_SENT, "PSH"): (FIN_SENT, [], [], -4),
    (FIN_SENT, "FIN"): (BOTH, [StreamFinished(SID)], [], 0),
    (FIN_SENT, "UPD"): (FIN_SENT, [], [], 0),
    (FIN_RECEIVED, "send"): (FIN_RECEIVED, 4, [SMUX_PSH], 0),
    (FIN_RECEIVED, "finish"): (BOTH, None, [SMUX_FIN], 0),
    (FIN_RECEIVED, "close"): (UNKNOWN, None, [SMUX_FIN], 1),
    (FIN_RECEIVED, "take"): (FIN_RECEIVED, [b"x"], [], 1),
    (FIN_RECEIVED, "SYN"): (FIN_RECEIVED, [], [], 0),
    (FIN_RECEIVED, "PSH"): (FIN_RECEIVED, [], [], 0),
    (FIN_RECEIVED, "FIN"): (FIN_RECEIVED, [], [], 0),
    (FIN_RECEIVED, "UPD"): (FIN_RECEIVED, [], [], 0),
    (BOTH, "send"): (BOTH, StreamClosed, [], 0),
    (BOTH, "finish"): (BOTH, None, [], 0),
    (BOTH, "close"): (UNKNOWN, None, [], 1),
    (BOTH, "take"): (UNKNOWN, [b"x"], [], 1),
    (BOTH, "SYN"): (BOTH, [], [], 0),
    (BOTH, "PSH"): (BOTH, [], [], 0),
    (BOTH, "FIN"): (BOTH, [], [], 0),
    (BOTH, "UPD"): (BOTH, [], [], 0),
}


@pytest.mark.parametrize("state", [UNKNOWN, OPEN, FIN_SENT, FIN_RECEIVED, BOTH])
@pytest.mark.parametrize("what", INPUTS)
def test_every_state_with_every_input(state: str, what: str) -> None:
    after, result, commands, budget_change = TABLE[state, what]
    session = in_state(state)
    budget = session.receive_budget
    if result is StreamClosed:
        with pytest.raises(StreamClosed):
            INPUTS[what](session)
    else:
        assert INPUTS[what](session) == result
    assert [command for command, _, _ in sent(session)] == commands
    assert session.receive_budget - budget == budget_change
    assert state_of(session) == after


def test_stream_ends_without_data_when_both_have_finished() -> None:
    for first in ("ours", "theirs"):
        session = make()
        sid = session.open_stream()
        if first == "ours":
            session.finish(sid)
        assert session.feed(frame(SMUX_FIN, sid)) == [StreamFinished(sid)]
        assert session.is_finished(sid)
        session.finish(sid)
        assert not session.has_stream(sid)
        assert session.is_finished(sid)
        frames = [parts for parts in sent(session) if not is_mark(parts)]
        assert [command for command, _, _ in frames] == [SMUX_SYN, SMUX_FIN]


def a_stream_of_a_pair() -> tuple[SmuxSession, SmuxSession, int]:
    client, server = make(), make(is_client=False)
    sid = client.open_stream()
    server.feed(sent_bytes(client))
    return client, server, sid


def test_a_half_that_ends_leaves_the_other_one_open() -> None:
    client, server, sid = a_stream_of_a_pair()
    client.finish(sid)
    assert server.feed(sent_bytes(client)) == [StreamFinished(sid)]
    assert server.is_finished(sid) and server.is_listening(sid) and not server.is_cut(sid)
    server.send_data(sid, memoryview(b"the answer"))
    server.finish(sid)
    assert client.feed(sent_bytes(server)) == [StreamReadable(sid), StreamFinished(sid)]
    assert take_all(client, sid) == b"the answer"
    assert (client.stream_count, server.stream_count) == (0, 0)


def test_a_cut_stream_is_told_from_a_finished_one_when_its_data_is_taken() -> None:
    client, server, sid = a_stream_of_a_pair()
    client.send_data(sid, memoryview(b"half of"))
    client.close(sid)
    assert server.feed(sent_bytes(client)) == [StreamReadable(sid), StreamFinished(sid)]
    assert not server.is_cut(sid) and not server.is_listening(sid)
    assert take_all(server, sid) == b"half of"
    assert server.is_cut(sid)
    server.close(sid)
    assert sent(server) == [(SMUX_FIN, sid, b"")]
    assert server.stream_count == 0


def test_giving_up_the_other_half_later_cuts_nothing() -> None:
    client, server, sid = a_stream_of_a_pair()
    client.send_data(sid, memoryview(b"all"))
    client.finish(sid)
    client.close(sid)
    assert server.feed(sent_bytes(client)) == [StreamReadable(sid), StreamFinished(sid), StreamFinished(sid)]
    assert take_all(server, sid) == b"all"
    assert server.is_finished(sid) and not server.is_cut(sid) and not server.is_listening(sid)


def test_fin_of_kcptun_ends_both_halves() -> None:
    client, server, sid = a_stream_of_a_pair()
    assert server.feed(frame(SMUX_FIN, sid)) == [StreamFinished(sid)]
    assert server.is_finished(sid) and not server.is_cut(sid) and not server.is_listening(sid)
    assert server.feed(frame(SMUX_FIN, sid)) == []


def test_finished_only_when_all_is_taken() -> None:
    session = make()
    sid = session.open_stream()
    events = session.feed(frame(SMUX_PSH, sid, b"the end") + frame(SMUX_FIN, sid))
    assert events == [StreamReadable(sid), StreamFinished(sid)]
    assert not session.is_finished(sid)
    assert session.take(sid, 100) == [b"the end"]
    assert session.is_finished(sid)
    assert session.take(sid, 100) == []


# Sids


def test_sids_of_both_sides() -> None:
    client, server = make(), make(is_client=False)
    assert [client.open_stream() for _ in range(3)] == [3, 5, 7]
    assert [server.open_stream() for _ in range(3)] == [2, 4, 6]
    assert client.feed(sent_bytes(server)) == [StreamOpened(2), StreamOpened(4), StreamOpened(6)]


def test_sid_the_peer_has_taken_is_stepped_over() -> None:
    client = make()
    client.feed(frame(SMUX_SYN, 3) + frame(SMUX_SYN, 5))
    assert client.open_stream() == 7
    assert client.stream_count == 3


def test_sids_run_out() -> None:
    client = make()
    client._next_sid = 0xFFFFFFFD
    assert [client.open_stream(), client.open_stream()] == [0xFFFFFFFD, 0xFFFFFFFF]
    for _ in range(2):
        with pytest.raises(SessionClosed):
            client.open_stream()
    assert sent(client)[-1] == (SMUX_SYN, 0xFFFFFFFF, b"")


def test_streams_one_too_many_are_refused_and_counted() -> None:
    server = make(is_client=False, max_streams=2)
    server.open_stream()  # our own do not count
    server.frames_to_send()
    events = server.feed(b"".join(frame(SMUX_SYN, sid) for sid in (3, 5, 7, 9)) + frame(SMUX_PSH, 7, b"lost"))
    assert events == [StreamOpened(3), StreamOpened(5)]
    assert sent(server) == [(command, sid, b"") for sid in (7, 9) for command in (SMUX_PSH, SMUX_FIN)]
    assert (server.refused_streams, server.stream_count, server.held_bytes) == (2, 3, 0)
    server.close(3)
    assert server.feed(frame(SMUX_SYN, 11)) == [StreamOpened(11)]


def test_a_refused_stream_looks_cut_to_who_has_opened_it() -> None:
    client, server = make(is_client=True), make(is_client=False, max_streams=0)
    sid = client.open_stream()
    server.feed(b"".join(client.frames_to_send()))
    assert client.feed(b"".join(server.frames_to_send())) == [StreamFinished(sid)]
    assert client.is_finished(sid) and client.is_cut(sid) and not client.is_listening(sid)


def test_flood_of_opened_streams_is_bounded() -> None:
    server = make(is_client=False)
    for sid in range(3, 20_000, 2):
        server.feed(frame(SMUX_SYN, sid) + frame(SMUX_FIN, sid))
    assert server.stream_count == SMUX_MAX_STREAMS


# Payload


def test_payload_of_a_frame_is_there_before_its_end() -> None:
    session = make()
    sid = session.open_stream()
    data = random.Random(3).randbytes(65_535)
    stream = frame(SMUX_PSH, sid, data)
    assert session.feed(stream[:7]) == []
    assert session.held_bytes == 8 + 7  # our SYN and the start of the header
    assert session.feed(stream[7:5008]) == [StreamReadable(sid)]
    assert session.take(sid, 1 << 20) == [data[:5000]]
    assert session.feed(stream[5008:] + frame(SMUX_FIN, sid)) == [StreamReadable(sid), StreamFinished(sid)]
    assert take_all(session, sid) == data[5000:]


def test_payload_for_a_stream_closed_in_the_middle_of_a_frame_is_dropped() -> None:
    session = make()
    first, second = session.open_stream(), session.open_stream()
    stream = frame(SMUX_PSH, first, bytes(1000)) + frame(SMUX_PSH, second, b"goes on")
    session.feed(stream[:500])
    session.close(first)
    assert session.feed(stream[500:]) == [StreamReadable(second)]
    assert take_all(session, second) == b"goes on"
    assert session.receive_budget == 4_194_304


def test_payload_is_independent_of_what_was_fed() -> None:
    session = make()
    sid = session.open_stream()
    data = bytearray(frame(SMUX_PSH, sid, b"payload") * 2)
    session.feed(memoryview(data))
    data[:] = bytes(len(data))
    (chunk,) = session.take(sid, 100)
    assert chunk == b"payloadpayload"
    assert type(chunk) is bytes


def test_take_keeps_the_order_and_the_limit() -> None:
    session = make()
    sid = session.open_stream()
    chunks = [bytes([n]) * 2000 for n in range(5)]
    session.feed(b"".join(frame(SMUX_PSH, sid, chunk) for chunk in chunks))
    assert session.take(sid, 3999) == chunks[:1]
    assert session.take(sid, 4000) == chunks[1:3]
    assert session.take(sid, 1) == chunks[3:4]  # a chunk is never cut
    assert session.take(sid, 1 << 20) == chunks[4:]
    assert session.take(sid, 1 << 20) == []


def test_tiny_payloads_do_not_become_many_chunks() -> None:
    session = make()
    sid = session.open_stream()
    session.feed(frame(SMUX_PSH, sid, b"ab") * 5000)
    chunks = session.take(sid, 1 << 20)
    assert b"".join(chunks) == b"ab" * 5000
    assert len(chunks) <= 10


def test_empty_payload_is_ignored() -> None:
    session = make()
    sid = session.open_stream()
    assert session.feed(frame(SMUX_PSH, sid) + frame(SMUX_PSH, 99) + frame(SMUX_NOP, 0)) == []
    assert session.feed(frame(SMUX_PSH, sid, b"x")) == [StreamReadable(sid)]


def test_events_tell_of_changes_only() -> None:
    session = make()
    sid = session.open_stream()
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000)) * 3) == [StreamReadable(sid)]
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000))) == []
    session.take(sid, 2000)
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000))) == []
    take_all(session, sid)
    assert session.feed(frame(SMUX_PSH, sid, bytes(2000))) == [StreamReadable(sid)]


# Budget and windows


def test_budget_goes_down_with_payload_and_comes_back_with_reading_and_closing() -> None:
    session = make(receive_buffer=10_000)
    first, second = session.open_stream(), session.open_stream()
    session.frames_to_send()
    session.feed(frame(SMUX_PSH, first, bytes(6000)) + frame(SMUX_PSH, second, bytes(3000)))
    assert session.receive_budget == 1000
    session.feed(frame(SMUX_PSH, 77, bytes(5000)))
    assert session.receive_budget == 1000
    session.feed(frame(SMUX_PSH, second, bytes(3000)))  # one call's worth too much is accepted
    assert (session.receive_budget, session.held_bytes) == (-2000, 12_000)
    session.take(first, 1 << 20)
    assert session.receive_budget == 4000
    session.close(second)
    assert (session.receive_budget, session.held_bytes) == (10_000, 16)  # 16: the mark and our FIN


def test_version_1_has_no_window_and_no_updates() -> None:
    session = make()
    sid = session.open_stream()
    size = SMUX_PEER_WINDOW_INITIAL * 2
    assert session.send_room(sid) > size
    assert session.send_data(sid, memoryview(bytes(size))) == size
    session.feed(frame(SMUX_PSH, sid, bytes(40_000)))
    session.frames_to_send()
    take_all(session, sid)
    assert session.frames_to_send() == []
    assert session.feed(frame(SMUX_UPD, sid, struct.pack("<II", size + 1, 0))) == []  # smux of 2021 reads it, too
    assert session.send_room(sid) > size


def test_version_2_sender_stays_within_the_window() -> None:
    session = make(version=2)
    sid = session.open_stream()
    data = memoryview(bytes(300_000))
    assert session.send_room(sid) == SMUX_PEER_WINDOW_INITIAL
    assert session.send_data(sid, data[:1000]) == 1000
    assert session.send_data(sid, data) == SMUX_PEER_WINDOW_INITIAL - 1000
    assert session.send_data(sid, data) == session.send_room(sid) == 0
    assert sum(len(payload) for _, _, payload in sent(session)) == SMUX_PEER_WINDOW_INITIAL

    assert session.feed(update(sid, 1000, 200_000)) == []  # absolute, and smaller than what is under way
    assert session.send_room(sid) == 0
    assert session.feed(update(sid, 100_000, 200_000)) == [StreamWritable(sid)]
    assert session.send_data(sid, data) == 100_000 + 200_000 - SMUX_PEER_WINDOW_INITIAL
    assert session.feed(update(sid, 300_000, 0)) == []
    assert session.feed(update(sid, 300_000, 1)) == [StreamWritable(sid)]
    assert session.feed(update(sid, 300_000, 2)) == []
    assert session.feed(update(sid, 300_000, 0xFFFFFFFF)) == []
    assert session.send_room(sid) == 0x7FFFFFFF


def test_version_2_window_after_the_peers_fin() -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.send_data(sid, memoryview(bytes(300_000)))
    assert session.feed(frame(SMUX_FIN, sid, version=2)) == [StreamFinished(sid)]
    assert session.send_data(sid, memoryview(b"x")) == 0
    assert session.feed(update(sid, 262_144, 65_536)) == [StreamWritable(sid)]
    assert session.send_data(sid, memoryview(b"x")) == 1


def test_version_2_window_of_a_stream_we_have_finished_interests_nobody() -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.send_data(sid, memoryview(bytes(300_000)))
    session.finish(sid)
    assert session.feed(update(sid, 262_144, 65_536)) == []


@pytest.mark.parametrize("bad", [1, 1000, 0x7FFFFFFF])
def test_version_2_peer_that_consumed_too_much(bad: int) -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.send_data(sid, memoryview(bytes(5000)))
    with pytest.raises(SmuxError, match=f"consumed {bad} bytes more"):
        session.feed(update(sid, 5000 + bad, 65_536))


def test_version_2_counters_wrap() -> None:
    session = make(version=2)
    sid = session.open_stream()
    stream = session._streams[sid]
    stream.written = stream.peer_consumed = 2**32 - 1000
    stream.consumed = stream.announced = 2**32 - 1000
    assert session.send_data(sid, memoryview(bytes(262_144))) == 262_144
    assert session.feed(update(sid, 2000, 16_384)) == []
    assert session.feed(update(sid, 262_144 - 1000, 16_384)) == [StreamWritable(sid)]
    assert session.send_room(sid) == 16_384
    session.frames_to_send()
    session.feed(frame(SMUX_PSH, sid, bytes(10_000), version=2))
    take_all(session, sid)
    assert sent(session) == [(SMUX_UPD, sid, struct.pack("<II", 9000, 16_384))]


def test_version_2_updates_come_first_and_then_by_halves() -> None:
    session = make(version=2, stream_buffer=16_384)
    sid = session.open_stream()
    session.frames_to_send()
    told = []
    for total in range(1000, 60_001, 1000):
        session.feed(frame(SMUX_PSH, sid, bytes(1000), version=2))
        take_all(session, sid)
        for command, _, payload in sent(session):
            consumed, window = struct.unpack("<II", payload)
            assert (command, consumed, window) == (SMUX_UPD, total, 16_384)
            told.append(consumed)
    assert told == [1000, 10_000, 19_000, 28_000, 37_000, 46_000, 55_000]


def test_no_update_for_a_stream_that_gets_no_more() -> None:
    session = make(version=2)
    sid = session.open_stream()
    session.frames_to_send()
    session.feed(frame(SMUX_PSH, sid, bytes(50_000), version=2) + frame(SMUX_FIN, sid, version=2))
    assert len(take_all(session, sid)) == 50_000
    assert session.frames_to_send() == []


# Keep-alive


def test_nop_at_every_interval() -> None:
    session = make(version=2, keepalive_ms=1500)
    for now in range(0, 4501, 500):
        session.feed(frame(SMUX_NOP, 0, version=2))
        session.tick(now)
    assert sent_bytes(session) == bytes.fromhex("0203000000000000") * 3


def test_silent_peer_is_noticed_between_one_and_two_periods() -> None:
    session = make(now=1_000_000)
    for now in range(1_000_000, 1_030_000, 100):
        session.tick(now)
    session.feed(frame(SMUX_NOP, 0)[:1])  # a single byte counts
    for now in range(1_030_000, 1_060_000, 100):
        session.tick(now)
    with pytest.raises(KeepaliveTimeout, match="30 s"):
        session.tick(1_060_000)


def test_peer_that_speaks_lives_for_hours() -> None:
    session = make()
    for now in range(0, 10_000_000, 5000):
        if now % 25_000 == 0:
            session.feed(frame(SMUX_NOP, 0))
        session.tick(now)
        session.frames_to_send()


def test_silence_does_not_count_while_we_do_not_listen() -> None:
    session = make(receive_buffer=1000)
    sid = session.open_stream()
    session.feed(frame(SMUX_PSH, sid, bytes(1000)))
    for now in range(0, 200_000, 1000):
        session.tick(now)
    take_all(session, sid)
    with pytest.raises(KeepaliveTimeout):
        for now in range(200_000, 240_000, 1000):
            session.tick(now)


# Nonsense


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
            assert session.held_bytes <= fed + 16 * (session.refused_streams + 1)
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


# Two ends


class Pair:
    """Two ends joined by two pipes of bytes that are cut anywhere."""

    def __init__(self, version: int, rng: random.Random) -> None:
        self.rng = rng
        sizes = {"max_frame": rng.choice([1, 100, 4096, 65_535]), "receive_buffer": 30_000, "stream_buffer": 5000}
        if sizes["max_frame"] == 1:
            sizes["max_frame"] = 7
        self.ends = [make(True, version, **sizes), make(False, version, **sizes)]
        self.pipes = [bytearray(), bytearray()]  # what end 0 and end 1 have sent
        self.sent: list[dict[int, bytearray]] = [{}, {}]
        self.got: list[dict[int, bytearray]] = [{}, {}]
        self.finished: list[set[int]] = [set(), set()]
        self.peer_finished: list[set[int]] = [set(), set()]
        self.may_take: list[set[int]] = [set(), set()]

    def open(self, end: int) -> None:
        sid = self.ends[end].open_stream()
        self._start(end, sid)

    def _start(self, end: int, sid: int) -> None:
        self.sent[end][sid], self.got[end][sid] = bytearray(), bytearray()

    def send(self, end: int) -> None:
        if sids := sorted(self.sent[end].keys() - self.finished[end]):
            sid = self.rng.choice(sids)
            data = self.rng.randbytes(self.rng.choice([1, 50, 3000, 20_000]))
            room = self.ends[end].send_room(sid)
            accepted = self.ends[end].send_data(sid, memoryview(data))
            assert accepted == min(room, len(data))
            self.sent[end][sid] += data[:accepted]

    def finish(self, end: int) -> None:
        if sids := sorted(self.sent[end].keys() - self.finished[end]):
            sid = self.rng.choice(sids)
            self.ends[end].finish(sid)
            self.finished[end].add(sid)

    def take(self, end: int) -> None:
        if self.may_take[end]:
            sid = self.rng.choice(sorted(self.may_take[end]))
            chunks = self.ends[end].take(sid, self.rng.choice([1, 1000, 100_000]))
            if not chunks:  # only now the next StreamReadable is due
                self.may_take[end].remove(sid)
            self.got[end][sid] += b"".join(chunks)

    def move(self, end: int) -> None:
        """Bring bytes from `end` to the other one, as far as that has a budget."""
        self.pipes[end] += b"".join(self.ends[end].frames_to_send())
        other = 1 - end
        if self.pipes[end] and self.ends[other].receive_budget > 0:
            cut = self.rng.choice([1, 5, 13, 1400, 40_000])
            data = bytes(self.pipes[end][:cut])
            del self.pipes[end][:cut]
            for event in self.ends[other].feed(data):
                if isinstance(event, StreamOpened):
                    self._start(other, event.sid)
                elif isinstance(event, StreamReadable):
                    self.may_take[other].add(event.sid)
                elif isinstance(event, StreamFinished):
                    self.peer_finished[other].add(event.sid)
            assert self.ends[other].receive_budget > -len(data)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("seed", range(12))
def test_everything_arrives_and_budgets_return(version: int, seed: int) -> None:
    pair = Pair(version, random.Random(seed))
    for _ in range(600):
        action = pair.rng.choices([pair.open, pair.send, pair.finish, pair.take, pair.move], [1, 8, 0.5, 8, 16])[0]
        action(pair.rng.randrange(2))
    for end in (0, 1):
        while pair.sent[end].keys() - pair.finished[end]:
            pair.finish(end)
    for _ in range(100_000):
        for end in (0, 1):
            pair.move(end)
            pair.take(end)
            while pair.sent[end].keys() - pair.finished[end]:  # opened by the peer meanwhile
                pair.finish(end)
        if not any(pair.pipes) and not any(pair.may_take) and not any(session.held_bytes for session in pair.ends):
            break
    for end in (0, 1):
        assert pair.got[1 - end] == pair.sent[end]
        assert pair.peer_finished[1 - end] == pair.finished[end]
        assert pair.ends[end].receive_budget == 30_000
        assert pair.ends[end].stream_count == 0
    assert sum(map(len, pair.sent[0].values())) > 10_000


def test_version_2_bulk_is_bounded_by_the_window_and_does_not_stall() -> None:
    client, server = make(version=2, stream_buffer=20_000), make(False, version=2, stream_buffer=20_000)
    sid = client.open_stream()
    data = random.Random(5).randbytes(1_000_000)
    sent_so_far, got = 0, b""
    rounds = 0
    while len(got) < len(data):
        sent_so_far += client.send_data(sid, memoryview(data)[sent_so_far:])
        window = SMUX_PEER_WINDOW_INITIAL if rounds == 0 else 20_000
        assert sent_so_far - len(got) <= window
        server.feed(sent_bytes(client))
        got += b"".join(server.take(sid, 9000))
        client.feed(sent_bytes(server))
        if client.send_room(sid) > 0:
            rounds += 1
    assert got == data
    assert rounds > (1_000_000 - SMUX_PEER_WINDOW_INITIAL) // 20_000


def test_repr_shows_the_state() -> None:
    session = make(version=2)
    session.open_stream()
    assert repr(session) == "<SmuxSession v2 streams=1 budget=4194304/4194304 to_send=8>"
