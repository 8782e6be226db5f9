"""What sizes pass on the way to a host: smaller and smaller, for a while, for so many hosts."""

import pytest

from kcptun_lite.net.ends import path_sizes as room
from kcptun_lite.net.ends.path_sizes import BELIEVED_FOR, HOSTS, SIZES, PathSizes
from tests.net.fakes import Clock

HERE = ("10.0.0.1", 1000)
SAME_HOST = ("10.0.0.1", 2000)
ELSEWHERE = ("10.0.0.2", 1000)


def test_each_loss_leads_to_a_smaller_size_of_the_same_host_alone() -> None:
    sizes = PathSizes()
    seen = [1350]
    for _ in range(6):
        sizes.was_too_large(HERE, seen[-1])
        seen.append(sizes.mtu(SAME_HOST, 1350))
    assert seen == [1350, *SIZES, SIZES[-1], SIZES[-1]]
    assert sizes.mtu(ELSEWHERE, 1350) == 1350


def test_what_the_end_is_set_to_is_never_exceeded() -> None:
    sizes = PathSizes()
    sizes.was_too_large(HERE, 1350)
    assert sizes.mtu(HERE, 600) == 600
    sizes.was_too_large(ELSEWHERE, 500)
    assert sizes.mtu(ELSEWHERE, 500) == 500


def test_a_path_may_become_another_one(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(room, "monotonic_ms", clock)
    sizes = PathSizes()
    sizes.was_too_large(HERE, 1350)
    clock.now += BELIEVED_FOR - 1
    assert sizes.mtu(HERE, 1350) == SIZES[0]
    clock.now += 1
    assert sizes.mtu(HERE, 1350) == 1350


def test_only_so_many_hosts_are_remembered() -> None:
    sizes = PathSizes()
    for number in range(HOSTS + 1):
        sizes.was_too_large((f"10.1.{number // 256}.{number % 256}", 1), 1350)
    assert sizes.mtu(("10.1.0.0", 1), 1350) == 1350
    assert sizes.mtu(("10.1.0.1", 1), 1350) == SIZES[0]
