"""What outlives each worker: the ports, and an inbox for everyone.

In      bound sockets, the number of workers
Out     descriptors for each worker; the same in a process that is executed anew
Knows   which sockets there are. Not: who has them
Cost    two descriptors for each of twice as many workers as there are
"""

import socket
from typing import Self, TypedDict

from kcptun_lite.net.udp.shared_port import Port, SharedPorts
from kcptun_lite.net.udp.sockopt import SO_SNDBUFFORCE, try_option

INBOX_BYTES = 1 << 20  # that wait for a worker, as far as the system allows; then packets are lost


class Numbers(TypedDict):
    """The descriptors."""

    ports: list[int]
    workers: int
    is_steered: bool
    inboxes: list[tuple[int, int]]


class Holdings:
    """The descriptors that a parent keeps open."""

    def __init__(self, ports: SharedPorts, workers: int, inboxes: list[tuple[int, int]]) -> None:
        self._ports, self._workers = ports, workers
        self.inboxes = inboxes
        "slot -> where its worker reads, where all others write"

    @classmethod
    def make(cls, ports: SharedPorts, workers: int) -> Self:
        """Inboxes for old and new workers, who are both there for a while after a reload. Raises: OSError."""
        inboxes = []
        for _ in range(2 * workers):
            inbox, outbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for end in inbox, outbox:
                end.setblocking(False)
            if try_option(outbox, socket.SOL_SOCKET, SO_SNDBUFFORCE, INBOX_BYTES):
                try_option(outbox, socket.SOL_SOCKET, socket.SO_SNDBUF, INBOX_BYTES)
            inboxes.append((inbox.detach(), outbox.detach()))
        return cls(ports, workers, inboxes)

    @classmethod
    def restore(cls, numbers: Numbers) -> Self:
        """What `numbers` has told before this process was executed anew."""
        sockets = [socket.socket(fileno=number) for number in numbers["ports"]]
        ports = SharedPorts(sockets, numbers["workers"], is_steered=numbers["is_steered"])
        return cls(ports, numbers["workers"], numbers["inboxes"])

    @property
    def numbers(self) -> Numbers:
        return {
            "ports": [one.fileno() for one in self._ports.sockets],
            "workers": self._workers,
            "is_steered": self.is_steered,
            "inboxes": self.inboxes,
        }

    @property
    def is_steered(self) -> bool:
        return self._ports.is_steered

    def ports_of(self, index: int) -> list[Port]:
        return self._ports.of_worker(index)
