"""The program kcptun-lite-monitor: its options, and which of its three faces they ask for.

In      the process's arguments
Out     an exit code; one line on stderr and 2 for what cannot be
Knows   what the extra [monitor] brings. Not: tunnels
Cost    libraries are loaded by the face that needs them
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NoReturn

from kcptun_lite import __version__
from kcptun_lite.monitor import tunnels

PROGRAM = "kcptun-lite-monitor"
EXIT_WRONG = 2

Place = tuple[str, int]
"host (empty: all addresses) and port"


class Failure(Exception):
    """Something that ends the program with one sentence."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns the exit code."""
    options = build_parser().parse_args(arguments)
    try:
        return _run(options)
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] == "kcptun_lite":
            raise
        text = f"{exc.name} is not installed; it comes with: pip install 'kcptun-lite[monitor]'"
    except Failure as exc:
        text = str(exc)
    except OSError as exc:
        text = f"{exc.filename or 'cannot start'}: {exc.strerror or exc}"
    print(f"{PROGRAM}: {text}", file=sys.stderr)
    return EXIT_WRONG


def _run(options: argparse.Namespace) -> int:
    if options.metrics:
        from kcptun_lite.monitor import metrics

        with _listening("--metrics", options.metrics):
            return metrics.run(options.paths, *options.metrics)
    if options.web:
        from kcptun_lite.monitor import web

        with _listening("--web", options.web):
            return web.run(options.paths, *options.web)
    if "TEXTUAL_DRIVER" not in os.environ:  # which the web server sets; it may be older than the first tunnel
        if not tunnels.find(options.paths):
            raise Failure(tunnels.describe_search(options.paths))
        if not sys.stderr.isatty():
            raise Failure("the screen needs a terminal; --web and --metrics need none")
    from kcptun_lite.monitor import screen

    return screen.run(options.paths)


@contextmanager
def _listening(option: str, place: Place) -> Iterator[None]:
    """Say which option has an address that cannot be listened on."""
    try:
        yield
    except OSError as exc:
        host, port = place
        why = os.strerror(exc.errno) if exc.errno and exc.errno > 0 else exc.strerror or exc
        raise Failure(f"{option} {host}:{port} cannot be listened on: {why}; name another address") from exc


class _Parser(argparse.ArgumentParser):
    """Says in one sentence what is wrong, as the other programs do."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_WRONG, f"{PROGRAM}: {message}; see --help\n")


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        PROGRAM,
        description="Shows what tunnels of kcptun_lite do, from the status that --status has them tell.",
        epilog="Keys of the screen: q quits, arrows select and turn pages, / filters, ? helps. "
        "Needs pip install 'kcptun-lite[monitor]'.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "paths",
        metavar="PATH",
        nargs="*",
        help=f"status files, or directories of them (default: {' and '.join(tunnels.PLACES)})",
    )
    face = parser.add_mutually_exclusive_group()
    face.add_argument(
        "--web",
        metavar="HOST:PORT",
        type=_place,
        help="show the screen in browsers; other addresses than those of loopback want the token that is printed",
    )
    face.add_argument("--metrics", metavar="HOST:PORT", type=_place, help="serve numbers to Prometheus at /metrics")
    parser.add_argument("-v", "--version", action="version", version=f"{PROGRAM} {__version__}")
    return parser


def _place(text: str) -> Place:
    host, colon, port = text.rpartition(":")
    if not (colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT; write 127.0.0.1:8080, for instance")
    return host.removeprefix("[").removesuffix("]"), int(port)
