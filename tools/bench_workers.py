"""What several workers of a server bring, and whether a reload costs a connection.

In      numbers of clients and workers; which client
Out     throughput and processor time of each process; how many streams were cut by a reload
Knows   processes, /proc, TCP. Not: anything inside the programs

    python tools/bench_workers.py load                     # 8 clients upload, one worker and two
    python tools/bench_workers.py reload --client newest   # 50 streams of 20 s, a reload after 5

Each worker has a port of a range, and each port as many clients, so that chance has no part in it: of a single port's
clients one worker may have some more than another one. On a machine with few cores all processes take from each other;
then what a worker moves in a second of its own core says more than what all move together.
"""

import argparse
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from pathlib import Path
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, start_client, start_server, wait_until
from tests.traffic import Target, connect, echo_handler, receive_exactly

OPTIONS: dict[str, object] = {"mode": "fast2", "key": "bench"}
BLOCK = os.urandom(64 * 1024)  # which nothing compresses
PAUSE = 0.05  # s between two messages of a stream


def cpu(pid: int) -> float:
    """Seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def free_ports(count: int) -> int:
    """The first of so many UDP ports in a row that are free."""
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            first = int(probe.getsockname()[1])
        with suppress(OSError), ExitStack() as stack:
            for port in range(first, first + count):
                stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)).bind(("127.0.0.1", port))
            return first


def load(workers: int, clients: int, seconds: float) -> float:
    """Have all clients upload, print what it took; returns bytes in a second of the busiest worker's core."""
    received = 0
    lock = threading.Lock()

    def sink(sock: socket.socket) -> None:
        nonlocal received
        while size := len(sock.recv(1 << 18)):
            with lock:
                received += size

    with Target(sink) as target, ExitStack() as stack:
        first = free_ports(workers)
        listen = f"127.0.0.1:{first}" + (f"-{first + workers - 1}" if workers > 1 else "")
        server, _ = start_server("ours", {**OPTIONS, "target": target.address, "listen": listen, "workers": workers})
        stack.callback(server.stop)
        programs: list[Program] = []
        over = threading.Event()
        for number in range(clients):
            client, local = start_client("ours", {**OPTIONS, "remoteaddr": f"127.0.0.1:{first + number % workers}"})
            stack.callback(client.stop)
            programs.append(client)
            sock = stack.enter_context(connect(local))

            def send(sock: socket.socket = sock) -> None:
                with suppress(OSError):
                    while not over.is_set():
                        sock.sendall(BLOCK)

            thread = threading.Thread(target=send)
            thread.start()
            stack.callback(thread.join)
        stack.callback(over.set)
        sleep(2.0)  # until windows have opened
        serving = children(server.pid) or [server.pid]
        before, began, moved = [cpu(pid) for pid in serving], monotonic(), received
        of_clients = sum(cpu(client.pid) for client in programs)
        of_parent = cpu(server.pid)
        sleep(seconds)
        took, moved = monotonic() - began, received - moved
        used = [cpu(pid) - start for pid, start in zip(serving, before, strict=True)]
        of_clients = sum(cpu(client.pid) for client in programs) - of_clients
        of_parent = cpu(server.pid) - of_parent if workers > 1 else 0.0
        over.set()
        for sock_close in programs:
            sock_close.stop(signal.SIGKILL)  # what is under way does not matter
    megabytes = moved / 1e6
    print(
        f"{workers} worker(s), {clients} clients: {megabytes * 8 / took:.0f} Mbit/s; "
        f"server {sum(used) / megabytes * 1000:.1f} ms/MB, clients {of_clients / megabytes * 1000:.1f} ms/MB; "
        f"cores: workers {', '.join(f'{one / took:.2f}' for one in used)}, parent {of_parent / took:.3f}, "
        f"clients {of_clients / took:.2f}; {megabytes / max(used):.0f} MB in a second of the busiest worker"
    )
    return moved / max(used)


def reload(kind: str, workers: int, streams: int, seconds: float) -> int:
    """Keep streams busy over a reload of the server; returns how many were cut."""
    cut: list[str] = []
    with Target(echo_handler) as target, ExitStack() as stack:
        server, address = start_server("ours", {**OPTIONS, "target": target.address, "workers": workers})
        stack.callback(server.stop)
        options = {**OPTIONS, "remoteaddr": address, "conn": 10, "smuxver": 1}
        client, local = start_client(kind, options)
        stack.callback(client.stop)
        over = monotonic() + seconds

        def talk(number: int) -> None:
            try:
                with connect(local) as sock:
                    while monotonic() < over:
                        sock.sendall(BLOCK[:2000])
                        receive_exactly(sock, 2000)
                        sleep(PAUSE)
            except OSError as exc:
                cut.append(f"stream {number} after {seconds - (over - monotonic()):.1f} s: {exc}")

        threads = [threading.Thread(target=talk, args=(number,)) for number in range(streams)]
        for thread in threads:
            thread.start()
        sleep(5.0)
        before = children(server.pid)
        os.kill(server.pid, signal.SIGUSR2)
        wait_until(lambda: len(children(server.pid)) == 2 * workers, "old and new workers")
        for thread in threads:
            thread.join()
        ended = monotonic()
        wait_until(lambda: not set(before) & set(children(server.pid)), "the old workers end")
        print(
            f"reload under {streams} streams of {seconds:.0f} s, client {kind}: {len(cut)} cut; "
            f"the old workers ended {monotonic() - ended:.1f} s after the last stream"
        )
        for line in cut:
            print(f"  {line}")
    return len(cut)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("load", "reload"))
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=8, help="that upload (load)")
    parser.add_argument("--client", choices=("ours", "go", "newest"), default="ours", help="which program (reload)")
    parser.add_argument("--streams", type=int, default=50, help="open at once (reload)")
    parser.add_argument("--seconds", type=float, default=0, help="10 of load, 20 of each stream (reload)")
    arguments = parser.parse_args()
    if arguments.what == "reload":
        return reload(arguments.client, arguments.workers, arguments.streams, arguments.seconds or 20.0)
    alone = load(1, arguments.clients, arguments.seconds or 10.0)
    shared = load(arguments.workers, arguments.clients, arguments.seconds or 10.0)
    print(f"{arguments.workers} workers move {shared / alone:.2f} times as much as one can, if each has a core")
    return 0


if __name__ == "__main__":
    sys.exit(main())
