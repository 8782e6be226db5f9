"""What a client costs on a small router's processor: ours beside kcptun's, both run by qemu-user.

In      processors that tools/foreign_arch.sh knows
Out     processor time for the start, for a MiB each way, for a new connection; memory. For each client and processor
Knows   the programs from outside. Not: how fast a real processor is

Emulation multiplies all times, so only what stands side by side can be compared. The settings are those shipped for
OpenWrt, without numpy and compression; the server is ours, and not emulated.

    python tools/bench_foreign_arch.py mipsel armhf
"""

import argparse
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from time import sleep

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.programs import Program, kcptun_arguments, start_server
from tests.traffic import Target, connect, exchange, exchange_handler

ROOT = Path(__file__).resolve().parent.parent
OPTIONS: dict[str, object] = {
    "key": "k", "crypt": "aes", "mode": "fast", "mtu": 1350, "datashard": 0, "parityshard": 0, "nocomp": True,
    "smuxver": 1, "sockbuf": 1 << 20, "smuxbuf": 1 << 20, "streambuf": 1 << 19, "quiet": True,
}  # fmt: skip
QEMU = {"mipsel": "mipsel", "armhf": "arm", "s390x": "s390x", "i386": "i386", "ppc64el": "ppc64le"}
CONNECTIONS = 40
PATIENCE = 120.0  # s for one transfer


def commands(processor: str) -> dict[str, list[str]]:
    """How to start each client there."""
    if processor == "here":
        return {"ours": [sys.executable, "-m", "kcptun_lite", "client"], "kcptun's": ["kcptun-client"]}
    script = str(ROOT / "tools/foreign_arch.sh")
    python = subprocess.run([script, processor], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    root = str(Path(python).parent / "root")
    qemu = [f"qemu-{QEMU[processor]}-static", "-L", root]
    return {
        "ours": [python, "-m", "kcptun_lite", "client"],
        "kcptun's": [*qemu, f"{root}/usr/bin/kcptun-client"],
    }


def measure(command: list[str], own: dict[str, object], mebibytes: int) -> str:
    """A row of the table."""
    with ExitStack() as stack:
        target = stack.enter_context(Target(exchange_handler))
        server, remote = start_server("ours", {**OPTIONS, "target": target.address, "memlimit": "32M"})
        stack.callback(server.stop)
        arguments = kcptun_arguments({**OPTIONS, **own, "localaddr": "127.0.0.1:0", "remoteaddr": remote})
        client = Program("client", [*command, *arguments], env={"PYTHONPATH": str(ROOT)})
        stack.callback(client.stop)
        door = client.wait_for_log(r"listening on: (\S+)", timeout=PATIENCE).group(1)
        sleep(1)  # the rest of the start

        def cost(times: int, up: int, down: int) -> float:
            """Processor time of one exchange, s."""
            before = client.usage()
            for _ in range(times):
                exchange(connect(door, PATIENCE), up=up, down=down, seed=1)
            after = client.usage()
            return (after.user + after.system - before.user - before.system) / times

        start = client.usage().user + client.usage().system
        cost(1, 1000, 1000)  # the session
        down = cost(1, 1, mebibytes << 20) / mebibytes
        up = cost(1, mebibytes << 20, 1) / mebibytes
        connection = cost(CONNECTIONS, 1000, 1000)
        memory = client.usage().peak_rss / (1 << 20)
        return f"{start:7.2f} s {1000 * down:8.0f} ms {1000 * up:8.0f} ms {1000 * connection:8.1f} ms {memory:6.0f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description="Processor time of clients on other processors, under qemu-user.")
    parser.add_argument("processors", nargs="*", default=["mipsel", "armhf"], help="(mipsel armhf)")
    parser.add_argument("--mib", type=int, default=16, help="MiB each way (%(default)s)")
    options = parser.parse_args()
    print(
        f"{'processor':10} {'client':10} {'start':>9} {'MiB down':>11} {'MiB up':>11} {'connection':>11} {'memory':>10}"
    )
    for processor in ("here", *options.processors):
        for name, command in commands(processor).items():
            own = {"memlimit": "32M"} if name == "ours" else {}
            print(f"{processor:10} {name:10} {measure(command, own, options.mib)}", flush=True)


if __name__ == "__main__":
    main()
