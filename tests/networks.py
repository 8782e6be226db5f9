"""Hosts made of network namespaces, wires between them, and a tunnel from one to another.

In      addresses, kcptun options
Out     commands and sockets inside; programs that run there
Knows   namespaces, iproute2, nftables; needs root. Not: the wire
"""

import ctypes
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import Self

from tests.programs import NEWEST, ROOT, Options, Program, kcptun_arguments, wait_until

_CLONE_NEWNET = 0x40000000

SERVER = "203.0.113.9"
PYTHON = [sys.executable, "-m"]
PROGRAMS = {"go": "", "newest": os.environ.get(NEWEST, "") + "/"}
"where the real ones are"
FAST = {"key": "k", "nocomp": True, "mode": "fast3"}


class Host:
    """A network namespace, kept alive by the process `pid`."""

    pid: int

    def command(self, *words: str) -> list[str]:
        """What to start for a program in this network."""
        return ["nsenter", "-t", str(self.pid), "-n", *words]

    def socket(
        self, kind: socket.SocketKind = socket.SOCK_STREAM, family: socket.AddressFamily = socket.AF_INET
    ) -> socket.socket:
        """A socket of this network; it stays one in the hands of this process."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/proc/{self.pid}/ns/net") as namespace:
                assert ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) == 0
            made.append(socket.socket(family, kind))

        thread = threading.Thread(target=make)  # a thread may be elsewhere than its process
        thread.start()
        thread.join()
        return made[0]

    def ip(self, *lines: str) -> None:
        """Lines of `ip -batch`."""
        subprocess.run(self.command("ip", "-batch", "-"), input="\n".join(lines) + "\n", text=True, check=True)

    def run(self, *words: str) -> str:
        """Run a command in this network; what it has written."""
        return subprocess.run(self.command(*words), text=True, check=True, capture_output=True).stdout

    def shut(self) -> None:
        """A stateful firewall, as every NAT is one: nothing comes in but answers to what went out."""
        rules = """table inet filter {
            chain input {
                type filter hook input priority 0; policy drop;
                iif lo accept
                icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert } accept
                ct state established accept
            }
        }"""
        subprocess.run(self.command("nft", "-f", "-"), input=rules, text=True, check=True)


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


class World:
    """A client's host with the devices wan (the default route) and wanb, and the server's at the other ends."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self.near = stack.enter_context(Internet())
        self.far = stack.enter_context(Internet())
        self.far.ip(f"addr add {SERVER}/32 dev lo")
        self.plug("wan", 1)
        self._start(self.far, "echo", "ready", [*PYTHON, "tests.openwrt.services", "echo", SERVER])

    def plug(self, device: str, number: int) -> None:
        """A wire; the lower its number, the sooner routes prefer it."""
        plug(self.near, self.far, device, [f"10.0.{number}.1/24"], [f"10.0.{number}.2/24"])
        self.near.ip(f"route add default via 10.0.{number}.2 dev {device} metric {number}")

    def unplug(self, device: str) -> None:
        self.near.ip(f"link del {device}")

    def serve(self, kind: str = "ours", *, under: Sequence[str] = (), **options: object) -> Program:
        """`under`: a command that starts the program, as sudo does."""
        given: Options = {"listen": "0.0.0.0:29900", "target": f"{SERVER}:7", **FAST, **options}
        return self._start(
            self.far, kind, "[Ll]istening on", [*under, *_name(kind, "server"), *kcptun_arguments(given)]
        )

    def dial(self, kind: str = "ours", *, under: Sequence[str] = (), **options: object) -> Program:
        given: Options = {"localaddr": "127.0.0.1:12948", "remoteaddr": f"{SERVER}:29900", **FAST, **options}
        return self._start(
            self.near, "client", "[Ll]istening on", [*under, *_name(kind, "client"), *kcptun_arguments(given)]
        )

    def _start(self, host: Host, name: str, sign: str, words: list[str]) -> Program:
        program = Program(name, host.command(*words), env={"PYTHONPATH": str(ROOT)})
        self._stack.callback(program.stop)
        program.wait_for_log(sign)
        return program

    def connect(self, host: str = "127.0.0.1", port: int = 12948) -> socket.socket:
        connection = self._stack.enter_context(self.near.socket())
        connection.settimeout(30)
        connection.connect((host, port))
        return connection

    def works(self) -> bool:
        """Whether a new connection carries data."""
        with suppress(OSError):
            return carries(self.connect())
        return False


def _name(kind: str, role: str) -> list[str]:
    return [*PYTHON, "kcptun_lite", role] if kind == "ours" else [f"{PROGRAMS[kind]}kcptun-{role}"]


def carries(connection: socket.socket) -> bool:
    """Whether what is sent comes back."""
    data = os.urandom(50_000)
    received = b""
    connection.sendall(data)
    while len(received) < len(data) and (chunk := connection.recv(65536)):
        received += chunk
    return received == data
