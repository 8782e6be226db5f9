"""Hosts made of network namespaces, and wires between them.

In      addresses
Out     commands and sockets inside
Knows   namespaces, iproute2; needs root. Not: what is sent
"""

import ctypes
import os
import socket
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from tests.programs import wait_until

_CLONE_NEWNET = 0x40000000


class Host:
    """A network namespace, kept alive by the process `pid`."""

    pid: int

    def command(self, *words: str) -> list[str]:
        """What to start for a program in this network."""
        return ["nsenter", "-t", str(self.pid), "-n", *words]

    def socket(self, kind: socket.SocketKind = socket.SOCK_STREAM) -> socket.socket:
        """A socket of this network; it stays one in the hands of this process."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self.pid}/ns/net") as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) == 0
            made.append(socket.socket(socket.AF_INET, kind))

        thread = threading.Thread(target=make)  # a thread may be elsewhere than its process
        thread.start()
        thread.join()
        return made[0]

    def ip(self, *lines: str) -> None:
        """Lines of `ip -batch`."""
        subprocess.run(self.command("ip", "-batch", "-"), input="\n".join(lines) + "\n", text=True, check=True)


class Internet(Host):
    """An empty network namespace."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["unshare", "-n", "sleep", "infinity"])
        self.pid = self._process.pid
        ours = os.readlink("/proc/self/ns/net")
        wait_until(lambda: os.readlink(f"/proc/{self.pid}/ns/net") != ours, "namespace")
        self.ip("link set lo up")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()


def plug(near: Host, far: Host, device: str, addresses: Sequence[str], opposite: Sequence[str]) -> None:
    """A wire between two hosts: the `device` of either, with the addresses of the near and of the far one."""
    near.ip(f"link add {device} type veth peer name {device} netns {far.pid}")
    for host, own in (near, addresses), (far, opposite):
        host.ip(*(f"addr add {address} dev {device}" for address in own), f"link set {device} up")
