"""An orchestrator asks for volumes, and the nodes that use them claim them.

A record names a volume that exists: deleting the volume ends its records, and is refused while a node claims it.  A claim is (volume,
path, node).  An exclusive one stands alone: no other node claims the same volume and path, so a volume for one node is used by one node
even if the orchestrator lets several in.  A claim outlives processes, as a session does.  It ends when its node reports it (unstaged, or
seen alive under another boot id), by fencing, or with the node (`end_of_node`).  Its epoch is the fencing token: a release that carries an
old one ends nothing.

Fencing: when a session expires, the claims of its node (of that boot) on its volume are marked.  A marked claim blocks no other node
while no session of that boot lives; another node's claim is then written beside it, and while both are there the marked boot may open no
session on the volume (`refuse_fenced`), nor claim the same again: so two nodes never write what one of them has alone, not even where the
sessions would let both in (a directory of a shared volume).  The mark goes when the node opens a session, which it may if no other node has
taken what it had; the claim goes when the node has unstaged it.  A volume that an orchestrator has attached is also detached by it: the
claim stays until then, and is marked then if the node has not unstaged it.  Of the claims of one path that exclude each other at most one
is not marked.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Iterator

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import CSI_NAME_BYTES_MAX, CSI_PAGE_MAX, CSI_PATH_BYTES_MAX, CSI_SETTINGS_BYTES_MAX
from awsomefsd.base.types import ClaimInfo, CsiVolumeInfo
from awsomefsd.meta.api.commands import (
    ClaimVolume,
    CreateVolume,
    DeleteVolume,
    DropCsiVolume,
    EndClaims,
    Entry,
    MakeCsiVolume,
    SetCsiVolume,
    SetVolume,
)
from awsomefsd.meta.api.messages import Done, Made, Reply
from awsomefsd.meta.api.messages.csi import Claimed, Claims, CsiVolumes, GetClaims, GetCsiVolumes
from awsomefsd.meta.machine import client_shares, volumes
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State

NODE_BYTES_MAX = 64


# --- records ----------------------------------------------------------------------------------------------------------------
def make(state: State, entry: Entry, command: MakeCsiVolume) -> Reply:
    """Makes the record of a volume of an orchestrator, and the volume if it is one of its own.  Answered by Made(volume)."""
    _check(command)
    if state.txn.get(keys.csi_volume(command.id)) is not None or state.txn.get(keys.csi_name(command.name)) is not None:
        raise FsError(errno.EEXIST, f"{command.name} exists")
    number, own = command.volume, not command.volume
    if own:
        wanted = CreateVolume(
            f"csi-{command.id}", command.id, command.quota_bytes, command.quota_inodes,
            command.mode, command.uid, command.gid, command.names,
        )  # fmt: skip
        made = volumes.create(state, entry, wanted)
        assert isinstance(made, Made)
        number = made.number
    else:
        volumes.existing(state, number)
    row = rows.CsiVolumeRow(command.id, command.name, number, command.path, own, command.capacity, command.block, command.settings)
    state.write(keys.csi_volume(command.id), row, rows.CSI_VOLUME)
    state.write(keys.csi_name(command.name), rows.CsiNameRow(command.id), rows.CSI_NAME)
    return Made(number)


def _check(command: MakeCsiVolume) -> None:
    try:
        plain = str(uuid.UUID(command.id)) == command.id
    except ValueError:
        plain = False
    if not plain:
        raise FsError(errno.EINVAL, f"{command.id!r} is no UUID")
    if not _fits(command.name):
        raise FsError(errno.EINVAL, f"a name has 1 to {CSI_NAME_BYTES_MAX} bytes")
    if command.capacity < 0 or command.quota_bytes < 0 or command.quota_inodes < 0:
        raise FsError(errno.EINVAL, "a size is not negative")
    _check_path(command.path)
    if command.names and command.volume:
        raise FsError(errno.EINVAL, "a directory has the names of its volume")
    if bool(command.path) != bool(command.volume):
        raise FsError(errno.EINVAL, "a directory is one of a volume that exists, and a volume of its own has no path")
    _check_settings(command.settings)


def _fits(name: str) -> bool:
    """Returns True if a name can be in a key of the store."""
    return 0 < len(name.encode()) <= CSI_NAME_BYTES_MAX


def _check_settings(settings: list[tuple[str, str]]) -> None:
    if sum(len(name.encode()) + len(value.encode()) for name, value in settings) > CSI_SETTINGS_BYTES_MAX:
        raise FsError(errno.EINVAL, f"settings have at most {CSI_SETTINGS_BYTES_MAX} bytes")


def _check_path(path: str) -> None:
    """Raises FsError(EINVAL) unless the path is relative and of plain names: others join it to a mount point, too."""
    if len(path.encode()) > CSI_PATH_BYTES_MAX or "\0" in path or any(part in ("", ".", "..") for part in path.split("/") if path):
        raise FsError(errno.EINVAL, "not a path inside a volume")


def _record(state: State, id: str) -> rows.CsiVolumeRow:
    row: rows.CsiVolumeRow | None = state.read(keys.csi_volume(id), rows.CSI_VOLUME) if _fits(id) else None
    if row is None:
        raise FsError(errno.ENOENT, f"no volume {id}")
    return row


def change(state: State, entry: Entry, command: SetCsiVolume) -> Reply:
    """Changes capacity, quotas or settings of a record."""
    row = _record(state, command.id)
    quotas = command.quota_bytes != -1 or command.quota_inodes != -1
    if command.capacity < -1 or (quotas and not row.own):
        raise FsError(errno.EINVAL, "a size is not negative, and only a volume of its own has quotas")
    if command.settings is not None:
        _check_settings(command.settings)
        row.settings = command.settings
    if quotas:
        volumes.set_volume(state, entry, SetVolume(row.volume, command.quota_bytes, command.quota_inodes))
    if command.capacity >= 0:
        row.capacity = command.capacity
    state.write(keys.csi_volume(row.id), row, rows.CSI_VOLUME)
    return Done()


def drop(state: State, entry: Entry, command: DropCsiVolume) -> Reply:
    """Removes a record, and with `destroy` its volume."""
    row = _record(state, command.id)
    _refuse_claimed(state, row.volume, None if row.own and command.destroy else row.path)
    if row.own and command.destroy:
        return delete_volume(state, entry, DeleteVolume(row.volume, True))
    if command.destroy:
        _end_claims_of(state, row.volume, row.path)
    _drop_record(state, row)
    return Done()


def _drop_record(state: State, row: rows.CsiVolumeRow) -> None:
    state.txn.delete(keys.csi_volume(row.id))
    state.txn.delete(keys.csi_name(row.name))


def _records(state: State) -> Iterator[rows.CsiVolumeRow]:
    for _, raw in state.txn.scan(*keys.kind_range(0, keys.CSI_VOLUME)):
        yield rows.CSI_VOLUME.loads(raw)


def delete_volume(state: State, entry: Entry, command: DeleteVolume) -> Reply:
    """Deletes a volume that no node claims, and with it its records."""
    _refuse_claimed(state, command.volume, None)
    found = [row for row in _records(state) if row.volume == command.volume]
    shared = [row for row in found if not row.own]
    if shared and not command.force:
        raise FsError(errno.ENOTEMPTY, f"{len(shared)} volumes of an orchestrator are directories of it")
    reply = volumes.delete(state, entry, command)
    _end_claims_of(state, command.volume, None)
    for row in found:
        _drop_record(state, row)
    return reply


# --- claims -----------------------------------------------------------------------------------------------------------------
def of_volume(state: State, volume: int) -> list[rows.ClaimRow]:
    """Returns the claims on a volume."""
    return [rows.CLAIM.loads(raw) for _, raw in state.txn.scan(*keys.claims_range(volume))]


def _every_claim(state: State) -> list[rows.ClaimRow]:
    return [rows.CLAIM.loads(raw) for _, raw in state.txn.scan(*keys.kind_range(0, keys.CLAIM))]


def _refuse_claimed(state: State, volume: int, path: str | None) -> None:
    claims_here = [row for row in of_volume(state, volume) if (path is None or row.path == path) and not _is_fenced(state, row)]
    if claims_here:
        raise FsError(errno.EBUSY, f"node {claims_here[0].node} uses it")


def _end_claims_of(state: State, volume: int, path: str | None) -> None:
    """Ends all claims on a path of a volume, on all paths with None: what was claimed is gone."""
    for row in of_volume(state, volume):
        if path is None or row.path == path:
            _end(state, row)


def claim(state: State, entry: Entry, command: ClaimVolume) -> Reply:
    """Claims a volume or a directory of it for a node.  Answered by Claimed(epoch)."""
    volumes.existing(state, command.volume)
    _check_path(command.path)
    if not 0 < len(command.node.encode()) <= NODE_BYTES_MAX or len(command.boot_id.encode()) > NODE_BYTES_MAX or "\0" in command.node:
        raise FsError(errno.EINVAL, "not a node")
    mine: rows.ClaimRow | None = None
    for row in of_volume(state, command.volume):
        if row.path != command.path:
            continue
        if row.node == command.node:
            mine = row
        elif _is_fenced(state, row):
            continue
        elif row.exclusive or command.exclusive:
            raise FsError(errno.EBUSY, f"node {row.node} uses it{' alone' if row.exclusive else ''}")
    if mine is None:
        client_shares.check_claims(state, command.node, _every_claim(state))
    row = mine or rows.ClaimRow(command.volume, command.path, command.node, command.boot_id, state.cluster.next_epoch)
    if mine is None:
        state.cluster.next_epoch += 1
    row.boot_id, row.exclusive, row.attached = command.boot_id, command.exclusive, command.attached or row.attached
    row.fenced = False
    _save(state, row)
    return Claimed(row.epoch)


def set_fence(state: State, session: rows.SessionRow) -> None:
    """Marks the claims of a session that has expired."""
    _mark(state, session.volume, session.node, session.boot_id, fenced=True)


def refuse_fenced(state: State, volume: int, node: str, boot_id: str) -> None:
    """Raises FsError(EBUSY) for a boot of a node that was away, while other nodes have what it had."""
    claims_here = of_volume(state, volume)
    for row in claims_here:
        if not row.fenced or (row.node, row.boot_id) != (node, boot_id):
            continue
        for other in claims_here:
            if other.path == row.path and other.node != node and not other.fenced and (other.exclusive or row.exclusive):
                what = f"{row.path!r}" if row.path else "it"
                raise FsError(errno.EBUSY, f"node {other.node} has taken over {what} from node {node}, which has to unstage it first")


def clear_fence(state: State, volume: int, node: str, boot_id: str) -> None:
    """Removes the marks of a node that has a session again: no other node has taken what it had."""
    _mark(state, volume, node, boot_id, fenced=False)


def _mark(state: State, volume: int, node: str, boot_id: str, *, fenced: bool) -> None:
    for row in of_volume(state, volume):
        if (row.node, row.boot_id) == (node, boot_id) and row.fenced != fenced:
            row.fenced = fenced
            _save(state, row)


def _is_fenced(state: State, row: rows.ClaimRow) -> bool:
    """Returns True if the claim is marked and its node has no session there: others may take what it had."""
    if not row.fenced or row.attached:
        return False
    sessions = state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION)
    here = row.volume, row.node, row.boot_id
    return not any((one.volume, one.node, one.boot_id) == here and not one.ended for one in sessions)


def _save(state: State, row: rows.ClaimRow) -> None:
    state.write(keys.claim(row.volume, row.node, row.path), row, rows.CLAIM)


def _end(state: State, row: rows.ClaimRow) -> None:
    state.txn.delete(keys.claim(row.volume, row.node, row.path))


def end_claims(state: State, entry: Entry, command: EndClaims) -> Reply:
    """Ends claims of a node: one, or all."""
    if not command.volume:
        end_of_node(state, command.node, keep_boot_id=command.keep_boot_id, attached=command.attached)
        return Done()
    for row in of_volume(state, command.volume):
        if (row.node, row.path) != (command.node, command.path) or (command.epoch and row.epoch != command.epoch):
            continue
        if row.attached and not command.attached:
            _drop_stage(state, row)
        elif command.keep_out and row.boot_id:
            row.attached, row.fenced = False, True
            _save(state, row)
        else:
            _end(state, row)
    return Done()


def _drop_stage(state: State, row: rows.ClaimRow) -> None:
    """Keeps a claim as one that is attached only: the node uses the volume no longer."""
    row.boot_id, row.fenced = "", False
    _save(state, row)


def end_of_node(state: State, node: str, *, keep_boot_id: str = "", attached: bool = True) -> None:
    """Ends all claims of a node that has nothing mounted any more (but what the boot `keep_boot_id` mounted)."""
    for row in _every_claim(state):
        if row.node != node or (keep_boot_id and row.boot_id == keep_boot_id):
            continue
        if row.attached and not attached:
            _drop_stage(state, row)
        else:
            _end(state, row)


# --- queries ----------------------------------------------------------------------------------------------------------------
def records(state: State, body: GetCsiVolumes) -> Reply:
    """Answers GetCsiVolumes."""
    wanted = body.id
    if body.name:
        named = state.read(keys.csi_name(body.name), rows.CSI_NAME) if _fits(body.name) else None
        wanted = "" if named is None else named.id
    if body.id or body.name:
        row = state.read(keys.csi_volume(wanted), rows.CSI_VOLUME) if _fits(wanted) else None
        return CsiVolumes([] if row is None else [_describe(row)])
    if body.after and not _fits(body.after):
        raise FsError(errno.EINVAL, "not an id")
    low, high = keys.kind_range(0, keys.CSI_VOLUME)
    found: list[CsiVolumeInfo] = []
    for _, raw in state.txn.scan(keys.csi_volume(body.after) + b"\0" if body.after else low, high):
        if len(found) == min(max(body.count, 1), CSI_PAGE_MAX):
            break
        found.append(_describe(rows.CSI_VOLUME.loads(raw)))
    return CsiVolumes(found)


def _describe(row: rows.CsiVolumeRow) -> CsiVolumeInfo:
    return CsiVolumeInfo(row.id, row.name, row.volume, row.path, row.own, row.capacity, row.block, row.settings)


def claims(state: State, body: GetClaims) -> Reply:
    """Answers GetClaims."""
    found = of_volume(state, body.volume) if body.volume else _every_claim(state)
    return Claims([_claim_info(state, row) for row in found])


def _claim_info(state: State, row: rows.ClaimRow) -> ClaimInfo:
    fenced = _is_fenced(state, row)
    return ClaimInfo(row.volume, row.path, row.node, row.boot_id, row.epoch, row.exclusive, row.attached, fenced)
