"""The other workers of a server: who has which conversation, and packets that came to the wrong one.

In      conversations as they begin and end; packets of one that a sibling has
Out     the same told to the siblings; packets handed on by them, to the listener of the port they came to
Knows   unix datagram sockets, who has what. Not: sessions, encryption
Wire    a head of 8 bytes, then numbers of 32 bits, or packets behind what `marshal` makes of their source and lengths
Cost    loaded with --workers alone; a message to each sibling for each session; for each batch that is handed on 20 to
        45 us, of both

A client that changes its address may reach another worker. That one opens its packets, and hands on those of a
conversation that a sibling has. The sibling treats them as its own: it validates the address, follows the client there,
and makes a socket connected to it, through which the kernel delivers at once from then on.

An inbox that is full loses what does not fit, as a network does: KCP sends again. All who write to an inbox are workers
of the same server, so what comes is believed.
"""

import marshal
import socket
import struct
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, Protocol

from kcptun_lite.core.batch.packets import Address, Local
from kcptun_lite.core.counters import Counters
from kcptun_lite.net.ends.session_table import SessionTable
from kcptun_lite.net.event_loop import EventLoop
from kcptun_lite.net.session.update_thread import monotonic_ms

MESSAGE_MAX = 32 * 1024  # bytes of packets in one message
CONVS_MAX = 4096  # in one message
MESSAGES_AT_ONCE = 64  # read before others have their turn
GREETING_LIMIT = 1.0  # s that a new worker waits for what its siblings have

FORMAT = 1  # of all messages: workers of an older program, after an upgrade, do not take in what they would not read
_HEAD = struct.Struct("=BBBxI")  # FORMAT, kind, slot of the sender, bytes of what marshal has made
_ROOM = 64 * 1024  # bytes; more than the longest message


class Kind(IntEnum):
    """What a message says."""

    HELLO = 1  # I am new: forget what I had, and tell me what you have
    HAVE = 2  # I have these conversations
    TOLD = 3  # that was all I have
    ENDED = 4  # they are over: what begins one of them again is a replay
    GONE = 5  # I have them no more; they were never validated, or are another's now
    PACKETS = 6
    SESSION = 7  # go on with a session that rests


class Port(Protocol):
    """Who takes packets that a sibling has received: the listener of the port."""

    def receive_handed(self, address: Address, local: Local | None, packets: Sequence[memoryview], now: int) -> None:
        """Take opened packets from this address, sent to `local` of ours."""


