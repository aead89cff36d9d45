"""Space and quota: what may be promised (Reserve), what is used up (Commit), what statfs shows.

The promise is made at write(2), before a byte has a place, so acknowledged data always fits later.  A reservation counts against device
space and the volume's quota until commits consume it, its session gives it back or ends.  SEGMENTS_RESERVED segments are never promised:
the tail of a segment that a dead worker left is lost until collection, and its successor must find room for the same dirty bytes.
Used bytes are what extents and inline data hold, hidden ones included until Reap has freed them, and unwritten ones: each file counts what
it shows, so bytes that two files share count twice in the volume and once on the device.

The space that fallocate(2) keeps for a file is in used bytes like data, and in ClusterRow.allocated_bytes; that much of the devices, and
ALLOCATED_SHARE on top, is left alone by Reserve.  A write into it reserves as any write does; only where nothing can be reserved any more,
Draw turns the kept space into a reservation.  That needs no account of which writer has used which promise: the range becomes a hole in the
same entry, so each byte is drawn once, and a session that ends takes nothing along but what it had drawn and not written.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import SEGMENTS_RESERVED
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.base.types import SEGMENT_LEASED, StatFs, is_pool
from awsomefsd.meta.api.commands import Entry, Reserve
from awsomefsd.meta.api.messages import Reply, Reserved
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.machine import locality, pool_space
from awsomefsd.meta.machine.segments import segments_of
from awsomefsd.meta.state import rows
from awsomefsd.meta.state.lookups import NotKept, session_of, volume_of
from awsomefsd.meta.state.rows_cache import State

ALLOCATED_SHARE = 16  # one part in so many more than was asked for: headers of frames of 64 KiB, padding
GRANT_SHARE = 8  # at most one part in so many of what is left goes to one who asks ahead of need: others find something too
INODES_FREE_SHOWN = 1 << 32  # where no quota bounds them


def device_bytes_available(state: State, session: int, home_node: str) -> int:
    """Returns the bytes that may still be promised to `session` (0: to a new one), on the devices of `home_node` (locality.py)."""
    spare = SEGMENTS_RESERVED * usable_bytes(state.cluster.segment_bytes_max)
    return max(0, device_bytes_unpromised(state, session, home_node) - spare)


def device_bytes_unpromised(state: State, session: int, home_node: str) -> int:
    """Returns the same bytes as `device_bytes_available`, the spare segments included; may be negative."""
    cluster = state.cluster
    room = 0
    if session:
        for row in segments_of(state, session):
            if row.bays:
                room += max(0, usable_bytes(row.bytes) - row.committed_bytes)
                continue
            device = state.device(row.device)
            if row.state == SEGMENT_LEASED and locality.takes_data(device):
                room += max(0, usable_bytes(device.segment_bytes) - row.committed_bytes)
    if locality.is_uniform(state):
        return cluster.free_bytes + room - cluster.reserved_bytes - kept_for(cluster.allocated_bytes)
    devices = locality.leasable(locality.devices_of(state, home_node))
    if is_pool(home_node):
        free = pool_space.free_bytes(state, devices, home_node)
    else:
        free = sum(device.segments_free * usable_bytes(device.segment_bytes) for device in devices)
    return free + room - locality.reserved_bytes(state, home_node) - kept_for(cluster.allocated_bytes)


def kept_for(allocated_bytes: int) -> int:
    """Returns the bytes of device space that are kept for so much unwritten data."""
    return allocated_bytes + -(-allocated_bytes // ALLOCATED_SHARE)


def allocatable(device_bytes: int) -> int:
    """Returns the most bytes of unwritten data that so much device space is kept for: the inverse of `kept_for`."""
    return device_bytes * ALLOCATED_SHARE // (ALLOCATED_SHARE + 1)


def check_room(state: State, volume: rows.VolumeRow, session: int, used_bytes: int, allocated_bytes: int) -> None:
    """Raises NotKept(EDQUOT or ENOSPC) if a rule may not add so many bytes to what is used and to what is kept."""
    within_quota = quota_bytes_available(volume)
    if within_quota is not None and used_bytes > within_quota:
        raise NotKept(errno.EDQUOT, f"the quota of volume {volume.name} leaves {within_quota} bytes")
    if allocated_bytes > 0 and kept_for(allocated_bytes) > device_bytes_available(state, session, volume.home):
        raise NotKept(errno.ENOSPC, "the devices leave less")


def quota_bytes_available(volume: rows.VolumeRow) -> int | None:
    """Returns the bytes that the quota leaves; None without a quota."""
    if not volume.quota_bytes:
        return None
    return max(0, volume.quota_bytes - volume.used_bytes - volume.reserved_bytes)


def reserve(state: State, entry: Entry, command: Reserve) -> Reply:
    """Promises space to a session, or takes a promise back.  Answered by Reserved(bytes).

    Below level MENDED_RULES one who asks ahead gets all that a quota leaves, and a refusal is kept.
    """
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    if command.bytes < 0:
        given = min(-command.bytes, session.reserved_bytes)
        consume(state, session, volume, given)
        return Reserved(-given)
    shares = state.acts_at(MENDED_RULES)
    least = min(max(command.least, 0), command.bytes)
    granted = command.bytes
    within_quota = quota_bytes_available(volume)
    if within_quota is not None:
        if within_quota < least:
            raise _refusal(shares, FsError(errno.EDQUOT, f"the quota of volume {volume.name} leaves {within_quota} bytes"))
        granted = min(granted, max(least, within_quota // GRANT_SHARE) if shares else within_quota)
    home_node = locality.of_session(state, session)
    on_device = device_bytes_available(state, session.session, home_node)
    if on_device < least:
        locality.check_present(locality.devices_of(state, home_node))
        raise _refusal(shares, FsError(errno.ENOSPC, f"the devices leave {on_device} bytes"))
    granted = min(granted, max(least, on_device // GRANT_SHARE))
    promise(state, session, volume, granted)
    return Reserved(granted)


def _refusal(shares: bool, refusal: FsError) -> FsError:
    """Returns what Reserve raises: not kept, so that the leader may propose it again when others have given space back."""
    return NotKept(refusal.errno, refusal.detail) if shares else refusal


def promise(state: State, session: rows.SessionRow, volume: rows.VolumeRow, count: int) -> None:
    """Adds bytes to the reservation of a session."""
    session.reserved_bytes += count
    volume.reserved_bytes += count
    state.cluster.reserved_bytes += count
    state.save_session(session)
    state.save_volume(volume)


def consume(state: State, session: rows.SessionRow, volume: rows.VolumeRow, count: int) -> None:
    """Takes up to `count` bytes off a reservation: used up by a commit, or given back."""
    taken = min(count, session.reserved_bytes)
    if taken > 0:
        session.reserved_bytes -= taken
        volume.reserved_bytes -= taken
        state.cluster.reserved_bytes -= taken
        state.save_session(session)
        state.save_volume(volume)

    """Asserts that a session's reservation is part of its volume's, and that of the cluster's."""


