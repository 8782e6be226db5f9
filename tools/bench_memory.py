"""Memory of both ends under every load the project promises something about, ours beside the real kcptun.

In      which programs, how long; iperf3
Out     the table of docs/memory.md, printed or (--write) put there
Knows   /proc, SIGUSR1, the promises ("bars"). Not: anything inside the programs

    python tools/bench_memory.py                    # short loads, some minutes
    python tools/bench_memory.py --full --write     # a minute of each load, 100,000 connections; half an hour
    python tools/bench_memory.py --rows bulk        # only rows with that word
"""

import argparse
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic, sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.crypt.crypt import derive_key, make_crypt
from kcptun_lite.core.wire import KCP_HEADER_SIZE, KCP_PUSH, KCP_SEGMENT, SMUX_NOP
from tests.programs import Options, Program, Tunnel
from tests.traffic import Target, connect, echo_handler, exchange, exchange_handler
from tools.bench_tunnel import iperf3, start_iperf3_server
from tools.lossy_proxy import Link
from tools.soak import growth, soak

ROOT = Path(__file__).resolve().parent.parent
MIB = 2**20
KEY = "it's a secrect"
LEAN: Options = {"ds": 0, "ps": 0, "nocomp": True}
WINDOWS: Options = {"sndwnd": 1024, "rcvwnd": 1024}
SETTLE = 4.0  # s until a program is said to be idle
BACK_TO_IDLE = 10.0  # s after a load
IDLE_STREAMS = 200
SPOOFED_PER_S = 1000
NOP = bytes([1, SMUX_NOP, 0, 0, 0, 0, 0, 0])  # a frame that asks for nothing
MARK = "<!-- bench_memory -->"


@dataclass
class Ends:
    """One number for each end, in MiB."""

    client: float
    server: float

    def __sub__(self, other: "Ends") -> "Ends":
        return Ends(self.client - other.client, self.server - other.server)

    def __str__(self) -> str:
        return f"{self.client:.1f} / {self.server:.1f}"

    @property
    def most(self) -> float:
        return max(self.client, self.server)


@dataclass
class Row:
    """A promise, and what was measured."""

    name: str
    bar: float | None
    "MiB at most, each end; None: the words say it"
    words: str
    "what is promised"
    measure: Callable[[str, "Row"], str]
    "kind of program -> the cell of the table"
    is_go_asked: bool = True
    seconds: int = 10
    connections: int = 4000
    worst: dict[str, float] = field(default_factory=dict)
    "kind -> the number the bar is for"


def memory(tunnel: Tunnel) -> Ends:
    """Resident now."""
    return Ends(tunnel.client.rss() / MIB, tunnel.server.rss() / MIB)


def peak(tunnel: Tunnel) -> Ends:
    return Ends(tunnel.client.usage().peak_rss / MIB, tunnel.server.usage().peak_rss / MIB)


def idle(options: Options, kind: str, row: Row) -> str:
    with Target(exchange_handler) as target, Tunnel(kind, kind, target.address, options) as tunnel:
        found = _at_rest(tunnel)
    row.worst[kind] = found.most
    return str(found)


def _at_rest(tunnel: Tunnel) -> Ends:
    """Memory after one small connection, which has everything loaded."""
    exchange(connect(tunnel.address), up=1000, down=1000, seed=1)
    sleep(SETTLE)
    return memory(tunnel)


def bulk(options: Options, environment: dict[str, str], kind: str, row: Row) -> str:
    """Both directions at once, as iperf3 does it."""
    with ExitStack() as stack:
        _set_environment(environment, stack)
        server, address = start_iperf3_server()
        stack.callback(server.stop)
        tunnel = stack.enter_context(Tunnel(kind, kind, address, options))
        iperf3(tunnel.address, "--bytes", "100K", timeout=60)
        sleep(SETTLE)
        rest = memory(tunnel)
        report = iperf3(tunnel.address, "--time", str(row.seconds), "--bidir", timeout=row.seconds + 60)
        highest = peak(tunnel)
        sleep(BACK_TO_IDLE)
        after = memory(tunnel) - rest
    row.worst[kind] = highest.most
    row.worst[f"{kind} after"] = after.most
    end = report["end"]
    mbit = (end["sum_received"]["bits_per_second"] + end["sum_received_bidir_reverse"]["bits_per_second"]) / 1e6
    return f"{highest} (then +{after}; {mbit:.0f} Mbit/s)"


def _set_environment(environment: dict[str, str], stack: ExitStack) -> None:
    for name, value in environment.items():
        before = os.environ.get(name)
        os.environ[name] = value
        stack.callback(partial(os.environ.__setitem__, name, before) if before else partial(os.environ.pop, name))


