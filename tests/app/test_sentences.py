"""What users write wrong, and the one sentence each of them reads.

The table is for people: whoever adds an option or a reader looks here for what it says.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.app.configs import complaint, read
from tests.programs import ROOT

# program, arguments, what the sentence says in full or up to a "..."
ARGUMENTS = [
    ("client", "-l 12949", "--localaddr: '12949' has no port; write :12949"),
    ("client", "-r 29900", "--remoteaddr: '29900' has no port; write host:29900"),
    ("client", "-r my.server", "--remoteaddr: 'my.server' has no port; write my.server:port"),
    ("client", "-r a:1,", "--remoteaddr: '' has no port; write host:port, [IPv6]:port or, for a unix socket, ..."),
    ("client", "-r udp://a:1", "--remoteaddr: 'udp://a:1' is no address with a port; write a:1"),
    ("server", "-l 29900-29910", "--listen: '29900-29910' has no port; write :29900-29910"),
    ("server", "-t 8388", "--target: '8388' has no port; write host:8388"),
    (
        "server",
        "-t unix:///run/x",
        "--target: 'unix:///run/x' begins with unix:, which kcptun does not know; write /run/x",
    ),
    ("server", "-t unix:/run/x", "--target: 'unix:/run/x' begins with unix:, which kcptun does not know; write /run/x"),
    ("server", "-t tcp://a:1", "--target: 'tcp://a:1' begins with tcp:, which kcptun does not know; write a:1"),
    ("client", "-l @", "--localaddr: '@' lacks the name of the unix socket; write @name"),
    ("client", f"-l /{'x' * 107}", "--localaddr: '/xxx..."),
    (
        "client",
        "-l ~/x",
        "--localaddr: '~/x' begins with ~, which only a shell replaces, and not here; write the whole ...",
    ),
    (
        "client",
        "--log=~/x",
        "--log: '~/x' begins with ~, which only a shell replaces, and not here; write the whole path",
    ),
    (
        "server",
        "--status=~joe/x",
        "--status: '~joe/x' begins with ~, which only a shell replaces, and not here; write ...",
    ),
    ("server", "--snmplog file:///x", "--snmplog: 'file:///x' is no path; write the path alone, without file://"),
    ("client", "-c ~/x.json", "-c: '~/x.json' begins with ~, which only a shell replaces, and not here; write the ..."),
    ("client", "--mode fast4", "--mode: 'fast4' is not known (did you mean fast?); it can be fast3, ..."),
    ("client", "--crypt aes-256", "--crypt: 'aes-256' is not known (did you mean aes?); it can be aes, ..."),
    ("client", "--crypt salsa2", "--crypt: 'salsa2' is not known (did you mean salsa20?); it can be aes, ..."),
    ("client", "--crypt aes-129", "--crypt: 'aes-129' is not known (did you mean aes?); it can be aes, ..."),
    ("client", "--mtu 53", "--mtu: 53 leaves no room for data; the headers need 52, write 64 or more"),
]

# the file's content, the sentence
FILES = [
    ('{"mtu": 1350,}', "-c: f: line 1, column 1... a comma before }, where nothing follows; remove it"),
    ('{"mtu": 1350, // why\n"dscp": 1}', "-c: f: line 1, column 15: a comment, which JSON does not have; remove it"),
    ('# why\n{"mtu": 1350}', "-c: f: line 1, column 1: a comment, which JSON does not have; remove it"),
    ('{"mtu": 1350\n "dscp": 1}', "-c: f: line 2, column 2: a comma is missing before this"),
    ("{'mtu': 1350}", "-c: f: line 1, column 2: a text in single quotes; JSON has double ones"),
    (
        '{"crypt": aes}',
        "-c: f: line 1, column 11: aes is no value; a text needs double quotes, a switch is true or false",
    ),
    ("{mtu: 1350}", '-c: f: line 1, column 2: mtu is a name without quotes; write "mtu"'),
    ('{"mtu" = 1350}', "-c: f: line 1, column 8: = between a name and its value; JSON has a colon there"),
    ("{\u201cmtu\u201d: 1}", "-c: f: line 1, column 2: \u201c is a typographic quote; JSON has plain double ones"),
    ('{\n  "log": "C:\\tunnel\\q"}', "-c: f: line 2, column 20: a \\ in a text; write \\\\ for one"),
    (
        '{\n "key": "k",\n "mtu": "1350"}',
        "f: line 3, column 2: 'mtu' must be a whole number without quotes, not \"1350\"",
    ),
    (
        "listen: 29900",
        "-c: f: line 1, column 1: listen is no value; a text needs double quotes, a switch is true or false",
    ),
    ("", "-c: f: line 1, column 1: the file is empty; it must hold a JSON object"),
    ('{"mtu": 1350', "-c: f: line 1, column 13: the file ends before the JSON object does"),
    ('{"log": "a\\u0000b"}', "f: line 1, column 2: 'log': 'a\\x00b' has a zero byte in it, which no file's name has"),
    (
        '{"localaddr": "/a\\u0000b"}',
        "f: line 1, column 2: 'localaddr': '/a\\x00b' has a zero byte in it, which no file's name has",
    ),
    (
        '{"localaddr": "@a\\u0000b"}',
        "f: line 1, column 2: 'localaddr': '@a\\x00b' has a zero byte in it, which no file's name has",
    ),
    (
        '{"remoteaddr": "a\\u0000b:1"}',
        "f: line 1, column 2: 'remoteaddr': 'a\\x00b:1' is no address with a port; write host:port",
    ),
    ('{"key": ["very secret"]}', "f: line 1, column 2: 'key' must be a text in double quotes"),
    ('{"key": 12345}', "f: line 1, column 2: 'key' must be a text in double quotes"),
]


def fits(sentence: str, pattern: str) -> bool:
    """Whether a sentence is a pattern's, in which dots stand for anything."""
    at = 0
    pieces = pattern.split("...")
    for index, piece in enumerate(pieces):
        found = sentence.find(piece, at)
        if found < 0 or (index == 0 and found > 0):
            return False
        at = found + len(piece)
    return at == len(sentence) or not pieces[-1]


