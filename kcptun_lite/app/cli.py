"""The two programs as they are started: parse, then become the worker.

In      the process's arguments and environment
Out     a worker in the same process, or one line on stderr and exit code 2
Knows   how Python is started. Not: options, the tunnel
Cost    the worker is 2.4 MiB smaller than one process for both, 40 ms later on a PC; 4 MiB more where
        .pth files in site-packages import things

Parsing needs argparse, json and tables of text. So the started process parses and checks, writes the
result into a pipe and executes the interpreter anew, in place (the PID stays), without these modules and
without `site`, whose work (sys.path) is handed over. The key reaches the worker through the pipe alone:
it is neither in the arguments nor in the environment, which others can see in /proc.
"""

import errno
import marshal
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn, cast

from kcptun_lite.app import signals
from kcptun_lite.app.config import JOB_VARIABLE, ServerConfig
from kcptun_lite.errors import ConfigError, KcptunError
from kcptun_lite.log import SEVERITIES, Level, escape, stderr_is_journal

if TYPE_CHECKING:
    from kcptun_lite.app.command_line import Program

SECRETS = ("KCPTUN_KEY", "SS_PLUGIN_OPTIONS")  # variables that the key may be in

# The worker's whole program. It reads sys.path before it can import anything of ours. Its end waits for no thread:
# one may be in the C library's resolver for as long as that likes.
BOOTSTRAP = (
    "import sys, marshal, os; p = os.fdopen({pipe}, 'rb'); sys.path[:], *job = marshal.load(p); p.close(); "
    "from kcptun_lite.app.{module} import main; os._exit(main(*job))"
)

# What the worker's C libraries read from the environment; what the user has set stays. Measured: a bulk transfer
# with FEC and compression, windows of 1024.
WORKER_ENVIRONMENT = {
    # glibc: one heap instead of one per thread: 2 to 3 MiB less after load, and no slower, as only the thread that
    # has the interpreter allocates.
    "MALLOC_ARENA_MAX": "1",
    # glibc: keeps 4 stacks of ended threads for new ones, not 160 with 12 KiB of each in use.
    "GLIBC_TUNABLES": "glibc.pthread.stack_cache_size=1048576",
    # numpy's linear algebra, of which we use nothing: no thread per core with a stack and buffers of its own.
    "OPENBLAS_NUM_THREADS": "1",
}

# glibc: blocks below this come from the heap, which keeps as much free at its end. Otherwise each joined batch and each
# compressed chunk may be a mapping of its own with its page faults: 1 MiB saves 10 % of the CPU time, and costs 0.3 MiB
# idle and up to 1 MiB under load. So --gogc scales it, as it does the pool.
HEAP_THRESHOLD = 1_048_576  # bytes
HEAP_THRESHOLD_MIN = 131_072  # bytes; glibc's own

SETTINGS_MAX = 1 << 20  # bytes of a JSON file

# Options of python3 that take the next argument as their value.
_VALUED = ("-W", "-X", "--check-hash-based-pycs")


def client() -> None:
    """The program kcptun-lite-client."""
    main("client", sys.argv[1:])


def server() -> None:
    """The program kcptun-lite-server."""
    main("server", sys.argv[1:])


def main(program: "Program", arguments: Sequence[str]) -> NoReturn:
    """Parse and become the worker; does not come back."""
    signals.hold()
    from kcptun_lite.app.parsing import parse  # which takes half of the time till the worker starts

    _open_standard_files()
    environment = dict(os.environ)
    try:
        config, warnings = parse(program, arguments, os.environ, _read_file)
        _tune_libraries(config.gogc)
        if isinstance(config, ServerConfig) and (config.workers > 1 or JOB_VARIABLE in environment):
            _become_parent(config, warnings, environment)
        job = marshal.dumps((_import_path(), program, config.pack(), warnings))
        _become_worker(program, config.name, job)
    except KcptunError as error:
        _end(program, str(error), error.exit_code)
    except OSError as error:
        _end(program, f"cannot start: {error.strerror or error}", KcptunError.exit_code)


def _end(program: "Program", sentence: str, exit_code: int) -> NoReturn:
    level = f"<{SEVERITIES[Level.ERROR]}>" if stderr_is_journal() else ""
    print(f"{level}kcptun-lite-{program}: {escape(sentence)}", file=sys.stderr)
    sys.exit(exit_code)


