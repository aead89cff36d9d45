"""docs/SIZING.md has the bounds that the code has."""

from __future__ import annotations

import pytest

from buildtools import sizing


def test_the_tables_are_made_from_the_code() -> None:
    text = sizing.PAGE.read_text()
    assert sizing.page(text) == text, "python3 -m buildtools.sizing makes them again"


def test_what_the_tables_hold() -> None:
    section = sizing.section()
    for line in ("| 1.0 GiB | 1.0 MiB | 1,022 |", "| nodes of a cluster | 256 |", "| life of a session without renewal | 10 s |"):
        assert line in section
    assert "| heartbeats of the leader | 200 ms |" in section and "| 6.67 s |" in section


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="begin"):
        sizing.page("# Sizing\n")
    with pytest.raises(ValueError, match="end"):
        sizing.page(sizing.BEGIN)
