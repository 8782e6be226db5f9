"""Processor time of each room for bulk data, in one thread and without a network.

In      a cipher, with and without error correction and compression, a share of packets to lose
Out     us per packet that the room handled, ms per MB of payload; a table, JSON
Knows   the rooms' interfaces and their order. Not: sockets, threads, the clock on the wall

Two ends pass batches to each other. What a room took for a batch is read from the thread's processor clock; of all
batches the lower quartile counts, so that caches that others have emptied and clocks they have slowed do not.

    python tools/bench_layers.py                    # aes, four settings
    python tools/bench_layers.py --crypt all        # seal and open of every cipher
    python tools/bench_layers.py --loss 0.1
"""

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from time import thread_time

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, BULK_FACTOR, RELAY_BYTES, BufferPool
from kcptun_lite.core.batch.rows import PacketList
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import METHODS, PacketCrypt, derive_key, make_crypt
from kcptun_lite.core.fec.decoder import FecDecoder
from kcptun_lite.core.fec.encoder import FecEncoder, speed_up
from kcptun_lite.core.kcp.kcp import Kcp, KcpParams
from kcptun_lite.core.mux.smux import SmuxSession
from kcptun_lite.core.mux.snappy import SnappyDecoder, SnappyEncoder
from kcptun_lite.core.streams import KEEPALIVE_TIMEOUT
from kcptun_lite.core.wire import FEC_HEADER_SIZE

WINDOW = 2048  # segments
SHARDS = (10, 3)
FULL_BATCH = 32  # data packets; what a batch with fewer costs says little about bulk
SETTINGS = {"FEC, snappy": (True, True), "snappy": (False, True), "FEC": (True, False), "neither": (False, False)}
MB = 10**6  # bytes


@dataclass(frozen=True)
class Cost:
    """What one room takes."""

    us_per_packet: float
    "of those it handled"
    ms_per_mb: float
    "of payload, parity and all included"


@dataclass
class Stopwatch:
    """Processor time by room, batch by batch."""

    _laps: dict[str, float] = field(default_factory=dict)
    _batches: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    _last: float = 0.0

    def start(self) -> None:
        self._last = thread_time()

    def lap(self, room: str) -> None:
        """The time since the last call was this room's."""
        now = thread_time()
        self._laps[room] = self._laps.get(room, 0.0) + now - self._last
        self._last = thread_time()

    def end_batch(self, packets: dict[str, int], data: int, payload: float) -> None:
        """A batch has passed all rooms: packets per room (else `data`), `payload` bytes."""
        if data >= FULL_BATCH:
            for room, seconds in self._laps.items():
                self._batches.setdefault(room, []).append((seconds / packets.get(room, data), seconds / payload))
        self._laps.clear()

    def costs(self) -> dict[str, Cost]:
        """The lower quartile of each room."""
        return {
            room: Cost(
                quartile([timing[0] for timing in timings]) * 1e6,
                quartile([timing[1] for timing in timings]) * 1e3 * MB,
            )
            for room, timings in self._batches.items()
        }


