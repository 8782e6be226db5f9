"""The chaos tool for ten seconds: whatever is done to the tunnel, no stream ever lies about what it has delivered."""

from random import Random

import pytest

from tools.chaos import FAULTS, OPTIONS, Checker, Violation, run


@pytest.mark.parametrize(("smuxver", "seed"), [pytest.param(1, 1, marks=pytest.mark.once), (2, 2)])
def test_no_stream_lies(smuxver: int, seed: int) -> None:
    # What a client that has ended could not tell stays at the server for a keep-alive: too long to wait for here.
    faults = [name for name in FAULTS if not name.endswith("-client")]
    tally = run(5, seed, faults, ("ours", "ours"), {**OPTIONS, "smuxver": smuxver}, report=60)
    assert tally.violations == []
    assert tally.counts["app: complete"] > 0


def test_the_checker_sees_every_lie() -> None:
    data = Random(5).randbytes(16_384)
    for size, lie in ((100, data[:99]), (100, data[1:101])):
        checker = Checker(5, size)
        with pytest.raises(Violation):
            checker.take(lie)
            checker.end()
    checker = Checker(5, 100)
    with pytest.raises(Violation):
        checker.take(data[:101])
