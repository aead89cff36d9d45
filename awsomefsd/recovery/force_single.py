"""`awsomefsd meta recover --force-single`: this stopped node goes on alone, because the majority of the voters is lost.

All that is in its journal counts as committed: no voter is left that could contradict, and dropping it could only lose more.  Entries that
the lost voters had acknowledged and this node never got are gone, and with them what they handed out: inode numbers, sessions, segments.
So the entry behind the new membership is Recover, as after every other recovery from an older state: every session ends, and no number is
handed out again.  A worker of before would go on writing to segments that this state calls free: the operator confirms that there is none.
The term jumps as well, because workers and checkpoints know that of the lost leaders.

The journal gets another incarnation and the membership a higher
generation, with this node as its only voter.  So no message of before reaches it, and a member of before that comes back is refused as left
behind, and stops: it may hold what is missing here, so people must decide (docs/OPERATIONS.md).  Members that cannot reach it would
elect a leader among themselves and hand out segments that are in use here.  So the devices that this node sees get a new era (eras.py), and
are refused to them.  The others keep theirs: nobody can tell anything to a device that is not seen.

Crash windows.  Everything is built in meta/recovering out of copies; until its file `done` nothing has happened, and the command begins
again, but for the era in superblocks: until the next try, which takes a larger one, this node is refused its devices.  After `done` the
parts are only moved into place, which the next try ends; the daemon does not start in between.
"""

from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

from msgspec import Struct

from awsomefsd.base import durable, identity
from awsomefsd.base.errors import NotFound, Refused
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.meta.api.commands import AnyCommand, ChangeMembership, Recover
from awsomefsd.meta.check.check import check
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.raft.membership import Member, Membership
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.replica.state_snapshot_files import StateSnapshotFiles
from awsomefsd.meta.server.service import SUPERSEDED
from awsomefsd.recovery.device_recover import BUILDING, DONE, adopt, fill_journal, move_in
from awsomefsd.recovery.eras import Found, begin_era
from awsomefsd.recovery.first_entries import propose_one
from awsomefsd.recovery.restore import alone, look_at, missing_devices

TERMS_JUMP = 1 << 20  # more elections than the lost voters held among themselves


class Forced(Struct):
    """The result: the node that is the only voter now.  `lost`: nodes that were members before.

    `missing_devices`: those that this node does not see; whether newer numbers are on them was not looked at.
    """

    node: str
    index: int
    generation: int
    lost: list[str]
    faults: list[str]
    missing_devices: list[str]


def force_single(state_dir: Path, address: str, *, confirmed: bool, proof: str) -> Forced:
    """Makes this stopped node the only voter.  `address`: of its metadata port.  `proof`: why no process from before writes.  Blocks.

    Raises NotFound without metadata here.  Raises Refused without `confirmed` or `proof`, for a node whose daemon or mounts run, for one
    that was left behind by a recovery elsewhere, and if there is one voter anyway.
    """
    node = identity.load(state_dir)
    meta = state_dir / "meta"
    with ExitStack() as undo:
        undo.enter_context(identity.StateLock(state_dir, "meta recover"))
        building = meta / BUILDING
        if (building / DONE).exists():
            move_in(meta, building)
        if not (meta / "journal").is_dir() or not (meta / "store").is_dir():
            raise NotFound(f"{meta} holds no metadata; recover another node, or restore a backup (awsomefsd meta restore)")
        if (meta / SUPERSEDED).exists():
            raise Refused(f"this node's metadata was left behind: {(meta / SUPERSEDED).read_text().strip()}")
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(mode=0o700)
        undo.callback(shutil.rmtree, building, ignore_errors=True)
        old, index, term = _applied_copy(meta, building, node)
        if not confirmed:
            raise Refused("a majority of the voters may still come back; wait for it, or if it is lost add --confirm-majority-lost")
        if not proof:
            raise Refused("an old process that still writes would destroy data; if there is none, add --confirm-nobody-writes")
        seen = look_at(_reachable(state_dir), node.cluster, undo)
        missing = missing_devices(building / "store", seen)
        incarnation = os.urandom(16)
        alone(building / "store")
        adopt(building / "store", node, incarnation, term)
        shutil.rmtree(building / "journal")
        (building / "journal").mkdir(mode=0o700)
        fill_journal(building / "journal", node, incarnation, max(term, seen.term) + TERMS_JUMP, index, term, iter(()))
        mine = Member(node.node, incarnation.hex(), True, address)
        membership = Membership([mine], generation=old.generation + 1)
        faults = _first_entries(building, node, first_commands(membership, seen.incarnation, proof), seen.devices)
        durable.write_file(building / DONE, b"")
        move_in(meta, building)
    lost = sorted({member.node for member in (*old.members, *old.outgoing)} - {node.node})
    return Forced(node.node, index, old.generation + 1, lost, faults, missing)


def first_commands(membership: Membership, incarnation_seen: int, proof: str) -> list[AnyCommand]:
    """Returns what the only voter enters behind the old log: who votes now, and that nothing of before goes on or is handed out again."""
    return [ChangeMembership(membership), Recover(incarnation_seen, proof)]


def _reachable(state_dir: Path) -> list[str]:
    """Returns the paths of this node's devices that are there."""
    return [path for path in DeviceTable(state_dir).paths().values() if Path(path).exists()]


def _applied_copy(meta: Path, building: Path, node: identity.Node) -> tuple[Membership, int, int]:
    """Copies store and journal and applies all of the journal; returns the newest membership, the last entry, the term."""
    files = StateSnapshotFiles(meta, OsDisk().beside)
    try:
        store = files.open_store()  # ends an exchange of states that a crash interrupted
        (building / "store").mkdir(mode=0o700)
        store.copy_to(building / "store" / "data.mdb")
        store.close()
    finally:
        files.close()
    shutil.copytree(meta / "journal", building / "journal")
    replica = Replica.open_single(building, node.cluster, node.node, Machine)
    try:
        at = replica.machine.membership()
        if at is None:
            raise Refused("this node is already the only voter, so there is nothing to recover; start its daemon")
        replica.commit()
        return at.membership, replica.machine.applied_index, replica.log.term
    finally:
        replica.close()


def _first_entries(building: Path, node: identity.Node, commands: list[AnyCommand], found: Found) -> list[str]:
    replica = Replica.open_single(building, node.cluster, node.node, Machine)
    try:
        for command in commands:
            propose_one(replica, command)
        begin_era(replica, found, raises_level=False, only_found=True)
        replica.commit()
        return [f"{fault.where}: {fault.detail}" for fault in check(replica.store)]
    finally:
        replica.close()
