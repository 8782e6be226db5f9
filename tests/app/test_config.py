"""Options: every way to write them, their order of precedence, and one sentence for everything wrong."""

import json
import marshal
import random
import string
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kcptun_lite import __version__
from kcptun_lite.app.config import ClientConfig, Endpoint, ServerConfig, describe
from kcptun_lite.app.options import MODES, OPTIONS
from kcptun_lite.app.parsing import Program, parse
from kcptun_lite.errors import ConfigError

KEY = {"KCPTUN_KEY": "test key"}
"in the environment: without it the default key brings a warning"


def read(
    program: Program,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] = KEY,
    file: str | bytes | None = None,
) -> tuple[Any, list[str]]:
    """The configuration and the warnings; `file` is what every path holds."""

    def read_file(path: str) -> bytes:
        if file is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return file if isinstance(file, bytes) else file.encode()

    return parse(program, arguments, environment, read_file)


def client(*arguments: str, environment: Mapping[str, str] = KEY, file: str | bytes | None = None) -> ClientConfig:
    """The client's configuration, from options that bring no warning."""
    config, warnings = read("client", arguments, environment, file)
    assert not warnings
    assert isinstance(config, ClientConfig)
    return config


def server(*arguments: str) -> ServerConfig:
    config, warnings = read("server", arguments)
    assert not warnings
    assert isinstance(config, ServerConfig)
    return config


