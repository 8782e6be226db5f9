"""What the programs carry: targets, connections to a tunnel, and checked data both ways.

In      an address
Out     bytes that are checked, or an AssertionError
Knows   TCP. Not: the programs, the wire

Payload goes through `Target` and `exchange`: the client's header says how much each side sends and from
which seed, so both directions carry different data. Everything ends by length, because the real program
cuts both directions at the first end of file (docs/protocol.md, "Half-close").
"""

import hashlib
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from random import Random
from types import TracebackType

from tests.programs import Tunnel, wait_until

STALL_TIMEOUT = (
    9.0  # s without a byte after which a transfer has failed: less than keep-alive, which hides lost wake-ups
)
TARGET_TIMEOUT = 60.0  # s after which a target's thread gives up, so that none is left for ever
CHUNK = 256 * 1024  # bytes per send and receive call

_ORDER = struct.Struct("<QQQQB")  # bytes up, seed up, bytes down, seed down, compressible
_DIGEST_SIZE = 32  # bytes; SHA-256


def payload(size: int, seed: int, *, compressible: bool = False) -> bytes:
    """`size` bytes that depend on the seed: noise, or log-like lines that snappy halves several times."""
    random = Random(seed)
    if not compressible:
        return random.randbytes(size)
    lines = [b"%016x connection closed after %d bytes\n" % (random.getrandbits(64), size) * 8 for _ in range(200)]
    text = b"".join(lines)
    return (text * (size // len(text) + 1))[:size]


def connect(address: str, timeout: float = STALL_TIMEOUT) -> socket.socket:
    """A TCP connection to "host:port", "[v6]:port" or the path of a unix socket."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(timeout)
        try:
            sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock
    return socket.create_connection((host.strip("[]"), int(port)), timeout)


def can_connect(address: str) -> bool:
    """Whether somebody listens; a unix socket is there a moment before."""
    try:
        connect(address).close()
    except OSError:
        return False
    return True


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """`size` bytes. Raises ConnectionError if the stream ends before, TimeoutError if it stalls."""
    received = bytearray(size)
    view, at = memoryview(received), 0
    while at < size:
        count = sock.recv_into(view[at:], min(CHUNK, size - at))
        if not count:
            raise ConnectionError(f"the stream ended after {at} of {size} bytes")
        at += count
    return bytes(received)


def exchange(
    sock: socket.socket,
    *,
    up: int,
    down: int,
    seed: int,
    compressible: bool = False,
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Move `up` and `down` bytes at the same time to and from an `exchange_handler`, check both, close `sock`.

    `progress` is called with the number of bytes received or sent by each call.
    Raises AssertionError if any byte arrived wrong, OSError if the connection broke or stalled.
    """
    data = payload(up, seed, compressible=compressible)
    failures: list[OSError] = []

    def send() -> None:
        try:
            for at in range(0, up, CHUNK):
                sock.sendall(data[at : at + CHUNK])
                progress(min(CHUNK, up - at))
        except OSError as exc:
            failures.append(exc)

    with sock:
        sock.sendall(_ORDER.pack(up, seed, down, seed + 1, compressible))
        sender = threading.Thread(target=send, name="exchange-send")
        sender.start()
        try:
            digest = hashlib.sha256()
            left = down
            while left:
                piece = sock.recv(min(CHUNK, left))
                if not piece:
                    raise ConnectionError(f"the stream ended {left} of {down} bytes too early")
                digest.update(piece)
                left -= len(piece)
                progress(len(piece))
            echo = receive_exactly(sock, _DIGEST_SIZE)
        except BaseException:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)  # wakes the sender
            raise
        finally:
            sender.join()
    if failures:
        raise failures[0]
    expected = hashlib.sha256(payload(down, seed + 1, compressible=compressible)).digest()
    assert digest.digest() == expected, "downward data arrived wrong"
    assert echo == hashlib.sha256(data).digest(), "upward data arrived wrong"


def exchange_across_outage(tunnel: Tunnel, seconds: float) -> None:
    """An exchange of 4 MiB each way, the link interrupted in the midst of it. Raises as `exchange` does."""
    moved = 0

    def count(size: int) -> None:
        nonlocal moved
        moved += size

    with ThreadPoolExecutor(1) as pool:
        sock = connect(tunnel.address, timeout=seconds + 3 * STALL_TIMEOUT)
        running = pool.submit(exchange, sock, up=4 << 20, down=4 << 20, seed=1, progress=count)
        wait_until(lambda: moved > 4 << 20, "half of the data on its way")
        tunnel.interrupt_link(seconds)
        running.result()


def exchange_handler(sock: socket.socket) -> None:
    """The other side of `exchange`: sends what it is asked for, then the SHA-256 of what it got; waits for the end."""
    up, _, down, seed, compressible = _ORDER.unpack(receive_exactly(sock, _ORDER.size))
    sender = threading.Thread(target=_send_all, args=(sock, payload(down, seed, compressible=bool(compressible))))
    sender.start()
    digest = hashlib.sha256(receive_exactly(sock, up)).digest()
    sender.join()
    sock.sendall(digest)
    sock.recv(1)


def echo_handler(sock: socket.socket) -> None:
    """Sends back what comes until the end."""
    while data := sock.recv(CHUNK):
        sock.sendall(data)


def digest_handler(sock: socket.socket) -> None:
    """Reads to the end of file, only then answers: length (8 bytes), SHA-256 and the data itself, and ends."""
    received = b"".join(iter(lambda: sock.recv(CHUNK), b""))
    sock.sendall(struct.pack("<Q", len(received)) + hashlib.sha256(received).digest() + received)


def _send_all(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # the reading half of the connection reports it
        sock.sendall(data)


class Target:
    """A TCP or unix server with a thread for each connection, as the place a tunnel leads to."""

    def __init__(self, handler: Callable[[socket.socket], None], address: str = "127.0.0.1:0") -> None:
        """`address` is "host:0", "[v6]:0" or the path of a unix socket."""
        self._handler = handler
        host, _, port = address.rpartition(":")
        if port.isdigit():
            family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
            self._listener = socket.create_server((host.strip("[]"), int(port)), family=family, backlog=1024)
            self.address = f"{host}:{self._listener.getsockname()[1]}"
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(address)
            self._listener.listen(1024)
            self.address = address
        self.connections = 0
        "accepted so far"
        self._open: set[socket.socket] = set()
        self._thread = threading.Thread(target=self._accept, name="target", daemon=True)

    def __enter__(self) -> "Target":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread out of accept
        self._thread.join()
        self._listener.close()
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            sock.settimeout(TARGET_TIMEOUT)
            threading.Thread(target=self._serve, args=(sock,), name="target-connection", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        self._open.add(sock)
        with suppress(OSError), sock:  # cut off: the other side of the tunnel judges
            self._handler(sock)
        self._open.discard(sock)
