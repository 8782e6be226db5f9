"""What the sessions of a program share, made from its configuration.

In      a configuration; a pool, an update thread, an event loop
Out     `SessionContext`, the parameters of a conversation, the pads of --QPP
Knows   which option becomes which parameter. Not: lifetimes
"""

from kcptun_lite.app import memory
from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.core.batch.pool import BufferPool
from kcptun_lite.core.crypt.crypt import derive_key
from kcptun_lite.core.crypt.qpp import QppPads
from kcptun_lite.core.kcp.kcp import RCV_WND_START, KcpParams
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.wire import FEC_DEFAULT_SHARDS
from kcptun_lite.net.ends.context import SessionContext
from kcptun_lite.net.ends.failed_packets import FailedPackets
from kcptun_lite.net.ends.path_sizes import PathSizes
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.update_thread import UpdateThread


def make_context(
    config: ClientConfig | ServerConfig, pool: BufferPool, ticker: UpdateThread, loop: EventLoop
) -> SessionContext:
    """What the sessions of a program share, from its configuration."""
    return SessionContext(
        _params(config),
        config.crypt,
        derive_key(config.key),
        pool,
        ticker,
        loop,
        config.ratelimit,
        failed_packets=FailedPackets(),
        path_sizes=PathSizes(),
    )


def make_pads(config: ClientConfig | ServerConfig) -> QppPads | None:
    """The pads of --QPP, None without it."""
    return QppPads(config.key, config.qppcount) if config.qpp else None


def _params(config: ClientConfig | ServerConfig) -> ConversationParams:
    window = memory.auto_window(config)
    data, parity = FEC_DEFAULT_SHARDS
    return ConversationParams(
        KcpParams(
            nodelay=config.nodelay,
            interval=config.interval,
            resend=config.resend,
            nc=config.nc,
            snd_wnd=config.sndwnd or window,
            rcv_wnd=config.rcvwnd or RCV_WND_START,
            rcv_wnd_max=config.rcvwnd or window,
            follows_line=config.sndwnd is None,
            mtu=config.mtu,
            acknodelay=config.acknodelay,
        ),
        data_shards=data if config.datashard is None else config.datashard,
        parity_shards=parity if config.parityshard is None else config.parityshard,
        has_own_shards=config.datashard is not None,
        compress=not config.nocomp,
        smux_version=config.smuxver or 1,
        max_frame=config.framesize,
        smux_buffer=config.smuxbuf,
        stream_buffer=config.streambuf,
        keepalive=config.keepalive * 1000,
        max_streams=config.maxstreams,
        adapts=isinstance(config, ServerConfig) and not config.strict,
    )
