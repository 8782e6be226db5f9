"""The shards of a sender are found beyond doubt, or nothing is recovered."""

import copy
import random
from typing import Any

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.fec.decoder import EARLY_BYTES_MAX
from kcptun_lite.core.fec.encoder import FecEncoder, UncodedFec
from kcptun_lite.core.fec.shards import ShardFinder
from kcptun_lite.core.wire import FEC_DATA, FEC_HEADER, FEC_HEADER_SIZE, FEC_PARITY
from tests.core.fec.senders import (
    HEADROOM,
    TAILROOM,
    Receiver,
    Sender,
    in_batches,
    seqid_of,
    some_datagrams,
    unhex,
    vectors,
)

CODES = [(10, 3), (1, 1), (3, 1), (2, 4), (20, 10), (70, 30), (200, 56)]

# -- the sender's shards -----------------------------------------------------------------------


@pytest.mark.parametrize("case", vectors("fec_decode")["cases"], ids=lambda case: case["name"])
def test_decoder_recovers_what_kcp_go_recovers(case: dict[str, Any]) -> None:
    """Though it is set to nothing: all that kcp-go 5.6.7x recovers once the shards are known."""
    receiver = Receiver()
    ours: set[bytes] = set()
    gos: set[bytes] = set()
    for step in case["steps"]:
        was_known = receiver.decoder.shards is not None
        direct, recovered = receiver.receive(unhex([step["packet"]]))
        ours.update(direct, recovered)
        for shard in unhex(step["recovered_new"]) if was_known else ():
            gos.add(shard[2 : int.from_bytes(shard[:2], "little")])
    assert gos <= ours
    if case["name"].startswith(("lossless", "auto", "one data", "reordered")):
        assert receiver.decoder.shards == (3, 2)


@pytest.mark.parametrize("largest_batch", [1, 90])
@pytest.mark.parametrize(("data", "parity"), [(10, 3), (3, 2), (1, 1), (1, 3), (20, 10), (70, 30), (200, 56)])
def test_the_senders_shards_are_found_in_the_first_groups(data: int, parity: int, largest_batch: int) -> None:
    """And then these groups are repaired, too."""
    rng = random.Random(12)
    sender, receiver = Sender(data, parity), Receiver()
    sender.send([b""] * data)  # with d = 1 the first group has no parity
    datagrams = some_datagrams(2 * data, rng)
    packets = [packet for packet in sender.send([*datagrams, b"next"]) if seqid_of(packet) % (data + parity)]
    recovered = [datagram for some in in_batches(packets, rng, largest_batch) for datagram in receiver.receive(some)[1]]
    recovered += receiver.receive(sender.send([b"next"] * 4))[1]
    assert receiver.decoder.shards == (data, parity)
    assert recovered[:2] == datagrams[::data]


def test_the_senders_shards_are_found_through_loss() -> None:
    """Within 30 groups at 10 % loss and light reordering; and nothing wrong is recovered on the way."""
    for seed in range(40):
        rng = random.Random(seed)
        data, parity = rng.choice(CODES[:5])
        sender, receiver = Sender(data, parity), Receiver()
        datagrams = [rng.randbytes(40) for _ in range(30 * data)]
        packets = [packet for packet in sender.send(datagrams) if rng.random() > 0.1]
        for at in range(0, len(packets) - 1, 29):
            packets[at], packets[at + 1] = packets[at + 1], packets[at]
        for incoming in in_batches(packets, rng, 20):
            assert set(receiver.receive(incoming)[1]) <= set(datagrams)
        assert receiver.decoder.shards == (data, parity)
        assert receiver.counters.fec_recovered > 0
        assert receiver.counters.fec_errors == 0


SMALL_CODES = [(data, parity) for data in range(1, 6) for parity in range(1, 4)]


@pytest.mark.once
@pytest.mark.parametrize(("data", "parity"), SMALL_CODES)
def test_no_loss_makes_other_shards_pass_for_the_senders(data: int, parity: int) -> None:
    """Every subset of a sender's packets of the first groups, by exhaustion. Order and copies cannot matter: what has
    come rules out the same pairs in any order."""
    count = 15
    kinds = [seqid % (data + parity) < data for seqid in range(count)]

    def look(finder: ShardFinder, seqid: int) -> None:
        assert not finder.is_contradictory
        assert finder.find() in (None, (data, parity))
        if finder.find() or seqid == count:
            return  # what is found stays: no later packet of this sender rules it out
        look(copy.deepcopy(finder), seqid + 1)  # lost
        finder.sample(seqid, seqid + 1, kinds[seqid])
        look(finder, seqid + 1)

    finder = ShardFinder()
    finder._sizes = [size for size in finder._sizes if size <= 2 * count]  # larger ones explain what the largest does
    look(finder, 0)
    finder = ShardFinder()
    for seqid in range(data + parity + 1):
        finder.sample(seqid, seqid + 1, kinds[seqid])
    assert finder.find() == (data, parity)


