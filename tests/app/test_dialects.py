"""What a client may speak, by its options."""

import pytest

from kcptun_lite.app import dialects
from kcptun_lite.app.dialects import likely_dialects
from kcptun_lite.core.mux.dialect import Dialect
from tests.app.configs import client, server

ONE, TWO, ONE_BARE, TWO_BARE = Dialect(1, True), Dialect(2, True), Dialect(1, False), Dialect(2, False)


@pytest.mark.parametrize(
    ("arguments", "likely"),
    [
        ([], [ONE, TWO, ONE_BARE, TWO_BARE]),
        (["--smuxver", "auto", "--nocomp=auto"], [ONE, TWO, ONE_BARE, TWO_BARE]),
        (["--smuxver", "2"], [TWO, TWO_BARE]),
        (["--nocomp"], [ONE_BARE, TWO_BARE]),
        (["--nocomp=false"], [ONE, TWO]),
        (["--nocomp=false", "--smuxver", "1"], [ONE]),
        (["--QPP"], [TWO, ONE, TWO_BARE, ONE_BARE]),
        (["--crypt", "aes-128-gcm", "--nocomp"], [TWO_BARE, ONE_BARE]),
        (["--mode", "manual"], [ONE, TWO, ONE_BARE, TWO_BARE]),
    ],
    ids=lambda value: " ".join(map(str, value)),
)
def test_the_likeliest_comes_first_and_what_is_given_alone(arguments: list[str], likely: list[Dialect]) -> None:
    assert likely_dialects(client(*arguments)) == likely


def test_a_file_of_kcptun_means_what_it_meant() -> None:
    assert likely_dialects(client("-c", "f", file='{"nocomp": false, "smuxver": 1}')) == [ONE]
    assert likely_dialects(client("-c", "f", file='{"nocomp": true}')) == [ONE_BARE, TWO_BARE]


def test_without_cramjam_compression_comes_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialects, "cramjam_if_any", lambda: None)
    assert likely_dialects(client()) == [ONE_BARE, TWO_BARE, ONE, TWO]


def test_a_server_always_has_settings_of_its_own() -> None:
    for arguments in ([], ["--smuxver", "auto", "--nocomp=auto"]):
        assert (server(*arguments).smuxver, server(*arguments).nocomp) == (1, False)
    assert (server("--smuxver", "2", "--nocomp").smuxver, server("--smuxver", "2", "--nocomp").nocomp) == (2, True)
