"""The service on a router of OpenWrt's own procd, ubus, uci and logd: what runs for which /etc/config/kcptun-lite.

Run by `make test-router`.
"""

import re
from collections.abc import Iterator

import pytest

from tests.openwrt.router import FILES, SERVICE, STATUS, Router, wait_for
from tests.openwrt.uci import NASTY, client, section, server


def reload_with(router: Router, text: str) -> None:
    router.configure(text)
    router.service("reload")


def complaints(router: Router) -> list[str]:
    """What the init script logged about sections that are not started."""
    return [line.rpartition("is not started: ")[2] for line in router.log() if "is not started" in line]


# What runs


def test_nothing_runs_as_shipped(router: Router) -> None:
    router.configure((FILES / "kcptun-lite.config").read_text())
    assert router.service("start") == ""
    assert router.instances() == {}
    assert router.log() == []
    assert router.service("status") == "active with no instances\n"


def test_clients_and_a_server(router: Router) -> None:
    router.configure(
        client("home") + client("office", local_port="12949", crypt="none") + server("hub", listen="2990-2999")
    )
    router.service("start")
    home, office, hub = (router.instances()[name] for name in ("home", "office", "hub"))
    assert home["command"] == office["command"] == ["/usr/bin/kcptun-lite-client"]
    assert hub["command"] == ["/usr/bin/kcptun-lite-server"]
    assert re.fullmatch(r"[0-9a-f]{32}\.\.\.\.", home["env"].pop("SETTINGS"))
    assert home["env"] == {
        "KCPTUN_NAME": "home",
        "KCPTUN_STATUS": f"{STATUS}/home.json",
        "KCPTUN_LOG": "/dev/log",
        "KCPTUN_KEY": "k",
        "KCPTUN_NOCOMP": "1",
        "KCPTUN_LOCALADDR": ":12948",
        "KCPTUN_REMOTEADDR": "192.0.2.9:29900",
    }
    assert office["env"]["KCPTUN_CRYPT"] == "none"
    assert (hub["env"]["KCPTUN_LISTEN"], hub["env"]["KCPTUN_TARGET"]) == (":2990-2999", "127.0.0.1:12948")
    for name in router.instances():
        assert router.status(name)["pid"] == router.pids()[name]
    assert router.service("running") == ""
    assert len(router.service("status").splitlines()) == 10


def test_the_process_is_what_it_should_be(router: Router) -> None:
    router.configure(
        client("home") + client("office", local_port="12949", user="nobody", nice="-5") + server("hub", user="root")
    )
    router.service("start")
    for name in ("home", "office", "hub"):
        router.status(name)
    processes = {name: str(pid) for name, pid in router.pids().items()}
    ids = {name: router.run(f"grep -E '^[UG]id' /proc/{pid}/status").split() for name, pid in processes.items()}
    user, group = router.run("id -u kcptun-lite; id -g kcptun-lite").split()
    nobody = router.run("id -u nobody").strip()
    assert (ids["home"][1], ids["home"][6]) == (user, group)
    assert (ids["office"][1], ids["office"][6]) == (nobody, group)
    assert (ids["hub"][1], ids["hub"][6]) == ("0", "0")
    assert router.run(f"cut -d ' ' -f 19 /proc/{processes['office']}/stat") == "-5\n"
    titles = [router.run(f"tr '\\0' '\\n' </proc/{pid}/cmdline").splitlines()[0] for pid in processes.values()]
    assert {title.rpartition("/")[2] for title in titles} == {
        "kcptun-lite-client home",
        "kcptun-lite-client office",
        "kcptun-lite-server hub",
    }
    assert router.run(f"stat -c '%A %U %G' {STATUS}") == "drwxrwx--- root kcptun-lite\n"


