"""What receives for one UDP socket, in the network's thread.

In      packets of a UDP socket
Out     the same packets, opened, a batch at a time
Knows   encryption. Not: sessions
Cost    a batch's buffer while it is dealt with
"""

from collections.abc import Callable
from time import sleep

from kcptun_lite import log
from kcptun_lite.core.batch.packets import PacketBatch
from kcptun_lite.core.batch.pool import borrow_batch
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.kcp.pacing import COALESCING_REST, Coalescer
from kcptun_lite.errors import TransportError
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.failed_packets import FailedPacketSampler
from kcptun_lite.net.packet_socket import PacketSocket
from kcptun_lite.net.session.update_thread import monotonic_ms


class Receiver:
    """Receives batches of packets, opens them, and hands them on; `receive_ready` is what the event loop calls."""

    def __init__(
        self,
        udp: PacketSocket,
        context: SessionContext,
        counters: Counters,
        on_batch: Callable[[PacketBatch, int], None],
        receive: Callable[[PacketBatch], int],
    ) -> None:
        """`receive` puts what has come into a batch, without waiting."""
        self._receive = receive
        self._crypt = context.make_crypt()
        self._pool = context.pool
        self._counters = counters
        self._on_batch = on_batch
        self._sampler = FailedPacketSampler(context.failed_packets, counters, udp)
        self._coalescer = Coalescer()

    def receive_ready(self) -> None:
        """Take what has come, as much as a batch holds."""
        with borrow_batch(self._pool) as batch:
            try:
                received = self._receive(batch)
            except TransportError:
                return  # closed
            if not received:
                return
            size = batch.end
            now = monotonic_ms()
            self._sampler.before(batch, now)
            failed_before = self._counters.in_checksum_errors
            try:
                self._crypt.open(batch, self._counters)
                if self._counters.in_checksum_errors != failed_before:
                    self._sampler.after(batch, now)
                self._on_batch(batch, now)
            except Exception as exc:  # a bug must not stop the tunnel
                log.limited("rx", f"receiver: {exc!r}", log.Level.ERROR)
        if self._coalescer.wants_rest(received, size, now):
            sleep(COALESCING_REST / 1000)
