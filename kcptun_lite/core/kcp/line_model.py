"""A sender's model of its line: how fast the bottleneck is, how long the way is, what part is lost.

In      the events of `CongestionControl`
Out     a window and a pacing rate that fill the line and leave its queue nearly empty
Knows   rates and times. Not: segments, what is sent
Wire    nothing: any receiver's acknowledgements will do
Source  the model is BBR's (Cardwell et al., ACM Queue 14(5), 2016; draft-cardwell-iccrg-bbr-congestion-control): the
        greatest delivery rate and the least round-trip time. Its answer to a queue is that of Vegas and Copa: less.
Cost    a few numbers per acknowledged batch; decisions once per round trip

The rate is what was delivered in a whole round (ROUND_MIN at the least): an average knows no clumps. Loss alone slows
nothing: what is lost at a steady rate is added on top, so that the line stays full. A queue does: where the least
round trip of a whole round stays above the least ever by QUEUE, it is ours, and we go slower until it is gone; where
that does not help it is somebody else's, and for a while we hold our share.
"""

from collections import deque
from enum import Enum
from typing import NamedTuple

from kcptun_lite.core.kcp.congestion import PACING_STEP, CongestionControl, Flight
from kcptun_lite.core.kcp.delivery import Mark
from kcptun_lite.core.kcp.probing import ProbeSize
from kcptun_lite.core.kcp.queue_meter import QueueMeter

INITIAL_WINDOW = 32  # segments; what kcp lets go before it has heard anything (KCP_WND_INITIAL)
WINDOW_LEAST = 16  # segments
FLIGHT_LEAST = 8  # segments in a round trip that everybody may send, however many share the line
SHORT_RTT = 4  # ms; below it clocks and threads are what is measured, and the window alone holds:
SHORT_WINDOW = 2048  # segments at the most; what arrives in the time of a round trip, ...
SHORT_MORE = 96  # ... and so many more, which with many on one machine makes their shares equal
LONG_RTT = 25  # ms; below it the same holds while one round trip differs from the next by more than the least ...
NOISE_LEFT = 1 / 2  # ... and until it is less than half of that: the processors have too much to do
SHORT_ROUNDS_SEEN = 8  # that what arrives there is measured over: acknowledgements wait for the processor, too
ROUND_MIN = 20  # ms
SMOOTHED_ROUNDS = 3  # that one rate is measured over
SHORTFALL = 0.85  # of the rate arriving where no queue tells why ...
SHORT_ROUNDS = 4  # ... for so many rounds: the line has become slower, or drops what is above its rate
PROBE_FOUND = 0.6  # of what a probe sends more must arrive, then there is room for it
PROBE_SEGMENTS = 48  # that a probe sends more in a round trip, at the least ...
PROBE_MOST = 0.5  # ... unless it is more than this part of the rate; whoever has less than that doubles it
PROBE_QUEUE = 12  # ms of queue that a probe may make
PROBE_LEAST = 0.05  # of the rate
STARTUP_GROWTH = 1.25  # a round that brings less than so much more ...
STARTUP_ROUNDS = 3  # ... so often in a row has found the line full
STARTUP_LOSS = 0.4  # of a round lost, and STARTUP_LOST segments at the least: so has one whose queue was full before
STARTUP_LOST = 32
IDLE_PART = 8  # with nothing to send for more than this part of a round it is the application that is measured, ...
SENT_PART, SENT_LEAST = 0.85, 32  # ... and with less sent than this part of what was to be, and so much: our processor
CRUISE_ROUNDS = 6  # between two probes
DRAIN_ROUNDS = 8  # that must empty a queue of our own; one that stays then is somebody else's
DRAIN_GAIN = 0.75  # of the rate, and ...
DRAIN_HARD = 0.5  # ... where that was not enough, or nothing was known before: if others of us fill it, all do the same
QUEUE_UNMOVED = 0.7  # of the round trip before: who drains with others of us sees it become shorter
YIELD = 0.95  # of what arrives while a queue stands is what we go on with
SHARED_GAIN = 1.25  # of a probe where others use the line ...
SHARED_ROUNDS = 10  # ... and the most of what has arrived in so many rounds is our share ...
SHARED_TIME = 5_000  # ... for so many ms, before we look again
GIVEN_UP_OFTEN = 10  # times a queue has come while we did nothing for it ...
GIVEN_UP_TIME = 20_000  # ... in so many ms: TCP takes what we give up, each time ...
SHARED_TIME_AFTER = 15_000  # ... so we hold what is left, for so many ms
MIN_RTT_TIME = 10_000  # ms that a least round trip is believed without being seen again
PROBE_RTT_TIME = 200  # ms, or two round trips: how long little is sent to see it ...
PROBE_RTT_PART = 0.25  # ... of what fills the line: what has stood in its queue seems to be part of the way
PACING_PART = 8  # of the least round trip between two bursts: a short line has a short queue
ACK_DELAY = 20  # ms that a receiver may take to acknowledge; the window must not end before
LOSS_EXPECTED = (100.0, 1.0)  # sent and lost, before anything is known
LOSS_MOST = 0.2  # share of losses that are made up for ...
LOSS_OF_OURS = 0.25  # ... and above this they are made by us: we have never seen the line without a queue
LOSS_MEMORY = 7 / 8  # of the counts of losses, per round ...
LOSS_SAMPLE = 512  # ... and never less than of so many: a loss in a hundred is not to be forgotten between two
LOSS_DOUBT = 7 / 8  # where a queue stands, some of them were ours
TRUST_IN_RATE = 0.98  # a little below what was measured: the rest drains what chance has queued


