"""Pools: devices join, are attached, go and come back; volumes say what they want; sessions lease segments in bays.

What a change of a device or a policy means for many segments follows in a *walk*: a row with a position, which NeedSegments moves on
by a bounded number of segments an entry.  A second change of the same device or volume begins its walk again.  Until a walk has come to a
segment, the need of that segment may be an old one, and fsck takes it for right.
"""

from __future__ import annotations

import errno
from collections import Counter
from itertools import islice

from msgspec.structs import replace

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import COPIES_MAX, MAINTENANCE_MS_MAX, NS_PER_MS, SEGMENTS_PER_SESSION_MAX
from awsomefsd.base.types import BAY_MIRROR, BAY_STALE, DEVICE_CLASSES, SEGMENT_LEASED, SPREAD_DEVICE, Redundancy
from awsomefsd.meta.api.commands import (
    UNDECIDED,
    AddPoolDevice,
    AttachDevice,
    Entry,
    LeaseBays,
    NeedSegments,
    SetDeviceState,
    SetMaintenance,
    SetPool,
    SetRedundancy,
    SetSegmentServer,
)
from awsomefsd.meta.api.commands.pools import DEVICE_ABSENT, DEVICE_LOST, DEVICE_OK
from awsomefsd.meta.api.messages import BaysLeased, Done, Made, Reply
from awsomefsd.meta.machine import bays, locality, nodes, spread
from awsomefsd.meta.machine.spread import Draw, kept_for_repair
from awsomefsd.meta.state import keys, pools, rows
from awsomefsd.meta.state.lookups import NotKept, RetryLater, session_of
from awsomefsd.meta.state.rows_cache import State

SEGMENTS_PER_WALK_STEP = 512
WALK_DEVICE, WALK_POLICY = 1, 2
_ADDRESS_BYTES_MAX = 256
_RESERVE_PERCENT_MAX = 50


# --- devices ------------------------------------------------------------------------------------------------------------
def add_device(state: State, entry: Entry, command: AddPoolDevice) -> Reply:
    """Adds a device whose bays are all free.  Answered by Made(number)."""
    if any(device.uuid == command.uuid for device in state.devices()):
        raise FsError(errno.EEXIST, f"device {command.uuid} is in the cluster already")
    end = command.first_segment_offset + command.bays * command.segment_bytes
    if not 0 < command.bays < 1 << 32 or command.segment_bytes <= 0 or command.first_segment_offset < 0 or end > command.bytes:
        raise FsError(errno.EINVAL, "the bays do not fit the device")
    if command.device_class not in ("", *DEVICE_CLASSES) or not 0 < command.pool < 1 << 16 or not command.home or command.generation < 0:
        raise FsError(errno.EINVAL, "no such class, pool or node")
    pool = of_number(state, command.pool)
    if pool is not None and pool.segment_bytes != command.segment_bytes:
        raise FsError(errno.EINVAL, f"segments of pool {command.pool} have {pool.segment_bytes} bytes; format the device so")
    if pool is None:
        state.write(keys.pool(command.pool), rows.PoolRow(command.pool, command.segment_bytes), rows.POOL)
    number = state.cluster.next_device
    state.cluster.next_device += 1
    state.save_device(
        rows.DeviceRow(
            number, command.uuid, command.bytes, command.segment_bytes, command.bays, command.first_segment_offset, False, 0, command.bays,
            home=command.home, pool=command.pool, device_class=command.device_class, generation=command.generation,
            host=host_of(state, command.home),
        )
    )  # fmt: skip
    return Made(number)


def of_number(state: State, number: int) -> rows.PoolRow | None:
    """Returns a pool; None if no device has made it."""
    found: rows.PoolRow | None = state.read(keys.pool(number), rows.POOL)
    return found


def set_pool(state: State, entry: Entry, command: SetPool) -> Reply:
    """Says how a pool heals, and what it keeps for that; what is not given stays as it is."""
    pool = of_number(state, command.pool) if 0 < command.pool < 1 << 16 else None
    if pool is None:
        raise FsError(errno.ENOENT, f"there is no pool {command.pool}; add a device to it first")
    rate = pool.heal_bytes_per_s if command.heal_bytes_per_s is None else command.heal_bytes_per_s
    after_ms = pool.lost_after_ms if command.lost_after_ms is None else command.lost_after_ms
    percent = pool.reserve_percent if command.reserve_percent is None else command.reserve_percent
    if rate <= 0 or after_ms <= 0 or not 0 <= percent <= _RESERVE_PERCENT_MAX:
        raise FsError(errno.EINVAL, f"a pool heals at some rate, after some time, and keeps 0 to {_RESERVE_PERCENT_MAX} percent for that")
    pool.heal_bytes_per_s, pool.lost_after_ms, pool.reserve_percent = rate, after_ms, percent
    state.write(keys.pool(pool.pool), pool, rows.POOL)
    return Done()


