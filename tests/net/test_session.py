"""A session: its locks, its one way out, its proof of who is there, its end."""

import errno
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from random import Random
from typing import Any, cast

import pytest

from kcptun_lite.core.kcp import Flush
from kcptun_lite.core.wire import FEC_HEADER, KCP_ACK, KCP_SEGMENT, KCP_WASK, KCP_WINS
from kcptun_lite.errors import DeadLink, SessionClosed, StreamClosed, StreamReset
from kcptun_lite.net import session as room
from kcptun_lite.net.scout import Scout
from kcptun_lite.net.session import DEAD_AFTER, DENIED_AFTER, PROBE_PERIOD, SILENCE
from kcptun_lite.net.ticker import monotonic_ms
from tests.net.locks import OrderedLock
from tests.net.rooms import (
    CLIENT,
    PATIENCE_S,
    SERVER,
    Clock,
    End,
    FakeUdp,
    Wire,
    in_background,
    make_plant,
    noise,
    segment,
    small_params,
    wait_until,
    wait_until_waiting,
    write_and_finish,
)

ELSEWHERE = ("10.0.0.2", 2000)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(room, "monotonic_ms", clock)
    return clock


@pytest.fixture
def wire(clock: Clock) -> Iterator[Wire]:
    with Wire(make_plant(), clock) as wire:
        yield wire


def read_all(end: End) -> bytes:
    return b"".join(end.opened[0].read_chunks(timeout_s=0) or [])


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
    with Wire(make_plant(params), monotonic_ms) as wire, wire.carrying():
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
    plant = make_plant(small_params(snd_wnd=1024, rcv_wnd=1024), rate=100_000)
    with Wire(plant, clock) as wire:
        stream = wire.client.session.open_stream()
        stream.write(memoryview(bytes(120_000)))
        wire.carry()
        burst = wire.client.sent_bytes
        assert 96_000 <= burst < 96_000 + 33_000
        wire.carry()
        assert wire.client.sent_bytes < burst + 2000, "no time has passed"
        wire.pass_time(1000)
        assert wire.client.sent_bytes <= burst + 100_000 + 33_000
        assert wire.server.session.conversation.kcp.progress()[1] * 1376 >= 120_000
        wire.client.session.close()


def test_packets_the_socket_does_not_take_are_counted(wire: Wire) -> None:
    wire.client.udp.send = lambda packets, address: 0  # type: ignore[method-assign]
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
def unproven(request: pytest.FixtureRequest, clock: Clock) -> Iterator[Wire]:
    with Wire(make_plant(small_params(snd_wnd=512, **request.param)), clock, is_proven=False) as wire:
        yield wire


def test_an_unproven_peer_is_sent_no_byte_more_than_it_has_sent_and_no_stream_data(
    unproven: Wire, clock: Clock
) -> None:
    client, server = unproven.client, unproven.server
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
        assert server.sent_bytes <= heard
        clock.now += 100
        client.session.update(clock.now)
        server.session.update(clock.now)
    assert 0 < server.sent_bytes <= heard
    assert not server.session.is_proven
    assert server.session.conversation.kcp.send_bytes < 100, "small frames, no stream data"


def test_the_first_answer_is_no_longer_than_the_question_and_proves_the_peer_at_once(unproven: Wire) -> None:
    stream = unproven.client.session.open_stream()
    asked = unproven.client.sent_bytes
    assert unproven._carry_one(unproven.client, unproven.server)
    assert 0 < unproven.server.sent_bytes <= asked
    writing = in_background(unproven.server.opened[0].write, memoryview(BANNER))  # a target that speaks first
    wait_until_waiting(unproven.server.opened[0], to_write=True)
    unproven.carry()  # no time passes
    assert unproven.server.session.is_proven, "the server's ping was acknowledged"
    writing.result()
    unproven.carry()
    assert b"".join(stream.read_chunks(timeout_s=0) or []) == BANNER


@pytest.mark.parametrize("lost", ["question", "answer", "proof"])
def test_a_lost_packet_costs_an_unproven_peer_a_time_out_and_no_more(unproven: Wire, clock: Clock, lost: str) -> None:
    client, server = unproven.client, unproven.server
    unproven.is_cut = lost == "question"
    stream = client.session.open_stream()
    unproven._carry_one(client, server)
    unproven.is_cut = lost == "answer"
    unproven._carry_one(server, client)
    unproven.is_cut = lost == "proof"
    unproven._carry_one(client, server)
    unproven.is_cut = False
    unproven.pass_time(700)
    assert server.session.is_proven
    server.opened[0].write(memoryview(BANNER))
    unproven.pass_time(100)
    assert b"".join(stream.read_chunks(timeout_s=0) or []) == BANNER


