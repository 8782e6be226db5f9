"""A session: its locks, its streams, its one way out, its proof of who is there, its end."""

import threading
from collections.abc import Iterator
from contextlib import suppress
from random import Random
from typing import Any

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.kcp.kcp import Flush
from kcptun_lite.core.kcp.pacing import LIMIT_BURST, PACED_BATCH
from kcptun_lite.core.mux.smux import StreamReadable
from kcptun_lite.core.wire import FEC_HEADER, KCP_WINS, SMUX_HEADER, SMUX_SYN
from kcptun_lite.errors import RemoteProtocolError, SessionClosed, StreamClosed, StreamReset
from kcptun_lite.net.session.session import SLOW_RHYTHM
from kcptun_lite.net.session.update_thread import NEVER, monotonic_ms
from tests.net.fakes import (
    CLIENT,
    ELSEWHERE,
    Clock,
    Wire,
    in_background,
    make_context,
    noise,
    read_all,
    segment,
    small_params,
    wait_until,
    wait_until_waiting,
    write_and_finish,
)
from tests.net.locks import OrderedLock

# -- the test's own tool -------------------------------------------------------------------------------------


def test_a_lock_waited_for_out_of_order_is_noted() -> None:
    low, high = OrderedLock(3, "tx"), OrderedLock(4, "state")
    with low, high:
        pass
    with high:
        assert low.acquire(blocking=False)  # trying cannot deadlock
        low.release()
    assert not OrderedLock.violations
    with high, low:
        pass
    assert OrderedLock.violations == ["3 tx taken under [4 state]"]
    OrderedLock.violations.clear()


# -- streams -------------------------------------------------------------------------------------------------


