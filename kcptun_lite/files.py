"""Files that the user has named, opened so that nothing is written, replaced or removed that he does not mean.

In      a path of --log, --snmplog, --status or a unix socket
Out     a descriptor to append to; a file replaced as a whole; who a file is, to remove it only if it is ours
Knows   what may be written to, links of others, names that nobody can foresee. Not: what is written
Cost    four system calls to append, eight to replace
"""

import errno
import os
import stat
from collections.abc import Callable
from contextlib import suppress

MODE = 0o644
NULL_DEVICE = os.makedev(1, 3)  # Linux's /dev/null

Identity = tuple[int, int, int]
"device, inode and time of change: a number of an inode is given out again"


def open_to_append(path: str) -> int:
    """A descriptor for the end of a file, which is made if there is none; it does not block.

    A terminal, a pipe that somebody reads and /dev/null will do as well; other devices will not. A link is followed
    only if it is root's or our own: others plant theirs where the name can be foreseen.
    Raises: OSError.
    """
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW, MODE)
    except OSError as exc:
        if exc.errno == errno.ENXIO:
            raise OSError(exc.errno, "nobody reads this pipe, or it is a socket", path) from exc
        if exc.errno != errno.ELOOP:
            raise
        if os.lstat(path).st_uid not in (0, os.geteuid()):
            raise OSError(errno.ELOOP, "it is a link that belongs to another user", path) from exc
        descriptor = os.open(path, flags, MODE)
    if not _may_be_appended_to(descriptor):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is a device and no file", path)
    return descriptor


def check_appendable(path: str) -> None:
    """Look whether `open_to_append` would work, and make no file. Raises: OSError."""
    if os.path.exists(path):
        os.close(open_to_append(path))
    else:
        os.stat(os.path.dirname(path) or ".")


def _may_be_appended_to(descriptor: int) -> bool:
    found = os.fstat(descriptor)
    if stat.S_ISCHR(found.st_mode):
        return found.st_rdev == NULL_DEVICE or os.isatty(descriptor)
    return stat.S_ISREG(found.st_mode) or stat.S_ISFIFO(found.st_mode)


def identify(path: str) -> Identity | None:
    """Who the file at a path is, None if there is none. A link is not followed."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns


def remove(path: str, identity: Identity | None) -> None:
    """Remove the file at a path if it is still the one that `identify` has told of."""
    if identity is not None and identify(path) == identity:
        with suppress(OSError):
            os.unlink(path)


def check_replaceable(path: str, is_ours: Callable[[bytes], bool]) -> None:
    """Refuse what `replace` must not take the place of: anything but a file whose first 64 bytes are ours, or empty.

    Raises: OSError.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        directory = os.path.dirname(path) or "."
        if not os.path.isdir(directory):
            raise
        if not os.access(directory, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, os.strerror(errno.EACCES), path) from None
        return
    if not stat.S_ISREG(found.st_mode):
        kind = "directory" if stat.S_ISDIR(found.st_mode) else "link" if stat.S_ISLNK(found.st_mode) else "device"
        raise OSError(errno.EEXIST, f"a {kind} is there, which is not replaced; name a file", path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        beginning = os.read(descriptor, 64)
    finally:
        os.close(descriptor)
    if beginning and not is_ours(beginning):
        raise OSError(errno.EEXIST, "a file of another kind is there, which is not replaced; name another one", path)


def replace(path: str, content: bytes) -> Identity | None:
    """Put a new file in place of the one at `path`, whole: readers see the old one or the new one.

    Raises: OSError, and nothing has changed then.
    """
    fresh = f"{path}.{os.urandom(6).hex()}"  # that no link can be planted for
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, MODE)
    try:
        try:
            while content:
                content = content[os.write(descriptor, content) :]
        finally:
            os.close(descriptor)
        identity = identify(fresh)
        os.replace(fresh, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh)
        raise
    return identity
