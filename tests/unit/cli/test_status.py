"""What `awsomefsd status` prints."""

from __future__ import annotations

import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.cli import status

FIGURES = {"role": "leader", "applied": "7", "requests_commit": "12", "checkpoint_lag_ms": "3"}


def test_all_figures_are_shown_one_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    """In one line nobody found the one that a page names."""
    status._print(pb.Status(node="n", figures=FIGURES), verbose=True)
    lines = capsys.readouterr().out.splitlines()
    begin = lines.index("     metadata") + 1
    assert [line.split() for line in lines[begin : begin + 4]] == [list(one) for one in sorted(FIGURES.items())]
    assert len({line.index(line.split()[1], 8) for line in lines[begin : begin + 4]}) == 1, "the values stand in one column"


def test_the_usual_figures_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    status._print(pb.Status(node="n", figures=FIGURES), verbose=False)
    assert "     metadata role leader, applied 7" in capsys.readouterr().out.splitlines()
