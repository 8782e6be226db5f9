"""A sample, now and then, of packets that fail their check, taken before decryption destroys them.

In      batches of packets before and after they are opened
Out     one raw packet that has failed, at most one per second and program
Knows   addresses. Not: keys, who is worth a sentence
Cost    one comparison per batch; up to 3 us more while an address is under suspicion

A packet is decrypted in place, so whether it was worth keeping is known only when it is gone. Therefore the first
bad packet of an address makes it a suspect, and its next one is copied. As long as nothing good has come in at all,
everybody is a suspect.
"""

from typing import NamedTuple

from kcptun_lite.core.batch.packets import Address, Local, PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.net.packet_socket import PacketSocket

SAMPLE_EVERY = 1000  # ms, in the whole program
SUSPECT_FOR = 1000  # ms that we wait for a suspect's next packet; then another one gets the turn


class Sample(NamedTuple):
    """One packet as it came, which failed its check."""

    source: Address
    packet: bytes
    udp: PacketSocket
    "which has received it"
    local: Local | None = None
    "our address that it was sent to, where there are several"


class FailedPackets:
    """Where the receivers leave a sample for the main thread."""

    def __init__(self) -> None:
        self._sample: Sample | None = None
        self._next_at = 0

    def wants_sample(self, now: int) -> bool:
        return self._sample is None and now >= self._next_at

    def put(self, sample: Sample, now: int) -> None:
        self._next_at = now + SAMPLE_EVERY
        self._sample = sample

    def take(self) -> Sample | None:
        """The sample that has come in since the last call, if any."""
        sample, self._sample = self._sample, None
        return sample


class FailedPacketSampler:
    """The eyes of one receiver: `before` each batch is opened, `after` one in which packets failed."""

    def __init__(self, failed_packets: FailedPackets, counters: Counters, udp: PacketSocket) -> None:
        """`counters` are those the packets are counted in."""
        self._failed_packets = failed_packets
        self._counters = counters
        self._udp = udp
        self._suspect: Address | None = None
        self._suspect_until = 0
        self._copy: tuple[int, Sample] | None = None

    def before(self, batch: PacketBatch, now: int) -> None:
        """Keep a copy of the suspect's packet, if a sample is wanted and there is one in the batch."""
        self._copy = None
        if not self._failed_packets.wants_sample(now):
            return
        suspect = self._suspect
        if suspect is not None and suspect in batch.addresses:
            index = batch.addresses.index(suspect)
        elif suspect is None and not self._counters.in_packets:
            index, suspect = 0, batch.addresses[0]
        else:
            return
        self._copy = index, Sample(suspect, bytes(batch.packet(index)), self._udp, batch.asked.get(suspect))
        self._suspect = None

    def after(self, batch: PacketBatch, now: int) -> None:
        """Hand in the copy if that packet has failed, else look for a suspect."""
        if self._copy and not batch.lengths[self._copy[0]]:
            self._failed_packets.put(self._copy[1], now)
        elif (self._suspect is None or now >= self._suspect_until) and self._failed_packets.wants_sample(now):
            self._suspect = batch.addresses[batch.lengths.index(0)]
            self._suspect_until = now + SUSPECT_FOR
