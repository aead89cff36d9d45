"""Links of the documentation that name a section lead to a heading of that page, and no page holds the marks of a merge."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from buildtools.say import CHECKOUT

PAGES = [*sorted(CHECKOUT.glob("*.md")), *sorted((CHECKOUT / "docs").rglob("*.md"))]
_LINK = re.compile(r"\]\(([^)#\s]*)#([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.M)


def anchors(page: Path) -> set[str]:
    """As the usual renderers of Markdown make them from headings."""
    without_code = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.M | re.S)
    headings = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text) for text in _HEADING.findall(without_code)]
    return {re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-") for text in headings}


def test_the_entries_of_the_changelog_stand_together() -> None:
    """A blank line makes every entry of the list a paragraph, and two lists of one."""
    assert re.findall(r"^(?:- |  ).*\n\n- .{0,40}", (CHECKOUT / "CHANGELOG.md").read_text(), flags=re.M) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_sections_that_are_linked_are_there(page: Path) -> None:
    links = [link for link in _LINK.findall(page.read_text()) if not link[0].startswith("http")]
    assert [f"{name}#{anchor}" for name, anchor in links if anchor not in anchors(page.parent / name if name else page)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_nothing_is_left_of_a_merge(page: Path) -> None:
    assert re.findall(r"^(?:<{7} .*|={7}|>{7} .*)$", page.read_text(), re.M) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))
def test_no_cell_waits_for_its_figure(page: Path) -> None:
    """Such as @F7, a mark for a figure of a run that has not ended yet."""
    assert re.findall(r"^\|.*\| *(?:@\w+|TODO|TBD|\?\?+) *\|", page.read_text(), re.M) == []


def test_known_issues_that_are_named_are_known() -> None:
    """An issue that is mended leaves its page; whoever is sent there finds nothing."""
    known = set(_HEADING.findall((CHECKOUT / "docs" / "KNOWN-ISSUES.md").read_text()))
    named = [(page.name, title) for page in PAGES for title in re.findall(r'known issue\s+"([^"]+)"', page.read_text(), re.I)]
    assert named and [one for one in named if one[1] not in known] == []


def test_an_anchor_that_is_not_there_is_noticed() -> None:
    assert "a-mount-hangs" in anchors(CHECKOUT / "docs" / "TROUBLESHOOTING.md")
    assert "no-such-section" not in anchors(CHECKOUT / "docs" / "TROUBLESHOOTING.md")


def test_tests_that_a_page_names_are_there() -> None:
    """As `path::name`, the path below tests/."""
    named = {(path, name) for page in PAGES for path, name in re.findall(r"`(?:tests/)?([\w/]+\.py)::(test_\w+)", page.read_text())}
    assert len(named) > 40
    missing = []
    for path, name in named:
        file = CHECKOUT / "tests" / path
        if not file.is_file() or not re.search(rf"^\s*(?:async )?def {name}\(", file.read_text(), re.M):
            missing.append(f"{path}::{name}")
    assert sorted(missing) == []
