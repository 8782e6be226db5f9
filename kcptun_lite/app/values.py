"""Readers: the text of an option's value in, the value out.

In      one text, from the command line, the environment or a file
Out     a number, a switch, a size, a word of a list, an address
Knows   how each kind of value is written. Not: options
Wire    docs/protocol.md, "Options", "Client program"
Cost    loaded by the program that parses, never by the worker

A reader raises ValueError with a sentence that says what is wrong and what to write instead.
"""

import difflib
import re
import socket
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from kcptun_lite.app.config import Endpoint

Value = str | int | bool | None | Endpoint | tuple[Endpoint, ...]
Reader = Callable[[str], Value]

INT32_MAX = 2**31 - 1
AUTO = "auto"

_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_SIZE_FACTORS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def nearest(word: str, words: Iterable[str]) -> str:
    """` (did you mean X?)` in whatever case X has, or nothing if no word is near.

    Another number is another thing and no slip: aes-256 is not meant to be aes-192, but aes.
    """
    by_lower = {
        known.lower(): known for known in words if not _digits(known) or _digits(known).startswith(_digits(word))
    }
    close = difflib.get_close_matches(word.lower(), by_lower, n=1) if len(word) > 1 else []
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""


def _digits(word: str) -> str:
    return "".join(filter(str.isdigit, word))


def text(value: str) -> str:
    return value


def path(value: str) -> str:
    """The name of a file, as the system takes it; a shell's ~ is none."""
    if "\0" in value:
        raise ValueError(f"{value!r} has a zero byte in it, which no file's name has")
    if re.match(r"~[^/]*(/|$)", value):
        raise ValueError(f"{value!r} begins with ~, which only a shell replaces, and not here; write the whole path")
    if re.match(r"\w+://", value):
        raise ValueError(f"{value!r} is no path; write the path alone, without {value.partition('//')[0]}//")
    return value


DEVICE_NAME_MAX = 15  # bytes; IFNAMSIZ of Linux is 16, with a zero byte at the end


def device(value: str) -> str:
    """The name of a network device, as Linux takes it (dev_valid_name in its net/core/dev.c); empty: none."""
    if value in (".", "..") or re.search(r"[/:\s\0]", value):
        raise ValueError(f"{value!r} is no name of a network device; `ip link` shows those there are")
    if len(value.encode(errors="surrogateescape")) > DEVICE_NAME_MAX:
        raise ValueError(f"{value!r} is too long for a network device; {DEVICE_NAME_MAX} bytes is the most")
    if value and sys.platform != "linux":
        raise ValueError("only Linux can hold packets to a network device; leave it out")
    return value


def number_or_off(value: str) -> int | None:
    """Seconds; less than 0 is kcptun's users' way to write off."""
    found = Number(-INT32_MAX)(value)
    return found if found >= 0 else None


def seconds_or_off(value: str) -> int:
    """Seconds; 0 and less are off."""
    return number_or_off(value) or 0


def switch(value: str) -> bool:
    """Go's spellings of true and false, and yes, no, on, off for environments."""
    word = value.lower()
    if word in ("1", "t", "true", "yes", "on"):
        return True
    if word in ("0", "f", "false", "no", "off"):
        return False
    raise ValueError(f"{value!r} is neither true nor false")


def switch_or_auto(value: str) -> bool | None:
    """As `switch`; auto: None, what suits is found out."""
    try:
        return None if value.lower() == AUTO else switch(value)
    except ValueError as error:
        raise ValueError(f"{error}, nor {AUTO}") from None


@dataclass(frozen=True, slots=True)
class Number:
    """Decimal, 0x, 0o or 0b, within bounds."""

    minimum: int
    maximum: int = INT32_MAX

    def __call__(self, value: str) -> int:
        try:
            result = int(value, 0)
        except ValueError:
            raise ValueError(f"{value!r} is not a whole number (write 10, 0xa, 0o12 or 0b1010)") from None
        if not self.minimum <= result <= self.maximum:
            raise ValueError(f"{result} is out of range; it must be {self.minimum} to {self.maximum}")
        return result


@dataclass(frozen=True, slots=True)
class NumberOrAuto:
    """A number, or the word auto: None, what suits is found out."""

    number: Number

    def __call__(self, value: str) -> int | None:
        try:
            return None if value.lower() == AUTO else self.number(value)
        except ValueError as error:
            raise ValueError(f"{error}, or {AUTO}") from None


@dataclass(frozen=True, slots=True)
class OneOf:
    """A word of a list."""

    words: tuple[str, ...]
    remark: str = ""

    def __call__(self, value: str) -> str:
        if value not in self.words:
            raise ValueError(
                f"{value!r} is not known{nearest(value, self.words)}; it can be {', '.join(self.words)}{self.remark}"
            )
        return value


def size(value: str) -> int:
    """24M, 24MiB, 25165824; K, M, G and T count in steps of 1024. `off` is 0."""
    if value.lower() == "off":
        return 0
    match = _SIZE.fullmatch(value.strip())
    if not match:
        raise ValueError(f"{value!r} is not a size (write 24M, 24MiB or a number of bytes)")
    return int(match[1]) * _SIZE_FACTORS[match[2].upper()]


