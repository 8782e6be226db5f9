"""Every option in one table: its names, defaults, reader and one line of help.

In      nothing
Out     `OPTIONS` in the order of the help text, `ACTIONS`, `MODES`
Knows   what each option alone may be. Not: where values come from, which options must fit each other
Wire    docs/protocol.md, "Options", "Modes"
Cost    loaded by the program that parses, never by the worker
"""

from dataclasses import dataclass

from kcptun_lite.app import values
from kcptun_lite.core.crypt.crypt import METHODS
from kcptun_lite.core.wire import FEC_MAX_SHARDS, KCP_WND_MAX, MTU_MAX

DEFAULT_KEY = "it's a secrect"  # kcptun's own, spelt as there; everybody knows it
MANUAL = "manual"
MANUAL_OPTIONS = ("nodelay", "interval", "resend", "nc")

# mode -> MANUAL_OPTIONS, as since 2017-03-21
MODES: dict[str, tuple[int, int, int, int]] = {
    "normal": (0, 40, 2, 1),
    "fast": (0, 30, 2, 1),
    "fast2": (1, 20, 2, 1),
    "fast3": (1, 10, 2, 1),
}

WINDOWS = {"client": (128, 512), "server": (1024, 1024)}  # sndwnd and rcvwnd of kcptun, segments

MTU_MIN = 50  # bytes; kcp-go ignores less
KEEPALIVE_MAX_S = 30  # smux drops a peer that is silent for 30 s, and beats at least that often
WORKERS_MAX = 64
FRAME_MAX = 0xFFFF  # bytes; the length of a smux frame has 16 bits

BASIC, TUNING, STREAMS, REPORTS, EXPERT = "basic", "tuning", "streams and memory", "log and statistics", "expert"
GROUPS = (BASIC, TUNING, STREAMS, REPORTS, EXPERT)

_METAVARS: dict[values.Reader, str] = {
    values.switch: "=false",
    values.switch_or_auto: "=false",
    values.size: "SIZE",
    values.percent: "N",
    values.text: "TEXT",
    values.path: "FILE",
    values.device: "DEVICE",
    values.number_or_off: "N",
    values.seconds_or_off: "N",
    values.listening_or_path: "ADDRESS",
    values.listening_or_off: "ADDRESS",
    values.listening_range: "ADDRESS",
    values.remotes: "ADDRESS",
    values.target: "ADDRESS",
}


@dataclass(frozen=True, slots=True)
class Option:
    """One option of one or both programs."""

    name: str
    "as kcptun spells it on the command line"
    read: values.Reader
    client: str | None
    "the client's default as a text; None: the client has no such option"
    server: str | None
    group: str
    help: str
    aliases: tuple[str, ...] = ()
    json: str = ""
    "its key in a -c file, if that is not the name in lower case"

    @property
    def dest(self) -> str:
        return self.name.lower()

    @property
    def flag(self) -> str:
        return f"--{self.name}" if len(self.name) > 1 else f"-{self.name}"

    @property
    def variable(self) -> str:
        return f"KCPTUN_{self.name.upper()}"

    @property
    def json_key(self) -> str:
        return self.json or self.dest

    @property
    def json_types(self) -> tuple[type, ...]:
        """What its value may be in a -c file."""
        if self.is_switch:
            return (bool,)
        if isinstance(self.read, values.Number) or self.read in (values.number_or_off, values.seconds_or_off):
            return (int,)
        if isinstance(self.read, values.NumberOrAuto) or self.read in (values.size, values.percent):
            return (str, int)
        return (str,)

    @property
    def is_switch(self) -> bool:
        return self.read in (values.switch, values.switch_or_auto)

    @property
    def metavar(self) -> str:
        """What stands for the value in the help text; a switch is not followed by one, but may be by `=false`."""
        if isinstance(self.read, values.Number | values.NumberOrAuto):
            return "N"
        return _METAVARS.get(self.read, "WORD")

    def default(self, program: str) -> str | None:
        return self.client if program == "client" else self.server


@dataclass(frozen=True, slots=True)
class Action:
    """A word of the command line that asks for something else than a tunnel; no variable and no file has it."""

    name: str
    help: str
    aliases: tuple[str, ...] = ()


ACTIONS = (
    Action("genkey", "print a new key for both ends, and end"),
    Action(
        "test-config",
        "say what would run and from where each value comes, and end; exit code 0, or 2 if it cannot run",
    ),
    Action("print-config", "print all that is set, the key too, as JSON that -c takes, and end"),
    Action("help", "show the basic options", ("h",)),
    Action("help-all", "show all options"),
    Action("version", "show the version", ("v",)),
)


