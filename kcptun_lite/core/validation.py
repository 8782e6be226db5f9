"""Whether the peer is where its packets say: what it may be sent until it has shown it, and how it does.

In      bytes received and to be sent; timestamps sent, timestamps that ACKs repeat
Out     how many bytes may go; whether the address is validated
Knows   bytes and timestamps. Not: packets, addresses
Source  RFC 9000, sections 8.1 and 21.1

An address can be forged, and packets can be recorded and sent again. Three times what has come from an address may go
there before it is validated: too little for a flood, enough for a handshake and a first answer. The proof is an ACK,
which repeats the timestamp of what it acknowledges: ours begin at a random number in each session, so that only who
receives there can know one, and what was recorded of another session is worth nothing.
"""

AMPLIFICATION = 3  # RFC 9000, section 8.1
CHALLENGES_MAX = 64  # timestamps that are remembered; three times a few packets go out in fewer moments


class AddressValidation:
    """The state of one session's peer address."""

    __slots__ = ("_challenges", "credit", "is_validated")

    def __init__(self, *, is_validated: bool) -> None:
        self.is_validated = is_validated
        self.credit = 0
        "bytes that may still go to an address that is not validated"
        self._challenges: set[int] = set()

    def on_received(self, size: int, *, is_elsewhere: bool = False) -> None:
        """`size` bytes have come, crypto headers included; `is_elsewhere`: from another address than those before."""
        self.credit = AMPLIFICATION * size + (0 if is_elsewhere else self.credit)

    def spend(self, size: int) -> bool:
        """Whether a packet of `size` bytes may go."""
        if self.is_validated:
            return True
        if size > self.credit:
            return False
        self.credit -= size
        return True

    def on_sent(self, ts: int) -> None:
        """Something that will be acknowledged goes out with this timestamp, 32 bits."""
        if not self.is_validated and len(self._challenges) < CHALLENGES_MAX:
            self._challenges.add(ts)

    def on_echo(self, ts: int) -> bool:
        """An ACK repeats a timestamp; True if this has validated the address."""
        if self.is_validated or ts not in self._challenges:
            return False
        self.is_validated = True
        self._challenges.clear()
        return True
