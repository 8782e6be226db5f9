"""One router for the tests of a file, empty for each of them."""

from collections.abc import Iterator

import pytest

from tests.openwrt.router import Router


@pytest.fixture(scope="module")
def booted() -> Iterator[Router]:
    with Router() as router:
        yield router


@pytest.fixture
def router(booted: Router) -> Router:
    booted.reset()
    return booted
