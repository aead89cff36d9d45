"""fsck of the metadata: every invariant of the rows, from a transaction at rest (after Machine.flush()).

It reads only, and trusts no count that it has not counted itself.  Pure; the caller turns faults into words and exit codes.  Memory holds
the inodes of one volume at a time.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from awsomefsd.base.codec import Sealed
from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_METADATA, SEGMENT_QUARANTINED, SEGMENT_SEALED
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.check.check_csi import check_csi
from awsomefsd.meta.check.check_data import SharedBytes, VolumeDataCheck
from awsomefsd.meta.check.check_kept import check_kept
from awsomefsd.meta.check.check_pools import check_pools
from awsomefsd.meta.check.check_stores import check_stores
from awsomefsd.meta.check.check_tree import Tree
from awsomefsd.meta.machine.device_numbers import last_number, number_of
from awsomefsd.meta.machine.segments import has_rest
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination, Fault
from awsomefsd.meta.state.row_codecs import CODEC_OF
from awsomefsd.meta.state.txn import Txn

__all__ = ["Fault", "check"]

_VOLUME_KINDS = keys.VOLUME_KINDS | keys.HISTORY_KINDS
_CLUSTER_KINDS = CODEC_OF.keys() - _VOLUME_KINDS
_OF_SNAPSHOTS = (keys.SNAPSHOT, keys.SNAPNAME)


def check(txn: Txn) -> list[Fault]:
    """Returns all faults of the rows; an empty list if the state is sound.  Changes nothing."""
    return _Check(Examination(txn)).run()


class _Check:
    def __init__(self, exam: Examination) -> None:
        self.exam = exam
        self.cluster: rows.ClusterRow = exam.get(keys.cluster(), rows.CLUSTER) or rows.ClusterRow()
        self.devices: dict[int, rows.DeviceRow] = {row.device: row for row in self._all(keys.DEVICE, rows.DEVICE)}
        self.segments: dict[int, rows.SegmentRow] = {row.segment: row for row in self._all(keys.SEGMENT, rows.SEGMENT)}
        self.volumes: dict[int, rows.VolumeRow] = {row.volume: row for row in self._all(keys.VOLUME, rows.VOLUME)}
        self.sessions: dict[int, rows.SessionRow] = {row.session: row for row in self._all(keys.SESSION, rows.SESSION)}
        self.live = {number for number, row in self.sessions.items() if not row.ended}
        self.live_bytes: Counter[int] = Counter()
        self.shared: SharedBytes = {}
        self.ending: set[int] = set()
        self.clearing: dict[int, set[int]] = {}  # volume -> deleted snapshots of which something may be kept
        self.granted: Counter[int] = Counter()
        self.numbers_end: Counter[int] = Counter()

    def _all(self, kind: int, codec: Sealed) -> list[Any]:
        return [row for _, row in self.exam.rows(keys.kind_range(0, kind), codec)]

    def run(self) -> list[Fault]:
        self._keys()
        self._reaps()
        for volume in self.volumes.values():
            inodes: dict[int, rows.InodeRow] = {}
            if not volume.deleted:
                inodes = Tree(self.exam, volume, self.live, self.ending).check()
            data = VolumeDataCheck(self.exam, volume, inodes, self.segments, self.live_bytes, self.shared)
            data.check()
            check_kept(self.exam, volume, self.clearing.get(volume.volume, set()), data.kept)
        self._reverse()
        self._shared()
        self._op_logs()
        self._volumes()
        self._sessions()
        self._session_indexes()
        self._segments()
        self._free_lists()
        self._begun()
        self._devices()
        self._checkpoints()
        self._stream()
        check_pools(self.exam, self.devices, self.segments)
        check_stores(self.exam, self.cluster.applied_index)
        check_csi(self.exam, self.volumes, self.cluster.next_epoch)
        return self.exam.faults

    def _keys(self) -> None:
        raw = self.exam.txn.get(keys.cluster())
        if raw is not None:
            self.exam.decode(keys.cluster(), raw, rows.CLUSTER)
        for kind in (keys.MOUNT, keys.RESULT, keys.TOMBSTONE, keys.NODE, keys.TOKEN, keys.CA, keys.DEVICE_ERA):
            self._all(kind, CODEC_OF[kind])  # for undecodable and misplaced ones
        for key, _ in self.exam.txn.scan(b"", b"\xff" * 8):
            if len(key) < keys.PREFIX_BYTES:
                self.exam.fault("unknown-key", key.hex(), "too short")
                continue
            shard, volume, kind = keys.kind_of(key)
            if shard != keys.SHARD or kind not in (_VOLUME_KINDS if volume else _CLUSTER_KINDS):
                self.exam.fault("unknown-key", key.hex(), f"shard {shard}, volume {volume}, type {kind:#x}")
            elif (volume or (keys.first_u32(key) if kind in _OF_SNAPSHOTS else 0)) not in {0, *self.volumes}:
                self.exam.fault("unknown-volume", key.hex(), f"volume {volume} does not exist")

    # --- the reap queue -----------------------------------------------------------------------------------------------------
    def _reaps(self) -> None:
        count = 0
        deleting = set()
        for key, _ in self.exam.rows(keys.kind_range(0, keys.REAP), rows.REAP):
            count += 1
            kind, volume, ino, _ = keys.reap_of(key)
            if kind == keys.REAP_SESSION:
                self.ending.add(ino)
                if ino not in self.sessions or ino in self.live:
                    self.exam.fault("reap-stale", f"session {ino}", "queued, but not an ended session")
            elif kind == keys.REAP_SNAPSHOT:
                self.clearing.setdefault(volume, set()).add(ino)  # it may be longer there than its volume
                if self.exam.txn.get(keys.snapshot(volume, ino)) is not None:
                    self.exam.fault("reap-stale", f"volume {volume} snapshot {ino}", "queued, but not deleted")
            elif volume not in self.volumes:
                self.exam.fault("reap-stale", f"volume {volume} inode {ino}", "the volume does not exist")
            elif kind == keys.REAP_VOLUME:
                deleting.add(volume)
                if not self.volumes[volume].deleted:
                    self.exam.fault("reap-stale", f"volume {volume}", "queued, but not deleted")
        self.exam.equal("reap-count", "cluster", self.cluster.reaps, count)
        for number, row in self.volumes.items():
            if row.deleted and number not in deleting:
                self.exam.fault("reap-missing", f"volume {number}", "deleted, but not queued to be reaped")

    def _reverse(self) -> None:
        for key, row in self.exam.rows(keys.kind_range(0, keys.REVERSE), rows.REVERSE):
            segment, frame_offset, volume, ino, offset, until = keys.reverse_of(key)
            place = keys.extent(volume, ino, offset)
            extent: rows.ExtentRow | None = self.exam.get(keys.history(place, until) if until else place, rows.EXTENT)
            named = None if extent is None else (extent.segment, extent.frame_offset, extent.incarnation)
            if named != (segment, frame_offset, row.incarnation):
                where = f"segment {segment} frame {frame_offset}"
                self.exam.fault("reverse-without-extent", where, f"volume {volume} inode {ino} offset {offset} names {named}")

    def _shared(self) -> None:
        held = {}
        for key, row in self.exam.rows(keys.kind_range(0, keys.SHARED), rows.SHARED):
            segment, frame_offset = keys.first_u64(key), keys.last_u64(key)
            held[segment, frame_offset] = (row.incarnation, row.runs)
            self.live_bytes[segment] += sum(end - start for start, end, _ in row.runs)
        for place in sorted(held.keys() | self.shared.keys()):
            stored, found = held.get(place), self.shared.get(place)
            if stored != found:
                self.exam.fault("shared-bytes", f"segment {place[0]} frame {place[1]}", f"stored {stored}, the extents hold {found}")

    def _op_logs(self) -> None:
        """What mounts were granted: of live ones the quota counts it."""
        live = {self.sessions[number].mount for number in self.live}
        for key, row in self.exam.rows(keys.kind_range(0, keys.OPLOG), rows.OPLOG):
            mount = keys.last_u64(key)
            where = f"mount {mount:x}"
            if row.reserved > (sum(end - first for first, end in row.numbers) if mount in live else 0):
                self.exam.fault("op-log", where, f"{row.reserved} inode numbers count against the quota")
            bounds = [bound for numbers in row.numbers for bound in numbers]
            if bounds != sorted(set(bounds)):
                self.exam.fault("op-log", where, f"inode numbers {row.numbers}")
            self.granted[row.volume] += row.reserved
            self.numbers_end[row.volume] = max(self.numbers_end[row.volume], *bounds, 0)

    # --- volumes ------------------------------------------------------------------------------------------------------------
    def _volumes(self) -> None:
        named = {}
        for key, row in self.exam.rows(keys.kind_range(0, keys.VOLNAME), rows.VOLNAME):
            named[key[keys.PREFIX_BYTES :].decode(errors="replace")] = row.volume
        existing = [row for row in self.volumes.values() if not row.deleted]
        if named != {row.name: row.volume for row in existing}:
            self.exam.fault("volume-name", "cluster", f"index {named}, volumes {[(row.name, row.volume) for row in existing]}")
        self.exam.equal("volume-count", "cluster", self.cluster.volumes, len(existing))
        for row in self.volumes.values():
            where = f"volume {row.volume}"
            if row.volume >= self.cluster.next_volume:
                self.exam.fault("volume-count", where, f"the next volume is {self.cluster.next_volume}")
            holders = sorted(number for number in self.live if self.sessions[number].volume == row.volume)
            sharers = [number for number in holders if self.sessions[number].shared]
            self.exam.equal("volume-holder", where, row.sharers, len(sharers))
            readers = [number for number in holders if self.sessions[number].snapshot]
            if [number for number in holders if number not in sharers and number not in readers] != ([row.holder] if row.holder else []):
                self.exam.fault("volume-holder", where, f"holder {row.holder}, live sessions {holders}")
            reserved = sum(self.sessions[number].reserved_bytes for number in holders)
            self.exam.equal("volume-reserved", where, row.reserved_bytes, reserved)
            self.exam.equal("volume-granted", where, row.granted_inodes, self.granted[row.volume])
            if self.numbers_end[row.volume] > row.next_ino:
                self.exam.fault(
                    "ino-counter", where, f"numbers up to {self.numbers_end[row.volume]} are granted, the next is {row.next_ino}"
                )

    # --- sessions -----------------------------------------------------------------------------------------------------------
    def _sessions(self) -> None:
        self.exam.equal("session-count", "cluster", self.cluster.sessions, len(self.live))
        reserved = sum(row.reserved_bytes for row in self.sessions.values())
        self.exam.equal("cluster-reserved", "cluster", self.cluster.reserved_bytes, reserved)
        leased = Counter(row.session for row in self.segments.values() if row.state == SEGMENT_LEASED)
        kept = {row.session for row in self.segments.values() if row.state in (SEGMENT_LEASED, SEGMENT_QUARANTINED)}
        for number, row in self.sessions.items():
            where = f"session {number}"
            if number >= self.cluster.next_session or row.epoch >= self.cluster.next_epoch:
                self.exam.fault("session-counter", where, f"next session {self.cluster.next_session}, epoch {self.cluster.next_epoch}")
            self.exam.equal("session-segments", where, row.segments_leased, leased[number])
            if row.ended and row.reserved_bytes:
                self.exam.fault("cluster-reserved", where, f"ended with {row.reserved_bytes} bytes reserved")
            if row.ended and number not in kept and number not in self.ending:
                self.exam.fault("ended-session-idle", where, "nothing refers to it any more")

    def _session_indexes(self) -> None:
        held = set()
        for key, _ in self.exam.rows(keys.kind_range(0, keys.HELD), rows.MARKER):
            held.add((keys.first_u64(key), keys.last_u64(key)))
        expected = {(r.session, r.segment) for r in self.segments.values() if r.state in (SEGMENT_LEASED, SEGMENT_QUARANTINED)}
        expected |= {(0, r.segment) for r in self.segments.values() if r.state == SEGMENT_METADATA}
        for session, segment in sorted(held ^ expected):
            side = "row without segment" if (session, segment) in held else "segment without row"
            self.exam.fault("held-index", f"session {session} segment {segment}", side)
        for key, _ in self.exam.rows(keys.kind_range(0, keys.PINNER), rows.MARKER):
            session, volume, ino = keys.session_inode_of(key)
            if self.exam.txn.get(keys.orphan(volume, ino, session)) is None:
                self.exam.fault("orphan-index", f"volume {volume} inode {ino}", f"session {session} has no pin there")
        for key, _ in self.exam.rows(keys.kind_range(0, keys.LOCKER), rows.MARKER):
            session, volume, ino = keys.session_inode_of(key)
            row: rows.LocksRow | None = self.exam.get(keys.locks(volume, ino), rows.LOCKS)
            if row is None or all(lock.session != session for lock in row.locks):
                self.exam.fault("lock-index", f"volume {volume} inode {ino}", f"session {session} has no lock there")

    # --- segments and devices -----------------------------------------------------------------------------------------------
    def _segments(self) -> None:
        for number, row in self.segments.items():
            where = f"segment {number}"
            self.exam.equal("segment-live-bytes", where, row.live_bytes, self.live_bytes[number])
            device = self.devices.get(row.device)
            if row.bays:
                if max(row.committed_bytes, row.footer_offset + row.footer_bytes) > row.bytes or number >= self.cluster.next_segment:
                    self.exam.fault("segment-bytes", where, f"committed {row.committed_bytes} of {row.bytes}")
            elif device is None or device.pool or not 0 <= row.index < device.unused_from or number_of(device, row.index) != number:
                self.exam.fault("segment-device", where, f"device {row.device} index {row.index}")
            elif max(row.committed_bytes, row.footer_offset + row.footer_bytes) > device.segment_bytes:
                self.exam.fault("segment-bytes", where, f"committed {row.committed_bytes} of {device.segment_bytes}")
            if row.state == SEGMENT_SEALED and not row.live_bytes:
                self.exam.fault("segment-dead", where, "sealed without live bytes, and not freed")
            if row.state == SEGMENT_METADATA and (row.session or row.live_bytes):
                self.exam.fault("metadata-segment", where, f"session {row.session}, {row.live_bytes} live bytes")
            if row.state == SEGMENT_LEASED and row.session not in self.live:
                self.exam.fault("lease-of-ended-session", where, f"session {row.session} has ended")
            if row.state == SEGMENT_QUARANTINED and row.session not in self.sessions:
                self.exam.fault("lease-of-ended-session", where, f"quarantined for unknown session {row.session}")

    def _free_lists(self) -> None:
        free = {}
        in_pools = {number for number, device in self.devices.items() if device.pool}
        for key, row in self.exam.rows(keys.kind_range(0, keys.FREE), rows.FREE):
            if keys.bay_place(key)[0] in in_pools:
                continue
            segment = self.segments.get(row.segment)
            free[row.segment] = row
            at = None if segment is None else keys.free(segment.device, segment.index)
            if segment is None or segment.state != SEGMENT_FREE or at != key or segment.freed_index != row.freed_index:
                self.exam.fault("free-list", f"segment {row.segment}", f"listed free since {row.freed_index}; the segment says {segment}")
        for number, segment in self.segments.items():
            if segment.state == SEGMENT_FREE and number not in free:
                self.exam.fault("free-list", f"segment {number}", "free, and not in the list")

    def _begun(self) -> None:
        for key, _ in self.exam.rows(keys.kind_range(0, keys.BEGUN), rows.MARKER):
            number, index = keys.begun_place(key)
            device = self.devices.get(number)
            row = None if device is None or device.pool else self.segments.get(number_of(device, index))
            if device is None or device.pool or row is None or row.state != SEGMENT_SEALED or not has_rest(row, device.segment_bytes):
                self.exam.fault("begun-index", f"device {number} index {index}", f"no rest of it may be leased; the segment says {row}")

    def _devices(self) -> None:
        taken = Counter(row.device for row in self.segments.values() if row.state != SEGMENT_FREE)
        total = free = 0
        for number in range(1, self.cluster.next_device):
            device = self.devices.get(number)
            if device is None:
                self.exam.fault("device-missing", f"device {number}", "no row")
                continue
            if device.pool:
                continue
            where = f"device {number}"
            self.exam.equal("device-counters", where, device.segments_free, device.segments - taken[number])
            rows_of = sum(row.device == number for row in self.segments.values())
            self.exam.equal("device-counters", f"{where} segments used before", device.unused_from, rows_of)
            total += usable_bytes(device.segment_bytes) * device.segments
            free += usable_bytes(device.segment_bytes) * (device.segments - taken[number])
            if last_number(device) > self.cluster.next_segment:
                self.exam.fault("segment-counter", where, f"the next segment is {self.cluster.next_segment}")
        self.exam.equal("allocated-bytes", "cluster", self.cluster.allocated_bytes, self.live_bytes[0])
        self.exam.equal("cluster-bytes", "cluster total", self.cluster.total_bytes, total)
        self.exam.equal("cluster-bytes", "cluster free", self.cluster.free_bytes, free)

    def _checkpoints(self) -> None:
        owners: dict[int, str] = {}
        for key, row in self.exam.rows(keys.kind_range(0, keys.CHECKPOINT), rows.CHECKPOINT):
            where = f"checkpoints of node {row.node}"
            if key != keys.checkpoint(row.node):
                self.exam.fault("checkpoint-segments", where, "the row lies under another key")
            for number in row.segments:
                segment = self.segments.get(number)
                if segment is None or segment.state != SEGMENT_METADATA or number in owners:
                    self.exam.fault("checkpoint-segments", where, f"segment {number} is not the metadata's, or another node's too")
                owners[number] = row.node
            if not set(row.area) <= set(row.segments):
                self.exam.fault("checkpoint-segments", where, "the newest checkpoint lies in segments that are not kept")

    # --- the change stream --------------------------------------------------------------------------------------------------
    def _stream(self) -> None:
        readers = len(self._all(keys.READER, rows.READER))
        self.exam.equal("reader-count", "cluster", self.cluster.readers, readers)
        for key, _ in self.exam.txn.scan(*keys.kind_range(0, keys.TOMBSTONE)):
            index = keys.first_u64(key)
            if index > self.cluster.applied_index:
                self.exam.fault("stale-tombstone", f"entry {index}", f"applied is {self.cluster.applied_index}")
