"""Sessions open, are taken over by the successors of dead workers, and end.

A session belongs to a mount and outlives its workers: a successor takes the live session over, with locks, pins and reservation, but never
with segments, because writes of the dead worker may still be on their way into them.  Its epoch is the fencing token: drawn from a
counter, compared in every entry, dead once the session has ended.  A session that holds its volume whole is the
`holder` of the volume row until it ends; those that share it are counted there.  One that reads
a snapshot is neither, and changes nothing (lookups.session_of).

One entry ends a session for everybody.  Its locks, write leases and pins may be many rows: those that do not fit the entry are over all the
same, and Reap removes them, a bounded number an entry.

A node that comes back with a new boot id has proven that nothing of its earlier boots runs: their sessions end at once and their segments
need no quarantine, and mounts of those boots will never repeat a request, so their results go.
"""

from __future__ import annotations

import errno

from msgspec import structs

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NS_PER_MS, REAP_EXTENTS_PER_ENTRY, SESSION_TTL_MS, SESSIONS_MAX
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.meta.api.commands import EndSession, Entry, OpenCollector, OpenSession, OpenShared, OpenSnapshot
from awsomefsd.meta.api.messages import Done, Reply, SessionGoesOn, SessionOpened
from awsomefsd.meta.api.messages.collection import CollectorOpened
from awsomefsd.meta.machine import client_shares, csi_volumes, inode_grants, locality, mounts, nodes, snapshots
from awsomefsd.meta.machine.locks import end_session_locks
from awsomefsd.meta.machine.quota import consume
from awsomefsd.meta.machine.segments import end_leases, forget_ended, release_quarantine
from awsomefsd.meta.machine.volumes import describe, existing
from awsomefsd.meta.machine.write_leases import end_session_write_leases
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import EpochEnded, RetryLater
from awsomefsd.meta.state.rows_cache import State


def every(state: State) -> list[rows.SessionRow]:
    """Returns the live sessions, and the ended ones that still have something in quarantine or pinned."""
    return [row for row in state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION) if row is not None]


def open_session(state: State, entry: Entry, command: OpenSession) -> Reply:
    """Opens a session, or lets the successor of a dead worker take over its live one.  Answered by SessionOpened."""
    volume = existing(state, command.volume)
    mount: rows.MountRow | None = state.read(keys.mount(command.mount), rows.MOUNT)
    _refuse_foreign(state, mount, command)
    old = state.session(mount.session) if mount is not None else None
    live = old is not None and not old.ended and (old.node, old.boot_id) == (command.node, command.boot_id)
    if live and old is not None:
        if old.volume != command.volume:
            raise FsError(errno.EINVAL, f"mount {command.mount} serves volume {old.volume}")
        if _kind(command) != (old.shared, old.uncached, old.caches, old.snapshot):
            how = f"for snapshot {old.snapshot}" if old.snapshot else "shared" if old.shared else "for the whole volume"
            raise FsError(errno.EINVAL, f"session {old.session} was opened {how}")
        if command.worker <= old.worker:
            raise FsError(errno.ESTALE, f"worker {command.worker} of this mount has been succeeded by {old.worker}")
        end_leases(state, old.session, exited=command.predecessor_exited)
        state.results.forget_background(command.mount)
        _drop_answered_results(state, command)
        _release_predecessor(state, command)
        old.worker = command.worker
        state.save_session(old)
        resumed = SessionOpened(old.session, old.epoch, True, False, SESSION_TTL_MS, describe(volume), old.reserved_bytes)
        return resumed if old.snapshot else _with_log(state, command.mount, volume, resumed)
    if old is not None and old.ended and old.shared and state.any_in(keys.locker_range(old.session)):
        raise RetryLater(errno.EAGAIN, f"locks of session {old.session} are ending")  # the mount is to be told of each that it lost
    if isinstance(command, OpenSnapshot):
        snapshots.check_opened(state, command)
    else:
        _refuse_conflicts(state, volume, command)
    if state.cluster.sessions >= SESSIONS_MAX:
        raise FsError(errno.ENFILE, f"{SESSIONS_MAX} sessions are open")
    client_shares.check_sessions(state, command.node, every(state))
    if not isinstance(command, OpenSnapshot):
        csi_volumes.refuse_fenced(state, command.volume, command.node, command.boot_id)
    if isinstance(command, OpenShared):
        locality.check_shared(state, volume)
    locality.settle(state, volume, command.node)
    _end_earlier_boots(state, entry, command)
    mounts.forget_oldest(state, command.node)
    _drop_answered_results(state, command)
    _release_predecessor(state, command)
    return _new_session(state, command, volume, mount)


def _kind(command: OpenSession) -> tuple[bool, bool, bool, int]:
    """Returns shared, uncached, caches and snapshot of a session's row."""
    return command.shared, isinstance(command, OpenShared), _caches(command), _snapshot(command)


