"""The metrics page of a node with a mount that works: names, types, and figures that move."""

from __future__ import annotations

import os
import re

import pytest

from buildtools.nodes import Node, await_true
from tests.rigs.metrics_page import MISSING, PROMTOOL, complaints, figures

pytestmark = pytest.mark.root
REPORT_S = 60


def value(page: str, name: str, label: str = "") -> float:
    """The sum of a metric over all lines that have this label."""
    lines = re.findall(rf"^{name}(?:{{([^}}]*)}})? (\S+)$", page, re.M)
    return sum(float(number) for labels, number in lines if label in labels)


def work(node: Node) -> None:
    for number in range(20):
        path = node.mountpoint / f"worked{number}"
        path.write_bytes(os.urandom(100_000))
        path.unlink()


@pytest.mark.skipif(PROMTOOL is None, reason=MISSING)
def test_the_page_keeps_the_conventions(node: Node) -> None:
    work(node)
    await_true(
        "the worker's report", lambda: value(figures(node), "awsomefsd_worker_fuse_requests_total", 'opcode="create"'), REPORT_S, 0.3
    )
    assert complaints(figures(node)) == ""


@pytest.mark.skipif(PROMTOOL is None, reason=MISSING)
def test_a_page_that_does_not_is_told_of() -> None:
    assert "should not have" in complaints("# HELP awsomefsd_a_total b\n# TYPE awsomefsd_a_total gauge\nawsomefsd_a_total 1\n")


def test_no_figure_goes_without_a_description(node: Node) -> None:
    page = figures(node)
    assert "without a description" not in page and page.count("# HELP awsomefsd_") > 100


def test_requests_of_the_kernel_and_syncs_of_the_journal_are_counted_in_base_units(node: Node) -> None:
    before = figures(node)
    work(node)

    def grown(name: str, label: str = "") -> float:
        return value(figures(node), name, label) - value(before, name, label)

    for opcode in ("create", "write", "unlink"):
        await_true(opcode, lambda opcode=opcode: grown("awsomefsd_worker_fuse_requests_total", f'opcode="{opcode}"') >= 20, REPORT_S, 0.3)
    syncs, seconds = grown("awsomefsd_meta_journal_syncs_total"), grown("awsomefsd_meta_journal_sync_seconds_total")
    assert syncs > 0 and 0 < seconds / syncs < 10, "seconds, and not nanoseconds"
    page = figures(node)
    took = {name: value(page, f"awsomefsd_worker_fuse_request_seconds_{name}", 'opcode="create"') for name in ("sum", "count")}
    assert 0 < took["sum"] / took["count"] < 60
    created = value(page, "awsomefsd_worker_fuse_requests_total", 'opcode="create"')
    assert 20 <= took["count"] <= created, "of one report; less if a worker has died"
    left = value(figures(node), "awsomefsd_worker_lease_left_seconds")
    assert 0 < left <= 6.667
