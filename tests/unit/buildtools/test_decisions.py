"""The index of the decisions is what their headers say, and whoever cites a decision cites one that is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from buildtools import decisions

ROOT = decisions.FOLDER.parent.parent
_TITLED = "# {}. Something was decided\n\n- Date: 2026-11-21\n- Status: {}\n\n**Decision.** Yes.\n"
_CITED = re.compile(r"[Dd]ecisions? (\d+)(?: (?:and|to) (\d+))?")


def test_the_index_is_made_from_the_headers() -> None:
    made = decisions.index(decisions.every())
    assert (decisions.FOLDER / decisions.INDEX).read_text() == made, "python3 -m buildtools.decisions makes it again"
    assert len(made.splitlines()) > 70


def test_a_cited_decision_exists() -> None:
    known = {one.number for one in decisions.every()}
    folders = ("awsomefsd", "buildtools", "docs", "packaging", "tests")
    files = [path for folder in folders for kind in ("*.py", "*.md") for path in (ROOT / folder).rglob(kind)]
    cited = [(path.name, int(number)) for path in files for found in _CITED.findall(path.read_text()) for number in found if number]
    assert len(cited) > 60
    assert [one for one in cited if one[1] not in known] == []


def _write(folder: Path, number: int, status: str, name: str = "") -> None:
    (folder / (name or f"{number:04}-something.md")).write_text(_TITLED.format(number, status))


def test_superseded_and_amended_name_their_successors(tmp_path: Path) -> None:
    _write(tmp_path, 1, "superseded by 0003")
    _write(tmp_path, 2, "amended by 0003, 0004")
    _write(tmp_path, 3, "accepted")
    _write(tmp_path, 4, "accepted")
    found = decisions.every(tmp_path)
    assert [(one.number, one.status, one.by) for one in found] == [
        (1, "superseded", (3,)), (2, "amended", (3, 4)), (3, "accepted", ()), (4, "accepted", ()),
    ]  # fmt: skip
    row = "| 2 | 2026-11-21 | [Something was decided](0002-something.md) | amended | [3](0003-something.md), [4](0004-something.md) |\n"
    assert row in decisions.index(found)


@pytest.mark.parametrize(
    ("status", "name"),
    [
        ("obsolete", ""),
        ("superseded by 0009", ""),
        ("amended by 0001", ""),
        ("superseded by 1", ""),
        ("accepted", "0002-other.md"),
        ("accepted", "1.md"),
    ],
)
def test_a_wrong_header_or_name_is_refused(tmp_path: Path, status: str, name: str) -> None:
    _write(tmp_path, 1, status, name)
    with pytest.raises(ValueError, match=r"1-something|other|1\.md"):
        decisions.every(tmp_path)