def test_keys_arrive_as_they_were_written(router: Router) -> None:
    keys = [NASTY, "a  b", "'", '"', "$", "`", "\\", "-x", " lead and trail ", "a=b", "*", "two\nlines"]
    reload_with(router, "".join(client(f"c{at}", key=key, local_port=f"{20000 + at}") for at, key in enumerate(keys)))
    assert {name: instance["env"]["KCPTUN_KEY"] for name, instance in router.instances().items()} == {
        f"c{at}": key for at, key in enumerate(keys)
    }
    assert {len(instance["command"]) for instance in router.instances().values()} == {1}
    for name in router.pids():
        router.status(name)
        assert router.run(f"tr '\\0' '\\n' </proc/{router.pids()[name]}/environ | grep -c KEY", code=1) == "0\n"


def test_addresses_in_parts_whole_and_as_a_list(router: Router) -> None:
    reload_with(
        router,
        client("a", server="2001:db8::7", bind_address="::1", server_port="29900-29910")
        + client("b", remoteaddr="a:1-9,[::2]:3", localaddr="/tmp/tunnel")
        + client("c", local_port="12949") + "\tlist remoteaddr 'a:1'\n\tlist remoteaddr '[::2]:3'\n"
        + client("d", local_port="12950", server="[2001:db8::7]", bind_address="localhost")
        + server("e", listen="[::1]:29900", target="fd00::5")
        + server("f", listen="29900-29910", target="/tmp/target", target_port=""),
    )  # fmt: skip
    a, b, c, d, e, f = (instance["env"] for _, instance in sorted(router.instances().items()))
    assert (a["KCPTUN_REMOTEADDR"], a["KCPTUN_LOCALADDR"]) == ("[2001:db8::7]:29900-29910", "[::1]:12948")
    assert (b["KCPTUN_REMOTEADDR"], b["KCPTUN_LOCALADDR"]) == ("a:1-9,[::2]:3", "/tmp/tunnel")
    assert c["KCPTUN_REMOTEADDR"] == "a:1,[::2]:3"
    assert (d["KCPTUN_REMOTEADDR"], d["KCPTUN_LOCALADDR"]) == ("[2001:db8::7]:29900", "localhost:12950")
    assert (e["KCPTUN_LISTEN"], e["KCPTUN_TARGET"]) == ("[::1]:29900", "[fd00::5]:12948")
    assert (f["KCPTUN_LISTEN"], f["KCPTUN_TARGET"]) == (":29900-29910", "/tmp/target")


def test_switches_in_all_their_words(router: Router) -> None:
    common = {"key": "k", "server": "vps", "server_port": "29900", "nocomp": "1"}
    words = ["1", "on", "ON", "true", "True", "yes", "enabled"]
    texts = [
        section("client", f"on{at}", **common, enabled=word, local_port=f"{21000 + at}")
        for at, word in enumerate(words)
    ]
    texts += [section("client", f"off{at}", **common, enabled=word) for at, word in enumerate(["0", "Off", "no"])]
    texts += [
        section("client", "neither", **common),
        section("client", "both", **common, enabled="0", disabled="0"),
        section("client", "old_off", **common, disabled="1"),
        section("client", "old_on", **common, disabled="No", local_port="21100"),
        section("client", "odd", **common, enabled="perhaps", local_port="21101"),
    ]
    reload_with(router, "".join(texts))
    assert set(router.instances()) == {*(f"on{at}" for at in range(len(words))), "old_on"}
    assert complaints(router) == ["enabled 'perhaps' is not 0 or 1"]
    reload_with(router, client("off", enabled="0", mtu="1", nice="99"))
    assert len(complaints(router)) == 1, "what is disabled may be wrong"


