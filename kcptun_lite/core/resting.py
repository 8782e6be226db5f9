"""A conversation that rests, as a few numbers with which another process can go on.

In      a conversation; or the numbers of one, and a conversation that has just begun
Out     the numbers, or None if anything is under way; the other one in its place
Knows   what each layer remembers (it is the one friend that looks into a conversation). Not: addresses, processes
Cost    nothing until a server is reloaded
"""

from typing import TypedDict

from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.fec.encoder import FecEncoder
from kcptun_lite.core.mux.snappy import SnappyEncoder
from kcptun_lite.core.wire import SMUX_HEADER, SMUX_NOP


class State(TypedDict):
    """Plain, so that marshal can carry it."""

    kcp: tuple[int, int, int, int]
    "una, rcv_nxt, the peer's window, its clock"
    smux_version: int
    is_compressed: bool
    fec: tuple[int, int, int] | None
    "data and parity shards, the next group; None: nothing is protected"


def rest_of(conversation: Conversation) -> State | None:
    """What the next one needs to know; None if streams are open, or anything is under way or cut in the middle."""
    kcp, smux, layer, encoder = conversation.kcp, conversation.smux, conversation._layer, conversation._encoder
    if smux is None or smux.stream_count or layer.held_bytes or not kcp.is_resting:
        return None
    una, next_sn, _ = kcp.progress()
    shards = None
    if isinstance(encoder, FecEncoder):
        shards = encoder.data_shards, encoder.parity_shards, encoder.next_group
    return {
        "kcp": (una, next_sn, kcp.rmt_wnd, kcp.peer_ts),
        "smux_version": conversation.smux_version,
        "is_compressed": conversation.is_compressed,
        "fec": shards,
    }


def go_on_with(conversation: Conversation, state: State, now: int) -> None:
    """Have a conversation that was begun with the same number, and has heard nothing, go on; its peer is validated."""
    conversation.validation.is_validated = True
    conversation.kcp.is_terse = False
    conversation.kcp.go_on(*state["kcp"])
    if state["fec"]:
        conversation._take_shards(*state["fec"])
    opening = SMUX_HEADER.pack(state["smux_version"], SMUX_NOP, 0, 0)  # how such a stream begins tells all about it
    conversation._layer.feed(SnappyEncoder().encode([opening]) if state["is_compressed"] else opening, now)
    conversation._push_frames()
