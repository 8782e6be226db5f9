"""Two servers behind what docs/scaling.md recommends: nginx, nftables, a name with two addresses, a list of servers.

In      the kind of balancer; of the page its snippets, as they stand there
Out     hosts in network namespaces, a server on two of them, the balancer in between; what one of the two may suffer
Knows   namespaces, nginx, nftables; needs root. Not: what clients make of it
Cost    a second for a balancer that asks for health

The page's addresses are those of this network: 192.0.2.1 is the balancer, 10.0.1.2 and 10.0.2.2 are the servers.
"""

import os
import re
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.networks import FAST, Host, Internet, _name, plug
from tests.programs import ROOT, Options, Program, kcptun_arguments, require, wait_until

PUBLIC = "192.0.2.1"
SERVERS = ("10.0.1.2", "10.0.2.2")
CLIENT = "10.0.0.2"
PORT, HEALTH_PORT, TARGET_PORT = 29900, 29901, 7
NAME = "tunnel.test"
BALANCERS = ("nginx", "nftables", "DNS", "list")


def snippets(heading: str) -> dict[str, str]:
    """Of a section of docs/scaling.md: the name that a block of code begins with (`# /path/name`) -> the block."""
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    section = page.partition(f"\n### {heading}\n")[2].partition("\n##")[0]
    found = {}
    for block in re.findall(r"^```\w*\n(.*?)^```$", section, re.M | re.S):
        if name := re.search(r"^# (/\S+)", block, re.M):
            found[name[1]] = block
    return found


