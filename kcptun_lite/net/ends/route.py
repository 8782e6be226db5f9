"""The client's way to its servers: which one next, at which address and port.

In      the servers of --remoteaddr, what became of earlier tries
Out     a fresh socket and an address to send to
Knows   names and what they meant last, port ranges, who has failed lately. Not: sessions
Cost    a thread for the time a name is being resolved, so that a dead resolver holds nobody up
"""

import os
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from typing import NamedTuple

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError
from kcptun_lite.net.packet_socket import DialedSocket
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.address import format_host
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket

BENCH_TIME = 60_000  # ms that a server which did not answer is passed over, if there is another one
WAY_TIME = 2500  # ms that a server is given to answer the second way, whatever else is said of it
RESOLVE_PATIENCE = 15.0  # s for a name to be resolved
RESOLVE_QUICKLY = 1.0  # s; if there are addresses from an earlier time
RESOLVE_LOOK = 0.1  # s between looks whether the program stops

Dialed = tuple[DialedSocket, list[Address]]
Dial = Callable[[str, int, UdpOptions], Dialed]
"`UdpSocket.dial`, or another one with its face"


class Server(NamedTuple):
    """One entry of --remoteaddr."""

    host: str
    port_min: int
    port_max: int
    weight: int = 0
    "its part of the sessions, if all servers are used at the same time; 0: one server is, until it fails"


