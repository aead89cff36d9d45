"""Says which inodes each command changes, and which it and each question read, of all that leases cover.  Pure.

A lease covers an inode: its attributes, its data and where that lies, and the names in it if it is a directory.  What a command changes
nobody else may hold; what it or a question reads nobody else may *write* under a lease, because data may be buffered there, or changes of
names and attributes that the holder has decided.  The leader asks them to let go, and lets the command or the question wait
(lease_requests.py).

Every command has its decision here, and a test says so of those to come.  Not covered, and so changed without anybody being asked:

* times of access, which every reader reports: recalls between readers would cost more than they are worth;
* where bytes lie, as collection moves them: readers compare identities and ask again;
* locks, pins, sessions, segments, volumes, nodes: no lease speaks of them;
* what a session releases of its own (ReleaseOrphan), and records (Apply), which the machine takes of their holder only (records.py).

What a name leads to is known only when its directory is clear, so a question for a name reads the directory as well as what is there.
Extended attributes are held back only where names are delegated, or were when their holder began: else a question for them recalls nobody
(NAMES_ONLY).  A page of a
directory with attributes is no reason to recall one lease for each of its files: the attributes of those that another mount writes are left
out, and who wants them asks for them (`GetAttr`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server.waiters import Key
from awsomefsd.meta.state import governed, keys

Child = Callable[[int, int, bytes], int]  # of a directory and a name, b".." too: the inode there, 0 for none


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
    if ino:
        return Touched([], [parent, (command.volume, ino)], [parent])
    return Touched([parent], [], [parent] if command.open_existing else [])


def _tmpfile(command: c.Tmpfile, child: Child) -> Touched:
    """The directory gives its group and ACL."""
    return Touched([], [(command.volume, command.parent)])


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
    c.Tmpfile: _tmpfile,
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
        c.LeaseSegments, c.Reserve, c.SetAtimes, c.ReleaseOrphan, c.Reap, c.OpenCollector, c.Relocate, c.SetLock,
        c.AcquireLease, c.ReleaseLease, c.RegisterReader, c.AdvanceReader, c.RemoveReader, c.NoOp, c.ChangeMembership, c.RepairRows,
        c.KeepSegments, c.DropSegments, c.Recover, c.KeepForCheckpoint, c.AdoptSegments, c.CheckpointDone, c.ReturnSegments,
        c.AddNode, c.DescribeNode, c.DropCa, c.PutCa, c.PutToken, c.RaiseLevel, c.RevokeToken,
        c.SetCarries, c.SetNodeState, c.MakeCsiVolume, c.SetCsiVolume, c.DropCsiVolume, c.ClaimVolume, c.EndClaims,
        c.GrowDevice, c.DrainDevice, c.RemoveDevice, c.SetAbsent, c.SetDeviceEra,
        c.SetNames, c.Apply, c.GrantInodes,
        c.AddPoolDevice, c.AttachDevice, c.LeaseBays, c.PlanMirror, c.MirrorMade, c.DropBays, c.BaysTrimmed, c.SetDeviceState,
        c.NeedSegments, c.SetRedundancy, c.SetSegmentServer, c.SetPool, c.BaysWrong,
        c.AddStore, c.StoreReady, c.SetStore, c.DetachStore, c.SetMaintenance, c.DrainPoolDevices, c.BaysSeen,
        c.CreateSnapshots, c.DeleteSnapshot, c.OpenSnapshot,
        c.BeginEra,
    }
)  # fmt: skip
DECIDED = frozenset(_COMMANDS) | UNTOUCHED


def touched(command: Any, child: Child) -> Touched:
    return _COMMANDS.get(type(command), _nothing)(command, child)


def _looks_up(body: m.Lookup, child: Child) -> list[Key]:
    return _known(body.volume, body.parent, child(body.volume, body.parent, body.name))


def _asks_parent(body: m.GetParent, child: Child) -> list[Key]:
    return _known(body.volume, body.ino, child(body.volume, body.ino, b".."))


def _asks_rows(body: m.GetRows, child: Child) -> list[Key]:
    """Who asks for them believes to hold them."""
    return _known(body.volume, *(keys.first_u64(key) for key in (*body.keys, body.group) if len(key) >= governed.GROUP_BYTES))


def _asks(body: Any, child: Child) -> list[Key]:
    return [(body.volume, body.ino)]


_QUESTIONS: dict[type, Callable[[Any, Child], list[Key]]] = {
    m.Lookup: _looks_up,
    m.GetParent: _asks_parent,
    m.GetRows: _asks_rows,
    **dict.fromkeys((m.GetAttr, m.GetLayout, m.ReadDir, m.ReadLink, m.GetXattr, m.ListXattr), _asks),
}
QUESTIONS = frozenset(_QUESTIONS)
NAMES_ONLY = frozenset({m.GetXattr, m.ListXattr})  # of these a lease holds nothing back but what its holder decides


def asked(body: Any, child: Child) -> list[Key]:
    """Returns the inodes of which a question asks what a write lease may hold back, the one that it is about at last."""
    return [] if getattr(body, "at", 0) else _QUESTIONS[type(body)](body, child)