@pytest.mark.once
@pytest.mark.parametrize(("data", "parity"), [(1, 1), (2, 1), (1, 2), (3, 1), (2, 2), (3, 2), (4, 1)])
def test_whatever_is_lost_only_what_was_sent_is_recovered(data: int, parity: int) -> None:
    """By exhaustion over twelve packets, in order and with neighbours swapped, all at once and then each once more."""
    rng = random.Random(15)
    sender = Sender(data, parity)
    datagrams = [rng.randbytes(3) + b"the same in each" for _ in range(12)]
    packets = [packet for datagram in datagrams for packet in sender.send([datagram])][:12]
    assert len(packets) == 12
    for subset in range(1 << len(packets)):
        arriving = [packet for index, packet in enumerate(packets) if subset >> index & 1]
        if subset % 3 == 1:
            for at in range(0, len(arriving) - 1, 2):
                arriving[at], arriving[at + 1] = arriving[at + 1], arriving[at]
        receiver = Receiver()
        recovered = receiver.receive(arriving)[1] if subset % 2 else []
        for packet in arriving:
            recovered += receiver.receive([packet])[1]
        assert set(recovered) <= set(datagrams)


def test_the_order_of_packets_tells_nothing() -> None:
    rng = random.Random(16)
    for _ in range(200):
        data, parity = rng.choice(CODES)
        group = data + parity
        first = rng.randrange(0, 2**32 // group - 5) * group
        seqids = rng.sample(range(first, first + 4 * group), rng.randint(1, min(4 * group, 60)))
        found = []
        for _ in range(3):
            finder = ShardFinder()
            for seqid in seqids:
                finder.sample(seqid, seqid + 1, seqid % group < data)
            found.append((finder.find(), finder._sizes))
            rng.shuffle(seqids)
        assert found[0] == found[1] == found[2]
        assert group in found[0][1]


def test_runs_tell_what_their_packets_tell() -> None:
    rng = random.Random(17)
    for _ in range(300):
        data, parity = rng.choice(CODES)
        group = data + parity
        runs, packets = ShardFinder(), ShardFinder()
        for _ in range(rng.randint(1, 6)):
            at = rng.randrange(0, 40) * group + (start := rng.randrange(group))
            is_data = start < data
            end = at + rng.randint(1, (data if is_data else group) - start)
            runs.sample(at, end, is_data)
            for seqid in range(at, end):
                packets.sample(seqid, seqid + 1, is_data)
        assert runs._sizes == packets._sizes
        assert runs.find() == packets.find()


def test_from_a_sender_that_contradicts_itself_nothing_is_recovered_any_more() -> None:
    sender, receiver = Sender(4, 2), Receiver(4, 2)
    packets = sender.send([b"one", b"two", b"three", b"four"])
    receiver.receive(packets[:1])
    assert receiver.receive([FEC_HEADER.pack(5, FEC_DATA, 5) + b"bad"]) == ([b"bad"], [])
    assert receiver.receive(packets[1:]) == ([b"two", b"three", b"four"], [])
    assert receiver.receive(sender.send([b"one", b"two", b"three", b"four"])[1:])[1] == []
    assert receiver.decoder.held_bytes == 0

    receiver = Receiver()
    for seqid, kind in ((5, FEC_DATA), (5, FEC_PARITY)):
        receiver.receive([FEC_HEADER.pack(seqid, kind, 2)])
    for _ in range(3):
        assert receiver.receive(sender.send([b"one", b"two", b"three", b"four"])[1:])[1] == []
    assert receiver.decoder.held_bytes == 0


def test_little_is_held_for_a_sender_whose_shards_do_not_turn_out() -> None:
    receiver = Receiver()
    for group in range(1000):  # one that never sends parity
        receiver.receive([FEC_HEADER.pack(group * 13 + index, FEC_DATA, 1300) + bytes(1298) for index in range(10)])
        assert receiver.decoder.held_bytes <= EARLY_BYTES_MAX
    assert receiver.decoder.shards is None


def test_headers_without_parity_mean_the_same_with_any_shards() -> None:
    """Then parity in the numbers that were found; all of it is repaired by who knows nothing yet."""
    batch = PacketBatch(memoryview(bytearray(1 << 14)))
    receiver = Receiver()
    for _ in range(5):
        batch.clear()
        for text in (b"a", b"b"):
            at = batch.end + HEADROOM + FEC_HEADER_SIZE
            batch.arena[at : at + 1] = text
            batch.commit(HEADROOM + FEC_HEADER_SIZE + 1 + TAILROOM)
        UncodedFec(HEADROOM).protect(batch, 0, 0)
        packets = [bytes(view)[HEADROOM:-TAILROOM] for view in batch.views()]
        assert [packet[:6] for packet in packets] == [FEC_HEADER.pack(0, FEC_DATA, 0)[:6]] * 2
        assert receiver.receive(packets) == ([b"a", b"b"], [])
    sender = Sender(5, 5)
    sender.encoder = FecEncoder(5, 5, HEADROOM, TAILROOM, first_group=1)
    packets = sender.send([b"1", b"2", b"3", b"4", b"5"])
    assert seqid_of(packets[0]) == 10
    recovered = receiver.receive(packets[2:])[1]
    recovered += receiver.receive(sender.send([b"6", b"7", b"8", b"9", b"10"]))[1]
    assert recovered == [b"1", b"2"]
