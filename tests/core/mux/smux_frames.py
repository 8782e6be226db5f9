"""Smux sessions and their frames, put together and taken apart by hand.

In      a role, a version, settings; commands, sids, payloads
Out     sessions that nobody has spoken to, bytes to feed them, the frames they send
Knows   the layout of a frame. Not: streams and what is due when
"""

import struct

from kcptun_lite.core.mux.smux import SmuxSession

Frame = tuple[int, int, bytes]  # command, sid, payload


def make(is_client: bool = True, version: int = 1, **changes: int) -> SmuxSession:
    options = {
        "max_frame": 4096,
        "receive_buffer": 4_194_304,
        "stream_buffer": 16_384,
        "keepalive_ms": 10_000,
        "keepalive_timeout_ms": 30_000,
        "now": 0,
    }
    return SmuxSession(is_client=is_client, version=version, **(options | changes))


def frame(command: int, sid: int, payload: bytes = b"", version: int = 1) -> bytes:
    return struct.pack("<BBHI", version, command, len(payload), sid) + payload


def parse(stream: bytes) -> list[Frame]:
    frames = []
    while stream:
        _, command, length, sid = struct.unpack_from("<BBHI", stream)
        assert len(stream) >= 8 + length
        frames.append((command, sid, stream[8 : 8 + length]))
        stream = stream[8 + length :]
    return frames


def sent_bytes(session: SmuxSession) -> bytes:
    return b"".join(session.frames_to_send())


def sent(session: SmuxSession) -> list[Frame]:
    return parse(sent_bytes(session))


def take_all(session: SmuxSession, sid: int) -> bytes:
    return b"".join(session.take(sid, 1 << 30))
