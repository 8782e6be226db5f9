"""A session's path: it follows a peer who moves, takes another way that answers, and knows which silence is the end."""

import errno
from types import SimpleNamespace
from typing import Any, cast

import pytest

from kcptun_lite.core.wire import FEC_HEADER, FEC_PARITY, KCP_ACK, KCP_SEGMENT, KCP_WASK, KCP_WINS
from kcptun_lite.errors import DeadLink, StreamReset
from kcptun_lite.net.session.path_probe import PROBE_RESET_AFTER, PathProbe, is_cut_off
from kcptun_lite.net.session.peer_watch import (
    DEAD_AFTER,
    PROBE_PERIOD,
    PROBE_TIMEOUT,
    REFUSED_AFTER,
    SILENCE,
    UNHEARD_AFTER,
)
from tests.net.fakes import (
    CLIENT,
    CONV,
    ELSEWHERE,
    SERVER,
    Clock,
    FakeUdp,
    Wire,
    noise,
    read_all,
    segment,
)

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
    una, next_sn, _ = server.conversation.kcp.progress()
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
    wire.client.session.change_path(fresh, SERVER)  # type: ignore[arg-type]
    assert old.is_closed and wire.client.session.local_address == ELSEWHERE
    packets = [memoryview(packet) for packet, _ in fresh.sent]
    wire.server.session.receive(packets, clock.now, ELSEWHERE)
    assert read_all(wire.server) == b"lost on the old path"


def test_a_path_given_to_a_session_that_is_over_is_closed_again(wire: Wire) -> None:
    wire.client.session.close()
    fresh = FakeUdp(ELSEWHERE)
    wire.client.session.change_path(fresh, SERVER)  # type: ignore[arg-type]
    assert fresh.is_closed and not fresh.sent


# -- another way ---------------------------------------------------------------------------------------------


class Way:
    """A path probe."""

    def __init__(self) -> None:
        self.udp = FakeUdp(ELSEWHERE)

    @property
    def path_probe(self) -> PathProbe:
        return PathProbe(cast(Any, self.udp), ("10.0.0.8", 29900))


def known_answer(wire: Wire) -> memoryview:
    """What a server says that knows the session."""
    return segment(cmd=KCP_WINS, una=wire.client.session.conversation.kcp.progress()[0])


@pytest.fixture
def silent(wire: Wire) -> Wire:
    """A client in the middle of things whose server has fallen silent."""
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(b"anybody there?"))
    wire.pass_time(SILENCE)
    return wire


def test_a_path_probe_takes_all_that_is_sent_along(silent: Wire) -> None:
    way = Way()
    before = len(silent.client.udp.sent)
    silent.client.session.start_path_probe(way.path_probe)
    assert [packet for packet, _ in way.udp.sent] == [packet for packet, _ in silent.client.udp.sent[before:]]
    assert way.udp.sent and {address for _, address in way.udp.sent} == {("10.0.0.8", 29900)}
    silent.client.session.close()
    assert way.udp.is_closed


def test_an_answer_there_moves_the_session(silent: Wire, clock: Clock) -> None:
    session, old = silent.client.session, silent.client.udp
    way = Way()
    session.start_path_probe(way.path_probe)
    session.receive_through(cast(Any, way.udp), [known_answer(silent)], clock.now)
    assert session.local_address == ELSEWHERE and session.remote == ("10.0.0.8", 29900)
    assert old.is_closed and not way.udp.is_closed
    session.close()
    assert way.udp.is_closed


def test_an_answer_on_the_old_way_dismisses_the_path_probe(silent: Wire, clock: Clock) -> None:
    session = silent.client.session
    way = Way()
    session.start_path_probe(way.path_probe)
    session.receive_through(cast(Any, silent.client.udp), [known_answer(silent)], clock.now)
    assert way.udp.is_closed and session.remote == SERVER


def test_whose_old_way_is_alive_says_so_on_it(silent: Wire, clock: Clock) -> None:
    """The server may have heard the session on the other way, and answers to a socket that is closed now."""
    session = silent.client.session
    session.start_path_probe(Way().path_probe)
    una = session.conversation.kcp.window.snd_nxt
    session.receive_through(cast(Any, silent.client.udp), [segment(cmd=KCP_WINS, una=una)], clock.now)
    assert session.conversation.kcp.window.snd_nxt == una + 1


