"""`awsomefsd device recover`: a cluster of one node, built from what its devices hold (decision 28).

It uses the checkpoint with the highest (term, index) on any device, found by reading the first block of each segment.  From it come a store
with the tail applied, a new journal with a new incarnation that continues behind it, and a first entry Recover, under the next term: it
ends every session and makes all numbers jump that the lost end of the log may have handed out.  The incarnations of segments begin above
the newest one found in any segment's first frame as well, so that a second recovery of the same checkpoint does not count them twice.  Then
the state is checked as fsck does, and a checkpoint of it is written to the device: from then on the recovery itself is the newest thing
there.  If several nodes carried the metadata, none of them is a voter of the new cluster.

Crash windows.  Nothing of an old checkpoint is overwritten, so it can be done again from the start at any time.  On a fresh state directory
the file `recovering` says that what lies there is a recovery that did not end; node.json comes last.  In place, everything is built in
meta/recovering; from its file `done` on it is only moved, and the next try ends the moving.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from msgspec import Struct

from awsomefsd.base import durable, identity
from awsomefsd.base.clock import wall_ns
from awsomefsd.base.errors import AlreadyExists, Corrupt, Error, FsError, NotFound, Refused
from awsomefsd.base.limits import CHECKPOINT_BATCH_BYTES_MAX, MIB
from awsomefsd.base.rule_levels import CHECKPOINTS_OF_NODES
from awsomefsd.base.types import SegmentInfo
from awsomefsd.io.collect import checkpoint_format as form
from awsomefsd.io.collect.checkpoint_area import Area, AreaReader, AreaWriter, checkpoints_of, scan_device
from awsomefsd.io.collect.checkpoint_format import AreaHeader
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.superblock import Superblock, read_superblock
from awsomefsd.meta.api.commands import KeepForCheckpoint, KeepSegments
from awsomefsd.meta.api.messages import Devices, GetDevices, GetOwnSegments, Segments, SegmentsLeased
from awsomefsd.meta.check.check import check
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.replica.state_snapshot_files import set_aside
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.state import keys
from awsomefsd.meta.state.redaction import empty_erased, erasures
from awsomefsd.meta.voter.ports import RAFT_NOTE
from awsomefsd.meta.voter.single_voter import decode
from awsomefsd.node.maintenance.checkpoints import carrying, new_header, write_copy
from awsomefsd.recovery.eras import begin_era
from awsomefsd.recovery.first_entries import propose_one, recover_from_copy

MARKER, BUILDING, DONE = "recovering", "recovering", "done"


class DeviceSurvey(Struct):
    """The checkpoints that the devices hold.  `best` lies on device `where`."""

    cluster: str
    devices: dict[str, tuple[Device, Superblock]]
    best: Area
    headers: list[tuple[AreaHeader, int]]
    where: str
    incarnation_seen: int
    term_seen: int

    @property
    def reader(self) -> AreaReader:
        return AreaReader(self.devices[self.where][0], self.headers)


class RecoveryReport(Struct):
    """The result of a recovery, or of its dry run."""

    cluster: str
    node: str
    term: int
    index: int
    time_ns: int
    source: str
    missing_devices: list[str]
    faults: list[str]
    checkpointed: bool
    done: bool


def survey(paths: list[str], undo: ExitStack) -> DeviceSurvey:
    """Opens, locks and reads the devices, until `undo` ends.  Blocks for one block of each segment and the checkpoints.

    Raises Refused for a device in use and for devices of different clusters, NotFound if there is no checkpoint, an Error of a superblock.
    """
    devices: dict[str, tuple[Device, Superblock]] = {}
    best: tuple[Area, list[tuple[AreaHeader, int]], str] | None = None
    incarnation = term = 0
    for path in paths:
        device = undo.enter_context(carrying(path))
        superblock = read_superblock(device)
        if any(other.cluster_uuid != superblock.cluster_uuid for _, other in devices.values()):
            raise Refused(
                f"{path} belongs to cluster {superblock.cluster_uuid}, but the devices before it do not; give devices of one cluster"
            )
        devices[superblock.device_uuid] = (device, superblock)
        found = scan_device(device, superblock)
        incarnation, term = max(incarnation, found.incarnation_seen), max(term, found.term_seen)
        for area in checkpoints_of(device, found)[:1]:
            if best is None or area.rank > best[0].rank:
                best = area, found.areas[area.header.area], superblock.device_uuid
    if best is None:
        raise NotFound(f"no checkpoint on {', '.join(paths)}; without a checkpoint or the state directory the names are lost")
    cluster = devices[best[2]][1].cluster_uuid
    return DeviceSurvey(cluster, devices, best[0], best[1], best[2], incarnation, max(term, best[0].term))


# --- on a fresh state directory ---------------------------------------------------------------------------------------------------
def recover(state_dir: Path, paths: list[str], proof: str, *, dry_run: bool) -> RecoveryReport:
    """Builds a node in an empty state directory from the devices; with `dry_run` only reports.  Blocks.

    Raises AlreadyExists if the state directory has an identity or metadata, Refused without `proof` that no process writes, and as
    `survey`.
    """
    marker, meta = state_dir / MARKER, state_dir / "meta"
    if (state_dir / "node.json").exists() or (meta.exists() and not marker.exists()):
        raise AlreadyExists(f"{state_dir} holds a node already; choose another --state-dir, or repair this one with --in-place")
    with ExitStack() as undo:
        found = survey(paths, undo)
        node = identity.Node(found.cluster, str(uuid.uuid4()), 0)
        if dry_run:
            return _report(found, node.node, found.best.last, "device", done=False)
        _need(proof)
        identity.make_directory(state_dir, 0o700)
        undo.enter_context(identity.StateLock(state_dir, "device recover"))
        durable.write_file(marker, b"")
        building = state_dir / "meta.recovering"
        for leftover in (building, meta):
            shutil.rmtree(leftover, ignore_errors=True)
        report, site = _build(building, found, node, proof)
        building.rename(meta)
        durable.sync_directory(state_dir)
        for uuid_, (device, _) in found.devices.items():
            DeviceTable(state_dir).add(uuid_, os.path.abspath(device.path))
        durable.write_json(identity.identity_path(state_dir), asdict(identity.Node(node.cluster, node.node, site)))
        marker.unlink()
        return report


def _need(proof: str) -> None:
    if not proof:
        raise Refused("an old process that still writes would destroy data; if there is none, add --confirm-nobody-writes")


def _report(found: DeviceSurvey, node_uuid: str, index: int, source: str, *, done: bool) -> RecoveryReport:
    best = found.best
    return RecoveryReport(found.cluster, node_uuid, best.term, index, best.time_ns, source, [], [], False, done)


def _build(directory: Path, found: DeviceSurvey, node: identity.Node, proof: str, base: Path | None = None) -> tuple[RecoveryReport, int]:
    """Builds store and journal under `directory`; the state is the checkpoint's, or that of `base`, a store.  Returns the site too."""
    (directory / "store").mkdir(parents=True, mode=0o700)
    (directory / "journal").mkdir(mode=0o700)
    entries = _state_files(directory / "store" / "data.mdb", found, base)
    incarnation = os.urandom(16)
    last = _apply_tail(directory, found, node, entries)
    alone(directory / "store")
    _, term = adopt(directory / "store", node, incarnation, found.best.copy_term if base is not None else found.best.term)
    fill_journal(directory / "journal", node, incarnation, found.term_seen + 1, last, term, iter(()))
    replica = Replica.open_single(directory, node.cluster, node.node, Machine)
    try:
        machine = replica.machine
        assert isinstance(machine, Machine)
        recover_from_copy(replica, found.incarnation_seen, proof, node.node)
        replica.commit()
        begin_era(replica, found.devices, raises_level=directory.name != BUILDING)
        report = _report(found, node.node, last, "device" if base is None else "store", done=True)
        known = answer(machine, GetDevices())
        assert isinstance(known, Devices)
        report.missing_devices = [info.uuid for info in known.devices if info.uuid not in found.devices]
        report.faults = [f"{fault.where}: {fault.detail}" for fault in check(replica.store)]
        report.checkpointed = _checkpoint(directory, replica, found, node)
        return report, machine.site
    finally:
        replica.close()


