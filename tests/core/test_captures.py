"""Recorded sessions of all generations, replayed into our two ends: every byte of every connection comes out.

Each server is set to something else than the client, which it has to find out from the packets.
"""

import hashlib
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import pytest

from kcptun_lite.app.server import differences_from
from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import BATCH_BYTES, BufferPool
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import derive_key, make_crypt
from kcptun_lite.core.mux.smux import StreamOpened
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.wire import fec_type, first_segment
from tests.helpers import kcp_params, vectors

POOL = BufferPool(nullcontext())
KEY = derive_key("it's a secrect")


class Capture(NamedTuple):
    """A recording and what its two programs were set to."""

    name: str
    crypt: str = "aes"
    fec: bool = True
    compress: bool = True
    smux_version: int = 1


CAPTURES = [
    Capture("cap_2017_default"),
    Capture("cap_aes_default"),
    Capture("cap_salsa20_nocomp", crypt="salsa20", compress=False),
    Capture("cap_none_nofec", crypt="none", fec=False),
    Capture("cap_smux2_window", smux_version=2),
    Capture("cap_new_null", crypt="null", fec=False, compress=False),
]


def opened(capture: Capture, recording: Any, direction: str, counters: Counters) -> Iterator[tuple[int, bytes]]:
    """(ms, body) of the datagrams that arrived, those that fail their check left out."""
    crypt = make_crypt(capture.crypt, KEY, bytes, POOL)
    for datagram in recording["datagrams"]:
        if datagram["dir"] != direction or datagram.get("lost"):
            continue
        packet = bytes.fromhex(datagram["hex"])
        batch = PacketBatch(memoryview(bytearray(-len(packet) % 16 + len(packet))))
        batch.arena[: len(packet)] = packet
        batch.commit(len(packet))
        crypt.open(batch, counters)
        for view in batch.views():
            yield int(datagram["t"]), bytes(view)


def params(capture: Capture, **changes: Any) -> ConversationParams:
    return ConversationParams(
        kcp_params(),
        data_shards=10 * capture.fec,
        parity_shards=3 * capture.fec,
        compress=capture.compress,
        smux_version=capture.smux_version,
    )._replace(**changes)


def conversation(conv: int, settings: ConversationParams, counters: Counters, *, is_client: bool) -> Conversation:
    return Conversation(conv, settings, counters, is_client=is_client, headroom=20, tailroom=0, now=0)


def assert_is(received: bytes, connection: Any, which: str) -> None:
    if connection[which] is not None:
        assert received == bytes.fromhex(connection[which])
    else:
        assert len(received) == connection[f"{which}_len"]
        assert hashlib.sha1(received).hexdigest() == connection[f"{which}_sha1"]


def send_as_recorded(end: Conversation, sid: int, size: int) -> None:
    """Send as much as the recorded end: its peer tells how much of it was consumed, which is checked."""
    assert end.send_stream_data(sid, memoryview(bytes(size))) == size


@pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.name)
def test_our_server_understands_the_client_whatever_it_is_set_to_itself(capture: Capture) -> None:
    recording = vectors(capture.name)
    counters = Counters()
    own = params(
        capture,
        data_shards=10 * (not capture.fec),
        parity_shards=3 * (not capture.fec),
        compress=not capture.compress,
        smux_version=3 - capture.smux_version,
        adapts=True,
    )
    server: Conversation | None = None
    received: dict[int, bytearray] = {}
    answers: list[bytes] = []
    for now, body in opened(capture, recording, "C>S", counters):
        if server is None:
            segment = first_segment(body)
            assert segment and segment[1] == 0
            server = conversation(segment[0], own.answering(fec=fec_type(body) > 0), counters, is_client=False)
        server.receive_packets([memoryview(body)], now)
        for event in server.take_events():
            if isinstance(event, StreamOpened):
                received[event.sid] = bytearray()
                if capture.smux_version == 2:
                    send_as_recorded(server, event.sid, recording["connections"][0]["client_received_len"])
        for sid, data in received.items():
            while chunks := server.take_stream_data(sid, 1 << 20):
                data += b"".join(chunks)
        batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
        server.packets_to_send(batch, now)
        answers += [bytes(view)[20:] for view in batch.views()]
    assert server is not None
    assert len(received) == len(recording["connections"])
    for (_, data), connection in zip(sorted(received.items()), recording["connections"], strict=True):
        assert_is(bytes(data), connection, "client_sent")
    assert (server.smux_version, server.is_compressed) == (capture.smux_version, capture.compress)
    assert {fec_type(body) > 0 for body in answers} == {capture.fec}, "answers in kind"
    differences = [
        f"--smuxver {capture.smux_version}",
        "compression" if capture.compress else "--nocomp",
        "--datashard 10 --parityshard 3" if capture.fec else "--datashard 0",
    ]
    assert differences_from(own, server) == differences
    # Its ping is noise (docs/protocol.md, "NAT ping of 2017").
    assert counters.in_checksum_errors == (capture.name == "cap_2017_default")


@pytest.mark.parametrize("is_told", [True, False], ids=["told", "guessing"])
@pytest.mark.parametrize("capture", CAPTURES, ids=lambda capture: capture.name)
def test_our_client_understands_the_server(capture: Capture, is_told: bool) -> None:
    """Also if smux version and compression were a guess, and nothing was known of its error correction."""
    recording = vectors(capture.name)
    counters = Counters()
    bodies = list(opened(capture, recording, "S>C", counters))
    conv = next(segment[0] for _, body in bodies if (segment := first_segment(body)))
    untold = {"is_guess": True, "data_shards": 10, "parity_shards": 3, "has_own_shards": False}
    client = conversation(conv, params(capture, **({} if is_told else untold)), counters, is_client=True)
    sids = [client.open_stream() for _ in recording["connections"]]
    received = {sid: bytearray() for sid in sids}
    unsent = recording["connections"][0]["client_sent_len"] if capture.smux_version == 2 else 0
    for now, body in bodies:
        while unsent and (taken := client.send_stream_data(sids[0], memoryview(bytes(unsent)))):
            unsent -= taken
        client.receive_packets([memoryview(body)], now)
        for sid, data in received.items():
            while chunks := client.take_stream_data(sid, 1 << 20):
                data += b"".join(chunks)
    for sid, connection in zip(sids, recording["connections"], strict=True):
        assert_is(bytes(received[sid]), connection, "client_received")
    assert client.guess is None
    client.ping()
    batch = PacketBatch(memoryview(bytearray(BATCH_BYTES)))
    client.packets_to_send(batch, bodies[-1][0])
    assert {fec_type(bytes(view)[20:]) > 0 for view in batch.views()} == {capture.fec}, "as the server does it"
    assert counters.in_checksum_errors == 0
