"""Founding tokens as text: what is read back, what is refused, and that nothing of the secret is shown."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from awsomefsd.base.errors import ConfigError, Refused
from awsomefsd.cluster.pki import founding_token, proof, token_text

FAR_MS = 4_000_000_000_000


def token(**changes: Any) -> founding_token.FoundingToken:
    return msgspec.structs.replace(founding_token.make(3, ("10.0.0.1:7440",), FAR_MS), **changes)


def test_a_token_reads_back_and_shows_nothing() -> None:
    made = token()
    text = founding_token.print_token(made)
    assert founding_token.parse(text) == made and founding_token.is_founding(text)
    assert made.secret.hex() not in f"{made!r} {made} {made.id} {made.verifier.hex()}"
    assert token().id != made.id and len(made.verifier) == proof.VERIFIER_BYTES
    for bad in (text[:-6], text[:20] + ("a" if text[20] != "a" else "b") + text[21:], "afs1-", text.replace("afs1", "afs2")):
        with pytest.raises(token_text.TokenError) as caught:
            founding_token.parse(bad)
        assert text[10:30] not in str(caught.value)
    with pytest.raises(token_text.TokenError, match="not a founding token"):
        founding_token.parse(token_text.encode(token_text.JOIN, b"x"))
    for nonsense in (token(expect=3, nodes=6), token(expect=0), token(secret=b"short")):
        with pytest.raises(token_text.TokenError, match="contents are not valid"):
            founding_token.parse(founding_token.print_token(nonsense))


def test_numbers_that_could_form_two_clusters_are_refused() -> None:
    assert founding_token.make(3, (), FAR_MS).nodes == 5
    for expect, nodes in ((2, 4), (3, 2), (0, 0), (1_000, 0)):
        with pytest.raises((ConfigError, Refused)):
            founding_token.make(expect, (), FAR_MS, nodes)
