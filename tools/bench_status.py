"""What the status costs: an idle client without it, with its file, and with a viewer at its socket.

    python tools/bench_status.py [SECONDS]

In      how long each is watched
Out     processor time as a share of a core, and resident memory before and after
Knows   processes. Not: what is in a status
"""

import socket
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from time import sleep

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.programs import Program, Tunnel  # noqa: E402
from tests.traffic import Target, connect, echo_handler  # noqa: E402

CONNECTIONS = 10
SETTLE = 12  # s until buffers of the start are given back
MIB = 1 << 20


def busy(program: Program) -> float:
    """Seconds of processor time so far."""
    usage = program.usage()
    return usage.user + usage.system


def read_all(sock: socket.socket, lines: list[int]) -> None:
    with suppress(OSError), sock.makefile("rb") as file:
        lines.extend(len(line) for line in file)


def measure(target: str, status: Path | None, seconds: float, *, with_viewer: bool) -> None:
    options = {"status": status} if status else {}
    with Tunnel("ours", "ours", target, client_options=options) as tunnel:
        socks = [connect(tunnel.address) for _ in range(CONNECTIONS)]
        for sock in socks:
            sock.sendall(b"x")
            sock.recv(1)
        sleep(SETTLE)
        before, lines = tunnel.client.rss(), list[int]()
        reader = None
        if with_viewer:
            viewer = socket.socket(socket.AF_UNIX)
            viewer.connect(f"{status}.sock")
            reader = threading.Thread(target=read_all, args=(viewer, lines))
            reader.start()
        since = busy(tunnel.client)
        sleep(seconds)
        share = (busy(tunnel.client) - since) / seconds
        after = tunnel.client.rss()
        if reader:
            viewer.shutdown(socket.SHUT_RDWR)
            reader.join()
            viewer.close()
        for sock in socks:
            sock.close()
    what = "viewer" if with_viewer else "file" if status else "none"
    print(f"{what:7}{100 * share:.2f} % of a core, {before / MIB:.2f} MiB -> {after / MIB:.2f}", end="")
    print(f", {len(lines)} lines of {max(lines)} bytes" if lines else "", flush=True)


def main() -> None:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    with tempfile.TemporaryDirectory() as name, Target(echo_handler) as target:
        for status, with_viewer in ((None, False), (Path(name) / "s.json", False), (Path(name) / "s.json", True)):
            measure(target.address, status, seconds, with_viewer=with_viewer)


if __name__ == "__main__":
    main()