def _apply_tail(directory: Path, found: DeviceSurvey, node: identity.Node, entries: Iterator[list[bytes]]) -> int:
    """Applies the entries behind the copy to the store; returns the index of the last one.

    A journal is made for that and removed: it may have entries of several voters, which the one that is left must not find in its own.
    """
    incarnation = os.urandom(16)
    index, term = adopt(directory / "store", node, incarnation, found.best.copy_term)
    last = fill_journal(directory / "journal", node, incarnation, found.term_seen + 1, index, term, entries)
    replica = Replica.open_single(directory, node.cluster, node.node, Machine)
    try:
        if replica.machine.applied_index != last:
            raise Corrupt(f"the journal was filled up to entry {last}, the state ends with {replica.machine.applied_index}")
        replica.commit()
    finally:
        replica.close()
    shutil.rmtree(directory / "journal")
    (directory / "journal").mkdir(mode=0o700)
    return last


def alone(store_directory: Path) -> None:
    """Removes the membership from a store: the voters of before are none of this cluster."""
    store = Store.open(store_directory)
    try:
        store.delete(keys.membership())
        store.set_note(RAFT_NOTE, b"")
        store.commit()
    finally:
        store.close()


def _state_files(target: Path, found: DeviceSurvey, base: Path | None) -> Iterator[list[bytes]]:
    """Writes the store's file; returns the batches of entries behind it."""
    if base is not None:
        store = Store.open(base, readonly=True)
        try:
            store.copy_to(target)
        finally:
            store.close()
        return iter(())
    with os.fdopen(durable.create(target), "wb") as file:
        batches = found.reader.restore(file)
        first = next(batches, None)  # the copy comes before the first batch
        file.flush()
        os.fsync(file.fileno())

    def every() -> Iterator[list[bytes]]:
        if first is not None:
            yield first
            yield from batches

    return every()


