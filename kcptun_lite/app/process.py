"""What each process of ours sets up first: its name, its limits, its log.

In      the program's name, a configuration as plain values
Out     nothing
Knows   what the system gives to a process. Not: what runs in it
"""

from kcptun_lite import log
from kcptun_lite.app.config import Plain


def set_up_process(program: str) -> None:
    """Name it, and let it have many descriptors."""
    _name_process(f"kcptun-lite-{program}")
    _raise_descriptor_limit()


def set_up_log(program: str, plain: Plain) -> None:
    """Open the log that the configuration names. Raises: ConfigError."""
    log.setup(
        path=plain["log"],
        level=log.Level[plain["loglevel"].upper()],
        quiet=plain["quiet"],
        program=f"kcptun-lite-{program}",
        name=plain["name"],
        is_json=plain["logformat"] == "json",
    )


def _raise_descriptor_limit() -> None:
    """As many descriptors as the system lets us have: each stream takes one, and the usual 1024 are soon gone."""
    try:
        import resource

        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    except (ImportError, OSError, ValueError):  # not Unix; macOS takes no "unlimited" here
        pass


def _name_process(name: str) -> None:
    """What ps and pidof call the process, after exec has made it a python3 (Linux; it keeps 15 bytes)."""
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(name[:15])
    except OSError:
        pass
