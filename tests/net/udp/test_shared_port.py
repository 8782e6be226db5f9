"""The sockets of several workers: who gets whose packets."""

import random
import socket
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import pytest

from kcptun_lite.errors import TransportError
from kcptun_lite.net.udp.shared_port import SharedPorts
from kcptun_lite.net.udp.sockopt import bind
from kcptun_lite.net.udp.udp_socket import UdpOptions, UdpSocket

CLIENTS = 200
WORKERS = 4


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def opened(stack: ExitStack, host: str, workers: int = WORKERS) -> SharedPorts:
    ports = SharedPorts.open(host, 0, 0, workers)
    for sock in ports.sockets:
        stack.callback(sock.close)
    return ports


def receivers(ports: SharedPorts, clients: list[socket.socket]) -> list[int]:
    """Which worker each client's next packet comes to; -1: none."""
    for number, client in enumerate(clients):
        client.send(bytes([number]))
    found = [-1] * len(clients)
    for worker, sock in enumerate(ports.sockets):
        sock.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                found[sock.recv(1)[0]] = worker
    return found


@pytest.mark.parametrize(
    ("host", "server", "local"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.1", "127.0.0.1"),
        ("", "127.0.0.1", "::ffff:127.0.0.1"),
        ("", "::1", "::1"),
        ("::1", "::1", "::1"),
    ],
)
def test_a_client_keeps_its_worker_whatever_other_sockets_come_and_go(
    stack: ExitStack, host: str, server: str, local: str
) -> None:
    ports = opened(stack, host)
    assert ports.is_steered and not ports.is_range
    family, port = ports.sockets[0].family, ports.sockets[0].getsockname()[1]
    of_client = socket.AF_INET6 if ":" in server else socket.AF_INET
    clients = [stack.enter_context(socket.socket(of_client, socket.SOCK_DGRAM)) for _ in range(CLIENTS)]
    for client in clients:
        client.connect((server, port))
    before = receivers(ports, clients)
    assert all(before.count(worker) > CLIENTS / WORKERS / 2 for worker in range(WORKERS)), "all have their part"
    peers: dict[int, socket.socket] = {}
    chance = random.Random(1)
    for _ in range(10):
        for number in chance.sample(range(CLIENTS), 30):
            if number in peers:
                peers.pop(number).close()
                continue
            peer = peers[number] = stack.enter_context(bind(family, (local, port), shares_port=True))
            address = clients[number].getsockname()
            peer.connect(("::ffff:127.0.0.1", address[1]) if family != of_client else address)
        copy = ports.sockets[1].dup()  # as a worker has it that is killed
        copy.close()
        after = receivers(ports, clients)
        for number in range(CLIENTS):
            assert after[number] == (-1 if number in peers else before[number])


def test_a_port_that_is_shared_is_taken_for_all_others(stack: ExitStack) -> None:
    port = opened(stack, "127.0.0.1").sockets[0].getsockname()[1]
    with pytest.raises(TransportError, match="Address already in use"):
        UdpSocket.listen("127.0.0.1", port, UdpOptions())
    with pytest.raises(TransportError, match="Address already in use"):
        SharedPorts.open("127.0.0.1", port, port, 2)


def test_what_comes_while_no_worker_is_there_waits(stack: ExitStack) -> None:
    ports = opened(stack, "127.0.0.1", 2)
    client = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    client.connect(ports.sockets[0].getsockname())
    (worker,) = receivers(ports, [client])
    udp = UdpSocket.adopt(ports.sockets[worker].dup().detach(), UdpOptions())
    udp.close()
    assert receivers(ports, [client]) == [worker]


def test_each_worker_of_a_range_reads_its_part_and_can_send_from_all(stack: ExitStack) -> None:
    sockets = [stack.enter_context(bind(socket.AF_INET, ("127.0.0.1", 0))) for _ in range(5)]
    ports = SharedPorts(sockets, 2, is_steered=True)
    assert ports.is_range
    for index in range(2):
        mine = ports.of_worker(index)
        assert [port.descriptor for port in mine] == [one.fileno() for one in sockets]
        assert [port.is_read for port in mine] == [number % 2 == index for number in range(5)]
