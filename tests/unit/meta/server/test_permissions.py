"""Who may ask what: every request and command is in the table, and the table does what it says."""

from __future__ import annotations

import uuid
from typing import get_args

import pytest

from awsomefsd.base.types import node_mount
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server.permissions import COMMANDS, REQUESTS, AskingNode, May, Standing, why_no_member, why_no_mount, why_not

ME, OTHER = str(uuid.UUID(int=7)), str(uuid.UUID(int=8))
MINE, THEIRS = 3, 4


def asker(role: str) -> AskingNode:
    return AskingNode(ME, role, lambda session: session != THEIRS, 5)


def test_every_request_and_every_command_is_in_the_table() -> None:
    assert set(REQUESTS) == set(get_args(m.Body))
    assert set(COMMANDS) == set(get_args(c.AnyCommand))


CREATE = c.Create(1, 1, b"x", 0o100644, 0, 0)


@pytest.mark.parametrize(
    ("body", "client", "node"),
    [
        (m.GetAttr(1, 1), True, True),
        (m.Follow(0, 1, 0), False, True),
        (m.Renew(MINE, 1, 0), True, True),
        (m.Renew(THEIRS, 1, 0), False, False),
        (m.Propose(1, MINE, 1, [], CREATE), True, True),
        (m.Propose(1, THEIRS, 1, [], CREATE), False, False),
        (m.Propose(1, 0, 0, [], c.CreateVolume("v", "u")), False, True),
        (m.Propose(1, 0, 0, [], c.OpenSession(5, 1, ME, "boot", 1)), True, True),
        (m.Propose(1, 0, 0, [], c.OpenSession(5, 1, OTHER, "boot", 1)), False, False),
        (m.Propose(1, 0, 0, [], c.OpenCollector(ME, "boot")), False, True),
        (m.Propose(1, 0, 0, [], c.OpenCollector(OTHER, "boot")), False, False),
        (m.Propose(1, 0, 0, [], c.EndSession(MINE, 1, True)), True, True),
        (m.Propose(1, 0, 0, [], c.EndSession(THEIRS, 1, True)), False, True),
        (m.Propose(1, 0, 0, [], c.NoOp()), False, False),
        (m.Propose(1, 0, 0, [], c.Reap(1)), False, False),
        (m.Propose(1, 0, 0, [], c.SetNodeState(OTHER, "removed")), False, True),
    ],
)
def test_roles_and_own_sessions(body: m.Body, client: bool, node: bool) -> None:
    assert (not why_not(asker("client"), body), not why_not(asker("node"), body)) == (client, node)


def test_nobody_has_another_role_than_node_or_client() -> None:
    assert why_not(asker(""), m.Propose(1, 0, 0, [], c.CreateVolume("v", "u")))
    assert {May.NOBODY} == {COMMANDS[kind] for kind in c.UNPROPOSED_COMMANDS}


def test_a_client_is_told_where_its_command_may_run() -> None:
    words = why_not(asker("client"), m.Propose(1, 0, 0, [], c.CreateVolume("v", "u")))
    expected = f"node {ME} is a client of this cluster and may not do this (CreateVolume); run the command on a machine with the role node"
    assert words == expected


def test_standing_names_the_node_and_the_reason() -> None:
    assert why_no_member(ME, "node", Standing("node", False)) == ""
    for role, standing, reason in (
        ("node", None, "not a member"),
        ("node", Standing("node", True), "removed"),
        ("node", Standing("client", False), "the role node"),
        ("", Standing("node", False), "none"),
    ):
        told = why_no_member(ME, role, standing)
        assert ME in told and reason in told


def test_a_mount_is_where_its_session_was() -> None:
    assert why_no_mount(ME, 5, None) == why_no_mount(ME, 5, ME) == why_no_mount(ME, node_mount(ME), None) == ""
    assert OTHER not in why_no_mount(ME, 5, OTHER) and ME in why_no_mount(ME, 5, OTHER)
    assert why_no_mount(ME, node_mount(OTHER), None)
