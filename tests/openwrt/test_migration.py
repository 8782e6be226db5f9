"""The tunnels of OpenWrt's kcptun package come over to ours, once."""

from pathlib import Path

import pytest

from tests.openwrt.router import FILES, Router
from tests.openwrt.standin.tools import parse

OLD = """
config server
	option disabled 1
	option listen 29900
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
	option quiet 1
	option syslog 1
	option user nobody

config client
	option disabled 0
	option bind_address '0.0.0.0'
	option local_port 12948
	option server 'vps'
	option server_port 29900
	option crypt 'aes'
	option key 'it'\\''s "$HOME" `id`'
	option mode 'fast'
	option conn 1
	option autoexpire 0
	option scavengettl 600
	option mtu 1350
	option sndwnd 128
	option rcvwnd 512
	option nocomp 1
	option sockbuf 4194304
	option smuxbuf 1048576
	option keepalive 10
	option quiet 1
	option gogc 20
	option user nobody

config client 'office'
	option local_port 12949
	option server '2001:db8::1'
	option server_port 29900
	option key 'k'
"""
"the options of 24.10's example, some values as a user would have them"


@pytest.fixture
def router(tmp_path: Path) -> Router:
    router = Router(tmp_path)
    router.configure((FILES / "kcptun-lite.config").read_text())
    return router


def test_a_config_of_2410_comes_over_and_runs(router: Router) -> None:
    router.configure(OLD, "kcptun")
    result = router.migrate()
    assert result.code == 0 and not result.errors
    new = parse((router.config / "kcptun-lite").read_text())
    assert new["server1"] == {
        ".type": "server", "enabled": "0", "listen": "29900", "target": "127.0.0.1", "target_port": "12948",
        "crypt": "aes", "key": "secret", "mode": "fast", "datashard": "10", "parityshard": "3", "dscp": "46",
        "nocomp": "1", "snmplog": "/var/log/snmp.log", "snmpperiod": "60", "quiet": "1", "syslog": "1",
        "user": "nobody", "smuxver": "1",
    }  # fmt: skip
    assert new["client1"]["key"] == 'it\'s "$HOME" `id`'
    assert new["client1"]["gogc"] == "20"
    assert new["client1"]["streambuf"] == "1048576", "the programs refuse a streambuf above smuxbuf"
    assert "streambuf" not in new["client2"]
    assert new["globals"]["migrated"] == "1"

    instances = router.run("start").service.instances
    assert list(instances) == ["client1", "client2"], "the server was disabled, the examples still are"
    assert instances["client1"]["env"]["KCPTUN_LOCALADDR"] == "0.0.0.0:12948"
    assert instances["client1"]["user"] == "nobody"
    assert instances["client2"]["env"]["KCPTUN_REMOTEADDR"] == "[2001:db8::1]:29900"
    assert (router.config / "kcptun").read_text() == OLD
    assert len(router.log()) == 3

    text = (router.config / "kcptun-lite").read_text()
    router.migrate()
    assert (router.config / "kcptun-lite").read_text() == text, "once is enough"


def test_names_that_are_taken_and_a_service_that_still_runs(router: Router) -> None:
    (router.root / "etc/init.d/kcptun").touch()
    router.configure("config client client1\n\toption enabled 0\n")
    router.configure(OLD, "kcptun")
    router.migrate()
    new = parse((router.config / "kcptun-lite").read_text())
    assert set(new) == {"client1", "client1_kcptun", "client2", "server1", "globals"}
    assert "key" not in new["client1"]
    assert router.run("start").service.instances == {}


@pytest.mark.parametrize("text", [None, "", "config general\n\toption server x\n\nconfig server\n\toption alias y\n"])
def test_without_its_tunnels_nothing_changes(router: Router, text: str | None) -> None:
    """The last is the shape of another package's file of the same name."""
    if text is not None:
        router.configure(text, "kcptun")
    before = parse((router.config / "kcptun-lite").read_text())
    assert router.migrate().code == 0
    after = parse((router.config / "kcptun-lite").read_text())
    after["globals"].pop("migrated", None)
    assert after == before


def test_a_24_10_file_runs_even_without_migration(router: Router) -> None:
    """What says `disabled 0` there; a section that says nothing stays off, as ours do."""
    router.configure(OLD)
    (client,) = router.run("start").service.instances.values()
    assert client["env"]["KCPTUN_REMOTEADDR"] == "vps:29900"
