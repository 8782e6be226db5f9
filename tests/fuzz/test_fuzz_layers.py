"""Every room that takes bytes from outside, under bytes that mean it no good; the promises are in targets.py."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.strategies import PROGRAMS, bounded, damaged, recorded
from tests.fuzz.targets import TARGETS

EVERY_TARGET = pytest.mark.parametrize("target", TARGETS)


@EVERY_TARGET
def test_recorded_traffic_is_fine(target: str) -> None:
    assert recorded(target)
    for program in recorded(target):
        TARGETS[target](program)


@EVERY_TARGET
@bounded(60)
@given(data=st.data())
def test_damage_does_no_harm(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(damaged(target)))


@EVERY_TARGET
@bounded(100)
@given(data=st.data())
def test_almost_valid_pieces_do_no_harm(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(PROGRAMS[target]))


@EVERY_TARGET
@bounded(30)
@given(program=st.binary(max_size=200))
def test_noise_does_no_harm(target: str, program: bytes) -> None:
    TARGETS[target](program)