def set_maintenance(state: State, entry: Entry, command: SetMaintenance) -> Reply:
    """Says until when the devices of a host are not lost; what has ended is forgotten."""
    pool = of_number(state, command.pool) if 0 < command.pool < 1 << 16 else None
    if pool is None:
        raise FsError(errno.ENOENT, f"there is no pool {command.pool}; add a device to it first")
    now_ms = entry.time_ns // NS_PER_MS
    if command.until_ms and not any(one.pool == pool.pool and not one.removed and one.host == command.host for one in state.devices()):
        raise FsError(errno.ENOENT, f"host {command.host[:_ADDRESS_BYTES_MAX]} has no device in pool {pool.pool}")
    if command.until_ms and not now_ms < command.until_ms <= now_ms + MAINTENANCE_MS_MAX:
        raise FsError(errno.EINVAL, f"a maintenance ends within {MAINTENANCE_MS_MAX // 86_400_000} days")
    others = [(host, until_ms) for host, until_ms in pool.maintenance if until_ms > now_ms and host != command.host]
    pool.maintenance = sorted([*others, *([(command.host, command.until_ms)] if command.until_ms else [])])
    state.write(keys.pool(pool.pool), pool, rows.POOL)
    return Done()


def host_of(state: State, node: str) -> str:
    """Returns what a node fails together with: its label `host`, or the node itself."""
    row = nodes.find(state, node)
    return row.labels.get("host", node) if row is not None else node


def attach(state: State, entry: Entry, command: AttachDevice) -> Reply:
    """Makes a node the server of a device.  A device that was absent or lost is there again, and its bays count again."""
    device = bays.pool_device(state, command.device)
    if command.generation <= device.generation or command.generation >= 1 << 63:
        raise FsError(
            errno.ESTALE, f"device {device.device} was attached with generation {device.generation}, and this is {command.generation}:"
            " the device was rolled back, or is a copy"
        )  # fmt: skip
    if command.node != device.home:
        if not command.adopt:
            raise FsError(errno.EPERM, f"device {device.device} belongs to node {device.home}, and node {command.node} has not adopted it")
        if not device.absent and device.server:
            raise FsError(errno.EBUSY, f"device {device.device} is served by node {device.server}")
    host = host_of(state, command.node)
    changed = device.lost or device.host != host
    device.home = device.server = command.node
    device.generation, device.host = command.generation, host
    device.absent = device.lost = False
    state.save_device(device)
    if changed:
        begin_walk(state, entry, device=device.device)
    return Done()


def set_state(state: State, entry: Entry, command: SetDeviceState) -> Reply:
    """Says that a device is there, absent, or lost."""
    device = bays.pool_device(state, command.device)
    if command.state not in (DEVICE_OK, DEVICE_ABSENT, DEVICE_LOST):
        raise FsError(errno.EINVAL, "no such state of a device")
    lost, absent = command.state == DEVICE_LOST, command.state != DEVICE_OK
    if (device.lost, device.absent) == (lost, absent):
        return Done()
    walk = device.lost != lost
    device.lost, device.absent = lost, absent
    state.save_device(device)
    if walk:
        begin_walk(state, entry, device=device.device)
    return Done()


def set_server(state: State, entry: Entry, command: SetSegmentServer) -> Reply:
    """Notes where the segment server of a node is reached."""
    row = nodes.find(state, command.node)
    if row is None:
        raise FsError(errno.ENOENT, f"there is no node {command.node[:64]}")
    if len(command.address.encode()) > _ADDRESS_BYTES_MAX or not (command.address.isprintable() or not command.address):
        raise FsError(errno.EINVAL, "not an address")
    row.segments = command.address
    state.write(keys.node(row.node), row, rows.NODE)
    return Done()


