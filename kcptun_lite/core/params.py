"""What an end is set to, as the core sees it.

In      numbers and switches
Out     `ConversationParams`
Knows   which of them a peer changes. Not: options, where they come from
Wire    docs/protocol.md, "Options"
"""

from typing import NamedTuple

from kcptun_lite.core.batch.pool import BATCH_BYTES
from kcptun_lite.core.batch.strided import PACKET_ALIGNMENT
from kcptun_lite.core.kcp.kcp import KcpParams
from kcptun_lite.core.mux.dialect import Dialect
from kcptun_lite.core.wire import (
    FEC_DEFAULT_SHARDS,
)


class ConversationParams(NamedTuple):
    """What an end is set to (docs/protocol.md, "Options"); sizes in bytes, times in ms."""

    kcp: KcpParams
    data_shards: int = 10
    parity_shards: int = 3
    has_own_shards: bool = True
    "False: they are kcptun's, for want of others, and two of ours do without"
    compress: bool = True
    smux_version: int = 1
    max_frame: int = 32_768
    smux_buffer: int = 4_194_304
    stream_buffer: int = 2_097_152
    keepalive: int = 10_000
    max_streams: int = 1024
    adapts: bool = False
    "take smux version, compression and shards from what the peer sends (servers)"
    is_guess: bool = False
    "smux version and compression may not be the peer's: what is said is kept until it has understood (clients)"

    @property
    def has_fec(self) -> bool:
        return self.data_shards > 0 and self.parity_shards > 0

    @property
    def batch_bytes(self) -> int:
        """The size of batch a conversation needs."""
        return max(BATCH_BYTES, self.group_bytes)

    @property
    def group_bytes(self) -> int:
        """The least room for packets at once: a group's parity must fit beside its data."""
        return (self.parity_shards + 16) * self.slot

    @property
    def shards_bytes(self) -> int:
        """What error correction holds of a whole group, of these numbers."""
        return (self.data_shards + self.parity_shards) * self.slot if self.has_fec else 0

    @property
    def slot(self) -> int:
        """The most that a packet takes, aligned."""
        return -(-self.kcp.mtu // PACKET_ALIGNMENT) * PACKET_ALIGNMENT

    def in_dialect(self, dialect: Dialect, *, is_guess: bool) -> "ConversationParams":
        """The same, speaking this."""
        return self._replace(smux_version=dialect.smux_version, compress=dialect.compress, is_guess=is_guess)

    def within(self, mtu: int) -> "ConversationParams":
        """The same with packets of at most so many bytes."""
        return self._replace(kcp=self.kcp._replace(mtu=min(mtu, self.kcp.mtu)))

    def answering(self, *, fec: bool) -> "ConversationParams":
        """What to be set to for a peer whose first packet has a FEC header, or has none.

        Who adapts answers in kind, because kcptun of 2017 reads either FEC or bare packets
        (docs/protocol.md, "Bare or FEC").
        """
        if not self.adapts or fec == self.has_fec:
            return self
        data, parity = FEC_DEFAULT_SHARDS if fec else (0, 0)
        return self._replace(data_shards=data, parity_shards=parity)