# What is wrong


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("nocomp", "2", "nocomp '2' is not 0 or 1, or auto"),
        ("mtu", " 1350", "mtu ' 1350' is not a number from 50 to 1500"),
        ("mtu", "01350", "mtu '01350' is not a number from 50 to 1500"),
        ("mtu", "0x500", "mtu '0x500' is not a number from 50 to 1500"),
        ("sndwnd", "1e3", "sndwnd '1e3' is not a number from 1 to 65535, or auto"),
        ("scavengettl", "-2", "scavengettl '-2' is not a number from -1 to 2147483647"),
        ("sockbuf", "3000000000", "sockbuf '3000000000' is not a number from 1 to 2147483647"),
        ("sockbuf", "4294967297", "sockbuf '4294967297' is not a number from 1 to 2147483647"),
        ("sockbuf", "18446744073709551617", "sockbuf '18446744073709551617' is not a number from 1 to 2147483647"),
        ("ratelimit", "10M", "ratelimit '10M' is not a number from 0 to 2147483647"),
        ("closewait", "-1", "closewait '-1' is not a number from 0 to 2147483647"),
        ("memlimit", "32Q", "memlimit '32Q' is not a size such as 32M"),
        ("memlimit", "M", "memlimit 'M' is not a size such as 32M"),
        ("gogc", "much", "gogc 'much' is not a percentage or off"),
        ("mode", "Fast", "mode 'Fast' is not one of fast3, fast2, fast, normal, manual"),
        ("server", "a b", "server 'a b' is not a name or an address"),
        ("server_port", "0", "server_port '0' is not a port, or a range such as 29900-29910"),
        ("server_port", "29910-29900", "server_port '29910-29900' is not a port, or a range such as 29900-29910"),
        ("server_port", "1-", "server_port '1-' is not a port, or a range such as 29900-29910"),
        ("server_port", "1-2-3", "server_port '1-2-3' is not a port, or a range such as 29900-29910"),
        ("user", "nosuchuser", "user 'nosuchuser' is not a user of this system"),
        ("user", "0", "user '0' is not a user of this system"),
        ("nice", "99", "nice '99' is not a number from -20 to 19"),
        ("nice", "--5", "nice '--5' is not a number from -20 to 19"),
        ("smuxbuf", "100", "streambuf (2097152) is over smuxbuf (100)"),
        ("parityshard", "250", "datashard and parityshard are over 256 together"),
        ("key", "", "it has no key"),
        ("local_port", "", "it has no local_port"),
        ("server", "", "it has no server or server_port"),
        ("server_port", "", "it has no server or server_port"),
    ],
)
def test_what_is_wrong_is_said(router: Router, option: str, value: str, sentence: str) -> None:
    reload_with(router, client("two", **{option: value}))
    assert router.instances() == {}
    assert complaints(router) == [sentence]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("nocomp", "True"), ("nocomp", "Off"), ("memlimit", "32M"), ("memlimit", "33554432"), ("memlimit", "32MiB"),
        ("gogc", "off"), ("gogc", "20"), ("nice", "-20"), ("nice", "19"), ("nice", "0"), ("dscp", "0"),
        ("server", "fe80::1%lo"), ("server", "vps_1.example.org"), ("server_port", "1-65535"),
        ("sockbuf", "2147483647"), ("crypt", "aes-128-gcm"), ("key", "0"),
        ("sndwnd", "auto"), ("datashard", "auto"), ("scavengettl", "-1"), ("autoexpire", "-1"),
    ],
)  # fmt: skip
def test_what_is_right_runs(router: Router, option: str, value: str) -> None:
    """The program refuses none of what the script lets through."""
    reload_with(router, client("two", **{option: value}))
    assert router.status("two")["role"] == "client"
    assert complaints(router) == []


def test_a_servers_ports(router: Router) -> None:
    reload_with(router, server("a", listen="70000") + server("b", listen="") + server("c", target="", target_port=""))
    assert complaints(router) == [
        "listen '70000' is not a port, or a range such as 29900-29910",
        "it has no listen",
        "it has no target",
    ]


def test_a_wrong_section_is_named_and_the_others_run(router: Router) -> None:
    reload_with(
        router,
        client("home") + client("bad", key=NASTY, mtu="9000", crypt="rot13") + "\tlist mode 'fast'\n" + server("hub"),
    )
    assert set(router.instances()) == {"home", "hub"}
    (line,) = [line for line in router.log() if "'bad'" in line]
    assert line.startswith("daemon.err kcptun-lite: section 'bad' of /etc/config/kcptun-lite is not started: ")
    assert "mtu '9000' is not a number from 50 to 1500" in line
    assert " crypt 'rot13' is not one of aes, " in line
    assert " mode is a list" in line
    assert "secret" not in line