def idle_streams(kind: str, row: Row) -> str:
    with Target(echo_handler) as target, Tunnel(kind, kind, target.address, LEAN) as tunnel, ExitStack() as streams:
        _say(streams.enter_context(connect(tunnel.address)))
        sleep(SETTLE)
        rest = memory(tunnel)
        with ExitStack() as many:
            for _ in range(IDLE_STREAMS):
                _say(many.enter_context(connect(tunnel.address)))
            sleep(SETTLE)
            more = memory(tunnel) - rest
        sleep(BACK_TO_IDLE)
        after = memory(tunnel) - rest
    row.worst[kind] = more.most
    row.worst[f"{kind} after"] = after.most
    return f"+{more} (then +{after})"


def _say(sock: socket.socket) -> None:
    sock.sendall(b"hello")
    assert sock.recv(5)


def short_connections(kind: str, row: Row) -> str:
    with Target(echo_handler) as target, Tunnel(kind, kind, target.address, {"quiet": True}) as tunnel:
        rows = list(soak(tunnel, row.connections, 50, 10))
        client, server = (size / MIB for size in growth(rows))
        more = Ends(client, server)
    row.worst[kind] = more.most
    last = rows[-1]
    ends = [
        f"{end.descriptors} fds, {end.threads} threads, {end.sessions} session" for end in (last.client, last.server)
    ]
    return f"+{more} over the last {row.connections * 9 // 10:,}; at the end {ends[0]} / {ends[1]}"


