"""Man pages and completions of all programs, made from their parsers: python tools/write_cli_files.py

In      the table of options
Out     tools/packaging/man, tools/packaging/completions; a test holds them true
Knows   argparse-manpage, shtab, fish's `complete`. Not: where packages put the files
"""

import os
import re
import sys
from argparse import Action, ArgumentParser
from pathlib import Path
from typing import get_args

import shtab
from argparse_manpage.manpage import Manpage

from kcptun_lite import __version__
from kcptun_lite.app import values
from kcptun_lite.app.command_line import Program, build_parser, options_of
from kcptun_lite.monitor import cli as monitor

PACKAGING = Path(__file__).parent / "packaging"
TUNNELS: tuple[Program, ...] = get_args(Program)
PROGRAMS = (*TUNNELS, "monitor")

# heading and troff of a tunnel's page; {program} and {other} are replaced
SECTIONS = (
    (
        "Exit status",
        "0 after SIGTERM or SIGINT; 1 if something fails at run time; 2 if an option,\n"
        "a file or a library cannot be used; 3 if it cannot listen.\n"
        "\\-\\-check has codes of its own.",
    ),
    (
        "Signals",
        ".TP\nSIGTERM, SIGINT\nstop within three seconds\n.TP\nSIGHUP\nopen \\-\\-log anew; a client also dials again\n"
        ".TP\nSIGUSR1\nwrite the counters to the log\n"
        ".TP\nSIGQUIT\nof a server: stop when the streams that are open have ended, after \\-\\-drain seconds at most\n"
        ".TP\nSIGUSR2\nof a server with \\-\\-workers: read the settings again, and have new workers take over",
    ),
    (
        "Environment",
        "KCPTUN_\\fIOPTION\\fR, as the options tell; GOGC and GOMEMLIMIT as in kcptun.\n"
        "Started by shadowsocks (SIP003), it takes its addresses from SS_REMOTE_HOST,\n"
        "SS_REMOTE_PORT, SS_LOCAL_HOST and SS_LOCAL_PORT, and options from\n"
        "SS_PLUGIN_OPTIONS: key=...;crypt=aes",
    ),
    (
        "Files",
        ".TP\n/etc/kcptun\\-lite/\\fINAME\\fR.json, /etc/kcptun\\-lite/\\fINAME\\fR.env\n"
        "what systemd's {program}@\\fINAME\\fR.service runs on",
    ),
    ("See also", ".BR {other} (1)"),
)


def write(directory: Path) -> None:
    """All files, in the folders man and completions of a directory."""
    for program in PROGRAMS:
        for name, text in (("man", man_page(program)), *completions(program)):
            path = directory / ("man" if name == "man" else "completions") / _file_name(program, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")


def _file_name(program: str, kind: str) -> str:
    name = f"kcptun-lite-{program}"
    return {"man": f"{name}.1", "bash": f"{name}.bash", "zsh": f"_{name}", "fish": f"{name}.fish"}[kind]


def man_page(program: str) -> str:
    name, other = f"kcptun-lite-{program}", f"kcptun-lite-{'server' if program == 'client' else 'client'}"
    parser = _parser(program)
    sections = SECTIONS if program in TUNNELS else SECTIONS[-1:]
    parser._manpage = [  # type: ignore[attr-defined]
        {"heading": heading, "content": text.format(program=name.replace("-", "\\-"), other=other.replace("-", "\\-"))}
        for heading, text in sections
    ]
    page = Manpage(
        parser,
        _data={
            "project_name": "kcptun_lite",
            "version": __version__,
            "description": f"{program} of a kcptun tunnel" if program in TUNNELS else "what kcptun tunnels do, live",
            "manual_title": "User Commands",
        },
    )
    page.date = ""  # the version says it, and the page stays the same until something changes
    return re.sub(r"^([.'])(?=\W)", r"\\&\1", str(page), flags=re.MULTILINE)  # a dot of the text is none of troff's


def completions(program: str) -> list[tuple[str, str]]:
    """Shell and script."""
    parser = _parser(program)
    found = [(shell, shtab.complete(parser, shell=shell)) for shell in ("bash", "zsh")]
    return [*((shell, f"{text.strip()}\n") for shell, text in found), ("fish", _fish(parser))]


def _parser(program: str) -> ArgumentParser:
    """The parser, knowing which words and files a value can be."""
    os.environ["COLUMNS"] = "80"  # where argparse breaks lines
    if program not in TUNNELS:
        parser = monitor.build_parser()
        for action in parser._actions:
            if not action.option_strings:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        return parser
    parser = build_parser(program)
    options = {option.dest: option for option in options_of(program)}
    for action in parser._actions:
        option = options.get(action.dest)
        if option is None:
            continue
        if isinstance(option.read, values.OneOf):
            action.choices = option.read.words
        elif option.read is values.path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
    return parser


def _fish(parser: ArgumentParser) -> str:
    """fish has no generator in shtab; a line for each option is all it needs."""
    options = [action for action in parser._actions if action.option_strings]
    files = "-f" if len(options) == len(parser._actions) else "-F"
    lines = [f"complete -c {parser.prog} {files}", *(_fish_line(parser.prog, action) for action in options)]
    return "\n".join(lines) + "\n"


def _fish_line(prog: str, action: Action) -> str:
    words = ["complete", "-c", prog]
    for flag in action.option_strings:
        words += ["-l" if flag.startswith("--") else "-s", flag.lstrip("-")]
    if hasattr(action, "complete"):
        words += ["-r", "-F"]
    elif action.choices:
        words += ["-x", "-a", _quoted(" ".join(map(str, action.choices)))]
    elif action.nargs is None:
        words.append("-x")
    help_text = (action.help or "").replace("%%", "%")
    return " ".join([*words, "-d", _quoted(help_text.partition(" [")[0])])


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


if __name__ == "__main__":
    write(Path(sys.argv[1]) if len(sys.argv) > 1 else PACKAGING)