def test_what_there_was_no_credit_for_goes_out_with_the_proof(unproven: Wire) -> None:
    stream = unproven.client.session.open_stream()
    unproven._carry_one(unproven.client, unproven.server)
    unproven.server.opened[0].close_write()
    unproven.carry()
    assert stream.read_chunks(timeout_s=0) == [], "the end has come, and no time has passed"


def test_what_came_from_one_address_is_not_paid_back_to_another(unproven: Wire, clock: Clock) -> None:
    unproven.client.session.open_stream().write(memoryview(b"a long question" * 10))
    packets = [memoryview(bytearray(packet)) for packet, _ in unproven.client.udp.sent]
    server = unproven.server
    server.session.receive(packets, clock.now)
    del server.udp.sent[:]
    again = memoryview(bytearray(packets[0]))
    assert server.session.receive([again], clock.now, ELSEWHERE), "what it sent first is the client, wherever it is"
    for _ in range(50):
        clock.now += 100
        server.session.update(clock.now)
    assert {to for _, to in server.udp.sent} <= {ELSEWHERE}
    assert server.sent_bytes <= len(again)


# -- where the peer is ---------------------------------------------------------------------------------------


def test_new_data_moves_the_session_and_a_replay_does_not(wire: Wire, clock: Clock) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    server = wire.server.session
    replay = [memoryview(packet) for packet, _ in wire.client.udp.sent]
    assert not server.receive(replay, clock.now, ELSEWHERE)
    assert server.remote == CLIENT
    stream.write(memoryview(b"from the train"))
    fresh = [memoryview(packet) for packet, _ in wire.client.udp.sent[len(replay) :]]
    assert server.receive(fresh, clock.now, ELSEWHERE)
    assert server.remote == ELSEWHERE
    wire.server.opened[0].write(memoryview(b"answer"))
    assert wire.server.udp.sent[-1][1] == ELSEWHERE


def test_a_forged_packet_without_anything_new_does_not_move_the_session(wire: Wire, clock: Clock) -> None:
    wire.client.session.open_stream()
    wire.carry()
    server = wire.server.session
    una, next_sn, _ = server.conversation.progress()
    for cmd in (KCP_ACK, KCP_WASK, KCP_WINS):
        assert not server.receive([segment(cmd=cmd, una=una)], clock.now, ELSEWHERE)
    assert not server.receive([segment(sn=next_sn + 1000, una=una, data=b"beyond the window")], clock.now, ELSEWHERE)
    assert server.remote == CLIENT


def test_a_new_path_takes_what_is_in_flight_along(wire: Wire, clock: Clock) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(b"lost on the old path"))
    wire.carry()
    old, fresh = wire.client.udp, FakeUdp(ELSEWHERE)
    receiver = threading.Thread(target=lambda: None)
    wire.client.session.change_path(fresh, SERVER, receiver)  # type: ignore[arg-type]
    assert old.is_closed and wire.client.session.local_address == ELSEWHERE
    packets = [memoryview(packet) for packet, _ in fresh.sent]
    wire.server.session.receive(packets, clock.now, ELSEWHERE)
    assert read_all(wire.server) == b"lost on the old path"
    wire.client.session.join()


def test_a_path_given_to_a_session_that_is_over_is_closed_again(wire: Wire) -> None:
    wire.client.session.close()
    fresh = FakeUdp(ELSEWHERE)
    wire.client.session.change_path(fresh, SERVER, threading.Thread(target=lambda: None))  # type: ignore[arg-type]
    assert fresh.is_closed and not fresh.sent
    wire.client.session.join()


# -- another way ---------------------------------------------------------------------------------------------


class Way:
    """A scout whose receiver is a thread that does what the test says."""

    def __init__(self, work: Callable[[], object] = lambda: None) -> None:
        self.udp = FakeUdp(ELSEWHERE)
        self.may_work = threading.Event()
        self.receiver = threading.Thread(target=lambda: (self.may_work.wait(), work()), name="scout")

    @property
    def scout(self) -> Scout:
        return Scout(cast(Any, self.udp), ("10.0.0.8", 29900), self.receiver)

    def end(self) -> None:
        self.may_work.set()
        self.receiver.join()


def known_answer(wire: Wire) -> memoryview:
    """What a server says that knows the session."""
    return segment(cmd=KCP_WINS, una=wire.client.session.conversation.progress()[0])


@pytest.fixture
def silent(wire: Wire) -> Wire:
    """A client in the middle of things whose server has fallen silent."""
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(b"anybody there?"))
    wire.pass_time(SILENCE)
    return wire


