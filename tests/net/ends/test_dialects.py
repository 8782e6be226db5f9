"""In which order dialects are tried, and what is remembered."""

from typing import Any, cast

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.mux.dialect import Dialect, Guess
from kcptun_lite.net.ends.dialects import Dialects, Search
from kcptun_lite.net.session.session import Session

FIRST, SECOND, THIRD = Dialect(1, True), Dialect(2, True), Dialect(1, False)
HERE: Address = ("192.0.2.1", 29900)
THERE: Address = ("192.0.2.2", 29900)


class FakeSession:
    remote = HERE


SESSION = cast(Session, FakeSession())


def refuted() -> Guess:
    guess = Guess()
    guess.is_refuted = True
    return guess


def confirmed() -> Guess:
    guess = Guess()
    guess.is_confirmed = True
    return guess


def search(dialects: Dialects, moved: list[Dialect], remote: Address = HERE) -> Search:
    def move(session: Any, dialect: Dialect) -> bool:
        moved.append(dialect)
        return True

    return Search(dialects, remote, move)


def test_one_after_the_other_the_likeliest_first() -> None:
    moved: list[Dialect] = []
    one = search(Dialects([FIRST, SECOND, THIRD]), moved)
    assert one.is_guess and one.dialect == FIRST
    assert one.on_verdict(SESSION, refuted()) and one.on_verdict(SESSION, refuted())
    assert moved == [SECOND, THIRD]
    assert not one.on_verdict(SESSION, refuted()), "there is nothing left"
    assert moved == [SECOND, THIRD]


def test_what_is_given_is_no_guess() -> None:
    assert not search(Dialects([SECOND]), []).is_guess


def test_what_was_found_comes_first_the_next_time_and_is_told_once() -> None:
    told: list[Dialect] = []
    dialects = Dialects([FIRST, SECOND, THIRD], lambda session, dialect: told.append(dialect))
    for _ in range(2):
        one = search(dialects, [])
        while one.dialect != SECOND:
            one.on_verdict(SESSION, refuted())
        assert not one.on_verdict(SESSION, confirmed())
    assert told == [SECOND]
    assert dialects.order(HERE) == [SECOND, FIRST, THIRD]
    assert dialects.order(("::ffff:192.0.2.1", 1, 0, 0)) == [SECOND, FIRST, THIRD], "the same host"
    assert dialects.order(THERE) == [FIRST, SECOND, THIRD], "of which nothing is known"


def test_a_server_that_has_changed_is_told_again() -> None:
    told: list[Dialect] = []
    dialects = Dialects([FIRST, SECOND], lambda session, dialect: told.append(dialect))
    search(dialects, []).on_verdict(SESSION, confirmed())
    one = search(dialects, [])
    one.on_verdict(SESSION, refuted())
    one.on_verdict(SESSION, confirmed())
    assert told == [FIRST, SECOND]


def test_a_session_that_cannot_move_ends() -> None:
    assert not Search(Dialects([FIRST, SECOND]), HERE, lambda session, dialect: False).on_verdict(SESSION, refuted())


def test_a_version_that_is_better_for_a_server_that_takes_any() -> None:
    dialects = Dialects([FIRST, SECOND, THIRD])
    assert dialects.prefer(HERE, 2)
    assert dialects.order(HERE) == [SECOND, FIRST, THIRD] and dialects.order(THERE) == [FIRST, SECOND, THIRD]
    assert not Dialects([FIRST]).prefer(HERE, 2), "what is given is kept to"
