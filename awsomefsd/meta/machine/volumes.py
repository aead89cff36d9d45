"""The cluster's identity and its volumes.

A volume is a row, a name row and an inode tree with root 1; its small id is never reused, so a deleted volume's rows can be reaped in
peace behind the answer.  Lineage (parent, snapshot) is in the row from the first day, for clones.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import VOLUME_NAME_BYTES_MAX, VOLUMES_MAX
from awsomefsd.base.types import NAMES_WORDS, ROOT_INO, VolumeInfo
from awsomefsd.meta.api.commands import UNDECIDED, CreateVolume, DeleteVolume, Entry, Init, SetNames, SetVolume
from awsomefsd.meta.api.messages import Done, Made, Reply
from awsomefsd.meta.machine.inodes import DIRECTORY_BYTES_SHOWN, tombstone
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State


def init(state: State, entry: Entry, command: Init) -> Reply:
    """Gives the state its cluster: uuid, site and level."""
    if not command.cluster_uuid:
        raise FsError(errno.EINVAL, "a cluster needs a uuid")
    if state.cluster.uuid:
        if state.cluster.uuid != command.cluster_uuid:
            raise FsError(errno.EEXIST, f"this is cluster {state.cluster.uuid} already")
        return Done()
    state.cluster.uuid, state.cluster.site, state.cluster.level = command.cluster_uuid, command.site, command.start_level
    return Done()


def describe(row: rows.VolumeRow) -> VolumeInfo:
    """Returns a volume as queries show it."""
    return VolumeInfo(
        row.volume,
        row.uuid,
        row.name,
        row.quota_bytes,
        row.quota_inodes,
        row.used_bytes,
        row.used_inodes,
        row.reserved_bytes,
        row.holder,
        row.lineage_parent,
        row.lineage_snapshot,
        row.home,
    )


def every(state: State) -> list[rows.VolumeRow]:
    """Returns the rows of all volumes that are not deleted."""
    return [row for row in state.scan(keys.kind_range(0, keys.VOLUME), rows.VOLUME) if not row.deleted]


def by_name(state: State, name: str) -> rows.VolumeRow | None:
    """Returns the volume of a name, or None."""
    found = state.read(keys.volname(name), rows.VOLNAME) if _is_valid_name(name) else None
    return None if found is None else state.volume(found.volume)


def create(state: State, entry: Entry, command: CreateVolume) -> Reply:
    """Makes an empty volume with its root directory.  Answered by Made(number)."""
    _check_new_name(state, command.name)
    if command.quota_bytes < 0 or command.quota_inodes < 0:
        raise FsError(errno.EINVAL, "a quota is not negative")
    _check_names(command.names)
    if state.cluster.volumes >= VOLUMES_MAX:
        raise FsError(errno.ENOSPC, f"{VOLUMES_MAX} volumes exist already")
    if any(row.uuid == command.uuid for row in every(state)):
        raise FsError(errno.EEXIST, f"a volume with uuid {command.uuid} exists")
    number = state.cluster.next_volume
    state.cluster.next_volume += 1
    state.cluster.volumes += 1
    row = rows.VolumeRow(number, command.uuid, command.name, command.quota_bytes, command.quota_inodes, used_inodes=1, home=UNDECIDED)
    row.stamp, row.site, row.names = entry.stamp, entry.site, command.names
    state.save_volume(row)
    state.write(keys.volname(command.name), rows.VolumeNameRow(number), rows.VOLNAME)
    now, version = entry.time_ns, (entry.stamp, entry.site)
    mode = stat.S_IFDIR | stat.S_IMODE(command.mode)
    root = rows.InodeRow(mode, 2, command.uid, command.gid, 0, DIRECTORY_BYTES_SHOWN, 0, now, now, now, now, *version, parent=ROOT_INO)
    state.save_inode(number, ROOT_INO, root)
    return Made(number)


def _is_valid_name(name: str) -> bool:
    return 0 < len(name.encode()) <= VOLUME_NAME_BYTES_MAX and name not in (".", "..") and "/" not in name and name.isprintable()


def _check_new_name(state: State, name: str) -> None:
    if not _is_valid_name(name):
        raise FsError(errno.EINVAL, f"a volume's name has 1 to {VOLUME_NAME_BYTES_MAX} printable bytes and no slash")
    if state.txn.get(keys.volname(name)) is not None:
        raise FsError(errno.EEXIST, f"volume {name} exists")


def _check_names(names: int) -> None:
    if not 0 <= names < len(NAMES_WORDS):
        raise FsError(errno.EINVAL, f"names of a volume are {' or '.join(NAMES_WORDS)}")


def existing(state: State, number: int) -> rows.VolumeRow:
    """Returns a volume.  Raises FsError(ENOENT) if there is none or it was deleted."""
    row = state.volume(number)
    if row is None or row.deleted:
        raise FsError(errno.ENOENT, f"no volume {number}")
    return row


def set_volume(state: State, entry: Entry, command: SetVolume) -> Reply:
    """Changes name and quotas of a volume; -1 leaves a quota as it is."""
    row = existing(state, command.volume)
    if command.quota_bytes < -1 or command.quota_inodes < -1:
        raise FsError(errno.EINVAL, "a quota is not negative")
    if command.name and command.name != row.name:
        _check_new_name(state, command.name)
        state.txn.delete(keys.volname(row.name))
        state.write(keys.volname(command.name), rows.VolumeNameRow(row.volume), rows.VOLNAME)
        row.name = command.name
    if command.quota_bytes >= 0:
        row.quota_bytes = command.quota_bytes
    if command.quota_inodes >= 0:
        row.quota_inodes = command.quota_inodes
    row.stamp, row.site = entry.stamp, entry.site
    state.save_volume(row)
    return Done()


def set_names(state: State, entry: Entry, command: SetNames) -> Reply:
    """Says whether mounts that hold the volume whole decide names by themselves.  Answered by Done."""
    row = existing(state, command.volume)
    _check_names(command.names)
    row.names = command.names
    row.stamp, row.site = entry.stamp, entry.site
    state.save_volume(row)
    return Done()


def delete(state: State, entry: Entry, command: DeleteVolume) -> Reply:
    """Deletes a volume that is not mounted; Reap removes its rows later."""
    row = existing(state, command.volume)
    if row.sharers:
        raise FsError(errno.EBUSY, f"{row.sharers} sessions have volume {row.name} mounted")
    if row.holder:
        raise FsError(errno.EBUSY, f"session {row.holder} has volume {row.name} mounted")
    if row.newest:
        raise FsError(errno.EBUSY, f"volume {row.name} has snapshots")
    root = state.inode(command.volume, ROOT_INO)
    assert root is not None, "a volume without a root"
    if root.entries and not command.force:
        raise FsError(errno.ENOTEMPTY, f"volume {row.name} has files")
    row.deleted = True
    state.save_volume(row)
    state.txn.delete(keys.volname(row.name))
    state.cluster.volumes -= 1
    state.queue_reap(keys.reap(keys.REAP_VOLUME, row.volume, 0, 0), rows.ReapRow())
    tombstone(state, entry, rows.TOMB_VOLUME, row.volume, 0, row.name.encode())
    return Done()
