"""Configurations as the programs read them, and what they say of options that cannot be used.

In      arguments, an environment, a file's content
Out     the configuration and the warnings; or the one sentence
Knows   parse. Not: files, the process's own environment
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from kcptun_lite.app.config import ClientConfig, ServerConfig
from kcptun_lite.app.parsing import Program, parse
from kcptun_lite.errors import ConfigError

NEEDED = {"KCPTUN_KEY": "test key", "KCPTUN_REMOTEADDR": "vps:29900"}
"in the environment: without a key there is a warning, without a server no client"


def read(
    program: Program,
    arguments: Sequence[str] = (),
    environment: Mapping[str, str] = NEEDED,
    file: str | bytes | None = None,
) -> tuple[Any, list[str]]:
    """The configuration and the warnings; `file` is what every path holds."""

    def read_file(path: str) -> bytes:
        if file is None:
            raise FileNotFoundError(2, "No such file or directory", path)
        return file if isinstance(file, bytes) else file.encode()

    return parse(program, arguments, environment, read_file)


def client(*arguments: str, environment: Mapping[str, str] = NEEDED, file: str | bytes | None = None) -> ClientConfig:
    """The client's configuration, from options that bring no warning."""
    config, warnings = read("client", arguments, environment, file)
    assert not warnings
    assert isinstance(config, ClientConfig)
    return config


def server(*arguments: str) -> ServerConfig:
    config, warnings = read("server", arguments)
    assert not warnings
    assert isinstance(config, ServerConfig)
    return config


def complaint(
    *arguments: str,
    program: Program = "client",
    environment: Mapping[str, str] = NEEDED,
    file: str | bytes | None = None,
) -> str:
    """The one sentence about options that cannot be used."""
    with pytest.raises(ConfigError) as caught:
        read(program, arguments, environment, file)
    sentence = str(caught.value)
    assert caught.value.exit_code == 2
    assert sentence and "\n" not in sentence
    return sentence
