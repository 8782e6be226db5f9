"""A real Prometheus scrapes the monitor, which reads a real tunnel; promtool likes the names.

make test-monitor
"""

import json
import socket
import subprocess
import sys
import urllib.parse
import urllib.request
from pathlib import Path

from tests.programs import Program, Tunnel, free_address, require, wait_until
from tests.traffic import Target, connect, exchange, exchange_handler

PATIENCE = 60.0  # s


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
        return str(answer.read().decode())


def test_a_real_prometheus_scrapes_a_real_tunnel(tmp_path: Path) -> None:
    require("prometheus", "promtool")
    status = tmp_path / "home.json"
    place, prometheus_place = (free_address("127.0.0.1:0", socket.SOCK_STREAM) for _ in range(2))
    config = tmp_path / "prometheus.yml"
    config.write_text(
        "scrape_configs:\n  - job_name: kcptun\n    scrape_interval: 1s\n"
        f'    static_configs:\n      - targets: ["{place}"]\n'
    )
    command = [sys.executable, "-m", "kcptun_lite.monitor", "--metrics", place, str(tmp_path)]

    def ask(query: str) -> list[float]:
        """The values that Prometheus has for a query now."""
        url = f"http://{prometheus_place}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        try:
            found = json.loads(fetch(url))
        except OSError:  # it is starting
            return []
        return [float(result["value"][1]) for result in found["data"]["result"]]

    with Target(exchange_handler) as target:
        with Tunnel("ours", "ours", target.address, client_options={"status": status}) as tunnel:
            monitor = Program("monitor", command)
            prometheus = Program(
                "prometheus",
                ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path / 'data'}",
                 f"--web.listen-address={prometheus_place}"],
            )  # fmt: skip
            try:
                monitor.wait_for_log("metrics at")
                exchange(connect(tunnel.address), up=1000, down=1_000_000, seed=1)
                wait_until(lambda: ask('kcptun_up{tunnel="home",job="kcptun"}') == [1], "it is scraped", PATIENCE)
                text = fetch(f"http://{place}/metrics")
                done = subprocess.run(
                    ["promtool", "check", "metrics"], input=text, capture_output=True, text=True, timeout=PATIENCE
                )
                assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
                received = 'kcptun_bytes_total{tunnel="home",direction="in"}'
                wait_until(lambda: sum(ask(received)) > 1_000_000, "what has moved is counted", PATIENCE)
                before = sum(ask(received))
                exchange(connect(tunnel.address), up=1000, down=1_000_000, seed=1)
                wait_until(lambda: sum(ask(received)) > before + 1_000_000, "each scrape is fresh", PATIENCE)
                assert ask("kcptun_session_rtt_seconds < 1") and ask("kcptun_session_loss_ratio <= 1")
                tunnel.client.stop()
                wait_until(lambda: ask("kcptun_up") in ([0], []), "its end is seen", PATIENCE)
                assert ask("up") == [1], "the monitor goes on"
            finally:
                prometheus.stop()
                monitor.stop()