# --- walks --------------------------------------------------------------------------------------------------------------
def walks_of(state: State) -> list[tuple[bytes, rows.WalkRow]]:
    """Returns the walks with their keys, the oldest first."""
    return [(key, rows.WALK.loads(raw)) for key, raw in state.txn.scan(*keys.kind_range(0, keys.WALK))]


def begin_walk(state: State, entry: Entry, *, device: int = 0, volume: int = 0) -> None:
    """Begins a walk over the bays of a device or the segments of a volume; one that is under way begins again.

    Its key is the entry, or the next number where that entry, or the one before, has begun several.
    """
    for key, row in walks_of(state):
        if (row.device, row.volume) == (device, volume):
            state.txn.delete(key)
    number = entry.index
    while state.txn.get(keys.walk(number)) is not None:
        number += 1
    state.write(keys.walk(number), rows.WalkRow(WALK_DEVICE if device else WALK_POLICY, device, volume), rows.WALK)


def need_segments(state: State, entry: Entry, command: NeedSegments) -> Reply:
    """Moves the oldest walk on.  Answered by Made(walks that are left)."""
    if not 0 < command.count <= SEGMENTS_PER_WALK_STEP:
        raise FsError(errno.EINVAL, f"a step of a walk is 1 to {SEGMENTS_PER_WALK_STEP} segments")
    walks = walks_of(state)
    if not walks:
        return Made(0)
    key, row = walks[0]
    ended = _step_over_bays(state, row, command.count) if row.device else _step_over_segments(state, row, command.count)
    if ended:
        state.txn.delete(key)
    else:
        state.write(key, row, rows.WALK)
    return Made(len(walks) - ended)


def _step_over_bays(state: State, walk: rows.WalkRow, count: int) -> bool:
    found = list(islice(state.txn.scan(*keys.bays_range(walk.device, walk.position)), count))
    for key, raw in found:
        bay: rows.BayRow = rows.BAY.loads(raw)
        segment = state.segment(bay.segment) if bay.role != BAY_STALE else None
        if segment is not None and segment.bays:
            bays.note_need(state, segment)
        walk.position = keys.bay_place(key)[1] + 1
    return len(found) < count


def _step_over_segments(state: State, walk: rows.WalkRow, count: int) -> bool:
    volume = state.volume(walk.volume)
    if volume is None or volume.want is None:
        return True
    state.write_back()
    found = state.keys_in((keys.segment(walk.position), keys.kind_range(0, keys.SEGMENT)[1]), count)
    for key in found:
        row = state.segment(keys.last_u64(key))
        if row is not None and row.volume == walk.volume and row.bays:
            row.want = _for_segment(volume.want, row)
            bays.note_need(state, row)
        walk.position = keys.last_u64(key) + 1
    return len(found) < count


def _for_segment(want: Redundancy, row: rows.SegmentRow) -> Redundancy:
    """Returns a new policy for a segment; while it is written, no more bays have to be reached than its writer knows."""
    assert row.want is not None
    least = min(want.min_copies, row.want.min_copies) if row.state == SEGMENT_LEASED else want.min_copies
    return replace(want, min_copies=least)


# --- volumes ------------------------------------------------------------------------------------------------------------
def set_redundancy(state: State, entry: Entry, command: SetRedundancy) -> Reply:
    """Says what a volume wants.  A volume whose data is nowhere yet goes to the pool."""
    volume = state.volume(command.volume)
    if volume is None or volume.deleted:
        raise FsError(errno.ENOENT, f"no volume {command.volume}")
    check_want(command.want)
    if of_number(state, command.pool) is None:
        raise FsError(errno.ENOENT, f"there is no pool {command.pool}; add a device to it first")
    home = locality.pool_home(command.pool)
    if volume.home not in (UNDECIDED, home):
        raise FsError(errno.EXDEV, f"the data of volume {volume.name} is not in pool {command.pool}")
    if volume.want == command.want and volume.home == home:
        return Done()
    volume.home, volume.want = home, command.want
    state.save_volume(volume)
    begin_walk(state, entry, volume=volume.volume)
    return Done()


def check_want(want: Redundancy) -> None:
    """Raises FsError(EINVAL) for a policy that this build cannot keep."""
    if want.data or want.parities:
        raise FsError(errno.EINVAL, "erasure coding is not built")
    if not 1 <= want.min_copies <= want.copies <= COPIES_MAX:
        raise FsError(errno.EINVAL, f"a volume has 1 to {COPIES_MAX} mirrors, and no more of them have to be reached")
    if not 0 <= want.spread <= SPREAD_DEVICE or want.device_class not in ("", *DEVICE_CLASSES):
        raise FsError(errno.EINVAL, "mirrors are spread by host or device, over devices of a known class")


