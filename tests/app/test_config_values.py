"""The values of options: their bounds, modes and addresses, and one sentence for everything wrong."""

import pytest

from kcptun_lite.app.config import Endpoint
from kcptun_lite.app.options import MODES
from tests.app.configs import client, complaint, read, server

# Values out of bounds


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--crypt", "aes256"], "--crypt: 'aes256' is not known (did you mean aes?); it can be aes, aes-128,"),
        (
            ["--mode", "fats"],
            "--mode: 'fats' is not known (did you mean fast?); it can be fast3, fast2, fast, normal, manual;",
        ),
        (
            ["--mode", "turbo"],
            "--mode: 'turbo' is not known; it can be fast3, fast2, fast, normal, manual; kcptun takes",
        ),
        (["--mtu", "1501"], "--mtu: 1501 is out of range; it must be 50 to 1500"),
        (["--mtu", "49"], "--mtu: 49 is out of range; it must be 50 to 1500"),
        (["--mtu", "1.5"], "--mtu: '1.5' is not a whole number"),
        (["--mtu", "010"], "--mtu: '010' is not a whole number"),
        (["--mtu", "52"], "--mtu: 52 leaves no room for data; the headers need 52, write 64 or more"),
        (["--mtu", "63"], "--mtu: 63 leaves no room for data; the headers need 52, write 64 or more"),
        (["--mtu", "63", "--crypt", "aes-128-gcm"], "--mtu: 63 leaves no room for data; the headers need 60, write 64"),
        (["--sndwnd", "0"], "--sndwnd: 0 is out of range; it must be 1 to 65535"),
        (["--rcvwnd", "65536"], "--rcvwnd: 65536 is out of range; it must be 1 to 65535"),
        (["--conn", "0"], "--conn: 0 is out of range; it must be 1 to 65535"),
        (["--conn", "65536"], "--conn: 65536 is out of range"),
        (["--ds", "254"], "--datashard: 254 and parityshard 3 are over 256 together"),
        (["--ps", "-1"], "--parityshard: -1 is out of range; it must be 0 to 256"),
        (["--dscp", "64"], "--dscp: 64 is out of range; it must be 0 to 63"),
        (["--smuxver", "3"], "--smuxver: 3 is out of range; it must be 1 to 2"),
        (["--keepalive", "0"], "--keepalive: 0 is out of range; it must be 1 to 30"),
        (["--keepalive", "31"], "--keepalive: 31 is out of range"),
        (["--framesize", "65536"], "--framesize: 65536 is out of range; it must be 1 to 65535"),
        (
            ["--smuxbuf", "2097151"],
            "--smuxbuf: streambuf (2097152) must not be over smuxbuf (2097151); lower streambuf",
        ),
        (["--streambuf", "5000000"], "--streambuf: streambuf (5000000) must not be over smuxbuf (4194304)"),
        (["--maxstreams", "0"], "--maxstreams: 0 is out of range"),
        (["--memlimit", "24X"], "--memlimit: '24X' is not a size (write 24M, 24MiB or a number of bytes)"),
        (["--gogc", "much"], "--gogc: 'much' is not a whole number"),
        (
            ["--interface", "eth0/1"],
            "--interface: 'eth0/1' is no name of a network device; `ip link` shows those there",
        ),
        (["--interface", "wan a"], "--interface: 'wan a' is no name of a network device"),
        (["--interface", "."], "--interface: '.' is no name of a network device"),
        (["--interface", "sixteen-letters."], "--interface: 'sixteen-letters.' is too long for a network device; 15"),
        (["--loglevel", "trace"], "--loglevel: 'trace' is not known; it can be error, warning, info"),
    ],
)
def test_wrong_values_name_the_option_and_the_remedy(arguments: list[str], sentence: str) -> None:
    assert complaint(*arguments).startswith(sentence)


