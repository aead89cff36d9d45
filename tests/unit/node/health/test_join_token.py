"""The token for machines that come later: what `status` says when nobody renews it."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from awsomefsd.cluster.pki import token
from awsomefsd.meta.api.messages.nodes import TokenInfo
from awsomefsd.node.health.join_token import trouble

HOUR_MS = 3_600_000
MADE_MS = 1_000 * HOUR_MS
LIFE_MS = 24 * HOUR_MS
CLUSTER, OTHER = str(uuid.UUID(int=1)), str(uuid.UUID(int=2))


def made(cluster: str = CLUSTER) -> token.JoinToken:
    return token.make(cluster, "ab" * 32, ("10.0.0.1:7440",), "node", MADE_MS + LIFE_MS)


def info(of: token.JoinToken, uses_left: int = 32, *, revoked: bool = False) -> TokenInfo:
    return TokenInfo(of.id, "join", of.role, of.expires_ms, uses_left, MADE_MS, revoked)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "token"


def said(file: Path, *known: TokenInfo, after_h: float = 1.0) -> str:
    return trouble(file, CLUSTER, lambda: known, MADE_MS + int(after_h * HOUR_MS))


def test_one_that_is_renewed_in_time_is_no_trouble(file: Path) -> None:
    """It is renewed at half of its life; kubelet brings the new one into the file within minutes."""
    one = made()
    file.write_text(token.print_token(one) + "\n")
    assert said(file, info(one)) == "" == said(file, info(one), after_h=17.9) == said(file, info(one, -1))


def test_one_that_nobody_renews(file: Path) -> None:
    one = made()
    file.write_text(token.print_token(one))
    assert said(file, info(one), after_h=20) == f"the one in {file} expires in 4.0 hours and was not renewed"
    assert said(file, info(one), after_h=30) == f"the one in {file} expired 6.0 hours ago" == said(file, after_h=30)


def test_one_that_cannot_be_used_any_more(file: Path) -> None:
    one, successor = made(), made()
    file.write_text(token.print_token(one))
    assert said(file, info(one, revoked=True)) == f"the one in {file} was revoked"
    assert said(file, info(one, 0)) == f"the one in {file} is used up"
    assert said(file, info(successor)) == f"the cluster does not know the one in {file}"
    assert said(file) == ""  # where the cluster's tokens are not known


def test_no_token_for_this_cluster(file: Path) -> None:
    assert said(file) == f"{file} has none"
    file.write_text("")
    assert said(file) == f"{file} has none"
    file.write_text("afs1-nonsense")
    assert "altered" in said(file) or "truncated" in said(file)
    file.write_text(token.print_token(made(OTHER)))
    assert said(file) == f"the one in {file} is of another cluster, {OTHER}"
    file.unlink()
    file.mkdir()
    assert said(file) == f"{file} cannot be read: Is a directory"