def _tune_libraries(gogc: int | None) -> None:
    threshold = max(HEAP_THRESHOLD_MIN, HEAP_THRESHOLD * min(100 if gogc is None else gogc, 100) // 100)
    heap = {name: str(threshold) for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")}
    for name, value in {**WORKER_ENVIRONMENT, **heap}.items():
        os.environ.setdefault(name, value)


def _become_worker(program: "Program", name: str, job: bytes) -> NoReturn:
    for variable in SECRETS:
        os.environ.pop(variable, None)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)  # nobody reads yet: what does not fit in the pipe must not block
    try:
        if os.write(writer, job) != len(job):
            raise BlockingIOError
    except BlockingIOError:
        raise ConfigError("the options together are too long; shorten --key") from None
    os.close(writer)
    os.set_inheritable(reader, True)
    code = BOOTSTRAP.format(pipe=reader, module="worker")
    signals.block()  # a signal while the interpreter starts again waits for the worker's `hold`
    try:
        os.execv(sys.executable, [_title(program, name), *_interpreter_options(), "-S", "-P", "-c", code, program])
    except OSError as error:
        raise KcptunError(f"Python ({sys.executable!r}) cannot be started: {error.strerror}") from error


def _become_parent(config: ServerConfig, warnings: list[str], environment: dict[str, str]) -> NoReturn:
    """Of a server with workers; for a reload, tell what would be run."""
    from kcptun_lite.app import preview
    from kcptun_lite.app.workers import reload

    pipe = environment.pop(JOB_VARIABLE, "")
    for variable in (*SECRETS, JOB_VARIABLE):
        os.environ.pop(variable, None)
    path = _import_path()
    python = sys.executable, _title("server", config.name), _interpreter_options(), path, BOOTSTRAP
    job: reload.Job = {
        "path": path,
        "python": python,
        "config": config.pack(),
        "origin": {
            "command": [sys.executable, *sys.orig_argv[1:]],
            "environment": environment,
            "warnings": warnings,
        },
        "environment": dict(os.environ),
    }
    preview.check(config)  # here, as the parent has nothing that is needed for it
    if pipe:
        import_module("kcptun_lite.app.workers.parent")  # an upgrade that is broken is found out here
        import_module("kcptun_lite.app.workers.server")
        with open(int(pipe), "wb") as file:
            marshal.dump(cast(Any, job), file)
        raise SystemExit(0)
    signals.block()
    reload.execute(job, None)


def _title(program: "Program", name: str) -> str:
    """What ps shows first. Python looks for its library from the directory of this path, not at the file."""
    is_virtual = sys.prefix != sys.base_prefix  # then pyvenv.cfg is beside the link, else the library beside the file
    directory = os.path.dirname(sys.executable if is_virtual else os.path.realpath(sys.executable))
    return os.path.join(directory, f"kcptun-lite-{program}") + (f" {escape(name)}" if name else "")


def _interpreter_options() -> list[str]:
    """The options this interpreter was started with, so that -E, -I, -X and the like hold for the worker too."""
    options: list[str] = []
    words = iter(sys.orig_argv[1:])
    for word in words:
        if not word.startswith("-") or word in ("-", "--"):
            break
        if word[1] not in "-WX" and word[-1] in "cm":  # -c code, -m module, -Im module
            if len(word) > 2:
                options.append(word[:-1])
            break
        options.append(word)
        if word in _VALUED:
            options.append(next(words))
    return options


def _import_path() -> list[str]:
    """sys.path, with the directory of this package if a hook and not the path has found it."""
    package = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = [os.path.abspath(entry) for entry in sys.path]
    return found if package in found else [package, *found]


def _open_standard_files() -> None:
    """Fill in standard files that are closed, lest a socket gets number 2 and the log is written to it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # gets the lowest number that is free


def _read_file(path: str) -> bytes:
    with open(path, "rb") as file:
        data = file.read(SETTINGS_MAX + 1)
    if len(data) > SETTINGS_MAX:  # or has no end, as /dev/zero
        raise OSError(errno.EFBIG, f"it is larger than {SETTINGS_MAX >> 20} MiB")
    return data
