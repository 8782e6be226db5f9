"""What one of several workers is given of the whole, and which words it exchanges with the parent.

In      the configuration of a server
Out     that of one worker; the form of a worker's place
Knows   which options mean the whole server (docs/scaling.md, "Many cores"). Not: processes
"""

from typing import TypedDict

from kcptun_lite.app.config import Plain

# The parent's words, and behind some of them the number of a slot.
COUNTERS, STATUS, HEALTH, DRAIN, FORGET = b"c", b"s", b"h", b"d", b"f"


class Place(TypedDict):
    """Where a worker stands among the others; plain, so that marshal can carry it."""

    index: int
    "of `--workers`"
    slot: int
    "of twice as many, so that old and new workers have one each while they are replaced"
    ports: list[tuple[int, bool]]
    "descriptors, and whether this worker reads what comes there (net/udp/shared_port)"
    is_steered: bool
    inbox: int
    "descriptor for what other workers send"
    outboxes: dict[int, int]
    "slot -> descriptor"
    awaited: list[int]
    "slots of workers that run"
    channel: int
    "descriptor, to the parent"
    is_hushed: bool
    "another worker tells in the log what all have to tell at the start"


def of_worker(server: Plain) -> Plain:
    """A worker's configuration: its part of what the whole server may have; what the parent does is left out.

    `--ratelimit` means a session, which is whole on one worker.
    """
    workers = server["workers"]
    parts = {name: server[name] // workers for name in ("maxsessions", "maxstreams", "memlimit")}
    return {**server, **parts, "workers": 1, "status": "", "snmplog": "", "health": None, "parent": 0}
