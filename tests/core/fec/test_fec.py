"""The FEC room: kcp-go's packets, random losses, tuning, garbage, and bounds on what is held."""

import hashlib
import json
import random
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from Crypto.Cipher import AES

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.strided import PACKET_ALIGNMENT
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.fec.decoder import HELD_BYTES_MAX, FecDecoder
from kcptun_lite.core.fec.encoder import MAX_GAP, FecEncoder
from kcptun_lite.core.fec.shards import TUNE_RUNS, AutoTune
from kcptun_lite.core.wire import FEC_DATA, FEC_HEADER, FEC_HEADER_SIZE, FEC_OUT_OF_BAND, FEC_PARITY
from kcptun_lite.errors import LocalProtocolError

CODES = [(10, 3), (1, 1), (3, 1), (2, 4), (20, 10), (70, 30), (200, 56)]
HEADROOM, TAILROOM = 12, 16
EMPTY = 0xEE


def vectors(name: str) -> Any:
    return json.loads((Path(__file__).parents[2] / "vectors" / f"{name}.json").read_text())


def unhex(packets: list[str] | None) -> list[bytes]:
    return [bytes.fromhex(packet) for packet in packets or []]


class Sender:
    """An encoder and its batch."""

    def __init__(self, data: int, parity: int, capacity: int = 1 << 19) -> None:
        self.encoder = FecEncoder(data, parity, HEADROOM, TAILROOM)
        self.batch = PacketBatch(memoryview(bytearray(capacity)))

    def send(self, datagrams: list[bytes], now: int = 0, *, behind: int = 0) -> list[bytes]:
        """The packets, FEC header first, that `datagrams` become in one batch that holds `behind` others already."""
        batch = self.batch
        batch.clear()
        batch.arena[:] = bytes([EMPTY]) * batch.capacity
        for _ in range(behind):
            batch.commit(50)
        for datagram in datagrams:
            at = batch.end + HEADROOM + FEC_HEADER_SIZE
            batch.arena[at : at + len(datagram)] = datagram
            batch.commit(HEADROOM + FEC_HEADER_SIZE + len(datagram) + TAILROOM)
        self.encoder.protect(batch, behind, now)
        slots = sorted(zip(batch.starts, batch.lengths, strict=True))
        for (start, length), (following, _) in zip(slots, [*slots[1:], (batch.end, 0)], strict=True):
            assert start % PACKET_ALIGNMENT == 0
            assert start + length <= following, "packets overlap"
        packets = [bytes(view) for view in batch.views()[behind:]]
        assert all(set(packet[:HEADROOM] + packet[len(packet) - TAILROOM :]) <= {EMPTY} for packet in packets)
        return [packet[HEADROOM : len(packet) - TAILROOM] for packet in packets]


class Receiver:
    """A decoder; each call's packets are poisoned afterwards, as a batch is."""

    def __init__(self, data: int, parity: int) -> None:
        self.counters = Counters()
        self.decoder = FecDecoder(data, parity, self.counters)

    def receive(self, packets: list[bytes]) -> tuple[list[bytes], list[bytes]]:
        buffers = [bytearray(packet) for packet in packets]
        direct, recovered = self.decoder.receive([memoryview(buffer) for buffer in buffers])
        result = [bytes(datagram) for datagram in direct], [bytes(datagram) for datagram in recovered]
        for buffer in buffers:
            buffer[:] = b"\xdd" * len(buffer)
        groups = [group for group in self.decoder._groups.values() if group]
        assert self.decoder.held_bytes == sum(len(shard) for group in groups for shard in group.shards.values())
        return result


def some_datagrams(count: int, rng: random.Random, longest: int = 60) -> list[bytes]:
    return [rng.randbytes(rng.choice([24, longest, longest, rng.randint(0, longest)])) for _ in range(count)]


def in_batches(packets: list[bytes], rng: random.Random, largest: int = 90) -> Iterator[list[bytes]]:
    rest = iter(packets)
    while incoming := list(islice(rest, rng.randint(1, largest))):
        yield incoming


