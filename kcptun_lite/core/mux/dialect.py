"""What an end speaks above KCP, and whether a peer to whom a guess was spoken understands it.

In      frames as they are sent; what the peer acknowledges and tells; `now`
Out     when to ask it; a verdict; all that was sent, in another dialect
Knows   what a kcptun does that does not understand. Not: KCP, in which order dialects are tried
Wire    docs/protocol.md, "Finding out what a server speaks"
Cost    the first bytes of a session twice, for two round trips

Nothing is negotiated, so a client guesses. A server that does not understand the first bytes has opened no stream when
it drops the session: all that was said to it may be said again in another way, and nothing happens twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

from kcptun_lite.core.question import Questioner
from kcptun_lite.core.wire import SMUX_HEADER, SMUX_HEADER_SIZE, Buffer
from kcptun_lite.errors import DROPPED, DeadLink, RemoteProtocolError, SessionError, SmuxVersionError, nonsense

KEPT_MAX = 128 * 1024  # bytes said before the verdict; more wait. Less than smux 2's first window, so it is never over
READ_AFTER = 100  # ms between two answers that confirm: a session that was dropped and has got a repetition gives one


class Dialect(NamedTuple):
    """The two settings that both ends must share, and that can be found out."""

    smux_version: int
    compress: bool

    def __str__(self) -> str:
        return f"--smuxver {self.smux_version} --nocomp" if not self.compress else f"--smuxver {self.smux_version}"


class Guess(Questioner):
    """A dialect that was chosen without knowing the peer's, until it is known to be right or wrong.

    A kcptun acknowledges what it does not understand, then forgets the session. Asked for its window it answers
    from zero; one that has understood answers from where it is.
    """

    def __init__(self) -> None:
        super().__init__(READ_AFTER)
        self.is_refuted = False
        self.is_confirmed = False
        self.failure: RemoteProtocolError | None = None
        "in what the peer has sent, if that has refuted it"
        self._kept = bytearray()
        self._told = 0
        self._told_at: int | None = None
        "ms; when it was first told"

    @property
    def is_decided(self) -> bool:
        return self.is_confirmed or self.is_refuted

    @property
    def error(self) -> SessionError | None:
        """Why the session is over, if it was refuted and there is nothing else to be tried."""
        if not self.is_refuted:
            return None
        return nonsense(self.failure) if self.failure else DeadLink(DROPPED)

    @property
    def held_bytes(self) -> int:
        return len(self._kept)

    @property
    def room(self) -> int:
        """Bytes that may still be said before the verdict."""
        return max(0, KEPT_MAX - len(self._kept))

    def keep(self, frames: Sequence[Buffer]) -> None:
        """These frames have been said."""
        for frame in frames:
            self._kept += frame

    @property
    def said(self) -> bytes:
        return bytes(self._kept)

    def _said_in(self, version: int) -> bytes:
        """All frames that were said, as frames of a smux version."""
        frames = bytearray(self._kept)
        at = 0
        while at < len(frames):
            _, _, length, _ = SMUX_HEADER.unpack_from(frames, at)
            frames[at] = version
            at += SMUX_HEADER_SIZE + length
        return bytes(frames)

    def refute(self, failure: RemoteProtocolError) -> None:
        """What the peer has sent makes no sense."""
        self.is_refuted = True
        if not self.failure or isinstance(failure, SmuxVersionError):  # which is the truth, where one is fixed
            self.failure = failure

    def again(self, version: int) -> "Guess":
        """The next one, for which all was said in frames of this version."""
        after = Guess()
        after.failure = self.failure
        after.keep([self._said_in(version)])
        return after

    def weigh(self, now: int, is_understood: bool, is_acknowledged: bool, told: int, told_from_zero: int) -> None:
        """Look at what the peer has shown so far.

        Args:
            is_understood: it has sent frames that make sense.
            is_acknowledged: it has something of what we sent.
            told: how often it was asked for its window and has answered from where it is.
            told_from_zero: how often from zero, after it had acknowledged something.
        """
        if self.is_decided:
            return
        if is_acknowledged and self.ask_at is None:
            self.ask_at = now
        has_read = False
        if told > self._told and is_acknowledged:
            self._told_at = now if self._told_at is None else self._told_at
            has_read = now - self._told_at >= READ_AFTER
        self._told = told
        self.is_refuted = told_from_zero > 0 and not is_understood
        self.is_confirmed = is_understood or (has_read and not self.is_refuted)