class Backend:
    """A host with a server and its target, which sends back what it gets behind the host's number."""

    def __init__(self, host: Host, number: int, stack: ExitStack, drain: int) -> None:
        self._host, self.number, self._stack, self._drain = host, number, stack, drain
        listening = stack.enter_context(host.socket())
        listening.bind(("127.0.0.1", TARGET_PORT))
        listening.listen(64)
        accepting = threading.Thread(target=self._accept, args=(listening,), daemon=True)
        stack.callback(accepting.join)
        stack.callback(listening.shutdown, socket.SHUT_RDWR)  # wakes the thread out of accept
        accepting.start()
        self.start()

    def _accept(self, listening: socket.socket) -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=self._echo, args=(connection,), daemon=True).start()

    def _echo(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.sendall(b"%d" % self.number)
            while data := connection.recv(65536):
                connection.sendall(data)

    def start(self) -> None:
        options: Options = {
            **FAST,
            "listen": f"0.0.0.0:{PORT}",
            "target": f"127.0.0.1:{TARGET_PORT}",
            "health": f"0.0.0.0:{HEALTH_PORT}",
            "drain": self._drain,
        }
        words = self._host.command(*_name("ours", "server"), *kcptun_arguments(options))
        self.server = Program(f"server {self.number}", words, env={"PYTHONPATH": str(ROOT)})
        self._stack.callback(self.server.stop, signal.SIGKILL)
        self.server.wait_for_log("health checks on")

    def kill(self) -> None:
        """The process is gone; the host says that nobody listens."""
        self.server.stop(signal.SIGKILL)

    def silence(self) -> None:
        """The host takes nothing more, and says nothing: as one that is switched off or cut off."""
        self._host.run(
            "nft",
            "add table inet silence; add chain inet silence entry { type filter hook input priority 0; policy drop; }",
        )

    def drain(self) -> None:
        os.kill(self.server.pid, signal.SIGQUIT)

    def come_back(self) -> None:
        with suppress(Exception):
            self._host.run("nft", "delete table inet silence")
        if not self.server.is_running():
            self.start()


class Machines:
    """A client's host, the balancer's, and two backends behind it."""

    def __init__(self, stack: ExitStack, balancer: str, directory: Path, *, drain: int = 60) -> None:
        """`directory`: where the page's files lie, instead of in the root; `drain`: s."""
        self._stack, self._balancer, self._directory = stack, balancer, directory
        self.near, self.middle = (stack.enter_context(Internet()) for _ in range(2))
        plug(self.near, self.middle, "wan", [f"{CLIENT}/24"], ["10.0.0.1/24"])
        self.near.ip("route add default via 10.0.0.1")
        self.middle.ip(f"addr add {PUBLIC}/32 dev lo")
        self.middle.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.backends = []
        for number, address in enumerate(SERVERS, 1):
            host = stack.enter_context(Internet())
            plug(self.middle, host, f"lan{number}", [f"10.0.{number}.1/24"], [f"{address}/24"])
            host.ip(f"route add default via 10.0.{number}.1")
            self.backends.append(Backend(host, number, stack, drain))
        self._hosts = directory / "hosts"
        self._hosts.write_text("".join(f"{address} {NAME}\n" for address in SERVERS))
        self.remote = {"DNS": f"{NAME}:{PORT}", "list": ",".join(f"{address}:{PORT}" for address in SERVERS)}.get(
            balancer, f"{PUBLIC}:{PORT}"
        )
        if balancer in ("nginx", "nftables"):
            self._balance()

    def _balance(self) -> None:
        """Do what the page says."""
        require("curl", "nft", *(["nginx"] if self._balancer == "nginx" else []))
        files = snippets("Health checks") | snippets(self._balancer)
        (self._directory / "nginx.conf").write_text(
            "include /etc/nginx/modules-enabled/*-mod-stream.conf;\nerror_log stderr notice;\n"
            f"pid {self._directory}/nginx.pid;\nworker_processes 2;\nevents {{}}\n"
            f"include {self._directory}/etc/nginx/modules-enabled/90-kcptun.conf;\n"
        )
        nginx = f"nginx -c {self._directory}/nginx.conf"
        for name, text in files.items():
            path = self._directory / name[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                text.replace("nginx -s", f"{nginx} -s").replace("/etc/nginx/", f"{self._directory}/etc/nginx/")
            )
            path.chmod(0o755)
        scripts = self._directory / "usr/local/sbin"
        command = str(scripts / f"kcptun-{self._balancer}")
        if self._balancer == "nginx":
            with suppress(Exception):  # there is no nginx yet that could be told
                self.middle.run(command, *SERVERS)
            self.nginx = Program("nginx", self.middle.command(*nginx.split(), "-g", "daemon off;"))
            self._stack.callback(self.nginx.stop)
            self.nginx.wait_for_log("start worker process ")
        health = Program("health", self.middle.command(str(scripts / "kcptun-health"), command, *SERVERS))
        self._stack.callback(health.stop)
        if self._balancer == "nftables":
            wait_until(lambda: "jhash" in self.middle.run("nft", "list", "ruleset"), "rules")

    def is_known_to_live(self, backend: Backend) -> bool:
        """Whether the balancer sends clients there, if it has a list of those to be had."""
        address = SERVERS[backend.number - 1]
        if self._balancer == "nginx":
            return address in (self._directory / "etc/nginx/kcptun-servers.conf").read_text()
        return self._balancer != "nftables" or address in self.middle.run("nft", "list", "ruleset")

    def dial(self, kind: str = "ours", port: int = 12948, **options: object) -> Program:
        """A client; its host knows the name."""
        given: Options = {"localaddr": f"127.0.0.1:{port}", "remoteaddr": self.remote, **FAST, **options}
        words = [*_name(kind, "client"), *kcptun_arguments(given)]
        named = ["unshare", "-m", "sh", "-c", f'mount --bind {self._hosts} /etc/hosts; exec "$@"', "sh", *words]
        client = Program(f"client of {self._balancer}", self.near.command(*named), env={"PYTHONPATH": str(ROOT)})
        self._stack.callback(client.stop)
        client.wait_for_log("[Ll]istening on")
        return client

    def connect(self, port: int = 12948, timeout: float = 1.0) -> tuple[socket.socket, Backend]:
        """A connection and who has answered it. Raises: OSError."""
        connection = self._stack.enter_context(self.near.socket())
        connection.settimeout(timeout)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"?")
        answer = connection.recv(1)
        if not answer or connection.recv(1) != b"?":
            raise ConnectionError("it ended")
        return connection, self.backends[int(answer) - 1]

    def works(self, port: int = 12948, *, unless: Callable[[Backend], bool] = lambda backend: False) -> bool:
        """Whether a new connection is answered, by one that is wanted."""
        with suppress(OSError):
            connection, backend = self.connect(port)
            connection.close()
            return not unless(backend)
        return False