def test_an_unknown_source_there_moves_nothing_and_is_believed_only_after_a_while(silent: Wire, clock: Clock) -> None:
    session = silent.client.session
    way = Way()
    session.start_path_probe(way.path_probe)
    for _ in range(5):
        session.receive_through(cast(Any, way.udp), [segment(cmd=KCP_WINS, una=0)], clock.now)
    assert session.remote == SERVER and not session.is_closed
    clock.now += PROBE_RESET_AFTER
    session.receive_through(cast(Any, way.udp), [segment(cmd=KCP_WINS, una=0)], clock.now)
    assert isinstance(silent.client.closed[0], DeadLink) and way.udp.is_closed


def test_a_second_path_probe_takes_the_place_of_the_first(silent: Wire) -> None:
    first, second = Way(), Way()
    silent.client.session.start_path_probe(first.path_probe)
    silent.client.session.start_path_probe(second.path_probe)
    assert first.udp.is_closed and not second.udp.is_closed


def test_a_path_probe_for_a_session_that_is_over_comes_home(silent: Wire) -> None:
    way = Way()
    silent.client.session.close()
    silent.client.session.start_path_probe(way.path_probe)
    assert way.udp.is_closed


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
    wire.pass_time(PROBE_PERIOD + rto + 20)  # the timers have backed off to several times that
    assert b"".join(target.read_chunks(timeout_s=0) or []) == noise(20_000)


def test_what_says_nothing_of_the_conversation_has_nothing_sent_again(wire: Wire, clock: Clock) -> None:
    stream = wire.client.session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(noise(20_000)))
    wire.pass_time(5000)
    before = len(wire.client.udp.sent)
    for packet in (memoryview(FEC_HEADER.pack(12, FEC_PARITY, 0) + bytes(40)), segment(conv=99)):
        wire.client.session.receive([packet], clock.now)
    assert len(wire.client.udp.sent) == before


def test_a_path_that_was_changed_has_everything_once(wire: Wire, clock: Clock) -> None:
    session = wire.client.session
    stream = session.open_stream()
    wire.carry()
    session.conversation.kcp.rtt.rto = 300
    wire.is_cut = True
    stream.write(memoryview(noise(20_000)))
    wire.pass_time(SILENCE)
    way = Way()
    session.change_path(*way.path_probe)
    sent = len(way.udp.sent)
    clock.now += 100
    session.receive([segment(cmd=KCP_WINS, una=session.conversation.kcp.window.snd_una)], clock.now)
    assert len(way.udp.sent) <= sent + 1


def test_who_is_being_reset_elsewhere_waits_for_the_verdict(wire: Wire, clock: Clock) -> None:
    session = wire.client.session
    stream = session.open_stream()
    wire.carry()
    wire.is_cut = True
    stream.write(memoryview(b"anybody there?"))
    wire.pass_time(SILENCE)
    assert wire.client.troubles == 1
    way = Way()
    session.start_path_probe(way.path_probe)
    assert not session.is_unknown_elsewhere
    session.receive_through(cast(Any, way.udp), [segment(cmd=KCP_WINS, una=0)], clock.now)
    assert session.is_unknown_elsewhere, "new streams had better take another session"
    wire.pass_time(2 * PROBE_RESET_AFTER - PROBE_PERIOD)
    assert wire.client.troubles == 1, "another path probe would begin again"
    wire.pass_time(2 * PROBE_PERIOD)
    assert wire.client.troubles > 1, "that way has died as well"
    assert not session.is_unknown_elsewhere
    session.close()


def test_an_idle_session_is_no_trouble(wire: Wire, clock: Clock) -> None:
    wire.client.session.open_stream()
    wire.pass_time(100)  # until the last acknowledgement has gone
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


def test_a_restarted_peer_ends_the_session_but_only_after_a_while(wire: Wire, clock: Clock) -> None:
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
    session.receive([segment(cmd=KCP_WINS, una=session.conversation.kcp.progress()[0])], clock.now + 100)
    session.receive([segment(cmd=KCP_WINS, una=0)], clock.now + 1000)
    assert not session.is_closed


# -- an outage of one direction --------------------------------------------------------------------------------


def test_what_the_peer_repeats_is_no_answer(wire: Wire, clock: Clock) -> None:
    """Our direction is dead, the other one is not: the client is in trouble as soon as in an outage of both."""
    stream = wire.client.session.open_stream()
    wire.carry()
    session, server = wire.client.session, wire.server
    server.opened[0].write(memoryview(b"x"))
    wire.carry()
    stream.write(memoryview(b"lost"))
    repeated = segment(sn=session.conversation.kcp.progress()[1] - 1, una=1, data=b"again")
    for _ in range(0, 2 * SILENCE, 100):
        clock.now += 100
        session.receive([memoryview(bytearray(repeated))], clock.now)
        session.update(clock.now)
    assert wire.client.troubles
    wire.client.troubles = 0
    session.receive([segment(cmd=KCP_WINS, una=session.conversation.kcp.window.snd_una)], clock.now)
    session.update(clock.now)
    assert not wire.client.troubles