def test_the_smallest_mtu_follows_the_headers() -> None:
    assert client("--mtu", "64").mtu == 64
    assert client("--mtu", "64", "--crypt", "aes-128-gcm").mtu == 64
    assert client("--mtu", "50", "--ds", "0", "--ps", "0").mtu == 50
    assert client("--mtu", "50", "--crypt", "null").mtu == 50
    assert complaint("--mtu", "51", "--crypt", "aes-128-gcm", "--ds=0", "--ps=0").endswith("write 64 or more")


def test_as_many_shards_as_the_code_has() -> None:
    config = client("--ds", "253", "--ps", "3")
    assert config.datashard + config.parityshard == 256
    assert "are over 256 together" in complaint("--ds", "253", "--ps", "4")


@pytest.mark.parametrize("arguments", [["--ds", "0"], ["--ps", "0"]])
def test_half_an_error_correction_is_none(arguments: list[str]) -> None:
    _, (warning,) = read("client", arguments)
    assert warning.startswith("error correction is off: datashard is ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24M", 24 << 20), ("24MiB", 24 << 20), ("24mb", 24 << 20), ("1G", 1 << 30), ("20000000", 20000000), ("off", 0)],
)
def test_sizes(text: str, expected: int) -> None:
    assert client("--memlimit", text).memlimit == expected


@pytest.mark.parametrize(("text", "expected"), [("50", 50), ("off", None), ("-1", None), ("0", 0)])
def test_gogc(text: str, expected: int | None) -> None:
    assert client("--gogc", text).gogc == expected


def test_a_negative_ratelimit_is_none() -> None:
    assert client("--ratelimit=-5").ratelimit == 0
    assert client("--ratelimit=5").ratelimit == 5


def test_what_we_do_not_do_is_said() -> None:
    _, warnings = read("server", ["--pprof"])
    assert warnings == ["--pprof does nothing in kcptun_lite"]


@pytest.mark.parametrize("name", ["autoexpire", "scavengettl"])
@pytest.mark.parametrize("text", ["-1", "-5"])
def test_less_than_no_seconds_is_off(name: str, text: str) -> None:
    off = {"autoexpire": 0, "scavengettl": None}[name]
    assert getattr(client(f"--{name}={text}"), name) == off
    assert getattr(client("-c", "f", file=f'{{"{name}": {text}}}'), name) == off


def test_an_empty_key_is_taken_with_a_warning() -> None:
    config, warnings = read("server", ["--key", ""], {})
    assert config.key == "" and warnings == ["the key is empty, which everybody can guess; set KCPTUN_KEY"]


# Modes


@pytest.mark.parametrize("mode", MODES)
def test_a_named_mode_sets_the_four_numbers(mode: str) -> None:
    config = client("--mode", mode)
    assert (config.nodelay, config.interval, config.resend, config.nc) == MODES[mode]


def test_a_named_mode_overrides_the_four_options_wherever_they_stand() -> None:
    config, warnings = read("client", ["--interval", "77", "-c", "x.json"], file='{"nodelay": 1, "mode": "normal"}')
    assert (config.nodelay, config.interval) == (0, 40)
    assert warnings == [
        "x.json: line 1, column 2: 'nodelay' does nothing in mode normal; it needs --mode manual",
        "--interval does nothing in mode normal; it needs --mode manual",
    ]


def test_manual_mode_takes_the_four_options() -> None:
    config = client("--mode", "manual", "--nodelay=1", "--interval=15", "--resend=3", "--nc=1")
    assert (config.nodelay, config.interval, config.resend, config.nc) == (1, 15, 3, 1)
    config = client("--mode", "manual")
    assert (config.nodelay, config.interval, config.resend, config.nc) == (0, 50, 0, 0)


@pytest.mark.parametrize(("given", "used"), [("1", 10), ("9999", 5000)])
def test_an_interval_out_of_range_is_brought_back_as_kcp_go_does(given: str, used: int) -> None:
    config, warnings = read("client", ["--mode", "manual", "--interval", given])
    assert config.interval == used
    assert warnings == [f"--interval: {given} ms are out of range, {used} are used"]


# Addresses


