"""What an address gets before it is known to be the sender's, and what proves it."""

from kcptun_lite.core.validation import AMPLIFICATION, CHALLENGES_MAX, AddressValidation


def test_an_unvalidated_address_gets_three_times_what_came_from_it() -> None:
    validation = AddressValidation(is_validated=False)
    assert not validation.spend(1)
    validation.on_received(100)
    assert validation.spend(AMPLIFICATION * 100) and not validation.spend(1)
    validation.on_received(10)
    validation.on_received(10)
    assert validation.spend(60) and not validation.spend(1)


def test_credit_does_not_move_to_another_address() -> None:
    validation = AddressValidation(is_validated=False)
    validation.on_received(1000)
    validation.on_received(10, is_elsewhere=True)
    assert not validation.spend(31) and validation.spend(30)


def test_only_a_timestamp_that_was_sent_validates_and_only_once() -> None:
    validation = AddressValidation(is_validated=False)
    validation.on_sent(7)
    assert not validation.on_echo(8) and not validation.is_validated
    assert validation.on_echo(7) and validation.is_validated
    assert not validation.on_echo(7)
    assert validation.spend(1 << 40)


def test_timestamps_are_remembered_up_to_a_number_and_until_they_have_served() -> None:
    validation = AddressValidation(is_validated=False)
    for ts in range(2 * CHALLENGES_MAX):
        validation.on_sent(ts)
    assert len(validation._challenges) == CHALLENGES_MAX
    assert not validation.on_echo(CHALLENGES_MAX) and validation.on_echo(CHALLENGES_MAX - 1)
    validation.on_sent(1)
    assert not validation._challenges
