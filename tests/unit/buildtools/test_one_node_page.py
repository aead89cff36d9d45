"""The figures of one node that are kept, and the page and the chart that are made of them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from tests.bench import one_node_page, record

NODE = {"idle worker, RSS MiB": 30.0}


@pytest.fixture(autouse=True)
def _of_one_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests run without git too."""
    monkeypatch.setattr(record, "commit", lambda: "0123abcd")


def run(**changed: Any) -> record.Run:
    rates = {"awsomefs": [50, 60, 40], "ext4": [100.0], "null FUSE": [200], "MooseFS": [30], "GlusterFS": [20]}
    used = {"awsomefs: worker": 200, "awsomefs: daemon": 30, "null FUSE: server": 60}
    measures = {
        "create + close": {"unit": "/s", "rates": rates, "cpu_us": used},
        "new": {"unit": "/s", "rates": {"awsomefs": [1]}, "cpu_us": {}},
    }
    made = record.made(measures, NODE, ["awsomefs", "ext4", "null FUSE", "MooseFS", "GlusterFS"], 3, (0.5, 1.25))
    return made | changed


def test_the_page_and_the_chart_are_of_the_figures_that_are_kept() -> None:
    runs = record.kept()
    assert runs, "docs/figures has no run: python3 build.py bench --peers --record"
    text = one_node_page.PAGE.read_text()
    assert one_node_page.page(text, runs) == text, "python3 -m tests.bench.one_node_page makes it again"
    assert one_node_page.CHART.read_text() == one_node_page.chart(runs[-1])


def test_a_goal_is_reached_or_says_what_was() -> None:
    assert one_node_page.goal(run(), "create + close") == "0.5 × null FUSE: **0.25**; 2 × better peer: **1.67**"
    rates = {"awsomefs": [120], "null FUSE": [200]}
    fast = run(measures={"create + close": {"unit": "/s", "rates": rates, "cpu_us": {}}})
    assert one_node_page.goal(fast, "create + close") == "0.5 × null FUSE: reached; 2 × better peer: not measured"
    assert one_node_page.goal(run(), "new") == ""


def test_tables_show_medians_ratios_and_what_was_not_measured() -> None:
    text = one_node_page.section([run(commit="aaaa"), run(commit="bbbb")])
    assert "| create + close | 50.0 /s | - | 0.50 | 0.25 | 1.67 | 2.50 |" in text
    assert "| create + close | 200 + 30 | 60 | - | - |" in text
    assert "| create + close | null FUSE | 0.25 | 0.25 |" in text
    assert "| new | null FUSE | - | - |" in text and "load before and after: 0.5 and 1.25" in text


def test_the_chart_has_a_dot_for_each_rate() -> None:
    picture = ElementTree.fromstring(one_node_page.chart(run()))
    circles = picture.findall("{http://www.w3.org/2000/svg}circle")
    assert len(circles) == 5 + 5 + 1, "the legend, and one for each target that was measured"


@pytest.mark.parametrize(
    "changed",
    [
        {"format": 2},
        {"date": "yesterday"},
        {"more": 1},
        {"rounds": 2},
        {"targets": ["awsomefs"]},
        {"measures": {"x": {"unit": "", "rates": {"ext4": [0]}, "cpu_us": {}}}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_a_file_that_is_no_run_is_refused(changed: dict[str, Any]) -> None:
    record.check(run())
    with pytest.raises(ValueError, match=r"."):
        record.check(run(**changed))


def test_a_page_without_markers_is_refused() -> None:
    with pytest.raises(ValueError, match="begin"):
        one_node_page.page("# Performance\n", [run()])
