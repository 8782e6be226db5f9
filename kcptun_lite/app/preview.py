"""What would run, for --test-config and --print-config: the values, where each comes from, and as a file.

In      the checked configuration; what was set, as texts, and where
Out     a table, a JSON object; or one sentence on why it could not run
Knows   how values are shown. Not: how they were found
Cost    loaded only when asked for
"""

import json
from collections.abc import Mapping, Sequence

from kcptun_lite import files, log
from kcptun_lite.app.command_line import Program
from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.app.options import DEFAULT_KEY, MANUAL, MANUAL_OPTIONS, MODES, Option
from kcptun_lite.errors import ConfigError

Texts = Mapping[str, str]
"dest -> what the user has written for it"


def check(config: ClientConfig | ServerConfig) -> None:
    """Look at all that a start would look at before it listens. Raises: ConfigError."""
    from kcptun_lite.app.client import Client
    from kcptun_lite.app.server import Server

    if config.log not in ("", log.SYSLOG):
        try:
            files.check_appendable(config.log)
        except OSError as error:
            raise ConfigError(f"--log: {config.log} cannot be opened: {error.strerror}") from error
    (Client(config) if isinstance(config, ClientConfig) else Server(config)).check()


def as_table(program: Program, options: Sequence[Option], texts: Texts, places: Texts) -> str:
    """A line for each option: its name, its value and its source."""
    mode = texts.get("mode", next(option.default(program) for option in options if option.dest == "mode")) or ""
    numbers = dict(zip(MANUAL_OPTIONS, map(str, MODES.get(mode, ())), strict=False))
    rows = []
    for option in options:
        value, source = option.default(program) or "", "default"
        if option.dest in texts:
            value, source = texts[option.dest], places[option.dest]
        if mode != MANUAL and option.dest in numbers:
            value, source = numbers[option.dest], f"mode {mode}"
        if option.name == "key":
            value = "kcptun's default" if value == DEFAULT_KEY else f"({len(value)} characters)"
        rows.append((option.name, log.escape(value) or "-", log.escape(source)))
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    lines = [f"{name:{widths[0]}}  {value:{widths[1]}}  {source}" for name, value, source in rows]
    return "\n".join([f"kcptun-lite-{program} can run with these values:", *lines])


def as_json(options: Sequence[Option], texts: Texts) -> str:
    """What was set, whatever the way, as an object for -c; options that were not set keep their defaults.

    Raises: ConfigError for a text that JSON cannot carry.
    """
    found: dict[str, object] = {}
    for option in options:
        text = texts.get(option.dest)
        if text is None or option.name == "c":
            continue
        try:
            text.encode()
        except UnicodeEncodeError:
            shown = "its value" if option.name == "key" else log.escape(text)  # a key is a secret, stderr may be a log
            raise ConfigError(f"{option.flag}: {shown} is not UTF-8, which JSON cannot carry") from None
        value = _json_value(option, text)
        if value is not None:
            found[option.json_key] = value
    return json.dumps(found, indent=2)  # of ASCII alone, as the encoding of stdout may be any


def _json_value(option: Option, text: str) -> object:
    """The value in the type that the file has for it; None where it has none, which is the default then."""
    if bool in option.json_types:
        return option.read(text)  # auto is None
    if int not in option.json_types:
        return text
    try:
        return int(text, 0)
    except ValueError:
        return text  # 24M, auto, off
