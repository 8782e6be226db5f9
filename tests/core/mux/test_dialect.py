"""A guess of what the peer speaks: what confirms it, what refutes it, and how all is said again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kcptun_lite.core.mux.dialect import KEPT_MAX, READ_AFTER, Dialect, Guess
from kcptun_lite.core.wire import SMUX_PEER_WINDOW_INITIAL
from kcptun_lite.errors import DeadLink, SessionError, SmuxError, SmuxVersionError
from tests.core.mux.smux_frames import frame


def weighed(
    guess: Guess, now: int, *, understood: bool = False, told: int = 0, from_zero: int = 0
) -> tuple[bool, bool]:
    guess.weigh(now, understood, True, told, from_zero)
    return guess.is_confirmed, guess.is_refuted


def test_nothing_is_asked_before_something_is_acknowledged() -> None:
    guess = Guess()
    guess.weigh(5, False, False, 0, 0)
    assert guess.ask_at is None and not guess.wants_question(5) and not guess.is_decided


def test_questions_come_again_ever_later() -> None:
    guess = Guess()
    weighed(guess, 1000)
    asked = [now for now in range(1000, 2600) if guess.wants_question(now)]
    assert asked == [1000, 1100, 1300, 1700, 2500]


def test_frames_that_make_sense_confirm_at_once() -> None:
    assert weighed(Guess(), 0, understood=True) == (True, False)


def test_an_answer_from_zero_refutes_at_once() -> None:
    guess = Guess()
    assert weighed(guess, 0) == (False, False)
    assert weighed(guess, 1, from_zero=1) == (False, True)
    assert isinstance(guess.error, DeadLink)


def test_two_answers_from_where_we_are_confirm_when_there_is_time_between() -> None:
    guess = Guess()
    assert weighed(guess, 50, told=1) == (False, False)
    assert weighed(guess, 49 + READ_AFTER, told=2) == (False, False), "too soon after the first"
    assert weighed(guess, 50 + READ_AFTER, told=2) == (False, False), "that answer was given before"
    assert weighed(guess, 51 + READ_AFTER, told=3) == (True, False)
    assert guess.error is None


def test_what_is_decided_stays_so() -> None:
    guess = Guess()
    weighed(guess, 0, from_zero=1)
    assert weighed(guess, 500, understood=True, told=9) == (False, True)


@pytest.mark.parametrize("failures", [(SmuxVersionError("version"), SmuxError("snappy")),
                                      (SmuxError("snappy"), SmuxVersionError("version"))])  # fmt: skip
def test_of_all_failures_the_version_is_told(failures: tuple[SmuxError, SmuxError]) -> None:
    """If only the version was fixed by an option, one of the two tries fails by it alone."""
    guess = Guess()
    guess.refute(failures[0])
    guess = guess.again(2)
    guess.refute(failures[1])
    assert isinstance(guess.error, SessionError) and "version" in str(guess.error)


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**32 - 1), st.binary(max_size=50)), max_size=20))
def test_all_is_said_again_in_the_other_version(frames: list[tuple[int, int, bytes]]) -> None:
    guess = Guess()
    for command, sid, payload in frames:
        data = frame(command, sid, payload)
        guess.keep([data[:8], data[8:]])
    again = guess.again(2)
    assert again.said == b"".join(frame(command, sid, payload, version=2) for command, sid, payload in frames)
    assert again.again(1).said == guess.said
    assert not again.is_decided and again.ask_at is None


def test_what_may_be_kept_is_bounded_and_fits_the_first_window_of_version_2() -> None:
    guess = Guess()
    guess.keep([bytes(KEPT_MAX - 1)])
    assert guess.room == 1
    guess.keep([bytes(8)])
    assert guess.room == 0
    assert KEPT_MAX < SMUX_PEER_WINDOW_INITIAL


def test_names_are_those_of_options() -> None:
    assert [str(Dialect(*each)) for each in ((1, True), (2, False))] == ["--smuxver 1", "--smuxver 2 --nocomp"]
