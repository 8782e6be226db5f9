"""What carries a client's packets: UDP, or segments that look like TCP.

In      a configuration
Out     what makes sockets, the way that is preferred first; whether we may
Knows   which option means which room of net/. Not: addresses, sessions
"""

from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.net.ends.route import Dial
from kcptun_lite.net.udp.udp_socket import UdpSocket


def check_rights(config: ClientConfig | ServerConfig) -> None:
    """Raises: ConfigError if --tcp, or what may come to it, is not for us here."""
    if config.tcp:
        from kcptun_lite.net.fake_tcp import raw_socket

        is_choice = isinstance(config, ClientConfig) and config.transport == "auto"
        raw_socket.check("--transport auto" if is_choice else "--tcp")


def ways_of_dialling(config: ClientConfig) -> list[Dial]:
    """Of --transport; nothing of fake TCP is loaded for UDP."""
    if config.transport == "udp":
        return [UdpSocket.dial]
    from kcptun_lite.net.fake_tcp.connection import FakeTcpConnection

    return [FakeTcpConnection.dial] if config.transport == "tcp" else [UdpSocket.dial, FakeTcpConnection.dial]
