"""What the two programs run on: every option as a checked value, and how it is told in the log.

In      plain values, checked and resolved before
Out     `ClientConfig`, `ServerConfig`; the start-up lines of `describe`
Knows   names, units and meaning of the options. Not: where they came from, or how they are checked
Wire    docs/protocol.md, "Options", "Log and signals"
Cost    imports nothing that the worker does not have anyway

A configuration crosses from the program that parsed it to the one that works as a plain dict
(`pack`, `unpack`), because marshal, which needs no import, carries nothing else.
"""

from typing import Any, NamedTuple, NoReturn, Self, dataclass_transform

from kcptun_lite import __version__

Plain = dict[str, Any]
"names and values that marshal can carry"

JOB_VARIABLE = "_KCPTUN_LITE_JOB"
"descriptor to which a started program writes what it would run, and ends (app/workers/reload)"


class Endpoint(NamedTuple):
    """Where to listen or to connect: a host with one port or a range of them, or a unix socket."""

    host: str = ""
    "name or address without brackets; empty: all addresses (only to listen on)"
    port_min: int = 0
    port_max: int = 0
    path: str = ""
    "unix socket; a leading @ stands for Linux's abstract name space. If set, the rest is empty"
    weight: int = 0
    "of one of several servers: its part of the sessions; 0: they are used one after the other"

    def __str__(self) -> str:
        if self.path:
            return self.path
        host = f"[{self.host}]" if ":" in self.host else self.host
        ports = f"{self.port_min}" if self.port_min == self.port_max else f"{self.port_min}-{self.port_max}"
        return f"{host}:{ports}" + (f"*{self.weight}" if self.weight else "")


@dataclass_transform(kw_only_default=True, frozen_default=True)
class Record:
    """Annotated names as keyword arguments and attributes that do not change.

    A frozen dataclass in ten lines: the module `dataclasses` brings `inspect` with it, 1.4 MiB.
    """

    def __init__(self, **values: Any) -> None:
        if values.keys() != set(self.names()):
            raise TypeError(f"{type(self).__name__} takes {', '.join(self.names())}")
        vars(self).update(values)

    @classmethod
    def names(cls) -> list[str]:
        return [name for base in reversed(cls.__mro__) for name in getattr(base, "__annotations__", ())]

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"{name} cannot be changed")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    __hash__ = None  # type: ignore[assignment]


class CommonConfig(Record):
    """The options that both programs have."""

    key: str
    "the passphrase"
    crypt: str
    mtu: int
    "bytes of UDP payload"
    sndwnd: int | None
    "segments; None: what the line carries"
    rcvwnd: int | None
    "segments; None: what the other end needs"
    datashard: int | None
    "0, together with parityshard: no error correction is sent; None: kcptun's with kcptun, none with our kind"
    parityshard: int | None
    nodelay: int
    "this and the next three: the mode's numbers"
    interval: int
    "ms"
    resend: int
    nc: int
    acknodelay: bool
    nocomp: bool | None
    "None: as the server has it (clients)"
    dscp: int
    sockbuf: int
    "bytes"
    ratelimit: int
    "bytes/s and session; 0: no limit"
    smuxver: int | None
    "None: as the server has it (clients)"
    smuxbuf: int
    "bytes"
    streambuf: int
    "bytes"
    framesize: int
    "bytes"
    keepalive: int
    "s"
    closewait: int
    "s"
    qpp: bool
    qppcount: int
    tcp: bool
    "packets travel as TCP segments, or may; a server takes both"
    snmplog: str
    "path with Go's time layout; empty: none"
    snmpperiod: int
    "s; 0: none"
    log: str
    "path; empty: stderr; /dev/log: the system's log"
    logformat: str
    "text or json"
    loglevel: str
    status: str
    "path; empty: none"
    name: str
    "what the tunnel is called in the system's log and by ps; may be empty"
    quiet: bool
    memlimit: int
    "bytes; 0: no limit"
    gogc: int | None
    "percent of the buffers in use that may lie idle; None: all"
    maxstreams: int
    parent: int
    "process whose end ends the program, too; 0: none"

    def pack(self) -> Plain:
        """Everything as plain values; `unpack` is the way back."""
        return {name: _plain(getattr(self, name)) for name in self.names()}

    @classmethod
    def unpack(cls, values: Plain) -> Self:
        return cls(**values)


