"""The way to the servers: who is next, who must wait, which address and which port."""

import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError
from kcptun_lite.net.ends import route as room
from kcptun_lite.net.ends.route import BENCH_TIME, WAY_TIME, Route, Server
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket
from tests.net.fakes import PATIENCE_S, Clock, FakeUdp, in_background, wait_until

A, B, C = Server("a", 1000, 1000), Server("b", 2000, 2000), Server("c", 3000, 3000)


class Names:
    """Stands in for the resolver and the sockets: a host is its own address unless it has others."""

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.dialed: list[tuple[str, int]] = []
        self.dead: set[str] = set()
        self.waiting = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    def dial(self, host: str, port: int, options: UdpOptions) -> tuple[Any, list[Address]]:
        self.waiting += 1
        self.may_answer.wait(PATIENCE_S)
        self.waiting -= 1
        self.dialed.append((host, port))
        if host in self.dead:
            raise TransportError(f"cannot resolve {host}")
        return FakeUdp(), [(address, port) for address in self.addresses.get(host, [host])]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    names = Names()
    monkeypatch.setattr(UdpSocket, "dial", names.dial)
    return names


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(room, "monotonic_ms", clock)
    return clock


@pytest.fixture
def make_route(names: Names) -> Iterator[Callable[..., Route]]:
    yield lambda *servers: Route(list(servers), UdpOptions(), threading.Event())


def hosts(route: Route, count: int) -> str:
    """The hosts given out when each one fails."""
    found = ""
    for _ in range(count):
        remote = route.open()[1]
        found += remote[0]
        route.failed(remote)
    return found


def test_a_server_is_used_until_it_fails(make_route: Callable[..., Route]) -> None:
    route = make_route(A, B)
    assert [route.open()[1] for _ in range(3)] == [("a", 1000)] * 3
    route.failed(("a", 1000))
    assert [route.open()[1] for _ in range(3)] == [("b", 2000)] * 3


def test_servers_take_turns_while_all_fail(make_route: Callable[..., Route]) -> None:
    assert hosts(make_route(A, B, C), 7) == "abcabca"


def test_the_only_server_is_tried_again_and_again(make_route: Callable[..., Route]) -> None:
    assert hosts(make_route(A), 4) == "aaaa"


@pytest.mark.usefixtures("clock")
def test_at_one_moment_all_fail_and_still_each_has_its_turn(make_route: Callable[..., Route]) -> None:
    assert sorted(hosts(make_route(A, B, C), 3)) == ["a", "b", "c"]


def test_who_has_failed_is_passed_over_until_its_time_is_up(make_route: Callable[..., Route], clock: Clock) -> None:
    route = make_route(A, B, C)
    assert hosts(route, 1) == "a"
    clock.now += BENCH_TIME - 1
    assert hosts(route, 2) == "bc", "a has still one ms to wait when b fails"
    clock.now += BENCH_TIME
    assert hosts(route, 3) == "abc", "all are as good as new"


def test_several_sessions_that_lose_one_server_go_to_the_same_next_one(make_route: Callable[..., Route]) -> None:
    route = make_route(A, B)
    sessions = [route.open()[1] for _ in range(4)]
    moved = []
    for remote in sessions:
        route.failed(remote)
        moved.append(route.open()[1])
    assert moved == [("b", 2000)] * 4


def test_servers_on_one_host_are_told_apart_by_their_ports(make_route: Callable[..., Route]) -> None:
    route = make_route(A, Server("a", 3000, 3999))
    first = route.open()[1]
    route.failed(first)
    assert route.open()[1][1] in range(3000, 4000)
    route.failed(first)  # said before
    assert route.open()[1][1] in range(3000, 4000)


