"""Times that the docs promise; other tests take them from the code, and would not notice that one has changed."""

from kcptun_lite.app import listening
from kcptun_lite.app.client import REDIAL_PAUSE
from kcptun_lite.app.path_manager import FIRST_PAUSE, LAST_PAUSE
from kcptun_lite.app.tunnel import FLUSH_LIMIT, STOP_LIMIT
from kcptun_lite.core.kcp.restart import RESTART_AFTER
from kcptun_lite.core.streams import KEEPALIVE_TIMEOUT
from kcptun_lite.net.ends.route import BENCH_TIME
from kcptun_lite.net.session import peer_watch as watch
from kcptun_lite.net.session.stream import CUT_WITHIN
from kcptun_lite.net.tcp.target import CONNECT_TIMEOUT


def test_the_times_of_reliability_md() -> None:
    assert RESTART_AFTER == 300
    assert (watch.PROBE_TIMEOUT, watch.SILENCE) == (1_000, 3_000)
    assert (FIRST_PAUSE, LAST_PAUSE) == (500, 15_000)
    assert KEEPALIVE_TIMEOUT == watch.DEAD_AFTER == 75_000
    assert (watch.UNHEARD_AFTER, watch.REFUSED_AFTER, watch.IDLE_DEAD_AFTER) == (20_000, 5_000, 20_000)
    assert (FLUSH_LIMIT, STOP_LIMIT) == (1_500, 2_500)
    assert listening.PATIENCE == 5


def test_times_that_depend_on_each_other() -> None:
    assert CONNECT_TIMEOUT < CUT_WITHIN, "a target that is not reached is told as such"
    assert CONNECT_TIMEOUT == 10_000
    assert LAST_PAUSE < BENCH_TIME == 60_000, "a dead server has no turn before the others had theirs"
    assert REDIAL_PAUSE == 1.0, "as kcptun"
