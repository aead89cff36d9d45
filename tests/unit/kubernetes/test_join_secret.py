"""When a join token of a Secret is made anew, and what a Secret holds."""

from __future__ import annotations

import uuid

import pytest

from awsomefsd.cluster.pki import founding_token, token
from awsomefsd.kubernetes.join_secret import Held, Wanted, value, why_renew, with_value
from awsomefsd.meta.api.messages.nodes import TokenInfo

HOUR_MS = 3_600_000
NOW_MS = 1_800_000_000_000
WANTED = Wanted("node", 24 * 3_600, 32)
CONTROLS = ("10.0.0.1:7440", "10.0.0.2:7440", "10.0.0.3:7440")
AUTHORITY = "ab" * 32
HELD = token.make(str(uuid.UUID(int=1)), AUTHORITY, CONTROLS, "node", NOW_MS + 24 * HOUR_MS)
TEXT = token.print_token(HELD)


def known(role: str = "node", left_ms: int = 24 * HOUR_MS, uses: int = 32, revoked: bool = False) -> TokenInfo:
    return TokenInfo(HELD.id, "join", role, NOW_MS + left_ms, uses, NOW_MS, revoked)


GOOD = known()


def why(text: str = TEXT, row: TokenInfo | None = GOOD, controls: tuple[str, ...] = CONTROLS, authority: str = AUTHORITY) -> str:
    return why_renew(text, Held([row] if row else [], controls, authority), WANTED, NOW_MS)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (known(), ""),
        (known(left_ms=12 * HOUR_MS), ""),
        (known(left_ms=12 * HOUR_MS - 1), "half of its life"),
        (known(left_ms=-1), "half of its life"),
        (known(uses=16), ""),
        (known(uses=15), "half of its uses"),
        (known(uses=0), "half of its uses"),
        (known(uses=-1), ""),
        (known(revoked=True), "revoked"),
        (known(role="client"), "role client"),
        (None, "does not know"),
    ],
)
def test_a_token_is_renewed_in_time(row: TokenInfo | None, reason: str) -> None:
    said = why(TEXT, row)
    assert reason in said and bool(reason) == bool(said)


def test_what_is_no_join_token_is_replaced() -> None:
    founding = founding_token.print_token(founding_token.make(1, (), NOW_MS))
    assert "has none" in why("")
    for text in ("nonsense", TEXT[:-3], founding):
        assert "no join token" in why(text)


def test_a_token_is_renewed_when_another_authority_signs() -> None:
    """A machine would not believe any node: the token names the authority."""
    assert why(authority="cd" * 32) == "the authority that it names signs no more"


def test_a_token_that_leads_to_nobody_is_renewed() -> None:
    assert why(controls=CONTROLS[:2]) == ""
    assert "are not there any more" in why(controls=(CONTROLS[0], "10.0.0.8:7440", "10.0.0.9:7440"))
    assert why(controls=CONTROLS[:1]) == "", "a cluster of one has one address"


def test_a_secret_with_and_without_data() -> None:
    empty = {"metadata": {"name": "s"}}
    made = with_value(with_value(empty, "token", "t"), "nodes", "ü")
    assert (value(made, "token"), value(made, "nodes"), value(made, "x"), value(empty, "token")) == ("t", "ü", "", "")
    assert "data" not in empty and made["metadata"] == {"name": "s"}
    for damaged in ("%", "/w==", 7):
        assert value({"data": {"token": damaged}}, "token") == ""
