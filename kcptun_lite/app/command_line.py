"""The command line as configargparse has it: what --help, the man pages and the shells' completions are made from.

In      the table of options, a reader for each
Out     a parser; the texts of --help and --version
Knows   how options are grouped and explained. Not: where values come from, which must fit each other
Cost    loaded by the program that parses, never by the worker
"""

from collections.abc import Callable
from typing import Literal, NoReturn

import configargparse

from kcptun_lite import __version__
from kcptun_lite.app import values
from kcptun_lite.app.options import ACTIONS, BASIC, GROUPS, OPTIONS, Option
from kcptun_lite.errors import ConfigError

Program = Literal["client", "server"]

VERSION = f"kcptun_lite version {__version__}"
EPILOG = (
    "Options take one dash or two; -x v is -x=v. Each can be set in the environment, under the name in brackets. A -c "
    "file goes before the command line, that before the environment. --help shows the basic options, --help-all all."
)


class Parser(configargparse.ArgumentParser):  # type: ignore[misc]
    """One that raises what others print."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


def options_of(program: Program) -> list[Option]:
    return [option for option in OPTIONS if option.default(program) is not None]


def build_parser(
    program: Program, reader: Callable[[Option], values.Reader] = lambda option: option.read, *, is_whole: bool = True
) -> Parser:
    """The parser of a program.

    Args:
        reader: what makes a value of the text of an option; may raise ConfigError.
        is_whole: whether the help text has all options, and not the basic ones alone.
    """
    name = f"kcptun-lite-{program}"
    parser = Parser(
        prog=name,
        usage=f"{name} [options]",
        description=f"The {program} of a kcptun tunnel: TCP over an error-correcting UDP.",
        epilog=EPILOG,
        formatter_class=lambda prog: configargparse.HelpFormatter(prog, max_help_position=26),
        allow_abbrev=False,
        add_help=False,
        add_env_var_help=False,
        add_config_file_help=False,
    )
    groups = {group: parser.add_argument_group(f"{group} options") for group in GROUPS}
    for option in options_of(program):
        groups[option.group].add_argument(
            *_flags(*option.aliases),
            option.flag,
            dest=option.dest,
            env_var=option.variable,
            type=reader(option),
            default=option.default(program),
            help=_explained(option, program) if is_whole or option.group == BASIC else configargparse.SUPPRESS,
            metavar=option.metavar,
            nargs="?" if option.is_switch else None,
        )
    for action in ACTIONS:
        groups[BASIC].add_argument(
            *_flags(*action.aliases, action.name), action="store_true", dest=action.name, help=action.help
        )
    return parser


def help_text(program: Program, *, is_whole: bool) -> str:
    return str(build_parser(program, is_whole=is_whole).format_help())


def _flags(*names: str) -> list[str]:
    return [f"-{name}" if len(name) == 1 else f"--{name}" for name in names]


def _explained(option: Option, program: Program) -> str:
    """Its help, with its default and its name in the environment."""
    default = option.default(program)
    shown = f"default {default}, " if default else ""
    return f"{option.help} [{shown}{option.variable}]".replace("%", "%%")
