"""A path that loses what is large without a word: it is told from one that loses anything, or all for a while."""

import pytest

from tests.helpers import KcpPair, kcp_params, noise

ASKED_EVERY = 1000  # ms; what a session does while it hears nothing
DELAY = 40  # ms, one way


def asking_pair(mode: str, *, seed: int = 1, **link: object) -> KcpPair:
    """Two ends of which `a` asks now and then whether the other one is there."""
    pair = KcpPair(kcp_params(mode, snd_wnd=64, rcv_wnd=64), link={"delay": DELAY, **link}, seed=seed)
    for at in range(ASKED_EVERY, 60_000, ASKED_EVERY):
        pair.at(at, pair.a.kcp.probe)
    return pair


@pytest.mark.parametrize("mode", ["fast3", "fast2", "fast", "normal"])
def test_a_black_hole_is_found_within_seconds(mode: str) -> None:
    pair = asking_pair(mode, largest=900)
    pair.a.write(b"a question")
    pair.drive(lambda: pair.b.received == b"a question", limit=500)
    pair.a.write(noise(100_000))
    pair.drive(lambda: pair.a.kcp.window.loses_large, limit=6000)


def test_what_is_small_goes_on_in_a_black_hole() -> None:
    pair = asking_pair("fast3", largest=900)
    for number in range(50):
        pair.at(100 * number + 1, lambda: pair.a.write(noise(500)))
    pair.drive(limit=10_000)
    assert len(pair.b.received) == 50 * 500 and not pair.a.kcp.window.loses_large


@pytest.mark.parametrize("loss", [0.1, 0.3])
@pytest.mark.parametrize("seed", range(8))
def test_a_path_that_loses_much_is_no_black_hole(loss: float, seed: int) -> None:
    pair = asking_pair("fast3", seed=seed, loss=loss)
    pair.a.write(noise(60_000, seed))
    for _ in range(600):
        pair.drive(limit=50)
        assert not pair.a.kcp.window.loses_large


@pytest.mark.parametrize("length", [1500, 6000, 20_000])
def test_an_outage_is_no_black_hole(length: int) -> None:
    """What was lost meanwhile was lost whatever its size."""
    pair = asking_pair("fast3")
    pair.a.write(noise(400_000))
    pair.at(30, lambda: setattr(pair.a_to_b, "loss", 1.0))
    pair.at(30 + length, lambda: setattr(pair.a_to_b, "loss", 0.0))
    while pair.now < 40_000 and not pair.a.is_quiet:
        pair.drive(limit=20)
        assert not pair.a.kcp.window.loses_large
    assert pair.a.is_quiet


def test_after_a_change_of_the_path_it_is_looked_for_again() -> None:
    pair = asking_pair("fast3")
    pair.a.write(noise(50_000))
    pair.drive(lambda: pair.a.is_quiet, limit=5000)
    pair.a_to_b.largest = 900
    pair.a.kcp.resend_all(pair.now)
    pair.a.write(noise(50_000))
    pair.drive(lambda: pair.a.kcp.window.loses_large, limit=5000)
