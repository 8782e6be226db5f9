"""Names to addresses, and addresses to text.

In      host names, ports
Out     `resolve` all addresses of a name, in the system's order of preference; `format_address` text for the log
Knows   the resolver. Not: who connects or binds
Cost    one question to the resolver, which may block for seconds
"""

import socket

from kcptun_lite.core.batch.packets import Address
from kcptun_lite.errors import TransportError

MAPPED = "::ffff:"  # what the kernel puts before an IPv4 address on an IPv6 socket (RFC 4291 2.5.5.2)


def resolve(
    host: str, port: int, kind: socket.SocketKind, *, to_listen: bool = False
) -> list[tuple[socket.AddressFamily, Address]]:
    """All (family, address) of a host, best first (RFC 6724), never empty.

    An empty host is this machine: every interface if `to_listen`, IPv6 first, else loopback.
    Raises: TransportError that names the host.
    """
    try:
        # A server asks for each stream; the resolver would take 20 us and leave 8 KiB of the thread's stack in use.
        socket.inet_pton(socket.AF_INET, host)
        return [(socket.AF_INET, (host, port))]
    except (OSError, ValueError):
        pass  # a name, an IPv6 address, nothing
    try:
        # An ASCII name goes in as bytes: for a str, CPython loads its IDNA codec, which is 0.7 MiB
        # here and a package of its own (python3-codecs) on OpenWrt.
        name = host.encode("ascii") if host.isascii() else host
        found = socket.getaddrinfo(name or None, port, type=kind, flags=socket.AI_PASSIVE if to_listen else 0)
    except OSError as exc:
        raise TransportError(f"cannot resolve {host or 'this machine'}: {exc.strerror}") from exc
    except (UnicodeError, LookupError) as exc:  # empty or overlong label; no IDNA codec installed
        raise TransportError(f"cannot resolve {host}: {exc}") from exc
    # AI_PASSIVE gives 0.0.0.0 first, but it is :: that hears both families.
    if to_listen and not host:
        found.sort(key=lambda entry: entry[0] != socket.AF_INET6)
    known = (socket.AF_INET, socket.AF_INET6)
    addresses: list[tuple[socket.AddressFamily, Address]] = []
    for family, _, _, _, address in found:
        if family in known and isinstance(address[0], str):
            addresses.append((family, (address[0], *address[1:])))
    if not addresses:
        raise TransportError(f"cannot resolve {host}: no IPv4 or IPv6 address")
    return addresses


def mapped(address: Address) -> Address:
    """The address as an IPv6 socket takes it: IPv4 ones in their IPv6 clothes."""
    if ":" in address[0]:
        return address
    return (MAPPED + address[0], address[1], 0, 0)


def format_host(address: Address) -> str:
    """The host alone, IPv4-mapped as plain IPv4."""
    return address[0].removeprefix(MAPPED)


def format_address(address: Address) -> str:
    """`host:port` as kcptun's log lines have it: IPv4-mapped as plain IPv4, IPv6 in brackets."""
    host = format_host(address)
    return f"[{host}]:{address[1]}" if ":" in host else f"{host}:{address[1]}"
