"""What the Internet of a test router offers: python -m tests.openwrt.services echo HOST | names HOST ADDRESS.

In      a host to serve on; for `names` the address that every name has
Out     echo: TCP port 7 sends everything back. names: a name server that knows IPv4 addresses
Knows   nothing of tunnels
"""

import socket
import socketserver
import sys
from contextlib import suppress


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with suppress(OSError):
            while data := self.request.recv(65536):
                self.request.sendall(data)


class Names(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        query, listening = self.request
        end = query.index(b"\0", 12) + 5  # of the question: name, type, class (RFC 1035 4.1)
        is_a = query[end - 4 : end - 2] == b"\0\1"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + socket.inet_aton(sys.argv[3]) if is_a else b""
        counts = bytes([0, 1, 0, is_a, 0, 0, 0, 0])
        listening.sendto(query[:2] + b"\x81\x80" + counts + query[12:end] + answer, self.client_address)


class EchoServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = daemon_threads = True


if __name__ == "__main__":
    service, host = sys.argv[1:3]
    server = EchoServer((host, 7), Echo) if service == "echo" else socketserver.UDPServer((host, 53), Names)
    print("ready", flush=True)
    server.serve_forever()
