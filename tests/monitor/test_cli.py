"""The monitor's command line: what cannot be is told in one sentence, with exit code 2."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from kcptun_lite.monitor import cli, tunnels
from tests.monitor.statuses import teller


@pytest.fixture(autouse=True)
def no_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tunnels, "PLACES", (str(tmp_path / "nowhere"),))


def sentence(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a program that refuses."""
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("kcptun-lite-monitor: ")
    return err


def test_nothing_to_show(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = sentence(capsys)
    assert f"no *.json in {tmp_path}/nowhere" in said and "--status" in said
    assert f"no *.json in {tmp_path};" in sentence(capsys, str(tmp_path))


@pytest.mark.parametrize("face", [[], ["--web", "127.0.0.1:8080"], ["--metrics", "127.0.0.1:9101"]])
def test_without_the_extra(face: list[str], tmp_path: Path) -> None:
    """In an interpreter that has nothing but our own package."""
    (tmp_path / "t.json").touch()
    master, slave = os.openpty()
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c",
         f"import sys; sys.path.insert(0, {str(Path(cli.__file__).parents[2])!r}); "
         "from kcptun_lite.monitor.cli import main; sys.exit(main())", *face, str(tmp_path / "t.json")],
        stderr=slave, stdout=subprocess.PIPE, timeout=60,
    )  # fmt: skip
    said = os.read(master, 4096).decode()
    os.close(master)
    os.close(slave)
    assert done.returncode == 2
    assert said.strip().endswith("is not installed; it comes with: pip install 'kcptun-lite[monitor]'")


def test_no_terminal(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with teller(tmp_path / "t.json"):
        assert "needs a terminal" in sentence(capsys, str(tmp_path / "t.json"))


@pytest.mark.parametrize("option", ["--web", "--metrics"])
def test_an_address_that_is_not_to_be_had(option: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        said = sentence(capsys, option, place, str(tmp_path / "t.json"))
    assert f"{option} {place} cannot be listened on: " in said and "in use" in said
    assert f"{option} 192.0.2.1:9 cannot be listened on: " in sentence(capsys, option, "192.0.2.1:9", "t.json")


@pytest.mark.parametrize("place", ["8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", ":http"])
def test_what_is_no_address(place: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--web", place])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert f"{place!r} is no HOST:PORT" in said and said.count("\n") == 1


def test_one_face_at_a_time(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--web", ":1", "--metrics", ":2"])
    assert "not allowed with" in capsys.readouterr().err