def quartile(values: Sequence[float]) -> float:
    """The lower quartile. Raises IndexError without values."""
    return sorted(values)[len(values) // 4]


class End:
    """The rooms of one end, each on its own."""

    def __init__(self, *, is_client: bool, crypt: PacketCrypt, fec: bool, compress: bool) -> None:
        self.counters = Counters()
        self.crypt = crypt
        shards = SHARDS if fec else (0, 0)
        headroom = crypt.headroom + FEC_HEADER_SIZE * fec
        params = KcpParams(nodelay=1, interval=20, resend=2, nc=1, snd_wnd=WINDOW, rcv_wnd=WINDOW, mtu=1344)
        self.kcp = Kcp(1, params, self.counters, headroom=headroom, tailroom=crypt.tailroom)
        self.kcp.rmt_wnd = WINDOW
        self.slot = params.mtu
        self.fec_encoder = FecEncoder(*shards, crypt.headroom, crypt.tailroom) if fec else None
        self.fec_decoder = FecDecoder(self.counters)
        self.snappy_encoder = SnappyEncoder() if compress else None
        self.snappy_decoder = SnappyDecoder() if compress else None
        self.smux = SmuxSession(
            is_client=is_client,
            version=1,
            max_frame=32_768,
            receive_buffer=4_194_304,
            stream_buffer=2_097_152,
            keepalive_ms=KEEPALIVE_TIMEOUT,
            keepalive_timeout_ms=KEEPALIVE_TIMEOUT,
            now=0,
        )

    def fill(self, sid: int, data: memoryview, watch: Stopwatch) -> None:
        """Give KCP as much of the stream as it wants to queue."""
        while self.kcp.send_room > 0:
            self.smux.send_data(sid, data)
            frames = self.smux.frames_to_send()
            watch.lap("smux send")
            if self.snappy_encoder:
                chunk = self.snappy_encoder.encode(frames)
                watch.lap("snappy encode")
            else:
                chunk = b"".join(frames)
                watch.lap("smux send")
            self.kcp.send(chunk)

    def send(self, batch: PacketBatch, now: int, watch: Stopwatch) -> int:
        """A batch of sealed packets; returns the number of those with data."""
        slots = batch.capacity // self.slot
        data, parity = SHARDS
        self.kcp.flush(batch, now, (slots - parity) * data // (data + parity) if self.fec_encoder else slots)
        watch.lap("kcp flush")
        count = len(batch)
        if self.fec_encoder and count:
            self.fec_encoder.protect(batch, 0, now)
            watch.lap("fec encode")
        self.crypt.seal(batch)
        watch.lap("seal")
        return count

    def receive(self, sent: PacketBatch, now: int, loss: Random, share: float, watch: Stopwatch) -> None:
        """A batch from the other end, as it comes into ours, up to KCP."""
        batch = self.timing
        batch.clear()
        for packet in sent.views():
            batch.begin_grid(len(packet))
            batch.arena[batch.end : batch.end + len(packet)] = packet
            batch.commit(len(packet))
        batch.addresses = [("", 0)] * len(batch)
        watch.start()
        self.crypt.open(batch, self.counters)
        watch.lap("open")
        for index in range(len(batch) if share else 0):
            if loss.random() < share:
                batch.drop(index)
        watch.start()
        packets = batch.packets()
        for stretch in packets.stretches() if isinstance(packets, PacketList) else (packets,):
            datagrams, recovered = self.fec_decoder.receive(stretch)
            watch.lap("fec decode")
            self.kcp.receive(datagrams, now)
            if recovered:
                self.kcp.receive(recovered, now, recovered=True)
            watch.lap("kcp receive")

    def deliver(self, watch: Stopwatch) -> int:
        """What KCP has in order, up to the streams; returns its size."""
        size = 0
        while parts := self.kcp.read():
            data = b"".join(parts)
            watch.lap("kcp receive")
            if self.snappy_decoder:
                data = self.snappy_decoder.feed(data)
                watch.lap("snappy decode")
            self.smux.feed(data)
            for sid in self.sids:
                size += sum(map(len, self.smux.take(sid, RELAY_BYTES * 4)))
            watch.lap("smux receive")
        self.kcp.received.detach()
        return size

    sids: Sequence[int] = ()
    "of the streams that are read"
    timing: PacketBatch
    "where packets arrive"


def measure(method: str, *, fec: bool, compress: bool, loss: float, timing: int, timings: int) -> dict[str, Cost]:
    """The rooms' costs, in the order data passes them."""
    pool = BufferPool(nullcontext())
    key = derive_key("a key")
    ends = [
        End(is_client=is_client, crypt=make_crypt(method, key, os.urandom, pool), fec=fec, compress=compress)
        for is_client in (True, False)
    ]
    a, b = ends
    b.sids = [sid := a.smux.open_stream()]
    data = memoryview(Random(1).randbytes(timing // 2))
    batch, answer = PacketBatch(pool.take(timing)), PacketBatch(pool.take(timing))
    a.timing, b.timing = PacketBatch(pool.take(2 * timing)), PacketBatch(pool.take(2 * timing))
    random = Random(2)
    watch, untimed = Stopwatch(), Stopwatch()
    for now in range(1, timings + 1):
        watch.start()
        a.fill(sid, data, watch)
        count = a.send(batch, now, watch)
        total = len(batch)
        b.receive(batch, now, random, loss, watch)
        b.deliver(watch)
        watch.start()
        b.send(answer, now, untimed)
        a.receive(answer, now, random, 0.0, untimed)
        a.deliver(untimed)
        watch.lap("answer")
        watch.end_batch(dict.fromkeys(("seal", "open", "fec decode"), total), count, count * a.kcp.mss)
        batch.clear()
        answer.clear()
    return watch.costs()


def print_rooms(method: str, results: dict[str, dict[str, Cost]]) -> None:
    """One table for a cipher: rooms down, settings across."""
    rooms = list(next(iter(results.values())))
    print(f"\n{method}: us per packet, ms per MB")
    print(f"  {'':<14}" + "".join(f"{name:>18}" for name in results))
    for room in rooms:
        cells = [
            f"{cost.us_per_packet:9.2f} {cost.ms_per_mb:8.2f}" if cost else f"{'-':>18}"
            for cost in (costs.get(room) for costs in results.values())
        ]
        print(f"  {room:<14}" + "".join(cells))
    sums = [sum(cost.ms_per_mb for cost in costs.values()) for costs in results.values()]
    print(f"  {'all':<14}" + "".join(f"{total:18.2f}" for total in sums))


def print_ciphers(results: dict[str, dict[str, Cost]]) -> None:
    """One table for all ciphers."""
    print("\nseal and open: us per packet")
    for method, costs in results.items():
        print(f"  {method:<14}{costs['seal'].us_per_packet:9.2f}{costs['open'].us_per_packet:9.2f}")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--crypt", default="aes", choices=[*METHODS, "all"], metavar="NAME", help="cipher, or all (aes)")
    add("--loss", type=float, default=0.0, metavar="SHARE", help="of the packets that do not arrive (0)")
    add("--batches", type=int, default=600, metavar="N", help="batches in a setting (600)")
    add("--batch", type=int, default=BULK_FACTOR * BATCH_BYTES // 1024, metavar="KIB", help="size of a batch (512)")
    add("--json", type=Path, metavar="FILE", help="write everything measured")
    return parser.parse_args()


def main() -> None:
    """The command line."""
    speed_up(*SHARDS)
    options = parse_arguments()
    results: dict[str, dict[str, dict[str, Cost]]] = {}
    if options.crypt == "all":
        for method in METHODS:
            costs = measure(
                method,
                fec=True,
                compress=False,
                loss=options.loss,
                timing=options.timing * 1024,
                timings=max(20, options.timings // 10),
            )
            results[method] = {"FEC": costs}
        print_ciphers({method: found["FEC"] for method, found in results.items()})
    else:
        results[options.crypt] = {
            name: measure(
                options.crypt,
                fec=fec,
                compress=compress,
                loss=options.loss,
                timing=options.timing * 1024,
                timings=options.timings,
            )
            for name, (fec, compress) in SETTINGS.items()
        }
        print_rooms(options.crypt, results[options.crypt])
    if options.json:
        plain = {
            method: {name: {room: asdict(cost) for room, cost in costs.items()} for name, costs in found.items()}
            for method, found in results.items()
        }
        about = {"python": platform.python_version(), "machine": platform.machine(), "loss": options.loss}
        options.json.write_text(json.dumps({**about, "rooms": plain}, indent=1) + "\n")


if __name__ == "__main__":
    main()