def complaint(
    *arguments: str,
    program: Program = "client",
    environment: Mapping[str, str] = KEY,
    file: str | bytes | None = None,
) -> str:
    """The one sentence about options that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        read(program, arguments, environment, file)
    sentence = str(caught.value)
    assert caught.value.exit_code == 2
    assert sentence and "\n" not in sentence
    return sentence


# Defaults


def test_the_clients_defaults_are_kcptuns() -> None:
    assert read("client", environment={})[0] == ClientConfig(
        localaddr=Endpoint("", 12948, 12948),
        remoteaddr=(Endpoint("vps", 29900, 29900),),
        key="it's a secrect",
        crypt="aes",
        nodelay=0,
        interval=30,
        resend=2,
        nc=1,
        conn=1,
        autoexpire=0,
        scavengettl=600,
        mtu=1350,
        ratelimit=0,
        sndwnd=128,
        rcvwnd=512,
        datashard=10,
        parityshard=3,
        dscp=0,
        nocomp=False,
        acknodelay=False,
        sockbuf=4194304,
        smuxver=1,
        smuxbuf=4194304,
        streambuf=2097152,
        framesize=32768,
        keepalive=10,
        closewait=300,
        snmplog="",
        snmpperiod=60,
        log="",
        loglevel="info",
        status="",
        quiet=False,
        qpp=False,
        qppcount=61,
        memlimit=0,
        gogc=100,
        maxstreams=1024,
        check=False,
    )


def test_the_servers_defaults_differ_where_kcptuns_do() -> None:
    config = server()
    assert (config.sndwnd, config.rcvwnd) == (1024, 1024)
    assert (config.listen, config.target) == (Endpoint("", 29900, 29900), Endpoint("127.0.0.1", 12948, 12948))
    assert (config.maxsessions, config.strict) == (1024, False)


def test_the_default_key_is_warned_of() -> None:
    _, warnings = read("client", environment={})
    assert warnings == ["the key is kcptun's default, which everybody knows; set KCPTUN_KEY"]


# The command line


@pytest.mark.parametrize(
    "arguments",
    [["--mtu", "1200"], ["-mtu", "1200"], ["--mtu=1200"], ["-mtu=1200"], ["-mtu", "1", "-mtu=1200"]],
)
def test_one_dash_or_two_with_blank_or_equals_and_the_last_counts(arguments: list[str]) -> None:
    assert client(*arguments).mtu == 1200


@pytest.mark.parametrize("text", ["1200", "0x4B0", "0o2260", "0b10010110000"])
def test_numbers_have_four_bases(text: str) -> None:
    assert client("--mtu", text).mtu == 1200


def test_aliases() -> None:
    config = client("-l", ":1", "-r", "host:2", "-ds", "4", "--ps=2")
    assert (config.localaddr.port_min, config.remoteaddr[0].host) == (1, "host")
    assert (config.datashard, config.parityshard) == (4, 2)
    assert server("-l", ":1", "-t", "host:2").listen.port_min == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["-nocomp"], True),
        (["--nocomp=true"], True),
        (["-nocomp=T"], True),
        (["-nocomp=1"], True),
        (["-nocomp", "-nocomp=false"], False),
        (["-nocomp=0"], False),
    ],
)
def test_switches_are_gos(arguments: list[str], expected: bool) -> None:
    assert client(*arguments).nocomp is expected


def test_values_may_look_like_options() -> None:
    assert client("--key", "--crypt").key == "--crypt"
    assert client("--key", "-v").key == "-v"
    assert client("--key", "a b=c").key == "a b=c"
    assert client("--key", " [x] %s ").key == " [x] %s "


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["-nocomp", "true", "-conn", "2"], "--nocomp is a switch: write --nocomp=true with an equals sign"),
        (["mtu", "1200"], "mtu lacks its dashes: write --mtu"),
        (["localaddr=:1"], "localaddr=:1 lacks its dashes: write --localaddr=:1"),
        (["--key", "two", "words"], "'words' belongs to no option"),
        (["--", "--mtu"], "'--' belongs to no option"),
        (["--ctypt", "aes"], "--ctypt is not an option (did you mean crypt?)"),
        (["-qpp"], "-qpp is not an option (did you mean QPP?)"),
        (["--mt", "1200"], "--mt is not an option"),
        (["-xyzzy"], "-xyzzy is not an option"),
        (["--target", "x:1"], "--target is an option of the server, not of the client"),
        (["--mtu"], "--mtu needs a value"),
        (["--key=--"], "--key: -- alone cannot be a value"),
        (["--nocomp=maybe"], "--nocomp: 'maybe' is neither true nor false"),
    ],
)
def test_slips_of_the_keyboard(arguments: list[str], sentence: str) -> None:
    assert complaint(*arguments).startswith(sentence)


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
        (["--mtu", "52"], "--mtu: 52 leaves no room for data; the headers need 52, write 53 or more"),
        (["--mtu", "60", "--crypt", "aes-128-gcm"], "--mtu: 60 leaves no room for data; the headers need 60, write 61"),
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
        (["--scavengettl", "-1"], "--scavengettl: -1 is out of range"),
        (["--maxstreams", "0"], "--maxstreams: 0 is out of range"),
        (["--memlimit", "24X"], "--memlimit: '24X' is not a size (write 24M, 24MiB or a number of bytes)"),
        (["--gogc", "much"], "--gogc: 'much' is not a whole number"),
        (["--loglevel", "trace"], "--loglevel: 'trace' is not known; it can be error, warning, info, debug"),
        (["--key", ""], "--key: the key is empty"),
    ],
)
def test_wrong_values_name_the_option_and_the_remedy(arguments: list[str], sentence: str) -> None:
    assert complaint(*arguments).startswith(sentence)


def test_the_smallest_mtu_follows_the_headers() -> None:
    assert client("--mtu", "53").mtu == 53
    assert client("--mtu", "50", "--ds", "0", "--ps", "0").mtu == 50
    assert client("--mtu", "50", "--crypt", "null").mtu == 50
    assert complaint("--mtu", "51", "--crypt", "aes-128-gcm", "--ds=0", "--ps=0").endswith("write 53 or more")


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


@pytest.mark.parametrize("name", ["tcp", "pprof"])
def test_what_we_do_not_do_is_said(name: str) -> None:
    _, warnings = read("server", [f"--{name}"])
    assert warnings == [f"--{name} does nothing in kcptun_lite"]


# Modes


@pytest.mark.parametrize("mode", MODES)
def test_a_named_mode_sets_the_four_numbers(mode: str) -> None:
    config = client("--mode", mode)
    assert (config.nodelay, config.interval, config.resend, config.nc) == MODES[mode]


def test_a_named_mode_overrides_the_four_options_wherever_they_stand() -> None:
    config, warnings = read("client", ["--interval", "77", "-c", "x.json"], file='{"nodelay": 1, "mode": "normal"}')
    assert (config.nodelay, config.interval) == (0, 40)
    assert warnings == [
        "x.json: 'nodelay' does nothing in mode normal; it needs --mode manual",
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
        ("127.0.0.1", "has no port"),
        ("", "has no port"),
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


# The environment


def test_every_option_has_its_variable() -> None:
    environment = {
        "KCPTUN_KEY": "from outside",
        "KCPTUN_LOCALADDR": ":1",
        "KCPTUN_CRYPT": "xor",
        "KCPTUN_NOCOMP": "true",
        "KCPTUN_QPPCOUNT": "7",
        "KCPTUN_DATASHARD": "4",
        "KCPTUN_QUIET": "no",
        "HOME": "/",
    }
    config = client(environment=environment)
    assert (config.key, config.localaddr.port_min, config.crypt) == ("from outside", 1, "xor")
    assert (config.nocomp, config.qppcount, config.datashard, config.quiet) == (True, 7, 4, False)


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.name)
def test_no_variable_is_forgotten(option: Any) -> None:
    """A value no reader takes must be complained of under the variable's name."""
    if option.json_types == (str,) and option.metavar == "TEXT":
        return
    program: Program = "client" if option.client is not None else "server"
    assert complaint(program=program, environment={option.variable: "\x00?"}).startswith(f"{option.variable}: ")