def _snapshot(command: OpenSession) -> int:
    return command.snapshot if isinstance(command, OpenSnapshot) else 0


def _refuse_conflicts(state: State, volume: rows.VolumeRow, command: OpenSession) -> None:
    """Raises FsError(EBUSY) while sessions have the volume beside which this one may not."""
    holder = state.session(volume.holder) if volume.holder else None
    if holder is not None and not _is_earlier_boot(holder, command):
        raise FsError(errno.EBUSY, f"volume {volume.name} is mounted by session {holder.session} on node {holder.node}")
    if not command.shared and volume.sharers and any(_conflicts(row, command) for row in every(state)):
        raise FsError(errno.EBUSY, f"volume {volume.name} is shared by {volume.sharers} sessions")


def _refuse_foreign(state: State, mount: rows.MountRow | None, command: OpenSession) -> None:
    """Results, quarantine and place of a mount's number are its node's: whoever else opened a session with it would end them all."""
    if mount is not None and mount.node != command.node and state.acts_at(MENDED_RULES):
        raise FsError(errno.EPERM, f"mount {command.mount} is on node {mount.node}")


def _caches(command: OpenSession) -> bool:
    return isinstance(command, OpenShared) and command.caches


def _drop_answered_results(state: State, command: OpenSession) -> None:
    """Drops the results that the kernel has: all but those of the requests that the successor has found.

    All that the dead worker proposed was decided before this entry: its connections were ended when the request for it arrived.
    """
    if command.unanswered is not None:
        state.results.keep_only(command.mount, command.unanswered)


def _new_session(state: State, command: OpenSession, volume: rows.VolumeRow, old: rows.MountRow | None) -> Reply:
    cluster = state.cluster
    changed_by_others = old is not None and (volume.exclusives != old.exclusives if command.shared else volume.last_mount != command.mount)
    row = rows.SessionRow(
        cluster.next_session,
        cluster.next_epoch,
        command.mount,
        command.volume,
        command.node,
        command.boot_id,
        command.worker,
        shared=command.shared,
        uncached=isinstance(command, OpenShared),
        caches=_caches(command),
        snapshot=_snapshot(command),
    )
    cluster.next_session += 1
    cluster.next_epoch += 1
    cluster.sessions += 1
    state.save_session(row)
    if row.snapshot:
        changed_by_others = False  # nobody changes a snapshot
    elif command.shared:
        volume.sharers += 1
        volume.leased = True
        volume.last_mount = command.mount if volume.last_mount == command.mount else 0
    else:
        volume.exclusives += 1
        volume.holder, volume.last_mount = row.session, command.mount
    mount = rows.MountRow(row.session, command.volume, command.node, command.boot_id, volume.exclusives)
    state.write(keys.mount(command.mount), mount, rows.MOUNT)
    state.save_volume(volume)
    if row.snapshot:
        return SessionOpened(row.session, row.epoch, False, False, SESSION_TTL_MS, describe(volume))
    csi_volumes.clear_fence(state, command.volume, command.node, command.boot_id)
    return _with_log(
        state, command.mount, volume,
        SessionOpened(row.session, row.epoch, False, changed_by_others, SESSION_TTL_MS, describe(volume)),
    )


def _with_log(state: State, mount: int, volume: rows.VolumeRow, opened: SessionOpened) -> SessionOpened:
    """Tells a mount that has sent records how far they are applied, and one that may decide names that it may; others get what they always
    got."""
    row = inode_grants.log_of(state, mount, volume.volume)
    if row is None and not volume.names:
        return opened
    row = row or rows.OpLogRow(volume.volume)
    return SessionGoesOn(
        **structs.asdict(opened), log=row.log, applied=row.applied, numbers=row.numbers, round=row.round, names=volume.names,
        level=state.cluster.level, site=state.cluster.site,
    )  # fmt: skip


def open_collector(state: State, entry: Entry, command: OpenCollector) -> Reply:
    """Opens the session of a collector: no mount, no volume, only segments.  Answered by CollectorOpened.

    Each node collects the devices that it sees.  Where two meet at a shared device, compare-and-swap lets each extent move once.
    """
    cluster = state.cluster
    earlier = [row for row in every(state) if not row.volume]
    for row in earlier:
        if row.node != command.node and not row.ended and not state.acts_at(MENDED_RULES):
            raise FsError(errno.EBUSY, f"node {row.node} collects already")
    if cluster.sessions >= SESSIONS_MAX:
        raise FsError(errno.ENFILE, f"{SESSIONS_MAX} sessions are open")
    for row in earlier:
        if row.node == command.node:
            if not row.ended:
                end(state, entry, row, exited=True)
            release_quarantine(state, row.session)
    opened = rows.SessionRow(cluster.next_session, cluster.next_epoch, 0, 0, command.node, command.boot_id, 0)
    cluster.next_session += 1
    cluster.next_epoch += 1
    cluster.sessions += 1
    state.save_session(opened)
    return CollectorOpened(opened.session, opened.epoch)


