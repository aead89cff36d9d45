"""`awsomefsd events` on a real node: each thing that is done is told once, with who did it, and a reader continues where it stopped."""

from __future__ import annotations

import json
import typing

import pytest

from awsomefsd.admin.events import EVENTS
from awsomefsd.meta.api import commands
from buildtools.nodes import Node

pytestmark = pytest.mark.root


def told(node: Node, *words: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in node.cli("events", "--no-wait", "-o", "json", *words).splitlines()]


def test_every_event_is_a_command_of_the_log() -> None:
    known = {made.__name__ for made in typing.get_args(commands.AnyCommand)}
    assert set(EVENTS) <= known, set(EVENTS) - known


def test_what_was_done_is_told_once_and_in_order(node: Node) -> None:
    begin = told(node, "--reader", "audit")
    sayings = [str(event["what"]) for event in begin]
    for said in ("begins", "joined as node", "was added", f"volume {node.volume} was created", f"volume {node.volume} mounted on node"):
        assert any(said in one for one in sayings), (said, sayings)
    assert [event["index"] for event in begin] == sorted({int(str(event["index"])) for event in begin})
    node.cli("volume", "create", "audited", "--quota", "5G")
    node.cli("volume", "set", "audited", "--quota", "none")
    node.cli("volume", "delete", "audited")
    (name,) = {row["name"] for row in node.ask("node", "ls")}
    more = [(event["kind"], event["who"], str(event["what"])) for event in told(node, "--reader", "audit", "--kind", "volume")]
    assert len(more) == 3, more
    assert more[0][2] == "volume audited was created" and "quota none" in more[1][2] and "was deleted" in more[2][2]
    assert {who for _, who, _ in more} == {name}
    assert told(node, "--reader", "audit", "--kind", "volume") == [], "nothing twice"
    node.cli("log", "remove-reader", "audit")


def test_no_secret_is_told(node: Node) -> None:
    token = node.cli("token", "create", "--role", "node", "--endpoint", "127.0.0.1:7440").strip()
    assert token and token not in node.cli("events", "--no-wait", "-o", "json")
