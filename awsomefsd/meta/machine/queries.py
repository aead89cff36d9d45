"""Queries are answered from the machine's rows, its unflushed ones included, and change nothing that a later entry could see."""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from itertools import islice
from typing import Any, cast

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import LAYOUT_EXTENTS_MAX, ORPHANS_PER_LOOK_MAX
from awsomefsd.base.types import NAMES_DELEGATED, DeviceInfo, SegmentInBays, SessionInfo
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.base import Message
from awsomefsd.meta.api.messages.collection import GetFilePieces, GetPieces, GetSparse
from awsomefsd.meta.api.messages.csi import GetClaims, GetCsiVolumes
from awsomefsd.meta.api.messages.devices import GetBays, GetQuarantine, ReportDevices
from awsomefsd.meta.api.messages.nodes import GetNode, GetSigner, GetVerifier, ListCas, ListNodes, ListTokens, NodeReport
from awsomefsd.meta.api.messages.pools import CountNeeds, GetNeeds, GetPool, GetPoolVolumes, GetStaleBays
from awsomefsd.meta.api.messages.scrub import GetLiveSegments, GetNames
from awsomefsd.meta.api.messages.snapshots import ListSnapshots
from awsomefsd.meta.api.messages.stores import GetStoreSecret, ListStores
from awsomefsd.meta.machine import (
    bays,
    checkpoint_segments,
    csi_volumes,
    devices,
    locks,
    name_queries,
    nodes,
    pool_queries,
    quarantine,
    quota,
    relocation,
    row_queries,
    scrub_queries,
    segments,
    sessions,
    snapshots,
    stores,
    volumes,
)
from awsomefsd.meta.machine.filemap import FileMap, visible_as_of
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.state import extents, history, keys, rows
from awsomefsd.meta.state.rows_cache import State


def answer(machine: Machine, body: m.Body) -> m.Reply:
    """Returns the reply to a query; Failed where there is none.  Raises Corrupt or FormatTooNew for a row that does not decode."""
    query = _QUERIES.get(type(body))
    if query is None:
        return m.Failed(errno.EINVAL, f"{type(body).__name__} is not a query")
    machine.state.evict()
    try:
        reply: m.Reply = query(machine.state, body)
        return reply
    except FsError as err:
        return m.Failed(err.errno, str(err.args[0]), err.retry_helps)


def _get_layout(state: State, body: m.GetLayout) -> m.Reply:
    row = name_queries.inode(state, body.volume, body.ino, body.at)
    if not stat.S_ISREG(row.mode):
        raise FsError(errno.EINVAL)
    if row.inline:
        data = (history.inline(state, body.volume, body.ino, body.at) or b"") if row.stored_bytes else b""
        if len(data) != row.stored_bytes:
            raise FsError(errno.EIO, f"volume {body.volume} inode {body.ino}: its inline data is not what was stored; run awsomefsd fsck")
        return m.Layout(row.size, [], [], data, body.end)
    wanted_end = min(body.end, row.size)
    pieces, end = (_pieces_as_of if body.at else _pieces)(state, body, row, wanted_end)
    if end == wanted_end:
        end = body.end  # nothing is behind the end of the file
    named = {piece.segment: None for _, piece in pieces if piece.segment}  # in order of first use; lost ones have no place
    return m.Layout(row.size, [extents.extent_of(*piece) for piece in pieces], [_segment(state, number) for number in named], None, end)


def _pieces(state: State, body: m.GetLayout, row: rows.InodeRow, wanted_end: int) -> tuple[list[extents.Piece], int]:
    """Returns what the head shows of a file from the start that was asked for on, and up to where that is exact."""
    start = max(body.start, 0)
    filemap = FileMap(state, volumes.existing(state, body.volume), body.ino, row)
    stored, end = filemap.part(start, wanted_end, LAYOUT_EXTENTS_MAX)
    if gone := filemap.missing(stored, start, end):  # a reader would take it for zeros
        raise FsError(errno.EIO, f"volume {body.volume} inode {body.ino}: {gone}; run awsomefsd fsck")
    return filemap.shown(stored), end


def _pieces_as_of(state: State, body: m.GetLayout, row: rows.InodeRow, wanted_end: int) -> tuple[list[extents.Piece], int]:
    """Returns what a snapshot shows of a file, as `_pieces`."""
    shown = visible_as_of(state, body.volume, body.ino, max(body.start, 0), wanted_end, body.at)
    pieces = list(islice(shown, LAYOUT_EXTENTS_MAX + 1))
    if len(pieces) <= LAYOUT_EXTENTS_MAX:
        return pieces, wanted_end
    return pieces[:-1], pieces[-1][0]


def _segment(state: State, number: int) -> SegmentInBays:
    row = segments.find(state, number)
    if row is None:
        raise FsError(errno.ENOENT, f"no segment {number}")
    return _told(state, row)


def _told(state: State, row: rows.SegmentRow) -> SegmentInBays:
    """Returns a segment as Segments and Layout say it."""
    return cast(SegmentInBays, segments.describe(state, row))