def test_a_misspelt_option_is_told(router: Router) -> None:
    reload_with(router, client("home", sndwindow="1024", pprof="0"))
    (line,) = [line for line in router.log() if "daemon.warn kcptun-lite: " in line]
    assert line.endswith("section 'home' of /etc/config/kcptun-lite: no option is called 'sndwindow'")
    assert set(router.instances()) == {"home"}


def test_a_program_that_is_not_installed(router: Router) -> None:
    router.run("mv /usr/bin/kcptun-lite-server /tmp/")
    try:
        reload_with(router, client("home") + server("hub"))
        assert set(router.instances()) == {"home"}
        assert complaints(router) == ["the package kcptun-lite-server is not installed"]
    finally:
        router.run("mv /tmp/kcptun-lite-server /usr/bin/")


# Transport


def test_sections_with_raw_sockets_run_as_root(router: Router) -> None:
    """Unless they name a user; the others do not."""
    reload_with(
        router,
        client("auto", transport="auto")
        + client("tcp", tcp="1", local_port="12949")
        + client("udp", tcp="0", transport="udp", local_port="12950")
        + server("hub", tcp="1"),
    )
    users = {name: instance["user"] for name, instance in router.instances().items()}
    assert users == {"auto": "root", "tcp": "root", "udp": "kcptun-lite", "hub": "root"}
    for name in users:
        router.status(name)  # it runs
    reload_with(router, client("tcp", tcp="1", user="nobody"))
    router.wait_for_log("tcp: --tcp: it needs CAP_NET_RAW")


# The log


def test_lines_have_their_level_and_the_tunnels_name(router: Router) -> None:
    reload_with(
        router,
        client("home", pprof="1")
        + client("far", snmplog="/nowhere/x", local_port="12950")
        + client("still", syslog="0", local_port="12949"),
    )
    pid = router.instances()["home"]["pid"]
    other = router.instances()["far"]["pid"]
    assert router.wait_for_log("encryption") == f"daemon.info kcptun-lite-client[{pid}]: home: encryption: aes"
    assert (
        router.wait_for_log("pprof")
        == f"daemon.warn kcptun-lite-client[{pid}]: home: --pprof does nothing in kcptun_lite"
    )
    assert "--snmplog: /nowhere/x cannot" in router.wait_for_log(f"daemon.err kcptun-lite-client[{other}]: far: ")
    router.status("still")
    assert not any("still:" in line for line in router.log())


def test_what_is_said_before_the_log_is_open_is_not_lost(router: Router) -> None:
    reload_with(router, client("home", mtu="52"))
    assert router.wait_for_log("KCPTUN_MTU: 52 leaves no room for data").startswith("daemon.err kcptun-lite-client[")


# Reload


CHANGES = [
    ("mode", "fast3", "fast2"), ("sndwnd", "128", "256"), ("mtu", "1350", "1400"), ("nocomp", "0", "1"),
    ("smuxver", "1", "2"), ("datashard", "10", "20"), ("quiet", "0", "1"), ("key", "my secret 1", "my secret 2"),
    ("crypt", "aes", "xor"), ("server_port", "29900", "29911"), ("local_port", "32101", "32102"),
    ("server", "192.0.2.1", "192.0.2.2"), ("nice", "3", "4"), ("syslog", "1", "0"), ("user", "kcptun-lite", "nobody"),
]  # fmt: skip