# --- leases -------------------------------------------------------------------------------------------------------------
def lease(state: State, entry: Entry, command: LeaseBays) -> Reply:
    """Leases segments in bays to the session of the entry.  Answered by BaysLeased."""
    session = session_of(state, entry)
    volume = state.volume(session.volume or command.volume)
    if volume is None or volume.want is None:
        raise FsError(errno.EINVAL, "the data of this session is in no pool")
    if command.count <= 0 or len(command.ensembles) > min(command.count, SEGMENTS_PER_SESSION_MAX):
        raise FsError(errno.EINVAL, "no segments asked for, or more than asked for")
    if session.segments_leased + len(command.ensembles) > SEGMENTS_PER_SESSION_MAX:
        raise FsError(errno.EDQUOT, f"session {session.session} holds {session.segments_leased} segments already")
    if not command.ensembles:
        _refuse_without_room(state, session, volume)
    for ensemble in command.ensembles:
        _check_ensemble(state, volume, ensemble)
    free = _free_for(state, volume, command, spare=bool(session.volume))
    leased = []
    for ensemble in command.ensembles:
        number = state.cluster.next_segment
        state.cluster.next_segment += 1
        taken = [bays.take(state, state.device(one), free[one].pop(0), number, BAY_MIRROR, entry) for one in ensemble]
        row = rows.SegmentRow(
            number, 0, 0, SEGMENT_LEASED, state.cluster.incarnation_base + 1, session.session, session.worker,
            bytes=state.device(ensemble[0]).segment_bytes, bays=taken, want=volume.want, volume=volume.volume,
        )  # fmt: skip
        bays.note_need(state, row)
        state.txn.put(keys.held(session.session, number), rows.MARK)
        leased.append(bays.describe(row))
    session.segments_leased += len(leased)
    state.save_session(session)
    return BaysLeased(leased, volume.want)


def _refuse_without_room(state: State, session: rows.SessionRow, volume: rows.VolumeRow) -> None:
    """Raises RetryLater where devices that are away would have room, or bays that are free and not safe yet; else FsError(ENOSPC)."""
    assert volume.want is not None
    devices = [one for one in locality.devices_of(state, volume.home) if not one.removed and not one.draining and not one.lost]
    rooms = _rooms(state, _of_class(devices, volume.want), volume.want, spare=bool(session.volume))
    if _chosen(volume.want, rooms, 1, host_of(state, session.node), lambda _most: 0):
        raise RetryLater(errno.EAGAIN, "too few devices of the pool are there, or their free bays wait until every session has passed them")
    raise NotKept(errno.ENOSPC, "the pool has no room for another segment with so many mirrors")


def _of_class(devices: list[rows.DeviceRow], want: Redundancy) -> list[rows.DeviceRow]:
    return [one for one in devices if want.device_class in ("", one.device_class)]


def choose(state: State, number: int, command: LeaseBays, draw: Draw) -> list[list[int]]:
    """Returns the devices for each segment that a session asks for, as many as there is room for.  Changes nothing; the leader asks.

    Devices that the session would avoid are left out as long as a segment is to be had without them.  Else as few of them are taken as will
    do, drawn anew each time: those that are back are soon among them.
    """
    session = state.session(number)
    volume = state.volume(session.volume or command.volume) if session is not None else None
    if session is None or volume is None or volume.want is None:
        return []
    count = min(max(command.count, 0), SEGMENTS_PER_SESSION_MAX - session.segments_leased)
    devices = [one for one in locality.devices_of(state, volume.home) if bays.takes_bays(one)]
    rooms = _rooms(state, _of_class(devices, volume.want), volume.want, spare=bool(session.volume))
    for room in rooms:
        safe = len(bays.free_indexes(state, state.device(room.device), count, command.safe_index))
        room.free = room.free if safe >= count else min(room.free, safe)  # more are not looked for
    avoid, own = set(command.avoid), host_of(state, session.node)
    taken = [one for one in rooms if one.device not in avoid]
    left = [one for one in rooms if one.device in avoid]
    found = _chosen(volume.want, taken, count, own, draw)
    while left and not found:
        taken = [*taken, left.pop(draw(len(left)))]
        found = _chosen(volume.want, taken, count, own, draw)
    return found