def test_an_empty_variable_is_none() -> None:
    assert client(environment=KEY | {"KCPTUN_MTU": "", "GOGC": ""}).mtu == 1350


def test_unknown_variables_are_told_but_not_those_of_the_other_program() -> None:
    _, warnings = read("client", environment=KEY | {"KCPTUN_LISTEN": "x", "KCPTUN_MTUU": "1"})
    assert warnings == ["KCPTUN_MTUU is not an option (did you mean KCPTUN_MTU?)"]


def test_gos_own_variables_count_unless_ours_are_there() -> None:
    environment = KEY | {"GOGC": "20", "GOMEMLIMIT": "24MiB"}
    config = client(environment=environment)
    assert (config.gogc, config.memlimit) == (20, 24 << 20)
    config = client(environment=environment | {"KCPTUN_GOGC": "off", "KCPTUN_MEMLIMIT": "32M"})
    assert (config.gogc, config.memlimit) == (None, 32 << 20)
    assert client("--gogc=30", environment=environment).gogc == 30
    assert complaint(environment={"GOGC": "x"}).startswith("GOGC: 'x' is not a whole number")


# The file


def test_file_before_command_line_before_environment_before_default() -> None:
    environment = KEY | {"KCPTUN_MTU": "1001", "KCPTUN_DSCP": "1", "KCPTUN_CONN": "11", "KCPTUN_KEY": "outside"}
    config = client("-c", "f", "--dscp=2", "--conn=12", environment=environment, file='{"conn": 13, "key": "inside"}')
    assert (config.mtu, config.dscp, config.conn, config.rcvwnd, config.key) == (1001, 2, 13, 512, "inside")


def test_a_switch_in_the_file_can_switch_off() -> None:
    assert client("--nocomp", "-c", "f", file='{"nocomp": false}').nocomp is False
    assert client("-c", "f", file='{"nocomp": true}').nocomp is True


def test_the_file_can_come_from_the_environment() -> None:
    assert client(environment=KEY | {"KCPTUN_C": "f"}, file='{"mtu": 1000}').mtu == 1000


def test_upstreams_example_files_are_understood() -> None:
    text = """{
    "localaddr": ":12948", "remoteaddr": "vps:29900", "key": "it is", "crypt": "aes", "mode": "fast3", "mtu": 1350,
    "sndwnd": 512, "rcvwnd": 512, "datashard": 10, "parityshard": 3, "dscp": 0, "nocomp": true, "quiet": false,
    "tcp": false, "QPP": true, "QPP-Count": 33, "ratelimit": 10, "closewait": 5, "pprof": false }"""
    config = client("-c", "f", file=text)
    assert (config.interval, config.sndwnd, config.nocomp, config.qpp, config.qppcount) == (10, 512, True, True, 33)


def test_every_option_but_the_file_itself_has_a_key() -> None:
    for option in OPTIONS:
        if option.name == "c":
            continue
        program: Program = "client" if option.client is not None else "server"
        text = json.dumps({option.json_key.upper(): [1]})
        assert complaint("-c", "f", program=program, file=text).startswith(f"f: {option.json_key.upper()!r} must be ")


def test_unknown_keys_are_told_by_name() -> None:
    _, warnings = read("client", ["-c", "f"], file='{"mtuu": {"deep": [1]}, "c": "g", "listen": 1, "ds": 1}')
    assert warnings == [f"f: {key!r} is not an option of the client, ignored" for key in ("mtuu", "c", "listen", "ds")]


def test_null_leaves_the_value_and_the_last_of_equal_keys_counts() -> None:
    assert client("--mtu=1000", "-c", "f", file='{"mtu": null}').mtu == 1000
    assert client("-c", "f", file='{"mtu": 1000, "MTU": 1100}').mtu == 1100
    assert client("--mtu=1000", "-c", "f", file="null").mtu == 1000