def test_each_change_is_applied_and_restarts_its_own_section_only(router: Router) -> None:
    """One option after another, the way Save & Apply goes: uci, then an event. procd compares no last letters."""
    first = {option: value for option, value, _ in CHANGES}
    router.configure(client("other", local_port="32100") + client("two", **first))
    router.service("start")
    for option, _, value in CHANGES:
        before = {name: router.status(name)["pid"] for name in ("other", "two")}
        router.run(f"uci set kcptun-lite.two.{option}='{value}'; uci commit kcptun-lite")
        router.event("config.change", package="kcptun-lite")
        wait_for(lambda old=before["two"]: router.pids().get("two", old) != old, f"restart after a change of {option}")
        assert router.pids()["other"] == before["other"]
    before = router.pids()
    for package in "kcptun-lite", "network", "dhcp", "firewall":
        router.event("config.change", package=package)
    router.service("reload")
    assert router.pids() == before, "nothing has changed"


def test_every_option_is_in_what_procd_compares(router: Router) -> None:
    """Also of those that are seldom changed, and for a change of the last letter."""
    reload_with(router, client("two"))
    pid = router.status("two")["pid"]
    values = {
        "rcvwnd": "513", "parityshard": "4", "dscp": "1", "sockbuf": "4194303", "ratelimit": "1000001",
        "smuxbuf": "4194303", "streambuf": "2097151", "framesize": "32767", "keepalive": "11", "closewait": "301",
        "maxstreams": "1023", "memlimit": "33M", "gogc": "99", "loglevel": "warning", "snmplog": "/tmp/a",
        "snmpperiod": "61", "acknodelay": "1", "nodelay": "1", "interval": "51", "resend": "1", "nc": "1", "qpp": "1",
        "qppcount": "60", "conn": "2", "autoexpire": "1", "scavengettl": "601", "localaddr": ":12949",
        "remoteaddr": "192.0.2.9:29901", "bind_address": "127.0.0.1", "tcp": "1", "transport": "auto", "pprof": "1",
    }  # fmt: skip
    settings = {"": router.instances()["two"]["env"]["SETTINGS"]}
    for option, value in values.items():
        reload_with(router, client("two", **{option: value}))
        settings[option] = router.instances()["two"]["env"]["SETTINGS"]
    assert len(set(settings.values())) == len(settings), settings
    wait_for(lambda: router.pids().get("two", pid) != pid, "restart")


def test_what_stops_leaves_no_status(router: Router) -> None:
    reload_with(router, client("home") + client("office", local_port="12949"))
    for name in ("home", "office"):
        router.status(name)
    reload_with(router, client("home") + client("office", local_port="12949", enabled="0"))
    wait_for(lambda: set(router.instances()) == {"home"}, "end of office")
    wait_for(lambda: router.run(f"ls {STATUS}") == "home.json\nhome.json.sock\n", "status of home alone")
    router.service("stop")
    wait_for(lambda: not router.instances(), "end")
    assert router.run(f"ls {STATUS}") == ""


def test_a_program_that_dies_is_started_again(router: Router) -> None:
    reload_with(router, client("home"))
    pid = router.status("home")["pid"]
    router.run(f"kill -9 {pid}")
    wait_for(lambda: router.pids().get("home", pid) != pid, "respawn")
    assert router.status("home")["pid"] == router.pids()["home"]


def test_who_dies_again_and_again_is_given_up_until_the_next_reload(router: Router) -> None:
    """Six deaths, each within a minute."""
    reload_with(router, client("home", snmplog="/nowhere/x"))
    wait_for(lambda: not router.instances()["home"].get("respawn"), "end of respawning", 90)
    assert sum("home: --snmplog: /nowhere/x cannot" in line for line in router.log()) == 6
    router.run("mkdir /nowhere; chmod 777 /nowhere")
    try:
        router.service("reload")
        assert router.status("home")["role"] == "client"
    finally:
        router.run("rm -r /nowhere")


