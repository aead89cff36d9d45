"""Nothing that others chose becomes markup, an attribute, or a control character of a page."""

from __future__ import annotations

import html.parser

import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.node.health.codes import CODES
from awsomefsd.ui import pages
from awsomefsd.ui.actions import offer, offer_nothing, outcome, question
from awsomefsd.ui.frame import document
from awsomefsd.ui.markup import Markup, join, tag, text

EVIL = "\"><script>alert(1)</script><img src=x onerror='alert(2)'>&amp;\x1b[31m\u202e`"


class Elements(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def test_text_and_attributes_are_escaped() -> None:
    assert tag("a", EVIL, href=EVIL).count("<") == 2
    assert text("\x1b[31m\u202e\udc80") == "\\x1b[31m\\x202e\\x80"
    assert tag("p", None, 7, " ", Markup("<b>"), class_=None, hidden=True, aria_label="x") == '<p hidden aria-label="x">7 <b></p>'
    assert join(["<", Markup("<")]) == "&lt;<"


def evil_status() -> pb.Status:
    status = pb.Status(
        cluster=EVIL, node=EVIL, version=EVIL, state_dir=EVIL, keeper=True, keeper_version=EVIL, figures={EVIL: EVIL}, reasons=[EVIL],
        metadata=pb.Metadata(
            leader=EVIL, leader_name=EVIL, trouble=EVIL, voters=3, members=[pb.Member(node=EVIL, name=EVIL, member=EVIL, heard=True)]
        ),
    )  # fmt: skip
    status.devices.add(path=EVIL, uuid=EVIL, state=EVIL, home=EVIL, bytes=1, segments=4, segments_free=2, segment_bytes=1 << 22)
    status.volumes.add(name=EVIL, uuid=EVIL, mounted=EVIL, names=EVIL, quota_bytes=5, used_bytes=9)
    status.mounts.add(directory=EVIL, volume=EVIL, state=EVIL, options=[EVIL], last_error=EVIL, worker_version=EVIL, power_cut=EVIL)
    status.conflicts.add(path=EVIL, bytes=5)
    status.health.add(code=EVIL, severity=EVIL, what=EVIL, fix=EVIL)
    return status


def evil_node() -> pb.Node:
    return pb.Node(
        node=EVIL, name=EVIL, role=EVIL, state=EVIL, control=EVIL, version=EVIL, labels={"zone": EVIL}, readiness=EVIL, member=EVIL
    )


STATUS = evil_status()
EVENT = {"index": 1, "time_ns": 1, "kind": EVIL, "who": EVIL, "what": EVIL, "command": EVIL}


@pytest.mark.parametrize(
    "page",
    [
        pages.overview(STATUS),
        pages.health(STATUS, offer), pages.nodes([evil_node()], offer), pages.devices(STATUS.devices, {EVIL: EVIL}, offer),
        pages.volumes(STATUS.volumes),
        pages.mounts(STATUS.mounts, offer), pages.conflicts(STATUS.conflicts), pages.events([EVENT], False), pages.without_identity(STATUS),
        pages.charts(), question("flush", EVIL), outcome("flush", EVIL), outcome("flush", EVIL, EVIL),
    ],
)  # fmt: skip
def test_no_page_takes_what_others_chose_for_markup(page: Markup) -> None:
    whole = document(EVIL, page, "/")
    found = Elements()
    found.feed(whole.decode())
    assert found.names.count("script") == 1 and "img" not in found.names, "ours, by its address"
    assert not {"style", "onerror", "onclick", "onload"} & set(found.attributes), "the policy would refuse them"
    assert b"\x1b" not in whole and "\u202e" not in whole.decode()


def test_a_page_that_shows_evil_shows_all_of_it() -> None:
    shown = pages.conflicts(STATUS.conflicts)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown and "\\x1b[31m" in shown


def test_health_lists_every_code_with_its_fix() -> None:
    shown = pages.health(pb.Status(node="n"), offer_nothing)
    assert all(f"<code>{name}</code>" in shown for name in CODES)
    assert "<code>awsomefsd ca rotate</code>" in shown, "commands of a fix are marked as such"
    assert "`" not in shown


def test_the_worst_is_said_first() -> None:
    status = pb.Status(node="n", health=[pb.Health(code=severity, severity=severity) for severity in ("info", "new", "warning", "error")])
    shown = pages.overview(status)
    assert sorted(("info", "new", "warning", "error"), key=lambda one: shown.index(f"<code>{one}</code>")) == [
        "error",
        "warning",
        "info",
        "new",
    ]


def test_a_device_names_its_node_where_the_name_is_known() -> None:
    found = [pb.Device(device=1, home="u-1", segments=4, segments_free=0, segment_bytes=10), pb.Device(device=2, home="u-2")]
    shown = pages.devices(found, {"u-1": "storage-a"}, offer_nothing)
    assert "storage-a" in shown and "u-1" not in shown and "u-2" in shown and 'high="36"' in shown


def test_a_daemon_without_cluster_says_so() -> None:
    waiting = pb.Status(health=[pb.Health(code="WAITING_FOR_CLUSTER", severity="warning", what="no cluster", fix="run `awsomefsd init`")])
    shown = pages.overview(waiting)
    assert "In no cluster" in shown and "<code>awsomefsd init</code>" in shown
