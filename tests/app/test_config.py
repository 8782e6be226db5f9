"""Options: every way to write them, their order of precedence, a sentence for every slip, and what becomes of them."""

import json
import marshal
import random
import string
from typing import Any

import pytest

from kcptun_lite import __version__
from kcptun_lite.app.config import ClientConfig, Endpoint, ServerConfig, describe
from kcptun_lite.app.options import OPTIONS
from kcptun_lite.app.parsing import Program
from kcptun_lite.errors import ConfigError
from tests.app.configs import NEEDED, client, complaint, read, server

# Defaults


def test_the_clients_defaults_are_kcptuns() -> None:
    assert read("client", ["-r", "vps:29900"], {})[0] == ClientConfig(
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
        sndwnd=None,
        rcvwnd=None,
        datashard=None,
        parityshard=None,
        dscp=0,
        nocomp=None,
        acknodelay=False,
        sockbuf=4194304,
        smuxver=None,
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
        name="",
        quiet=False,
        qpp=False,
        qppcount=61,
        tcp=False,
        transport="udp",
        memlimit=0,
        gogc=100,
        maxstreams=1024,
        logformat="text",
        parent=0,
        interface="",
        check=False,
    )


def test_the_servers_defaults_differ_where_kcptuns_do() -> None:
    config = server()
    assert (config.listen, config.target) == (Endpoint("", 29900, 29900), Endpoint("127.0.0.1", 12948, 12948))
    assert (config.maxsessions, config.strict) == (1024, False)


@pytest.mark.parametrize(("program", "windows"), [("client", (128, 512)), ("server", (1024, 1024))])
def test_mode_manual_has_kcptuns_windows(program: Program, windows: tuple[int, int]) -> None:
    config, _ = read(program, ["--mode", "manual"])
    assert (config.sndwnd, config.rcvwnd) == windows
    assert (config.datashard, config.parityshard) == (10, 3)
    config, _ = read(program, ["--mode", "manual", "--sndwnd", "7"])
    assert (config.sndwnd, config.rcvwnd) == (7, windows[1])


def test_one_number_of_shards_means_kcptuns_other_one() -> None:
    assert (client("--ds", "5").datashard, client("--ds", "5").parityshard) == (5, 3)
    assert (client("--ps", "2").datashard, client("--ps", "2").parityshard) == (10, 2)
    assert (client("--ds", "auto").datashard, client("--sndwnd", "AUTO").sndwnd) == (None, None)


def test_the_default_key_is_warned_of() -> None:
    _, warnings = read("server", environment={})
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


# The environment


