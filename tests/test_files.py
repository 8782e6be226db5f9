"""Files the user has named: what is written to, what is replaced, and what is left alone."""

import errno
import os
import socket
from pathlib import Path

import pytest

from kcptun_lite import files

NOBODY = 65534


def append(path: Path, data: bytes = b"x") -> None:
    descriptor = files.open_to_append(str(path))
    try:
        os.write(descriptor, data)
    finally:
        os.close(descriptor)


def test_what_is_there_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log"
    append(path, b"1")
    append(path, b"2")
    assert path.read_bytes() == b"12"


def test_others_may_read_a_file_of_ours_and_not_write_it(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        append(tmp_path / "log")
        files.replace(str(tmp_path / "status"), b"x")
    finally:
        os.umask(before)
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("log", "status")} == {0o644}


def test_a_link_of_our_own_is_followed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("log")
    append(tmp_path / "link")
    assert (tmp_path / "log").read_bytes() == b"x"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a link away")
def test_a_link_that_somebody_has_planted_is_not(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("precious")
    os.lchown(tmp_path / "link", NOBODY, NOBODY)
    with pytest.raises(OSError, match="belongs to another user"):
        append(tmp_path / "link")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_pipes_and_the_null_device_will_do_and_never_block(tmp_path: Path) -> None:
    append(Path("/dev/null"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="nobody reads this pipe"):
        append(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    append(tmp_path / "pipe")
    assert os.read(reader, 10) == b"x"
    descriptor = files.open_to_append(str(tmp_path / "pipe"))
    with pytest.raises(BlockingIOError):
        while os.write(descriptor, bytes(4096)):
            pass
    os.close(descriptor)
    os.close(reader)


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/full"])
def test_devices_will_not(path: str) -> None:
    with pytest.raises(OSError, match="it is a device"):
        append(Path(path))


def test_a_socket_will_not(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        with pytest.raises(OSError, match="it is a socket"):
            append(tmp_path / "socket")


def is_ours(beginning: bytes) -> bool:
    return beginning.startswith(b"ours")


@pytest.mark.parametrize("content", [None, b"", b"ours, of yesterday"])
def test_a_file_of_ours_is_replaced_whole(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "status"
    if content is not None:
        path.write_bytes(content)
    files.check_replaceable(str(path), is_ours)
    identity = files.replace(str(path), b"ours, new")
    assert path.read_bytes() == b"ours, new" and os.listdir(tmp_path) == ["status"]
    files.remove(str(path), identity)
    assert not path.exists()


def test_whatever_else_is_there_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("status")  # to nothing yet
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name in ("file", "link", "directory", "pipe"):
        with pytest.raises(OSError, match="is there, which is not replaced"):
            files.check_replaceable(str(tmp_path / name), is_ours)
    with pytest.raises(FileNotFoundError):
        files.check_replaceable(str(tmp_path / "missing" / "status"), is_ours)


def test_a_write_that_fails_halfway_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status"
    files.replace(str(path), b"ours, old")
    write = os.write

    def fill_the_disk(descriptor: int, data: bytes) -> int:
        if data == b"ours, new":
            return write(descriptor, data[:4])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fill_the_disk)
    with pytest.raises(OSError, match="No space"):
        files.replace(str(path), b"ours, new")
    assert path.read_bytes() == b"ours, old" and os.listdir(tmp_path) == ["status"]


def test_the_name_beside_cannot_be_foreseen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: list[str] = []
    monkeypatch.setattr(os, "replace", lambda source, target: names.append(source))
    for _ in range(3):
        files.replace(str(tmp_path / "status"), b"ours")
    assert len(set(names)) == 3


def test_a_name_beside_that_was_foreseen_all_the_same_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "urandom", bytes)
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / f"status.{bytes(6).hex()}").symlink_to("precious")
    with pytest.raises(FileExistsError):
        files.replace(str(tmp_path / "status"), b"ours")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_only_what_we_have_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "status"
    mine = files.replace(str(path), b"ours")
    theirs = files.replace(str(path), b"another program's")
    files.remove(str(path), mine)
    assert path.exists()
    files.remove(str(path), None)
    assert path.exists()
    files.remove(str(path), theirs)
    assert not path.exists()
    files.remove(str(path), theirs)
