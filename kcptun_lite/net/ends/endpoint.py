"""A UDP socket at work: what all sessions of a program share, and the thread that receives for them.

In      packets of a UDP socket
Out     the same packets, opened, a batch at a time
Knows   encryption, threads, what sessions are made of. Not: streams, options
Cost    one thread per socket
"""

import os
from collections.abc import Callable
from threading import Thread
from time import sleep
from typing import NamedTuple

from kcptun_lite import log
from kcptun_lite.core.batch.buffers import Address, BufferPool, PacketBatch, borrow_batch
from kcptun_lite.core.budget import SESSION_COST, Share
from kcptun_lite.core.conversation import Conversation, ConversationParams
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import PacketCrypt, make_crypt
from kcptun_lite.core.kcp.pacing import COALESCING_REST, Coalescer
from kcptun_lite.errors import SessionError, TransportError
from kcptun_lite.net.ends.failed_packets import FailedPackets, FailedPacketSampler
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import UpdateThread, monotonic_ms
from kcptun_lite.net.udp.udp_socket import UdpSocket


class SessionContext(NamedTuple):
    """What all sessions of a program share."""

    params: ConversationParams
    crypt: str
    key: bytes
    "derived, 32 bytes"
    pool: BufferPool
    ticker: UpdateThread
    rate: int
    "bytes a second that each session may send; 0: no limit"
    failed_packets: FailedPackets

    def make_crypt(self) -> PacketCrypt:
        return make_crypt(self.crypt, self.key, os.urandom, self.pool)

    def make_session(
        self,
        conv: int,
        params: ConversationParams,
        udp: UdpSocket,
        remote: Address,
        *,
        is_client: bool,
        now: int,
        on_stream: Callable[[Session, Stream], None],
        on_trouble: Callable[[Session], None],
        on_closed: Callable[[Session, SessionError], None],
    ) -> Session:
        """One end of a conversation, not started yet; a client's has `udp` for itself."""
        counters = Counters(active_opens=1) if is_client else Counters(passive_opens=1)
        crypt = self.make_crypt()
        conversation = Conversation(
            conv,
            params,
            counters,
            is_client=is_client,
            headroom=crypt.headroom,
            tailroom=crypt.tailroom,
            now=now,
            share=Share(self.pool.budget, SESSION_COST),
        )
        return Session(
            conversation,
            crypt,
            udp,
            remote,
            pool=self.pool,
            ticker=self.ticker,
            counters=counters,
            rate=self.rate,
            is_validated=is_client,
            owns_socket=is_client,
            on_stream=on_stream,
            on_trouble=on_trouble,
            on_closed=on_closed,
        )


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