def inodes_available(volume: rows.VolumeRow) -> int | None:
    """Returns how many inodes the quota leaves, without those that are granted; None without a quota."""
    return max(0, volume.quota_inodes - volume.used_inodes - volume.granted_inodes) if volume.quota_inodes else None


def check_inode_quota(state: State, volume: rows.VolumeRow) -> None:
    """Raises FsError(EDQUOT) if the volume may have no more inodes.  A record's inode may be paid for already."""
    if inodes_available(volume) == 0 and not (state.given and state.given.paid):
        raise FsError(errno.EDQUOT, f"volume {volume.name} may have {volume.quota_inodes} inodes")


def _total_bytes(state: State, home_node: str) -> int:
    if locality.is_uniform(state):
        return state.cluster.total_bytes
    devices = locality.leasable(locality.devices_of(state, home_node))
    if is_pool(home_node):
        return pool_space.total_bytes(state, devices, home_node)
    return sum(device.segments * usable_bytes(device.segment_bytes) for device in devices)


def statfs(state: State, volume: rows.VolumeRow, spare: int = 0) -> StatFs:
    """Returns total and free space as the quota says where there is one, else as the devices say; and what fits the devices too.

    The bytes that this volume has reserved are not free: write(2) has taken them; but for `spare` of them, which are given back when they
    are needed.  Of the devices' space the share is left out that `kept_for` adds: what is shown as available can be allocated at once.
    """
    on_devices = allocatable(device_bytes_available(state, volume.holder, volume.home) + spare)
    total = free = available = on_devices
    within_quota = quota_bytes_available(volume)
    if within_quota is not None:
        within_quota = min(within_quota + spare, volume.quota_bytes)
    if within_quota is None:
        total = allocatable(_total_bytes(state, volume.home))
    else:
        total, free, available = volume.quota_bytes, within_quota, min(within_quota, on_devices)
    available_inodes = inodes_available(volume)
    inodes_free = INODES_FREE_SHOWN if available_inodes is None else available_inodes
    return StatFs(total, free, volume.quota_inodes or volume.used_inodes + INODES_FREE_SHOWN, inodes_free, available)
