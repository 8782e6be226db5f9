"""What a flood of garbage or replayed packets leaves of a session's throughput.

In      packets a second, seconds for each measurement
Out     Mbit/s through one session, down and up: in peace, while the flood goes past, and while it hits the server;
        how long a new client waits
Knows   the programs from outside. Not: keys
Cost    the flood itself takes half a core, so it also runs against an idle port for comparison

    python tools/flood.py --rate 100000
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from threading import Thread
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, start_client, start_server  # noqa: E402
from tests.traffic import Target, connect
from tools.lossy_proxy import Deliver, Link, LossyProxy  # noqa: E402

OPTIONS = {"mode": "fast3", "sndwnd": 1024, "rcvwnd": 1024, "datashard": 10, "parityshard": 3}
GARBAGE = 2000  # different packets
RECORDED = 2000  # packets of the session that are sent again and again
LENGTH = 2  # bytes in front of each packet in the flood's file
TURN = 100  # packets sent before the next look at the clock


def flood(address: tuple[str, int], packets: Sequence[bytes], rate: int) -> None:
    """Send the packets over and over, `rate` a second, until killed; prints how many went out on SIGTERM."""
    count = 0

    def tell(*_: object) -> None:
        print(count, monotonic() - start, flush=True)
        os._exit(0)

    signal.signal(signal.SIGTERM, tell)
    print("ready", flush=True)
    start = monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        send = sock.sendto
        while True:
            for packet in (packets[(count + index) % len(packets)] for index in range(TURN)):
                send(packet, address)
            count += TURN
            if (early := count / rate - (monotonic() - start)) > 0.001:
                sleep(early)


@contextmanager
def flooding(address: str, packets: Sequence[bytes], rate: int) -> Iterator[None]:
    """A flood from a process of its own for the length of a block; prints its true rate."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "packets"
        file.write_bytes(b"".join(len(packet).to_bytes(LENGTH, "big") + packet for packet in packets))
        command = [sys.executable, __file__, "--flood", address, "--packets", str(file), "--rate", str(rate)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.send_signal(signal.SIGTERM)
            told, _ = process.communicate()
    count, seconds = map(float, told.split())
    print(f"    {count / seconds:,.0f} packets a second")


def read_packets(path: str) -> list[bytes]:
    data, packets, at = Path(path).read_bytes(), [], 0
    while at < len(data):
        end = at + LENGTH + int.from_bytes(data[at : at + LENGTH], "big")
        packets.append(data[at + LENGTH : end])
        at = end
    return packets


def pour(sock: socket.socket) -> None:
    """Bytes without end."""
    data = Random(1).randbytes(1 << 16)
    with suppress(OSError):  # until the end of the measurement
        while True:
            sock.sendall(data)


class Meter:
    """Counts what comes out of a stream."""

    def __init__(self) -> None:
        self.received = 0

    def drain(self, sock: socket.socket) -> None:
        with suppress(OSError):  # until the end of the measurement
            while data := sock.recv(1 << 16):
                self.received += len(data)

    def throughput(self, seconds: float) -> float:
        """Mbit/s from now on."""
        before, start = self.received, monotonic()
        sleep(seconds)
        assert self.received > before, "the stream has ended or stands still"
        return (self.received - before) * 8 / 1e6 / (monotonic() - start)


def report(what: str, meter: Meter, server: Program, seconds: float) -> None:
    before = server.usage()
    rate = meter.throughput(seconds)
    after = server.usage()
    busy = (after.user + after.system - before.user - before.system) / seconds
    print(f"  {what}: {rate:.0f} Mbit/s, the server takes {busy:.0%} of a core", flush=True)


def greet(address: str) -> float:
    """Seconds from a new client's first connection to the first byte from the target."""
    client, peer_socket = start_client("ours", {**OPTIONS, "remoteaddr": address})
    try:
        start = monotonic()
        with connect(peer_socket) as sock:
            assert sock.recv(1)
        return monotonic() - start
    finally:
        client.stop(signal.SIGKILL)


def measure(direction: str, rate: int, seconds: float) -> None:
    print(f"{direction}load", flush=True)
    garbage = [Random(number).randbytes(200 + number % 1000) for number in range(GARBAGE)]
    recorded: list[bytes] = []
    meter = Meter()
    at_target, at_client = (pour, meter.drain) if direction == "down" else (meter.drain, pour)
    with Target(at_target) as target, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as idle:
        idle.bind(("127.0.0.1", 0))
        server, address = start_server("ours", {**OPTIONS, "target": target.address})
        proxy = LossyProxy(address, Link())
        offer = proxy.up.offer

        def record(data: bytes, deliver: Deliver, now: float) -> None:
            if len(recorded) < RECORDED:
                recorded.append(data)
            offer(data, deliver, now)

        proxy.up.offer = record  # type: ignore[method-assign]
        client = None
        try:
            with proxy:
                client, peer_socket = start_client("ours", {**OPTIONS, "remoteaddr": proxy.address})
                with connect(peer_socket) as sock:
                    Thread(target=at_client, args=(sock,), daemon=True).start()
                    meter.throughput(2)
                    report("in peace", meter, server, seconds)
                    with flooding(f"127.0.0.1:{idle.getsockname()[1]}", garbage, rate):
                        report("flood beside it", meter, server, seconds)
                    with flooding(address, garbage, rate):
                        report("garbage", meter, server, seconds)
                        if direction == "down":
                            print(f"  a new client gets its first byte after {greet(address):.1f} s")
                    with flooding(address, recorded, rate):
                        report("replayed packets", meter, server, seconds)
                    report("in peace again", meter, server, seconds)
                    print(f"  the server has logged {len(server.log)} lines, the last one: {server.log[-1]}")
        finally:
            for program in (client, server):
                if program:
                    program.stop(signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=int, default=100_000, help="packets a second (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of each measurement (%(default)s)")
    parser.add_argument("--flood", help=argparse.SUPPRESS)
    parser.add_argument("--packets", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.flood:
        host, _, port = given.flood.rpartition(":")
        flood((host, int(port)), read_packets(given.packets), given.rate)
    for direction in ("down", "up"):
        measure(direction, given.rate, given.seconds)


if __name__ == "__main__":
    main()
