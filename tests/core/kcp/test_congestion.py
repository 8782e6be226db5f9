"""The congestion window of kcp-go."""

from kcptun_lite.core.kcp.congestion import KcpCongestionWindow


def test_slow_start_then_avoidance() -> None:
    congestion = KcpCongestionWindow(10_000, 1000, resend=2)
    congestion.on_progress(100)
    assert congestion.cwnd == 2  # below ssthresh (2): one more for each progress
    grown = [congestion.cwnd]
    for _ in range(40):
        congestion.on_progress(100)
        grown.append(congestion.cwnd)
    assert grown == sorted(grown)
    # One round trip is cwnd steps and gives one segment (RFC 5681), and mss/16 comes on top for each step.
    assert 8 <= congestion.cwnd <= 12


def test_congestion_window_stays_within_the_peers() -> None:
    congestion = KcpCongestionWindow(10_000, 1000, resend=2)
    for _ in range(200):
        congestion.on_progress(5)
    assert congestion.cwnd == 5


def test_losses_shrink_the_congestion_window() -> None:
    congestion = KcpCongestionWindow(10_000, 1000, resend=2)
    for _ in range(100):
        congestion.on_progress(1000)
    congestion.on_retransmission(20, 1000, skipped=True, timed_out=False)
    assert (congestion.ssthresh, congestion.cwnd) == (10, 12)
    congestion.on_retransmission(20, 12, skipped=False, timed_out=True)
    assert (congestion.ssthresh, congestion.cwnd) == (6, 1)
    congestion.on_retransmission(1, 12, skipped=True, timed_out=False)
    assert (congestion.ssthresh, congestion.cwnd) == (2, 4)
