"""The memory promise from outside: what is loaded, what is kept below the limit, what does not grow."""

import os
import socket
import threading
from pathlib import Path

import pytest

from kcptun_lite.app import memory
from kcptun_lite.app.parsing import parse
from kcptun_lite.core.batch.pool import BULK_FACTOR
from kcptun_lite.core.kcp.kcp import KcpParams
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.errors import ConfigError
from tests.programs import Tunnel, start_kcptun, wait_until
from tests.traffic import Target, connect, echo_handler, exchange, exchange_handler, payload, receive_exactly
from tools.lossy_proxy import Link
from tools.soak import growth, soak

MIB = 2**20
LEAN = {"ds": 0, "ps": 0, "nocomp": True}
PARAMS = ConversationParams(KcpParams())


def config(*arguments: str) -> memory.ClientConfig | memory.ServerConfig:
    return parse("client", ["--key", "k", "-r", "a:1", *arguments], {}, lambda path: b"")[0]


# -- what is said at the start ----------------------------------------------------------------------------


def test_larger_options_allow_more() -> None:
    small = memory.most_of_session(PARAMS)
    for name, value in {"smux_buffer": 2**24, "parity_shards": 240, "kcp": KcpParams(snd_wnd=4096)}.items():
        assert memory.most_of_session(PARAMS._replace(**{name: value})) > small


def test_a_limit_that_cannot_hold_a_session_is_refused_with_the_least_that_works() -> None:
    least = memory.least_limit(PARAMS, 1)
    with pytest.raises(ConfigError, match=r"--memlimit: 500000 bytes cannot hold one session; write 2M or more"):
        memory.check_limit(config("--memlimit", "500000"), PARAMS)
    memory.check_limit(config("--memlimit", str(least)), PARAMS)
    memory.check_limit(config("--memlimit", "0"), PARAMS)
    with pytest.raises(ConfigError, match=r"cannot hold 20 sessions \(--conn\)"):
        memory.check_limit(config("--memlimit", str(least), "--conn", "20"), PARAMS)
    large = PARAMS._replace(data_shards=70, parity_shards=30)
    assert memory.least_limit(large, 1) >= least + 70 * PARAMS.kcp.mtu, "a group of error correction, and its parity"


@pytest.mark.parametrize(
    ("arguments", "factor"),
    [([], BULK_FACTOR), (["--gogc", "50"], 1), (["--memlimit", "24M"], 1), (["--crypt", "3des"], 1)],
)
def test_batches_are_large_where_neither_memory_nor_time_is_short(arguments: list[str], factor: int) -> None:
    """A large one takes 3des 0.1 s, twofish 0.6 s, in which the network's thread serves nobody else."""
    assert memory.bulk_factor(config(*arguments)) == factor


def test_the_worst_case_is_told() -> None:
    assert memory.describe(config(), PARAMS).startswith(
        "memory: no limit to buffers (--memlimit sets one); at the very worst the options allow "
    )
    assert "up to 8.0 MiB (--memlimit)" in memory.describe(config("--memlimit", "8M"), PARAMS)


def test_the_program_ends_with_one_line_where_the_limit_is_too_small() -> None:
    server = start_kcptun("ours", "server", {"listen": "127.0.0.1:0", "memlimit": "100000"})
    server.wait_for_log(r"error: --memlimit: 100000 bytes cannot hold one session; write \dM or more")
    wait_until(lambda: not server.is_running(), "the program has ended")
    assert server.stop() == 2


# -- what is loaded ---------------------------------------------------------------------------------------


def mapped(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_lean_tunnel_loads_only_its_cipher() -> None:
    with Target(exchange_handler) as target, Tunnel("ours", "ours", target.address, LEAN) as tunnel:
        exchange(connect(tunnel.address), up=1000, down=1000, seed=1)
        for end in (tunnel.client, tunnel.server):
            libraries = mapped(end.pid)
            assert "_raw_aes" in libraries
            for unwanted in ("numpy", "cramjam", "libcrypto", "_hashlib", "_json", "_cffi", "_raw_blowfish", "_lzma"):
                assert unwanted not in libraries, unwanted


def test_the_c_libraries_are_tuned_and_the_users_wishes_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MALLOC_ARENA_MAX", "3")
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    with Target(echo_handler) as target, Tunnel("ours", "ours", target.address, {"gogc": 20}) as tunnel:
        environment = Path(f"/proc/{tunnel.server.pid}/environ").read_text().split("\0")
    assert "MALLOC_ARENA_MAX=3" in environment
    assert f"MALLOC_TRIM_THRESHOLD_={MIB // 5}" in environment
    assert "OPENBLAS_NUM_THREADS=1" in environment


# -- what is held -----------------------------------------------------------------------------------------


def test_a_stopped_reader_keeps_both_programs_below_the_limit_and_gets_everything_later() -> None:
    data = payload(20_000_000, 1)
    goes_on = threading.Event()
    got: list[bytes] = []

    def handler(sock: socket.socket) -> None:
        goes_on.wait(30)
        got.append(receive_exactly(sock, len(data)))
        sock.sendall(b"!")

    options = {"memlimit": "4M", "sndwnd": 8192, "rcvwnd": 8192, "mode": "fast2"}
    link = Link(delay_ms=5, loss=0.05)
    with Target(handler) as target, Tunnel("ours", "ours", target.address, options, link=link) as tunnel:
        with connect(tunnel.address) as sock:
            sock.settimeout(2)
            with pytest.raises(TimeoutError):  # sooner or later nothing more is taken
                sent = 0
                while sent < len(data):
                    sent += sock.send(data[sent : sent + 65_536])
            goes_on.set()
            sock.settimeout(30)
            sock.sendall(data[sent:])
            assert receive_exactly(sock, 1) == b"!"
        assert got == [data]
        for end in (tunnel.client, tunnel.server):
            counters = end.counters()
            assert 500_000 < counters["MemPeak"] <= 4 * MIB
        assert tunnel.server.counters()["MemWaits"] > 0
        assert any("near --memlimit" in line for line in tunnel.server.log)


def test_nothing_grows_over_many_short_connections() -> None:
    options = {"quiet": True}
    with Target(echo_handler) as target, Tunnel("ours", "ours", target.address, options) as tunnel:
        first, *_, last = rows = list(soak(tunnel, 2400, 50, 3))
    assert max(growth(rows)) < MIB
    for before, after in ((first.client, last.client), (first.server, last.server)):
        assert (after.descriptors, after.threads, after.sessions) == (before.descriptors, before.threads, 1)


def test_idle_streams_are_cheap() -> None:
    with Target(echo_handler) as target, Tunnel("ours", "ours", target.address, LEAN) as tunnel:
        socks = []
        try:
            for number in range(101):
                socks.append(connect(tunnel.address))
                socks[-1].sendall(b"hello")
                assert receive_exactly(socks[-1], 5)
                if number == 0:
                    before = tunnel.client.rss(), tunnel.server.rss()
            after = tunnel.client.rss(), tunnel.server.rss()
        finally:
            for sock in socks:
                sock.close()
    page = os.sysconf("SC_PAGESIZE")
    for most_before, most_after in zip(before, after, strict=True):
        assert most_after - most_before < 100 * 48 * 1024 * page // 4096
