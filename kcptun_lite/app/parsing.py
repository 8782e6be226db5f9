"""From arguments, environment and file to a checked configuration, or to one sentence on what is wrong.

In      arguments, environment, a function that reads a file
Out     ClientConfig or ServerConfig, and warnings
Knows   kcptun's command line, its JSON file, which options must fit each other. Not: sockets, the log
Wire    docs/protocol.md, "Programs", "Sizes", "Keep-alive", "Flow control"
Cost    60 ms and 4 MiB on a PC, given back when the worker takes over

What counts, high to low: -c file, command line, environment, default. The first two become at most one
`--name=value` for each option, so that configargparse meets no value that looks like an option.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NoReturn

import configargparse

from kcptun_lite import __version__
from kcptun_lite.app import values
from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.app.options import (
    DEFAULT_KEY,
    GROUPS,
    MANUAL,
    MANUAL_OPTIONS,
    MODES,
    MTU_MIN,
    OPTIONS,
    WINDOWS,
    Option,
)
from kcptun_lite.core.batch.strided import PACKET_ALIGNMENT
from kcptun_lite.core.wire import (
    CRYPT_GCM_NONCE_SIZE,
    CRYPT_GCM_TAG_SIZE,
    CRYPT_HEADER_SIZE,
    FEC_DEFAULT_SHARDS,
    FEC_HEADER_SIZE,
    FEC_MAX_SHARDS,
    KCP_HEADER_SIZE,
)
from kcptun_lite.errors import ConfigError

Program = Literal["client", "server"]
FileReader = Callable[[str], bytes]

INTERVAL_MIN, INTERVAL_MAX = 10, 5000  # ms; kcp-go brings others to these

_PACKET_OVERHEAD = {"null": 0, "aes-128-gcm": CRYPT_GCM_NONCE_SIZE + CRYPT_GCM_TAG_SIZE}  # bytes; others as below


def parse(
    program: Program, arguments: Sequence[str], environment: Mapping[str, str], read_file: FileReader
) -> tuple[ClientConfig | ServerConfig, list[str]]:
    """The configuration, and sentences about what was given in vain.

    Args:
        read_file: the bytes of the file at a path; may raise OSError.
    Raises: ConfigError with one sentence that names the option; SystemExit(0) after --help and --version.
    """
    return _Parsing(program).run(arguments, environment, read_file)


class _Parser(configargparse.ArgumentParser):  # type: ignore[misc]
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _Parsing:
    """One reading of everything; remembers where each option was set, to name that place in sentences."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.options = [option for option in OPTIONS if option.default(program) is not None]
        self.by_flag = {flag: option for option in self.options for flag in (option.name, *option.aliases)}
        self.places: dict[str, str] = {}
        "dest -> where its value came from, as the user knows it"
        self.warnings: list[str] = []

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], read_file: FileReader
    ) -> tuple[ClientConfig | ServerConfig, list[str]]:
        variables = self._from_environment(environment)
        given = self._from_arguments(arguments)
        if path := given.get("-c", variables.get("KCPTUN_C")):
            self._reader(self.by_flag["c"])(path)
            given |= self._from_file(path, read_file)
        for name, value in *given.items(), *variables.items():
            if value == "--":  # argparse would drop it
                raise ConfigError(f"{name}: -- alone cannot be a value")
        tokens = [f"{flag}={value}" for flag, value in given.items()]
        found: dict[str, Any] = vars(self._parser().parse_args(tokens, env_vars=variables))
        self._resolve(found)
        config_class = ClientConfig if self.program == "client" else ServerConfig
        return config_class(**{name: found[name] for name in config_class.names()}), self.warnings

    @property
    def _other(self) -> str:
        return "server" if self.program == "client" else "client"

    # Sources: what each sets, as texts

    def _from_environment(self, environment: Mapping[str, str]) -> dict[str, str]:
        """KCPTUN_... variables that are not empty; Go's two under our names, unless ours are there."""
        given = {name: value for name, value in environment.items() if name.startswith("KCPTUN_") and value}
        known = {option.variable for option in OPTIONS}
        for name in sorted(given.keys() - known):
            self.warnings.append(f"{name} is not an option{values.nearest(name, known)}")
        for ours, gos in ("KCPTUN_GOGC", "GOGC"), ("KCPTUN_MEMLIMIT", "GOMEMLIMIT"):
            if environment.get(gos) and ours not in given:
                given[ours] = environment[gos]
                self.places[ours.removeprefix("KCPTUN_").lower()] = gos
        for option in self.options:
            if option.variable in given:
                self.places.setdefault(option.dest, option.variable)
        return given

    def _from_arguments(self, arguments: Sequence[str]) -> dict[str, str]:
        """flag -> value. One dash or two, `-x v` or `-x=v`, a switch alone or with `=true` or `=false`."""
        given: dict[str, str] = {}
        rest = list(arguments)
        last = None
        while rest:
            word = rest.pop(0)
            if not word.startswith("-") or word in ("-", "--"):
                raise ConfigError(self._about_leftover(word, last))
            name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
            if name in ("h", "help", "v", "version"):
                self._parser().parse_args(["--help" if name[0] == "h" else "--version"], env_vars={})
            last = self.by_flag.get(name)
            if last is None:
                raise ConfigError(self._about_unknown(word, name))
            if not equals:
                if last.is_switch:
                    value = "true"
                elif rest:
                    value = rest.pop(0)
                else:
                    raise ConfigError(f"{word} needs a value")
            self.places[last.dest] = last.flag
            given[last.flag] = value
        return given

    def _about_unknown(self, word: str, name: str) -> str:
        if any(name in (option.name, *option.aliases) for option in OPTIONS):
            return f"{word} is an option of the {self._other}, not of the {self.program}"
        return f"{word} is not an option{values.nearest(name, self.by_flag)}"

    def _about_leftover(self, word: str, last: Option | None) -> str:
        name = word.partition("=")[0]
        if last and last.is_switch and word.lower() in ("true", "false", "0", "1", "yes", "no", "on", "off"):
            return f"{last.flag} is a switch: write {last.flag}={word} with an equals sign, or {last.flag} alone"
        if name in self.by_flag:
            return f"{word} lacks its dashes: write --{word}"
        return f"{word!r} belongs to no option; options begin with a dash and values with blanks need quotes"

    def _from_file(self, path: str, read_file: FileReader) -> dict[str, str]:
        """flag -> value from the JSON object in the file.

        The rules are Go's (docs/protocol.md, "JSON file"), but unknown keys are told.
        """
        by_key = {option.json_key: option for option in self.options if option.name != "c"}
        given: dict[str, str] = {}
        for key, value in _read_object(path, read_file):
            option = by_key.get(key.lower())
            if option is None:
                self.warnings.append(f"{path}: {self._about_unknown_key(key, by_key)}, ignored")
            elif value is not None:
                if option.flag in given:
                    self.warnings.append(f"{path}: {key!r} is there more than once, the last one counts")
                given[option.flag] = _json_text(path, key, value, option)
                self.places[option.dest] = f"{path}: {key!r}"
        return given

    def _about_unknown_key(self, key: str, by_key: Mapping[str, Option]) -> str:
        for option in OPTIONS:
            if key.lower() in option.aliases and option.json_key in by_key:
                return f"{key!r} is not an option in a file (write {option.json_key!r})"
        if key.lower() in (option.json_key for option in OPTIONS if option.name != "c"):
            return f"{key!r} is an option of the {self._other}"
        return f"{key!r} is not an option of the {self.program}{values.nearest(key, by_key)}"

    # The parser

    def _parser(self) -> _Parser:
        name = f"kcptun-lite-{self.program}"
        parser = _Parser(
            prog=name,
            usage=f"{name} [options]",
            description=f"The {self.program} of a kcptun tunnel: TCP over an error-correcting UDP.",
            epilog="Options take one dash or two; -x v is -x=v. Each can be set in the environment as KCPTUN_<OPTION>, "
            "for example KCPTUN_KEY. A -c file goes before the command line, that before the environment.",
            formatter_class=lambda prog: configargparse.HelpFormatter(prog, max_help_position=26),
            allow_abbrev=False,
            add_help=False,
            add_env_var_help=False,
            add_config_file_help=False,
        )
        groups = {group: parser.add_argument_group(f"{group} options") for group in GROUPS}
        for option in self.options:
            default = option.default(self.program)
            groups[option.group].add_argument(
                *(f"-{alias}" if len(alias) == 1 else f"--{alias}" for alias in option.aliases),
                option.flag,
                dest=option.dest,
                env_var=option.variable,
                type=self._reader(option),
                default=default,
                help=option.help.replace("%", "%%")
                + (f" (default {default})" if default and not option.is_switch else ""),
                metavar=option.metavar,
                nargs="?" if option.is_switch else None,
            )
        basic = groups[GROUPS[0]]
        basic.add_argument("-h", "--help", action="help", help="show this text")
        basic.add_argument(
            "-v", "--version", action="version", version=f"kcptun_lite version {__version__}", help="show the version"
        )
        return parser

    def _reader(self, option: Option) -> values.Reader:
        def read(text: str) -> values.Value:
            try:
                return option.read(text)
            except ValueError as error:
                raise self._wrong(option.dest, str(error)) from None

        return read

    # What must fit together

    def _wrong(self, dest: str, sentence: str) -> ConfigError:
        return ConfigError(f"{self.places.get(dest, f'--{dest}')}: {sentence}")

    def _resolve(self, found: dict[str, Any]) -> None:
        """Check options against each other and put the mode's numbers in place."""
        if found.get("remoteaddr") == ():  # kcptun would go to `vps`, whoever has that name here
            slips = [warning for warning in self.warnings if "remoteaddr" in warning.lower()]
            hint = f"; {slips[0]}" if slips else ""
            raise ConfigError(f"--remoteaddr is missing: write the server's address, --remoteaddr host:29900{hint}")
        self._check_sizes(found)
        self._apply_mode(found)
        if self.program == "server":  # it takes its clients as they come; --strict has kcptun's defaults
            found["smuxver"], found["nocomp"] = found["smuxver"] or 1, bool(found["nocomp"])
        found["ratelimit"] = max(0, found["ratelimit"])  # less than 0 is none, as in kcptun
        if found["key"] == DEFAULT_KEY:
            self.warnings.append("the key is kcptun's default, which everybody knows; set KCPTUN_KEY")
        if not found["key"]:
            self.warnings.append("the key is empty, which everybody can guess; set KCPTUN_KEY")
        for name in ("tcp", "pprof"):
            if found[name]:
                self.warnings.append(f"--{name} does nothing in kcptun_lite")

    def _check_sizes(self, found: dict[str, Any]) -> None:
        shards = found["datashard"], found["parityshard"]
        data, parity = (
            kcptuns if given is None else given for given, kcptuns in zip(shards, FEC_DEFAULT_SHARDS, strict=True)
        )
        if shards != (None, None):  # who gives one of them means kcptun's other one
            found["datashard"], found["parityshard"] = data, parity
        if data + parity > FEC_MAX_SHARDS:
            raise self._wrong("datashard", f"{data} and parityshard {parity} are over {FEC_MAX_SHARDS} together")
        if bool(data) != bool(parity):
            self.warnings.append(f"error correction is off: datashard is {data} and parityshard {parity}")
        overhead = _PACKET_OVERHEAD.get(found["crypt"], CRYPT_HEADER_SIZE) + KCP_HEADER_SIZE
        overhead += FEC_HEADER_SIZE if data and parity else 0
        least = max(MTU_MIN, (overhead // PACKET_ALIGNMENT + 1) * PACKET_ALIGNMENT)  # packets are cut to multiples
        if found["mtu"] < least:
            raise self._wrong(
                "mtu", f"{found['mtu']} leaves no room for data; the headers need {overhead}, write {least} or more"
            )
        if found["streambuf"] > found["smuxbuf"]:
            raise self._wrong(
                "smuxbuf" if "streambuf" not in self.places else "streambuf",
                f"streambuf ({found['streambuf']}) must not be over smuxbuf ({found['smuxbuf']}); lower streambuf",
            )

    def _apply_mode(self, found: dict[str, Any]) -> None:
        mode = found["mode"]
        if mode == MANUAL:  # its user knows what he wants: all is as in kcptun
            for name, kcptuns in zip(("sndwnd", "rcvwnd"), WINDOWS[self.program], strict=True):
                found[name] = kcptuns if found[name] is None else found[name]
            for name, kcptuns in zip(("datashard", "parityshard"), FEC_DEFAULT_SHARDS, strict=True):
                found[name] = kcptuns if found[name] is None else found[name]
        else:
            for name in MANUAL_OPTIONS:
                if name in self.places:
                    self.warnings.append(f"{self.places[name]} does nothing in mode {mode}; it needs --mode {MANUAL}")
            found.update(zip(MANUAL_OPTIONS, MODES[mode], strict=True))
        interval = min(max(found["interval"], INTERVAL_MIN), INTERVAL_MAX)
        if interval != found["interval"]:
            self.warnings.append(
                f"{self.places['interval']}: {found['interval']} ms are out of range, {interval} are used"
            )
            found["interval"] = interval


def _read_object(path: str, read_file: FileReader) -> list[tuple[str, Any]]:
    """Keys and values of the first JSON value in the file, in order; null stands for no keys."""
    try:
        text = read_file(path).decode("utf-8-sig")
        blank = len(text) - len(text.lstrip(" \t\r\n"))
        decoder = json.JSONDecoder(object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
        pairs, _ = decoder.raw_decode(text, blank)
    except OSError as error:
        raise ConfigError(f"-c: {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"-c: {path} is not UTF-8 text (byte {error.start})") from error
    except json.JSONDecodeError as error:
        raise ConfigError(f"-c: {path}: line {error.lineno}, column {error.colno}: {_json_slip(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"-c: {path} is not JSON that can be read: {error}") from error
    if pairs is None:
        return []
    if not isinstance(pairs, _Pairs):
        raise ConfigError(f"-c: {path} must hold a JSON object: {{ ... }}")
    return pairs


def _json_slip(error: json.JSONDecodeError) -> str:
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
    if here.startswith('"') and error.msg.startswith("Expecting ',' delimiter"):
        return "a comma is missing before this"
    if error.msg == "Expecting value" and (match := re.match(r"[A-Za-z_]\w*", here)):
        return f"{match[0]} is no value; a text needs double quotes, a switch is true or false"
    return error.msg


class _Pairs(list[tuple[str, Any]]):
    """A JSON object that keeps its order and its repeated keys: the last one counts, whatever its case."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_HALF_CHARACTER = re.compile("[\ud800-\udfff]")  # "\ud800" without its other half; Go reads U+FFFD
_JSON_WORDS = {bool: "true or false", int: "a whole number without quotes", str: "a text in double quotes"}


def _json_text(path: str, key: str, value: Any, option: Option) -> str:
    """The value as it would stand on the command line."""
    if type(value) not in option.json_types:
        wanted = " or ".join(_JSON_WORDS[kind] for kind in option.json_types)
        shown = f", not {json.dumps(value)[:40]}" if option.name != "key" else ""  # whose value is a secret
        raise ConfigError(f"{path}: {key!r} must be {wanted}{shown}")
    if isinstance(value, str):
        return _HALF_CHARACTER.sub("\ufffd", value)
    return json.dumps(value) if isinstance(value, bool) else str(value)
