"""Printed tokens: every way in which one can be wrong is told from the others, and none of it is ever shown."""

from __future__ import annotations

import random
import uuid

import pytest

from awsomefsd.cluster.pki import token, token_text
from awsomefsd.cluster.pki.token_text import TokenError

CLUSTER = str(uuid.UUID(int=7))


def made() -> token.JoinToken:
    return token.make(CLUSTER, "ab" * 32, ("10.0.0.1:7440", "[fd00::1]:7440"), "node", 1_700_000_000_000)


def why(text: str) -> str:
    with pytest.raises(TokenError) as caught:
        token.parse(text)
    assert len(text) < 12 or text[8:20] not in str(caught.value)
    return str(caught.value)


def test_what_was_printed_is_read_back() -> None:
    one = made()
    text = token.print_token(one)
    assert text.startswith("afs1-") and not set(text[5:]) & set("0189") and text == text.lower()
    assert token.parse(text) == token.parse(f"  {text.upper()}\n") == one
    assert token.parse(text).cluster_uuid == CLUSTER
    assert token.parse(text.replace("o", "0").replace("l", "1").replace("b", "8")) == one
    assert token.fits(one.secret, one.verifier) and not token.fits(made().secret, one.verifier)
    assert made().secret != one.secret and one.secret.hex() not in repr(one) and repr(one.secret) not in f"{one}{one!r}"


def test_every_cut_is_said_to_be_one() -> None:
    text = token.print_token(made())
    for end in range(5, len(text)):
        assert "truncated" in why(text[:end]), end


def test_every_change_is_noticed(seed: int) -> None:
    chance = random.Random(seed)
    text = token.print_token(made())
    for at in range(5, len(text)):
        other = chance.choice([letter for letter in "abcdefghijklmnopqrstuvwxyz234567" if letter != text[at]])
        said = why(text[:at] + other + text[at + 1 :])
        assert "altered" in said or (at < 9 and "truncated" in said), at  # the length itself may have been hit
    assert "altered" in why(text + "aaaaaaaa") and "altered" in why(text[:40] + "!" + text[41:])


def test_what_is_no_token() -> None:
    text = token.print_token(made())
    for other in ("", "hello", "kubeadm." + "x" * 60, text.replace("afs1-", ""), "x" * 5_000):
        assert "not a token" in why(other)
    assert "version 2" in why("afs2-" + text[5:]) and "upgrade" in why("afs99-xyz")
    assert "founding token" in why(token_text.encode(token_text.FOUNDING, b"body"))
    assert "kind 9" in why(token_text.encode(9, b"body"))
    assert "contents are not valid" in why(token_text.encode(token_text.JOIN, b"body"))
