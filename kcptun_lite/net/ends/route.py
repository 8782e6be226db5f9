"""The client's way to its servers: which one next, at which address and port.

In      the servers of --remoteaddr, what became of earlier tries
Out     a fresh socket and an address to send to
Knows   names, port ranges, who has failed lately. Not: sessions
Cost    a thread for the time a name is being resolved, so that a dead resolver holds nobody up
"""

import os
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import NamedTuple

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket

BENCH_TIME = 60_000  # ms that a server which did not answer is passed over, if there is another one
RESOLVE_PATIENCE = 15.0  # s for a name to be resolved
RESOLVE_LOOK = 0.1  # s between looks whether the program stops

Dialed = tuple[UdpSocket, list[Address]]


class Server(NamedTuple):
    """One entry of --remoteaddr."""

    host: str
    port_min: int
    port_max: int


class Route:
    """Gives out sockets to the servers in turn; thread-safe.

    The server used last is used again until it is reported as failed. Each socket goes to a random port of
    its server's range, and to the next address of its name (all generations use the first one only).
    """

    def __init__(self, servers: list[Server], options: UdpOptions, stop: Event) -> None:
        self._servers = servers
        self._options = options
        self._stop = stop
        self._lock = Lock()
        self._current = 0
        self._benched_until = [0] * len(servers)
        self._tries = [0] * len(servers)
        "failures of each server so far: the next try takes its next address"
        self._given: set[Address] = set()
        "what the current server's sockets were given out for, since its turn came"

    def open(self) -> tuple[UdpSocket, Address]:
        """A new socket and the address to use it for. Raises: TransportError."""
        with self._lock:
            index = self._current
            server = self._servers[index]
            tries = self._tries[index]
        ports = server.port_max - server.port_min + 1
        port = server.port_min + int.from_bytes(os.urandom(4), "big") % ports
        try:
            udp, addresses = self._dial(server.host, port)
        except TransportError:
            with self._lock:
                self._bench_locked(index)
            raise
        address = addresses[tries % len(addresses)]
        with self._lock:
            if index == self._current and tries == self._tries[index]:  # nobody has reported it meanwhile
                self._given.add(address)
        return udp, address

    def failed(self, remote: Address) -> None:
        """There is no answer from `remote`: bench its server, and go on with the one benched longest ago or never.

        Of several sessions that have lost the same server, only the first one brings the next one's turn.
        """
        with self._lock:
            if remote in self._given:
                self._bench_locked(self._current)

    def _bench_locked(self, index: int) -> None:
        now = monotonic_ms()
        self._given.clear()
        self._tries[index] += 1
        self._benched_until[index] = now + BENCH_TIME
        order = [(index + step) % len(self._servers) for step in range(1, len(self._servers) + 1)]
        self._current = min(order, key=lambda index: max(self._benched_until[index] - now, 0))

    def _dial(self, host: str, port: int) -> Dialed:
        """`UdpSocket.dial` in a thread of its own, which is left behind if the program stops meanwhile."""
        answers: SimpleQueue[Dialed | TransportError] = SimpleQueue()

        def dial() -> None:
            try:
                answers.put(UdpSocket.dial(host, port, self._options))
            except TransportError as exc:
                answers.put(exc)

        try:
            Thread(target=dial, name="resolve", daemon=True).start()
        except RuntimeError as exc:
            raise TransportError(f"no thread to resolve {host}: {exc}") from exc
        deadline = monotonic_ms() + RESOLVE_PATIENCE * 1000
        while monotonic_ms() < deadline and not self._stop.is_set():
            try:
                answer = answers.get(timeout=RESOLVE_LOOK)
            except Empty:
                continue
            if isinstance(answer, TransportError):
                raise answer
            return answer
        raise TransportError(f"cannot resolve {host}: the name server does not answer")