def test_servers_on_one_host_may_share_ports(
    make_route: Callable[..., Route], names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", lambda size: bytes(size - 1) + b"\1")  # the second port of each range
    names.addresses["b"] = ["a"]  # another name of the same host
    route = make_route(A, Server("b", 1000, 1001), C)
    first = route.open()[1]
    route.failed(first)
    second = route.open()[1]
    assert (first, second) == (("a", 1000), ("a", 1001))
    route.failed(first)  # said before
    assert route.open()[1] == second
    route.failed(second)
    assert route.open()[1] == ("c", 3000)


def test_a_server_reported_while_another_socket_is_made_is_reported_once(
    make_route: Callable[..., Route], names: Names
) -> None:
    route = make_route(A, B)
    remote = route.open()[1]
    names.may_answer.clear()
    late = in_background(route.open)
    wait_until(lambda: names.waiting == 1)
    route.failed(remote)
    names.may_answer.set()
    assert late.result()[1] == remote
    route.failed(remote)  # by who has just got it
    assert route.open()[1] == ("b", 2000)


def test_several_sessions_that_lose_one_address_go_to_the_same_next_one(
    make_route: Callable[..., Route], names: Names
) -> None:
    names.addresses["a"] = ["a1", "a2"]
    route = make_route(A)
    sessions = [route.open()[1] for _ in range(2)]
    for remote in sessions:
        route.failed(remote)
        assert route.open()[1] == ("a2", 1000)


def test_each_failure_brings_the_next_address_of_a_name(make_route: Callable[..., Route], names: Names) -> None:
    names.addresses["a"] = ["a1", "a2", "a3"]
    route = make_route(A)
    given = []
    for _ in range(4):
        given.append(route.open()[1])
        route.failed(given[-1])
    assert [host for host, *_ in given] == ["a1", "a2", "a3", "a1"]


def test_a_name_that_has_lost_addresses_meanwhile_still_gives_one(
    make_route: Callable[..., Route], names: Names
) -> None:
    names.addresses["a"] = ["a1", "a2", "a3"]
    route = make_route(A)
    for _ in range(2):
        route.failed(route.open()[1])
    names.addresses["a"] = ["a1"]
    assert route.open()[1] == ("a1", 1000)


def test_each_socket_gets_a_port_of_the_range(make_route: Callable[..., Route], names: Names) -> None:
    route = make_route(Server("a", 5000, 5003))
    for _ in range(200):
        route.open()
    assert {port for _, port in names.dialed} == {5000, 5001, 5002, 5003}


def test_a_wanted_port_is_given_if_its_server_has_it(make_route: Callable[..., Route]) -> None:
    route = make_route(Server("a", 5000, 5999), Server("b", 7000, 7000))
    assert {route.open(5000 + i)[1] for i in (0, 7, 999)} == {("a", 5000), ("a", 5007), ("a", 5999)}
    route.failed(("a", 5007))
    assert route.open(5007)[1] == ("b", 7000)


def test_a_server_that_cannot_be_dialed_is_benched_too(make_route: Callable[..., Route], names: Names) -> None:
    names.dead.add("a")
    route = make_route(A, B)
    with pytest.raises(TransportError, match="cannot resolve a"):
        route.open()
    assert route.open()[1] == ("b", 2000)


def test_a_dead_resolver_holds_a_stopping_program_no_longer(names: Names) -> None:
    names.may_answer.clear()
    stop = threading.Event()
    opening = in_background(Route([A], UdpOptions(), stop).open)
    stop.set()
    with pytest.raises(TransportError, match="the name server does not answer"):
        opening.result()
    names.may_answer.set()


def test_a_real_socket_to_a_real_name() -> None:
    udp, remote = Route([Server("localhost", 9, 9)], UdpOptions(), threading.Event()).open()
    assert remote[1] == 9
    udp.close()


@pytest.mark.parametrize("is_silent", [False, True], ids=["refuses", "silent"])
def test_a_dead_resolver_hides_no_address_that_was_known(
    names: Names, monkeypatch: pytest.MonkeyPatch, is_silent: bool
) -> None:
    monkeypatch.setattr(room, "RESOLVE_QUICKLY", 0.0)
    names.addresses["a"] = ["10.0.0.1", "10.0.0.2"]
    route = Route([A], UdpOptions(), threading.Event())
    assert route.open()[1] == ("10.0.0.1", 1000)
    recovers = threading.Event()

    def dial(host: str, port: int, options: UdpOptions) -> tuple[Any, list[Address]]:
        if host == "a":
            if is_silent:
                recovers.wait(PATIENCE_S)
            raise TransportError("cannot resolve a")
        return names.dial(host, port, options)

    monkeypatch.setattr(route, "_ways", (dial,))
    found = []
    for _ in range(3):
        found.append(route.open()[1])
        route.failed(found[-1])
    assert found == [("10.0.0.1", 1000), ("10.0.0.2", 1000), ("10.0.0.1", 1000)]
    recovers.set()


# -- two ways ------------------------------------------------------------------------------------------------


class Ways(Names):
    """Two ways to every server, and which of them was taken each time."""

    def __init__(self) -> None:
        super().__init__()
        self.taken: list[str] = []

    def ways(self) -> list[Any]:
        def by(name: str) -> Any:
            def dial(host: str, port: int, options: UdpOptions) -> tuple[Any, list[Address]]:
                self.taken.append(name)
                return self.dial(host, port, options)

            return dial

        return [by("udp"), by("tcp")]

    def route(self, *servers: Server) -> Route:
        return Route(list(servers), UdpOptions(), threading.Event(), self.ways())


def test_a_server_is_tried_both_ways_before_the_next(clock: Clock) -> None:
    ways = Ways()
    route = ways.route(A, B)
    for _ in range(4):
        _, remote = route.open()
        route.failed(remote)
        clock.now += WAY_TIME
    assert ways.taken == ["udp", "tcp", "udp", "tcp"]
    assert [host for host, _ in ways.dialed] == ["a", "a", "b", "b"]


def test_the_second_way_is_given_time(clock: Clock) -> None:
    """Other sessions that have lost the first one report it, too."""
    ways = Ways()
    route = ways.route(A, B)
    _, remote = route.open()
    route.failed(remote)
    route.open()
    clock.now += WAY_TIME - 1
    route.failed(remote)
    route.open()
    clock.now += 1
    route.failed(remote)
    route.open()
    assert ways.taken == ["udp", "tcp", "tcp", "udp"]
    assert [host for host, _ in ways.dialed] == ["a", "a", "a", "b"]


def test_the_first_way_is_preferred_again(clock: Clock) -> None:
    ways = Ways()
    route = ways.route(A)
    _, remote = route.open()
    route.failed(remote)
    assert route.open_first_way(remote)[1] == remote
    route.open()
    route.prefer_first_way()
    route.open()
    assert ways.taken == ["udp", "udp", "tcp", "udp"]


def test_weights_deal_sessions_out(make_route: Callable[..., Route]) -> None:
    route = make_route(A._replace(weight=3), B._replace(weight=1))
    dealt = "".join(route.open()[1][0] for _ in range(40))
    assert (dealt.count("a"), dealt.count("b")) == (30, 10)
    assert "aaaa" not in dealt, "evenly mixed"


def test_clients_with_one_session_are_dealt_out_as_well(
    make_route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    firsts = []
    for turn in range(8):
        monkeypatch.setattr(os, "urandom", lambda size, turn=turn: turn.to_bytes(size, "big"))
        firsts.append(make_route(A._replace(weight=3), B._replace(weight=1)).open()[1][0])
    assert (firsts.count("a"), firsts.count("b")) == (6, 2)


def test_a_weighted_server_that_fails_gets_no_sessions_until_its_time_is_up(
    make_route: Callable[..., Route], clock: Clock
) -> None:
    route = make_route(*(server._replace(weight=1) for server in (A, B, C)))
    remotes = {route.open()[1] for _ in range(3)}
    assert remotes == {("a", 1000), ("b", 2000), ("c", 3000)}
    route.failed(("a", 1000))
    assert sorted(route.open()[1][0] for _ in range(4)) == ["b", "b", "c", "c"]
    clock.now += BENCH_TIME
    assert sorted(route.open()[1][0] for _ in range(3)) == ["a", "b", "c"]


@pytest.mark.usefixtures("clock")
def test_a_session_keeps_its_weighted_server_until_that_fails(make_route: Callable[..., Route]) -> None:
    route = make_route(A._replace(weight=1), B._replace(weight=1))
    remote = route.open()[1]
    assert {route.open(remote[1], remote)[1] for _ in range(3)} == {remote}
    route.failed(remote)
    assert route.open(remote[1], remote)[1] != remote


@pytest.mark.usefixtures("clock")
def test_when_all_weighted_servers_have_failed_they_take_turns(make_route: Callable[..., Route], clock: Clock) -> None:
    route = make_route(A._replace(weight=5), B._replace(weight=1))
    found = ""
    for _ in range(8):
        remote = route.open()[1]
        found += remote[0]
        route.failed(remote)
        clock.now += 1
    assert found[2:] in ("ababab", "bababa")


def test_a_server_without_room_gives_its_turn_to_the_next(make_route: Callable[..., Route]) -> None:
    route = make_route(A, B)
    refused = route.open()[1]
    route.refused(refused)
    assert route.open()[1] == ("b", 2000)
    route.refused(refused)
    assert route.open()[1] == ("b", 2000), "said before"