def limited(kind: str, row: Row) -> str:
    """--memlimit 8M, windows of 8192, 5 % loss, a reader that stops and comes back."""
    options: Options = {"memlimit": "8M", "sndwnd": 8192, "rcvwnd": 8192, "mode": "fast2", **LEAN}
    size = 24_000_000
    gate = threading.Event()
    got: list[int] = []

    def handler(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        gate.wait()
        count = 0
        while data := sock.recv(65_536):
            count += len(data)
        got.append(count)

    link = Link(delay_ms=10, loss=0.05)
    with Target(handler) as target, Tunnel(kind, kind, target.address, options, link=link) as tunnel:
        with connect(tunnel.address, timeout=120) as sock:
            sender = threading.Thread(target=_send_and_finish, args=(sock, size))
            sender.start()
            sleep(row.seconds)
            held = Ends(*(end.counters()["MemHeld"] / MIB for end in (tunnel.client, tunnel.server)))
            gate.set()
            sender.join()
            deadline = monotonic() + 120
            while not got and monotonic() < deadline:
                sleep(0.1)
        peaks = Ends(*(end.counters()["MemPeak"] / MIB for end in (tunnel.client, tunnel.server)))
    assert got == [size], f"{got} of {size} bytes arrived"
    row.worst[kind] = peaks.most
    return f"{peaks} at most, {held} while it stands; all {size // 1_000_000} MB arrived"


def _send_and_finish(sock: socket.socket, size: int) -> None:
    with suppress(OSError):
        sock.sendall(Random(1).randbytes(size))
        sock.shutdown(socket.SHUT_WR)


def flood(kind: str, row: Row) -> str:
    """New conversations from forged addresses, under the right key, beside a transfer that goes on."""
    server, address = start_iperf3_server()
    with ExitStack() as stack:
        stack.callback(server.stop)
        tunnel = stack.enter_context(
            Tunnel(kind, kind, address, {"quiet": True}, server_options={"listen": "0.0.0.0:0"})
        )
        before = _mbit(tunnel, row.seconds // 2)
        rest = memory(tunnel)
        flooder = stack.enter_context(_flooding(tunnel.server))
        during = _mbit(tunnel, row.seconds)
        highest = memory(tunnel) - rest
        established = tunnel.server.counters()["CurrEstab"]
        sent = flooder()
    row.worst[kind] = highest.server
    return (
        f"+{highest.server:.1f} at the server with {established} sessions of {sent:,} tried; "
        f"transfer {before:.0f} → {during:.0f} Mbit/s"
    )


def _mbit(tunnel: Tunnel, seconds: int) -> float:
    report = iperf3(tunnel.address, "--time", str(seconds), "--bitrate", "40M", timeout=seconds + 60)
    return float(report["end"]["sum_received"]["bits_per_second"]) / 1e6


@contextmanager
def _flooding(server: Program) -> Iterator[Callable[[], int]]:
    """A thousand first packets a second, each of another conversation, from 250 addresses."""
    port = server.udp_port()
    crypt = make_crypt("aes", derive_key(KEY), os.urandom, BufferPool(threading.Lock()))
    batch = PacketBatch(memoryview(bytearray(64 * 1024)))
    sockets = []
    for number in range(1, 251):
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((f"127.0.1.{number}", 0))
        sockets.append(sock)
    stop = threading.Event()
    sent = 0

    def run() -> None:
        nonlocal sent
        while not stop.wait(0.05):
            for _ in range(SPOOFED_PER_S // 20):
                sent += 1
                if sent % len(sockets) == 0:  # other ports: other peers
                    for number, old in enumerate(sockets):
                        address = old.getsockname()[0]
                        old.close()
                        sockets[number] = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                        sockets[number].bind((address, 0))
                conv = int.from_bytes(os.urandom(4), "little")
                KCP_SEGMENT.pack_into(batch.arena, crypt.headroom, conv, KCP_PUSH, 0, 128, 0, 0, 0, len(NOP))
                start = crypt.headroom + KCP_HEADER_SIZE
                batch.arena[start : start + len(NOP)] = NOP
                batch.commit(start + len(NOP))
                crypt.seal(batch)
                with suppress(OSError):
                    sockets[sent % len(sockets)].sendto(batch.packet(0), ("127.0.0.1", port))
                batch.clear()

    thread = threading.Thread(target=run, name="flood")
    thread.start()
    try:
        yield lambda: sent
    finally:
        stop.set()
        thread.join()
        for sock in sockets:
            sock.close()


def rows(full: bool) -> list[Row]:
    """All promises, in the order of the table."""
    bulk_seconds = 60 if full else 8
    wide_lean = {**LEAN, **WINDOWS}
    found = [
        Row("idle, lean (`--ds 0 --ps 0 --nocomp`)", 16, "16", partial(idle, LEAN)),
        Row("idle, all defaults", 30, "30", partial(idle, {})),
        Row("bulk both ways, lean, windows 1024", 24, "24, then +3", partial(bulk, wide_lean, {})),
        Row("bulk both ways, all defaults, windows 1024", 40, "40, then +3", partial(bulk, WINDOWS, {})),
        Row("the same with GOGC=20", 34, "34, then +3", partial(bulk, WINDOWS, {"GOGC": "20"})),
        Row(f"{IDLE_STREAMS} idle streams on top of idle", 8, "+8, then +3", idle_streams),
        Row(
            "short connections, 50 at a time",
            1,
            "+1 after the first tenth",
            short_connections,
            connections=100_000 if full else 4000,
        ),
        Row(
            "`--memlimit 8M`, windows 8192, stopped reader, 5 % loss: bytes buffered",
            8,
            "8, and all arrives",
            limited,
            is_go_asked=False,
        ),
        Row("1,000 spoofed conversations a second", None, "bounded", flood),
    ]
    for row in found:
        if row.measure.__class__ is partial or row.measure is flood:
            row.seconds = bulk_seconds
    return found


def table(measured: list[tuple[Row, dict[str, str]]], kinds: list[str]) -> str:
    """The table of docs/memory.md."""
    lines = [
        f"| MiB, client / server | at most | {' | '.join(kinds)} |",
        f"|---|---|{'---|' * len(kinds)}",
    ]
    for row, cells in measured:
        lines.append(f"| {row.name} | {row.words} | {' | '.join(cells.get(kind, '—') for kind in kinds)} |")
    return "\n".join(lines)


def verdict(row: Row, kind: str) -> str:
    """What to say behind a row: whether it keeps its promise."""
    kept = row.bar is None or row.worst[kind] <= row.bar
    kept = kept and row.worst.get(f"{kind} after", 0) <= 3
    return "" if kept else "   <-- above the bar"


def write(text: str) -> None:
    """Put the table between the marks in docs/memory.md."""
    path = ROOT / "docs" / "memory.md"
    before, _, rest = path.read_text().partition(MARK)
    _, _, after = rest.partition(MARK)
    path.write_text(f"{before}{MARK}\n{text}\n{MARK}{after}")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--tunnels", nargs="+", default=["ours", "go"], metavar="KIND", help="ours, ours@DIR, go (ours go)")
    add("--full", action="store_true", help="a minute of every load, 100,000 connections")
    add("--rows", default="", metavar="WORD", help="only rows whose name has this word")
    add("--write", action="store_true", help="put the table into docs/memory.md")
    arguments = parser.parse_args()
    # An installed program has its byte code in files; from sources alone it would be compiled at each start, +4 MiB.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    subprocess.run([sys.executable, "-m", "compileall", "-q", str(ROOT / "kcptun_lite")], check=True)
    measured = []
    for row in rows(arguments.full):
        if arguments.rows not in row.name:
            continue
        cells = {}
        for kind in arguments.tunnels:
            if kind == "go" and not row.is_go_asked:
                continue
            cells[kind] = row.measure(kind, row)
            ours = kind.startswith("ours")
            print(f"{row.name} | at most {row.words} | {kind}: {cells[kind]}{verdict(row, kind) * ours}", flush=True)
        measured.append((row, cells))
    text = table(measured, arguments.tunnels)
    print(f"\n{text}")
    if arguments.write:
        write(text)


if __name__ == "__main__":
    main()