def test_every_option_has_its_variable() -> None:
    environment = {
        "KCPTUN_KEY": "from outside",
        "KCPTUN_REMOTEADDR": "outside:1",
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
    assert client(environment=NEEDED | {"KCPTUN_MTU": "", "GOGC": ""}).mtu == 1350


def test_unknown_variables_are_told_but_not_those_of_the_other_program() -> None:
    _, warnings = read("client", environment=NEEDED | {"KCPTUN_LISTEN": "x", "KCPTUN_MTUU": "1"})
    assert warnings == ["KCPTUN_MTUU is not an option (did you mean KCPTUN_MTU?)"]


def test_gos_own_variables_count_unless_ours_are_there() -> None:
    environment = NEEDED | {"GOGC": "20", "GOMEMLIMIT": "24MiB"}
    config = client(environment=environment)
    assert (config.gogc, config.memlimit) == (20, 24 << 20)
    config = client(environment=environment | {"KCPTUN_GOGC": "off", "KCPTUN_MEMLIMIT": "32M"})
    assert (config.gogc, config.memlimit) == (None, 32 << 20)
    assert client("--gogc=30", environment=environment).gogc == 30
    assert complaint(environment={"GOGC": "x"}).startswith("GOGC: 'x' is not a whole number")


# The file


def test_file_before_command_line_before_environment_before_default() -> None:
    environment = NEEDED | {"KCPTUN_MTU": "1001", "KCPTUN_DSCP": "1", "KCPTUN_CONN": "11", "KCPTUN_KEY": "outside"}
    config = client("-c", "f", "--dscp=2", "--conn=12", environment=environment, file='{"conn": 13, "key": "inside"}')
    assert (config.mtu, config.dscp, config.conn, config.rcvwnd, config.key) == (1001, 2, 13, None, "inside")


def test_a_switch_in_the_file_can_switch_off() -> None:
    assert client("--nocomp", "-c", "f", file='{"nocomp": false}').nocomp is False
    assert client("-c", "f", file='{"nocomp": true}').nocomp is True


def test_the_file_can_come_from_the_environment() -> None:
    assert client(environment=NEEDED | {"KCPTUN_C": "f"}, file='{"mtu": 1000}').mtu == 1000


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
        sentence = complaint("-c", "f", program=program, file=text)
        assert sentence.startswith(f"f: line 1, column 2: {option.json_key.upper()!r} must be ")


def test_unknown_keys_are_told_by_name() -> None:
    _, warnings = read("client", ["-c", "f"], file='{"mtuu": {"deep": [1]}, "c": "g", "listen": 1, "ds": 1, "//": ""}')
    assert warnings == [
        "f: line 1, column 2: 'mtuu' is not an option of the client (did you mean mtu?), ignored",
        "f: line 1, column 25: 'c' is not an option of the client, ignored",
        "f: line 1, column 35: 'listen' is an option of the server, ignored",
        "f: line 1, column 48: 'ds' is not an option in a file (write 'datashard'), ignored",
        "f: line 1, column 57: '//' is not an option of the client, ignored",
    ]


def test_null_leaves_the_value_and_the_last_of_equal_keys_counts() -> None:
    assert client("--mtu=1000", "-c", "f", file='{"mtu": null}').mtu == 1000
    config, warnings = read("client", ["-c", "f"], file='{"mtu": 1000, "MTU": 1100}')
    assert config.mtu == 1100 and warnings == [
        "f: line 1, column 15: 'MTU' is there more than once, the last one counts"
    ]
    assert client("--mtu=1000", "-c", "f", file="null").mtu == 1000


def test_only_the_first_json_value_is_read() -> None:
    assert client("-c", "f", file='\n {"mtu": 1000} {"mtu": 1100} nonsense').mtu == 1000
    assert client("-c", "f", file='\ufeff{"mtu": 1000}').mtu == 1000


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"mtu": "1350"}', "f: line 1, column 2: 'mtu' must be a whole number without quotes, not \"1350\""),
        ('{"mtu": 1350.0}', "f: line 1, column 2: 'mtu' must be a whole number without quotes, not 1350.0"),
        ('{"mtu": true}', "f: line 1, column 2: 'mtu' must be a whole number without quotes, not true"),
        ('{"crypt": 1}', "f: line 1, column 2: 'crypt' must be a text in double quotes, not 1"),
        ('{"nocomp": 1}', "f: line 1, column 2: 'nocomp' must be true or false, not 1"),
        (
            '{"memlimit": false}',
            "f: line 1, column 2: 'memlimit' must be a text in double quotes or a whole number without quotes, not",
        ),
        ('{"mtu": 20}', "f: line 1, column 2: 'mtu': 20 is out of range; it must be 50 to 1500"),
        ('{\n  "mtu": 1350\n  "dscp": 1}', "-c: f: line 3, column 3: "),
        ('\n\n{"mtu" 1}', "-c: f: line 3, column 8: "),
        ("", "-c: f: line 1, column 1: "),
        ("[]", "-c: f: line 1, column 1: it must hold a JSON object"),
        ('{"mtu": NaN}', "-c: f is not JSON that can be read: NaN is not JSON"),
        ("[" * 100_000, "-c: f is not JSON that can be read: "),
        (b'{"key": "\xff"}', "-c: f: line 1, column 10: not UTF-8 text (byte 9); save it as UTF-8"),
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
        "smux version: auto",
        "listening on: 127.0.0.1:40903",
        "encryption: aes",
        "nodelay parameters: 0 30 2 1",
        "remote address: 127.0.0.1:1",
        "sndwnd: auto rcvwnd: auto",
        "compression: auto",
        "mtu: 1350",
        "datashard: auto parityshard: auto",
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
        "sndwnd: auto rcvwnd: auto",
    ]
    assert lines[7] == "compression: false"
    assert lines[-5:] == ["snmplog: ", "snmpperiod: 60", "pprof: false", "quiet: true", "tcp: false"]


def test_the_key_is_never_described() -> None:
    assert not any("test key" in line for line in describe(client()) + describe(server()))


# Transport


@pytest.mark.parametrize(
    ("arguments", "transport"),
    [([], "udp"), (["--tcp"], "tcp"), (["--transport=tcp"], "tcp"), (["--transport=auto"], "auto")],
)
def test_transport(arguments: list[str], transport: str) -> None:
    config, warnings = read("client", ["-r", "a:1", "--key=k", *arguments], {})
    assert isinstance(config, ClientConfig)
    assert (config.transport, config.tcp, warnings) == (transport, transport != "udp", [])


def test_two_transports_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="--transport: auto does not go with --tcp; leave one of them out"):
        read("client", ["-r", "a:1", "--tcp", "--transport", "auto"], {})


@pytest.mark.parametrize("workers", ["auto", "1"])
def test_a_port_of_tcp_is_one_processs(workers: str) -> None:
    config, _ = read("server", ["--key=k", "--tcp", "--workers", workers], {})
    assert isinstance(config, ServerConfig) and config.workers == 1


def test_workers_and_tcp_do_not_go_together() -> None:
    with pytest.raises(ConfigError, match="--workers: 2 do not go with --tcp, which has one process; write 1"):
        read("server", ["--tcp", "--workers", "2"], {})
