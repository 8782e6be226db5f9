"""The FEC room: kcp-go's packets, random losses, tuning, garbage, and bounds on what is held."""

import hashlib
import random
import sys
from typing import Any

import pytest
from Crypto.Cipher import AES

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.fec.decoder import HELD_BYTES_MAX
from kcptun_lite.core.fec.encoder import MAX_GAP, FecEncoder
from kcptun_lite.core.wire import FEC_DATA, FEC_HEADER, FEC_HEADER_SIZE, FEC_OUT_OF_BAND, FEC_PARITY
from kcptun_lite.errors import LocalProtocolError
from tests.core.fec.senders import Receiver, Sender, in_batches, is_data, seqid_of, some_datagrams, unhex, vectors

CODES = [(10, 3), (1, 1), (3, 1), (2, 4), (20, 10), (70, 30), (200, 56)]

# -- encoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize("has_numpy", ["yes", "no", "later"])
@pytest.mark.parametrize("at_once", [1, 4, 1000])
@pytest.mark.parametrize("run", vectors("fec_encode")["runs"], ids=lambda run: f"{run['data']}/{run['parity']}")
def test_packets_are_kcp_gos(
    run: dict[str, Any], at_once: int, has_numpy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also over the wrap of the seqid, however the datagrams are put on batches, and if numpy comes midway."""
    if has_numpy != "yes":
        monkeypatch.setitem(sys.modules, "numpy", None)
    sender = Sender(run["data"], run["parity"])
    sender.encoder._seqid = run["start_seqid"]
    sent, expected = [], []
    payloads = [bytes.fromhex(step["payload"]) for step in run["steps"]]
    for at in range(0, len(payloads), at_once):
        sent += sender.send(payloads[at : at + at_once], now=at, behind=at % 3)
        if has_numpy == "later" and at >= len(payloads) // 3:
            monkeypatch.undo()
    for step in run["steps"]:
        expected += unhex([step["data_packet"]]) + unhex(step["parity_packets"])
    if run["data"] == 1:  # the 500 ms rule of the new generation: no packet was before the first one
        del expected[1]
    assert sent == expected


@pytest.mark.parametrize("groups_before_the_wrap", range(1, 12))
def test_many_groups_at_once_wrap_as_one_by_one(groups_before_the_wrap: int) -> None:
    senders = [Sender(10, 3), Sender(10, 3)]
    payloads = [random.Random(number).randbytes(200) for number in range(100)]
    for sender in senders:
        sender.encoder._seqid = sender.encoder._seqid_end - 13 * groups_before_the_wrap
    at_once = senders[0].send(payloads, 0)
    assert at_once == [packet for payload in payloads for packet in senders[1].send([payload], 0)]


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


def test_who_sends_seqids_past_the_last_group_is_not_the_sender() -> None:
    receiver = Receiver(10, 3)
    packet = FEC_HEADER.pack(2**32 - 5, FEC_DATA, 5) + b"abc"
    assert receiver.receive([packet]) == ([b"abc"], [])
    assert receiver.decoder.held_bytes == 0
    assert receiver.decoder.shards is None


# -- what else comes in ------------------------------------------------------------------------


def test_bare_kcp_passes_through_in_order() -> None:
    sender, receiver = Sender(2, 1), Receiver()
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
    """A shard whose size field lies is counted and dropped; behind it are zeros only."""
    receiver = Receiver(1, 1)
    for group, size in enumerate((0, 1, 2, 6, 7, 8)):
        receiver.receive([FEC_HEADER.pack(2 * group + 1, FEC_PARITY, size) + b"hello"])
    assert receiver.counters == Counters(fec_parity=6, fec_recovered=1, fec_errors=5)
    assert receiver.receive([FEC_HEADER.pack(13, FEC_PARITY, 6) + b"hell\0"]) == ([], [b"hell"])


def test_garbage_never_raises_and_memory_is_bounded() -> None:
    """Random types, seqids near and far, lengths from nothing to too much."""
    rng = random.Random(9)
    receiver = Receiver()
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
