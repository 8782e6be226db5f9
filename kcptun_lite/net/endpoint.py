"""A UDP socket at work: what all sessions of a program share, and the thread that receives for them.

In      packets of a UDP socket
Out     the same packets, opened, a tray at a time
Knows   encryption, threads. Not: sessions, streams, options
Cost    one thread per socket
"""

import os
from collections.abc import Callable
from threading import Thread
from typing import NamedTuple

from kcptun_lite import log
from kcptun_lite.core.buffers import BufferPool, PacketBatch, borrow_batch
from kcptun_lite.core.conversation import ConversationParams
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt import PacketCrypt, make_crypt
from kcptun_lite.errors import TransportError
from kcptun_lite.net.suspects import Sampler, Suspects
from kcptun_lite.net.ticker import UpdateThread, monotonic_ms
from kcptun_lite.net.udp import UdpSocket


class Plant(NamedTuple):
    """What all sessions of a program share."""

    params: ConversationParams
    crypt: str
    key: bytes
    "derived, 32 bytes"
    pool: BufferPool
    ticker: UpdateThread
    rate: int
    "bytes a second that each session may send; 0: no limit"
    suspects: Suspects

    def make_crypt(self) -> PacketCrypt:
        return make_crypt(self.crypt, self.key, os.urandom, self.pool)


class ReceiverThread(Thread):
    """Receives trays of packets, opens them, and hands them on until the socket is closed."""

    def __init__(
        self,
        udp: UdpSocket,
        plant: Plant,
        counters: Counters,
        deliver: Callable[[PacketBatch, int], None],
        receive: Callable[[PacketBatch], int] | None = None,
    ) -> None:
        """`receive`: if others than `udp` receive as well."""
        super().__init__(name=f"rx-{udp.address[1]}")
        self._receive = receive or udp.receive
        self._crypt = plant.make_crypt()
        self._pool = plant.pool
        self._counters = counters
        self._deliver = deliver
        self._sampler = Sampler(plant.suspects, counters, udp)

    def run(self) -> None:
        with borrow_batch(self._pool) as batch:
            while True:
                try:
                    received = self._receive(batch)
                except TransportError:
                    return  # closed
                if received:
                    now = monotonic_ms()
                    self._sampler.before(batch, now)
                    failed_before = self._counters.in_checksum_errors
                    try:
                        self._crypt.open(batch, self._counters)
                        if self._counters.in_checksum_errors != failed_before:
                            self._sampler.after(batch, now)
                        self._deliver(batch, now)
                    except Exception as exc:  # a bug must not stop the tunnel
                        log.limited("rx", f"receiver: {exc!r}", log.Level.ERROR)
                    batch.clear()