class State(Enum):
    """What the model is at."""

    STARTUP = "startup"
    DRAIN = "drain"
    CRUISE = "cruise"
    PROBE = "probe"
    PROBE_RTT = "probe rtt"


class Round(NamedTuple):
    """What one round trip has shown."""

    rate: float
    "segments per ms, over some rounds"
    latest: float
    "the same, over this one alone"
    is_limited: bool
    "by what there was to send, or by our processor"
    has_queue: bool
    "all of its round trips were longer than the least"
    has_grown: bool
    "the rate is well above all that was seen before"


class LineModel(CongestionControl):
    """Window and rate from what the line delivers."""

    def __init__(self, window_max: int) -> None:
        """`window_max`: segments that memory allows."""
        self.window = INITIAL_WINDOW
        self.state = self._came_from = State.STARTUP
        self.min_rtt = 0
        "ms; 0 before the first sample"
        self.rate = 0.0
        "segments per ms that the line delivers; 0 before the first round"
        self.loss = LOSS_EXPECTED[1] / LOSS_EXPECTED[0]
        "share of what is sent that the line loses"
        self.is_shared = False
        "a queue stays that we do not make: others use the line"
        self._window_max = window_max
        self._is_short = False
        self._gain = 1.0
        self._gains = (1.0, 1.0)
        "of the round before, of which the acknowledgements come in this one, and of this one"
        self._delivered = 0
        self._round_end = 0  # `_delivered` when the first segment of this round was sent
        self._round_begin: Mark | None = None
        self._round_rtt = 0  # least of this round
        self._round_sent = self._round_lost = 0
        self._idle_since: int | None = None
        self._idle_time = 0  # ms of this round in which there was nothing to send
        self._was_limited = True  # the application was the limit in the last round
        self._was_window_full = False  # in this round: then it is the line that lets nothing more go
        self._round_rate = 0.0  # segments per ms that are to be sent in it; 0 where nobody knows
        self._meter = QueueMeter()
        self._rounds_in_state = 0
        self._full_rounds = self._short_rounds = 0
        self._probe_gain = 1.0
        self._probe_base = 0.0
        self._probe_size = ProbeSize()
        self._marks: deque[Mark] = deque(maxlen=SHORT_ROUNDS_SEEN)
        "the ends of rounds"
        self._steady_sent, self._steady_lost = LOSS_EXPECTED
        self._is_loss_known = False  # something steady was sent in this round
        self._min_rtt_at = 0
        self._least_since = 0  # ms; of the round trips since then
        self._state_since = 0
        self._shared_until = 0
        self._given_up: deque[int] = deque(maxlen=GIVEN_UP_OFTEN)
        "ms; when a queue came while we did nothing for it"
        self._before_drain = 0.0, 0
        "the rate, and the least round trip of that round in ms"
        self._shares: deque[float] = deque(maxlen=SHARED_ROUNDS)
        self._probe_rtt_least = 0

    def __repr__(self) -> str:
        return f"<LineModel {self.state.value} {self.rate:.2f}/ms {self.min_rtt} ms loss {self.loss:.3f}>"

    # -- what is asked -------------------------------------------------------------------------

    def pacing_rate(self, srtt: int) -> float:
        if not self.min_rtt or self._is_short:
            return 0.0  # nothing known, or nothing that could be kept to
        if self.state is State.STARTUP:
            return max(self.window, INITIAL_WINDOW) * 1.25 / max(srtt, 1)
        # Draining makes up for no losses: they may be of our own making.
        rate = self._gain * (self.rate if self.state is State.DRAIN else self._sending_rate)
        return max(rate, FLIGHT_LEAST / max(srtt, 1))

    @property
    def pacing_step(self) -> int:  # type: ignore[override]
        return min(max(self.min_rtt // PACING_PART, 1), PACING_STEP)

    @property
    def queue_allowed(self) -> int:
        """ms of standing queue that are let be: less than that is noise."""
        return self._meter.noise(self.min_rtt, has_begun=self.state is not State.STARTUP)

    @property
    def _sending_rate(self) -> float:
        """Segments per ms to send, so that `rate` arrives."""
        return TRUST_IN_RATE * self.rate / (1 - min(self.loss, LOSS_MOST))

    @property
    def _full_line(self) -> float:
        """Segments in flight that fill the line and not its queue."""
        return self._sending_rate * self.min_rtt

    # -- what happens --------------------------------------------------------------------------

    def flight(self, ts: int, now: int) -> Flight:
        if self._idle_since is not None:
            self._idle_time += now - self._idle_since
            self._idle_since = None
        # A full queue loses packets, too: what is lost while there is none is the line's doing.
        is_calm = self.state is State.CRUISE and self._meter.queue <= self.queue_allowed // 2
        is_steady = self.min_rtt > 0 and (is_calm or self._was_limited)
        return Flight(ts, now, self._delivered, is_steady)

    def on_sent(self, count: int, flight: Flight) -> None:
        if self._gain > 1:
            self._probe_size.on_sent(count)
        self._round_sent += count
        if flight.is_steady:
            self._steady_sent += count
            self._is_loss_known = True

    def on_lost(self, flight: Flight) -> None:
        self._round_lost += 1
        self._probe_size.on_lost(flight.sent_at)
        self._steady_lost += flight.is_steady

    def on_idle(self, now: int) -> None:
        if self._idle_since is None:
            self._idle_since = now

    def on_rtt(self, rtt: int, now: int) -> None:
        rtt = max(rtt, 1)
        self._round_rtt = min(self._round_rtt or rtt, rtt)
        if not self.min_rtt or rtt <= self.min_rtt + self.min_rtt // 32:
            self.min_rtt = min(self.min_rtt or rtt, rtt)
            if self.min_rtt < SHORT_RTT:
                self._set_short(True)
            self._min_rtt_at, self._least_since = now, 0
        else:
            self._least_since = min(self._least_since or rtt, rtt)
        self._meter.on_rtt(rtt, self.min_rtt, now)
        if self.state is State.PROBE_RTT:
            self._probe_rtt_least = min(self._probe_rtt_least or rtt, rtt)
        elif self.state is State.PROBE and not self.is_shared and self._meter.queue > self.queue_allowed:
            self._enter(State.DRAIN, now)

    def on_acknowledged(self, count: int, newest: Flight, in_flight: int, now: int) -> None:
        self._delivered += count
        self._meter.on_acknowledged(count, self.rate, now)
        here = Mark(now, newest.sent_at, self._delivered)
        if self._round_begin is None:
            self._round_begin, self._round_end = here, self._delivered
        if self.state is State.STARTUP:
            if 2 * (in_flight + count) >= self.window and not self._is_short:
                self.window = min(self.window + count, self._window_max)
            self._watch_startup(self._round_begin, here)
        self._was_window_full = self._was_window_full or in_flight + count >= self.window
        if self.state is State.DRAIN and in_flight <= self._full_line and self._rounds_in_state:
            self._enter(State.CRUISE, now)
        if newest.delivered >= self._round_end and now - self._round_begin.now >= ROUND_MIN:
            self._end_round(self._round_begin, here)

    def _watch_startup(self, begin: Mark, here: Mark) -> None:
        """Stop growing as soon as a queue is certain (HyStart)."""
        elapsed = here.now - begin.now
        if self._meter.queue > self.queue_allowed and elapsed >= ROUND_MIN and self.min_rtt >= SHORT_RTT:
            self.rate = max(self.rate, begin.rate_until(here))
            self._enter(State.DRAIN, here.now)
            self._set_window()

    # -- once per round ------------------------------------------------------------------------

    def _end_round(self, begin: Mark, here: Mark) -> None:
        now = here.now
        latest = begin.rate_until(here)
        is_limited = self._note_limit(begin, now)
        self._note_distance(now)
        has_queue = self._round_rtt - self.min_rtt > self.queue_allowed
        self._meter.end_round()
        rate = self._smooth(here, latest, is_limited)
        has_grown = rate >= STARTUP_GROWTH * self.rate
        self.rate = rate if self._is_short and not is_limited else max(self.rate, rate)
        self._learn_loss()
        self._rounds_in_state += 1
        if self._gain > 1:
            self._probe_size.on_over(self._state_since, now)
        if self.state in (State.PROBE, State.CRUISE):
            self._gain = 1.0  # after one round; that behind a probe brings the verdict
        self._decide(Round(rate, latest, is_limited, has_queue, has_grown), now)
        self._set_window()
        self._gains = self._gains[1], self._gain
        self._round_begin, self._round_end = here, self._delivered
        self._round_rate = 0.0 if self._is_short or self.state is State.STARTUP else self.pacing_rate(self._round_rtt)
        self._round_rtt = self._round_sent = self._round_lost = 0

    def _note_limit(self, begin: Mark, now: int) -> bool:
        """Whether it was not the line that has limited what arrived in this round; that was sent a round ago."""
        if self._idle_since is not None:
            self._idle_time += now - self._idle_since
            self._idle_since = now
        elapsed = now - begin.now
        was_limited = self._was_limited
        is_held = self._round_sent + SENT_LEAST < SENT_PART * self._round_rate * elapsed
        self._was_limited = self._idle_time * IDLE_PART > elapsed or (is_held and not self._was_window_full)
        self._idle_time = 0
        self._was_window_full = False
        return was_limited or self._was_limited

    def _note_distance(self, now: int) -> None:
        """Whether the way is so short, or its round trips differ by so much, that they tell nothing of a queue.

        So it is where the peer tells of no round trip at all: it may acknowledge by `una` alone.
        """
        if self._is_short and now - self._min_rtt_at > MIN_RTT_TIME:
            self.min_rtt, self._min_rtt_at = self._least_since or self.min_rtt, now
            self._least_since = 0
        is_noise = self._meter.jitter > self.min_rtt * (NOISE_LEFT if self._is_short else 1)
        self._set_short(self.min_rtt < (LONG_RTT if is_noise else SHORT_RTT))

    def _set_short(self, is_short: bool) -> None:
        if is_short and not self._is_short:
            self.state, self.is_shared = State.STARTUP, False  # what comes when it is short no more
        self._is_short = is_short

    def _smooth(self, here: Mark, latest: float, is_limited: bool) -> float:
        """The rate over some rounds: a lost ACK moves what it tells of from one round to the next."""
        marks = self._marks
        if is_limited or (self.state is State.STARTUP and not self._is_short):
            marks.clear()
        while len(marks) > SMOOTHED_ROUNDS and not self._is_short:
            marks.popleft()
        rate = marks[0].rate_until(here) if marks else latest
        marks.append(here)
        return rate

    def _learn_loss(self) -> None:
        if self.state is State.CRUISE and not self._is_loss_known:
            # A queue never leaves: what is made up for may be too much, and that what makes the losses.
            self._steady_lost *= LOSS_DOUBT
        self._is_loss_known = False
        if self._steady_sent >= 1:
            self.loss = min(self._steady_lost / self._steady_sent, 1.0)
        if self._steady_sent > LOSS_SAMPLE:
            self._steady_sent *= LOSS_MEMORY
            self._steady_lost *= LOSS_MEMORY

    def _decide(self, seen: "Round", now: int) -> None:
        state = self.state
        if state is State.STARTUP:
            self._full_rounds = 0 if seen.has_grown or seen.is_limited else self._full_rounds + 1
            is_full = (seen.has_queue and not seen.is_limited) or self._full_rounds >= STARTUP_ROUNDS
            is_full = is_full or self._round_lost > max(STARTUP_LOST, STARTUP_LOSS * self._round_sent)
            if is_full and not self._is_short:
                self._forget_rate(seen.rate)
                self._enter(State.DRAIN, now)
        elif state is State.PROBE_RTT:
            if now - self._state_since >= max(PROBE_RTT_TIME, 2 * self.min_rtt):
                self.min_rtt = self._probe_rtt_least or self.min_rtt
                self._min_rtt_at = now
                self._enter(State.CRUISE, now)
        elif self.loss > LOSS_OF_OURS:
            self._steady_sent, self._steady_lost = LOSS_EXPECTED
            self.is_shared = False
            self._forget_rate(YIELD * seen.rate)
            self._enter(State.PROBE_RTT, now)
        elif now - self._min_rtt_at > MIN_RTT_TIME and not seen.is_limited:
            self._enter(State.PROBE_RTT, now)
        elif self.is_shared:
            self._hold_share(seen, now)
        elif seen.has_queue:
            self._shrink(seen, now)
        elif state is State.PROBE:
            self._judge_probe(seen.latest, now)
        elif state is State.DRAIN:
            self._enter(State.CRUISE, now)
        elif not seen.is_limited:
            self._cruise(seen, now)

    def _cruise(self, seen: "Round", now: int) -> None:
        """No queue: what arrives is what was sent, and says only that the line carries it; less says more."""
        is_short = self._rounds_in_state > 2 and seen.rate < SHORTFALL * self.rate
        self._short_rounds = self._short_rounds + 1 if is_short else 0
        if self._short_rounds >= SHORT_ROUNDS:
            self._forget_rate(seen.rate)
        elif self._rounds_in_state >= CRUISE_ROUNDS:
            self._begin_probe(now)

    def _shrink(self, seen: "Round", now: int) -> None:
        """A queue has stood for a whole round: it is ours, or somebody else's.

        What arrives now is our share of the line. A little less than that leaves room for who has less than we: he
        finds it at his next probe, and so shares become equal (Chiu and Jain, 1989).
        """
        if not seen.is_limited:
            self._steady_lost *= LOSS_DOUBT
        if self.state is State.CRUISE and self._gives_up_for_nothing(now):
            self._share(now, SHARED_TIME_AFTER)
            self._shares.append(self.rate)
        elif self.state is not State.DRAIN:
            self._before_drain = self.rate, self._round_rtt
            self._forget_rate(YIELD * (self.rate if seen.is_limited else seen.rate))
            self._enter(State.DRAIN, now)
        elif self._rounds_in_state < DRAIN_ROUNDS:
            self._drain_on(seen)
        else:
            rate, rtt = self._before_drain
            if self._round_rtt > QUEUE_UNMOVED * rtt:
                self._forget_rate(rate)  # whoever fills the queue has taken what we gave up
            self._share(now, SHARED_TIME)

    def _gives_up_for_nothing(self, now: int) -> bool:
        """Whether a queue has come often in a short time, though we have given way to it each time."""
        self._given_up.append(now)
        if len(self._given_up) < GIVEN_UP_OFTEN or now - self._given_up[0] >= GIVEN_UP_TIME:
            return False
        self._given_up.clear()
        return True

    def _share(self, now: int, time: int) -> None:
        """Others use the line: hold our share for so many ms."""
        self.is_shared, self._shared_until = True, now + time
        self._shares.clear()
        self._probe_gain = SHARED_GAIN
        self._enter(State.PROBE, now)

    def _drain_on(self, seen: "Round") -> None:
        """The queue is still there, as others drain it as well, or fill it. What arrives of what we send tells how far.

        After a probe it is what the line gave us when all asked for more.
        """
        if self._rounds_in_state > 1:
            self._gain = DRAIN_HARD
        if seen.is_limited:
            return
        if self._rounds_in_state > 1:
            self._forget_rate(min(self.rate, seen.latest / self._gains[0]))
        elif self._came_from is State.PROBE:
            self._forget_rate(seen.latest)

    def _hold_share(self, seen: "Round", now: int) -> None:
        """As BBR: the most of what has arrived lately, a probe now and then, whatever the queue."""
        self._shares.append(seen.latest)
        self._forget_rate(max(self._shares))
        if now >= self._shared_until or (not seen.has_queue and self.state is State.CRUISE):
            self.is_shared = False
            self._enter(State.CRUISE, now)
        elif self.state is State.PROBE:
            self._enter(State.DRAIN, now)
        elif self.state is State.DRAIN:
            self._enter(State.CRUISE, now)
        elif self._rounds_in_state >= CRUISE_ROUNDS:
            self._probe_gain = SHARED_GAIN
            self._enter(State.PROBE, now)

    def _begin_probe(self, now: int) -> None:
        self._probe_base = self.rate
        self._probe_size.learn(min(self.loss, LOSS_MOST))
        # Who has little of the line asks for more of it: in segments all probe alike.
        least = max(PROBE_QUEUE / self.min_rtt, PROBE_SEGMENTS / max(self.rate * self.min_rtt, 1.0))
        most = PROBE_MOST if self.rate * self.min_rtt > PROBE_SEGMENTS else 1.0
        self._probe_gain = 1 + max(self._probe_size.part * min(least, most), PROBE_LEAST)
        self._enter(State.PROBE, now)

    def _forget_rate(self, rate: float) -> None:
        self.rate = rate
        self._short_rounds = 0

    def _judge_probe(self, latest: float, now: int) -> None:
        """What a round of probing has sent is seen delivered a round later."""
        if self._rounds_in_state < 2:
            return
        if latest >= self._probe_base * (1 + (self._probe_gain - 1) * PROBE_FOUND):
            self._forget_rate(latest)
            self._marks.clear()
            self._probe_base = self.rate
            self._probe_gain = min(1 + 2 * (self._probe_gain - 1), 2.0)
            self._enter(State.PROBE, now)
        else:
            self._enter(State.CRUISE, now)
            self._gain = max(1 - self._meter.queue / self.min_rtt, DRAIN_GAIN)  # what it has queued goes at once

    def _enter(self, state: State, now: int) -> None:
        drain = DRAIN_HARD if self.state is State.STARTUP else DRAIN_GAIN
        self._came_from, self.state = self.state, state
        self._state_since = now
        self._rounds_in_state = self._probe_rtt_least = 0
        self._gain = {State.DRAIN: drain, State.PROBE: self._probe_gain}.get(state, 1.0)

    def _set_window(self) -> None:
        if self._is_short:
            fill = self.rate * (self.min_rtt + ACK_DELAY)
            self.window = min(int(fill) + SHORT_MORE, SHORT_WINDOW, self._window_max)
        elif self.state is not State.STARTUP:
            fill = self._sending_rate * (self.min_rtt + ACK_DELAY)
            most = PROBE_RTT_PART * self._full_line if self.state is State.PROBE_RTT else 2 * fill
            self.window = min(max(int(most), WINDOW_LEAST), self._window_max)
