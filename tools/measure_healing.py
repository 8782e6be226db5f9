"""How long the tunnel is out of order after a restart, a new address, a dead path: ours beside the real program.

In      which programs; nothing else
Out     a table of seconds, for docs/reliability.md
Knows   the programs from outside, the lossy proxy. Not: why it takes as long as it does
Cost    up to ten minutes with the real program, which waits for its timeouts

"open stream" is one that was there before, asked a byte every 50 ms; "new connection" is a fresh one, tried again
every second. The clock runs from the moment the server, or the link, is well again; for a new address and a silent
path from the moment it becomes so.

    python tools/measure_healing.py --pairs ours:ours ours:go go:go
"""

import argparse
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, start_client, start_server  # noqa: E402
from tests.traffic import Target, connect, echo_handler, receive_exactly  # noqa: E402
from tools.lossy_proxy import Link, LossyProxy  # noqa: E402

OPTIONS = {"mode": "fast2", "sndwnd": 512, "rcvwnd": 512}
WARM_UP = 4 << 20  # bytes echoed first, so that segment numbers are far beyond any window
PATIENCE = 150.0  # s; the real program needs 90 at most
OUTAGE = 20.0  # s that the link is cut


class Pulse:
    """A stream that asks for an echo every 50 ms, and how long it has been without one."""

    def __init__(self, peer_socket: str) -> None:
        self._sock = connect(peer_socket, timeout=PATIENCE)
        self._over = threading.Event()
        self.is_lost = False
        self.beats = 0
        self._thread = threading.Thread(target=self._run, name="pulse")
        for _ in range(WARM_UP // 65_536):
            self._sock.sendall(bytes(65_536))
            receive_exactly(self._sock, 65_536)
        self._thread.start()

    def __enter__(self) -> "Pulse":
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._sock.close()

    def _run(self) -> None:
        try:
            while not self._over.wait(0.05):
                self._sock.sendall(b".")
                receive_exactly(self._sock, 1)
                self.beats += 1
        except OSError:
            self.is_lost = True


def connection_works(peer_socket: str) -> bool:
    with suppress(OSError), connect(peer_socket, timeout=1.0) as sock:
        sock.sendall(b"hello")
        return receive_exactly(sock, 5) == b"hello"
    return False


def seconds_until(condition: Callable[[], bool], since: float) -> float | None:
    while monotonic() - since < PATIENCE:
        if condition():
            return monotonic() - since
        sleep(0.02)
    return None


def told(pulse: Pulse, peer_socket: str, since: float) -> tuple[str, str]:
    """What became of the open stream, and when a new connection works."""
    beats = pulse.beats
    found: list[float | None] = []
    fresh = threading.Thread(target=lambda: found.append(seconds_until(lambda: connection_works(peer_socket), since)))
    fresh.start()
    back = seconds_until(lambda: pulse.is_lost or pulse.beats > beats + 1, since)
    fresh.join()
    stream = "hangs" if back is None else f"reset after {back:.1f}" if pulse.is_lost else f"goes on after {back:.1f}"
    return stream, "never" if found[0] is None else f"{found[0]:.1f}"


class Scene:
    """A tunnel through the proxy with a pulse in it."""

    def __init__(self, client: str, server: str, target: str, stack: ExitStack) -> None:
        self._server_kind, self._target = server, target
        self.server, self.address = start_server(server, {**OPTIONS, "target": target})
        self.proxy = stack.enter_context(LossyProxy(self.address, Link()))
        self.client, self.peer_socket = start_client(client, {**OPTIONS, "remoteaddr": self.proxy.address})
        stack.callback(self.client.stop, signal.SIGKILL)
        stack.callback(lambda: self.server.stop(signal.SIGKILL))
        self.pulse = stack.enter_context(Pulse(self.peer_socket))
        sleep(1)

    def restart_server(self) -> None:
        self.server.stop(signal.SIGKILL)
        self.server, _ = start_server(self._server_kind, {**OPTIONS, "target": self._target, "listen": self.address})

    def outage(self) -> None:
        self.proxy.change(Link(loss=1.0))
        sleep(OUTAGE)
        self.proxy.change(Link())


EVENTS: dict[str, Callable[[Scene], None]] = {
    "server killed and started again": Scene.restart_server,
    "client has a new address": lambda scene: scene.proxy.rebind(),
    "path of the socket goes silent": lambda scene: scene.proxy.blackhole(),
    f"link cut for {OUTAGE:g} s": Scene.outage,
}


def measure_events(client: str, server: str) -> None:
    with Target(echo_handler) as target:
        for name, event in EVENTS.items():
            with ExitStack() as stack:
                scene = Scene(client, server, target.address, stack)
                event(scene)
                stream, fresh = told(scene.pulse, scene.peer_socket, monotonic())
                print(f"| {client} / {server} | {name} | {stream} | {fresh} |", flush=True)


def measure_failover() -> None:
    """The first server of several is dead from the start, or dies; only ours takes several."""
    with Target(echo_handler) as target, ExitStack() as stack:
        silent = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        silent.bind(("127.0.0.1", 0))
        servers: list[Program] = []
        addresses = []
        for _ in range(2):
            server, address = start_server("ours", {**OPTIONS, "target": target.address})
            stack.callback(server.stop, signal.SIGKILL)
            servers.append(server)
            addresses.append(address)
        dead = f"127.0.0.1:{silent.getsockname()[1]}"
        for name, list_of_servers in (("first server dead from the start", [dead, *addresses]), ("", addresses)):
            client, peer_socket = start_client("ours", {**OPTIONS, "remoteaddr": ",".join(list_of_servers)})
            stack.callback(client.stop, signal.SIGKILL)
            if name:
                start = monotonic()
                with connect(peer_socket, timeout=PATIENCE) as sock:
                    sock.sendall(b"x")
                    receive_exactly(sock, 1)
                print(f"| ours / ours | {name} | goes on after {monotonic() - start:.1f} | |", flush=True)
                continue
            pulse = stack.enter_context(Pulse(peer_socket))
            servers[0].stop(signal.SIGKILL)
            stream, fresh = told(pulse, peer_socket, monotonic())
            print(f"| ours / ours | the server in use dies, another one is there | {stream} | {fresh} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", nargs="+", default=["ours:ours", "ours:go", "go:go"], metavar="CLIENT:SERVER")
    given = parser.parse_args()
    print("| client / server | event | open stream (s) | new connection (s) |\n|---|---|---|---|")
    measure_failover()
    for pair in given.pairs:
        measure_events(*pair.split(":"))


if __name__ == "__main__":
    main()
