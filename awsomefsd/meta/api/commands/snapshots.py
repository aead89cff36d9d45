"""Commands about snapshots; meta/machine/snapshots.py has their rules."""

from __future__ import annotations

from typing import ClassVar

from msgspec import Struct

from awsomefsd.base.rule_levels import SNAPSHOTS
from awsomefsd.base.types import SNAPSHOT_CRASH
from awsomefsd.meta.api.commands.base import Command
from awsomefsd.meta.api.commands.sessions import OpenSession


class NewSnapshot(Struct, array_like=True, gc=False):
    volume: int
    uuid: str


class CreateSnapshots(Command, tag=220):
    """Snapshots of several volumes, of one moment and with one name.  Answered by Snapshots.  EEXIST where one has the name.

    `word`: an index of SNAPSHOT_WORDS; what the proposer has seen to before.
    """

    since: ClassVar[int] = SNAPSHOTS

    name: str
    snapshots: list[NewSnapshot]
    word: int = SNAPSHOT_CRASH


class DeleteSnapshot(Command, tag=221):
    """A snapshot is gone at once; Reap frees what it alone saw.  EBUSY while a session reads it."""

    since: ClassVar[int] = SNAPSHOTS

    volume: int
    snapshot: int


class OpenSnapshot(OpenSession, tag=222):
    """OpenSession of a mount that reads a snapshot, beside all other sessions of the volume; it may change nothing.

    `snapshot` and `uuid` name it: after a recovery from a copy another one may have its number.  ENOENT if it is not there.
    """

    since = SNAPSHOTS

    snapshot: int = 0
    uuid: str = ""