@pytest.mark.parametrize(
    ("text", "host", "ports"),
    [
        (":12948", "", (12948, 12948)),
        ("0.0.0.0:0", "0.0.0.0", (0, 0)),
        ("localhost:1", "localhost", (1, 1)),
        ("[::1]:29900", "::1", (29900, 29900)),
        ("[::]:29900", "::", (29900, 29900)),
        ("::1:29900", "::1", (29900, 29900)),
        ("[fe80::1%br-lan]:80", "fe80::1%br-lan", (80, 80)),
        ("2001:db8:0:0:0:0:0:1:443", "2001:db8:0:0:0:0:0:1", (443, 443)),
        (":3000-4000", "", (3000, 4000)),
        ("::1:10000-10010", "::1", (10000, 10010)),
    ],
)
def test_addresses_to_listen_on(text: str, host: str, ports: tuple[int, int]) -> None:
    assert server("--listen", text).listen == Endpoint(host, *ports)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("127.0.0.1", "has no port; write 127.0.0.1:port"),
        ("29900", "has no port; write :29900"),
        ("29900-29910", "has no port; write :29900-29910"),
        ("", "has no port; write host:port, [IPv6]:port or"),
        ("host:", "has no port"),
        ("host:http", "has no port"),
        ("host:65536", "has no usable port"),
        ("host:20-10", "has no usable port"),
        ("host:0-10", "has no usable port"),
        ("fe80::1:443", "can be read in two ways; write [fe80::1]:443 or [fe80::1:443]:port"),
        ("::1", "is no address with a port"),
        ("2001:db8::1", "is no address with a port"),
        ("2001:db8:0:0:0:0:0:1", "is no address with a port"),
        ("[::1]", "has no port"),
        ("[host]:1", "has no IPv6 address between its brackets"),
        ("[::1:29900", "is no address with a port"),
        ("two words:1", "is no address with a port"),
        ("a:b:1", "is no address with a port"),
    ],
)
def test_addresses_that_are_none(text: str, sentence: str) -> None:
    assert complaint("--listen", text, program="server").startswith(f"--listen: {text!r} {sentence}")


def test_only_udp_ports_come_in_ranges() -> None:
    assert "range of ports" in complaint("--localaddr", ":1-2")
    assert "one host and one port" in complaint("--target", "a:1-2", program="server")
    assert "one host and one port" in complaint("--target", "a:1,b:2", program="server")


def test_several_servers() -> None:
    config = client("--remoteaddr", "a:1, [::1]:2-3,:4")
    assert config.remoteaddr == (Endpoint("a", 1, 1), Endpoint("::1", 2, 3), Endpoint("127.0.0.1", 4, 4))
    assert [remote.weight for remote in config.remoteaddr] == [0, 0, 0]
    weighted = client("--remoteaddr", "a:1*3,b:2-4").remoteaddr
    assert list(map(str, weighted)) == ["a:1*3", "b:2-4*1"], "who has none beside others has 1"
    for wrong in "a:1*0", "a:1*", "a:1*x", "a:1*101", "a:1*-1":
        assert "is no weight; write a number from 1 to 100 behind the *" in complaint("--remoteaddr", wrong)
    assert "has no port" in complaint("--remoteaddr", "a:1,")
    assert "has no usable port" in complaint("--remoteaddr", "a:0")


@pytest.mark.parametrize("path", ["/var/run/tunnel.sock", "./tunnel", "@abstract", "/odd:1"])
def test_unix_sockets(path: str) -> None:
    assert client("--localaddr", path).localaddr == Endpoint(path=path)
    assert server("--target", path).target == Endpoint(path=path)
    assert complaint("--remoteaddr", path).startswith(f"--remoteaddr: {path!r} ")


def test_endpoints_are_written_as_they_are_read() -> None:
    for text in (":1", "host:1", "host:1-2", "[::1]:1", "[::1]:1-2"):
        assert str(server("--listen", text).listen) == text
    assert str(Endpoint(path="/x")) == "/x"
