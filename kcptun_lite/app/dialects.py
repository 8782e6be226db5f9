"""Which smux version and compression a client may speak, the likeliest first, and what it says of what it has found.

In      a `ClientConfig`
Out     dialects; a sentence
Knows   the defaults of the generations (docs/compatibility.md). Not: how a server shows what it speaks
"""

from kcptun_lite.app.config import ClientConfig
from kcptun_lite.core.mux.dialect import Dialect
from kcptun_lite.core.mux.snappy import cramjam_if_any

VERSIONS = (1, 2)  # 1 is the default of 2017 to November 2025, and all that 2017 has; 2 is that of the newest
NEWEST_ALONE = {"aes-128-gcm"}  # methods that no program has whose default is smux 1


def likely_dialects(config: ClientConfig) -> list[Dialect]:
    """What the options leave open, the likeliest first. A server of ours takes the first one as it comes."""
    is_newest = config.qpp or config.crypt in NEWEST_ALONE
    versions = (config.smuxver,) if config.smuxver else tuple(reversed(VERSIONS)) if is_newest else VERSIONS
    compressions: tuple[bool, ...] = (not config.nocomp,)
    if config.nocomp is None:  # where it is dear, a server of ours does without it
        compressions = (True, False) if cramjam_if_any() else (False, True)
    return [Dialect(version, compress) for compress in compressions for version in versions]


def describe_found(server: str, dialect: Dialect) -> str:
    """What is said when something else than the first guess was understood."""
    return f"server {server} speaks {dialect}; set so, first answers come some round trips sooner"
