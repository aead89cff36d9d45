"""The search for known vulnerabilities never calls clean what nobody was asked about."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from buildtools import audit, binary

CLEAN = {"name": "a", "version": "1", "vulns": []}
HIT = {"name": "b", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"], "aliases": [], "description": ""}]}
UNKNOWN = {"name": "c", "skip_reason": "Dependency not found on PyPI and could not be audited: c (1)"}


def said(*rows: dict[str, object]) -> str:
    return json.dumps({"dependencies": rows, "fixes": []})


def test_what_pip_audit_says() -> None:
    assert audit.understand(said(CLEAN, HIT)) == (["a"], ["b 2: PYSEC-1 (fixed in 3)"], [])
    assert audit.understand(said(CLEAN)).answered
    assert not audit.understand(said(CLEAN, UNKNOWN)).answered, "one that could not be asked about is not clean"
    for nothing in ("", "[]", "{}", said()):
        assert not audit.understand(nothing).answered


@pytest.mark.parametrize(
    ("answers", "code"),
    [
        ([said(CLEAN)], 0),
        ([said(UNKNOWN), said(CLEAN)], 0),
        ([said(UNKNOWN), ""], audit.NOBODY_ANSWERED),
        ([said(UNKNOWN, HIT)], 1),
    ],
)
def test_exit_codes(answers: list[str], code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rest = iter(answers)
    monkeypatch.setattr(audit, "ask", lambda lock, service: (audit.understand(next(rest)), ""))
    assert audit.build(Path("lock")) == code


def test_everything_that_is_installed_for_a_build_has_a_hash() -> None:
    for lock in (binary.RECIPE / "requirements.lock", binary.RECIPE / "tools.lock", audit.RECIPE):
        packages = [text for text in lock.read_text().replace("\\\n", " ").splitlines() if text and not text.lstrip().startswith("#")]
        assert packages and all("==" in text and "--hash=sha256:" in text for text in packages), lock