def test_an_address_to_listen_on_that_comes_late(router: Router) -> None:
    """As that of a bridge, of PPP or a VPN does at boot: nobody dies of it."""
    reload_with(router, client("home", bind_address="203.0.113.5") + server("hub", listen="203.0.113.5:29900"))
    pids = {name: router.status(name)["pid"] for name in ("home", "hub")}
    for name in "client", "server":
        router.wait_for_log(f"daemon.warn kcptun-lite-{name}[")
    assert sum("no interface of this machine has 203.0.113.5 now" in line for line in router.log()) == 2
    router.ip("link set lo up", "addr add 203.0.113.5/32 dev lo")
    with router.socket() as connection:
        connection.connect(("203.0.113.5", 12948))
    assert router.pids() == pids
    router.ip("addr del 203.0.113.5/32 dev lo")


# Redial


def test_redial_signals_the_clients_that_run(router: Router) -> None:
    reload_with(
        router,
        client("home")
        + client("office", local_port="12949")
        + client("off", enabled="0")
        + client("bad", mtu="1")
        + server("hub"),
    )
    pids = {name: router.status(name)["pid"] for name in ("home", "office", "hub")}
    router.run(f"{SERVICE} redial; {SERVICE} redial office; {SERVICE} redial bad; {SERVICE} redial nosuch")
    assert router.pids() == pids


def test_triggers(router: Router) -> None:
    reload_with(router, section("globals", "globals", redial_on="wan lte") + client("home"))
    assert router.procd()["triggers"] == [
        ["config.change", ["if", ["eq", "package", "kcptun-lite"], ["run_script", SERVICE, "reload"]], 1000],
        ["interface.*", ["if", ["eq", "interface", "wan"], ["run_script", SERVICE, "follow"]], 1000],
        ["interface.*", ["if", ["eq", "interface", "lte"], ["run_script", SERVICE, "follow"]], 1000],
    ]


WITNESS = """#!/bin/sh
trap 'logger -t witness moved' HUP
logger -t witness started
while :; do sleep 0.1; done
"""
"a program in the client's place that tells of each signal"


@pytest.fixture
def witness(router: Router) -> Iterator[Router]:
    for device in "wan", "lte":
        router.ip(f"link add {device} type veth peer name {device}0", f"link set {device} up", f"link set {device}0 up")
    router.run("mv /usr/bin/kcptun-lite-client /tmp/")
    router.path("/usr/bin/kcptun-lite-client").write_text(WITNESS)
    router.run("chmod 755 /usr/bin/kcptun-lite-client")
    yield router
    router.ip("link del wan", "link del lte")
    router.run("mv /tmp/kcptun-lite-client /usr/bin/")


def test_follow_redials_when_the_default_route_has_moved(witness: Router) -> None:
    reload_with(witness, client("home"))
    witness.wait_for_log("witness: started")
    expected = 0
    for commands, moves in [
        ("", False),
        ("addr add 198.51.100.2/24 dev wan; route add default via 198.51.100.1", True),  # the first there is
        ("", False),
        ("-6 addr add 2001:db8:1::2/64 dev wan nodad; -6 route add default via 2001:db8:1::1", False),  # another family
        ("-6 addr add 2001:db8:1::3/64 dev wan nodad preferred_lft 0", False),
        ("addr flush dev wan scope global", False),  # nothing is left to dial over
        ("addr add 198.51.100.2/24 dev wan; route add default via 198.51.100.1", False),  # as it was
        ("addr flush dev wan scope global", False),
        ("addr add 198.51.100.3/24 dev wan; route add default via 198.51.100.1", True),  # another address
        ("addr add 203.0.113.2/24 dev lte", False),
        ("route replace default via 203.0.113.1 dev lte", True),  # another device
        ("link set lte down", False),
    ]:
        witness.run("\n".join(f"ip {command}" for command in commands.split("; ") if command))
        witness.service("follow")
        expected += moves
        if moves:
            wait_for(lambda expected=expected: count_moves(witness) >= expected, commands)
        witness.run("sleep 0.3")  # for a signal that must not come
        assert count_moves(witness) == expected, commands


def count_moves(witness: Router) -> int:
    return sum("witness: moved" in line for line in witness.log())
