"""Owed acknowledgements: which timestamp is told, and what is told twice."""

from kcptun_lite.core.kcp.acks import AckList


def test_a_segment_that_comes_early_twice_is_acknowledged_with_the_timestamp_that_came_first() -> None:
    acks = AckList()
    acks.early(5, 100)
    acks.early(7, 110)
    acks.early(5, 120)
    assert acks.pending(3) == [(7, 110), (5, 100)]


def test_what_comes_in_order_is_acknowledged_by_its_last_segment() -> None:
    acks = AckList()
    acks.in_order(3, 100)
    acks.in_order(4, 101)
    acks.again(4, 150)
    assert acks.pending(5) == [(4, 101)]
    acks.again(2, 160)
    assert acks.pending(5) == [(2, 160)]


def test_what_una_tells_needs_no_acknowledgement_of_its_own_but_the_last() -> None:
    acks = AckList()
    acks.early(5, 100)
    acks.early(6, 101)
    assert acks.pending(6) == [(6, 101)]
    assert acks.pending(7) == [(6, 101)]


def test_acknowledgements_of_early_segments_go_twice_where_that_is_agreed() -> None:
    acks = AckList()
    acks.says_twice = True
    acks.early(5, 100)
    acks.clear()
    assert acks.pending(3) == [(5, 100)]
    acks.clear()
    assert acks.pending(3) == []
