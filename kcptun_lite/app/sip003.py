"""A plug-in of shadowsocks: what it says in the environment, as options.

In      the environment in which shadowsocks starts a plug-in
Out     addresses, options; None where it was not shadowsocks
Knows   SIP003: its variables, its escapes, which address is whose. Not: options, what they may be
Wire    SIP003 (shadowsocks.org/doc/sip003.html)
Cost    loaded by the program that parses, and only where shadowsocks has started it
"""

import os
from collections.abc import Mapping
from typing import NamedTuple

from kcptun_lite.app.command_line import Program
from kcptun_lite.errors import ConfigError

MARK = "SS_REMOTE_HOST"
OPTIONS = "SS_PLUGIN_OPTIONS"
_ADDRESSES = (MARK, "SS_REMOTE_PORT", "SS_LOCAL_HOST", "SS_LOCAL_PORT")

# Remote is the side of the long line, local that of shadowsocks.
_ROLES: dict[Program, tuple[str, str]] = {"client": ("remoteaddr", "localaddr"), "server": ("listen", "target")}
_ALL_ADDRESSES = {"::", "::0", "0.0.0.0"}


class Plugin(NamedTuple):
    """What shadowsocks wants."""

    addresses: dict[str, str]
    "dest -> host:port"
    options: list[tuple[str, str | None]]
    "in their order; None: a name without a value"
    parent: int
    "its process, with which the plug-in ends"


def read(program: Program, environment: Mapping[str, str]) -> Plugin:
    """Raises: ConfigError if something is missing or cannot be read."""
    for name in _ADDRESSES:
        if not environment.get(name):
            raise ConfigError(f"{name} is missing, which shadowsocks sets for a plug-in beside {MARK}")
    remote, local = _ROLES[program]
    remote_hosts = environment[MARK].split("|")  # several: shadowsocks-libev's way
    if program == "server" and len(remote_hosts) > 1:
        if not _ALL_ADDRESSES.intersection(remote_hosts):
            raise ConfigError(f"{MARK}: {environment[MARK]} are several addresses; a server listens on one, or on all")
        remote_hosts = [""]
    return Plugin(
        {
            remote: ",".join(_address(host, environment["SS_REMOTE_PORT"]) for host in remote_hosts),
            local: _address(environment["SS_LOCAL_HOST"], environment["SS_LOCAL_PORT"]),
        },
        _split(environment.get(OPTIONS, "")),
        os.getppid(),
    )


def _address(host: str, port: str) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(text: str) -> list[tuple[str, str | None]]:
    """`name=value;name` with a backslash before each ; = and backslash that is none of the format's own."""
    found: list[tuple[str, str | None]] = []
    for part in _cut(text, ";", -1):
        if part:
            name, *value = (_unescaped(piece) for piece in _cut(part, "=", 1))
            found.append((name.strip(), value[0] if value else None))
    return found


def _cut(text: str, mark: str, most: int) -> list[str]:
    """Parts between marks that have no backslash before them, at most so many cuts (-1: all)."""
    parts: list[str] = []
    begin = at = 0
    while at < len(text):
        if text[at] == "\\":
            at += 1  # with what follows
        elif text[at] == mark and len(parts) != most:
            parts.append(text[begin:at])
            begin = at + 1
        at += 1
    return [*parts, text[begin:]]


def _unescaped(text: str) -> str:
    result, is_escaped = "", False
    for char in text:
        if char == "\\" and not is_escaped:
            is_escaped = True
        else:
            result += char
            is_escaped = False
    if is_escaped:
        raise ConfigError(f"{OPTIONS}: a \\ at the end of {text!r}; write \\\\ for one")
    return result