@pytest.mark.parametrize(("program", "arguments", "pattern"), ARGUMENTS, ids=[f"{row[1]:.30}" for row in ARGUMENTS])
def test_arguments(program: str, arguments: str, pattern: str) -> None:
    sentence = complaint(*arguments.split(" "), program=program, file="{}")  # type: ignore[arg-type]
    assert fits(sentence, pattern), sentence


@pytest.mark.parametrize(("text", "pattern"), FILES)
def test_files(text: str, pattern: str) -> None:
    sentence = complaint("-c", "f", file=text)
    assert fits(sentence, pattern), sentence


def test_the_key_is_in_no_sentence() -> None:
    for text in ('{"key": ["very secret"]}', '{"key": {"very": "secret"}}', '{"key": 12345}'):
        sentence = complaint("-c", "f", file=text)
        assert "secret" not in sentence and "12345" not in sentence


# A client does not run against kcptun's own default because the server's name was misspelt.


@pytest.mark.parametrize(
    ("arguments", "environment", "file", "hint"),
    [
        ([], {}, None, ""),
        (
            [],
            {"KCPTUN_REMOTEADR": "a:1"},
            None,
            "; KCPTUN_REMOTEADR is not an option (did you mean KCPTUN_REMOTEADDR?)",
        ),
        (
            ["-c", "f"],
            {},
            '{"remoteadr": "a:1"}',
            "; f: line 1, column 2: 'remoteadr' is not an option of the client (did you mean remoteaddr?)",
        ),
        (["-c", "f"], {}, '{"r": "a:1"}', "; f: line 1, column 2: 'r' is not an option in a file (write 'remoteaddr')"),
        (["-c", "f"], {}, '{"remoteaddr": null}', ""),
        (["-c", "f"], {}, '{"remoteaddr": ""}', ""),
    ],
)
def test_a_client_without_a_server(
    arguments: list[str], environment: dict[str, str], file: str | None, hint: str
) -> None:
    sentence = complaint(*arguments, environment={"KCPTUN_KEY": "k", **environment}, file=file)
    assert sentence.removesuffix(", ignored") == (
        "--remoteaddr is missing: write the server's address, --remoteaddr host:29900" + hint
    )


def test_kcptuns_default_server_can_be_written() -> None:
    config, _ = read("client", ["-r", "vps:29900"])
    assert str(config.remoteaddr[0]) == "vps:29900"


# What only the system knows: the program is started, and ends with one line of the log.


def last_line(*arguments: str, **environment: str) -> tuple[int, str]:
    """The exit code and the last line, without its date."""
    done = subprocess.run(
        [sys.executable, "-m", "kcptun_lite", *arguments],
        cwd=ROOT,
        env={"PATH": os.defpath, "KCPTUN_KEY": "k", **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stderr.splitlines()[-1].partition(" error: ")[2]


def test_a_port_that_stays_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        assert last_line("client", "-r", "127.0.0.1:1", "-l", where) == (
            3,
            f"--localaddr: cannot listen on {where}: Address already in use "
            "(another program listens there: end that one, or name another port)",
        )


def test_a_library_that_is_missing_is_told_before_anything_begins(tmp_path: Path) -> None:
    (tmp_path / "Crypto.py").write_text("raise ImportError")
    code, line = last_line("server", "-l", "127.0.0.1:0", PYTHONPATH=str(tmp_path))
    assert code == 2
    assert "pycryptodome" in line


def test_a_file_where_the_socket_should_be(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("precious")
    code, line = last_line("client", "-r", "127.0.0.1:1", "-l", str(path))
    assert code == 3
    assert line.endswith(f"cannot listen on {path}: what is there is no socket; remove it, or name another path")
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("option", "name", "reason"),
    [
        ("log", "directory", "cannot be opened: Is a directory"),
        ("log", "missing/x", "cannot be opened: No such file or directory"),
        ("log", "device", "cannot be opened: it is a device and no file"),
        ("status", "directory", "cannot be written: a directory is there, which is not replaced; name a file"),
        ("status", "device", "cannot be written: a device is there, which is not replaced; name a file"),
        ("status", "link", "cannot be written: a link is there, which is not replaced; name a file"),
        (
            "status",
            "file",
            "cannot be written: a file of another kind is there, which is not replaced; name another one",
        ),
        ("status", "missing/x", "cannot be written: No such file or directory"),
        ("snmplog", "missing/x", "cannot be written: No such file or directory"),
        ("snmplog", "directory", "cannot be written: Is a directory"),
    ],
)
def test_files_that_are_none(option: str, name: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "directory").mkdir()
    if name == "device":
        if os.geteuid():
            pytest.skip("only root can make a device")
        os.mknod(tmp_path / "device", 0o020666, os.makedev(1, 5))  # /dev/zero
    path = tmp_path / name
    code, line = last_line("server", "-l", "127.0.0.1:0", f"--{option}", str(path))
    assert (code, line) == (2, f"--{option}: {path} {reason}")
    assert (tmp_path / "file").read_text() == "precious" and (tmp_path / "link").is_symlink()


def test_a_file_that_notepad_has_saved_as_unicode() -> None:
    assert complaint("-c", "f", file='{"mtu": 1350}'.encode("utf-16")) == "-c: f is UTF-16 text; save it as UTF-8"
