"""Tunnels of OpenWrt's kcptun package, as 24.10 had it, come over. Run by `make test-router`."""

import pytest

from tests.openwrt.router import FILES, Router

DEFAULTS = "/etc/uci-defaults/80-kcptun-lite"

OLD = """
config server
	option disabled 1
	option listen '29900-30000'
	option target '127.0.0.1'
	option target_port 12948
	option crypt 'aes'
	option key 'secret'
	option mode 'fast'
	option datashard 10
	option parityshard 3
	option dscp 46
	option nocomp 1
	option snmplog '/var/log/snmp.log'
	option snmpperiod 60
	option pprof 1
	option tcp 0
	option quiet 1
	option syslog 1
	option user nobody

config client
	option disabled 0
	option bind_address '0.0.0.0'
	option local_port 12948
	option server 'vps'
	option server_port '29900-30000'
	option crypt 'aes'
	option key 'it'\\''s "$HOME" `id`'
	option mode 'fast'
	option conn 1
	option autoexpire 0
	option scavengettl -1
	option mtu 1350
	option sndwnd 128
	option rcvwnd 512
	option nocomp 1
	option sockbuf 4194304
	option smuxver 2
	option smuxbuf 1048576
	option keepalive 10
	option tcp 1
	option quiet 1
	option gogc 20
	option user nobody

config client 'office'
	option local_port 12949
	option server '2001:db8::1'
	option nocomp 1
	option smuxbuf 8388608
	option streambuf 4194304
"""
"the options of 24.10's example, some values as a user would have them; the last section relies on its defaults"


@pytest.fixture(autouse=True)
def shipped(router: Router) -> None:
    router.configure((FILES / "kcptun-lite.config").read_text())


def show(router: Router, section: str) -> dict[str, str]:
    lines = router.run(f"uci -q show kcptun-lite.{section}", code=None).splitlines()
    options = (line.removeprefix(f"kcptun-lite.{section}").partition("=") for line in lines)
    return {name.removeprefix("."): value.strip("'") for name, _, value in options}


def test_a_config_of_2410_comes_over_and_runs(router: Router) -> None:
    router.configure(OLD, "kcptun")
    assert router.run(DEFAULTS) == ""
    assert show(router, "server1") == {
        "": "server", "enabled": "0", "listen": "29900-30000", "target": "127.0.0.1", "target_port": "12948",
        "crypt": "aes", "key": "secret", "mode": "fast", "datashard": "10", "parityshard": "3", "dscp": "46",
        "nocomp": "1", "snmplog": "/var/log/snmp.log", "snmpperiod": "60", "pprof": "1", "tcp": "0", "quiet": "1",
        "syslog": "1", "user": "nobody", "smuxver": "1",
    }  # fmt: skip
    assert show(router, "client1") == {
        "": "client", "enabled": "1", "bind_address": "0.0.0.0", "local_port": "12948", "server": "vps",
        "server_port": "29900-30000", "crypt": "aes", "key": show(router, "client1")["key"], "mode": "fast",
        "conn": "1", "autoexpire": "0", "scavengettl": "-1", "mtu": "1350", "sndwnd": "128", "rcvwnd": "512",
        "nocomp": "1", "sockbuf": "4194304", "smuxver": "2", "smuxbuf": "1048576", "streambuf": "1048576",
        "keepalive": "10", "tcp": "1", "quiet": "1", "gogc": "20", "user": "nobody",
    }  # fmt: skip
    assert router.run("uci get kcptun-lite.client1.key") == 'it\'s "$HOME" `id`\n'
    assert show(router, "office") == {
        "": "client", "enabled": "1", "local_port": "12949", "server": "2001:db8::1", "server_port": "29900-30000",
        "key": "it'\\''s a secrect", "nocomp": "1", "smuxver": "1", "smuxbuf": "8388608", "streambuf": "4194304",
    }  # fmt: skip
    assert router.run("uci changes") == ""
    assert router.path("/etc/config/kcptun").read_text() == OLD

    router.service("start")
    assert set(router.instances()) == {"client1", "office"}, "the server was disabled, the examples still are"
    assert router.status("office")["role"] == "client"
    router.wait_for_log("client1: --tcp: it needs CAP_NET_RAW")  # kcptun as this user had no raw sockets either
    assert router.instances()["client1"]["env"]["KCPTUN_LOCALADDR"] == "0.0.0.0:12948"
    assert router.instances()["client1"]["user"] == "nobody"
    assert router.instances()["office"]["env"]["KCPTUN_REMOTEADDR"] == "[2001:db8::1]:29900-30000"
    log = "\n".join(router.log())
    assert log.count("taken over from section") == 3
    assert "office: the key is kcptun's default" in log

    text = router.path("/etc/config/kcptun-lite").read_text()
    router.run(DEFAULTS)
    assert router.path("/etc/config/kcptun-lite").read_text() == text, "once is enough"


def test_names_that_are_taken_and_a_service_that_still_runs(router: Router) -> None:
    router.run("touch /etc/init.d/kcptun")
    try:
        router.configure("config client client1\n\toption enabled 0\n\nconfig client office\n")
        router.configure(OLD, "kcptun")
        router.run(DEFAULTS)
        sections = router.run("uci show kcptun-lite | sed -n 's/^kcptun-lite\\.\\([^.]*\\)=.*/\\1/p'").split()
        assert set(sections) == {"client1", "client1_kcptun", "office", "office_kcptun", "server1", "globals"}
        assert "key" not in show(router, "client1")
        router.service("start")
        assert router.instances() == {}
    finally:
        router.run("rm /etc/init.d/kcptun")


@pytest.mark.parametrize("text", [None, "", "config general\n\toption server x\n\nconfig server\n\toption alias y\n"])
def test_without_its_tunnels_nothing_changes(router: Router, text: str | None) -> None:
    """The last is the shape of another package's file of the same name."""
    if text is not None:
        router.configure(text, "kcptun")
    before = router.run("uci show kcptun-lite")
    router.run(DEFAULTS)
    assert router.run("uci -q delete kcptun-lite.globals.migrated; uci show kcptun-lite") == before


def test_a_24_10_file_runs_even_without_migration(router: Router) -> None:
    """What says `disabled 0` there; a section that says nothing stays off, as ours do."""
    router.configure(OLD.replace("smuxbuf 1048576", "smuxbuf 4194304"))
    router.service("start")
    (instance,) = router.instances().values()
    assert instance["env"]["KCPTUN_REMOTEADDR"] == "vps:29900-30000"