def test_a_scout_takes_all_that_is_sent_along(silent: Wire) -> None:
    way = Way()
    way.may_work.set()
    before = len(silent.client.udp.sent)
    silent.client.session.send_scout(way.scout)
    assert [packet for packet, _ in way.udp.sent] == [packet for packet, _ in silent.client.udp.sent[before:]]
    assert way.udp.sent and {address for _, address in way.udp.sent} == {("10.0.0.8", 29900)}
    silent.client.session.close()
    assert way.udp.is_closed


def test_an_answer_there_moves_the_session(silent: Wire, clock: Clock) -> None:
    session, old = silent.client.session, silent.client.udp
    way = Way()
    way.may_work.set()
    session.send_scout(way.scout)
    session.receive_through(cast(Any, way.udp), [known_answer(silent)], clock.now)
    assert session.local_address == ELSEWHERE and session.remote == ("10.0.0.8", 29900)
    assert old.is_closed and not way.udp.is_closed
    session.close()
    assert way.udp.is_closed


def test_an_answer_on_the_old_way_dismisses_the_scout(silent: Wire, clock: Clock) -> None:
    session = silent.client.session
    way = Way()
    way.may_work.set()
    session.send_scout(way.scout)
    session.receive_through(cast(Any, silent.client.udp), [known_answer(silent)], clock.now)
    assert way.udp.is_closed and session.remote == SERVER
    assert not way.receiver.is_alive()


def test_a_stranger_there_moves_nothing_and_is_believed_only_after_a_while(silent: Wire, clock: Clock) -> None:
    session = silent.client.session
    way = Way()
    way.may_work.set()
    session.send_scout(way.scout)
    for _ in range(5):
        session.receive_through(cast(Any, way.udp), [segment(cmd=KCP_WINS, una=0)], clock.now)
    assert session.remote == SERVER and not session.is_closed
    clock.now += DENIED_AFTER
    session.receive_through(cast(Any, way.udp), [segment(cmd=KCP_WINS, una=0)], clock.now)
    assert isinstance(silent.client.closed[0], DeadLink) and way.udp.is_closed


def test_a_second_scout_takes_the_place_of_the_first(silent: Wire) -> None:
    first, second = Way(), Way()
    first.may_work.set()
    second.may_work.set()
    silent.client.session.send_scout(first.scout)
    silent.client.session.send_scout(second.scout)
    assert first.udp.is_closed and not second.udp.is_closed


def test_a_scout_for_a_session_that_is_over_comes_home(silent: Wire) -> None:
    way = Way()
    way.may_work.set()
    silent.client.session.close()
    silent.client.session.send_scout(way.scout)
    assert way.udp.is_closed and not way.receiver.is_alive()


def test_both_ways_may_answer_at_the_same_moment(silent: Wire, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each way's thread would dismiss the other way, and wait for its thread to end."""
    session = silent.client.session
    on_its_way = threading.Event()
    change_path = session.change_path

    def change_path_late(*path: Any) -> None:
        on_its_way.set()
        wait_until(lambda: new.udp.is_closed or not old.receiver.is_alive(), "the old way's thread has had its turn")
        change_path(*path)

    monkeypatch.setattr(session, "change_path", change_path_late)
    new = Way(lambda: session.receive_through(cast(Any, new.udp), [known_answer(silent)], clock.now))
    old = Way(lambda: session.receive_through(cast(Any, silent.client.udp), [known_answer(silent)], clock.now))
    session.receiver = old.receiver
    old.receiver.start()
    session.send_scout(new.scout)
    new.may_work.set()
    on_its_way.wait(PATIENCE_S)
    old.may_work.set()
    for way in (new, old):
        way.receiver.join(PATIENCE_S)
        assert not way.receiver.is_alive(), "they wait for each other"
    assert session.local_address == ELSEWHERE and not new.udp.is_closed


# -- silence -------------------------------------------------------------------------------------------------


def test_silence_is_trouble_every_second_and_every_second_a_question(wire: Wire, clock: Clock) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(b"anybody there?"))
    wire.pass_time(SILENCE - 10)
    assert wire.client.troubles == 0
    wire.pass_time(10)
    assert wire.client.troubles == 1
    before = len(wire.client.udp.sent)
    wire.pass_time(5 * PROBE_PERIOD)
    assert wire.client.troubles == 6
    fresh = wire.client.udp.sent[before:]
    questions = [packet for packet, _ in fresh if KCP_SEGMENT.unpack_from(packet)[1] == KCP_WASK]
    assert len(questions) == 5
    wire.is_cut = False
    wire.pass_time(1000)
    assert wire.client.troubles <= 7, "one answer is enough"
    wire.pass_time(10_000)
    assert wire.client.troubles <= 7


