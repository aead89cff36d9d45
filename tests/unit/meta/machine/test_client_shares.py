"""A node of role client cannot use up what all members share."""

from __future__ import annotations

import errno

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.limits import CLAIMS_PER_CLIENT_MAX, SESSIONS_PER_CLIENT_MAX
from awsomefsd.meta.api import commands as c
from tests.rigs.machine_driver import Drive, sound


def members(level: int = LEVEL) -> Drive:
    drive = Drive(level=level)
    for node, role in (("n1", "node"), ("n2", "client"), ("n3", "client")):
        drive.ok(c.AddNode(node, node, role, node[-1].encode() * 32, "", level=LEVEL))
    drive.make_volume()
    return drive


def session(mount: int, node: str, boot: str = "b") -> c.OpenSession:
    return c.OpenSession(mount, 1, node, boot, 1, shared=True)


def test_a_client_opens_its_share_of_the_sessions_and_others_go_on() -> None:
    drive = members()
    for mount in range(1, SESSIONS_PER_CLIENT_MAX + 1):
        opened = drive.ok(session(mount, "n2"))
    assert drive.errno(session(1_000, "n2")) == errno.ENFILE
    drive.ok(session(2_000, "n3"))
    for mount in range(3_000, 3_000 + SESSIONS_PER_CLIENT_MAX + 1):
        drive.ok(session(mount, "n1"))
    drive.ok(c.OpenSession(1, 1, "n2", "b", 2, shared=True), mount=1)  # the successor of a worker opens nothing
    drive.ok(c.EndSession(opened.session, opened.epoch, True))
    drive.ok(session(1_000, "n2"))
    sound(drive)


def test_claims_of_a_client_are_bounded() -> None:
    drive = members()
    for n in range(CLAIMS_PER_CLIENT_MAX):
        drive.ok(c.ClaimVolume(1, f"x{n}", "n2", "b", False))
    assert drive.errno(c.ClaimVolume(1, "one-more", "n2", "b", False)) == errno.ENOSPC
    drive.ok(c.ClaimVolume(1, "x0", "n2", "b", False))  # it has this one
    drive.ok(c.ClaimVolume(1, "one-more", "n3", "b", False))
    drive.ok(c.EndClaims("n2", 1, "x0", "unstaged"))
    drive.ok(c.ClaimVolume(1, "one-more", "n2", "b", False))
    sound(drive)


def test_below_level_3_clients_are_not_bounded() -> None:
    drive = members(level=2)
    for mount in range(1, SESSIONS_PER_CLIENT_MAX + 2):
        drive.ok(session(mount, "n2"))
    for n in range(CLAIMS_PER_CLIENT_MAX + 1):
        drive.ok(c.ClaimVolume(1, f"x{n}", "n2", "b", False))
