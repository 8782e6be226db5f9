"""Whether the peer has lost all memory of the conversation."""

from kcptun_lite.core.kcp.restart import RESTART_AFTER, RestartDetector


def watched(*events: tuple[int, bool], rto: int = 100) -> bool:
    """What the watch says at the last of (ms, whether a datagram acknowledges from zero)."""
    watch = RestartDetector()
    for now, is_from_zero in events:
        watch.note(is_from_zero=is_from_zero, now=now)
    return watch.is_certain(events[-1][0], rto)


def test_who_acknowledges_from_zero_for_a_while_is_born_again() -> None:
    assert watched((0, True), (RESTART_AFTER, True))
    assert not watched((0, True))
    assert not watched((0, True), (RESTART_AFTER - 1, True))
    assert not watched((0, True), (RESTART_AFTER, True), rto=RESTART_AFTER), "an answer may still be on its way"


def test_a_single_datagram_is_never_enough() -> None:
    watch = RestartDetector()
    watch.note(is_from_zero=True, now=0)
    assert not watch.is_certain(100 * RESTART_AFTER, rto=100)


def test_one_good_answer_ends_the_suspicion() -> None:
    replayed = [(at, True) for at in range(0, 10 * RESTART_AFTER, 10)]
    answered = sorted([*replayed, *((at, False) for at in range(5, 10 * RESTART_AFTER, 200))])
    assert watched(*replayed)
    assert not watched(*answered)


def test_the_suspect_is_asked_less_and_less_often_until_he_answers() -> None:
    watch = RestartDetector()
    assert not watch.wants_question(0)
    watch.note(is_from_zero=True, now=1000)
    asked = []
    for now in range(1000, 10_000):
        if watch.wants_question(now):
            asked.append(now)
        watch.note(is_from_zero=True, now=now)
    assert asked == [1000, 1100, 1300, 1700, 2500, 4100, 7300]
    watch.note(is_from_zero=False, now=10_000)
    assert watch.ask_at is None and not watch.wants_question(20_000)
