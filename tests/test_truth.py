"""What the end of a connection says: an end of file that all has arrived, a reset that it has not; and who is told."""

import select
import signal
import socket
import struct
from collections.abc import Callable
from functools import partial

import pytest

from tests.programs import Tunnel, go_knows, missing_programs, wait_until
from tests.traffic import Target, connect, receive_exactly

FAST = {"mode": "fast3", "sndwnd": 512, "rcvwnd": 512, "datashard": 0, "parityshard": 0}
MIB = 1 << 20


class Recorder:
    """A target's handler that notes how each of its connections ends."""

    def __init__(self, pours: bool = False) -> None:
        """`pours`: it sends without end, too."""
        self.received = 0
        self.ends: list[str] = []
        self._pours = pours

    def __call__(self, sock: socket.socket) -> None:
        try:
            while True:
                # All in one thread: the kernel tells of a reset only once.
                ready, room, _ = select.select([sock], [sock] if self._pours else [], [])
                if ready:
                    data = sock.recv(65_536)
                    if not data:
                        self.ends.append("end of file")
                        return
                    self.received += len(data)
                if room:
                    sock.send(bytes(16_384))
        except OSError:
            self.ends.append("reset")

    def has_received(self, size: int) -> bool:
        return self.received >= size

    def has_seen(self, ends: int) -> bool:
        return len(self.ends) >= ends


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@pytest.mark.parametrize(("client", "server"), [("ours", "ours"), ("go", "ours"), ("ours", "go")])
@pytest.mark.parametrize("leave", [socket.socket.close, reset], ids=["close", "reset"])
def test_the_target_of_a_cancelled_download_stops_sending(
    client: str, server: str, leave: Callable[[socket.socket], None]
) -> None:
    assert not missing_programs("kcptun-client", "kcptun-server"), "install Debian's kcptun"
    # The last kcptun's server tells its target 30 s later if it is not told otherwise.
    at_once = {"closewait": 0} if server == "go" and go_knows("closewait") else {}
    recorder = Recorder(pours=True)
    with Target(recorder) as target, Tunnel(client, server, target.address, FAST, server_options=at_once) as tunnel:
        sock = connect(tunnel.address)
        sock.sendall(b"go on")
        receive_exactly(sock, MIB)
        leave(sock)
        wait_until(lambda: recorder.has_seen(1), "the target is told")


@pytest.mark.parametrize("pours", [False, True])
def test_an_upload_that_was_aborted_is_no_whole_one(pours: bool) -> None:
    recorder = Recorder(pours)
    with Target(recorder) as target, Tunnel("ours", "ours", target.address, FAST) as tunnel:
        for number in range(10):
            sock = connect(tunnel.address)
            sock.sendall(bytes(1000))
            wait_until(partial(recorder.has_received, 1000 * (number + 1)), "it has arrived")
            reset(sock)
        wait_until(lambda: recorder.has_seen(10), "all have ended")
        assert set(recorder.ends) == {"reset"}


def test_an_upload_that_has_ended_is_a_whole_one() -> None:
    recorder = Recorder()
    with Target(recorder) as target, Tunnel("ours", "ours", target.address, FAST) as tunnel:
        with connect(tunnel.address) as sock:
            sock.sendall(bytes(3 * MIB))
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        assert (recorder.ends, recorder.received) == (["end of file"], 3 * MIB)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_application_does_not_take_what_has_come_for_all_when_its_client_dies(number: signal.Signals) -> None:
    recorder = Recorder()
    with Target(recorder) as target, Tunnel("ours", "ours", target.address, FAST) as tunnel:
        with connect(tunnel.address) as sock:
            sock.sendall(b"half of it")
            wait_until(lambda: recorder.has_received(10), "it has arrived")
            tunnel.client.stop(number)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_target_does_not_take_what_has_come_for_all_when_its_server_dies(number: signal.Signals) -> None:
    recorder = Recorder()
    with Target(recorder) as target, Tunnel("ours", "ours", target.address, FAST) as tunnel:
        with connect(tunnel.address) as sock:
            sock.sendall(b"half of it")
            wait_until(lambda: recorder.has_received(10), "it has arrived")
            tunnel.server.stop(number)
            wait_until(lambda: recorder.has_seen(1), "the target is told")
            assert recorder.ends == ["reset"]


def test_connections_that_are_gone_before_they_are_served_shut_no_peer_socket() -> None:
    with (
        Target(lambda sock: sock.sendall(sock.recv(1))) as target,
        Tunnel("ours", "ours", target.address, FAST) as tunnel,
    ):
        for _ in range(100):
            reset(connect(tunnel.address))
        with connect(tunnel.address) as sock:
            sock.sendall(b"x")
            assert receive_exactly(sock, 1) == b"x"
