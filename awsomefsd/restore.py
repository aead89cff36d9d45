"""A cluster of one node, built from a state: a backup's (`meta restore`) or a dump's (`meta load`).

As after `device recover` (recovery.py): the store becomes this node's, a new journal with a new incarnation goes on behind its last entry
under a higher term, and the first entry, Recover, ends every session and makes all numbers jump that were handed out since.  The segments
of the devices are looked at for the newest incarnation, so that what was written after the backup can never be taken for what it says.

node.json is written last: until then the state directory has no node, and the same command can be given again.
"""

from __future__ import annotations

import os
import shutil
import uuid
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from msgspec import Struct

from awsomefsd import durable, node
from awsomefsd.checkpoints import carrying
from awsomefsd.errors import AlreadyExists, NotFound, Refused
from awsomefsd.io.checkpoint import scan_device
from awsomefsd.io.devices import DeviceTable
from awsomefsd.io.superblock import read_superblock
from awsomefsd.meta import keys
from awsomefsd.meta.check import check
from awsomefsd.meta.commands import Recover
from awsomefsd.meta.machine import Machine
from awsomefsd.meta.messages import Devices, GetDevices
from awsomefsd.meta.queries import answer
from awsomefsd.meta.replica import Replica
from awsomefsd.meta.snapshot import RAFT_NOTE
from awsomefsd.meta.store import Store
from awsomefsd.recovery import adopt, fill_journal, propose_one

_BUILDING = "meta.restoring"


class Restored(Struct):
    """What was made."""

    cluster: str
    node: str
    index: int
    term: int
    missing_devices: list[str]
    faults: list[str]


class Found(Struct):
    """What the devices that were given hold: paths by UUID."""

    paths: dict[str, str]
    incarnation: int
    term: int


def _look(paths: list[str], cluster: str, undo: ExitStack) -> Found:
    found = Found({}, 0, 0)
    for path in paths:
        device = undo.enter_context(carrying(path))
        superblock = read_superblock(device)
        if superblock.cluster_uuid != cluster:
            raise Refused(f"{path} belongs to cluster {superblock.cluster_uuid}, the state to {cluster}")
        scanned = scan_device(device, superblock)
        found.paths[superblock.device_uuid] = os.path.abspath(path)
        found.incarnation = max(found.incarnation, scanned.incarnation_seen)
        found.term = max(found.term, scanned.term_seen)
    return found


def begin(state_dir: Path, undo: ExitStack) -> Path:
    """The empty directory where the store is to be put; the lock on the state directory is held until `undo` ends."""
    if (state_dir / "node.json").exists():
        raise AlreadyExists(f"{state_dir} holds a node already; choose another --state-dir, or move that one away")
    node.make_directory(state_dir, 0o700)
    undo.enter_context(node.StateLock(state_dir, "this command"))
    building = state_dir / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    undo.callback(shutil.rmtree, building, ignore_errors=True)
    (building / "store").mkdir(parents=True, mode=0o700)
    (building / "journal").mkdir(mode=0o700)
    return building / "store"


def finish(state_dir: Path, cluster: str, term: int, paths: list[str], proof: str, undo: ExitStack) -> Restored:
    """The store that `begin` asked for is there.  Raises Refused if its devices are not given, or without `proof` that nobody writes."""
    building = state_dir / _BUILDING
    identity = node.Node(cluster, str(uuid.uuid4()), 0)
    found = _look(paths, cluster, undo)
    missing = _missing(building / "store", found)
    if missing and not paths:
        raise NotFound(
            f"the state knows the devices {', '.join(missing)}: give their paths, so that nothing on them is taken for older data"
        )
    if not proof:
        raise Refused("a process of before that still writes would destroy data: say that there is none with --confirm-nobody-writes")
    incarnation = os.urandom(16)
    alone(building / "store")
    index, _ = adopt(building / "store", identity, incarnation, term)
    fill_journal(building / "journal", identity, incarnation, max(term, found.term) + 1, index, term, iter(()))
    report, site = _first_entry(building, identity, found, proof)
    report.missing_devices = missing
    meta = state_dir / "meta"
    shutil.rmtree(meta, ignore_errors=True)  # without node.json: the rest of an earlier try
    building.rename(meta)
    durable.sync_directory(state_dir)
    table = DeviceTable(state_dir)
    for device, path in found.paths.items():
        table.add(device, path)
    durable.write_json(node.identity_path(state_dir), asdict(node.Node(cluster, identity.node, site)))
    return report


def _missing(store_directory: Path, found: Found) -> list[str]:
    store = Store.open(store_directory, readonly=True)
    try:
        known = answer(Machine(store), GetDevices())
        assert isinstance(known, Devices)
        return sorted(info.uuid for info in known.devices if info.uuid not in found.paths)
    finally:
        store.close()


def alone(store_directory: Path) -> None:
    """The voters of before are none of this cluster."""
    store = Store.open(store_directory)
    try:
        store.delete(keys.membership())
        store.set_note(RAFT_NOTE, b"")
        store.commit()
    finally:
        store.close()


def _first_entry(directory: Path, identity: node.Node, found: Found, proof: str) -> tuple[Restored, int]:
    replica = Replica.open_solo(directory, identity.cluster, identity.node, Machine)
    try:
        propose_one(replica, Recover(found.incarnation, proof, identity.node))
        replica.commit()
        faults = [f"{fault.where}: {fault.detail}" for fault in check(replica.store)]
        machine = replica.machine
        assert isinstance(machine, Machine)
        return Restored(identity.cluster, identity.node, machine.applied_index, replica.log.term, [], faults), machine.site
    finally:
        replica.close()
