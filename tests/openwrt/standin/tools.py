#!/usr/bin/env python3
"""Stand-ins for the programs of OpenWrt that the scripts under test call: tools.py PROGRAM ARGUMENT...

uci get|set|show|commit   on the files in $UCI_DIR, changes kept in $UCI_DIR/.changes until they are committed
uci shell PACKAGE         the assignments that functions.sh makes of a package
validate_data             ubox: PACKAGE TYPE SECTION OPTION:DATATYPE[:DEFAULT]...
jsonfilter                -i FILE -e NAME=@.path ...
logger, chown             write what they were told into $LOG
"""

# The scripts call these a hundred times, so what only one of them needs is imported there.
import os
import re
import shlex
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

Sections = dict[str, dict[str, str]]
"section -> option -> value; the type of the section is its option `.type`"

UCI_DIR = os.environ.get("UCI_DIR", ".")
CHANGES = f"{UCI_DIR}/.changes"
TRUE = ("1", "on", "true", "yes", "enabled")
FALSE = ("0", "off", "false", "no", "disabled")


# -- UCI ---------------------------------------------------------------------------------------------------


def parse(text: str) -> Sections:
    """A UCI file. Words may be bare or in single or double quotes; anonymous sections get names like uci's."""
    sections: Sections = {}
    current: dict[str, str] = {}
    for line in text.splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        if words[0] == "config":
            current = {".type": words[1]}
            sections[words[2] if len(words) > 2 else f"cfg{len(sections):02x}{sum(map(ord, words[1])):04x}"] = current
        elif words[0] == "option":
            current[words[1]] = words[2]
        else:
            raise SystemExit(f"not understood here: {line}")
    return sections


def load(package: str) -> Sections:
    changed = f"{CHANGES}/{package}"
    with open(changed if os.path.exists(changed) else f"{UCI_DIR}/{package}") as file:
        return parse(file.read())


def dump(sections: Sections) -> str:
    lines = []
    for name, options in sections.items():
        lines.append(f"\nconfig {options['.type']} '{name}'")
        for option, value in options.items():
            if option != ".type":
                quoted = value.replace("'", "'\\''")
                lines.append(f"\toption {option} '{quoted}'")
    return "\n".join(lines) + "\n"


def uci(arguments: list[str]) -> int:
    command, *rest = [word for word in arguments if word != "-q"]
    if command == "shell":
        sections = load(rest[0])
        print(f"CONFIG_SECTIONS={shlex.quote(' '.join(sections))}")
        for name, options in sections.items():
            for option, value in options.items():
                print(f"CONFIG_{name}_{'TYPE' if option == '.type' else option}={shlex.quote(value)}")
        return 0
    if command == "commit":
        if os.path.exists(f"{CHANGES}/{rest[0]}"):
            os.replace(f"{CHANGES}/{rest[0]}", f"{UCI_DIR}/{rest[0]}")
        return 0
    place, _, value = rest[0].partition("=")
    package, section, *named = place.split(".")
    name = named[0] if named else ".type"
    sections = load(package)
    found = sections.get(section, {}).get(name)
    if command == "get":
        print(found or "", end="\n" if found else "")
        return 0 if found else 1
    if command == "set":
        if not re.fullmatch(r"\w+", section) or (named and section not in sections):
            return 1
        sections.setdefault(section, {})[name] = value
        os.makedirs(CHANGES, exist_ok=True)
        with open(f"{CHANGES}/{package}", "w") as file:
            file.write(dump(sections))
        return 0
    raise SystemExit(f"uci {command}: not needed so far")


# -- validate_data -----------------------------------------------------------------------------------------


def is_integer(value: str) -> bool:
    try:
        int(value, 0)
    except ValueError:
        return False
    return True


def is_address(value: str) -> bool:
    import ipaddress

    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True


def is_port(value: str) -> bool:
    return value.isdecimal() and int(value) <= 65535


def is_port_range(value: str) -> bool:
    low, dash, high = value.partition("-")
    return bool(dash) and is_port(low) and is_port(high) and int(low) <= int(high)


# datatype -> (is it exported as a number, without quotes?, the check)
DATATYPES: "dict[str, tuple[bool, Callable[..., bool]]]" = {
    "string": (False, lambda value: True),
    "bool": (True, lambda value: value in TRUE + FALSE),
    "integer": (True, is_integer),
    "uinteger": (True, lambda value: is_integer(value) and int(value, 0) >= 0),
    "min": (True, lambda value, low: is_integer(value) and int(value, 0) >= int(low)),
    "range": (True, lambda value, low, high: is_integer(value) and int(low) <= int(value, 0) <= int(high)),
    "port": (True, is_port),
    "portrange": (False, is_port_range),
    "ipaddr": (False, is_address),
    "host": (False, lambda value: is_address(value) or bool(re.fullmatch(r"[\w.-]+", value))),
}


def check(datatype: str, value: str) -> tuple[bool, bool]:
    """(fits, is exported without quotes)"""
    if datatype.startswith('"'):
        return value == datatype.strip('"'), False
    name, _, inner = datatype.removesuffix(")").partition("(")
    if name == "or":
        for part in re.findall(r'"[^"]*"|\w+', inner):
            fits, bare = check(part, value)
            if fits:
                return fits, bare
        return False, False
    bare, test = DATATYPES[name]
    return test(value, *filter(None, inner.split(","))), bare


def validate_data(arguments: list[str]) -> int:
    package, kind, section, *options = arguments
    triples = [(option.split(":") + [""])[:3] for option in options]
    if not section:
        print(f'json_add_object; json_add_string "package" "{package}"; json_add_string "type" "{kind}"; ', end="")
        print('json_add_object "data"; ', end="")
        for name, datatype, _ in triples:
            print(f'json_add_string "{name}" "{datatype}"; ', end="")
        print("json_close_object; json_close_object; ")
        return 0
    result = 0
    found = load(package)[section]
    for name, datatype, default in triples:
        value = found.get(name, "")
        fits, bare = check(datatype, value) if value else (True, False)
        if value:
            print(
                f"{package}.{section}.{name}={value} validates as {datatype} with {str(fits).lower()}", file=sys.stderr
            )
        if not fits:
            result = 255
        exported = value or default if fits else ""
        if fits and bare and datatype == "bool":
            exported = "1" if value in TRUE else "0"
        print(f"{name}={exported if bare else shlex.quote(exported)}; " if exported else f"unset -v {name}; ", end="")
    return result


# -- the rest ----------------------------------------------------------------------------------------------


def jsonfilter(arguments: list[str]) -> int:
    import json

    with open(arguments[arguments.index("-i") + 1]) as file:
        document = json.load(file)
    for at, word in enumerate(arguments):
        if word != "-e":
            continue
        name, _, path = arguments[at + 1].partition("=@.")
        found = [document]
        for step in path.split("."):
            key = step.removesuffix("[*]")
            found = [value[key] for value in found if value.get(key) is not None]
            if key != step:
                found = [item for items in found for item in items]
        if found:
            print(f"export {name}=" + "\\ ".join(shlex.quote(str(value)) for value in found) + "; ", end="")
    return 0


def note(arguments: list[str]) -> int:
    with open(os.environ["LOG"], "a") as log:
        print(sys.argv[1], *arguments, file=log)
    return 0


PROGRAMS = {"uci": uci, "validate_data": validate_data, "jsonfilter": jsonfilter, "logger": note, "chown": note}

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](sys.argv[2:]))
