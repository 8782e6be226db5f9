"""The process that carries the tunnel: nothing in its memory but what it needs for that.

In      a configuration as plain values, from the program that parsed it
Out     an exit code
Knows   the tuning of the interpreter, the log. Not: options and how they are parsed
Cost    see app/cli for what the two processes take
"""

import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kcptun_lite import log
from kcptun_lite.app import signals
from kcptun_lite.app.config import ClientConfig, Plain, ServerConfig
from kcptun_lite.app.process import set_up_log, set_up_process
from kcptun_lite.errors import KcptunError, describe_exception

if TYPE_CHECKING:
    from kcptun_lite.app.workers.share import Place

STACK_BYTES = 256 * 1024  # per thread; the default is 8 MiB of address space, which small systems count
SWITCH_INTERVAL_S = 0.001  # how long a thread may hold the interpreter; Python's 5 ms add to every round trip


def main(program: str, plain: Plain, warnings: Sequence[str], place: "Place | None" = None) -> int:
    """Run the client or the server until it ends; returns the exit code. `place`: it is one of several servers."""
    signals.hold()
    threading.stack_size(STACK_BYTES)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    set_up_process(program)
    try:
        set_up_log(program, plain)
        for warning in warnings:
            log.warning(warning)
        if program == "client" and plain["check"]:
            from kcptun_lite.app import check

            return check.run(ClientConfig.unpack(plain))
        if program == "client":
            from kcptun_lite.app import client

            return client.run(ClientConfig.unpack(plain))
        if place:
            from kcptun_lite.app.workers import server as worker

            log.hush(place["is_hushed"])
            return worker.run(ServerConfig.unpack(plain), place)
        from kcptun_lite.app import server

        return server.run(ServerConfig.unpack(plain))
    except KcptunError as error:
        log.error(str(error))
        return error.exit_code
    except Exception as error:  # a bug, or a system without memory, descriptors or threads to begin with
        log.error(f"cannot go on: {describe_exception(error)}")
        return KcptunError.exit_code
