"""What nodes report of devices fits a frame, whatever they report."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import (
    DEVICE_REPORT_TEXT_BYTES_MAX,
    DEVICES_REPORTED_MAX,
    NODES_MAX,
    REPORT_FIGURES_MAX,
    REPORT_NAME_BYTES_MAX,
    RPC_FRAME_BYTES_MAX,
)
from awsomefsd.meta.api import bounds
from awsomefsd.meta.api.messages import GetReports, Report, Reports
from awsomefsd.meta.api.messages.devices import GetSightings, ReportDevices, Sighting, Sightings
from awsomefsd.meta.api.report_pages import all_reports, all_sightings
from awsomefsd.meta.server.device_reports import DeviceReports
from awsomefsd.meta.server.requests import PlainRequests

_NAME = "n" * 200


class Local:
    """A connection of this node."""


class Asked:
    origin = Local()
    reply: Any = None

    def __init__(self, body: Any) -> None:
        self.body = body

    def answer(self, reply: Any) -> None:
        self.reply = reply


def test_the_largest_reports_of_all_nodes_are_answered_in_frames() -> None:
    reports, nodes = DeviceReports(), [f"{number:036}" for number in range(NODES_MAX)]
    text = "x" * (DEVICE_REPORT_TEXT_BYTES_MAX // DEVICES_REPORTED_MAX - 40)
    report = ReportDevices("", [Sighting(f"{number:036}", text, 1 << 62, "ok") for number in range(DEVICES_REPORTED_MAX)])
    bounds.check(report)
    for node in nodes:
        reports.take_report(msgspec.structs.replace(report, node=node), (), 0)
    pages = []

    def ask(body: GetSightings) -> Sightings:
        page = reports.listing(dict.fromkeys(nodes, _NAME), 0, body.after)
        pages.append(len(msgspec.msgpack.encode(page)))
        return page

    seen = all_sightings(ask)
    assert max(pages) < RPC_FRAME_BYTES_MAX - 1_024
    assert sorted({one.node for one in seen.seen}) == nodes and len(seen.seen) == NODES_MAX * DEVICES_REPORTED_MAX


def test_the_largest_figures_of_many_workers_are_answered_in_frames() -> None:
    asked = PlainRequests.__new__(PlainRequests)
    figures = {f"{number:0{REPORT_NAME_BYTES_MAX}}": 1 << 62 for number in range(REPORT_FIGURES_MAX)}
    bounds.check(Report(figures))
    asked._reported = {(1 << 64) - mount: (Local(), figures) for mount in range(1, 201)}
    pages = []

    def ask(body: GetReports) -> Reports:
        bounds.check(body)
        request = Asked(body)
        asked.list_reports(request)  # type: ignore[arg-type]
        pages.append(len(msgspec.msgpack.encode(request.reply)))
        return request.reply

    assert all_reports(ask) == dict.fromkeys(asked._reported, figures)
    assert max(pages) < RPC_FRAME_BYTES_MAX - 1_024


def test_the_bounds_of_texts_are_of_bytes() -> None:
    name = "\N{GREEK SMALL LETTER ALPHA}" * (REPORT_NAME_BYTES_MAX // 2)
    bounds.check(Report({name: 1}))
    long = "\N{GRINNING FACE}" * (DEVICE_REPORT_TEXT_BYTES_MAX // 4)
    for body in (Report({name + "a": 1}), ReportDevices("n", [Sighting("u", long, 1, "ok")])):
        with pytest.raises(ProtocolError, match="bytes"):
            bounds.check(body)


def test_few_reports_are_one_page() -> None:
    reports = DeviceReports()
    for node in ("a", "b"):
        reports.take_report(ReportDevices(node, [Sighting("u", "/dev/x", 1, "ok")]), ("u",), 0)
    page = reports.listing({}, 0)
    assert not page.more and [one.node for one in page.seen] == page.reporting == ["a", "b"]
