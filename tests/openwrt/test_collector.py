"""The collector for prometheus-node-exporter-lua, run by Lua over what a real tunnel has written."""

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.monitor.statuses import session, status
from tests.monitor.test_metrics import DASHBOARD, expressions, scrape
from tests.openwrt import device
from tests.openwrt.device import ROOT
from tests.programs import Tunnel, require, wait_until
from tests.traffic import Target, connect, exchange, exchange_handler

PACKAGE = "prometheus-node-exporter-lua-kcptun-lite"
COLLECTOR = ROOT / "openwrt" / PACKAGE / "files" / "kcptun_lite.lua"
PLACE = "/var/run/kcptun-lite"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture(autouse=True)
def lua() -> None:
    require("lua5.1")
    if subprocess.run(["lua5.1", "-e", "require 'cjson'"], capture_output=True).returncode:
        text = "Lua has no cjson (Debian's lua-cjson)"
        pytest.fail(text) if os.environ.get("CI") else pytest.skip(text)


def collect(directory: Path) -> tuple[str, Samples]:
    """The collector's text, and what Prometheus' own parser makes of it; its files are below `directory`."""
    script = directory / "collector.lua"
    source = COLLECTOR.read_text()
    assert source.count(PLACE) == 1
    script.write_text(source.replace(PLACE, str(directory)))
    exporter = Path(__file__).with_name("exporter.lua")
    done = subprocess.run(["lua5.1", str(exporter), str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    samples: Samples = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(done.stdout)
        for sample in family.samples
    }
    return done.stdout, samples


def test_a_real_tunnel_is_told_as_the_monitor_tells_it(tmp_path: Path) -> None:
    """So that one dashboard shows both."""
    path = tmp_path / "home.json"
    with (
        Target(exchange_handler) as target,
        Tunnel("ours", "ours", target.address, client_options={"status": path}) as tunnel,
    ):
        exchange(connect(tunnel.address), up=1000, down=500_000, seed=1)
        wait_until(
            lambda: json.loads(path.read_bytes())["bytes_in"] > 500_000 if path.exists() else False, "it is told"
        )
        text, found = collect(tmp_path)
        monitored = scrape(path)
        names = {name for name, _ in found}
        assert names <= {name for name, _ in monitored}
        used = set(re.findall(r"\bkcptun_\w+", " ".join(expressions(json.loads(DASHBOARD.read_text())))))
        assert used <= names
        assert {labels for name, labels in found if name == "kcptun_session_rtt_seconds"} == {
            labels for name, labels in monitored if name == "kcptun_session_rtt_seconds"
        }
        for key in (
            ("kcptun_bytes_total", (("direction", "in"), ("tunnel", "home"))),
            ("kcptun_retransmitted_segments_total", (("reason", "timeout"), ("tunnel", "home"))),
            ("kcptun_up", (("tunnel", "home"),)),
        ):
            assert found[key] == monitored[key]
        for line in text.splitlines():  # a family stands together: Prometheus takes no second TYPE
            assert text.count(line + "\n") == 1 or not line.startswith("#")
    assert collect(tmp_path)[1] == {}, "the tunnel has gone, and its file with it"


def test_what_is_left_behind_or_no_status_is_down(tmp_path: Path) -> None:
    tmp_path.joinpath("killed.json").write_text(json.dumps(status(pid=1)))
    tmp_path.joinpath("old.json").write_text('{"pid": 1, "role": "client"}')
    tmp_path.joinpath("half.json").write_text('{"pid": 1, "sch')
    tmp_path.joinpath("empty.json").touch()
    _, found = collect(tmp_path)
    assert found == {("kcptun_up", (("tunnel", name),)): 0 for name in ("killed", "old", "half", "empty")}


def test_unknown_values_are_left_out_and_labels_escaped(tmp_path: Path) -> None:
    own = Path("/proc/self/comm").read_text().strip()
    odd = session(loss=None, rtt_least_ms=None, remote='a"b\\c\nd')
    tmp_path.joinpath("home.json").write_text(json.dumps(status(pid=os.getpid(), sessions=[odd])))
    source = COLLECTOR.read_text()
    assert '== "kcptun-lite"' in source
    script = tmp_path / "collector.lua"
    script.write_text(
        source.replace(PLACE, str(tmp_path)).replace("name:sub(1, 11)", f"name == '{own}\\n' and \"kcptun-lite\"")
    )
    exporter = Path(__file__).with_name("exporter.lua")
    text = subprocess.run(["lua5.1", str(exporter), str(script)], capture_output=True, text=True, check=True).stdout
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    assert {sample.labels["remote"] for sample in samples if "remote" in sample.labels} == {'a"b\\c\nd'}
    assert not [
        sample for sample in samples if sample.name in ("kcptun_session_loss_ratio", "kcptun_session_rtt_least_seconds")
    ]


def test_the_package(tmp_path: Path) -> None:
    declared = {
        field: value
        for package, field, value in (line.split("|") for line in device.make(PACKAGE, "info").splitlines())
        if package == PACKAGE
    }
    assert declared["DEPENDS"].split() == ["prometheus-node-exporter-lua", "+lua-cjson", "+kcptun-lite"]
    assert declared["PKGARCH"] == "all"
    device.make(PACKAGE, PACKAGE, f"SDK_ROOT={tmp_path}/root", f"SDK_BUILD={tmp_path}/build")
    files = [str(path.relative_to(tmp_path / "root")) for path in (tmp_path / "root").rglob("*") if path.is_file()]
    assert files == ["usr/lib/lua/prometheus-collectors/kcptun_lite.lua"]