def adopt(directory: Path, node: identity.Node, incarnation: bytes, term: int) -> tuple[int, int]:
    """Makes the store this node's; returns the index of the entry it ends with, and its term."""
    store = Store.open(directory)
    try:
        index = Machine(store).applied_index
        empty_erased(store)
        store.adopt(node.cluster, node.node, incarnation, index, term)
        return index, term
    finally:
        store.close()


def fill_journal(
    directory: Path, node: identity.Node, incarnation: bytes, new_term: int, index: int, term: int, batches: Iterator[list[bytes]]
) -> int:
    """Makes a journal that begins behind entry `index` and holds these entries, durable; returns the index of the last one.

    Raises Corrupt for a gap in the entries.
    """
    ids = [uuid.UUID(text).bytes for text in (node.cluster, node.node)]
    journal = Journal.open(directory, ids[0], ids[1], create=True, incarnation=incarnation)
    try:
        journal.set_hard_state(new_term, ids[1])
        journal.reset_to(index, term)
        for batch in batches:
            for raw in batch:
                entry = decode(raw)
                if entry.index <= journal.last_index:
                    continue
                if entry.index != journal.last_index + 1:
                    raise Corrupt(f"the tail goes on with entry {entry.index} behind {journal.last_index}")
                journal.append(entry.term, [raw])
        journal.sync()
        return journal.last_index
    finally:
        journal.close()