def _release_predecessor(state: State, command: OpenSession) -> None:
    if command.predecessor_exited:
        _release_quarantine_of(state, command.mount, command.worker - 1, command.node)


def _release_quarantine_of(state: State, mount: int, worker: int, node: str) -> None:
    """Ends the quarantine of a worker's expired sessions: no write of it can land any more.  `node`: who says so."""
    for row in every(state) if mount else ():
        if row.ended and (row.mount, row.worker) == (mount, worker) and (row.node == node or not state.acts_at(MENDED_RULES)):
            release_quarantine(state, row.session)


def _is_earlier_boot(row: rows.SessionRow | rows.MountRow, command: OpenSession) -> bool:
    return row.node == command.node and row.boot_id != command.boot_id


def _conflicts(row: rows.SessionRow, command: OpenSession) -> bool:
    return row.volume == command.volume and not row.ended and not row.snapshot and not _is_earlier_boot(row, command)


def _end_earlier_boots(state: State, entry: Entry, command: OpenSession) -> None:
    left = REAP_EXTENTS_PER_ENTRY
    for row in every(state):
        if _is_earlier_boot(row, command):
            if not row.ended:
                used = end(state, entry, row, exited=True, count=left)
                left -= min(used, left) if state.acts_at(MENDED_RULES) else 0
            release_quarantine(state, row.session)
    for number, mount in mounts.every(state):
        if _is_earlier_boot(mount, command):
            mounts.forget(state, number)


def end_session(state: State, entry: Entry, command: EndSession) -> Reply:
    """Ends a session: its mount is gone, or its lease has expired."""
    row = state.session(command.session)
    if row is None or row.ended or row.epoch != command.epoch:
        raise EpochEnded(f"session {command.session} epoch {command.epoch} has ended already")
    end(state, entry, row, exited=command.clean)
    if command.expired and row.volume and not row.snapshot:  # whose reader writes nothing
        csi_volumes.set_fence(state, row)
    if command.clean:
        _release_quarantine_of(state, row.mount, row.worker, row.node)
        state.results.forget(row.mount)  # unmounted: the sender of these requests is gone
        mounts.note_unmounted(state, row.mount)
    elif row.mount and state.acts_at(MENDED_RULES) and nodes.is_removed(state, row.node):
        mounts.forget(state, row.mount)
    return Done()


def end(state: State, entry: Entry, row: rows.SessionRow, *, exited: bool, count: int = -1) -> int:
    """Ends a session: reservation, segments and the volume at once; rows of locks, write leases and pins up to `count` (-1: as
    many as one entry may end), and the rest by Reap.

    Returns how many of those rows it ended.  The locks and write leases that are left count for nobody (locks.py, write_leases.py).
    """
    row.ended, row.ended_ms = True, entry.time_ns // NS_PER_MS
    state.cluster.sessions -= 1
    state.save_session(row)
    if row.volume:  # else a collector's, which holds segments only
        _leave_volume(state, row)
    end_leases(state, row.session, exited=exited)
    if not state.acts_at(MENDED_RULES):
        end_session_locks(state, row.session, -1)
        end_session_write_leases(state, row.session, -1)
    used = end_rest(state, entry, row.session, REAP_EXTENTS_PER_ENTRY if count < 0 else count)
    if has_rest(state, row.session):
        state.queue_reap(keys.reap(keys.REAP_SESSION, 0, row.session, 0), rows.ReapRow())
    forget_ended(state, row.session)
    return used


def _leave_volume(state: State, row: rows.SessionRow) -> None:
    volume = state.volume(row.volume)
    assert volume is not None, "a session without its volume"
    consume(state, row, volume, row.reserved_bytes)
    if row.mount:
        inode_grants.end_session(state, row.mount)
    if volume.holder == row.session:
        volume.holder = 0
        state.save_volume(volume)
    if row.shared:
        volume.sharers -= 1
        state.save_volume(volume)


def has_rest(state: State, session: int) -> bool:
    """Returns True if rows of an ended session are left for Reap."""
    return any(state.any_in(span) for span in keys.session_rest_ranges(session))


def end_rest(state: State, entry: Entry, session: int, count: int) -> int:
    """Ends up to about `count` rows of locks, write leases and pins of an ended session, and returns how many it ended."""
    used = end_session_locks(state, session, count)
    used += end_session_write_leases(state, session, max(count - used, 0))
    return used + end_pins(state, entry, session, max(count - used, 0))


def end_pins(state: State, entry: Entry, session: int, count: int) -> int:
    """Ends up to `count` pins of an ended session, and returns how many it ended."""
    found = state.keys_in(keys.pinner_range(session), count)
    for key in found:
        _, number, ino = keys.session_inode_of(key)
        volume = state.volume(number)
        assert volume is not None
        state.ledger.unpin(state, entry, volume, ino, session)
    return len(found)
