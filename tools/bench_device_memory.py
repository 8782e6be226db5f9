"""What a client takes of a small device's memory: with OpenWrt's settings, and no more of Python than its packages.

In      nothing
Out     memory at rest and after 16 MB each way over 20 Mbit/s, without and with error correction; size of our packages
Knows   the device of tests/openwrt, /proc. Not: other processors, whose Python is smaller with 32 bits

The settings are read from the file that the package ships. Everything is byte code, as it is on a device.

    python tools/bench_device_memory.py
"""

import compileall
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from time import sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.openwrt import device
from tests.openwrt.router import FILES
from tests.programs import Program, start_proxy, start_server
from tests.traffic import Target, connect, exchange, exchange_handler
from tools.lossy_proxy import Link

HARD = ("python3-cryptodome", "python3-configargparse")
SERVICE = {"enabled", "bind_address", "local_port", "server", "server_port", "key"}
"what is not an option of the program, or has no value that suits"
SETTLE = 12.0  # s until buffers have been given back (docs/memory.md)
MIB = 1 << 20
LINE = Link(delay_ms=50, rate_mbit=20)
LOAD = 16_000_000  # bytes each way


def shipped() -> dict[str, str]:
    """The options of the client in the package's configuration."""
    section = (FILES / "kcptun-lite.config").read_text().partition("config client")[2].partition("config server")[0]
    return {name: value for name, value in re.findall(r"option (\w+) '(.*)'", section) if name not in SERVICE}


def measure(root: Path, options: dict[str, str]) -> tuple[float, float, float]:
    """MiB at rest, after the load, at most."""
    with ExitStack() as stack:
        target = stack.enter_context(Target(exchange_handler))
        server, remote = start_server("ours", {"target": target.address, "key": "k", "nocomp": True})
        stack.callback(server.stop)
        proxy, remote = start_proxy(remote, LINE, seed=1)
        stack.callback(proxy.stop)
        variables = {"KEY": "k", "LOCALADDR": "127.0.0.1:0", "REMOTEADDR": remote, **options}
        variables = {f"KCPTUN_{name.upper()}": value for name, value in variables.items()}
        client = Program(
            "client", ["env", "-i", *map("=".join, variables.items()), f"{root}/usr/bin/kcptun-lite-client"]
        )
        stack.callback(client.stop)
        door = client.wait_for_log(r"listening on: (\S+)").group(1)
        exchange(connect(door), up=1000, down=1000, seed=1)  # everything is loaded
        sleep(SETTLE)
        rest = client.rss() / MIB
        exchange(connect(door), up=LOAD, down=LOAD, seed=1)
        sleep(SETTLE)
        return rest, client.rss() / MIB, client.usage().peak_rss / MIB


def compressed(paths: list[Path]) -> int:
    """Bytes of these files in a package."""
    done = subprocess.run(["tar", "-czf", "-", *map(str, paths)], capture_output=True, check=True)
    return len(done.stdout)


def main() -> None:
    with TemporaryDirectory() as folder:
        for number, (name, packages, shards) in enumerate(
            (
                ("as shipped", HARD, ("0", "0")),
                ("with error correction 10/3, python3-numpy", (*HARD, "python3-numpy"), ("10", "3")),
                ("with error correction 10/3, without it", HARD, ("10", "3")),
            )
        ):
            root = Path(folder) / str(number)
            device.install_python(root, *packages)
            programs = ["kcptun-lite", "kcptun-lite-client"]
            device.build(root, Path(folder) / "build", *programs)
            compileall.compile_dir(root / f"usr/lib/python{device.VERSION}", maxlevels=0, quiet=1)
            own = [path for path in root.rglob("*kcptun*") if path.is_dir() or path.parent.name == "bin"]
            if number == 0:
                files = [path for place in own for path in ([place] if place.is_file() else place.rglob("*"))]
                size = sum(path.stat().st_size for path in {path for path in files if path.is_file()})
                print(f"our packages: {size / 1e6:.2f} MB, compressed {compressed(own) / 1e6:.2f} MB")
            options = shipped() | dict(zip(("datashard", "parityshard"), shards, strict=True))
            rest, after, most = measure(root, options)
            print(f"{name}: at rest {rest:.1f} MiB, after 16 MB each way {after:.1f}, at most {most:.1f}", flush=True)


if __name__ == "__main__":
    main()
