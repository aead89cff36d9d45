"""docs/CAPABILITIES.md says what the code says, and the index of the documentation names every page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from buildtools import capabilities
from buildtools.say import CHECKOUT

DOCS = CHECKOUT / "docs"
_LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")


def test_the_lists_are_made_from_the_code() -> None:
    text = capabilities.PAGE.read_text()
    assert capabilities.page(text) == text, "python3 -m buildtools.capabilities makes them again"


def test_what_the_lists_hold() -> None:
    text = capabilities.section()
    for word in ("`shared`", "`close-to-open`", "`LOOKUP`", "`SETLKW`", "answered ENOTTY | `IOCTL`", "`awsomefsd device`", "`NO_QUORUM`"):
        assert word.strip("`") in text
    assert "answered ENOSYS" in text and "`COPY_FILE_RANGE_64`" in text.split("answered ENOSYS")[0]


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="begin"):
        capabilities.page("# Capabilities\n")
    with pytest.raises(ValueError, match="end"):
        capabilities.page(capabilities.BEGIN)


@pytest.mark.parametrize("path", [*sorted(CHECKOUT.glob("*.md")), *sorted(DOCS.glob("*.md"))], ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    links = [link for link in _LINK.findall(path.read_text()) if not link.startswith("http")]
    assert [link for link in links if not (path.parent / link).exists()] == []


def test_the_index_names_every_page() -> None:
    named = {Path(link).name for link in _LINK.findall((DOCS / "README.md").read_text())}
    missing = {page.name for page in DOCS.glob("*.md")} - named - {"README.md"}
    assert missing == set(), "give each of these pages a line in docs/README.md"
