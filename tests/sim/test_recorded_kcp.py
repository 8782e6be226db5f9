"""Our Kcp in the place of each end of the recorded Go conversations (kcp-go 5.6.1 and 5.6.72).

Every datagram that reached the Go end reaches ours at the same ms, and our send window is given the segments
that the Go end sent. What follows from that alone must then be the same every 50 ms: the bytes, the
round-trip time, how far each side has got, the windows.
"""

from typing import Any

import pytest

from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.congestion import Flight
from kcptun_lite.core.kcp.kcp import Kcp, KcpParams
from kcptun_lite.core.wire import KCP_ACK, KCP_HEADER_SIZE, KCP_PUSH, KCP_SEGMENT
from tests.helpers import vectors

RECORDED = {name: vectors(name) for name in ("kcp_561", "kcp_new")}
CASES = [
    pytest.param(recorded, scenario, end, id=f"{name}-{scenario['name']}-{end}")
    for name, recorded in RECORDED.items()
    for scenario in recorded["scenarios"]
    for end in "AB"
]
Fields = tuple[int, int, int, int, int, int, bytes]


def parse(datagram: bytes) -> list[Fields]:
    """(cmd, wnd, ts, sn, una, length, payload) of each segment."""
    found: list[Fields] = []
    at = 0
    while at < len(datagram):
        _, cmd, _, wnd, ts, sn, una, length = KCP_SEGMENT.unpack_from(datagram, at)
        at += KCP_HEADER_SIZE
        found.append((cmd, wnd, ts, sn, una, length, datagram[at : at + length]))
        at += length
    return found


class Replay:
    """One end of a scenario, driven as the recording says (vectors/README.md)."""

    def __init__(self, scenario: dict[str, Any], end: str) -> None:
        self.scenario = scenario
        self.params = KcpParams(
            nodelay=scenario["nodelay"],
            interval=scenario["interval"],
            resend=scenario["resend"],
            nc=scenario["nc"],
            snd_wnd=scenario["snd_wnd"],
            rcv_wnd=scenario["rcv_wnd"],
            mtu=scenario["mtu"],
            acknodelay=scenario["ack_no_delay"],
        )
        self.counters = Counters()
        self.kcp = Kcp(scenario["conv"], self.params, self.counters, headroom=0, tailroom=0)
        self.received = b""
        self.acknowledged: set[int] = set()
        "sn that our ACKs have named"
        self.una = 0
        "as our last segment told it"
        self.arrived: set[int] = set()
        inward, outward = ("B>A", "A>B") if end == "A" else ("A>B", "B>A")
        delay = scenario["one_way_delay_ms"]
        datagrams = [event for event in scenario["events"] if event["e"] == "dgram"]
        self.coming = [
            (event["t"] + delay, bytes.fromhex(event["hex"]))
            for event in datagrams
            if event["dir"] == inward and not event.get("lost")
        ]
        self.going = [(event["t"], bytes.fromhex(event["hex"])) for event in datagrams if event["dir"] == outward]
        self.silent_until = scenario["b_reader_stalled_until"] if end == "B" else 0

    def step(self, now: int) -> None:
        while self.coming and self.coming[0][0] <= now:
            datagram = self.coming.pop(0)[1]
            self.kcp.receive([memoryview(datagram)], now)
            self.arrived |= {fields[3] for fields in parse(datagram) if fields[0] == KCP_PUSH}
        while now >= self.silent_until and (parts := self.kcp.read()):
            self.received += b"".join(parts)
        self._answer(now)
        while self.going and self.going[0][0] <= now:
            for cmd, _, _, sn, _, _, payload in parse(self.going.pop(0)[1]):
                if cmd == KCP_PUSH and sn == self.kcp.window.snd_nxt:
                    self.kcp.window.push([payload], Flight(now, now), self.kcp.rtt.rto)

    def _answer(self, now: int) -> None:
        batch = PacketBatch(memoryview(bytearray(65536)))
        self.kcp.flush(batch, now, 40)
        for packet in batch.views():
            for cmd, _, _, sn, una, _, _ in parse(bytes(packet)):
                self.una = max(self.una, una)
                if cmd == KCP_ACK:
                    self.acknowledged.add(sn)

    def state(self) -> dict[str, int]:
        kcp = self.kcp
        return {
            "srtt": kcp.rtt.srtt,
            "rttvar": kcp.rtt.rttvar,
            "rto": kcp.rtt.rto,
            "snd_una": kcp.window.snd_una,
            "snd_nxt": kcp.window.snd_nxt,
            "rmt_wnd": kcp.rmt_wnd,
            "len_snd_buf": len(kcp.window.segments),
        }


@pytest.mark.parametrize(("recorded", "scenario", "end"), CASES)
def test_each_go_end_can_be_ours(recorded: dict[str, Any], scenario: dict[str, Any], end: str) -> None:
    replay = Replay(scenario, end)
    states = {state["t"]: dict(zip(recorded["state_fields"], state[end], strict=True)) for state in scenario["states"]}
    for now in range(scenario["T"] + 1):
        replay.step(now)
        if now in states:
            ours, theirs = replay.state(), states[now]
            assert ours == {name: theirs[name] for name in ours}
            # All we have is acknowledged, nothing else is, and the Go end has the same segments in order.
            assert replay.arrived >= replay.acknowledged
            assert replay.arrived <= replay.acknowledged | set(range(replay.una))
            assert replay.kcp.received.count == theirs["len_rcv_queue"]
            assert replay.una in (theirs["rcv_nxt"], 0)
    # What A writes is all there is: B echoes it.
    written = b"".join(bytes.fromhex(e["hex"]) for e in scenario["events"] if e["e"] == "write" and e["end"] == "A")
    assert len(replay.received) == scenario[f"rx_{end}_len"]
    assert written.startswith(replay.received)
    assert replay.counters.kcp_in_errors == 0
