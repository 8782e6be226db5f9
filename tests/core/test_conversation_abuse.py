"""A peer that has the key and means no good: what it makes us keep has a bound."""

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES
from kcptun_lite.core.conversation import ANSWERS_MAX, Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.kcp import KcpParams
from kcptun_lite.core.mux.snappy import SnappyEncoder
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.wire import (
    KCP_PUSH,
    KCP_SEGMENT,
    KCP_WINS,
    SMUX_FIN,
    SMUX_HEADER,
    SMUX_NOP,
    SMUX_PSH,
    SMUX_SYN,
)
from kcptun_lite.errors import RemoteProtocolError

CONV = 7
WINDOW = 64  # segments


class Server:
    """A conversation whose peer is this class."""

    def __init__(self, *, compress: bool) -> None:
        kcp = KcpParams(rcv_wnd=WINDOW, snd_wnd=WINDOW)
        params = ConversationParams(kcp, data_shards=0, parity_shards=0, compress=compress, max_streams=4)
        self.conversation = Conversation(CONV, params, Counters(), is_client=False, headroom=0, tailroom=0, now=0)
        self._encoder = SnappyEncoder() if compress else None
        self._batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
        self._stream = b""
        self.sent = 0

    def say(self, frames: bytes) -> bool:
        """Bytes of the peer, in order; False when the server's window is shut."""
        self._stream += self._encoder.encode([frames]) if self._encoder else frames
        while self._stream:
            before = self.conversation.kcp.progress()[1]
            piece = self._stream[:1400]
            self.hear(KCP_SEGMENT.pack(CONV, KCP_PUSH, 0, 128, 0, before, 0, len(piece)) + piece)
            if self.conversation.kcp.progress()[1] == before:
                return False
            self._stream = self._stream[len(piece) :]
            self.sent += len(piece)
        return True

    def hear(self, packet: bytes) -> None:
        self.conversation.receive_packets([memoryview(packet)], 0)

    def acknowledge_all(self) -> int:
        """Take all that the server has to send at this moment; returns how many segments."""
        kcp = self.conversation.kcp
        before = kcp.window.snd_una
        while kcp.queued_bytes or kcp.window.segments:
            self.conversation.packets_to_send(self._batch, 0)
            self._batch.clear()
            una = kcp.window.snd_nxt & 0xFFFFFFFF
            self.hear(KCP_SEGMENT.pack(CONV, KCP_WINS, 0, 128, 0, 0, una, 0))
        return kcp.window.snd_una - before


REFUSED = b"".join(SMUX_HEADER.pack(1, SMUX_SYN, 0, 99 + 2 * number) for number in range(7000))
STREAMS = b"".join(SMUX_HEADER.pack(1, SMUX_SYN, 0, sid) for sid in (3, 5, 7, 9))


@pytest.mark.parametrize("compress", [False, True])
def test_refusals_that_the_peer_does_not_take_stop_us_reading(compress: bool) -> None:
    server = Server(compress=compress)
    server.say(STREAMS)
    for _ in range(20_000):
        if not server.say(REFUSED):
            break
    else:
        raise AssertionError("it can go on for ever")
    slack = 1 << 20  # one block of frames expanded
    assert server.conversation.kcp.queued_bytes < ANSWERS_MAX + slack
    assert server.conversation.held_bytes < ANSWERS_MAX + slack + WINDOW * 3000


def test_reading_goes_on_when_the_peer_takes_the_answers() -> None:
    server = Server(compress=False)
    server.say(STREAMS)
    while server.say(REFUSED):
        pass
    stopped_at = server.sent
    assert server.acknowledge_all() > 100
    assert server.say(REFUSED)
    assert server.sent > stopped_at


@pytest.mark.parametrize("frame", [(SMUX_NOP, 0), (SMUX_FIN, 99), (SMUX_PSH, 3)], ids=["nop", "fin", "empty data"])
def test_frames_that_cost_no_bytes_end_the_session(frame: tuple[int, int]) -> None:
    """Compressed, thousands of them fit into a packet; each takes a microsecond here."""
    server = Server(compress=True)
    server.say(STREAMS)
    block = SMUX_HEADER.pack(1, frame[0], 0, frame[1]) * 8192
    with pytest.raises(RemoteProtocolError, match="more frames"):
        for _ in range(10):
            server.say(block)
    assert server.conversation._streams.frames_received < 20_000


def test_frames_that_differ_may_be_compressed_as_well_as_can_be() -> None:
    """A thousand streams that are opened and shut at once, as our own encoder packs them."""
    server = Server(compress=True)
    for first in range(3, 20_003, 2000):
        sids = range(first, first + 2000, 2)
        server.say(b"".join(SMUX_HEADER.pack(1, SMUX_SYN, 0, sid) for sid in sids))
        server.say(b"".join(SMUX_HEADER.pack(1, mark, 0, sid) for sid in sids for mark in (SMUX_PSH, SMUX_FIN)))
        server.acknowledge_all()
        for sid in sids:
            server.conversation.close_stream(sid)
    assert server.conversation._streams.frames_received == 30_000
