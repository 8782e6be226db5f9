"""A UDP path from clients to one server that can be cut, and can give the clients other addresses.

In      a server's address
Out     an address for clients; what they have sent last
Knows   UDP. Not: the wire
"""

import selectors
import socket
import threading
from collections import deque
from contextlib import suppress


class Nat:
    """The path; `with` opens and closes it."""

    def __init__(self, server: str) -> None:
        host, _, port = server.rpartition(":")
        self._server = (host, int(port))
        self._inside = udp()
        self._outside: dict[tuple[str, int], socket.socket] = {}
        "client -> the socket that the server sees"
        self._lock = threading.Lock()
        self._over = threading.Event()
        self.is_cut = False
        self.recorded: deque[bytes] = deque(maxlen=200)
        "what the clients have sent last"
        self.first: dict[tuple[str, int], bytes] = {}
        "the first packet of each client"
        self.address = f"127.0.0.1:{self._inside.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._inside, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="nat")

    def __enter__(self) -> "Nat":
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()
        for sock in (self._inside, *self._outside.values()):
            sock.close()
        self._selector.close()

    def rebind(self) -> None:
        """All clients have other addresses from now on."""
        with self._lock:
            for client, old in list(self._outside.items()):
                self._selector.unregister(old)
                old.close()
                self._open(client)

    def _open(self, client: tuple[str, int]) -> socket.socket:
        sock = self._outside[client] = udp()
        self._selector.register(sock, selectors.EVENT_READ, client)
        return sock

    def _run(self) -> None:
        while not self._over.is_set():
            ready = self._selector.select(0.05)
            with self._lock:
                for key, _ in ready:
                    with suppress(OSError):  # rebound meanwhile
                        self._pass_on(key)

    def _pass_on(self, key: selectors.SelectorKey) -> None:
        sock: socket.socket = key.fileobj  # type: ignore[assignment]
        data, source = sock.recvfrom(2048)
        if self.is_cut:
            return
        if sock is not self._inside:
            self._inside.sendto(data, key.data)
            return
        self.first.setdefault(source, data)
        self.recorded.append(data)
        (self._outside.get(source) or self._open(source)).sendto(data, self._server)


def udp() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock
