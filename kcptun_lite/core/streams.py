"""Between KCP's ordered bytes and the streams: smux frames, and snappy around them or not.

In      the peer's ordered bytes; frames that smux wants sent
Out     events; bytes for KCP
Knows   how a peer shows what it speaks, how a guess is taken back. Not: segments, the clock
Wire    docs/protocol.md, "snappy", "smux", "Finding out what a server speaks"
Cost    the sum of its layers
"""

from kcptun_lite.core.mux.dialect import Dialect, Guess
from kcptun_lite.core.mux.smux import Event, SmuxSession
from kcptun_lite.core.mux.snappy import SnappyDecoder, SnappyEncoder
from kcptun_lite.core.params import ConversationParams
from kcptun_lite.core.wire import SNAPPY_IDENTIFIER, Buffer

# The Go program gives a silent peer up after 30 to 60 s (docs/protocol.md, "Keep-alive"). We look for another way to it
# as soon as data goes unanswered, so we can afford to keep its streams through an outage of a minute.
KEEPALIVE_TIMEOUT = 75_000  # ms


class StreamLayer:
    """smux and snappy of one end: as it is set, or as the peer's first bytes have them (`params.adapts`)."""

    def __init__(self, params: ConversationParams, *, is_client: bool, now: int) -> None:
        self.smux: SmuxSession | None = None
        self.smux_version = 0
        "1 or 2; 0 until an adapting end has heard the peer's first bytes"
        self.is_compressed = params.compress
        self.guess = Guess() if params.is_guess else None
        "while nobody knows whether the peer understands us"
        self._params = params
        self._is_client = is_client
        self._encoder: SnappyEncoder | None = None
        self._decoder: SnappyDecoder | None = None
        self._is_chosen = not params.adapts
        if self._is_chosen:
            self._choose_compression(params.compress)
            self._choose_smux(params.smux_version, now)

    @property
    def held_bytes(self) -> int:
        """What was received and not taken, the start of a chunk, and what a guess keeps."""
        held = self._decoder.held_bytes if self._decoder else 0
        held += self.guess.held_bytes if self.guess else 0
        return held + (self.smux.held_bytes if self.smux else 0)

    @property
    def may_expand(self) -> bool:
        """Whether the peer's bytes are compressed, or may be."""
        return self._decoder is not None or not self._is_chosen

    def feed(self, data: Buffer, now: int) -> list[Event] | None:
        """Take ordered bytes in and give what they brought about; None if they only began a chunk.

        Raises: RemoteProtocolError.
        """
        if not self._is_chosen:
            # The identifier opens every compressed session, a frame's version byte every other one.
            self._is_chosen = True
            self._choose_compression(data[0] == SNAPPY_IDENTIFIER[0])
        if self._decoder:
            data = self._decoder.feed(data)
            if not data:
                return None
        if self.smux is None:
            self._choose_smux(data[0] if data[0] in (1, 2) else self._params.smux_version, now)
        assert self.smux is not None
        return self.smux.feed(data)

    def bytes_to_send(self) -> bytes:
        """All frames that smux wants sent, as KCP is to send them."""
        frames = self.smux.frames_to_send() if self.smux else []
        if frames and self.guess:
            self.guess.keep(frames)
        return self._encode(frames) if frames else b""

    def weigh_guess(self, now: int, is_acknowledged: bool, told: int, told_from_zero: int) -> bool:
        """Look at what the peer has shown (`Guess.weigh`); whether to ask it now."""
        if self.guess is None:
            return False
        is_understood = self.smux is not None and self.smux.frames_received > 0
        self.guess.weigh(now, is_understood, is_acknowledged, told, told_from_zero)
        if self.guess.is_confirmed:
            self.guess = None
            return False
        return self.guess.wants_question(now)

    def begin_again(self, dialect: Dialect) -> bytes:
        """All that was said so far, in another dialect, to a peer that has understood nothing of it."""
        assert self.guess and self.smux
        self.guess = self.guess.again(dialect.smux_version)
        self._choose_compression(dialect.compress)
        self.smux_version = dialect.smux_version
        self.smux.begin_again(dialect.smux_version)
        return self._encode([self.guess.said])

    def _encode(self, frames: list[Buffer]) -> bytes:
        return self._encoder.encode(frames) if self._encoder else b"".join(frames)

    def _choose_compression(self, compress: bool) -> None:
        self.is_compressed = compress
        self._encoder = SnappyEncoder() if compress else None
        self._decoder = SnappyDecoder() if compress else None

    def _choose_smux(self, version: int, now: int) -> None:
        params = self._params
        self.smux_version = version
        self.smux = SmuxSession(
            is_client=self._is_client,
            version=version,
            max_frame=params.max_frame,
            receive_buffer=params.smux_buffer,
            stream_buffer=params.stream_buffer,
            keepalive_ms=params.keepalive,
            keepalive_timeout_ms=KEEPALIVE_TIMEOUT,
            now=now,
            max_streams=params.max_streams,
        )
        if not self._is_client:
            # Its acknowledgement proves that the client is where it says it is; and it shows what we speak.
            self.smux.hello()
