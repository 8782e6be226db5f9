"""From arguments, environment and file to a checked configuration, or to one sentence on what is wrong.

In      arguments, environment, a function that reads a file
Out     ClientConfig or ServerConfig, and warnings; or the answer to --help, --test-config and the like
Knows   kcptun's command line, what goes before what, which options must fit each other. Not: sockets, the log
Wire    docs/protocol.md, "Programs", "Sizes", "Keep-alive", "Flow control"
Cost    60 ms and 4 MiB on a PC, given back when the worker takes over

What counts, high to low: -c file, command line, plug-in options of shadowsocks, environment, default. The first three
become at most one `--name=value` for each option, so that configargparse meets no value that looks like an option.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from string import ascii_letters, digits
from typing import TYPE_CHECKING, Any, NoReturn

from kcptun_lite.app import command_line, values
from kcptun_lite.app.command_line import Program
from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.app.json_file import FileReader, read_settings
from kcptun_lite.app.options import (
    ACTIONS,
    DEFAULT_KEY,
    MANUAL,
    MANUAL_OPTIONS,
    MODES,
    MTU_MIN,
    OPTIONS,
    WINDOWS,
    WORKERS_MAX,
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
from kcptun_lite.log import escape

INTERVAL_MIN, INTERVAL_MAX = 10, 5000  # ms; kcp-go brings others to these

if TYPE_CHECKING:
    from kcptun_lite.app.sip003 import Plugin

_PACKET_OVERHEAD = {"null": 0, "aes-128-gcm": CRYPT_GCM_NONCE_SIZE + CRYPT_GCM_TAG_SIZE}  # bytes; others as below


def parse(
    program: Program, arguments: Sequence[str], environment: Mapping[str, str], read_file: FileReader
) -> tuple[ClientConfig | ServerConfig, list[str]]:
    """The configuration, and sentences about what was given in vain.

    Args:
        read_file: the bytes of the file at a path; may raise OSError.
    Raises: ConfigError with one sentence that names the option; SystemExit(0) after what `ACTIONS` ask for.
    """
    return _Parsing(program).run(arguments, environment, read_file)


_ACTION_OF = {flag: action.name for action in ACTIONS for flag in (action.name, *action.aliases)}


class _Parsing:
    """One reading of everything; remembers where each option was set, to name that place in sentences."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.options = command_line.options_of(program)
        self.by_flag = {flag: option for option in self.options for flag in (option.name, *option.aliases)}
        self.places: dict[str, str] = {}
        "dest -> where its value came from, as the user knows it"
        self.warnings: list[str] = []
        self.previews: list[str] = []
        "the actions asked for that need the configuration"

    def run(
        self, arguments: Sequence[str], environment: Mapping[str, str], read_file: FileReader
    ) -> tuple[ClientConfig | ServerConfig, list[str]]:
        variables = self._from_environment(environment)
        plugin = self._plugin(environment)
        given = self._from_plugin(plugin) | self._from_arguments(arguments)
        if path := given.get("-c", variables.get("KCPTUN_C")):
            self._reader(self.by_flag["c"])(path)
            given |= self._from_file(path, read_file)
        given |= self._addresses(plugin)
        for name, value in *given.items(), *variables.items():
            if value == "--":  # argparse would drop it
                raise ConfigError(f"{name}: -- alone cannot be a value")
        tokens = [f"{flag}={value}" for flag, value in given.items()]
        parser = command_line.build_parser(self.program, self._reader)
        found: dict[str, Any] = vars(parser.parse_args(tokens, env_vars=variables))
        self._resolve(found)
        found["parent"] = plugin.parent if plugin else 0
        config_class = ClientConfig if self.program == "client" else ServerConfig
        config = config_class(**{name: found[name] for name in config_class.names()})
        if self.previews:
            texts = {option.dest: variables[option.variable] for option in self.options if option.variable in variables}
            texts |= {self.by_flag[flag.lstrip("-")].dest: text for flag, text in given.items()}
            self._preview(config, texts)
        return config, self.warnings

    def _preview(self, config: ClientConfig | ServerConfig, texts: dict[str, str]) -> NoReturn:
        """Answer --print-config or --test-config, with warnings on stderr. Raises: SystemExit(0), ConfigError."""
        from kcptun_lite.app import preview

        for warning in self.warnings:
            print(f"warning: {escape(warning)}", file=sys.stderr)
        if "print-config" in self.previews:
            print(preview.as_json(self.options, texts))
        else:
            preview.check(config)
            print(preview.as_table(self.program, self.options, texts, self.places))
        raise SystemExit(0)

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
            if name in _ACTION_OF:
                if equals:
                    raise ConfigError(f"{word}: --{_ACTION_OF[name]} takes no value")
                self._act(_ACTION_OF[name])
                continue
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

    def _act(self, action: str) -> None:
        """Do what an action asks for, if that needs no configuration. Raises: SystemExit(0) then."""
        if action in ("test-config", "print-config"):
            self.previews.append(action)
            return
        if action == "genkey":
            from secrets import choice  # 32 of 62: 190 bits, and no character that any shell or file minds

            print("".join(choice(ascii_letters + digits) for _ in range(32)))
        elif action == "version":
            print(command_line.VERSION)
        else:
            print(command_line.help_text(self.program, is_whole=action == "help-all").rstrip())
        raise SystemExit(0)

    def _about_unknown(self, word: str, name: str) -> str:
        if any(name in (option.name, *option.aliases) for option in OPTIONS):
            return f"{word} is an option of the {self._other}, not of the {self.program}"
        return f"{word} is not an option{values.nearest(name, [*self.by_flag, *_ACTION_OF])}"

    def _about_leftover(self, word: str, last: Option | None) -> str:
        name = word.partition("=")[0]
        if last and last.is_switch and word.lower() in ("true", "false", "0", "1", "yes", "no", "on", "off"):
            return f"{last.flag} is a switch: write {last.flag}={word} with an equals sign, or {last.flag} alone"
        if name in self.by_flag or name in _ACTION_OF:
            return f"{word} lacks its dashes: write --{word}"
        return f"{word!r} belongs to no option; options begin with a dash and values with blanks need quotes"

    def _plugin(self, environment: Mapping[str, str]) -> "Plugin | None":
        """What shadowsocks wants, if it has started us."""
        if not environment.get("SS_REMOTE_HOST"):
            return None
        from kcptun_lite.app import sip003

        return sip003.read(self.program, environment)

    def _from_plugin(self, plugin: "Plugin | None") -> dict[str, str]:
        """flag -> value from the plug-in options of shadowsocks."""
        given: dict[str, str] = {}
        for name, value in plugin.options if plugin else ():
            option = self.by_flag.get(name)
            if name in _ACTION_OF:
                raise ConfigError(f"SS_PLUGIN_OPTIONS: {name} is for the command line alone; remove it")
            if option is None:
                raise ConfigError(f"SS_PLUGIN_OPTIONS: {self._about_unknown(name, name)}")
            if value is None and not option.is_switch:
                raise ConfigError(f"SS_PLUGIN_OPTIONS: {name} needs a value: {name}=...")
            given[option.flag] = "true" if value is None else value
            self.places[option.dest] = f"SS_PLUGIN_OPTIONS: {name}"
        return given

    def _addresses(self, plugin: "Plugin | None") -> dict[str, str]:
        """flag -> value of the addresses of shadowsocks, which go before all else: it knows nothing of others."""
        given: dict[str, str] = {}
        for dest, address in plugin.addresses.items() if plugin else ():
            if dest in self.places:
                self.warnings.append(f"{self.places[dest]} gives way to the addresses of shadowsocks")
            given[f"--{dest}"] = address
            self.places[dest] = "shadowsocks (SS_REMOTE_..., SS_LOCAL_...)"
        return given

    def _from_file(self, path: str, read_file: FileReader) -> dict[str, str]:
        """flag -> value from the JSON object in the file.

        The rules are Go's (docs/protocol.md, "JSON file"), but unknown keys are told.
        """
        by_key = {option.json_key: option for option in self.options if option.name != "c"}
        given: dict[str, str] = {}
        for setting in read_settings(path, read_file):
            option = by_key.get(setting.key.lower())
            if option is None:
                self.warnings.append(f"{setting.place} {self._about_unknown_key(setting.key, by_key)}, ignored")
            elif setting.value is not None:
                if option.flag in given:
                    self.warnings.append(f"{setting.place} is there more than once, the last one counts")
                given[option.flag] = setting.as_text(option)
                self.places[option.dest] = setting.place
        return given

    def _about_unknown_key(self, key: str, by_key: Mapping[str, Option]) -> str:
        for option in OPTIONS:
            if key.lower() in option.aliases and option.json_key in by_key:
                return f"is not an option in a file (write {option.json_key!r})"
        if key.lower() in (option.json_key for option in OPTIONS if option.name != "c"):
            return f"is an option of the {self._other}"
        return f"is not an option of the {self.program}{values.nearest(key, by_key)}"

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
        if self.program == "server":
            self._count_workers(found)
        self._apply_mode(found)
        if self.program == "client":
            self._apply_transport(found)
        if self.program == "server":  # it takes its clients as they come; --strict has kcptun's defaults
            found["smuxver"], found["nocomp"] = found["smuxver"] or 1, bool(found["nocomp"])
        found["ratelimit"] = max(0, found["ratelimit"])  # less than 0 is none, as in kcptun
        if found["key"] == DEFAULT_KEY:
            self.warnings.append("the key is kcptun's default, which everybody knows; set KCPTUN_KEY")
        if not found["key"]:
            self.warnings.append("the key is empty, which everybody can guess; set KCPTUN_KEY")
        if found["pprof"]:
            self.warnings.append("--pprof does nothing in kcptun_lite")

    def _count_workers(self, found: dict[str, Any]) -> None:
        ports = found["listen"].port_max - found["listen"].port_min + 1
        if found["workers"] is None:  # auto
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            most = min(WORKERS_MAX, found["maxsessions"], found["maxstreams"], ports if ports > 1 else cores)
            found["workers"] = 1 if found["tcp"] else min(cores, most)
        if found["tcp"] and found["workers"] > 1:
            raise self._wrong("workers", f"{found['workers']} do not go with --tcp, which has one process; write 1")
        if ports > 1 and found["workers"] > ports:
            raise self._wrong(
                "workers", f"{found['workers']} cannot share the {ports} ports of --listen; write {ports} or less"
            )
        for dest in "maxsessions", "maxstreams":
            if found["workers"] > found[dest]:
                raise self._wrong(
                    dest,
                    f"{found[dest]} cannot be shared by {found['workers']} workers; write {found['workers']} or more",
                )
        if found["workers"] > 1 and not hasattr(socket, "SO_REUSEPORT"):
            raise self._wrong("workers", "this system lets no two processes share a port; write 1")

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

    def _apply_transport(self, found: dict[str, Any]) -> None:
        if found["tcp"]:
            if "transport" in self.places and found["transport"] != "tcp":
                raise self._wrong("transport", f"{found['transport']} does not go with --tcp; leave one of them out")
            found["transport"] = "tcp"
        found["tcp"] = found["transport"] != "udp"

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