def percent(value: str) -> int | None:
    """A percentage as GOGC takes it; `off`, or less than 0, is None."""
    if value.lower() == "off":
        return None
    result = Number(-INT32_MAX)(value)
    return result if result >= 0 else None


def listening(value: str, *, ranges: bool = False) -> Endpoint:
    """host:port with all addresses for an empty host and any free port for 0."""
    host, port_min, port_max = _split(value, lowest_port=0)
    if port_min != port_max and not ranges:
        raise ValueError(f"{value!r} has a range of ports; only one can be listened on here")
    return Endpoint(host, port_min, port_max)


def listening_range(value: str) -> Endpoint:
    return listening(value, ranges=True)


def listening_or_off(value: str) -> Endpoint | None:
    """host:port; None for an empty text."""
    return listening(value) if value else None


def listening_or_path(value: str) -> Endpoint:
    return Endpoint(path=_socket_path(value)) if _is_path(value) else listening(value)


WEIGHT_MAX = 100


def remotes(value: str) -> tuple[Endpoint, ...]:
    """host:port or host:min-max, several with commas between; none for an empty text.

    host:port*N has a weight; if one has, all others have 1.
    """
    result = []
    if not value:
        return ()
    for part in value.split(","):
        address, star, weight = part.strip().partition("*")
        host, port_min, port_max = _split(address, lowest_port=1)
        result.append(Endpoint(host or "127.0.0.1", port_min, port_max, weight=_weight(weight) if star else 0))
    if any(remote.weight for remote in result):
        result = [remote._replace(weight=remote.weight or 1) for remote in result]
    return tuple(result)


def _weight(value: str) -> int:
    if not value.isdecimal() or not 1 <= int(value) <= WEIGHT_MAX:
        raise ValueError(f"{value!r} is no weight; write a number from 1 to {WEIGHT_MAX} behind the *")
    return int(value)


def target(value: str) -> Endpoint:
    if _is_path(value):
        return Endpoint(path=_socket_path(value))
    found = remotes(value)
    if len(found) != 1 or found[0].port_min != found[0].port_max or found[0].weight:
        raise ValueError(f"{value!r} must be one host and one port")
    return found[0]


SOCKET_PATH_MAX = 107  # bytes; sun_path of Linux has 108, with a zero byte at the end


def _is_path(value: str) -> bool:
    """A unix socket has a slash in its path or, in the abstract name space, a leading @.

    kcptun takes everything that is not host:port for a path; with a forgotten port it makes a socket file "127.0.0.1".
    """
    return "/" in value or value.startswith("@") or value.startswith("unix:")


def _socket_path(value: str) -> str:
    if match := re.match(r"(\w+:)(//)?(.*)", value):
        scheme, _, rest = match.groups()
        if scheme == "unix:" or match[2]:
            raise ValueError(f"{value!r} begins with {scheme}, which kcptun does not know; write {rest or 'the path'}")
    if value == "@":
        raise ValueError("'@' lacks the name of the unix socket; write @name")
    path(value)
    if len(value.encode(errors="surrogateescape")) > SOCKET_PATH_MAX:
        raise ValueError(f"{value!r} is too long for a unix socket; {SOCKET_PATH_MAX} bytes is the most")
    return value


def _split(value: str, lowest_port: int) -> tuple[str, int, int]:
    """Host, lowest and highest port.

    An IPv6 address may come without brackets as long as it can be read in one way only. In fe80::1:443 the last
    group can be a port or not, so that is refused; in ::1:29900 it must be one, having five digits.
    """
    if re.match(r"\w+://", value):
        raise ValueError(f"{value!r} is no address with a port; write {value.partition('//')[2].rstrip('/')}")
    match = re.fullmatch(r"(.*):(\d{1,5})(?:-(\d{1,5}))?", value)
    if not match:
        raise ValueError(f"{value!r} has no port; write {_with_port(value, lowest_port)}")
    host = match[1]
    port_min, port_max = int(match[2]), int(match[3] or match[2])
    if not lowest_port <= port_min <= port_max <= 65535 or (port_min == 0 and port_max):
        raise ValueError(f"{value!r} has no usable port; ports are {lowest_port} to 65535, the lower one first")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        if not _is_ipv6(host):
            raise ValueError(f"{value!r} has no IPv6 address between its brackets")
    elif ":" in host:
        if not _is_ipv6(host):
            raise ValueError(f"{value!r} is no address with a port; write an IPv6 address as [address]:port")
        if _is_ipv6(value):
            raise ValueError(f"{value!r} can be read in two ways; write [{host}]:{match[2]} or [{value}]:port")
    elif any(char in "[]/@" or char.isspace() or not char.isprintable() for char in host):
        raise ValueError(f"{value!r} is no address with a port; write host:port")
    return host, port_min, port_max


def _with_port(value: str, lowest_port: int) -> str:
    """What to write in place of an address without a port."""
    if re.fullmatch(r"\d{1,5}(-\d{1,5})?", value):
        return f"host:{value}" if lowest_port else f":{value}"
    if re.fullmatch(r"[\w.-]+", value):
        return f"{value}:port"
    return "host:port, [IPv6]:port or, for a unix socket, a path with a slash"


def _is_ipv6(value: str) -> bool:
    try:
        socket.inet_pton(socket.AF_INET6, value.partition("%")[0])
    except (OSError, ValueError):
        return False
    return True
