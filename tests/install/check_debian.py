"""The Debian package and systemd's units, as an administrator meets them: install, start, break, upgrade, remove."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.install.machines import Machine, bare_debian, require, run
from tests.programs import ROOT, wait_until

UNITS = sorted((ROOT / "tools/packaging/systemd").glob("*.service"))
CLIENT, SERVER = "kcptun-lite-client@home.service", "kcptun-lite-server@far.service"
PORT = 12949
FETCH = (
    f"python3 -c \"print(__import__('urllib.request').request.urlopen('http://127.0.0.1:{PORT}/').read().decode())\""
)


@pytest.fixture(scope="module")
def package() -> Path:
    """Built anew."""
    require("dpkg-buildpackage", "dh_python3")
    run(["tools/build_deb.sh"])
    (found,) = (ROOT / "build/deb").glob("*.deb")
    return found


@pytest.fixture(scope="module")
def machine(package: Path) -> Iterator[Machine]:
    """With the package, a target, and a tunnel configured by a file at one end and by an environment at the other."""
    with Machine() as machine:
        machine.put("/srv/kcptun-lite.deb", package.read_bytes(), 0o644)
        machine.run("apt-get install --yes --no-install-recommends /srv/kcptun-lite.deb", timeout=200)
        machine.serve("through the tunnel", 8011)
        server = {"key": "k", "listen": "127.0.0.1:29911", "target": "127.0.0.1:8011"}
        machine.put("/etc/kcptun-lite/far.json", json.dumps(server))
        client = {"KEY": "k", "REMOTEADDR": "127.0.0.1:29911", "LOCALADDR": f"127.0.0.1:{PORT}"}
        machine.put("/etc/kcptun-lite/home.env", "".join(f"KCPTUN_{name}={value}\n" for name, value in client.items()))
        yield machine


def test_lintian_accepts_the_package(package: Path) -> None:
    require("lintian")
    (changes,) = package.parent.glob("*.changes")
    output = run(["lintian", "--pedantic", "--display-info", str(changes)])
    assert not [line for line in output.splitlines() if line[:2] in ("E:", "W:", "I:", "P:")]


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_right_and_leave_little_to_an_intruder(unit: Path, tmp_path: Path) -> None:
    require("systemd-analyze")
    program = unit.name.partition("@")[0]
    for name in (program, "man"):  # what it names must be there to be found right
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace(f"={program} ", f"={tmp_path / program} "))
    assert run(["systemd-analyze", "verify", "--man=no", str(copy)]) == ""
    last = run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", "--no-pager", str(unit)]
    ).splitlines()
    assert "OK" in last[-1]


def test_a_tunnel_is_up_when_systemctl_comes_back(machine: Machine) -> None:
    machine.run(f"systemctl start {SERVER} {CLIENT}")
    assert machine.run(FETCH) == "through the tunnel\n\n"
    assert machine.shows(SERVER, "StatusText") == "listening on 127.0.0.1:29911"
    wait_until(lambda: "server-far.json" in machine.run("ls /run/kcptun-lite"), "the state for monitors")
    status = json.loads(machine.run("cat /run/kcptun-lite/server-far.json"))
    assert status["role"] == "server"


def test_it_runs_as_nobody_who_could_read_its_file(machine: Machine) -> None:
    machine.run(f"systemctl start {SERVER}")
    pid = machine.shows(SERVER, "MainPID")
    user = int(machine.run(f"stat --format=%u /proc/{pid}"))
    assert 61184 <= user <= 65519, "the range of DynamicUser="
    assert machine.run("stat --format='%U %a' /etc/kcptun-lite") == "root 700\n"


def test_the_journal_has_levels_and_one_time(machine: Machine) -> None:
    machine.run(f"systemctl restart {SERVER}")
    script = f"journalctl --unit={SERVER} --output=json --output-fields=PRIORITY,MESSAGE,_COMM"
    lines = [json.loads(line) for line in machine.run(script).splitlines()]
    ours = {line["MESSAGE"]: line["PRIORITY"] for line in lines if line.get("_COMM", "").startswith("kcptun-lite")}
    assert ours["listening on: 127.0.0.1:29911"] == "6"
    assert next(level for text, level in ours.items() if text.startswith("cramjam is not installed")) == "4"


def test_reload_is_a_signal_and_no_new_process(machine: Machine) -> None:
    machine.run(f"systemctl start {CLIENT}")
    pid = machine.shows(CLIENT, "MainPID")
    machine.run(f"systemctl reload {CLIENT}")
    assert (machine.shows(CLIENT, "MainPID"), machine.shows(CLIENT, "ActiveState")) == (pid, "active")


def test_a_program_that_hangs_is_started_anew(machine: Machine) -> None:
    folder = f"/run/systemd/system/{SERVER}.d"
    machine.run(f"mkdir --parents {folder} && printf '[Service]\\nWatchdogSec=1\\n' >{folder}/watchdog.conf")
    machine.run(f"systemctl daemon-reload && systemctl restart {SERVER}")
    pid = machine.shows(SERVER, "MainPID")
    machine.run(f"kill -STOP {pid}")
    wait_until(lambda: machine.shows(SERVER, "NRestarts") == "1", "the watchdog")
    wait_until(lambda: machine.shows(SERVER, "ActiveState") == "active", "a new start")
    assert machine.shows(SERVER, "MainPID") != pid
    machine.run(f"rm -r {folder} && systemctl daemon-reload && systemctl restart {SERVER}")


def test_a_server_with_workers_stays_through_a_reload(machine: Machine) -> None:
    folder = f"/run/systemd/system/{SERVER}.d"
    drop_in = "[Service]\\nEnvironment=KCPTUN_WORKERS=2\\nWatchdogSec=3\\n"
    machine.run(f"mkdir --parents {folder} && printf '{drop_in}' >{folder}/workers.conf")
    machine.run(f"systemctl daemon-reload && systemctl restart {SERVER} {CLIENT}")
    pid = machine.shows(SERVER, "MainPID")
    assert machine.run(FETCH) == "through the tunnel\n\n"
    machine.run(f"systemctl reload {SERVER}")
    said = f"journalctl --unit={SERVER} --output=cat"
    wait_until(lambda: "old worker 2 has ended" in machine.run(said), "new workers alone")
    assert machine.run(FETCH) == "through the tunnel\n\n"
    assert (machine.shows(SERVER, "MainPID"), machine.shows(SERVER, "NRestarts")) == (pid, "0")
    machine.run(f"rm -r {folder} && systemctl daemon-reload && systemctl restart {SERVER}")


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("bad", '{\n  "mtu": "1350"\n}', "bad.json: line 2, column 3: 'mtu' must be a whole number without quotes"),
        ("none", None, "--remoteaddr is missing: write the server's address"),
    ],
)
def test_a_wrong_file_is_told_once_and_not_tried_again(
    name: str, content: str | None, sentence: str, machine: Machine
) -> None:
    if content is not None:
        machine.put(f"/etc/kcptun-lite/{name}.json", content)
    unit = f"kcptun-lite-client@{name}.service"
    machine.run(f"systemctl start {unit}", check=False)
    wait_until(lambda: machine.shows(unit, "ActiveState") == "failed", "it is given up")
    assert (machine.shows(unit, "ExecMainStatus"), machine.shows(unit, "NRestarts")) == ("2", "0")
    assert sentence in machine.run(f"journalctl --unit={unit} --output=cat")


def test_an_upgrade_restarts_what_runs_and_a_removal_leaves_nothing(machine: Machine) -> None:
    machine.run(f"systemctl enable --now {SERVER}")
    pid = machine.shows(SERVER, "MainPID")
    machine.run("dpkg --install /srv/kcptun-lite.deb")
    assert machine.shows(SERVER, "ActiveState") == "active" and machine.shows(SERVER, "MainPID") != pid
    machine.run("dpkg --remove kcptun-lite")
    assert machine.shows(SERVER, "ActiveState") == "inactive"
    assert not machine.run("grep --files-with-matches kcptun-lite- /proc/[0-9]*/comm", check=False)
    machine.run("dpkg --purge kcptun-lite")
    left = machine.run("find /etc /usr /var /run -xdev -name '*kcptun*lite*' -not -path '/run/systemd/*'").splitlines()
    assert left == ["/etc/kcptun-lite"], "the user's files are the user's"
    machine.run("dpkg --install /srv/kcptun-lite.deb")


def test_the_base_is_not_changed() -> None:
    """What a machine does is forgotten, or the next run would begin with it."""
    assert not (bare_debian() / "usr/bin/kcptun-lite-server").exists()
