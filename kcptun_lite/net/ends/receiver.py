"""The thread that receives for one UDP socket.

In      packets of a UDP socket
Out     the same packets, opened, a batch at a time
Knows   encryption, threads. Not: sessions
Cost    one thread per socket
"""

from collections.abc import Callable
from threading import Thread
from time import sleep

from kcptun_lite import log
from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import borrow_batch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.pacing import COALESCING_REST, Coalescer
from kcptun_lite.errors import TransportError
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.failed_packets import FailedPacketSampler
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.udp_socket import UdpSocket


class ReceiverThread(Thread):
    """Receives batches of packets, opens them, and hands them on until the socket is closed."""

    def __init__(
        self,
        udp: UdpSocket,
        context: SessionContext,
        counters: Counters,
        deliver: Callable[[PacketBatch, int], None],
        receive: Callable[[PacketBatch], int] | None = None,
    ) -> None:
        """`receive`: if others than `udp` receive as well."""
        super().__init__(name=f"rx-{udp.address[1]}")
        self._receive = receive or udp.receive
        self._crypt = context.make_crypt()
        self._pool = context.pool
        self._counters = counters
        self._deliver = deliver
        self._sampler = FailedPacketSampler(context.failed_packets, counters, udp)
        self._coalescer = Coalescer()

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
                    if self._coalescer.wants_rest(received, now):
                        sleep(COALESCING_REST / 1000)
