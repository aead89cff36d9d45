"""Commands that grant and end write leases on inodes."""

from __future__ import annotations

from awsomefsd.meta.api.commands.base import Command


class AcquireLease(Command, tag=80):
    """The write lease of a regular file for the entry's session, which shares the volume.  Holding it already is no error.

    `known`: LeaseRow.changes as the mount knew it (0: it did not); the answer says whether others have changed the data since.
    """

    volume: int
    ino: int
    known: int = 0


class ReleaseLease(Command, tag=81):
    """The write lease with that epoch ends, if the entry's session still holds it."""

    volume: int
    ino: int
    lease: int
