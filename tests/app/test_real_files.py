"""JSON files as people have them load as they are: of each kind what its maker writes into it.

Debian's examples (kcptun 20210922, /usr/share/doc/kcptun/examples), kcptun's README of 2025, what installers of servers
wrote in 2017, and kuoruan's LuCI application.
"""

import pytest

from tests.app.configs import read

DEBIAN_CLIENT = """{
\t"localaddr": ":2000",
\t"remoteaddr": "11.22.33.44:2000",
\t"key": "PASSWORD",
\t"crypt": "aes-128",
\t"mode": "fast3",
\t"mtu": 1400,
\t"sndwnd": 128,
\t"rcvwnd": 1024,
\t"datashard": 10,
\t"parityshard": 3,
\t"dscp": 46,
\t"nocomp": true,
\t"acknodelay": false,
\t"nodelay": 1,
\t"interval": 40,
\t"resend": 2,
\t"nc": 1,
\t"sockbuf": 16777217,
\t"smuxver": 1,
\t"smuxbuf": 16777217,
\t"streambuf": 2097152,
\t"keepalive": 10,
\t"autoexpire": 1800,
\t"quiet": false,
\t"tcp": false
}
"""
NEWEST_SERVER = """{
"smuxver": 2, "listen": ":29900-29910", "target": "127.0.0.1:9000", "key": "test", "crypt": "aes-128-gcm",
"mode": "fast2", "mtu": 1400, "ratelimit": 0, "sndwnd": 2048, "rcvwnd": 2048, "datashard": 10, "parityshard": 0,
"dscp": 46, "nocomp": true, "acknodelay": false, "nodelay": 1, "interval": 20, "resend": 2, "nc": 1,
"sockbuf": 16777217, "smuxbuf": 16777217, "framesize": 4096, "streambuf": 2097152, "keepalive": 10, "closewait": 30,
"snmplog": "./snmp-20060102.log", "snmpperiod": 60, "pprof": false, "quiet": false, "tcp": false, "qpp": true,
"qpp-count": 61, "log": ""}
"""
INSTALLER_2017 = """\ufeff{\r
    "listen": ":29900",\r
    "target": "127.0.0.1:12948",\r
    "key": "very fast",\r
    "crypt": "salsa20",\r
    "mode": "manual",\r
    "mtu": 1350,\r
    "sndwnd": 1024,\r
    "rcvwnd": 1024,\r
    "nocomp": false,\r
    "datashard": 10,\r
    "parityshard": 3,\r
    "dscp": 0,\r
    "acknodelay": false,\r
    "nodelay": 0,\r
    "interval": 40,\r
    "resend": 0,\r
    "nc": 0,\r
    "sockbuf": 4194304,\r
    "keepalive": 10,\r
    "pprof": false,\r
    "log": "",\r
    "snmplog": "",\r
    "snmpperiod": 60\r
}\r
"""
LUCI_CLIENT = """{"localaddr":":12948","remoteaddr":"example.com:29900","key":"it's a secrect","crypt":"none",
"mode":"fast","conn":1,"autoexpire":0,"scavengettl":-1,"mtu":1350,"sndwnd":128,"rcvwnd":512,"datashard":70,"parityshard":30,"dscp":0,
"nocomp":true,"quiet":true,"sockbuf":4194304,"keepalive":10,"snmplog":null}
"""


@pytest.mark.parametrize(
    ("program", "text", "expected", "warnings"),
    [
        (
            "client",
            DEBIAN_CLIENT,
            {"crypt": "aes-128", "sndwnd": 128, "smuxver": 1, "nocomp": True, "autoexpire": 1800, "interval": 10},
            4,  # nodelay, interval, resend, nc beside a mode that has its own
        ),
        (
            "server",
            NEWEST_SERVER,
            {"crypt": "aes-128-gcm", "smuxver": 2, "parityshard": 0, "qpp": True, "closewait": 30, "interval": 20},
            5,  # those, and error correction that is off with one of its numbers 0
        ),
        ("server", INSTALLER_2017, {"key": "very fast", "interval": 40, "nc": 0, "sndwnd": 1024}, 0),
        ("client", LUCI_CLIENT, {"crypt": "none", "scavengettl": None, "parityshard": 30, "snmplog": ""}, 1),
    ],
    ids=["Debian", "newest", "2017", "LuCI"],
)
def test_it_loads(program: str, text: str, expected: dict[str, object], warnings: int) -> None:
    config, told = read(program, ["-c", "file"], {}, text)  # type: ignore[arg-type]
    assert {name: getattr(config, name) for name in expected} == expected
    assert len(told) == warnings, told
