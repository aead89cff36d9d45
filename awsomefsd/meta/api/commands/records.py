"""Records: operations that the holder of what they touch has decided, and the command that brings them into the log.

A record is one delegated command with what its holder knew.  Records of one op log have ascending sequences, which they share with the data
records of the mount, so they have gaps.  `Apply` is their only way into the log.
"""

from __future__ import annotations

from typing import Union

import msgspec
from msgspec import Struct

from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.base.types import SegmentProgress
from awsomefsd.meta.api.commands.attributes import RemoveXattr, SetAttr, SetXattr
from awsomefsd.meta.api.commands.base import Command
from awsomefsd.meta.api.commands.data import Fallocate, InodeCommit
from awsomefsd.meta.api.commands.locks import SetLock
from awsomefsd.meta.api.commands.names import Create, Link, ReleaseOrphan, Rename, Rmdir, Tmpfile, Unlink

DelegatedCommand = Union[
    Create, Tmpfile, Link, Unlink, Rmdir, Rename, SetAttr, SetXattr, RemoveXattr, ReleaseOrphan, Fallocate, SetLock,
]  # fmt: skip


class DecidedRecord(Struct, array_like=True, gc=False):
    """One operation that its holder has decided, in the order of `sequence`.

    `unique`: the kernel's request.  `time_ns`: the holder's clock, which the operation gets as ctime and mtime.  `after`: the newest data
    sequence that must be committed before this record is sent (0: none); the sender sees to it.  `leads_to`: for each name of the command,
    in its order, the inode that it led to (0: none).  `check`: crc32c of the governed fields as the rules left them (0: not said;
    meta/machine/record_checks.py).  `ino`: the number of the inode that the command makes, from GrantInodes (0: it makes none).
    """

    sequence: int
    unique: int
    time_ns: int
    command: DelegatedCommand
    after: int = 0
    leads_to: list[int] = []
    check: int = 0
    ino: int = 0


class Apply(Command, tag=140):
    """A batch of the op log `log`: its records in order, then commits of data.  Answered by Applied.

    `after`: the newest record that the sender knows to be applied (0: none); above what is applied, there is a gap, and nothing is done.
    Records that are applied already are skipped, so a batch may come twice.  `round`: how many were refused, as the sender knows; a
    batch of another round is not begun.  `first`: the sequence of the first record (0: no records).
    The first record that is refused ends the batch: those before it stay, and nothing behind it is done, the commits neither.  Where the
    last record is applied already, the commits are not done (ESTALE): commits go with a record that is not.
    `consumed`: bytes of the session's reservation that the commits use up.
    The reply is kept as a result if commits were done, since they may not be done twice; other replies and refusals are not.
    """

    since = DELEGATION

    volume: int
    log: int
    after: int
    first: int
    records: list[DecidedRecord]
    inodes: list[InodeCommit]
    segments: list[SegmentProgress]
    consumed: int
    round: int = 0


class GrantInodes(Command, tag=141):
    """Up to `count` inode numbers for records of the mount; `lowest`: those below it of earlier grants are given back.

    Answered by InodesGranted, with fewer near the quota, and none where `count` is 0.  EDQUOT or EAGAIN (the mount has as many as it may)
    are not kept as a result.
    """

    since = DELEGATION

    volume: int
    count: int
    lowest: int = 0


record_encode = msgspec.msgpack.Encoder().encode

record_decode = msgspec.msgpack.Decoder(DecidedRecord).decode
