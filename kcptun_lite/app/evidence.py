"""What a session shows of the other end, put together for the diagnosis.

In      a session of the client, why it was closed
Out     `Evidence`
Knows   where each fact is kept. Not: what it means (app/diagnosis)
"""

from kcptun_lite.app.diagnosis import REFUSED, RESET, Evidence
from kcptun_lite.errors import RemoteProtocolError, SessionError
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.udp.address import format_address


def gather(session: Session, crypt: str, now: int, reason: SessionError | None = None) -> Evidence:
    """What is known of a session; `reason` is why it was closed, if it was."""
    counters = session.counters
    kcp, guess = session.conversation.kcp, session.conversation.guess
    cause = reason.__cause__ if reason else None
    return Evidence(
        format_address(session.remote),
        crypt,
        now - session.opened_at,
        received=counters.in_packets + counters.in_checksum_errors + counters.kcp_in_errors,
        decrypted=max(0, counters.in_packets - counters.kcp_in_errors),  # --crypt null has no other check
        acknowledged=kcp.progress()[0] > 0,
        understood=counters.bytes_received > 0,
        silence=0 if kcp.unanswered_since is None else now - kcp.unanswered_since,
        error=_text(session.send_error),
        restarted=guess.is_refuted and reason is not None if guess else kcp.has_peer_restarted(now),
        failure=str(cause) if isinstance(cause, RemoteProtocolError) else "",
        cut_streams=session.cut_streams,
        delivered=session.has_delivered,
        transport=session.transport,
        is_answered=session.is_way_answered,
    )


def _text(error: OSError | None) -> str:
    if error is None:
        return ""
    if isinstance(error, ConnectionResetError):
        return RESET
    return REFUSED if isinstance(error, ConnectionRefusedError) else error.strerror or repr(error)
