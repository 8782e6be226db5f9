"""A server that is one of several workers: its sockets are its parent's, and it answers the parent's questions.

In      a configuration, a `Place`; words of the parent through a socket
Out     a running server; its counters and status for the parent, once a second
Knows   its siblings and its parent. Not: how these are started
Cost    a message each way once a second
"""

import marshal
import socket
from collections.abc import Iterable
from contextlib import suppress
from os import getpid, kill
from signal import Signals
from typing import Any, cast

from kcptun_lite import log
from kcptun_lite.app.config import ServerConfig
from kcptun_lite.app.server import Server
from kcptun_lite.app.workers.share import COUNTERS, DRAIN, FORGET, HEALTH, STATUS, Place
from kcptun_lite.core.conversation import Conversation
from kcptun_lite.core.counters import CSV_COLUMNS, Counters
from kcptun_lite.core.resting import go_on_with, rest_of
from kcptun_lite.net.ends.listener import Listener
from kcptun_lite.net.ends.siblings import Siblings
from kcptun_lite.net.session.session import Session
from kcptun_lite.net.session.update_thread import monotonic_ms
from kcptun_lite.net.udp.peer_sockets import PeerSockets
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket


class WorkerServer(Server):
    """One worker."""

    speaks_for_all = False

    def __init__(self, config: ServerConfig, place: Place) -> None:
        super().__init__(config)
        self._place = place
        self._channel = _adopt(place["channel"])
        outboxes = {slot: _adopt(number) for slot, number in place["outboxes"].items()}
        self._siblings = Siblings(
            place["slot"], _adopt(place["inbox"]), outboxes, self.loop, self._table, self._go_on_with
        )
        self._readers: list[Listener] = []
        "of ports that this worker reads"

    def _listen(self) -> None:
        options = UdpOptions(self.config.sockbuf, self.config.dscp)
        for number, is_read in self._place["ports"]:
            udp = UdpSocket.adopt(number, options)
            peer_sockets = PeerSockets(udp, self.loop, may_open=self._place["is_steered"])
            listener = self._make_listener(udp, peer_sockets, self._siblings)
            listener.listen(False)  # until it is known what the siblings have
            self._listeners.append(listener)
            self._readers += [listener] if is_read else []
        self._siblings.ports = self._listeners

    def _start(self) -> None:
        super()._start()
        self.loop.call(lambda: self._siblings.greet(self._place["awaited"], self._begin))

    def _begin(self) -> None:
        for listener in self._readers:
            listener.listen(True)

    def _tell_ready(self) -> None:
        log.hush(False)
        self._answer("ready", self.listening)
        self.loop.watch(self._channel.fileno(), self._hear_parent)

    def _other_counters(self) -> Iterable[Counters]:
        return [*super()._other_counters(), self._siblings.counters]

    # -- the parent ----------------------------------------------------------------------------

    def _hear_parent(self) -> None:
        try:
            word = self._channel.recv(16)
        except BlockingIOError:
            return
        if not word:
            self.loop.forget(self._channel.fileno())
            log.info("the parent of this worker is gone")
            kill(getpid(), Signals.SIGTERM)
        elif word == COUNTERS:
            counters = self.counters()
            self._answer("counters", {name: getattr(counters, name) for name in CSV_COLUMNS.values()})
        elif word == STATUS:
            self._answer("status", self.status())
        elif word[:1] == FORGET:
            self._siblings.forget(word[1])
        elif word == HEALTH:
            self._answer("health", self.trouble())
        elif word == DRAIN:
            self.drain()
        elif word[:1] == DRAIN:
            self._siblings.heir = word[1]
            for listener in self._readers:
                listener.listen(False)
            self._begin_drain(self._give_away)

    def _answer(self, kind: str, value: Any) -> None:
        with suppress(OSError):  # gone, which the next look tells; or it does not listen now, and will ask again
            self._channel.send(marshal.dumps((kind, value)))

    # -- after a reload ------------------------------------------------------------------------

    def _give_away(self, session: Session) -> None:
        """Have the heir go on with a session, if that rests."""
        place = self._table.place_of(session)
        if place is None:
            return

        def give(conversation: Conversation) -> bool:
            state = rest_of(conversation)
            if state is None:
                return False
            port = self._listeners.index(cast(Listener, place[0]))
            has_fec = conversation.params.has_fec
            return self._siblings.give((port, conversation.conv, place[1], session.local, has_fec, state))

        session.hand_over(give)

    def _go_on_with(self, told: tuple[Any, ...]) -> None:
        """A session that rests comes from a worker that is about to end."""
        port, conv, address, local, has_fec, state = told
        now = monotonic_ms()
        session = self._listeners[port].go_on(conv, address, local, fec=has_fec, now=now)
        if session:
            with session.lock:
                go_on_with(session.conversation, state, now)
            session.settle()


def _adopt(number: int) -> socket.socket:
    return socket.socket(fileno=number)


def run(config: ServerConfig, place: Place) -> int:
    """Run a worker until it is told to stop; returns the exit code."""
    return WorkerServer(config, place).run()
