"""Diagnosis: what was seen, and the exact sentence it gives."""

import pytest

from kcptun_lite.app.diagnosis import (
    CUT_IN_A_ROW,
    PATIENCE,
    QUICK,
    REFUSED,
    REMEMBERED,
    REPEAT_AFTER,
    RESET,
    RULES,
    SILENCE,
    Evidence,
    Spoken,
    describe_adaptation,
    describe_refusal,
    describe_unknown_source,
    diagnose,
)

HOST = "203.0.113.7:29900"
NEW = Evidence(HOST, "aes", 0)
SILENT = NEW._replace(age=PATIENCE, silence=PATIENCE)
ANSWERED = NEW._replace(age=PATIENCE, received=3, decrypted=3, acknowledged=True)
WORKING = ANSWERED._replace(understood=True, delivered=True, age=1_000_000)
GARBLED = NEW._replace(received=1, age=PATIENCE - 1, silence=PATIENCE - 1)

SMUX = "frame of smux version 2, expected 1: --smuxver must be the same on both ends"

OVER_TCP = NEW._replace(transport="TCP", is_answered=False)

TABLE = [
    (
        "nothing",
        SILENT,
        f"nothing comes back from {HOST}: --key or --crypt differ, or the server is down, or UDP is blocked",
    ),
    (
        "refused",
        SILENT._replace(error=REFUSED),
        f"server {HOST} refuses UDP: no kcptun runs there, or --remoteaddr has another port than its --listen",
    ),
    (
        "refused",
        WORKING._replace(error=REFUSED, silence=QUICK),
        f"server {HOST} refuses UDP: no kcptun runs there, or --remoteaddr has another port than its --listen",
    ),
    (
        "unsent",
        SILENT._replace(error="Network is unreachable"),
        f"packets to {HOST} cannot be sent: Network is unreachable",
    ),
    (
        "refused",
        OVER_TCP._replace(error=REFUSED, silence=QUICK),
        f"server {HOST} refuses TCP: no kcptun runs there with --tcp, or --remoteaddr has another port than "
        "its --listen",
    ),
    (
        "reset",
        OVER_TCP._replace(is_answered=True, error=RESET, silence=QUICK),
        f"the connection to {HOST} was reset: no kcptun runs there with --tcp, or something on the way cuts it",
    ),
    (
        "unanswered",
        OVER_TCP._replace(silence=PATIENCE),
        f"server {HOST} does not answer the TCP handshake: it is down, or a firewall drops TCP to this port",
    ),
    (
        "silent",
        OVER_TCP._replace(is_answered=True, age=PATIENCE),
        f"server {HOST} takes the TCP connection, and nothing comes back through it: --key or --crypt differ, or what "
        "listens there is no kcptun with --tcp, or something on the way stops what is no real TCP",
    ),
    (
        "gone",
        WORKING._replace(transport="TCP", silence=SILENCE),
        f"server {HOST} has stopped answering: it is down, or TCP is blocked",
    ),
    ("crypt", GARBLED._replace(fitting=["salsa20"]), f"server {HOST} uses --crypt salsa20, this client aes"),
    ("crypt", GARBLED._replace(fitting=["xor", "tea"]), f"server {HOST} uses --crypt xor or tea, this client aes"),
    (
        "key",
        GARBLED._replace(fitting=[], age=PATIENCE),
        f"what comes back from {HOST} cannot be decrypted: --key or --crypt differ, or it is not kcptun",
    ),
    ("stream", ANSWERED._replace(failure=SMUX), f"server {HOST}: {SMUX}"),
    ("stream", WORKING._replace(failure=SMUX, restarted=True), f"server {HOST}: {SMUX}"),
    (
        "dropped",
        ANSWERED._replace(restarted=True),
        f"server {HOST} acknowledges packets, but drops the session: --nocomp or --smuxver differ",
    ),
    (
        "target",
        ANSWERED._replace(understood=True, cut_streams=1),
        f"server {HOST} closes streams at once without a byte: it cannot reach its --target, or that hangs up",
    ),
    (
        "target",
        WORKING._replace(cut_streams=CUT_IN_A_ROW),
        f"server {HOST} closes streams at once without a byte: it cannot reach its --target, or that hangs up",
    ),
    (
        "gone",
        WORKING._replace(silence=SILENCE),
        f"server {HOST} has stopped answering: it is down, or UDP is blocked",
    ),
]


@pytest.mark.parametrize(("rule", "evidence", "sentence"), TABLE, ids=[f"{i} {row[0]}" for i, row in enumerate(TABLE)])
def test_each_mismatch_has_its_sentence(rule: str, evidence: Evidence, sentence: str) -> None:
    assert diagnose(evidence) == (rule, sentence)


def test_every_rule_is_in_the_table() -> None:
    assert {rule.name for rule in RULES} == {row[0] for row in TABLE}


@pytest.mark.parametrize(
    "evidence",
    [
        NEW,
        SILENT._replace(age=PATIENCE - 1),
        NEW._replace(error=REFUSED, age=QUICK - 1, silence=QUICK - 1),
        GARBLED,
        GARBLED._replace(fitting=[]),
        ANSWERED,
        ANSWERED._replace(age=60_000),  # a target that says nothing
        WORKING,
        WORKING._replace(received=9, fitting=["salsa20"]),  # noise beside a session that works
        WORKING._replace(restarted=True),  # a restart, which the session itself tells
        WORKING._replace(silence=SILENCE - 1),
        WORKING._replace(error=REFUSED, silence=QUICK - 1),
        WORKING._replace(cut_streams=CUT_IN_A_ROW - 1),
    ],
)
def test_what_may_be_in_order_is_left_alone(evidence: Evidence) -> None:
    assert diagnose(evidence) is None


def test_what_a_server_says() -> None:
    assert describe_unknown_source("203.0.113.7", ["salsa20"], "aes") == (
        "client 203.0.113.7 uses --crypt salsa20, this server aes"
    )
    assert describe_unknown_source("203.0.113.7", ["none"], "aes") == (
        "client 203.0.113.7 uses --crypt none, this server aes (or it is a --check, which tries all)"
    )
    assert (
        describe_unknown_source("203.0.113.7", [], "aes") == "client 203.0.113.7 uses another --key, or is not kcptun"
    )
    assert describe_adaptation("203.0.113.7", ["--smuxver 2", "--nocomp"]) == (
        "client 203.0.113.7 uses --smuxver 2, --nocomp, unlike this server, which adapts to it"
    )
    assert describe_refusal("203.0.113.7", SMUX, strict=True) == f"client 203.0.113.7 is refused (--strict): {SMUX}"
    assert describe_refusal("203.0.113.7", SMUX, strict=False) == f"client 203.0.113.7 is refused: {SMUX}"


def test_a_sentence_is_repeated_after_a_minute_and_not_before() -> None:
    spoken = Spoken()
    said = [now for now in range(0, 3 * REPEAT_AFTER, 1000) if spoken.is_due("x", now)]
    assert said == [0, REPEAT_AFTER, 2 * REPEAT_AFTER]


def test_sentences_do_not_silence_each_other_and_are_not_remembered_without_bound() -> None:
    spoken = Spoken()
    assert all(spoken.is_due(str(i), i) for i in range(REMEMBERED))
    assert not any(spoken.is_due(str(i), REMEMBERED) for i in range(REMEMBERED))
    assert all(spoken.is_due(str(i), i) for i in range(REMEMBERED, 10 * REMEMBERED))
    assert len(spoken._next) == REMEMBERED
    assert spoken.is_due("0", 10 * REMEMBERED), "the oldest make room"
