"""Says which inodes each command changes, and which it and each question read, of all that leases cover.  Pure.

A lease covers an inode: its attributes, its data and where that lies, and the names in it if it is a directory.  What a command changes
nobody else may hold; what it or a question reads nobody else may *write* under a lease, because data may be buffered there.  The leader
asks them to let go, and lets the command or the question wait (lease_requests.py).

Every command has its decision here, and a test says so of those to come.  Not covered, and so changed without anybody being asked:

* times of access, which every reader reports: recalls between readers would cost more than they are worth;
* where bytes lie, as collection moves them: readers compare identities and ask again;
* locks, pins, sessions, segments, volumes, nodes: no lease speaks of them.

Of questions only those are here whose answer depends on data, size or times of a file.  Extended attributes are never buffered.  A page
of a directory with attributes is no reason to recall one lease for each of its files: the attributes of those that another mount writes
are left out, and who wants them asks for them (`GetAttr`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server.waiters import Key

Child = Callable[[int, int, bytes], int]


class Touched(NamedTuple):
    changes: list[Key] = []
    reads: list[Key] = []
    looked_up: list[Key] = []  # directories whose names decided the others: nothing may be on its way there


def _nothing(command: Any, child: Child) -> Touched:
    return Touched()


def _inode(command: Any, child: Child) -> Touched:
    return Touched([(command.volume, command.ino)])


def _create(command: c.Create, child: Child) -> Touched:
    """A Create that opens what is there changes nothing, and tells its attributes."""
    parent = (command.volume, command.parent)
    ino = child(command.volume, command.parent, command.name) if command.open_existing else 0
    return Touched([], [(command.volume, ino)], [parent]) if ino else Touched([parent], [], [parent] if command.open_existing else [])


def _link(command: c.Link, child: Child) -> Touched:
    return Touched([(command.volume, command.parent), (command.volume, command.ino)])


def _remove(command: c.Unlink | c.Rmdir, child: Child) -> Touched:
    volume, parent = command.volume, command.parent
    return Touched(_known(volume, parent, child(volume, parent, command.name)), [], [(volume, parent)])


def _rename(command: c.Rename, child: Child) -> Touched:
    """A Rename also changes what it replaces and what moves: the data of that is committed before its new name is seen."""
    volume, old, new = command.volume, command.parent, command.new_parent
    inos = child(volume, old, command.name), child(volume, new, command.new_name)
    return Touched(_known(volume, old, new, *inos), [], list(dict.fromkeys([(volume, old), (volume, new)])))


def _known(volume: int, *inos: int) -> list[Key]:
    return [(volume, ino) for ino in dict.fromkeys(inos) if ino]


def _commit(command: c.Commit, child: Child) -> Touched:
    """A Commit under a lease changes what its own holder holds."""
    return Touched([(command.volume, step.ino) for step in command.inodes if not step.lease])


def _copy(command: c.CopyRange, child: Child) -> Touched:
    source, target = (command.volume, command.ino), (command.volume, command.new_ino)
    return Touched([target], [source] if source != target else [])


_COMMANDS: dict[type, Callable[[Any, Child], Touched]] = {
    c.Create: _create,
    c.Link: _link,
    c.Unlink: _remove,
    c.Rmdir: _remove,
    c.Rename: _rename,
    c.Commit: _commit,
    c.CopyRange: _copy,
    **dict.fromkeys((c.SetAttr, c.SetXattr, c.RemoveXattr, c.Fallocate, c.Draw, c.WriteData), _inode),
}
UNTOUCHED = frozenset(
    {
        c.Init, c.AddDevice, c.CreateVolume, c.SetVolume, c.DeleteVolume, c.OpenSession, c.OpenShared, c.EndSession, c.ClearQuarantine,
        c.LeaseSegments, c.Reserve, c.Tmpfile, c.SetAtimes, c.ReleaseOrphan, c.Reap, c.OpenCollector, c.Relocate, c.SetLock,
        c.AcquireLease, c.ReleaseLease, c.RegisterReader, c.AdvanceReader, c.RemoveReader, c.NoOp, c.ChangeMembership, c.RepairRows,
        c.KeepSegments, c.DropSegments, c.Recover, c.KeepForCheckpoint, c.AdoptSegments, c.CheckpointDone, c.ReturnSegments,
        c.AddNode, c.DescribeNode, c.DropCa, c.PutCa, c.PutToken, c.RaiseLevel, c.RevokeToken,
        c.SetCarries, c.SetNodeState, c.MakeCsiVolume, c.SetCsiVolume, c.DropCsiVolume, c.ClaimVolume, c.EndClaims,
        c.GrowDevice, c.DrainDevice, c.RemoveDevice, c.SetAbsent, c.SetDeviceEra,
        c.SetNames, c.Apply, c.GrantInodes,  # of a mount that holds its volume whole: nobody else has a lease there
    }
)  # fmt: skip
DECIDED = frozenset(_COMMANDS) | UNTOUCHED

QUESTIONS = frozenset({m.GetAttr, m.GetLayout, m.Lookup})


def touched(command: Any, child: Child) -> Touched:
    return _COMMANDS.get(type(command), _nothing)(command, child)


def asked(body: Any, child: Child) -> Key | None:
    """Returns the inode of which a question asks what a write lease may buffer; None if it asks for nothing of that kind."""
    ino = child(body.volume, body.parent, body.name) if isinstance(body, m.Lookup) else body.ino
    return (body.volume, ino) if ino else None