def _option(
    name: str,
    read: values.Reader,
    default: str,
    group: str,
    help: str,
    *,
    aliases: tuple[str, ...] = (),
    json: str = "",
) -> Option:
    """An option of both programs with one default."""
    return Option(name, read, default, default, group, help, aliases, json)


_count = values.Number(0)
_bytes = values.Number(1)
_shards = values.NumberOrAuto(values.Number(0, FEC_MAX_SHARDS))
_window = values.NumberOrAuto(values.Number(1, KCP_WND_MAX))

OPTIONS: tuple[Option, ...] = (
    Option(
        "localaddr",
        values.listening_or_path,
        ":12948",
        None,
        BASIC,
        "where programs connect to: host:port (no host: all addresses) or the path of a unix socket",
        ("l",),
    ),
    Option(
        "remoteaddr",
        values.remotes,
        "",
        None,
        BASIC,
        "the server, which must be given (kcptun's default is vps:29900): host:port or host:min-max, a random port for "
        "each session; several, with commas: the next one when one is dead, or sessions dealt out by weights, as "
        "a:29900*3,b:29900",
        ("r",),
    ),
    Option(
        "listen",
        values.listening_range,
        None,
        ":29900",
        BASIC,
        "UDP port to serve on: host:port or host:min-max (no host: all addresses)",
        ("l",),
    ),
    Option(
        "target",
        values.target,
        None,
        "127.0.0.1:12948",
        BASIC,
        "where streams are connected to: host:port or the path of a unix socket",
        ("t",),
    ),
    _option("key", values.text, DEFAULT_KEY, BASIC, "the secret shared with the other end; better in the environment"),
    _option(
        "crypt",
        values.OneOf(tuple(METHODS), "; kcptun takes other words for aes, here it must be written"),
        "aes",
        BASIC,
        f"{', '.join(METHODS)}; the same at both ends",
    ),
    _option(
        "mode",
        values.OneOf((*reversed(MODES), MANUAL), "; kcptun takes other words for manual, here it must be written"),
        "fast",
        BASIC,
        f"{', '.join(reversed(MODES))}: from quick to thrifty; {MANUAL}: the numbers of the expert options",
    ),
    _option("c", values.path, "", BASIC, "JSON file with kcptun's keys; what it sets goes before the command line"),
    Option(
        "check",
        values.switch,
        "false",
        None,
        BASIC,
        "try each server once, say what is wrong, and end; exit code 0 if all is well, 10: name not found, 11: port "
        "closed, 12: no answer, 13: key or crypt, 14: nocomp or smuxver, 15: target",
    ),
    Option(
        "conn",
        values.Number(1, 0xFFFF),
        "1",
        None,
        TUNING,
        "number of sessions (UDP sockets) that streams take turns on",
    ),
    Option(
        "autoexpire",
        values.seconds_or_off,
        "0",
        None,
        TUNING,
        "seconds after which a session gets no more new streams; 0 or -1: never",
    ),
    Option(
        "scavengettl",
        values.number_or_off,
        "600",
        None,
        TUNING,
        "seconds an expired session may live on for its open streams; -1: as long as they do",
    ),
    _option(
        "tcp",
        values.switch,
        "false",
        TUNING,
        "send packets as TCP segments, where UDP is blocked or throttled (Linux, root); a server takes both",
    ),
    Option(
        "transport",
        values.OneOf(("udp", "tcp", "auto")),
        "udp",
        None,
        TUNING,
        "udp, tcp (as --tcp), or auto: as --tcp while nothing comes back over UDP (Linux, root)",
    ),
    Option(
        "interface",
        values.device,
        "",
        None,
        TUNING,
        "network device that packets to the server leave by, such as pppoe-wan (Linux); it may come and go",
    ),
    _option("mtu", values.Number(MTU_MIN, MTU_MAX), "1350", TUNING, "bytes of UDP payload in the largest packet"),
    _option("sndwnd", _window, "auto", TUNING, "packets under way at most; auto: what the line carries"),
    _option("rcvwnd", _window, "auto", TUNING, "packets the other end may have under way at most; auto: as it needs"),
    _option(
        "datashard",
        _shards,
        "auto",
        TUNING,
        "packets in an error correction group, 0: none; auto: as a kcptun at the other end has it, else none",
        aliases=("ds",),
    ),
    _option(
        "parityshard",
        _shards,
        "auto",
        TUNING,
        "packets added to each group, 0: none; auto: as a kcptun at the other end has it, else none",
        aliases=("ps",),
    ),
    _option("dscp", values.Number(0, 63), "0", TUNING, "DSCP class of the UDP packets"),
    Option(
        "nocomp",
        values.switch_or_auto,
        "auto",
        "false",
        TUNING,
        "do not compress; a client that is not told finds out what the server does, a server takes its clients as they "
        "come",
    ),
    _option("sockbuf", _bytes, "4194304", TUNING, "bytes of the UDP socket's buffers, each way"),
    _option(
        "ratelimit",
        values.Number(-values.INT32_MAX),
        "0",
        TUNING,
        "bytes per second and session sent at most; 0: no limit",
    ),
    Option(
        "smuxver",
        values.NumberOrAuto(values.Number(1, 2)),
        "auto",
        "1",
        STREAMS,
        "version of the stream protocol; auto: the client finds out, the server takes its clients as they come",
    ),
    _option("smuxbuf", _bytes, "4194304", STREAMS, "bytes received for all streams of a session and not yet passed on"),
    _option("streambuf", _bytes, "2097152", STREAMS, "bytes received for one stream and not yet passed on, smuxver 2"),
    _option("framesize", values.Number(1, FRAME_MAX), "32768", STREAMS, "bytes in the largest frame of a stream"),
    _option(
        "keepalive", values.Number(1, KEEPALIVE_MAX_S), "10", STREAMS, "seconds between signs of life of a session"
    ),
    _option("closewait", _count, "300", STREAMS, "seconds without a byte after which a half-closed stream is cut"),
    _option("maxstreams", _bytes, "1024", STREAMS, "streams open at most"),
    Option("maxsessions", _bytes, None, "1024", STREAMS, "sessions at most; further clients are refused"),
    Option(
        "workers",
        values.NumberOrAuto(values.Number(1, WORKERS_MAX)),
        None,
        "1",
        STREAMS,
        "processes that share the sessions, as one of them uses one core; auto: one for each core",
    ),
    Option(
        "drain",
        _count,
        None,
        "60",
        STREAMS,
        "seconds that streams may go on after a reload (SIGUSR2: on old workers) or SIGQUIT; then what is open is cut",
    ),
    Option(
        "strict",
        values.switch,
        None,
        "false",
        STREAMS,
        "serve only clients whose smuxver and nocomp are the server's own",
    ),
    _option(
        "memlimit",
        values.size,
        "0",
        STREAMS,
        "bytes of all buffers and queues together at most, such as 8M; also from GOMEMLIMIT; 0: no limit",
    ),
    _option(
        "gogc", values.percent, "100", STREAMS, "idle buffers kept, percent of those in use, or off; also from GOGC"
    ),
    _option(
        "log", values.path, "", REPORTS, "file to append the log to, instead of stderr; /dev/log: the system's log"
    ),
    _option(
        "logformat",
        values.OneOf(("text", "json")),
        "text",
        REPORTS,
        "text, or json: each line an object with time, level, event and message",
    ),
    _option("loglevel", values.OneOf(("error", "warning", "info")), "info", REPORTS, "error, warning, info"),
    _option(
        "status",
        values.path,
        "",
        REPORTS,
        "JSON file to keep the state of sessions and counters in; the socket FILE.sock gives it each second",
    ),
    Option(
        "health",
        values.listening_or_off,
        None,
        "",
        REPORTS,
        "host:port for balancers to ask over HTTP: 200 while new sessions are welcome, 503 when draining, "
        "stopping or full; best on 127.0.0.1 or an address of your own network",
    ),
    _option("name", values.text, "", REPORTS, "what this tunnel is called, by ps and in the system's log"),
    _option("quiet", values.switch, "false", REPORTS, "no lines about streams opened and closed"),
    _option(
        "snmplog",
        values.path,
        "",
        REPORTS,
        "CSV file to append counters to; Go's time layout in the name: ./snmp-20060102.log",
    ),
    _option("snmpperiod", _count, "60", REPORTS, "seconds between two lines of snmplog; 0: none"),
    _option("acknodelay", values.switch, "false", EXPERT, "send acknowledgements at once, not with the next round"),
    _option("nodelay", _count, "0", EXPERT, "mode manual: 1 shortens the wait before sending again"),
    _option("interval", _count, "50", EXPERT, "mode manual: milliseconds between two rounds of sending, 10 to 5000"),
    _option("resend", _count, "0", EXPERT, "mode manual: send again after so many newer acknowledgements; 0: never"),
    _option("nc", _count, "0", EXPERT, "mode manual: 1 switches congestion control off"),
    _option("QPP", values.switch, "false", EXPERT, "scramble streams with permutation pads; the same at both ends"),
    _option("QPPCount", values.Number(1, 0xFFFF), "61", EXPERT, "number of those pads", json="qpp-count"),
    _option("pprof", values.switch, "false", EXPERT, "accepted for kcptun's sake; does nothing here"),
)
