"""A new session's first answer over a lossy link, with every client: no lost packet makes anybody wait for long."""

import pytest

from tests.programs import require, require_newest
from tools.bench_sessions import first_answers

WITHIN = 1.0  # s; promised is that, of 200 new sessions at 5 % loss


@pytest.mark.once
@pytest.mark.parametrize("client", ["go", "newest", "ours"])
def test_a_new_session_is_answered_within_a_second(client: str) -> None:
    if client == "go":
        require("kcptun-client")
    if client == "newest":
        require_newest()
    assert max(first_answers(client, 50, seed=1)) < WITHIN
