"""The README's first page on a Debian that has nothing: each line as it stands there."""

import re
from collections.abc import Iterator

import pytest

from tests.install.machines import Machine, run
from tests.programs import ROOT


def blocks() -> list[str]:
    """The commands of "Quick start"."""
    text = (ROOT / "README.md").read_text().partition("## Quick start")[2].partition("**With a Go server")[0]
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


def row(name: str) -> list[str]:
    """Commands of the table below them."""
    (line,) = re.findall(rf"^\| {name} \| (.*) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    return re.findall(r"`([^`]*)`", line)


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """With a checkout in /srv/kcptun_lite."""
    with Machine() as machine:
        folder = machine.path("/srv/kcptun_lite")
        folder.mkdir()
        copy = (
            f"tar --exclude=./.venv --exclude=./build --exclude=./.git --create . | tar --extract --directory={folder}"
        )
        run(["sh", "-c", f"cd {ROOT} && {copy}"])
        yield machine


def test_the_first_page(machine: Machine) -> None:
    server, client = blocks()
    cd = "set -e; cd /srv/kcptun_lite; "
    output = machine.run(cd + server, timeout=280)
    assert "active (running)" in output and '"listening on [::]:29900"' in output
    assert machine.run("stat --format=%a /etc/kcptun-lite") == "700\n"
    machine.serve("through the tunnel", 8388)

    # The other side, on the same machine: its file would have the same name.
    key = machine.run('sed -n \'s/.*"key": "\\(.*\\)".*/\\1/p\' /etc/kcptun-lite/home.json').strip()
    assert re.fullmatch("[a-zA-Z0-9]{32}", key)
    client = client.replace("KCPTUN_KEY=...", f"KCPTUN_KEY={key}").replace("your.server", "127.0.0.1")
    client = client.replace("home", "near")
    assert re.search("^ok +target ", machine.run(cd + client, timeout=120), re.MULTILINE)
    fetch = "print(__import__('urllib.request').request.urlopen('http://127.0.0.1:12948/').read().decode())"
    assert machine.run(f'python3 -c "{fetch}"') == "through the tunnel\n\n"
    assert machine.run("systemctl is-enabled kcptun-lite-server@home kcptun-lite-client@near") == "enabled\nenabled\n"

    for command in row("see"):
        assert "29900" in machine.run(command)
    (_, test, restart) = row("change")
    assert "/etc/kcptun-lite/home.json: line" in machine.run(test)
    machine.run(restart)
    # All libraries can be loaded with what the unit leaves to a program: numpy, which calculates parity, as well.
    machine.put("/etc/kcptun-lite/fec.env", "KCPTUN_KEY=k\nKCPTUN_LISTEN=:0\nKCPTUN_DATASHARD=10\n")
    machine.run("systemctl start kcptun-lite-server@fec")
    pid = machine.shows("kcptun-lite-server@fec", "MainPID")
    assert "/numpy/" in machine.run(f"cat /proc/{pid}/maps")
    machine.run("systemctl stop kcptun-lite-server@fec")

    (upgrade,) = row("upgrade")
    pid = machine.shows("kcptun-lite-server@home", "MainPID")
    machine.run(cd + upgrade.replace("git pull", "true"), timeout=240)
    assert machine.shows("kcptun-lite-server@home", "MainPID") != pid
    assert machine.shows("kcptun-lite-server@home", "ActiveState") == "active"

    (stop,) = row("stop")
    for unit in ("server@home", "client@near"):
        machine.run(stop.replace("server@home", unit))
    (uninstall,) = row("uninstall")
    machine.run(uninstall)
    left = machine.run("find /etc /opt /usr -xdev -name '*kcptun*lite*'")
    assert not left
