"""A transfer without windows over a simulated line: what the tests of the model and tools/draw_line.py watch."""

from kcptun_lite.core.kcp.line_model import LineModel
from tests.helpers import KcpPair, kcp_params

HEADERS = 0.94  # of what a line carries is payload: see tests/sim/test_line_model.py
MEASURED = 8_000  # ms
BLOCK = bytes(1 << 20)


class Bulk:
    """One end keeps the other's reader busy."""

    Pair = KcpPair

    def __init__(self, *, seed: int = 1, back: dict[str, float] | None = None, **link: float) -> None:
        params = kcp_params("fast", snd_wnd=0xFFFF, rcv_wnd=0xFFFF, follows_line=True)
        clean = {key: value for key, value in link.items() if key not in ("rate", "queue")}
        self.pair = self.Pair(params, link=dict(link), link_back=clean if back is None else back, seed=seed)
        for end in (self.pair.a, self.pair.b):
            end.kcp.know_ours()
        self.received = 0
        self.pair.b.on_data = self._count
        self._begin()
        self._refill()

    def _begin(self) -> None:
        """For what a kind of transfer does differently."""

    def _refill(self) -> None:
        if self.pair.a.kcp.queued_bytes + sum(map(len, self.pair.a._backlog)) < 4 * len(BLOCK):
            self.pair.a.write(BLOCK)
        self.pair.at(self.pair.now + 2, self._refill)

    def _count(self) -> None:
        self.received += len(self.pair.b.received)
        self.pair.b.received.clear()

    @property
    def model(self) -> LineModel:
        control = self.pair.a.kcp.control
        assert isinstance(control, LineModel)
        return control

    def goodput(self, ms: int = MEASURED) -> float:
        """Mbit/s of the next so many ms."""
        before = self.received
        self.pair.drive(limit=ms)
        return (self.received - before) * 8 / ms / 1000

    def queue(self, ms: int) -> list[float]:
        """Sorted ms that the line's queue was long in the next so many ms."""
        seen: list[float] = []
        end = self.pair.now + ms
        while self.pair.now < end:
            self.pair.drive(limit=7)
            seen.append(max(0.0, self.pair.a_to_b._busy_until - self.pair.now))
        return sorted(seen)