def seqid_of(packet: bytes) -> int:
    return int.from_bytes(packet[:4], "little")


def is_data(packet: bytes) -> bool:
    return packet[4] == FEC_DATA


# -- encoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("has_numpy", [True, False])
@pytest.mark.parametrize("at_once", [1, 4, 1000])
@pytest.mark.parametrize("run", vectors("fec_encode")["runs"], ids=lambda run: f"{run['data']}/{run['parity']}")
def test_packets_are_kcp_gos(
    run: dict[str, Any], at_once: int, has_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over the wrap of the seqid, and however the datagrams are put on batches."""
    if not has_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    sender = Sender(run["data"], run["parity"])
    sender.encoder._seqid = run["start_seqid"]
    sent, expected = [], []
    payloads = [bytes.fromhex(step["payload"]) for step in run["steps"]]
    for at in range(0, len(payloads), at_once):
        sent += sender.send(payloads[at : at + at_once], now=at, behind=at % 3)
    for step in run["steps"]:
        expected += unhex([step["data_packet"]]) + unhex(step["parity_packets"])
    if run["data"] == 1:  # the 500 ms rule of the new generation: no packet was before the first one
        del expected[1]
    assert sent == expected


@pytest.mark.parametrize("run", vectors("fec_encode_new")["runs"], ids=lambda run: run["gap_before_last_of_group_ms"])
def test_parity_is_skipped_after_a_gap_as_in_kcp_go(run: dict[str, Any]) -> None:
    sender = Sender(run["data"], run["parity"])
    for step in run["steps"]:
        sent = sender.send([bytes.fromhex(step["payload"])], step["t"])
        assert sent == unhex([step["data_packet"]]) + unhex(step["parity_packets"])


def test_a_gap_before_a_batch_does_not_matter_inside_it() -> None:
    sender = Sender(3, 1)
    assert len(sender.send([b"a", b"b"], 0)) == 2
    assert len(sender.send([b"c"], MAX_GAP)) == 1
    assert len(sender.send([b"d"], 2 * MAX_GAP)) == 1
    sent = sender.send([b"e", b"f", b"g"], 9 * MAX_GAP)
    assert [(seqid_of(packet), is_data(packet)) for packet in sent] == [(5, True), (6, True), (7, False), (8, True)]


def test_parity_waits_for_no_room() -> None:
    """A full batch costs its groups their parity, nothing else."""
    slot = 64  # bytes: 12 + 8 + 20 + 16, aligned
    sender = Sender(2, 2, capacity=7 * slot)
    sent = sender.send([bytes(20)] * 4)
    assert [seqid_of(packet) for packet in sent] == [0, 1, 2, 3, 4, 5]
    sent = sender.send([bytes(20)] * 2)
    assert [seqid_of(packet) for packet in sent] == [8, 9, 10, 11]


def test_packets_may_lie_anywhere_in_the_arena() -> None:
    """The order of the lists is the order on the wire; gaps and other orders in the arena do not matter."""
    rng = random.Random(3)
    datagrams = [rng.randbytes(100) for _ in range(40)]
    neat = Sender(10, 3).send(datagrams)
    slots = rng.sample(range(80), 20) + list(range(100, 110)) + list(range(139, 119, -2))
    batch = PacketBatch(memoryview(bytearray(1 << 15)))
    for slot, datagram in zip(slots, datagrams, strict=True):
        batch.starts.append(slot * 144)
        batch.lengths.append(FEC_HEADER_SIZE + 100)
        batch.arena[slot * 144 + FEC_HEADER_SIZE :][:100] = datagram
    batch.end = 140 * 144
    FecEncoder(10, 3, 0, 0).protect(batch, 0, 0)
    assert [bytes(view) for view in batch.views()] == neat


@pytest.mark.parametrize(("data", "parity"), [(0, 3), (10, 0), (-1, 3), (200, 57)])
def test_impossible_codes_are_refused(data: int, parity: int) -> None:
    with pytest.raises(LocalProtocolError):
        FecEncoder(data, parity, 20, 0)


# -- encoder and decoder -----------------------------------------------------------------------


@pytest.mark.parametrize("has_numpy", [True, False])
@pytest.mark.parametrize(("data", "parity"), CODES)
def test_any_loss_up_to_the_parity_is_repaired(
    data: int, parity: int, has_numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random losses in every group, random batches, order broken inside groups: every datagram arrives once."""
    if not has_numpy:
        monkeypatch.setitem(sys.modules, "numpy", None)
    rng = random.Random(data * 1000 + parity)
    sender, receiver = Sender(data, parity), Receiver(data, parity)
    sender.send([b""] * data)  # with d = 1 the first group has no parity
    groups = 4 if data > 50 else 30
    datagrams = some_datagrams(data * groups, rng)
    packets = [packet for incoming in in_batches(datagrams, rng, 2 * data) for packet in sender.send(incoming)]
    assert len(packets) == (data + parity) * groups
    arriving: list[bytes] = []
    lost_data = 0
    for group in range(groups):
        members = packets[group * (data + parity) : (group + 1) * (data + parity)]
        kept = rng.sample(members, rng.randint(data, data + parity))
        if group % 2:
            kept.sort(key=seqid_of)
        arriving += kept
        lost_data += data - sum(map(is_data, kept))
    direct, recovered = [], []
    for incoming in in_batches(arriving, rng, 3 * data):
        some, more = receiver.receive(incoming)
        assert some == [packet[FEC_HEADER_SIZE:] for packet in incoming if is_data(packet)]
        direct += some
        recovered += more
    assert set(datagrams) <= set(direct) | set(recovered)
    assert receiver.counters.fec_recovered == len(recovered) >= lost_data
    assert receiver.counters.fec_errors == receiver.counters.fec_short == 0
    assert receiver.counters.fec_parity == sum(not is_data(packet) for packet in arriving)
    assert receiver.decoder.held_bytes == 0


def test_one_loss_too_many_is_not_repaired_and_not_kept_forever() -> None:
    sender, receiver = Sender(10, 3), Receiver(10, 3)
    rng = random.Random(5)
    packets = sender.send(some_datagrams(10, rng))
    assert receiver.receive(packets[4:])[1] == []
    assert receiver.decoder.held_bytes == sum(len(packet) - 6 for packet in packets[4:])
    for _ in range(30):
        receiver.receive(sender.send(some_datagrams(10, rng)))
    assert receiver.decoder.held_bytes == 0
    assert receiver.counters.fec_short == 6


def test_a_lossless_batch_is_not_copied() -> None:
    """Views go out; only the unfinished last group is held past the call."""
    sender, receiver = Sender(10, 3), Receiver(10, 3)
    packets = [memoryview(packet) for packet in sender.send([bytes(1000)] * 54)]
    direct, recovered = receiver.decoder.receive(packets)
    assert [view.obj for view in direct] == [packet.obj for packet in packets if packet[4] == FEC_DATA]
    assert recovered == []
    assert receiver.decoder.held_bytes == 4 * 1002


@pytest.mark.parametrize(("data", "parity"), [(10, 3), (1, 1), (3, 1), (20, 10)])
def test_parity_may_be_a_hundred_packets_late(data: int, parity: int) -> None:
    rng = random.Random(7)
    sender, receiver = Sender(data, parity), Receiver(data, parity)
    sender.send([b""] * data)
    datagrams = [rng.randbytes(30) for _ in range(100 * data)]
    packets = sender.send(datagrams)
    late = [(index if is_data(packet) else index + 100, packet) for index, packet in enumerate(packets)]
    arriving = [packet for _, packet in sorted(late) if seqid_of(packet) % (data + parity)]  # first of each group lost
    recovered = [datagram for packet in arriving for datagram in receiver.receive([packet])[1]]
    assert recovered == datagrams[::data]


def test_a_finished_group_is_finished() -> None:
    """Late and repeated packets of it are neither kept nor used again."""
    sender, receiver = Sender(3, 2), Receiver(3, 2)
    packets = sender.send([b"one", b"two", b"three"])
    assert receiver.receive(packets[1:4]) == ([b"two", b"three"], [b"one"])
    for packet in packets * 3:
        assert receiver.receive([packet])[1] == []
    assert receiver.receive(packets * 3)[1] == []
    assert receiver.decoder.held_bytes == 0
    assert receiver.counters.fec_recovered == 1


def test_duplicates_do_not_count_as_shards() -> None:
    sender, receiver = Sender(4, 2), Receiver(4, 2)
    packets = sender.send([b"one", b"two", b"three", b"four"])
    assert receiver.receive([packets[1]] * 4 + [packets[5]] * 4)[1] == []
    assert receiver.receive([packets[1], packets[5]] * 4)[1] == []
    assert receiver.decoder.held_bytes == len(packets[1]) + len(packets[5]) - 12
    assert receiver.receive([packets[2], packets[4]])[1] == [b"one", b"four"]


def test_seqids_wrap() -> None:
    rng = random.Random(8)
    sender, receiver = Sender(10, 3), Receiver(10, 3)
    sender.encoder._seqid = sender.encoder._seqid_end - 13 * 5
    datagrams = some_datagrams(100, rng)
    arriving = [packet for packet in sender.send(datagrams) if seqid_of(packet) % 13 not in (2, 9)]
    assert {seqid_of(packet) for packet in arriving} >= {0, 13, 2**32 - 10 - 13}
    recovered = [datagram for incoming in in_batches(arriving, rng) for datagram in receiver.receive(incoming)[1]]
    assert recovered == [datagram for index, datagram in enumerate(datagrams) if index % 10 in (2, 9)]


def test_seqids_past_the_last_group_belong_to_no_group() -> None:
    receiver = Receiver(10, 3)
    packet = FEC_HEADER.pack(2**32 - 5, FEC_DATA, 5) + b"abc"
    assert receiver.receive([packet]) == ([b"abc"], [])
    assert receiver.decoder.held_bytes == 0


# -- what else comes in ------------------------------------------------------------------------


def test_bare_kcp_passes_through_in_order() -> None:
    sender, receiver = Sender(2, 1), Receiver(0, 0)
    data = sender.send([b"first", b"second"])[:2]
    bare = b"\x01\x02\x03\x04\x51" + bytes(19)
    assert receiver.receive([bare, data[0], b"", b"tiny", bare, data[1]]) == (
        [bare, b"first", b"", b"tiny", bare, b"second"],
        [],
    )
    assert receiver.counters == Counters()


def test_short_and_out_of_band_packets_are_counted() -> None:
    receiver = Receiver(10, 3)
    packets = [FEC_HEADER.pack(0, kind, 0)[:size] for kind in (FEC_DATA, FEC_PARITY) for size in (6, 7)]
    assert receiver.receive([*packets, FEC_HEADER.pack(0, FEC_OUT_OF_BAND, 0) + bytes(30)]) == ([], [])
    assert receiver.counters == Counters(in_errors=5)


def test_recovered_sizes_are_checked() -> None:
    """A shard whose size field lies is counted and dropped."""
    receiver = Receiver(1, 1)
    for group, size in enumerate((0, 1, 2, 7, 8)):
        receiver.receive([FEC_HEADER.pack(2 * group + 1, FEC_PARITY, size) + b"hello"])
    assert receiver.counters == Counters(fec_parity=5, fec_recovered=2, fec_errors=3)
    assert receiver.receive([FEC_HEADER.pack(11, FEC_PARITY, 6) + b"hello"]) == ([], [b"hell"])


@pytest.mark.parametrize(("data", "parity"), [(0, 0), (10, 3), (200, 56)])
def test_garbage_never_raises_and_memory_is_bounded(data: int, parity: int) -> None:
    """Random types, seqids near and far, lengths from nothing to too much."""
    rng = random.Random(9)
    receiver = Receiver(data, parity)
    for _ in range(300):
        incoming = []
        for _ in range(rng.randint(1, 60)):
            seqid = rng.choice([rng.getrandbits(32), rng.randrange(2000), 2**32 - 1 - rng.randrange(300)])
            kind = rng.choice([FEC_DATA, FEC_DATA, FEC_PARITY, FEC_OUT_OF_BAND, rng.getrandbits(16)])
            packet = FEC_HEADER.pack(seqid, kind, rng.getrandbits(16)) + bytes(rng.choice([0, 1, 1492, 9000]))
            incoming.append(packet[: rng.choice([len(packet), len(packet), rng.randrange(10)])])
        receiver.receive(incoming)
        assert 0 <= receiver.decoder.held_bytes <= HELD_BYTES_MAX


@pytest.mark.parametrize(("data", "parity"), [(10, 3), (1, 1), (200, 56)])
def test_held_memory_is_bounded_under_random_seqids(data: int, parity: int) -> None:
    """Packets that fit the parameters, each of a group of its own or of too poor a group."""
    rng = random.Random(10)
    receiver = Receiver(data, parity)
    shard_count = data + parity
    for group in range(1000):
        group_id = rng.randrange((2**32 - 1) // shard_count) if group % 2 else group
        indexes = rng.sample(range(shard_count), rng.randint(1, max(1, data - 1)))
        receiver.receive(
            [
                FEC_HEADER.pack(group_id * shard_count + index, FEC_DATA if index < data else FEC_PARITY, 1494)
                + bytes(1492)
                for index in indexes
            ]
        )
        assert receiver.decoder.held_bytes <= HELD_BYTES_MAX
    assert len(receiver.decoder._groups) <= 3 + 128 // shard_count


def test_a_forged_seqid_does_not_end_recovery() -> None:
    rng = random.Random(11)
    sender, receiver = Sender(10, 3), Receiver(10, 3)
    for _ in range(20):
        packets = sender.send(some_datagrams(10, rng))
        seqid = rng.randrange(2**32 // 13 - 1) * 13
        recovered = receiver.receive([*packets[1:5], FEC_HEADER.pack(seqid, FEC_DATA, 2), *packets[5:]])[1]
        assert recovered == [packets[0][FEC_HEADER_SIZE:]]


# -- other parameters than ours ----------------------------------------------------------------


@pytest.mark.parametrize("case", vectors("fec_decode")["cases"], ids=lambda case: case["name"])
def test_decoder_follows_kcp_go(case: dict[str, Any]) -> None:
    """Step by step what kcp-go 5.6.7x recovers and tunes to, but that we recover a group only once."""
    receiver = Receiver(case["decoder_data"], case["decoder_parity"])
    known: set[bytes] = set()
    for step in case["steps"]:
        expected = []
        for shard in unhex(step["recovered_new"]):
            datagram = shard[2 : int.from_bytes(shard[:2], "little")]
            if datagram not in known:
                expected.append(datagram)
        direct, recovered = receiver.receive(unhex([step["packet"]]))
        assert recovered == expected
        known.update(direct, recovered)
        tuned = [receiver.decoder.data_shards, receiver.decoder.parity_shards]
        assert tuned == step.get("params_new", [case["decoder_data"], case["decoder_parity"]])


@pytest.mark.parametrize("ours", [(0, 0), (150, 1)])
@pytest.mark.parametrize("largest_batch", [1, 90])
@pytest.mark.parametrize(("data", "parity"), [(10, 3), (3, 2), (1, 1), (1, 3), (20, 10), (70, 30), (200, 56)])
def test_the_senders_parameters_are_found(data: int, parity: int, largest_batch: int, ours: tuple[int, int]) -> None:
    rng = random.Random(12)
    sender, receiver = Sender(data, parity), Receiver(*ours)
    packets = [packet for _ in range(4) for packet in sender.send(some_datagrams(data, rng))]
    for incoming in in_batches(packets, rng, largest_batch):
        receiver.receive(incoming)
    assert (receiver.decoder.data_shards, receiver.decoder.parity_shards) == (data, parity)
    datagrams = some_datagrams(data, rng)
    assert receiver.receive(sender.send(datagrams)[1:])[1] == datagrams[:1]


@pytest.mark.parametrize("ours", [(0, 0), (5, 5), (13, 3), (70, 30)])
def test_the_senders_parameters_are_found_through_loss(ours: tuple[int, int]) -> None:
    """Within 30 groups at 10 % loss and light reordering; and nothing wrong is recovered on the way."""
    for seed in range(10):
        rng = random.Random(seed)
        sender, receiver = Sender(10, 3), Receiver(*ours)
        datagrams = [rng.randbytes(40) for _ in range(400)]
        packets = [packet for packet in sender.send(datagrams) if rng.random() > 0.1]
        for at in range(0, len(packets) - 1, 29):
            packets[at], packets[at + 1] = packets[at + 1], packets[at]
        for incoming in in_batches(packets, rng, 20):
            assert set(receiver.receive(incoming)[1]) <= set(datagrams)
        assert (receiver.decoder.data_shards, receiver.decoder.parity_shards) == (10, 3)
        assert receiver.counters.fec_recovered > 0
        assert receiver.counters.fec_errors == 0


def test_tuning_is_not_fooled_by_a_torn_run() -> None:
    tune = AutoTune()
    tune.sample(0, 10, True)
    tune.sample(10, 13, False)
    assert tune.find() is None, "what came before the data is not known"
    tune.sample(13, 20, True)
    tune.sample(21, 23, True)  # 20 is lost
    tune.sample(23, 26, False)
    tune.sample(26, 30, True)
    assert tune.find() is None
    tune.sample(30, 36, True)
    tune.sample(36, 39, False)
    assert tune.find() == (10, 3)


def test_tuning_wants_groups_to_begin_where_they_must() -> None:
    tune = AutoTune()
    tune.sample(0, 4, False)
    tune.sample(4, 14, True)
    tune.sample(14, 17, False)
    tune.sample(17, 18, True)
    assert tune.find() is None


def test_tuning_remembers_little() -> None:
    tune = AutoTune()
    rng = random.Random(13)
    for _ in range(1000):
        seqid = rng.getrandbits(32)
        tune.sample(seqid, seqid + 1, bool(rng.getrandbits(1)))
    assert len(tune._runs) == TUNE_RUNS


# -- captures ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cap_aes_default", "cap_smux2_window", "cap_2017_default"])
def test_captures_encode_alike_and_survive_loss(name: str) -> None:
    """The bodies kcptun sent: our parity is its parity, and any three packets of a group can be lost."""
    key = hashlib.pbkdf2_hmac("sha1", b"it's a secrect", b"kcp-go", 4096, 32)
    start = bytes.fromhex("a7734f9c12ac1b01a415f2c1fc78e66b")
    bodies: dict[str, list[bytes]] = {}
    for datagram in vectors(name)["datagrams"]:
        sealed = bytes.fromhex(datagram["hex"])
        cipher = AES.new(key, AES.MODE_CFB, iv=start, segment_size=128)
        body = cipher.decrypt(sealed + bytes(-len(sealed) % 16))[20 : len(sealed)]
        if body[4:6] in (b"\xf1\0", b"\xf2\0"):
            bodies.setdefault(datagram["dir"], []).append(body)
    assert len(bodies) == 2
    rng = random.Random(14)
    for packets in bodies.values():
        datagrams = [packet[FEC_HEADER_SIZE:] for packet in packets if is_data(packet)]
        sender = Sender(10, 3)
        sent = [packet for incoming in in_batches(datagrams, rng) for packet in sender.send(incoming)]
        assert sent == packets
        receiver = Receiver(10, 3)
        lost = {seqid for at in range(0, len(packets), 13) for seqid in rng.sample(range(at, at + 13), 3)}
        whole = len(packets) // 13 * 13
        received = [
            datagram
            for incoming in in_batches([p for p in packets[:whole] if seqid_of(p) not in lost], rng)
            for part in receiver.receive(incoming)
            for datagram in part
        ]
        assert set(received) == set(datagrams[: whole // 13 * 10])