@pytest.mark.parametrize("is_client", [True, False])
@pytest.mark.parametrize("rto", [100, 400, 1500])  # ms
@pytest.mark.parametrize("seconds", [13, 37, 55])
def test_after_an_outage_data_flows_with_the_first_answer(
    wire: Wire, clock: Clock, is_client: bool, rto: int, seconds: int
) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    source, target = (stream, wire.server.opened[0]) if is_client else (wire.server.opened[0], stream)
    source.write(memoryview(b"1"))
    wire.pass_time(100)
    assert target.read_chunks(timeout_s=0) == [b"1"]
    source._owner.conversation.kcp.rtt.rto = rto
    wire.is_cut = True
    source.write(memoryview(noise(20_000)))
    wire.pass_time(seconds * 1000)
    wire.is_cut = False
    wire.pass_time(PROBE_PERIOD + 20)  # the retransmission timers have backed off to several times that
    assert b"".join(target.read_chunks(timeout_s=0) or []) == noise(20_000)


def test_who_is_being_denied_elsewhere_waits_for_the_verdict(wire: Wire, clock: Clock) -> None:
    session = wire.client.session
    stream = session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(b"anybody there?"))
    wire.pass_time(SILENCE)
    assert wire.client.troubles == 1
    way = Way()
    way.may_work.set()
    session.send_scout(way.scout)
    session.receive_through(cast(Any, way.udp), [segment(cmd=KCP_WINS, una=0)], clock.now)
    wire.pass_time(2 * DENIED_AFTER - PROBE_PERIOD)
    assert wire.client.troubles == 1, "another scout would begin again"
    wire.pass_time(2 * PROBE_PERIOD)
    assert wire.client.troubles > 1, "that way has died as well"
    session.close()


def test_an_idle_session_is_no_trouble(wire: Wire, clock: Clock) -> None:
    wire.client.session.open_stream()
    wire.carry()
    wire.is_cut = True
    wire.pass_time(8000)  # below the keep-alive's period
    assert wire.client.troubles == 0


def test_a_kernel_that_knows_no_way_is_trouble_at_once_and_then_every_second(wire: Wire, clock: Clock) -> None:
    wire.client.session.open_stream()
    wire.carry()
    wire.client.udp.last_error = OSError(errno.ENETUNREACH, "no way")
    wire.pass_time(10)
    assert wire.client.troubles == 1
    wire.pass_time(3000)
    assert 3 <= wire.client.troubles <= 5
    wire.client.udp.last_error = OSError(errno.ECONNREFUSED, "closed port")
    before = wire.client.troubles
    wire.pass_time(3000)
    assert wire.client.troubles == before


def test_a_peer_that_stays_silent_ends_the_session(wire: Wire, clock: Clock) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(b"anybody there?"))
    wire.pass_time(DEAD_AFTER - 1000, step=100)
    assert not wire.client.session.is_closed
    wire.pass_time(1000, step=100)
    assert isinstance(wire.client.closed[0], DeadLink)
    with pytest.raises(StreamReset):
        stream.read_chunks()


def test_a_reborn_peer_ends_the_session_but_only_after_a_while(wire: Wire, clock: Clock) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    session = wire.client.session
    stream.write(memoryview(b"to one who has forgotten us"))
    forgetful = [segment(cmd=KCP_WINS, una=0)]
    session.receive(forgetful, clock.now)
    session.receive(forgetful, clock.now + 50)
    assert not session.is_closed, "packets out of order may look like that"
    session.receive(forgetful, clock.now + 1000)
    assert isinstance(wire.client.closed[0], DeadLink)


def test_an_answer_in_between_clears_the_suspicion(wire: Wire, clock: Clock) -> None:
    wire.client.session.open_stream()
    wire.carry()
    session = wire.client.session
    session.receive([segment(cmd=KCP_WINS, una=0)], clock.now)
    session.receive([segment(cmd=KCP_WINS, una=session.conversation.progress()[0])], clock.now + 100)
    session.receive([segment(cmd=KCP_WINS, una=0)], clock.now + 1000)
    assert not session.is_closed


# -- everything at once --------------------------------------------------------------------------------------


def test_many_threads_and_a_close_in_the_middle_leave_nothing_behind() -> None:
    plant = make_plant(small_params(snd_wnd=256, rcv_wnd=256))
    with Wire(plant, monotonic_ms) as wire, wire.carrying():
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
    assert plant.pool.usage().in_use_bytes == 0
    assert wire.client.session.conversation.flush_wanted is Flush.NOTHING
