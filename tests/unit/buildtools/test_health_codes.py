"""docs/TROUBLESHOOTING.md has the table of health codes that the code has."""

from __future__ import annotations

import pytest

from awsomefsd.node.health.codes import CODES
from buildtools import health_codes


def test_the_table_is_made_from_the_code() -> None:
    text = health_codes.PAGE.read_text()
    assert health_codes.page(text) == text, "python3 -m buildtools.health_codes makes it again"


def test_each_code_has_one_line() -> None:
    lines = health_codes.table().splitlines()[2:]
    assert [line.split("`")[1] for line in lines] == list(CODES)
    assert all(line.count("|") == 5 and CODES[line.split("`")[1]].fix in line for line in lines)


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="begin"):
        health_codes.page("# Troubleshooting\n")
    with pytest.raises(ValueError, match="end"):
        health_codes.page(health_codes.BEGIN)
