"""Every counter has its column, in kcp-go's order, and sums are sums."""

from kcptun_lite.core.counters import CSV_COLUMNS, Counters, total

# docs/protocol.md, "Counters", the 2021 generation's header without its first column
HEADER_2021 = (
    "BytesSent,BytesReceived,MaxConn,ActiveOpens,PassiveOpens,CurrEstab,InErrs,InCsumErrors,KCPInErrors,InPkts,OutPkts,"
    "InSegs,OutSegs,InBytes,OutBytes,RetransSegs,FastRetransSegs,EarlyRetransSegs,LostSegs,RepeatSegs,FECParityShards,"
    "FECErrs,FECRecovered,FECShortShards"
).split(",")


def test_columns_begin_with_those_of_2021() -> None:
    assert list(CSV_COLUMNS)[: len(HEADER_2021)] == HEADER_2021


def test_every_counter_has_one_column() -> None:
    names = list(CSV_COLUMNS.values())
    assert sorted(names) == sorted(Counters.__annotations__)
    assert len(set(names)) == len(names)


def test_a_new_one_is_all_zeros() -> None:
    counters = Counters()
    assert all(getattr(counters, name) == 0 for name in CSV_COLUMNS.values())


def test_counting_in_one_is_not_seen_in_another() -> None:
    one, other = Counters(), Counters()
    one.lost += 3
    assert (one.lost, other.lost, Counters().lost) == (3, 0, 0)


def test_total_adds_every_counter() -> None:
    parts = []
    for factor in (1, 10, 100):
        part = Counters()
        for number, name in enumerate(CSV_COLUMNS.values()):
            setattr(part, name, factor * number)
        parts.append(part)
    result = total(parts)
    assert [getattr(result, name) for name in CSV_COLUMNS.values()] == [111 * n for n in range(len(CSV_COLUMNS))]
    assert parts[0].repeated * 10 == parts[1].repeated  # the parts stay as they were


def test_total_of_nothing_is_nothing() -> None:
    assert total([]) == Counters()
    assert total([Counters(lost=1)]) != Counters()
