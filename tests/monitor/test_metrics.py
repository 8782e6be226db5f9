"""The numbers for Prometheus: all of them, in its units, fresh at each scrape; and the dashboard knows their names."""

import json
import re
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from kcptun_lite.core.counters import CSV_COLUMNS
from kcptun_lite.monitor.metrics import COUNTERS, NO_COUNTERS, Tunnels
from tests.monitor.statuses import session, teller

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"


def scrape(*paths: Path) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """(name, labels) -> value."""
    registry = CollectorRegistry()
    registry.register(Tunnels([str(path) for path in paths]))
    text = generate_latest(registry).decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_every_counter_has_a_name() -> None:
    assert set(COUNTERS) | set(NO_COUNTERS) == set(CSV_COLUMNS)
    places = [(counter.name, *counter.labels.items()) for counter in COUNTERS.values()]
    assert len(set(places)) == len(places)
    helps = {counter.name: {other.help for other in COUNTERS.values() if other.name == counter.name}
             for counter in COUNTERS.values()}  # fmt: skip
    assert all(len(found) == 1 for found in helps.values())


def test_tunnels_that_run_and_one_that_does_not(tmp_path: Path) -> None:
    paths = [tmp_path / "home.json", tmp_path / "hub.json", tmp_path / "gone.json"]
    with teller(paths[0]) as home, teller(paths[1]) as hub:
        hub.status |= {"role": "server", "sessions": [session(loss=None, rtt_least_ms=None, remote='"\\\n')]}
        home.status["last_diagnosis"] = "nothing comes back"
        found = scrape(*paths)
        assert [found[key("kcptun_up", tunnel=name)] for name in ("home", "hub", "gone")] == [1, 1, 0]
        assert [found[key("kcptun_trouble", tunnel=name)] for name in ("home", "hub")] == [1, 0]
        numbers = {name: number for number, name in enumerate(CSV_COLUMNS)}
        assert found[key("kcptun_bytes_total", tunnel="home", direction="in")] == numbers["BytesReceived"]
        assert found[key("kcptun_packets_total", tunnel="home", direction="out")] == numbers["OutPkts"]
        lost = found[key("kcptun_retransmitted_segments_total", tunnel="hub", reason="timeout")]
        assert lost == numbers["LostSegs"]
        assert found[key("kcptun_memory_bytes", tunnel="hub", purpose="sending")] == 1
        who = {"tunnel": "home", "remote": "198.51.100.7:29900", "session": "001a2b3c"}
        assert found[key("kcptun_session_rtt_seconds", **who)] == 0.182
        assert found[key("kcptun_session_loss_ratio", **who)] == 0.015
        assert found[key("kcptun_session_bytes_total", **who, direction="out")] == 2000
        assert found[key("kcptun_tunnel_info", tunnel="hub", role="server", version="0.1.0")] == 1
        assert [name for name, labels in found if "loss_ratio" in name and ("tunnel", "hub") in labels] == []
        home.status["counters"]["BytesReceived"] = 77
        assert scrape(*paths)[key("kcptun_bytes_total", tunnel="home", direction="in")] == 77
        assert not [name for name, labels in found if ("tunnel", "gone") in labels and name != "kcptun_up"]


def expressions(found: Any) -> list[str]:
    """All queries of a dashboard."""
    if isinstance(found, list):
        return [text for item in found for text in expressions(item)]
    if not isinstance(found, dict):
        return []
    own = [value for name, value in found.items() if name in ("expr", "query", "definition") and isinstance(value, str)]
    return own + [text for item in found.values() for text in expressions(item)]


def test_the_dashboard_names_what_there_is(tmp_path: Path) -> None:
    with teller(tmp_path / "home.json"):
        names = {name for name, _ in scrape(tmp_path / "home.json")}
    used = set(re.findall(r"\bkcptun_\w+", " ".join(expressions(json.loads(DASHBOARD.read_text())))))
    assert len(used) > 10
    assert used <= names, "an old name, or a mistyped one"


def test_the_page_names_all_metrics_and_no_others(tmp_path: Path) -> None:
    with teller(tmp_path / "home.json"):
        names = {name for name, _ in scrape(tmp_path / "home.json")}
    page = (DASHBOARD.parent / "monitor.md").read_text(encoding="utf-8")
    assert set(re.findall(r"`(kcptun_\w+)`", page)) == names
