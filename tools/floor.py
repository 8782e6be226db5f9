"""The least that CPython takes for a message through a tunnel; `bench_small.py --tunnels floor` measures it.

In      a role, where to listen, where to send
Out     TCP bytes as UDP datagrams and back, each with nonce, checksum and the number of its connection, AES-encrypted
Knows   system calls, AES, CRC-32. Not: KCP, smux, error correction, compression; a lost datagram is lost

One thread, one epoll, one lock for each message. No acknowledgement, no window, no retransmission, no end.

    python tools/floor.py server 127.0.0.1:29900 127.0.0.1:8080    # where it listens (UDP), the target (TCP)
    python tools/floor.py client 127.0.0.1:12948 127.0.0.1:29900   # where it listens (TCP), the server (UDP)
"""

import os
import select
import socket
import sys
from threading import Lock
from typing import Any
from zlib import crc32

from Crypto.Cipher import AES

KEY = bytes(32)
NONCE, CRC, NUMBER = 16, 4, 2  # bytes in front of a message

Address = tuple[str, int]


class Floor:
    """One end."""

    def __init__(self, role: str, listen: Address, other: Address) -> None:
        self._is_client = role == "client"
        self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._udp.bind(("127.0.0.1", 0) if self._is_client else listen)
        self._listening = socket.create_server(listen, backlog=1024) if self._is_client else None
        self._other = self._peer = other
        self._lock = Lock()
        self._poller = select.epoll()
        self._connections: dict[bytes, socket.socket] = {}
        self._names: dict[int, bytes] = {}
        for sock in (self._udp, self._listening):
            if sock:
                self._poller.register(sock, select.EPOLLIN)
        print("listening on:", *(self._listening or self._udp).getsockname(), flush=True)

    def run(self) -> None:
        while True:
            for number, _ in self._poller.poll():
                if number == self._udp.fileno():
                    self._take_packet()
                elif self._listening and number == self._listening.fileno():
                    self._add(len(self._names).to_bytes(NUMBER, "little"), self._listening.accept()[0])
                else:
                    self._take_bytes(self._names[number])

    def _add(self, name: bytes, tcp: socket.socket) -> None:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[name], self._names[tcp.fileno()] = tcp, name
        self._poller.register(tcp, select.EPOLLIN)

    def _take_bytes(self, name: bytes) -> None:
        data = self._connections[name].recv(16384)
        if not data:
            self._poller.unregister(self._connections[name])
            return
        with self._lock:
            body = name + data
            packet = _cfb().encrypt(os.urandom(NONCE) + crc32(body).to_bytes(CRC, "little") + body)
        self._udp.sendto(packet, self._peer)

    def _take_packet(self) -> None:
        packet, source = self._udp.recvfrom(2048)
        with self._lock:
            clear = _cfb().decrypt(packet)
            body = clear[NONCE + CRC :]
            if crc32(body) != int.from_bytes(clear[NONCE : NONCE + CRC], "little"):
                return
        name, data = body[:NUMBER], body[NUMBER:]
        if not self._is_client:
            self._peer = source
            if name not in self._connections:
                self._add(name, socket.create_connection(self._other))
        self._connections[name].send(data)


def _cfb() -> Any:
    return AES.new(KEY, AES.MODE_CFB, iv=bytes(16), segment_size=128)


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


if __name__ == "__main__":
    Floor(sys.argv[1], _address(sys.argv[2]), _address(sys.argv[3])).run()
