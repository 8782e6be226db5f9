"""What all sessions of a program share, and how one is put together.

In      settings
Out     `SessionContext.make_session`
Knows   what sessions are made of. Not: who makes them
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.budget import SESSION_COST, Share
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import Counters
from kcptun_lite.core.crypt.crypt import PacketCrypt, make_crypt
from kcptun_lite.core.mux.dialect import Guess
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.errors import PathTooNarrow, SessionError
from kcptun_lite.net.ends.failed_packets import FailedPackets
from kcptun_lite.net.ends.path_sizes import PathSizes
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.packet_socket import PacketSocket
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.stream import Stream
from kcptun_lite.net.session.update_thread import UpdateThread


class SessionContext(NamedTuple):
    """What all sessions of a program share."""

    params: ConversationParams
    crypt: str
    key: bytes
    "derived, 32 bytes"
    pool: BufferPool
    ticker: UpdateThread
    loop: EventLoop
    rate: int
    "bytes a second that each session may send; 0: no limit"
    failed_packets: FailedPackets
    path_sizes: PathSizes

    def make_crypt(self) -> PacketCrypt:
        return make_crypt(self.crypt, self.key, os.urandom, self.pool)

    def make_session(
        self,
        conv: int,
        params: ConversationParams,
        udp: PacketSocket,
        remote: Address,
        *,
        is_client: bool,
        now: int,
        on_stream: Callable[[Session, Stream], None],
        on_trouble: Callable[[Session], None],
        on_closed: Callable[[Session, SessionError], None],
        on_verdict: Callable[[Session, Guess], bool] = lambda session, guess: False,
    ) -> Session:
        """One end of a conversation, not started yet; a client's has `udp` for itself."""
        params = params.within(min(self.path_sizes.mtu(remote, params.kcp.mtu), udp.room(remote)))

        def note_end(session: Session, reason: SessionError) -> None:
            if isinstance(reason, PathTooNarrow):
                self.path_sizes.was_too_large(session.remote, session.conversation.kcp.mtu)
            on_closed(session, reason)

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
            is_validated=is_client,
            ts_offset=int.from_bytes(os.urandom(4), "little"),
        )
        return Session(
            conversation,
            crypt,
            udp,
            remote,
            pool=self.pool,
            ticker=self.ticker,
            loop=self.loop,
            counters=counters,
            rate=self.rate,
            owns_socket=is_client,
            on_stream=on_stream,
            on_trouble=on_trouble,
            on_closed=note_end,
            on_verdict=on_verdict,
        )