def _chosen(want: Redundancy, rooms: list[spread.BayRoom], count: int, own: str, draw: Draw) -> list[list[int]]:
    rooms, chosen = [replace(room) for room in rooms], []
    for _ in range(count):
        ensemble = spread.choose(rooms, want.copies, own, draw)
        if len(ensemble) < want.min_copies:
            break
        chosen.append(ensemble)
        for room in rooms:
            room.free -= room.device in ensemble
    return chosen


def _rooms(state: State, devices: list[rows.DeviceRow], want: Redundancy, *, spare: bool) -> list[spread.BayRoom]:
    """Returns the room on each of these devices, all of one pool, without what its host keeps for repair."""
    if not devices:
        return []
    left = _left_for_writers(state, devices[0].pool) if spare else _free_on_hosts(state, devices[0].pool)
    zones: dict[str, str] = {}
    found = []
    for device in devices:
        if device.home not in zones:
            node = nodes.find(state, device.home)
            zones[device.home] = node.labels.get("zone", "") if node is not None else ""
        free = min(device.segments_free, max(0, left[device.host]))
        zone = zones[device.home]
        found.append(spread.BayRoom(device.device, pools.domain(device, want), device.host, zone, device.segments, free))
    return found


def _free_on_hosts(state: State, pool: int) -> Counter[str]:
    """Returns how many bays are free on each host of a pool."""
    free: Counter[str] = Counter()
    for device in state.devices():
        if device.pool == pool:
            free[device.host] += device.segments_free
    return free


def _left_for_writers(state: State, pool: int) -> Counter[str]:
    """Returns how many free bays each host of a pool has beyond those that it keeps for repair; may be negative."""
    row = of_number(state, pool)
    assert row is not None, "a device names a pool that does not exist"
    bays_of_host: Counter[str] = Counter()
    for device in state.devices():
        if device.pool == pool:
            bays_of_host[device.host] += device.segments
    free = _free_on_hosts(state, pool)
    return Counter({host: free[host] - kept_for_repair(count, row.reserve_percent) for host, count in bays_of_host.items()})


def _check_ensemble(state: State, volume: rows.VolumeRow, ensemble: list[int]) -> None:
    """Raises FsError unless the devices are the pool's, take data, and fail apart from each other, as the volume wants it."""
    want = volume.want
    assert want is not None
    devices = [bays.pool_device(state, number) for number in ensemble]
    if not want.min_copies <= len(devices) <= want.copies:
        raise FsError(errno.EINVAL, f"a segment of volume {volume.name} has {want.min_copies} to {want.copies} mirrors")
    for device in devices:
        if locality.pool_home(device.pool) != volume.home or want.device_class not in ("", device.device_class):
            raise FsError(errno.EINVAL, f"device {device.device} is not one that volume {volume.name} may use")
        if not bays.takes_bays(device):
            raise NotKept(errno.EBUSY, f"device {device.device} takes no new data")
    if len({pools.domain(device, want) for device in devices}) != len(devices):
        raise FsError(errno.EINVAL, "two mirrors of a segment would fail together")


def _free_for(state: State, volume: rows.VolumeRow, command: LeaseBays, *, spare: bool) -> dict[int, list[int]]:
    """Returns free bays of each device, as many as the command takes there.  `spare`: each host keeps its reserve for repair."""
    wanted = Counter(number for ensemble in command.ensembles for number in ensemble)
    if spare:
        on_host: Counter[str] = Counter()
        for number, count in wanted.items():
            on_host[state.device(number).host] += count
        left = _left_for_writers(state, state.device(command.ensembles[0][0]).pool)
        for host, count in on_host.items():
            if left[host] < count:
                raise RetryLater(errno.EAGAIN, f"host {host} has no free bay any more but its reserve for repair; another choice may do")
    free = {number: bays.free_indexes(state, state.device(number), count, command.safe_index) for number, count in wanted.items()}
    for number, count in wanted.items():
        if len(free[number]) < count:
            if state.device(number).segments_free >= count:
                raise RetryLater(errno.EAGAIN, "the free bays wait until every session has passed their freeing")
            raise RetryLater(errno.EAGAIN, f"device {number} has no free bay any more; another choice may do")
    return free