class Siblings:
    """One worker's view of the others. `have`, `ended` and `gone` are for any thread, all else for the loop's."""

    def __init__(
        self,
        slot: int,
        inbox: socket.socket,
        outboxes: Mapping[int, socket.socket],
        loop: EventLoop,
        table: SessionTable,
        on_session: Callable[[tuple[Any, ...]], None],
    ) -> None:
        """`outboxes`: slot -> where to write to. `on_session` is given what `give` was."""
        self.counters = Counters()
        "of messages that found no room (`send_drops`)"
        self.ports: Sequence[Port] = ()
        self.heir: int | None = None
        "the slot that takes what nobody has, when this worker takes no more"
        self._slot = slot
        self._inbox, self._outboxes = inbox, outboxes
        self._loop, self._table = loop, table
        self._on_session = on_session
        self._owners: dict[int, int] = {}
        self._awaited: set[int] = set()
        self._on_greeted: Callable[[], None] | None = None
        self._buffer = memoryview(bytearray(_ROOM))

    def forget(self, slot: int) -> None:
        """A sibling has ended, and nobody follows it."""
        self._owners = {conv: owner for conv, owner in self._owners.items() if owner != slot}

    def greet(self, awaited: Iterable[int], on_greeted: Callable[[], None]) -> None:
        """Ask what the others have; calls back when those `awaited` have told, or have not for too long."""
        self._awaited = set(awaited)
        self._on_greeted = on_greeted
        self._loop.watch(self._inbox.fileno(), self._receive)
        self._tell_all(Kind.HELLO)
        self._loop.call_later(GREETING_LIMIT, self._end_greeting)
        if not self._awaited:
            self._end_greeting()

    # -- to the others -------------------------------------------------------------------------

    def have(self, conv: int) -> None:
        self._tell_all(Kind.HAVE, (conv,))

    def ended(self, conv: int) -> None:
        self._tell_all(Kind.ENDED, (conv,))

    def gone(self, conv: int) -> None:
        self._tell_all(Kind.GONE, (conv,))

    def hand_on(
        self, conv: int, port: Port, address: Address, local: Local | None, packets: Sequence[memoryview]
    ) -> bool:
        """Hand packets to whoever has the conversation; False if nobody does."""
        owner = self._owners.get(conv, self.heir)
        if owner is None:
            return False
        number = self.ports.index(port)
        at = 0
        while at < len(packets):
            size, end = 0, at
            while end < len(packets) and size + len(packets[end]) <= MESSAGE_MAX:
                size += len(packets[end])
                end += 1
            part = [packets[index] for index in range(at, end)]
            source = marshal.dumps((number, address, local, [len(packet) for packet in part]))
            self._send(owner, Kind.PACKETS, [source, *part], len(source))
            at = end
        return True

    def give(self, session: tuple[Any, ...]) -> bool:
        """Have the heir go on with a session; whether it was told so."""
        state = marshal.dumps(session)
        return self.heir is not None and self._send(self.heir, Kind.SESSION, [state], len(state))

    def _tell_all(self, kind: Kind, convs: Sequence[int] = ()) -> None:
        for slot in self._outboxes:
            self._tell(slot, kind, convs)

    def _tell(self, slot: int, kind: Kind, convs: Sequence[int] = ()) -> None:
        for at in range(0, max(1, len(convs)), CONVS_MAX):
            self._send(slot, kind, [array("I", convs[at : at + CONVS_MAX]).tobytes()], 0)

    def _send(self, slot: int, kind: Kind, parts: Sequence[bytes | memoryview], size: int) -> bool:
        try:
            self._outboxes[slot].sendmsg([_HEAD.pack(FORMAT, kind, self._slot, size), *parts])
        except OSError:  # full, or no memory
            self.counters.send_drops += 1
            return False
        return True

    # -- from the others -----------------------------------------------------------------------

    def _receive(self) -> None:
        for _ in range(MESSAGES_AT_ONCE):
            try:
                size = self._inbox.recv_into(self._buffer)
            except BlockingIOError:
                return
            self._take(self._buffer[:size])

    def _take(self, message: memoryview) -> None:
        form, kind, slot, size = _HEAD.unpack_from(message)
        if form != FORMAT:
            return
        body = message[_HEAD.size :]
        if kind == Kind.PACKETS:
            number, address, local, lengths = marshal.loads(body[:size])
            packets, at = [], size
            for length in lengths:
                packets.append(body[at : at + length])
                at += length
            self.ports[number].receive_handed(address, local, packets, monotonic_ms())
        elif kind == Kind.SESSION:
            self._on_session(marshal.loads(body[:size]))
        elif kind == Kind.HELLO:
            self.forget(slot)
            self._tell(slot, Kind.HAVE, [session.conversation.conv for session in self._table])
            self._tell(slot, Kind.ENDED, self._table.ended())
            self._tell(slot, Kind.TOLD)
        elif kind == Kind.TOLD:
            self._awaited.discard(slot)
            if not self._awaited:
                self._end_greeting()
        else:
            self._note(kind, slot, body.cast("I").tolist())

    def _note(self, kind: int, slot: int, convs: list[int]) -> None:
        if kind == Kind.HAVE:
            self._owners.update(dict.fromkeys(convs, slot))
            return
        for conv in convs:
            if self._owners.get(conv) == slot:  # else it has moved on
                del self._owners[conv]
        if kind == Kind.ENDED:
            self._table.note_ended(convs)

    def _end_greeting(self) -> None:
        on_greeted, self._on_greeted = self._on_greeted, None
        if on_greeted:
            on_greeted()
