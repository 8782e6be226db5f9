"""The log: one line per event, in Go's format, written with one system call.

In      texts, from any thread
Out     lines `2006/01/02 15:04:05 text` in local time, on stderr or at the end of a file
Knows   levels, limits, the file descriptor. Not: what is logged; secrets and payload never come here
Wire    WIRE.md 8.7
Cost    15 us per line written, 0.1 us per line not wanted; 0.1 MiB

The standard library's `logging` costs 2 MiB of memory and is not part of OpenWrt's python3-light.
A line of level info is the bare text, as kcptun writes it; other levels put their name in front.
"""

import os
import threading
from enum import IntEnum
from time import monotonic, strftime

from kcptun_lite.errors import ConfigError

STDERR = 2
LIMIT_S = 1.0  # a key of `limited` speaks once in this time
LIMIT_KEYS = 64  # keys remembered; those beyond share one line per LIMIT_S


class Level(IntEnum):
    """How much a line matters; a log set to one level shows that one and those before it."""

    ERROR = 0
    "a person should look"
    WARNING = 1
    "worse than it should be, but working"
    INFO = 2
    "somebody was born or died"
    DEBUG = 3
    "per batch of packets, never per packet"


class _Key:
    """When a limited key last spoke, and how often it was silenced since."""

    __slots__ = ("silenced", "spoke_s")

    def __init__(self, spoke_s: float) -> None:
        self.spoke_s = spoke_s
        self.silenced = 0


_descriptor = STDERR
_level = Level.INFO
_quiet = False
_keys: dict[str, _Key] = {}
_keys_lock = threading.Lock()  # a leaf: nothing is called under it


def setup(*, path: str = "", level: Level = Level.INFO, quiet: bool = False) -> None:
    """Say where lines go (`path` empty: stderr), how many, and whether stream lines are among them.

    Called before other threads log.
    Raises: ConfigError if the file cannot be opened.
    """
    global _descriptor, _level, _quiet
    descriptor = STDERR
    if path:
        try:
            descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise ConfigError(f"--log: {path} cannot be opened: {error.strerror}") from error
    if _descriptor != STDERR:
        os.close(_descriptor)
    _descriptor, _level, _quiet = descriptor, level, quiet


def is_shown(level: Level) -> bool:
    """Whether lines of this level are wanted; asked before work is put into a text."""
    return level <= _level


def error(text: str) -> None:
    _write(Level.ERROR, text)


def warning(text: str) -> None:
    _write(Level.WARNING, text)


def info(text: str) -> None:
    _write(Level.INFO, text)


def debug(text: str) -> None:
    _write(Level.DEBUG, text)


def stream(text: str) -> None:
    """An info line about one stream: opened, closed. `--quiet` drops it."""
    if not _quiet:
        _write(Level.INFO, text)


def limited(key: str, text: str, level: Level = Level.WARNING) -> None:
    """A line that unknown sources can provoke: one per second and key, the next one telling how many were left out."""
    if not is_shown(level):
        return
    now_s = monotonic()
    with _keys_lock:
        entry = _keys.get(key) or _new_key_locked(key, now_s)
        if now_s - entry.spoke_s < LIMIT_S:
            entry.silenced += 1
            return
        silenced, entry.silenced, entry.spoke_s = entry.silenced, 0, now_s
    _write(level, f"{text} ({silenced} more like this)" if silenced else text)


def _new_key_locked(key: str, now_s: float) -> _Key:
    if len(_keys) >= LIMIT_KEYS:
        for old in [old for old, entry in _keys.items() if now_s - entry.spoke_s >= LIMIT_S]:
            del _keys[old]
    if len(_keys) >= LIMIT_KEYS:
        key = ""
    return _keys.setdefault(key, _Key(now_s - LIMIT_S))


def _write(level: Level, text: str) -> None:
    if level > _level:
        return
    prefix = "" if level == Level.INFO else f"{level.name.lower()}: "
    line = f"{strftime('%Y/%m/%d %H:%M:%S')} {prefix}{escape(text)}\n"
    try:
        os.write(_descriptor, line.encode())
    except OSError:  # stderr closed, disk full: the tunnel matters more than its log
        pass


def escape(text: str) -> str:
    """The text with everything unprintable written as an escape, so that it stays one line of plain characters."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