def _checkpoint(directory: Path, replica: Replica, found: DeviceSurvey, node: identity.Node) -> bool:
    """Writes the recovered state durably to the device.  Returns False if there is no room: the daemon tries again."""
    own = answer(replica.machine, GetOwnSegments())  # type: ignore[arg-type]
    assert isinstance(own, Segments)
    device = found.devices[found.where][0]
    number = next(info.device for info in _devices(replica) if info.uuid == found.where)
    free: list[SegmentInfo] = [info for info in own.segments if info.device == number and info.segment not in found.best.segments]
    copy = directory / "copy"
    mended = replica.machine.level >= CHECKPOINTS_OF_NODES
    version = form.VERSION if mended else form.WITHOUT_EARLY_TAIL

    def keep() -> list[SegmentInfo]:
        safe = found.best.last
        command = KeepForCheckpoint(number, 1, node.node, safe) if mended else KeepSegments(number, 1, safe)
        reply = propose_one(replica, command)
        assert isinstance(reply, SegmentsLeased)
        return reply.segments

    def more() -> None:
        writer.extend(keep())

    try:
        if not free:
            free = keep()
        replica.commit()
        replica.store.copy_to(copy)
        index = replica.machine.applied_index
        header = new_header(node, found.where, found.best.header.number + 1, replica.log.term, index, version=version)
        writer = AreaWriter(device, free[: 1 + copy.stat().st_size // MIB], header)
        for _ in write_copy(writer, copy, erasures(replica.store), more):
            pass
        writer.complete(index, replica.log.term, wall_ns())
        entries = replica.log.read(index + 1, 1 << 20, CHECKPOINT_BATCH_BYTES_MAX)
        if entries:
            writer.append(entries, index + 1, replica.log.term, wall_ns())
    except FsError:
        return False
    finally:
        copy.unlink(missing_ok=True)
        replica.commit()
    return True


def _devices(replica: Replica) -> list:  # type: ignore[type-arg]
    known = answer(replica.machine, GetDevices())  # type: ignore[arg-type]
    assert isinstance(known, Devices)
    return known.devices


# --- in place ---------------------------------------------------------------------------------------------------------------------
def recover_in_place(state_dir: Path, paths: list[str], proof: str, *, dry_run: bool) -> RecoveryReport:
    """Repairs a node whose store or journal is damaged; the damaged files are kept beside.  With `dry_run` only reports.  Blocks.

    Raises Refused if neither is damaged, without `proof`, or for devices of another cluster, and as `survey`.
    """
    node = identity.load(state_dir)
    meta = state_dir / "meta"
    with ExitStack() as undo:
        undo.enter_context(identity.StateLock(state_dir, "device recover"))
        building = meta / BUILDING
        if (building / DONE).exists():
            move_in(meta, building)
        found = survey(paths, undo)
        if found.cluster != node.cluster:
            raise Refused(f"the devices belong to cluster {found.cluster}, this node to {node.cluster}")
        if found.best.header.flags & form.SEVERAL:
            raise Refused(
                "several nodes carried the metadata: start this one, and it takes the state from the others; "
                "if none of them is left, recover into a new --state-dir"
            )
        journal, applied = _journal_of(meta, node), _applied_of(meta / "store")
        if journal is not None and applied is not None and journal[0] <= applied + 1 and applied <= journal[1]:
            raise Refused(f"store and journal of {state_dir} are undamaged; nothing was done")
        shutil.rmtree(building, ignore_errors=True)
        ours = found.best.header.node == uuid.UUID(node.node).bytes  # else the device may have been recovered elsewhere meanwhile:
        # entries of that history and of this journal have the same numbers, and must not be mixed
        if ours and journal is not None and applied is None and journal[0] <= found.best.index + 1 <= journal[1] + 1:
            return _only_store(meta, building, found, node, journal, dry_run=dry_run)
        base = meta / "store" if applied is not None and applied >= found.best.last else None
        if dry_run:
            return _report(found, node.node, applied or 0 if base else found.best.last, "store" if base else "device", done=False)
        _need(proof)
        report, _ = _build(building, found, node, proof, base)
        durable.write_file(building / DONE, b"")
        move_in(meta, building)
        return report


def _journal_of(meta: Path, node: identity.Node) -> tuple[int, int, bytes] | None:
    """Returns (first index, last index, incarnation); None for a journal that is damaged or gone."""
    ids = [uuid.UUID(text).bytes for text in (node.cluster, node.node)]
    try:
        journal = Journal.open(meta / "journal", ids[0], ids[1], create=False)
    except (Corrupt, FileNotFoundError):
        return None
    try:
        index = journal.first_index
        while page := journal.read(index):
            index += len(page)
        return journal.first_index, journal.last_index, journal.incarnation
    except Corrupt:
        return None
    finally:
        journal.close()


def _applied_of(store_directory: Path) -> int | None:
    """Returns the applied index of a store; None for one that is damaged or gone."""
    if not (store_directory / "data.mdb").exists():
        return None
    try:
        store = Store.open(store_directory, readonly=True)
    except Error:
        return None
    try:
        return None if check(store) else Machine(store).applied_index
    except Exception:  # LMDB's own exceptions, for pages that point nowhere
        return None
    finally:
        store.close()


def _only_store(
    meta: Path, building: Path, found: DeviceSurvey, node: identity.Node, journal: tuple[int, int, bytes], *, dry_run: bool
) -> RecoveryReport:
    """Builds the store from the checkpoint's copy and the whole journal behind it.  Nothing is lost, so no number has to jump."""
    report = _report(found, node.node, journal[1], "device and journal", done=not dry_run)
    report.checkpointed = True  # the one that was read: only the journal is newer
    if dry_run:
        return report
    (building / "store").mkdir(parents=True, mode=0o700)
    _state_files(building / "store" / "data.mdb", found, None)
    adopt(building / "store", node, journal[2], found.best.copy_term)
    durable.write_file(building / DONE, b"")
    move_in(meta, building)
    replica = Replica.open_single(meta, node.cluster, node.node, Machine)
    try:
        replica.commit()
        report.faults = [f"{fault.where}: {fault.detail}" for fault in check(replica.store)]
    finally:
        replica.close()
    return report


def move_in(meta: Path, building: Path) -> None:
    """Moves the built directory into place; the old one is kept beside it.  May be repeated after a crash anywhere."""
    for name in ("journal", "store"):
        if (building / name).exists():
            set_aside(meta, (name,))
            (building / name).rename(meta / name)
            durable.sync_directory(meta)
    shutil.rmtree(building)