def test_a_stream_is_opened_at_the_other_end_and_carries_bytes_both_ways(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    stream.write(memoryview(b"question"))
    wire.carry()
    assert read_all(wire.server) == b"question"
    wire.server.opened[0].write(memoryview(b"answer"))
    wire.carry()
    assert stream.read_chunks(timeout_s=0) == [b"answer"]
    assert wire.server.session.stream_count == 1


def test_close_kills_the_streams_and_tells_the_peer(wire: Wire) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.client.session.close()
    with pytest.raises(StreamReset, match="the session was closed"):
        stream.read_chunks()
    with pytest.raises(SessionClosed):
        wire.client.session.open_stream()
    wire.carry()
    with pytest.raises(StreamReset, match="cut by the other end"):
        wire.server.opened[0].read_chunks(timeout_s=0)
    assert wire.client.udp.is_closed and not wire.server.udp.is_closed
    wire.client.session.close()
    assert len(wire.client.closed) == 1


def test_close_from_any_thread_wakes_whoever_waits(wire: Wire) -> None:
    readers = [wire.client.session.open_stream() for _ in range(3)]
    writers = [wire.client.session.open_stream() for _ in range(3)]
    blocked = [in_background(stream.read_chunks) for stream in readers]
    blocked += [in_background(stream.write, memoryview(bytes(1 << 20))) for stream in writers]
    wait_until_waiting(*readers, to_write=False)
    wait_until_waiting(*writers, to_write=True)
    in_background(wire.client.session.close).result()
    for thread in blocked:
        with pytest.raises(StreamReset):
            thread.result()


def test_bytes_that_make_no_sense_end_the_session(wire: Wire) -> None:
    wire.server.session.receive([segment(data=b"no smux frame")], 0)
    assert wire.server.session.is_closed
    assert "makes no sense" in str(wire.server.closed[0])


def test_a_closed_session_receives_nothing(wire: Wire) -> None:
    wire.server.session.close()
    before = len(wire.server.udp.sent)
    assert not wire.server.session.receive([segment(data=b"x")], 0, ELSEWHERE)
    assert wire.server.session.update(0) is None
    assert len(wire.server.udp.sent) == before
    assert wire.server.session.remote == CLIENT


# -- the one way out -----------------------------------------------------------------------------------------


def test_packets_of_many_threads_leave_in_order() -> None:
    params = small_params(snd_wnd=1024, rcv_wnd=1024, data_shards=3, parity_shards=1)
    with Wire(make_context(params), monotonic_ms) as wire, wire.carrying():
        payloads = [noise(40_000, seed=seed) for seed in range(6)]
        streams = [wire.client.session.open_stream() for _ in payloads]
        threads = [
            in_background(write_and_finish, stream, data) for stream, data in zip(streams, payloads, strict=True)
        ]
        for thread in threads:
            thread.result()
        wait_until(lambda: len(wire.server.opened) == len(payloads))
        by_sid = {stream.sid: stream for stream in wire.server.opened}
        for stream, data in zip(streams, payloads, strict=True):
            received = b""
            while chunks := by_sid[stream.sid].read_chunks():
                received += b"".join(chunks)
            assert received == data
        seqids = [FEC_HEADER.unpack_from(packet)[0] for packet, _ in wire.client.udp.sent]
    assert seqids == list(range(len(seqids)))
    assert len(seqids) > 200


def test_whoever_finds_another_thread_sending_leaves_a_note_and_goes_on(wire: Wire) -> None:
    session = wire.client.session
    is_sending, may_go_on = threading.Event(), threading.Event()
    send = wire.client.udp.send

    def slow_send(*args: Any) -> int:
        is_sending.set()
        may_go_on.wait()
        return send(*args)

    wire.client.udp.send = slow_send  # type: ignore[assignment,method-assign]
    first = in_background(session.open_stream)
    is_sending.wait()
    in_background(session.open_stream).result()  # would wait for ever if it waited for the socket
    assert not wire.client.udp.sent
    may_go_on.set()
    first.result()
    wire.carry()
    assert len(wire.server.opened) == 2, "the one at it has sent the other's packet, too"


def test_a_session_with_a_rate_sends_a_burst_and_then_waits(clock: Clock) -> None:
    context = make_context(small_params(snd_wnd=1024, rcv_wnd=1024), rate=100_000)
    with Wire(context, clock) as wire:
        stream = wire.client.session.open_stream()
        stream.write(memoryview(bytes(400_000)))
        wire.carry()
        burst = wire.client.sent_bytes
        assert LIMIT_BURST <= burst < LIMIT_BURST + PACED_BATCH
        wire.carry()
        assert wire.client.sent_bytes < burst + 2000, "no time has passed"
        wire.pass_time(1000)
        assert 100_000 - PACED_BATCH <= wire.client.sent_bytes - burst <= 100_000 + PACED_BATCH
        wire.pass_time(3000)
        assert wire.server.session.conversation.kcp.progress()[1] * 1376 >= 400_000
        wire.client.session.close()


def test_packets_the_socket_does_not_take_are_counted(wire: Wire) -> None:
    wire.client.udp.send = lambda packets, address, local=None: 0  # type: ignore[method-assign]
    wire.client.session.open_stream()
    counters = wire.client.session.counters
    assert (counters.out_packets, counters.send_drops) == (0, 1)


def test_a_socket_closed_under_the_session_is_only_a_loss(wire: Wire) -> None:
    wire.client.udp.close()
    wire.client.session.open_stream()
    assert wire.client.session.counters.send_drops == 1


# -- who is there --------------------------------------------------------------------------------------------


KINDS = [
    pytest.param({"data_shards": fec[0], "parity_shards": fec[1], "compress": compress}, id=f"{fec}-{compress}")
    for fec in ((0, 0), (10, 3), (1, 1))
    for compress in (False, True)
]
BANNER = bytes(range(256)) * 80


@pytest.fixture(params=KINDS)
def unvalidated(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Wire]:
    with Wire(make_context(small_params(snd_wnd=512, **request.param)), clock, is_validated=False) as wire:
        yield wire


def test_an_unvalidated_peer_is_sent_three_times_what_it_has_sent_and_no_byte_more(
    unvalidated: Wire, clock: Clock
) -> None:
    client, server = unvalidated.client, unvalidated.server
    client.session.open_stream().write(memoryview(b"a question"))
    heard = 0
    for _ in range(100):  # it goes on asking, and hears nothing
        packets = [memoryview(bytearray(packet)) for packet, _ in client.udp.sent]
        client.udp.sent.clear()
        heard += sum(map(len, packets))
        server.session.receive(packets, clock.now)
        if server.opened and not server.session.writers:
            in_background(server.opened[0].write, memoryview(BANNER))  # ends with the session
            wait_until_waiting(server.opened[0], to_write=True)
        assert server.sent_bytes <= 3 * heard
        clock.now += 100
        client.session.update(clock.now)
        server.session.update(clock.now)
    assert 0 < server.sent_bytes <= 3 * heard
    assert not server.session.is_validated
    assert server.session.conversation.kcp.send_bytes < 3 * heard, "what cannot be sent is not taken"


def test_the_first_packets_prove_the_peer_at_once(unvalidated: Wire) -> None:
    stream = unvalidated.client.session.open_stream()
    asked = unvalidated.client.sent_bytes
    assert unvalidated._carry_one(unvalidated.client, unvalidated.server)
    assert 0 < unvalidated.server.sent_bytes <= 3 * asked
    writing = in_background(unvalidated.server.opened[0].write, memoryview(BANNER))  # a target that speaks first
    wait_until_waiting(unvalidated.server.opened[0], to_write=True)
    unvalidated.carry()  # no time passes
    assert unvalidated.server.session.is_validated, "the server's ping was acknowledged"
    writing.result()
    unvalidated.carry()
    assert b"".join(stream.read_chunks(timeout_s=0) or []) == BANNER


@pytest.mark.parametrize("lost", ["question", "answer", "proof"])
def test_a_lost_packet_costs_an_unvalidated_peer_a_time_out_and_no_more(
    unvalidated: Wire, clock: Clock, lost: str
) -> None:
    client, server = unvalidated.client, unvalidated.server
    unvalidated.is_cut = lost == "question"
    stream = client.session.open_stream()
    unvalidated._carry_one(client, server)
    unvalidated.is_cut = lost == "answer"
    unvalidated._carry_one(server, client)
    unvalidated.is_cut = lost == "proof"
    unvalidated._carry_one(client, server)
    unvalidated.is_cut = False
    unvalidated.pass_time(700)
    assert server.session.is_validated
    server.opened[0].write(memoryview(BANNER))
    unvalidated.pass_time(100)
    assert b"".join(stream.read_chunks(timeout_s=0) or []) == BANNER


def test_what_there_was_no_credit_for_goes_out_with_the_proof(unvalidated: Wire) -> None:
    stream = unvalidated.client.session.open_stream()
    unvalidated._carry_one(unvalidated.client, unvalidated.server)
    unvalidated.server.opened[0].close_write()
    unvalidated.carry()
    assert stream.read_chunks(timeout_s=0) == [], "the end has come, and no time has passed"


def test_what_came_from_one_address_is_not_paid_back_to_another(unvalidated: Wire, clock: Clock) -> None:
    unvalidated.client.session.open_stream().write(memoryview(b"a long question" * 10))
    packets = [memoryview(bytearray(packet)) for packet, _ in unvalidated.client.udp.sent]
    server = unvalidated.server
    server.session.receive(packets, clock.now)
    del server.udp.sent[:]
    again = memoryview(bytearray(packets[0]))
    assert server.session.receive([again], clock.now, ELSEWHERE), "what it sent first is the client, wherever it is"
    for _ in range(50):
        clock.now += 100
        server.session.update(clock.now)
    assert {to for _, to in server.udp.sent} <= {ELSEWHERE}
    assert server.sent_bytes <= 3 * len(again)


# -- everything at once --------------------------------------------------------------------------------------


def test_many_threads_and_a_close_in_the_middle_leave_nothing_behind() -> None:
    context = make_context(small_params(snd_wnd=256, rcv_wnd=256))
    with Wire(context, monotonic_ms) as wire, wire.carrying():
        random = Random(1)

        def use(seed: int) -> None:
            with suppress(SessionClosed, StreamReset, StreamClosed):
                for _ in range(50):
                    stream = wire.client.session.open_stream()
                    stream.write(memoryview(noise(random.randrange(1, 30_000), seed)))
                    stream.close_write()
                    stream.close()

        threads = [in_background(use, seed) for seed in range(5)]
        wait_until(lambda: len(wire.server.opened) > 20)
        for stream in list(wire.server.opened):
            stream.close()
        wire.client.session.close()
        for thread in threads:
            thread.result()
        assert not wire.client.session.writers
        assert wire.client.session.stream_count == 0
    assert context.pool.usage().in_use_bytes == 0
    assert wire.client.session.conversation.kcp.flush_wanted is Flush.NOTHING


# -- what fails on the way out -----------------------------------------------------------------------------------


def test_a_close_that_fails_leaves_nobody_waiting(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closing is what is done after a bug, or when there is no memory left."""
    session = wire.client.session
    streams = [session.open_stream(), session.open_stream()]
    reading = in_background(streams[0].read_chunks)
    wait_until_waiting(streams[0], to_write=False)

    def fail(sid: int) -> None:
        raise MemoryError

    monkeypatch.setattr(session.conversation, "close_stream", fail)
    session.close()
    with pytest.raises(StreamReset):
        reading.result()
    assert len(wire.client.closed) == 1 and wire.client.udp.is_closed and not session.stream_count


def test_a_stream_whose_first_packet_cannot_be_sent_is_closed(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    session = wire.client.session

    def fail(until: int | None = None) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(session._transmitter, "transmit", fail)
        with pytest.raises(MemoryError):
            session.open_stream()
    assert not session.stream_count


def test_the_last_words_are_said_whatever_the_rate_limit_is_in_debt(clock: Clock) -> None:
    with Wire(make_context(small_params(snd_wnd=1024, rcv_wnd=1024), rate=20_000), clock) as wire:
        stream = wire.client.session.open_stream()
        wire.carry()
        stream.write(memoryview(bytes(LIMIT_BURST + 1)))
        wire.carry()
        assert wire.client.session._transmitter.paced_until > clock.now
        wire.client.session.close()
        wire.carry()
        with pytest.raises(StreamReset, match="cut by the other end"):
            while wire.server.opened[0].read_chunks(timeout_s=0):
                pass
        assert wire.server.session.conversation.has_peer_left


def test_goodbye_ends_the_other_session_when_its_streams_have_ended(wire: Wire, clock: Clock) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    write_and_finish(stream, b"all of it")
    wire.client.session.leave()
    wire.carry()
    wire.pass_time(2000)
    server = wire.server.session
    assert server.is_ending and not server.is_closed, "what has come is still to be read"
    assert read_all(wire.server) == b"all of it"
    wire.server.opened[0].close()
    wire.pass_time(2000)
    assert isinstance(wire.server.closed[0], SessionClosed)


def test_a_session_that_makes_no_sense_reads_no_bytes_of_others(wire: Wire, clock: Clock) -> None:
    """What lay in the batch behind the first mistake is not kept, and nothing is read behind a mistake."""
    wire.client.session.open_stream()
    wire.carry()
    end = wire.server.session.conversation
    sn = end.kcp.progress()[1]
    packets = [segment(sn=sn, data=b"\x09" * 8), segment(sn=sn + 1, data=SMUX_HEADER.pack(1, SMUX_SYN, 0, 9) * 4)]
    with wire.server.session.lock:
        with pytest.raises(RemoteProtocolError):
            end.receive_packets(packets, clock.now)
        assert not any(isinstance(run, memoryview) for run, *_ in end.kcp.received._runs)
        end.receive_packets([segment(cmd=KCP_WINS)], clock.now)
        assert not end.take_events()


def test_a_question_goes_out_at_once(wire: Wire) -> None:
    session = wire.client.session
    session.open_stream()
    wire.carry()
    before = session.counters.out_packets
    session.probe()
    assert session.counters.out_packets > before


# -- threads that serve all sessions -------------------------------------------------------------------------


@pytest.mark.parametrize("who", ["update", "probe", "leave"])
def test_a_session_that_always_has_more_to_send_keeps_nobody(
    wire: Wire, clock: Clock, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    session = wire.client.session
    session.start()
    batches = 0

    def more(batch: PacketBatch, now: int) -> bool:
        nonlocal batches
        batches += 1
        assert batches < 100, "it is still at it"
        clock.now += 1
        session._transmitter._is_wanted = True  # as by a writer, whenever there is room
        batch.commit(1000)
        return True

    monkeypatch.setattr(session.conversation, "packets_to_send", more)
    if who == "update":
        session.conversation.kcp.flush_wanted = Flush.EVERYTHING
        session.update(clock.now)
    else:
        getattr(session, who)()
    assert batches
    monkeypatch.undo()
    assert session._ticker._planned[session] == 0  # the rest is for the update thread, in its turn


def test_sending_makes_room_for_who_waits(wire: Wire) -> None:
    session = wire.client.session
    woken: list[None] = []

    class Waiting:
        def wake_writer_locked(self) -> None:
            woken.append(None)

    session.writers.append(Waiting())  # type: ignore[arg-type]
    with session.lock:
        session.conversation.open_stream()
    session.transmit()
    assert woken
    session.writers.clear()


def test_a_reader_whom_another_ones_doing_concerns_is_called_by_the_update_thread(
    wire: Wire, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = wire.client.session
    stream = session.open_stream()
    wire.carry()
    session.start()
    calls: list[None] = []

    def sink() -> None:
        calls.append(None)
        stream.read_ready()

    stream.attach(sink)
    session.update(clock.now)  # forgets what was planned
    session._ticker._planned[session] = NEVER
    events = [StreamReadable(stream.sid)]
    monkeypatch.setattr(session.conversation, "take_events", lambda: [events.pop()] if events else [])
    session.settle()
    assert len(calls) == 1 and session._ticker._planned[session] == 0
    session.update(clock.now)
    assert len(calls) == 2


def test_the_next_call_is_when_something_is_due(wire: Wire, clock: Clock) -> None:
    session = wire.client.session
    session.open_stream().write(memoryview(b"x"))
    deadline = session.conversation.next_deadline()
    assert deadline is not None and clock.now < deadline < clock.now + SLOW_RHYTHM
    assert session.update(clock.now) == deadline
    wire.carry()
    wire.pass_time(500)
    assert session.update(clock.now) == (clock.now // SLOW_RHYTHM + 1) * SLOW_RHYTHM
