"""A cluster of one node, built from a state: a backup's (`meta restore`) or a dump's (`meta load`).

As after `device recover` (device_recover.py), the store becomes this node's, a new journal with a new incarnation begins behind its last
entry under a higher term, and the first entry, Recover, ends every session and makes all numbers jump that were handed out since.  The
segments of the devices are scanned for the newest incarnation, so that data written after the backup can never be taken for data that the
backup names.

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

from awsomefsd.base import durable, identity
from awsomefsd.base.errors import AlreadyExists, NotFound, Refused
from awsomefsd.io.collect.checkpoint_area import scan_device
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.superblock import Superblock, read_superblock
from awsomefsd.meta.api.messages import Devices, GetDevices
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.replica.store import Store
from awsomefsd.node.maintenance.checkpoints import carrying
from awsomefsd.recovery.device_recover import adopt, alone, fill_journal
from awsomefsd.recovery.eras import begin_era
from awsomefsd.recovery.first_entries import recover_from_copy

_BUILDING = "meta.restoring"


class Restored(Struct):
    """The cluster of one node that was made."""

    cluster: str
    node: str
    index: int
    term: int
    missing_devices: list[str]
    faults: list[str]


class GivenDevices(Struct):
    """The devices that were given, by UUID: their absolute paths, and what they are; the newest incarnation and term on them."""

    paths: dict[str, str]
    devices: dict[str, tuple[Device, Superblock]]
    incarnation: int
    term: int


def look_at(paths: list[str], cluster: str, undo: ExitStack) -> GivenDevices:
    """Scans the devices, which stay locked against others on this machine until `undo` ends.  Blocks.

    Raises Refused for a device of another cluster, or one that a process of this machine uses.
    """
    found = GivenDevices({}, {}, 0, 0)
    for path in paths:
        device = undo.enter_context(carrying(path))
        superblock = read_superblock(device)
        if superblock.cluster_uuid != cluster:
            raise Refused(f"{path} belongs to cluster {superblock.cluster_uuid}, the state to {cluster}")
        scanned = scan_device(device, superblock)
        found.devices[superblock.device_uuid] = device, superblock
        found.paths[superblock.device_uuid] = os.path.abspath(path)
        found.incarnation = max(found.incarnation, scanned.incarnation_seen)
        found.term = max(found.term, scanned.term_seen)
    return found


def begin(state_dir: Path, undo: ExitStack) -> Path:
    """Returns the empty directory where the store is to be put; the lock on the state directory is held until `undo` ends.

    Raises AlreadyExists if there is a node already.
    """
    if (state_dir / "node.json").exists():
        raise AlreadyExists(f"{state_dir} holds a node already; choose another --state-dir, or move that one away")
    identity.make_directory(state_dir, 0o700)
    undo.enter_context(identity.StateLock(state_dir, "this command"))
    building = state_dir / _BUILDING
    shutil.rmtree(building, ignore_errors=True)
    undo.callback(shutil.rmtree, building, ignore_errors=True)
    (building / "store").mkdir(parents=True, mode=0o700)
    (building / "journal").mkdir(mode=0o700)
    return building / "store"


def finish(state_dir: Path, cluster: str, term: int, paths: list[str], proof: str, undo: ExitStack) -> Restored:
    """Makes the node from the store that the caller has put where `begin` said.  Blocks.  `term`: the newest that the state's node knew.

    Raises NotFound if the state knows devices and none is given, Refused for a device of another cluster or without `proof` that no process
    writes.
    """
    building = state_dir / _BUILDING
    node = identity.Node(cluster, str(uuid.uuid4()), 0)
    found = look_at(paths, cluster, undo)
    missing = missing_devices(building / "store", found)
    if missing and not paths:
        raise NotFound(
            f"the state knows the devices {', '.join(missing)}: give their paths, so that newer data on them is not taken for older data"
        )
    if not proof:
        raise Refused("an old process that still writes would destroy data; if there is none, add --confirm-nobody-writes")
    incarnation = os.urandom(16)
    alone(building / "store")
    index, _ = adopt(building / "store", node, incarnation, term)
    fill_journal(building / "journal", node, incarnation, max(term, found.term) + 1, index, term, iter(()))
    report, site = _first_entry(building, node, found, proof)
    report.missing_devices = missing
    meta = state_dir / "meta"
    shutil.rmtree(meta, ignore_errors=True)  # without node.json: the rest of an earlier try
    building.rename(meta)
    durable.sync_directory(state_dir)
    table = DeviceTable(state_dir)
    for device, path in found.paths.items():
        table.add(device, path)
    durable.write_json(identity.identity_path(state_dir), asdict(identity.Node(cluster, node.node, site)))
    return report


def missing_devices(store_directory: Path, found: GivenDevices) -> list[str]:
    """Returns the UUIDs of the devices that the state knows and that were not found."""
    store = Store.open(store_directory, readonly=True)
    try:
        known = answer(Machine(store), GetDevices())
        assert isinstance(known, Devices)
        return sorted(info.uuid for info in known.devices if info.uuid not in found.paths)
    finally:
        store.close()


def _first_entry(directory: Path, node: identity.Node, found: GivenDevices, proof: str) -> tuple[Restored, int]:
    replica = Replica.open_single(directory, node.cluster, node.node, Machine)
    try:
        recover_from_copy(replica, found.incarnation, proof, node.node)
        begin_era(replica, found.devices, raises_level=True)
        replica.commit()
        faults = [f"{fault.where}: {fault.detail}" for fault in check(replica.store)]
        machine = replica.machine
        assert isinstance(machine, Machine)
        return Restored(node.cluster, node.node, machine.applied_index, replica.log.term, [], faults), machine.site
    finally:
        replica.close()
