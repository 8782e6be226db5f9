"""How large packets may be on the way to a host, where larger ones were lost.

In      what was too large
Out     the size to send
Knows   sizes, for how long they are believed. Not: how it is noticed (core/kcp/send_window), the end's own --mtu
Cost    0.2 us for a session; nothing where nothing was lost
"""

from threading import Lock

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.address import format_host

SIZES = (1200, 1000, 800, 548)  # bytes of UDP payload; the last one passes everywhere (RFC 791: 576 with the headers)
BELIEVED_FOR = 3_600_000  # ms; the path may have become another one
HOSTS = 256  # remembered, the latest ones


class PathSizes:
    """What passes on the way to each host; thread-safe."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, int]] = {}
        "host -> bytes, and when that was found"
        self._lock = Lock()

    def mtu(self, remote: Address, wanted: int) -> int:
        """The largest packet to send, in bytes, of those up to `wanted`."""
        with self._lock:
            size, at = self._found.get(format_host(remote), (wanted, 0)) if self._found else (wanted, 0)
        return min(size, wanted) if monotonic_ms() - at < BELIEVED_FOR else wanted

    def was_too_large(self, remote: Address, size: int) -> None:
        """Packets of `size` bytes are lost on the way there, smaller ones are not."""
        smaller = next((one for one in SIZES if one < size), size)
        host = format_host(remote)
        with self._lock:
            self._found.pop(host, None)
            self._found[host] = smaller, monotonic_ms()
            while len(self._found) > HOSTS:
                del self._found[next(iter(self._found))]
