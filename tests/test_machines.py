"""The recipes of docs/scaling.md with the real balancers: one of two servers dies, returns, goes silent, is drained."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.balancers import BALANCERS, PORT, SERVERS, Backend, Machines
from tests.programs import wait_until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make networks")

BACK_WITHIN = 5.0  # s, until new connections work


@contextmanager
def machines(balancer: str, directory: Path) -> Iterator[Machines]:
    with ExitStack() as stack:
        yield Machines(stack, balancer, directory)


def goes_elsewhere(here: Machines, backend: Backend, port: int = 12948) -> None:
    wait_until(lambda: here.works(port, unless=lambda one: one is backend), "the other server", BACK_WITHIN)


@pytest.mark.parametrize("balancer", BALANCERS)
def test_new_connections_work_whatever_becomes_of_one_of_two_servers(balancer: str, tmp_path: Path) -> None:
    with machines(balancer, tmp_path) as here:
        here.dial()
        wait_until(here.works, "the first connection")
        first = here.connect()[1]
        first.kill()
        goes_elsewhere(here, first)
        second = here.connect()[1]
        assert second is not first

        first.come_back()
        wait_until(lambda: here.is_known_to_live(first), "the balancer has it back")
        current = here.connect()[1]  # nginx takes the client back to where its hash leads
        current.silence()
        goes_elsewhere(here, current)
        current.come_back()
        wait_until(lambda: here.is_known_to_live(current), "the balancer has it back")

        old, drained = here.connect()
        drained.drain()
        goes_elsewhere(here, drained)
        if balancer != "nginx":  # which makes new flows of all, after each change
            old.sendall(b"still there")
            assert old.recv(5) == b"still"


def test_sessions_are_dealt_out_by_weights_and_leave_a_server_that_has_died(tmp_path: Path) -> None:
    with machines("list", tmp_path) as here:
        remote = f"{SERVERS[0]}:{PORT}*3,{SERVERS[1]}:{PORT}"
        here.dial(remoteaddr=remote, conn=4)
        reached = [here.connect(timeout=10.0)[1].number for _ in range(8)]
        assert (reached.count(1), reached.count(2)) == (6, 2)
        heavy = here.backends[0]
        heavy.kill()
        goes_elsewhere(here, heavy)
        wait_until(lambda: all([here.works(unless=lambda one: one is heavy) for _ in range(4)]), "all sessions")
