"""One stream that nobody reads beside another, over a line that holds more than the buffer for both."""

import pytest

from kcptun_lite.core.params import ConversationParams
from tests.helpers import ConversationPair, kcp_params, noise

LINE = {"delay": 100, "rate": 100.0, "queue": 200}  # 2.5 MB under way


@pytest.mark.parametrize("loss", [0.0, 0.01])
@pytest.mark.parametrize("stops", ["client", "server"])
def test_the_other_one_goes_on_and_nothing_is_lost(stops: str, loss: float) -> None:
    kcp = kcp_params("fast", snd_wnd=2048, rcv_wnd=2048)
    params = ConversationParams(kcp=kcp, compress=False, smux_buffer=1 << 20, stream_buffer=1 << 19)
    pair = ConversationPair(params, params_b=params._replace(adapts=True), link={**LINE, "loss": loss})
    reader, writer = (pair.a, pair.b) if stops == "client" else (pair.b, pair.a)
    stuck, other = pair.a.open_stream(), pair.a.open_stream()
    for sid in (stuck, other):
        pair.a.write(sid, b"begin")
    pair.drive(lambda: all(pair.b.received.get(sid) == b"begin" for sid in (stuck, other)), limit=2000)
    data = noise(8_000_000)
    writer.write(stuck, data)
    pair.drive(limit=1000)  # it is at full speed
    reader.is_reading = False
    pair.drive(limit=5000)
    assert not reader.conversation.is_held_up and not writer.conversation.is_held_up
    assert writer.conversation.stream_room(stuck) == 0
    writer.write(other, b"more")
    before = pair.now
    got = bytearray()

    def read() -> bool:
        got.extend(b"".join(reader.conversation.take_stream_data(other, 1000)))
        return got == b"more"

    pair.drive(read, limit=2000)
    assert pair.now - before < 1000
    reader.is_reading = True
    reader.work(pair.now)
    pair.drive(lambda: bytes(reader.received[stuck]).endswith(data), limit=60_000)
