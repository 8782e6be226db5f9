"""Sections of /etc/config/kcptun-lite as text, with the least that a tunnel needs."""

NASTY = 'it\'s "secret" $HOME `id` $(id) \\n # * = é'
"a key with everything a shell could stumble over"


def option(name: str, value: str) -> str:
    quoted = value.replace("'", "'\\''")
    return f"\toption {name} '{quoted}'\n"


def section(kind: str, name: str, **options: str) -> str:
    return f"config {kind} {name}\n" + "".join(option(*item) for item in options.items())


def client(name: str, **options: str) -> str:
    common = {"enabled": "1", "key": "k", "server": "192.0.2.9", "server_port": "29900", "local_port": "12948"}
    return section("client", name, **common | {"nocomp": "1"} | options)


def server(name: str, **options: str) -> str:
    common = {"enabled": "1", "key": "k", "listen": "29900", "target": "127.0.0.1", "target_port": "12948"}
    return section("server", name, **common | {"nocomp": "1"} | options)