def test_who_hears_repetitions_only_says_something_new(wire: Wire, clock: Clock) -> None:
    """A download: nothing of ours waits for an answer, and all that comes has come before."""
    wire.client.session.open_stream()
    wire.carry()
    wire.server.opened[0].write(memoryview(b"x"))
    wire.carry()
    session = wire.client.session
    sn = session.conversation.kcp.progress()[1] - 1
    clock.now += PROBE_TIMEOUT
    before = session.conversation.kcp.window.snd_nxt
    session.receive([segment(sn=sn, una=before, data=b"again")], clock.now)
    session.update(clock.now)
    assert session.conversation.kcp.window.snd_nxt == before + 1


# -- a server that is not there ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("is_refused", "limit"), [(True, REFUSED_AFTER), (False, UNHEARD_AFTER)])
def test_a_stream_that_is_opened_into_silence_is_reset_and_older_ones_wait(
    wire: Wire, clock: Clock, is_refused: bool, limit: int
) -> None:
    session = wire.client.session
    old = session.open_stream()
    wire.pass_time(100)
    wire.is_cut = True
    if is_refused:
        wire.client.udp.last_error = ConnectionRefusedError(errno.ECONNREFUSED, "refused")
    old.write(memoryview(b"waits"))
    clock.now += 1000
    new = session.open_stream()
    wire.pass_time(limit - 100)
    assert session.stream_count == 2
    wire.pass_time(1200)
    assert session.stream_count == 1
    with pytest.raises(StreamReset, match="no answer"):
        new.read_chunks(timeout_s=0)
    wire.is_cut = False
    wire.pass_time(2000)
    assert read_all(wire.server) == b"waits"


def test_the_stream_that_finds_the_silence_is_reset_like_those_after_it(wire: Wire, clock: Clock) -> None:
    """Nobody was asking anything when the server died: its own first packet is the first without an answer."""
    session = wire.client.session
    wire.pass_time(1000)
    wire.is_cut = True
    clock.now += 1000
    session.open_stream()
    assert session.conversation.kcp.unanswered_since == clock.now
    session.conversation.kcp.unanswered_since += 1  # as where the clock goes on before the packet is written
    wire.pass_time(UNHEARD_AFTER - 1000)
    assert session.stream_count == 1
    wire.pass_time(2200)
    assert session.stream_count == 0


@pytest.mark.parametrize("name", ["ENETUNREACH", "EHOSTUNREACH", "ENETDOWN", "EADDRNOTAVAIL", "ENODEV"])
def test_what_the_kernel_says_of_a_line_that_is_gone(name: str) -> None:
    udp: Any = SimpleNamespace(last_error=OSError(getattr(errno, name), "no way"))
    assert is_cut_off(udp)
    for error in (None, OSError(errno.ECONNREFUSED, "nobody listens"), OSError(errno.EMSGSIZE, "too long")):
        udp.last_error = error
        assert not is_cut_off(udp)


def test_why_the_old_way_failed_is_known_until_the_new_one_is_heard(silent: Wire, clock: Clock) -> None:
    session, way = silent.client.session, Way()
    error = silent.client.udp.last_error = OSError(errno.ENETUNREACH, "no way")
    session.change_path(*way.path_probe)
    assert session.send_error is error
    session.receive_through(way.udp, [known_answer(silent)], clock.now)  # type: ignore[arg-type]
    assert session.send_error is None


def test_what_answers_nothing_on_the_old_way_dismisses_no_path_probe(silent: Wire, clock: Clock) -> None:
    session = silent.client.session
    way = Way()
    session.start_path_probe(way.path_probe)
    session.receive_through(cast(Any, silent.client.udp), [segment(conv=CONV + 1)], clock.now)
    assert not way.udp.is_closed


def test_what_either_way_has_taken_is_sent(silent: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    session, way = silent.client.session, Way()
    monkeypatch.setattr(silent.client.udp, "send", lambda packets, address, local=None: 0)  # unreachable
    counters = session.counters
    before = counters.out_packets, counters.send_drops
    session.start_path_probe(way.path_probe)
    assert way.udp.sent
    assert (counters.out_packets, counters.send_drops) == (before[0] + len(way.udp.sent), before[1])