def test_only_the_first_json_value_is_read() -> None:
    assert client("-c", "f", file='\n {"mtu": 1000} {"mtu": 1100} nonsense').mtu == 1000
    assert client("-c", "f", file='\ufeff{"mtu": 1000}').mtu == 1000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"mtu": "1350"}', "f: 'mtu' must be a whole number without quotes, not \"1350\""),
        ('{"mtu": 1350.0}', "f: 'mtu' must be a whole number without quotes, not 1350.0"),
        ('{"mtu": true}', "f: 'mtu' must be a whole number without quotes, not true"),
        ('{"key": 1}', "f: 'key' must be a text in double quotes, not 1"),
        ('{"nocomp": 1}', "f: 'nocomp' must be true or false, not 1"),
        ('{"memlimit": false}', "f: 'memlimit' must be a text in double quotes or a whole number without quotes, not"),
        ('{"mtu": 20}', "f: 'mtu': 20 is out of range; it must be 50 to 1500"),
        ('{\n  "mtu": 1350\n  "dscp": 1}', "-c: f: line 3, column 3: "),
        ('\n\n{"mtu" 1}', "-c: f: line 3, column 8: "),
        ("", "-c: f: line 1, column 1: "),
        ("[]", "-c: f must hold a JSON object"),
        ('{"mtu": NaN}', "-c: f is not JSON that can be read: NaN is not JSON"),
        ("[" * 100_000, "-c: f is not JSON that can be read: "),
        (b'{"key": "\xff"}', "-c: f is not UTF-8 text (byte 9)"),
        (None, "-c: f cannot be read: No such file or directory"),
    ],
)
def test_files_that_are_wrong(text: str | bytes | None, sentence: str) -> None:
    assert complaint("-c", "f", file=text).startswith(sentence)


def test_numbers_and_words_fit_size_and_percentage_in_a_file() -> None:
    config = client("-c", "f", file='{"memlimit": "24M", "gogc": 20}')
    assert (config.memlimit, config.gogc) == (24 << 20, 20)
    assert client("-c", "f", file='{"memlimit": 20000000, "gogc": "off"}').gogc is None


# Whatever comes


def test_any_input_gives_a_configuration_or_one_sentence() -> None:
    dice = random.Random(20210922)
    names = [flag for option in OPTIONS for flag in (option.name, *option.aliases) if flag != "c"]
    words = ["", "-", "--", "=", "1", "-1", "0x", "true", "::", "a:1", "[", "\x00", "é", "1" * 5000, "off", "/x", "aes"]
    for _ in range(300):
        arguments = []
        for _ in range(dice.randrange(4)):
            name = dice.choice([*names, "".join(dice.choices(string.printable, k=3))])
            arguments.append(dice.choice(["-", "--", ""]) + name + dice.choice(["", "=" + dice.choice(words)]))
            arguments += dice.choices(words, k=dice.randrange(2))
        try:
            config, _ = read("client", arguments)
        except ConfigError as error:
            assert str(error)
        except SystemExit:  # -h, -v
            pass
        else:
            assert 50 <= config.mtu <= 1500


# The handover and the log lines


@pytest.mark.parametrize("config", [client("--remoteaddr", "a:1,b:2-3"), server("--gogc=off", "--target=/x")])
def test_a_configuration_survives_marshal(config: ClientConfig | ServerConfig) -> None:
    assert type(config).unpack(marshal.loads(marshal.dumps(config.pack()))) == config


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        client().mtu = 1  # type: ignore[misc]


def test_the_client_describes_itself_as_kcptun_does() -> None:
    assert describe(client("-l", "127.0.0.1:0", "-r", "127.0.0.1:1"), "127.0.0.1:40903") == [
        f"version: {__version__}",
        "smux version: 1",
        "listening on: 127.0.0.1:40903",
        "encryption: aes",
        "nodelay parameters: 0 30 2 1",
        "remote address: 127.0.0.1:1",
        "sndwnd: 128 rcvwnd: 512",
        "compression: true",
        "mtu: 1350",
        "datashard: 10 parityshard: 3",
        "acknodelay: false",
        "dscp: 0",
        "sockbuf: 4194304",
        "smuxbuf: 4194304",
        "streambuf: 2097152",
        "keepalive: 10",
        "conn: 1",
        "autoexpire: 0",
        "scavengettl: 600",
        "snmplog: ",
        "snmpperiod: 60",
        "quiet: false",
        "tcp: false",
    ]


def test_the_server_describes_itself_as_kcptun_does() -> None:
    lines = describe(server("--nocomp", "--quiet"))
    assert lines[2:7] == [
        "listening on: :29900",
        "target: 127.0.0.1:12948",
        "encryption: aes",
        "nodelay parameters: 0 30 2 1",
        "sndwnd: 1024 rcvwnd: 1024",
    ]
    assert lines[7] == "compression: false"
    assert lines[-5:] == ["snmplog: ", "snmpperiod: 60", "pprof: false", "quiet: true", "tcp: false"]


def test_the_key_is_never_described() -> None:
    assert not any("test key" in line for line in describe(client()) + describe(server()))