class Route:
    """Gives out sockets to the servers; thread-safe.

    The server used last is used again until it is reported as failed, or sessions are dealt out by weights to those
    that have not failed lately. Each socket goes to the port that is asked for or else to a random one of its server's
    range, and to the next address of its name (all generations use the first one only).
    """

    def __init__(self, servers: list[Server], options: UdpOptions, stop: Event, ways: Sequence[Dial] = ()) -> None:
        """`ways`: what makes sockets, in the order of preference, if it is not `UdpSocket.dial` alone."""
        self._servers = servers
        self._options = options
        self._stop = stop
        self._ways = tuple(ways) or (UdpSocket.dial,)
        self._way = 0
        self._way_since = 0
        "ms; when the way was left that comes before"
        self._lock = Lock()
        self._current = 0
        self._benched_until = [0] * len(servers)
        self._tries = [0] * len(servers)
        "failures of each server so far: the next try takes its next address"
        self._given: dict[Address, int] = {}
        "what sockets were given out for, and of which server that is, until it is reported as failed"
        self._credits = [0] * len(servers)
        "of weighted servers: who has most is next"
        if turns := sum(server.weight for server in servers):
            # Each client begins elsewhere in the round, so that those with one session are dealt out as well.
            for _ in range(int.from_bytes(os.urandom(4), "big") % turns):
                self._deal_locked()
        self._known: dict[str, list[str]] = {}
        "host -> its addresses, when they were known last"
        self._pending: set[str] = set()
        "hosts that are being resolved"

    def open(self, wanted_port: int | None = None, beside: Address | None = None) -> tuple[DialedSocket, Address]:
        """A new socket and the address to use it for, at `wanted_port` if its server has it. Raises: TransportError.

        `beside`: where the session is reached for which it is; its server is kept until that has failed.
        """
        with self._lock:
            index = self._current if not self._servers[0].weight else self._given.get(beside) if beside else None
            index = self._deal_locked() if index is None else index
            server = self._servers[index]
            tries = self._tries[index]
        ports = range(server.port_min, server.port_max + 1)
        port = ports[int.from_bytes(os.urandom(4), "big") % len(ports)]
        if wanted_port is not None and wanted_port in ports:
            port = wanted_port
        try:
            udp, addresses = self._dial(server.host, port, tries)
        except TransportError:
            with self._lock:
                self._bench_locked(index)
            raise
        address = addresses[tries % len(addresses)]
        with self._lock:
            if tries == self._tries[index]:  # nobody has reported it meanwhile
                self._given[address] = index
        return udp, address

    def open_again(self, remote: Address) -> tuple[DialedSocket, Address]:
        """One more socket to where one was opened before. Raises: TransportError."""
        udp, (address, *_) = self._ways[self._way](_text(remote), remote[1], self._options)
        with self._lock:
            if remote in self._given:
                self._given[address] = self._given[remote]
        return udp, address

    def failed(self, remote: Address) -> None:
        """There is no answer from `remote`: try its server the next way, if there is one that has not been tried.

        Else bench its server, and go on with the one benched longest ago or never.
        Of several sessions that have lost the same server, only the first one brings the next one's turn.
        """
        with self._lock:
            now = monotonic_ms()
            if remote not in self._given or (self._way and now - self._way_since < WAY_TIME):
                return
            if self._way + 1 < len(self._ways):
                self._way, self._way_since = self._way + 1, now
                return
            self._way = 0
            self._bench_locked(self._given[remote])

    def refused(self, remote: Address) -> None:
        """The server at `remote` has no room for a session: it is the next one's turn."""
        with self._lock:
            if remote in self._given:
                self._bench_locked(self._given[remote])

    def prefer_first_way(self) -> None:
        """What did not get through may now: the network has changed."""
        with self._lock:
            self._way = 0

    def open_first_way(self, remote: Address) -> tuple[DialedSocket, Address]:
        """A socket of the first way to where another one leads. Raises: TransportError."""
        udp, (address, *_) = self._ways[0](_text(remote), remote[1], self._options)
        return udp, address

    def _bench_locked(self, index: int) -> None:
        now = monotonic_ms()
        self._given = {address: other for address, other in self._given.items() if other != index}
        self._tries[index] += 1
        self._credits = [0] * len(self._servers)
        self._benched_until[index] = now + BENCH_TIME
        order = [(index + step) % len(self._servers) for step in range(1, len(self._servers) + 1)]
        self._current = min(order, key=lambda index: max(self._benched_until[index] - now, 0))

    def _deal_locked(self) -> int:
        """The next server by weights, evenly mixed: each gets its weight, who has most pays for all (as nginx does)."""
        now = monotonic_ms()
        fit = [index for index, until in enumerate(self._benched_until) if until <= now]
        fit = fit or [min(range(len(self._servers)), key=self._benched_until.__getitem__)]
        for index in fit:
            self._credits[index] += self._servers[index].weight
        chosen = max(fit, key=self._credits.__getitem__)
        self._credits[chosen] -= sum(self._servers[index].weight for index in fit)
        return chosen

    def _dial(self, host: str, port: int, tries: int) -> Dialed:
        """A socket, and the addresses of a host: those of now, or the last good ones if its name cannot be resolved.

        DNS may be dead with the line, or go through this very tunnel; who knows a way waits for it no longer than
        RESOLVE_QUICKLY.
        """
        with self._lock:
            known = self._known.get(host)
            is_pending = host in self._pending
        try:
            if known and is_pending:
                raise TransportError(f"{host} is being resolved")
            return self._look_up(host, port, RESOLVE_QUICKLY if known else RESOLVE_PATIENCE)
        except TransportError:
            if not known or self._stop.is_set():
                raise
        return self._ways[self._way](known[tries % len(known)], port, self._options)

    def _look_up(self, host: str, port: int, patience_s: float) -> Dialed:
        """Make a socket in a thread of its own, which is left behind if the program stops, or has waited enough."""
        answers: SimpleQueue[Dialed | TransportError] = SimpleQueue()
        is_waited_for = Event()
        is_waited_for.set()

        def dial() -> None:
            try:
                udp, addresses = self._ways[self._way](host, port, self._options)
                with self._lock:
                    self._known[host] = [_text(address) for address in addresses]
                answers.put((udp, addresses))
                if not is_waited_for.is_set():
                    udp.close()
            except TransportError as exc:
                answers.put(exc)
            finally:
                with self._lock:
                    self._pending.discard(host)

        with self._lock:
            self._pending.add(host)
        try:
            Thread(target=dial, name="resolve", daemon=True).start()
        except RuntimeError as exc:
            with self._lock:
                self._pending.discard(host)
            raise TransportError(f"no thread to resolve {host}: {exc}") from exc
        deadline = monotonic_ms() + patience_s * 1000
        while monotonic_ms() < deadline and not self._stop.is_set():
            try:
                answer = answers.get(timeout=RESOLVE_LOOK)
            except Empty:
                continue
            if isinstance(answer, TransportError):
                raise answer
            return answer
        is_waited_for.clear()
        raise TransportError(f"cannot resolve {host}: the name server does not answer")


def _text(address: Address) -> str:
    """An address as it can be dialled again."""
    host = format_host(address)
    return f"{host}%{address[3]}" if len(address) == 4 and address[3] else host
