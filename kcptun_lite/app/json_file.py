"""kcptun's JSON file: keys and values, each with its place, or one sentence on what is wrong and where.

In      a path, a function that reads it
Out     settings in the order of the file
Knows   JSON, and what people write instead of it. Not: which keys there are
Wire    docs/protocol.md, "JSON file"
Cost    loaded by the program that parses, never by the worker
"""

import json
import re
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined]  # typeshed has no types for it
from typing import Any, NamedTuple, NoReturn

from kcptun_lite.app.options import Option
from kcptun_lite.errors import ConfigError

FileReader = Callable[[str], bytes]
"the bytes of the file at a path; may raise OSError"


class Setting(NamedTuple):
    """One key of the file."""

    key: str
    value: Any
    place: str
    "file, line, column and key, as the beginning of a sentence"

    def as_text(self, option: Option) -> str:
        """The value as it would stand on the command line. Raises: ConfigError if it is of another type."""
        if type(self.value) not in option.json_types:
            wanted = " or ".join(_JSON_WORDS[kind] for kind in option.json_types)
            shown = f", not {json.dumps(self.value)[:40]}" if option.name != "key" else ""  # whose value is a secret
            raise ConfigError(f"{self.place} must be {wanted}{shown}")
        if isinstance(self.value, str):
            return _HALF_CHARACTER.sub("\ufffd", self.value)
        return json.dumps(self.value) if isinstance(self.value, bool) else str(self.value)


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # "\ud800" without its other half; Go reads U+FFFD
_JSON_WORDS = {bool: "true or false", int: "a whole number without quotes", str: "a text in double quotes"}
_BLANK = re.compile(r"[ \t\r\n]*")


def read_settings(path: str, read_file: FileReader) -> list[Setting]:
    """Settings of the first JSON value in the file; null stands for none. Raises: ConfigError."""
    try:
        text = _decoded(path, read_file(path))
        start = _skip_blanks(text, 0)
        value, _ = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode(text, start)
    except OSError as error:
        raise ConfigError(f"-c: {path} cannot be read: {error.strerror or error}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"-c: {path}: {_place(text, error.pos)}: {_slip(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"-c: {path} is not JSON that can be read: {error}") from error
    if value is None:
        return []
    if not isinstance(value, dict):
        raise ConfigError(f"-c: {path}: {_place(text, start)}: it must hold a JSON object: {{ ... }}")
    return [Setting(key, value, f"{path}: {_place(text, at)}: {key!r}") for key, value, at in _members(text, start + 1)]


def _members(text: str, at: int) -> list[tuple[str, Any, int]]:
    """Key, value and place of each member, in order and with those that are there twice: the last one counts.

    `text` is known to be JSON, and `at` is behind the object's brace.
    """
    decoder = json.JSONDecoder()
    members: list[tuple[str, Any, int]] = []
    while text[at := _skip_blanks(text, at)] != "}":
        if text[at] == ",":
            at = _skip_blanks(text, at + 1)
        key, behind = scanstring(text, at + 1)
        colon = _skip_blanks(text, behind)
        value, behind = decoder.raw_decode(text, _skip_blanks(text, colon + 1))
        members.append((key, value, at))
        at = behind
    return members


def _skip_blanks(text: str, at: int) -> int:
    match = _BLANK.match(text, at)
    return match.end() if match else at


def _place(text: str, at: int) -> str:
    return f"line {text.count(chr(10), 0, at) + 1}, column {at - text.rfind(chr(10), 0, at)}"


def _decoded(path: str, data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ConfigError(f"-c: {path} is UTF-16 text; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8-sig")
        raise ConfigError(
            f"-c: {path}: {_place(before, len(before))}: not UTF-8 text (byte {error.start}); save it as UTF-8"
        ) from error


def _slip(error: json.JSONDecodeError) -> str:
    """What is wrong, for habits of other formats in their own words."""
    here = error.doc[error.pos :].lstrip()
    before = error.doc[: error.pos].rstrip()
    if here.startswith(",") and here[1:].lstrip().startswith(("}", "]")):  # where Python 3.13 sees the fault
        before, here = ",", here[1:].lstrip()
    if here.startswith(("//", "/*", "#")):
        return "a comment, which JSON does not have; remove it"
    if before.endswith(",") and here.startswith(("}", "]")):
        return f"a comma before {here[0]}, where nothing follows; remove it"
    if here.startswith(","):
        return "a comma, where a value or a name is expected"
    if not here:
        return (
            "the file ends before the JSON object does" if before else "the file is empty; it must hold a JSON object"
        )
    if here.startswith("'"):
        return "a text in single quotes; JSON has double ones"
    if here[0] in "\u201c\u201d\u201e\u00ab\u2018\u2019":
        return f"{here[0]} is a typographic quote; JSON has plain double ones"
    if here.startswith('"') and error.msg.startswith("Expecting ',' delimiter"):
        return "a comma is missing before this"
    if error.msg.startswith("Expecting property name") and (match := re.match(r"[A-Za-z_][\w-]*", here)):
        return f'{match[0]} is a name without quotes; write "{match[0]}"'
    if error.msg == "Expecting value" and (match := re.match(r"[A-Za-z_]\w*", here)):
        return f"{match[0]} is no value; a text needs double quotes, a switch is true or false"
    if error.msg == "Expecting value" and here.startswith("."):
        return "a number or text begins with a dot; a text needs double quotes"
    if error.msg.startswith("Invalid \\escape"):
        return "a \\ in a text; write \\\\ for one"
    if error.msg.startswith("Expecting ':' delimiter") and here.startswith("="):
        return "= between a name and its value; JSON has a colon there"
    return error.msg


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
