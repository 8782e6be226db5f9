"""New sessions of many clients: how long each waits for its first answer, and whether any connection fails.

In      the kinds of client ("ours", "go", "newest"), how many sessions or requests, or how many clients for how long
Out     s until the first answer over a lossy link; connections that failed of sessions that are always new
Knows   the programs from outside. Not: the wire
Cost    `first` a tenth of a second for each session, `expire` less for each request; `office` as long as it is told to

    python tools/bench_sessions.py first --client go --sessions 200
    python tools/bench_sessions.py office --client newest --seconds 120
    python tools/bench_sessions.py expire --client go --requests 1000
"""

import argparse
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Tunnel, start_client, start_server  # noqa: E402
from tests.traffic import Target, connect, echo_handler, receive_exactly  # noqa: E402
from tools.lossy_proxy import Link  # noqa: E402

LINK = Link(loss=0.05, delay_ms=20)
OPTIONS = {"mode": "fast3"}
AT_ONCE = 50  # sessions of one client; the keep-alive of those that have not begun yet would be their first packet
QUESTION = b"hello"
PATIENCE = 75.0  # s until a connection counts as failed; a client of kcptun gives up after 60
PAUSE = 0.05  # s between connections through one client


def ask(address: str) -> float:
    """s until a new connection has its first answer. Raises OSError."""
    begin = monotonic()
    with connect(address, PATIENCE) as sock:
        sock.sendall(QUESTION)
        receive_exactly(sock, len(QUESTION))
    return monotonic() - begin


def first_answers(client: str, sessions: int, seed: int) -> list[float]:
    """s that each new session of a client waits for its first answer from our server, with 5 % loss each way."""
    waits: list[float] = []
    with Target(echo_handler) as target:
        while len(waits) < sessions:
            count = min(AT_ONCE, sessions - len(waits))
            with Tunnel(
                client,
                "ours",
                target.address,
                OPTIONS,
                client_options={"conn": count, "keepalive": 30},
                link=LINK,
                seed=seed + len(waits),
            ) as tunnel:
                waits += [ask(tunnel.address) for _ in range(count)]  # each the first of its session
                assert tunnel.server.counters()["PassiveOpens"] == count
    return waits


def office(client: str, clients: int, seconds: float) -> tuple[list[float], list[str], int]:
    """Clients `--conn 8 --autoexpire 3` behind one address: waits, failures, and the most sessions at our server."""
    waits: list[float] = []
    failures: list[str] = []
    most = 0
    with Target(echo_handler) as target, ExitStack() as stack:
        server, remote = start_server("ours", {"target": target.address, **OPTIONS})
        stack.callback(server.stop)
        end = monotonic() + seconds

        def use(address: str) -> None:
            while monotonic() < end:
                try:
                    waits.append(ask(address))
                except OSError as exc:
                    failures.append(f"{monotonic() - end + seconds:.0f} s: {exc}")
                sleep(PAUSE)

        threads = []
        for _ in range(clients):
            program, address = start_client(client, {"remoteaddr": remote, "conn": 8, "autoexpire": 3, **OPTIONS})
            stack.callback(program.stop)
            threads.append(threading.Thread(target=use, args=(address,)))
        for thread in threads:
            thread.start()
        while monotonic() < end:
            most = max(most, server.counters()["CurrEstab"])
            sleep(1)
        for thread in threads:
            thread.join()
    return waits, failures, most


def expire(client: str, requests: int) -> tuple[list[float], list[str], int]:
    """Requests one after another through a client `--conn 64 --autoexpire 1`: waits, failures, most sessions."""
    waits: list[float] = []
    failures: list[str] = []
    most = 0
    with Target(echo_handler) as target:
        own = {"conn": 64, "autoexpire": 1}
        with Tunnel(client, "ours", target.address, OPTIONS, client_options=own) as tunnel:
            for number in range(requests):
                try:
                    waits.append(ask(tunnel.address))
                except OSError as exc:
                    failures.append(f"request {number}: {exc}")
                if number % AT_ONCE == 0:
                    most = max(most, tunnel.server.counters()["CurrEstab"])
    return waits, failures, most


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["first", "office", "expire"])
    parser.add_argument("--client", default="ours", help="ours, go or newest")
    parser.add_argument("--sessions", type=int, default=200)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if options.what == "first":
        waits, failures, most = first_answers(options.client, options.sessions, options.seed), [], options.sessions
    elif options.what == "expire":
        waits, failures, most = expire(options.client, options.requests)
    else:
        waits, failures, most = office(options.client, options.clients, options.seconds)
    waits.sort()
    middle, late = waits[len(waits) // 2], waits[len(waits) * 99 // 100]
    print(
        f"{options.what} {options.client}: {len(waits)} answers, {len(failures)} failures, {most} sessions at the most"
    )
    print(f"median {middle:.3f} s, 99 % {late:.3f} s, worst {waits[-1]:.3f} s")
    print("\n".join(failures))


if __name__ == "__main__":
    main()
