"""What clients notice when one of two servers behind a balancer dies, goes silent, is drained, comes back.

In      kinds of clients and of balancers; no more
Out     a table of seconds, for docs/scaling.md
Knows   the programs from outside, network namespaces; needs root, nginx, nftables, curl. Not: the wire
Cost    ten seconds for each case with our client; up to three minutes with the real one, which waits for its timeouts

"without service" is the longest time in which no new connection was answered; one is tried five times a second, and
given up after a second. "open stream" is one on the server that it happens to, asked a byte every 50 ms.

    python tools/measure_balancers.py                       # ours and Debian's, all balancers
    python tools/measure_balancers.py --clients ours --balancers nginx --events killed
"""

import argparse
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.balancers import BALANCERS, Backend, Machines  # noqa: E402
from tests.programs import wait_until  # noqa: E402

PATIENCE = 150.0  # s; the real program needs 90 at most
AT_LEAST = 8.0  # s that are looked at, whatever comes
DRAIN = 10  # s
PAUSE = 0.2  # s between two tries
BEAT = 0.05  # s
HANGING = 1.0  # s without an echo

EVENTS: dict[str, Callable[[Backend], None]] = {
    "killed": Backend.kill,
    "silent": Backend.silence,
    "drained": Backend.drain,
    "comes back": Backend.come_back,
}


class Pulse(threading.Thread):
    """A stream that asks for an echo again and again, until it is lost."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(daemon=True)
        self._connection = connection
        self._connection.settimeout(PATIENCE)
        self.lost_at: float | None = None
        self.beaten_at = monotonic()
        self.start()

    @property
    def hangs(self) -> bool:
        """Whether it is neither lost nor answered."""
        return self.lost_at is None and monotonic() - self.beaten_at > HANGING

    def run(self) -> None:
        try:
            while True:
                self._connection.sendall(b".")
                if not self._connection.recv(1):
                    break
                self.beaten_at = monotonic()
                sleep(BEAT)
        except OSError:
            pass
        self.lost_at = monotonic()


def measure(client: str, balancer: str, event: str) -> tuple[str, str]:
    """Without service, and what became of the open stream."""
    with ExitStack() as stack, tempfile.TemporaryDirectory() as directory:
        machines = Machines(stack, balancer, Path(directory), drain=DRAIN)
        machines.dial(client)
        wait_until(machines.works, "the first connection")
        connection, backend = machines.connect()
        if event == "comes back":  # the other one than this stream's has been away
            connection.close()
            backend.kill()
            try:
                wait_until(lambda: machines.works(unless=lambda one: one is backend), "the other one", PATIENCE)
            except AssertionError:
                return "it never left", ""
            sleep(AT_LEAST)
            connection, _ = machines.connect()
        pulse = Pulse(connection)
        began = last = monotonic()
        EVENTS[event](backend)
        without, has_moved = 0.0, event == "comes back"
        while monotonic() < began + AT_LEAST or (
            (not has_moved or monotonic() > last + HANGING) and monotonic() < began + PATIENCE
        ):
            sleep(PAUSE)
            asked = monotonic()
            if machines.works(unless=lambda one: one is backend and event in ("killed", "silent")):
                without = max(without, asked - last)
                last = monotonic()
                has_moved = has_moved or machines.works(unless=lambda one: one is backend)
        while pulse.hangs and monotonic() < began + PATIENCE:
            sleep(PAUSE)
        stream = "goes on" if pulse.lost_at is None else f"reset after {pulse.lost_at - began:.1f}"
        return (f"{without:.1f}" if has_moved else "never"), stream


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--clients", nargs="+", default=["ours", "go"], choices=["ours", "go", "newest"], help="(ours go)")
    add("--balancers", nargs="+", default=list(BALANCERS), choices=BALANCERS, help="(all)")
    add("--events", nargs="+", default=list(EVENTS), choices=list(EVENTS), help="(all)")
    given = parser.parse_args()
    heads = [f"{client}: {what}" for client in given.clients for what in ("without service", "open stream")]
    print("| " + " | ".join(["one of two servers", "balancer", *heads]) + " |")
    print("|" + "---|" * (2 + len(heads)))
    for event in given.events:
        for balancer in given.balancers:
            cells = []
            for client in given.clients:
                can = client == "ours" or balancer != "list"  # a kcptun takes one server
                cells += measure(client, balancer, event) if can else ("one server only", "")
            print("| " + " | ".join([event, balancer, *cells]) + " |", flush=True)


if __name__ == "__main__":
    main()
