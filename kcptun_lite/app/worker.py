"""The process that carries the tunnel: nothing in its memory but what it needs for that.

In      a configuration as plain values, from the program that parsed it
Out     an exit code
Knows   the tuning of the interpreter, the log. Not: options and how they are parsed
Cost    see app/cli for what the two processes take
"""

import sys
import threading
from collections.abc import Sequence

from kcptun_lite import log
from kcptun_lite.app import signals
from kcptun_lite.app.config import ClientConfig, Plain, ServerConfig
from kcptun_lite.errors import KcptunError, describe_exception

STACK_BYTES = 256 * 1024  # per thread; the default is 8 MiB of address space, which small systems count
SWITCH_INTERVAL_S = 0.001  # how long a thread may hold the interpreter; Python's 5 ms add to every round trip


def main(program: str, plain: Plain, warnings: Sequence[str]) -> int:
    """Run the client or the server until it ends; returns the exit code."""
    signals.hold()
    threading.stack_size(STACK_BYTES)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _name_process(f"kcptun-lite-{program}")
    _raise_descriptor_limit()
    try:
        log.setup(
            path=plain["log"],
            level=log.Level[plain["loglevel"].upper()],
            quiet=plain["quiet"],
            program=f"kcptun-lite-{program}",
            name=plain["name"],
            is_json=plain["logformat"] == "json",
        )
        for warning in warnings:
            log.warning(warning)
        if program == "client" and plain["check"]:
            from kcptun_lite.app import check

            return check.run(ClientConfig.unpack(plain))
        if program == "client":
            from kcptun_lite.app import client

            return client.run(ClientConfig.unpack(plain))
        from kcptun_lite.app import server

        return server.run(ServerConfig.unpack(plain))
    except KcptunError as error:
        log.error(str(error))
        return error.exit_code
    except Exception as error:  # a bug, or a system without memory, descriptors or threads to begin with
        log.error(f"cannot go on: {describe_exception(error)}")
        return KcptunError.exit_code


def _raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: each stream takes one, and the usual 1024 are soon gone."""
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ImportError, OSError, ValueError):  # not Unix; macOS takes no "unlimited" here
        pass


def _name_process(name: str) -> None:
    """What ps and pidof call the process, after exec has made it a python3 (Linux; it keeps 15 bytes)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(name[:15])
    except OSError:
        pass
