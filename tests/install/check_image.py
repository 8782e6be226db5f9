"""The container image, built by the Dockerfile on a Debian without a registry, and the compose file beside it.

The containers run in a changed root alone (buildah's chroot isolation): what is tested is the image, not a runtime.
"""

import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

from tests.install.machines import BUILD, bare_debian, network_files, require, require_root, run
from tests.programs import ROOT, Program, wait_until
from tests.traffic import Target, connect, exchange, exchange_handler

PACKAGING = ROOT / "tools/packaging"
BASE, IMAGE = "localhost/kcptun-lite-base", "localhost/kcptun-lite"


@pytest.fixture(scope="module")
def buildah() -> Iterator[list[str]]:
    """Its command with a storage of its own, in which a base with Python is."""
    require_root()
    require("buildah")
    root = bare_debian()
    storage = BUILD / "storage"
    command = ["buildah", f"--root={storage}/root", f"--runroot={storage}/run", "--storage-driver=overlay"]
    container = run([*command, "from", "scratch"]).strip()
    run([*command, "add", "--quiet", container, str(root), "/"])
    for here, there in network_files().items():
        run([*command, "add", "--quiet", container, str(here), there])
    for install in ("update", "install --yes --no-install-recommends python3 python3-venv ca-certificates"):
        run([*command, "run", "--isolation=chroot", container, "--", "apt-get", *install.split()])
    run([*command, "commit", "--quiet", "--rm", container, BASE])
    yield command
    run([*command, "rm", "--all"], check=False)
    run([*command, "rmi", "--all", "--force"], check=False)


@pytest.fixture(scope="module")
def image(buildah: list[str]) -> dict[str, Any]:
    """Built as the Dockerfile says; its configuration."""
    options = ["--isolation=chroot", "--format=docker", f"--build-arg=BASE={BASE}"]
    run([*buildah, "bud", *options, "-t", IMAGE, "-f", str(PACKAGING / "Dockerfile"), str(ROOT)], timeout=280)
    found: dict[str, Any] = json.loads(run([*buildah, "inspect", "--type=image", IMAGE]))["Docker"]["config"]
    return found


class Container:
    """A copy of the image, in which commands run as its user."""

    def __init__(self, buildah: list[str]) -> None:
        self.name = run([*buildah, "from", IMAGE]).strip()
        self._run = [*buildah, "run", "--isolation=chroot"]

    def start(self, *command: str, **environment: str) -> Program:
        variables = [f"--env={name}={value}" for name, value in environment.items()]
        return Program(command[0], [*self._run, *variables, self.name, "--", *command])

    def exit_code(self, *command: str) -> int:
        return subprocess.run([*self._run, self.name, "--", *command], capture_output=True, timeout=60).returncode


def test_nobody_runs_it_and_its_health_is_looked_at(image: dict[str, Any]) -> None:
    assert image["User"] == "65534:65534"
    assert image["Cmd"] == ["kcptun-lite-server"]
    assert image["Healthcheck"]["Test"][0] == "CMD-SHELL"


def test_a_tunnel_of_two_containers_carries_data_and_is_healthy(image: dict[str, Any], buildah: list[str]) -> None:
    health = ("sh", "-c", image["Healthcheck"]["Test"][1])
    ends = Container(buildah), Container(buildah)
    programs: list[Program] = []
    with Target(exchange_handler) as target:
        try:
            assert ends[0].exit_code(*health) != 0, "nothing runs"
            server = ends[0].start(
                *image["Cmd"], KCPTUN_KEY="k", KCPTUN_LISTEN="127.0.0.1:0", KCPTUN_TARGET=target.address
            )
            programs.append(server)
            remote = server.wait_for_log(r"listening on: (\S+)").group(1)
            client = ends[1].start(
                "kcptun-lite-client", KCPTUN_KEY="k", KCPTUN_LOCALADDR="127.0.0.1:0", KCPTUN_REMOTEADDR=remote
            )
            programs.append(client)
            address = client.wait_for_log(r"listening on: (\S+)").group(1)
            exchange(connect(address), up=1 << 20, down=1 << 20, seed=3)
            assert not any("cannot be written" in line for program in programs for line in program.log)
            for end in ends:
                wait_until(lambda end=end: end.exit_code(*health) == 0, "it is healthy")  # type: ignore[misc]
            assert not any(
                line.startswith("uid=0") for line in run([*ends[0]._run, ends[0].name, "--", "id"]).splitlines()
            )
        finally:
            for program in programs:
                program.stop()


def test_the_compose_file_fits_the_image(image: dict[str, Any]) -> None:
    """Its variables are options, and its commands are in the image."""
    from kcptun_lite.app.options import OPTIONS

    text = (PACKAGING / "compose.yaml").read_text()
    variables = {line.split(":")[0].strip() for line in text.splitlines() if line.startswith("      KCPTUN_")}
    assert variables and variables <= {option.variable for option in OPTIONS}
    require("docker-compose")
    environment = {"KCPTUN_KEY": "k", "SERVER": "server:29900"}
    for profile in ("client", "server"):
        shown = run(
            ["docker-compose", "-f", str(PACKAGING / "compose.yaml"), "--profile", profile, "config"], **environment
        )
        assert f"command: kcptun-lite-{profile}" in shown
