"""The CSV file and the SIGUSR1 line, against kcptun's own output."""

import csv
import time
from pathlib import Path

import pytest

from kcptun_lite import log
from kcptun_lite.app import stats
from kcptun_lite.app.stats import SnmpLog, csv_header, csv_line, go_time_format, snmp_line
from kcptun_lite.core.counters import CSV_COLUMNS, Counters
from kcptun_lite.errors import ConfigError

# Real output of kcptun 20210922 (docs/protocol.md, "Counters", "Log and signals").
HEADER_2021 = (
    "Unix,BytesSent,BytesReceived,MaxConn,ActiveOpens,PassiveOpens,CurrEstab,InErrs,InCsumErrors,KCPInErrors,InPkts,"
    "OutPkts,InSegs,OutSegs,InBytes,OutBytes,RetransSegs,FastRetransSegs,EarlyRetransSegs,LostSegs,RepeatSegs,"
    "FECParityShards,FECErrs,FECRecovered,FECShortShards"
)
LINE_2021 = (
    "KCP SNMP:&{BytesSent:51 BytesReceived:31 MaxConn:1 ActiveOpens:1 PassiveOpens:0 CurrEstab:1 InErrs:0 "
    "InCsumErrors:0 KCPInErrors:0 InPkts:3 OutPkts:6 InSegs:4 OutSegs:6 InBytes:151 OutBytes:363 RetransSegs:0 "
    "FastRetransSegs:0 EarlyRetransSegs:0 LostSegs:0 RepeatSegs:0 FECRecovered:7 FECErrs:8 FECParityShards:9 "
    "FECShortShards:10"
)
COUNTERS = Counters(
    bytes_sent=51,
    bytes_received=31,
    max_connections=1,
    active_opens=1,
    current_established=1,
    in_packets=3,
    out_packets=6,
    in_segments=4,
    out_segments=6,
    in_bytes=151,
    out_bytes=363,
    fec_recovered=7,
    fec_errors=8,
    fec_parity=9,
    fec_short=10,
    send_drops=11,
)
MOMENT = time.strptime("2021-02-03 16:05:06", "%Y-%m-%d %H:%M:%S")


def test_the_header_begins_with_kcptuns() -> None:
    assert csv_header().startswith(HEADER_2021 + ",") and csv_header().endswith("\n")


def test_a_line_fits_its_header() -> None:
    (row,) = csv.DictReader([csv_header(), csv_line(COUNTERS, 1611111111)])
    assert row["Unix"] == "1611111111"
    assert (row["BytesSent"], row["FECParityShards"], row["FECShortShards"]) == ("51", "9", "10")
    assert len(row) == len(CSV_COLUMNS) + 1


def test_the_signals_line_begins_with_kcptuns_and_has_every_counter() -> None:
    line = snmp_line(COUNTERS)
    assert line.startswith(LINE_2021 + " SendDrops:11") and line.endswith("}")
    assert line.count(":") == len(CSV_COLUMNS) + 1


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("snmp-20060102.log", "snmp-20210203.log"),
        ("2006-1-2_15h04m05s", "2021-2-3_16h05m06s"),
        ("06 Jan January Mon Monday", "21 Feb February Wed Wednesday"),
        ("03 3 PM pm 4 5", "04 4 PM pm 5 6"),
        ("002 __2 _2 _2006", "034  34  3 _2021"),
        ("Janet Monitor plain", "Janet Monitor plain"),
        ("2017-x.log", "3027-x.log"),
        ("", ""),
    ],
)
def test_gos_time_layout(layout: str, expected: str) -> None:
    assert go_time_format(layout, MOMENT) == expected


def test_gos_time_layout_at_midnight_and_noon() -> None:
    assert go_time_format("3 03 PM", time.strptime("00", "%H")) == "12 12 AM"
    assert go_time_format("3 03 pm", time.strptime("12", "%H")) == "12 12 pm"


def test_gos_time_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "XYZ-5:30")
    time.tzset()
    try:
        assert go_time_format("MST -0700 -07:00 -07", time.localtime(0)) == "XYZ +0530 +05:30 +05"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_lines_come_a_period_apart_under_one_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "time", lambda: 1612368306.9)
    (tmp_path / "06").mkdir()
    snmp_log = SnmpLog(str(tmp_path / "06" / "snmp-2006.csv"), 60)
    for now in range(500, 200_500, 1000):
        snmp_log.tick(now, lambda: COUNTERS)
    (path,) = (tmp_path / "06").iterdir()  # only the last part of the path is a layout
    assert path.name == "snmp-2021.csv"
    assert path.read_text() == csv_header() + csv_line(COUNTERS, 1612368306) * 3


def test_a_late_tick_writes_one_line_only(tmp_path: Path) -> None:
    snmp_log = SnmpLog(str(tmp_path / "x"), 1)
    for now in (0, 10_500, 10_900, 11_000):
        snmp_log.tick(now, lambda: COUNTERS)
    assert (tmp_path / "x").read_text().count("\n") == 3


@pytest.mark.parametrize(("path", "period"), [("", 60), ("x", 0)])
def test_nothing_is_written_without_a_path_or_a_period(
    path: str, period: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    snmp_log = SnmpLog(path, period)
    snmp_log.tick(0, lambda: COUNTERS)
    snmp_log.tick(10_000_000, lambda: COUNTERS)
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_is_said_and_survived(tmp_path: Path) -> None:
    log.setup(path=str(tmp_path / "log"))
    snmp_log = SnmpLog(str(tmp_path / "missing" / "x"), 1)
    for now in (0, 1000, 2000):
        snmp_log.tick(now, lambda: COUNTERS)
    log.setup()
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert lines[0].endswith(f"warning: --snmplog: {tmp_path}/missing/x cannot be written: No such file or directory")


def test_only_files_and_the_like_are_written_to(tmp_path: Path) -> None:
    SnmpLog("/dev/null", 1).check()
    SnmpLog("", 1).check()
    SnmpLog(str(tmp_path / "missing" / "x"), 0).check()
    for path, reason in (("/dev/zero", "it is a device"), (f"{tmp_path}/missing/x", "No such file")):
        with pytest.raises(ConfigError, match=reason):
            SnmpLog(path, 1).check()


def test_a_check_leaves_no_file_behind(tmp_path: Path) -> None:
    SnmpLog(str(tmp_path / "x"), 1).check()
    assert not list(tmp_path.iterdir())
