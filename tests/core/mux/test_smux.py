"""The smux room: the Go vectors in both roles, a capture, every state with every input, sids, keep-alive."""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kcptun_lite.core.mux.smux import SMUX_MAX_STREAMS, SmuxSession, StreamFinished, StreamOpened, StreamReadable
from kcptun_lite.core.wire import SMUX_FIN, SMUX_NOP, SMUX_PSH, SMUX_SYN, SMUX_UPD, SMUX_UPDATE
from kcptun_lite.errors import KeepaliveTimeout, SessionClosed, SmuxError, StreamClosed
from tests.core.mux.smux_frames import Frame, frame, make, parse, sent, sent_bytes, take_all

VECTORS = Path(__file__).parents[2] / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


def is_mark(parts: Frame) -> bool:
    """Whether a frame is one of ours that tell our own kind what the FIN behind it means."""
    command, sid, payload = parts
    return (command == SMUX_PSH and not payload) or (command == SMUX_NOP and sid != 0)


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
    if SID not in session._streams:
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
    (FIN_RECEIVED, "close"): (UNKNOWN, None, [SMUX_PSH, SMUX_FIN], 1),
    (FIN_RECEIVED, "take"): (FIN_RECEIVED, [b"x"], [], 1),
    (FIN_RECEIVED, "SYN"): (FIN_RECEIVED, [], [], 0),
    (FIN_RECEIVED, "PSH"): (FIN_RECEIVED, [], [], 0),
    (FIN_RECEIVED, "FIN"): (FIN_RECEIVED, [StreamFinished(SID)], [], 0),
    (FIN_RECEIVED, "UPD"): (FIN_RECEIVED, [], [], 0),
    (BOTH, "send"): (BOTH, StreamClosed, [], 0),
    (BOTH, "finish"): (BOTH, None, [], 0),
    (BOTH, "close"): (UNKNOWN, None, [], 1),
    (BOTH, "take"): (BOTH, [b"x"], [], 1),
    (BOTH, "SYN"): (BOTH, [], [], 0),
    (BOTH, "PSH"): (BOTH, [], [], 0),
    (BOTH, "FIN"): (BOTH, [StreamFinished(SID)], [], 0),
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
        assert session.is_finished(sid)
        session.close(sid)
        assert sid not in session._streams
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
    for end in (client, server):
        end.close(sid)
        assert (end.stream_count, sent_bytes(end)) == (0, b"")


@pytest.mark.parametrize("is_client_first", [True, False])
def test_a_number_is_no_other_stream_s_before_it_was_closed_here(is_client_first: bool) -> None:
    """Though both ends have finished: somebody holds the old one, and would close the new one."""
    client, server, sid = a_stream_of_a_pair()
    for end in (client, server) if is_client_first else (server, client):
        end.finish(sid)
    assert server.feed(sent_bytes(client) + frame(SMUX_SYN, sid)) == [StreamFinished(sid)]
    server.close(sid)
    assert server.feed(frame(SMUX_SYN, sid)) == [StreamOpened(sid)]


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


@pytest.mark.parametrize("version", [1, 2])
def test_fin_of_kcptun_may_end_both_halves(version: int) -> None:
    """Until another FIN says that it does, or an UPD that it does not."""
    for proof in ("fin", "upd"):
        server = make(is_client=False, version=version)
        server.feed(frame(SMUX_SYN, 3, version=version))
        assert server.feed(frame(SMUX_FIN, 3, version=version)) == [StreamFinished(3)]
        assert server.is_finished(3) and not server.is_cut(3) and server.is_listening(3) and server.is_doubtful(3)
        if proof == "fin":
            assert server.feed(frame(SMUX_FIN, 3, version=version)) == [StreamFinished(3)]
            assert not server.is_listening(3) and not server.is_doubtful(3)
        else:
            server.feed(frame(SMUX_UPD, 3, SMUX_UPDATE.pack(0, 1000), version=version))
            assert server.is_listening(3) and server.is_doubtful(3) == (version == 1)


def test_fin_of_ours_without_a_mark_ends_both_halves() -> None:
    client, server = make(), make(is_client=False)
    client.hello()
    sid = client.open_stream()
    server.feed(sent_bytes(client))
    server.feed(frame(SMUX_FIN, sid))
    assert not server.is_listening(sid) and not server.is_doubtful(sid)


def test_finished_only_when_all_is_taken() -> None:
    session = make()
    sid = session.open_stream()
    events = session.feed(frame(SMUX_PSH, sid, b"the end") + frame(SMUX_FIN, sid))
    assert events == [StreamReadable(sid), StreamFinished(sid)]
    assert not session.is_finished(sid)
    assert session.take(sid, 100) == [b"the end"]
    assert session.is_finished(sid)
    assert session.take(sid, 100) == []


def test_repr_shows_the_state() -> None:
    session = make(version=2)
    session.open_stream()
    assert repr(session) == "<SmuxSession v2 streams=1 budget=4194304/4194304 to_send=8>"


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


def test_streams_one_too_many_are_refused() -> None:
    server = make(is_client=False, max_streams=2)
    server.open_stream()  # our own do not count
    server.frames_to_send()
    events = server.feed(b"".join(frame(SMUX_SYN, sid) for sid in (3, 5, 7, 9)) + frame(SMUX_PSH, 7, b"lost"))
    assert events == [StreamOpened(3), StreamOpened(5)]
    assert sent(server) == [(command, sid, b"") for sid in (7, 9) for command in (SMUX_PSH, SMUX_FIN)]
    assert (server.stream_count, server.held_bytes) == (3, 0)
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


def test_what_sends_back_what_it_is_sent_is_no_peer() -> None:
    session = make()
    session.open_stream()
    with pytest.raises(SmuxError, match="sends back"):
        session.feed(sent_bytes(session))