def _get_statfs(state: State, body: m.GetStatFs) -> m.Reply:
    volume = volumes.existing(state, body.volume)
    own = state.session(body.session) if body.session else None
    held = own.reserved_bytes if own is not None and own.volume == volume.volume else 0
    spare = min(max(body.unneeded, 0), held) if body.session or body.unneeded < 0 else volume.reserved_bytes
    return m.StatFsReply(quota.statfs(state, volume, spare))


def _get_segments(state: State, body: m.GetSegments) -> m.Reply:
    return m.Segments([_segment(state, number) for number in body.segments])


def _get_own_segments(state: State, body: m.GetOwnSegments) -> m.Reply:
    return m.Segments([_told(state, row) for row in checkpoint_segments.kept(state)])


def _get_checkpoints(state: State, body: m.GetCheckpoints) -> m.Reply:
    kept = [segments.describe(state, row) for row in checkpoint_segments.kept(state)]
    return m.Checkpoints(kept, [checkpoint_segments.told(row) for row in checkpoint_segments.every(state)])


def _get_sessions(state: State, body: m.GetSessions) -> m.Reply:
    return m.Sessions(
        [
            SessionInfo(
                row.session,
                row.epoch,
                row.mount,
                row.volume,
                row.node,
                row.boot_id,
                row.worker,
                row.reserved_bytes,
                row.segments_leased,
                row.ended,
                len(segments.segments_of(state, row.session)) if row.ended else 0,
            )
            for row in sessions.every(state)
        ]
    )


def _address_of(state: State, node: str) -> str:
    """Returns where the segment server of a node is reached; "" if nowhere."""
    row = nodes.find(state, node) if node else None
    return row.segments if row is not None else ""


def _get_devices(state: State, body: m.GetDevices | ReportDevices) -> m.Reply:
    return m.Devices(
        [
            DeviceInfo(
                row.device,
                row.uuid,
                row.bytes,
                row.segment_bytes,
                row.segments,
                row.segments_free,
                row.first_segment_offset,
                "",
                row.shared,
                row.home,
                row.draining,
                devices.era_of(state, row.uuid),
                row.absent,
                row.pool,
                row.device_class,
                row.server,
                row.lost,
                _address_of(state, row.server),
            )
            for row in state.devices()
        ]
    )


def _get_volumes(state: State, body: m.GetVolumes) -> m.Reply:
    found = list(volumes.every(state))
    if body.name:
        row = volumes.by_name(state, body.name)
        if row is None:
            raise FsError(errno.ENOENT, f"no volume {body.name}")
        found = [row]
    return m.Volumes([volumes.describe(row) for row in found], [row.volume for row in found if row.names == NAMES_DELEGATED])


def _get_orphans(state: State, body: m.GetOrphans) -> m.Reply:
    return m.Inodes([keys.session_inode_of(key)[2] for key in state.keys_in(keys.pinner_range(body.session), ORPHANS_PER_LOOK_MAX)])


def _get_locks(state: State, body: m.GetLocks) -> m.Reply:
    return m.Locks(locks.of_session(state, body.session))


def _test_lock(state: State, body: m.TestLock) -> m.Reply:
    name_queries.inode(state, body.volume, body.ino)
    lock = body.lock
    want = locks.wanted(lock.kind, lock.owner, lock.pid, lock.lock_type, lock.start, lock.end, lock.session)
    return m.Locked(locks.conflict(locks.of_inode(state, body.volume, body.ino), want))


_QUERIES: dict[type[Message], Callable[[State, Any], Any]] = {  # Any: replies within this process are no m.Reply
    **name_queries.QUERIES,
    m.GetRows: row_queries.get_rows,
    m.GetLayout: _get_layout,
    m.GetStatFs: _get_statfs,
    m.GetSegments: _get_segments,
    m.GetOwnSegments: _get_own_segments,
    m.GetCheckpoints: _get_checkpoints,
    m.GetDevices: _get_devices,
    ReportDevices: _get_devices,
    GetQuarantine: quarantine.listing,
    GetBays: bays.get_bays,
    GetPool: pool_queries.get_pool,
    GetNeeds: pool_queries.get_needs,
    GetStaleBays: pool_queries.get_stale,
    GetPoolVolumes: pool_queries.get_volumes,
    CountNeeds: pool_queries.count_needs,
    m.GetSessions: _get_sessions,
    m.GetVolumes: _get_volumes,
    m.GetLocks: _get_locks,
    m.GetOrphans: _get_orphans,
    m.TestLock: _test_lock,
    GetSparse: relocation.sparse,
    GetPieces: relocation.pieces,
    GetLiveSegments: scrub_queries.live_segments,
    GetNames: scrub_queries.names,
    GetFilePieces: relocation.file_pieces,
    ListNodes: nodes.list_nodes,
    NodeReport: nodes.orders,
    GetNode: nodes.get_node,
    ListTokens: nodes.list_tokens,
    ListCas: nodes.list_cas,
    GetSigner: nodes.get_signer,
    GetVerifier: nodes.get_verifier,
    GetCsiVolumes: csi_volumes.records,
    GetClaims: csi_volumes.claims,
    ListStores: stores.list_stores,
    ListSnapshots: snapshots.listing,
    GetStoreSecret: stores.get_secret,
}
