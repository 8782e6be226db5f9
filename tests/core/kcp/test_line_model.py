"""The model of the line alone, told anything: by a peer that lies, a clock that jumps, a line that changes.

How well it follows a real line is in tests/sim.
"""

from collections import deque
from math import isfinite

from hypothesis import given
from hypothesis import strategies as st

from kcptun_lite.core.kcp.congestion import Flight
from kcptun_lite.core.kcp.line_model import SHORT_WINDOW, LineModel

WINDOW_MAX = 4096
TIMES = st.sampled_from([0, 1, 5, 20, 21, 50, 300, 3000, 10**9])  # ms between two events
ROUND_TRIPS = st.none() | st.sampled_from([0, 1, 3, 4, 25, 100, 10_000, 2**31 - 1])  # ms; as the peer would have it
EVENTS = st.lists(
    st.tuples(TIMES, st.sampled_from(["send", "acknowledge", "lose", "idle"]), st.integers(1, 200), ROUND_TRIPS),
    max_size=300,
)


class Told:
    """A model, and what is in flight."""

    def __init__(self, now: int = 0) -> None:
        self.model = LineModel(WINDOW_MAX)
        self.now = now
        self.flights: deque[tuple[Flight, int]] = deque()

    def send(self, count: int) -> None:
        flight = self.model.flight(self.now & 0xFFFFFFFF, self.now)
        self.model.on_sent(count, flight)
        self.flights.append((flight, count))

    def acknowledge(self, rtt: int | None) -> None:
        flight, count = self.flights.popleft()
        if rtt is not None:
            self.model.on_rtt(rtt, self.now)
        self.model.on_acknowledged(count, flight, sum(count for _, count in self.flights), self.now)


@given(EVENTS)
def test_whatever_is_told_rates_and_windows_stay_within_bounds(events: list[tuple[int, str, int, int | None]]) -> None:
    told = Told()
    model = told.model
    for pause, event, count, rtt in events:
        told.now += pause
        if event == "send":
            told.send(count)
        elif event == "acknowledge" and told.flights:
            told.acknowledge(rtt)
        elif event == "lose" and told.flights:
            model.on_lost(told.flights[0][0])
        elif event == "idle":
            model.on_idle(told.now)
        assert 1 <= model.window <= WINDOW_MAX
        assert all(0 <= model.pacing_rate(srtt) and isfinite(model.pacing_rate(srtt)) for srtt in (0, 1, 100, 60_000))
        assert 0 <= model.loss <= 1


def test_a_peer_that_tells_of_no_round_trip_gets_a_window_and_no_more() -> None:
    """It acknowledges by `una` alone, or repeats timestamps of the future."""
    told = Told()
    for _ in range(2000):
        told.send(50)
        told.now += 20
        told.acknowledge(None)
    assert 16 <= told.model.window <= SHORT_WINDOW
    assert told.model.pacing_rate(0) == 0
