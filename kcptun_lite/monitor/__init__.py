"""kcptun-lite-monitor: shows tunnels in a terminal, in a browser and to Prometheus. A program of its own."""
