"""What the options allow to be held at worst, what a limit must allow at least, and giving back what is free.

In      a configuration and what sessions make of it
Out     a sentence for the log, or a refusal; free heap back to the system
Knows   what a session can hold. Not: what it holds now (core/budget)
Cost    once at the start; `release_heap` 10 ms, when traffic has stopped
"""

import gc
import sys

from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.core.batch.pool import BATCH_BYTES, BULK_FACTOR, RELAY_BYTES
from kcptun_lite.core.budget import HEADROOM, SEGMENT_BYTES, SEGMENT_COST
from kcptun_lite.core.conversation import EXPANDED_BYTES, FEC_LEAST, RECEIVE_LEAST, SEND_LEAST
from kcptun_lite.core.crypt.crypt import METHODS
from kcptun_lite.core.fec.decoder import HELD_BYTES_MAX
from kcptun_lite.core.kcp.kcp import RCV_WND_START, READ_SEGMENTS
from kcptun_lite.core.kcp.sender import QUEUE_TARGET
from kcptun_lite.core.mux.smux import UNDER_WAY
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.wire import KCP_WND_MAX, SNAPPY_CHUNK_MAX
from kcptun_lite.errors import ConfigError
from kcptun_lite.net.session.stream import READ_LIMIT

THRIFTY_GOGC = 50  # percent; who sets so little, or a limit, has a small device
BATCHES = 3  # of one session at once: receiving, sending, key stream
MIB = 2**20
SHARE_OF_FREE = 16  # a window that nobody has set may hold this part of what the system has free, each way
FREE_UNKNOWN = 256 * MIB  # bytes
SESSIONS_ASIDE = 3  # of a client: those that are held up by a reader that has stopped, while new streams take others


def bulk_factor(config: ClientConfig | ServerConfig) -> int:
    """How many times the smallest batches are: large ones are faster, small ones for small devices and slow ciphers."""
    is_small = config.memlimit > 0 or (config.gogc is not None and config.gogc <= THRIFTY_GOGC)
    is_small = is_small or METHODS[config.crypt].is_slow
    return 1 if is_small else BULK_FACTOR


def auto_window(config: ClientConfig | ServerConfig) -> int:
    """Segments that a window may grow to where none is set: a limit is kept to anyway, else some of what is free."""
    if config.memlimit:
        return KCP_WND_MAX
    try:
        with open("/proc/meminfo", "rb") as file:
            free = next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"MemAvailable"))
    except (OSError, StopIteration):
        free = FREE_UNKNOWN
    return max(RCV_WND_START, min(KCP_WND_MAX, free // SHARE_OF_FREE // SEGMENT_BYTES))


def most_of_session(params: ConversationParams) -> int:
    """Bytes that one session can hold if its peer and its readers want the worst."""
    kcp = params.kcp
    sending = QUEUE_TARGET + RELAY_BYTES + kcp.snd_wnd * (kcp.mtu + SEGMENT_COST)
    unread = 2 * max(kcp.rcv_wnd, kcp.rcv_wnd_max) * SEGMENT_BYTES  # in order, and as many beyond a gap
    read = (1 + UNDER_WAY) * params.smux_buffer + READ_SEGMENTS * (EXPANDED_BYTES if params.compress else SEGMENT_BYTES)
    return BATCHES * params.batch_bytes + sending + unread + read + HELD_BYTES_MAX


def least_limit(params: ConversationParams, sessions: int) -> int:
    """The smallest `--memlimit` with which this many sessions get on."""
    fec = max(FEC_LEAST, params.shards_bytes)
    session = BATCHES * params.batch_bytes + SEND_LEAST + RECEIVE_LEAST + fec + 2 * SNAPPY_CHUNK_MAX
    return HEADROOM + RELAY_BYTES + sessions * session


def check_limit(config: ClientConfig | ServerConfig, params: ConversationParams) -> None:
    """Raises: ConfigError for a `--memlimit` too small for a client's sessions, or one of each worker of a server."""
    sessions, workers = (config.conn, 1) if isinstance(config, ClientConfig) else (1, config.workers)
    least = least_limit(params, sessions) * workers
    if 0 < config.memlimit < least:
        what = "one session" if sessions == 1 else f"{sessions} sessions (--conn)"
        what += f" of each of {workers} workers" if workers > 1 else ""
        least_mib = -(-least // MIB)
        raise ConfigError(
            f"--memlimit: {config.memlimit} bytes cannot hold {what}; write {least_mib}M or more, or 0 for no limit"
        )


def describe(config: ClientConfig | ServerConfig, params: ConversationParams) -> str:
    """The line of the start-up log about memory."""
    factor = bulk_factor(config)
    session = most_of_session(params) + (factor - 1) * (BATCHES * BATCH_BYTES + RELAY_BYTES)
    sessions = config.conn + SESSIONS_ASIDE if isinstance(config, ClientConfig) else config.maxsessions
    worst = sessions * session + config.maxstreams * (factor * RELAY_BYTES + READ_LIMIT)
    options = (
        f"the options allow {_mib(session)} a session, {_mib(worst)} with {sessions} session{'s' * (sessions > 1)} "
        f"and {config.maxstreams} streams"
    )
    if 0 < config.memlimit < worst:
        return f"memory: buffers up to {_mib(config.memlimit)} (--memlimit), where {options}"
    return f"memory: no limit to buffers (--memlimit sets one); at the very worst {options}"


def release_heap() -> None:
    """Give garbage and the free pages inside the C library's heap back to the system, as far as it has a way to.

    glibc gives back what is free at the heap's end alone, and a few small objects there hold megabytes (measured:
    2 to 3 MiB after a bulk transfer). musl needs no call for it. `ctypes` is taken if a cipher has brought it along.
    """
    gc.collect()
    ctypes = sys.modules.get("ctypes")
    trim = getattr(getattr(ctypes, "pythonapi", None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _mib(size: int) -> str:
    return f"{size / MIB:.1f} MiB" if size < 1024 * MIB else f"{size / 1024 / MIB:.1f} GiB"
