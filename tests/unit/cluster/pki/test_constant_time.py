"""Secrets are compared in constant time, whole, wherever they are compared."""

from __future__ import annotations

import ast
import hmac
from pathlib import Path

import pytest

import awsomefsd
from awsomefsd.cluster.pki import proof, token

SECRETS = {"secret", "verifier", "proof", "keys", "of_dialling", "of_listening", "verifier_of"}
SOURCE = Path(awsomefsd.__file__).parent


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """The pairs that were compared in constant time."""
    pairs: list[tuple[bytes, bytes]] = []
    compare = hmac.compare_digest

    def noting(one: bytes, other: bytes) -> bool:
        pairs.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", noting)
    return pairs


@pytest.mark.parametrize("at", [None, 0, 15, 31])
def test_a_secret_is_compared_as_a_whole_wherever_it_differs(compared: list[tuple[bytes, bytes]], at: int | None) -> None:
    verifier = token.verifier_of(bytes(32))
    shown = bytes(byte ^ (at == number) for number, byte in enumerate(bytes(32)))
    assert token.fits(shown, verifier) == (at is None)
    wrong = bytes(byte ^ (at == number) for number, byte in enumerate(verifier))
    assert proof.same(wrong, verifier) == (at is None)
    assert [(len(one), len(other)) for one, other in compared] == [(32, 32), (32, 32)]


def _named(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def test_no_secret_is_compared_by_an_operator() -> None:
    found = []
    for path in sorted((SOURCE / "cluster").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare) and any(isinstance(kind, (ast.Eq, ast.NotEq, ast.In)) for kind in node.ops):
                sides = {_named(side) for side in (node.left, *node.comparators)}
                found += [f"{path.relative_to(SOURCE)}:{node.lineno}" for name in sides & SECRETS if name]
    assert found == []