class ClientConfig(CommonConfig):
    """What the client runs on."""

    localaddr: Endpoint
    remoteaddr: tuple[Endpoint, ...]
    "servers to try, one or more"
    conn: int
    "sessions used in turn"
    autoexpire: int
    "s; 0: sessions do not expire"
    scavengettl: int | None
    "s that an expired session may live on; None: as long as its streams"
    interface: str
    "network device that the packets leave by; empty: as the routes say"
    transport: str
    "udp, tcp or auto"
    check: bool
    "try the server once and say what is wrong"

    @classmethod
    def unpack(cls, values: Plain) -> Self:
        remotes = tuple(Endpoint(*remote) for remote in values["remoteaddr"])
        return cls(**values | {"localaddr": Endpoint(*values["localaddr"]), "remoteaddr": remotes})


class ServerConfig(CommonConfig):
    """What the server runs on."""

    listen: Endpoint
    target: Endpoint
    maxsessions: int
    strict: bool
    "clients with another smuxver or nocomp are not served"
    workers: int
    "processes; more than 1: under a parent (app/workers)"
    drain: int
    "s that old workers go on after a reload"
    health: Endpoint | None
    "where balancers ask; None: nowhere"

    @classmethod
    def unpack(cls, values: Plain) -> Self:
        health = Endpoint(*values["health"]) if values["health"] else None
        addresses = {"listen": Endpoint(*values["listen"]), "target": Endpoint(*values["target"]), "health": health}
        return cls(**values | addresses)


def _plain(value: Any) -> Any:
    return tuple(map(_plain, value)) if isinstance(value, tuple) else value


def describe(config: ClientConfig | ServerConfig, listening: str = "") -> list[str]:
    """The lines kcptun logs at its start, in its order (docs/protocol.md, "Log and signals"); never the key.

    Args:
        listening: the address really bound, where the configuration left the port to the system.
    """
    client = config if isinstance(config, ClientConfig) else None
    server = config if isinstance(config, ServerConfig) else None
    lines = [f"version: {__version__}", f"smux version: {_auto(config.smuxver)}"]
    if client:
        lines.append(f"listening on: {listening or client.localaddr}")
    if server:
        lines += [f"listening on: {listening or server.listen}", f"target: {server.target}"]
    lines += [
        f"encryption: {config.crypt}",
        f"nodelay parameters: {config.nodelay} {config.interval} {config.resend} {config.nc}",
    ]
    if client:
        lines.append(f"remote address: {','.join(map(str, client.remoteaddr))}")
        if client.interface:
            lines.append(f"interface: {client.interface}")
    lines += [
        f"sndwnd: {_auto(config.sndwnd)} rcvwnd: {_auto(config.rcvwnd)}",
        f"compression: {'auto' if config.nocomp is None else _go(not config.nocomp)}",
        f"mtu: {config.mtu}",
        f"datashard: {_auto(config.datashard)} parityshard: {_auto(config.parityshard)}",
        f"acknodelay: {_go(config.acknodelay)}",
        f"dscp: {config.dscp}",
        f"sockbuf: {config.sockbuf}",
        f"smuxbuf: {config.smuxbuf}",
        f"streambuf: {config.streambuf}",
        f"keepalive: {config.keepalive}",
    ]
    if client:
        lines += [
            f"conn: {client.conn}",
            f"autoexpire: {client.autoexpire}",
            f"scavengettl: {-1 if client.scavengettl is None else client.scavengettl}",
        ]
    lines += [f"snmplog: {config.snmplog}", f"snmpperiod: {config.snmpperiod}"]
    if server:
        lines.append("pprof: false")
    return [*lines, f"quiet: {_go(config.quiet)}", f"tcp: {_go(config.tcp)}"]


def _auto(value: int | None) -> str:
    return "auto" if value is None else str(value)


def _go(value: bool) -> str:
    return "true" if value else "false"
