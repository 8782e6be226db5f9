"""A tunnel of relays for each test that asks for it."""

from collections.abc import Iterator

import pytest

from tests.net.fakes import wait_until
from tests.net.tcp.lines import Relays


@pytest.fixture
def relays() -> Iterator[Relays]:
    relays = Relays()
    with relays.wire, relays.wire.carrying():
        yield relays
        for line in relays.lines:
            line.relay.stop()
            line.tcp.close()
            wait_until(lambda line=line: bool(line.closed))  # type: ignore[misc]
    relays.context.loop.stop()
    assert relays.context.pool.usage().in_use_bytes == 0
