"""Socket options that the socket module leaves to its callers to lay out.

In      a socket, a time
Out     nothing
Knows   the layouts of struct timeval
"""

import socket
import struct


def set_timeout(sock: socket.socket, option: int, timeout_ms: int) -> None:
    """SO_RCVTIMEO or SO_SNDTIMEO; unlike `settimeout` they add no poll to each call. Raises: OSError."""
    # 32-bit systems have timeval in 8 or in 16 bytes, depending on the C library; the kernel tells.
    layout = "=qq" if len(sock.getsockopt(socket.SOL_SOCKET, option, 16)) == 16 else "=ii"
    seconds, ms = divmod(timeout_ms, 1000)
    sock.setsockopt(socket.SOL_SOCKET, option, struct.pack(layout, seconds, ms * 1000))
