"""Which commands change and read what leases cover: a decision for each, and what it is; the same for questions."""

from __future__ import annotations

import typing

import pytest

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.queries import _QUERIES
from awsomefsd.meta.server.leases import conflicts
from awsomefsd.meta.state import keys

VOLUME, DIRECTORY, OTHER, PARENT = 3, 10, 11, 9
NAMES = {(DIRECTORY, b"a"): 20, (OTHER, b"b"): 21}


def child(volume: int, parent: int, name: bytes) -> int:
    assert volume == VOLUME
    return PARENT if name == b".." else NAMES.get((parent, name), 0)


def members(union: object) -> set[type]:
    found: set[type] = set()
    for one in typing.get_args(union):
        found |= members(one) if typing.get_args(one) else {one}
    return found


def test_every_command_is_decided():
    known = members(c.AnyCommand)
    missing = known - conflicts.DECIDED
    assert not missing, f"say in conflicts.py what these change: {sorted(one.__name__ for one in missing)}"
    assert known >= conflicts.DECIDED
    assert not conflicts.UNTOUCHED & set(conflicts._COMMANDS)


MODE = 0o100644
TABLE = [  # command, inodes it changes, inodes it reads, directories whose names decide that
    (c.Create(VOLUME, DIRECTORY, b"new", MODE, 0, 0), [DIRECTORY], [], []),
    (c.Create(VOLUME, DIRECTORY, b"a", MODE, 0, 0), [DIRECTORY], [], []),
    (c.Create(VOLUME, DIRECTORY, b"a", MODE, 0, 0, open_existing=True), [], [DIRECTORY, 20], [DIRECTORY]),
    (c.Create(VOLUME, DIRECTORY, b"new", MODE, 0, 0, open_existing=True), [DIRECTORY], [], [DIRECTORY]),
    (c.Tmpfile(VOLUME, DIRECTORY, MODE, 0, 0), [], [DIRECTORY], []),
    (c.Link(VOLUME, 20, OTHER, b"c"), [OTHER, 20], [], []),
    (c.Unlink(VOLUME, DIRECTORY, b"a"), [DIRECTORY, 20], [], [DIRECTORY]),
    (c.Unlink(VOLUME, DIRECTORY, b"gone"), [DIRECTORY], [], [DIRECTORY]),
    (c.Rmdir(VOLUME, DIRECTORY, b"a"), [DIRECTORY, 20], [], [DIRECTORY]),
    (c.Rename(VOLUME, DIRECTORY, b"a", OTHER, b"b"), [DIRECTORY, OTHER, 20, 21], [], [DIRECTORY, OTHER]),
    (c.Rename(VOLUME, DIRECTORY, b"a", DIRECTORY, b"new"), [DIRECTORY, 20], [], [DIRECTORY]),
    (c.SetAttr(VOLUME, 20, c.SET_SIZE), [20], [], []),
    (c.SetXattr(VOLUME, 20, b"user.a", b""), [20], [], []),
    (c.RemoveXattr(VOLUME, 20, b"user.a"), [20], [], []),
    (c.Fallocate(VOLUME, 20, 0, 0, 1), [20], [], []),
    (c.Draw(VOLUME, 20, 0, 1, 1), [20], [], []),
    (c.WriteData(VOLUME, 20, 0, 1, False, False, [], 0, []), [20], [], []),
    (c.CopyRange(VOLUME, 20, 0, 21, 0, 1), [21], [20], []),
    (c.CopyRange(VOLUME, 20, 0, 20, 9, 1), [20], [], []),
    (c.Commit(VOLUME, [c.InodeCommit(20, 1, 1, 0, 0), c.InodeCommit(21, 1, 1, 0, 0, [], [], 7)], 0, []), [20], [], []),
    (c.SetAtimes(VOLUME, [(20, 1)]), [], [], []),
    (c.ReleaseOrphan(VOLUME, [20]), [], [], []),
    (c.SetLock(VOLUME, 20, 1, 1, 1, 0, 0, 0), [], [], []),
    (c.Apply(VOLUME, 1, 0, 0, [], [], [], 0, 0), [], [], []),
    (c.LeaseSegments(1, 0), [], [], []),
]


@pytest.mark.parametrize(("command", "changes", "reads", "looked_up"), TABLE, ids=[f"{row[0]}"[:60] for row in TABLE])
def test_what_a_command_touches(command, changes, reads, looked_up):
    assert conflicts.touched(command, child) == tuple([(VOLUME, ino) for ino in inos] for inos in (changes, reads, looked_up))


def test_each_command_that_touches_something_is_in_the_table():
    assert {type(row[0]) for row in TABLE} >= set(conflicts._COMMANDS)


COMMITTED_IS_ALL = {  # a write lease holds nothing back that these tell
    "GetStatFs", "GetSegments", "GetOwnSegments", "GetCheckpoints",
    "GetDevices", "ReportDevices",
    "GetQuarantine", "GetSessions", "GetVolumes", "GetLocks", "GetOrphans", "TestLock", "GetSparse", "GetPieces", "GetLiveSegments",
    "GetNames", "GetFilePieces", "ListNodes", "NodeReport", "GetNode", "ListTokens", "ListCas", "GetSigner", "GetVerifier",
    "GetCsiVolumes", "GetClaims", "GetBays", "GetPool", "GetNeeds", "GetStaleBays", "ListStores", "GetStoreSecret",
    "GetPoolVolumes", "CountNeeds", "ListSnapshots",
}  # fmt: skip


def test_every_question_is_decided():
    names = {one.__name__ for one in _QUERIES}
    assert names == COMMITTED_IS_ALL | {one.__name__ for one in conflicts.QUESTIONS}


QUESTIONS = [  # question, inodes of which it asks, the one that it is about at last
    (m.GetAttr(VOLUME, 20), [20]),
    (m.GetLayout(VOLUME, 20, 0, 1), [20]),
    (m.ReadLink(VOLUME, 20), [20]),
    (m.GetXattr(VOLUME, 20, b"user.a"), [20]),
    (m.ListXattr(VOLUME, 20), [20]),
    (m.ReadDir(VOLUME, DIRECTORY, 0, 1, True), [DIRECTORY]),
    (m.GetParent(VOLUME, DIRECTORY), [DIRECTORY, PARENT]),
    (m.Lookup(VOLUME, DIRECTORY, b"a"), [DIRECTORY, 20]),
    (m.Lookup(VOLUME, DIRECTORY, b"gone"), [DIRECTORY]),
    (m.GetRows(1, 1, VOLUME, [keys.inode(VOLUME, 20), keys.inode(VOLUME, 22)], keys.xattr(VOLUME, 21, b"")), [20, 22, 21]),
]


@pytest.mark.parametrize(("body", "inos"), QUESTIONS, ids=[f"{row[0]}"[:60] for row in QUESTIONS])
def test_what_a_question_asks_for(body, inos):
    assert conflicts.asked(body, child) == [(VOLUME, ino) for ino in inos]


def test_each_question_that_asks_for_something_is_in_the_table():
    assert {type(row[0]) for row in QUESTIONS} == conflicts.QUESTIONS > conflicts.NAMES_ONLY
