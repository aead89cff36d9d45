"""The last step of a repair: sessions, segments, devices, and every total, index and counter of the cluster.

A session whose row is gone may still have a living worker that writes: what it had leased is put into quarantine under an ended session of
the same number, as after an expiry, and freed by the same proof.  A segment without a row is free, in an incarnation that no lease can have
reached: each lease is an entry of the log, so none is above the base of incarnations and the applied index.
"""

from __future__ import annotations

from collections import Counter

from awsomefsd.base.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_METADATA, SEGMENT_QUARANTINED, SEGMENT_SEALED
from awsomefsd.meta.api.space import usable_bytes
from awsomefsd.meta.check.check_csi import repair_csi
from awsomefsd.meta.check.repair_data import References
from awsomefsd.meta.check.repair_txn import RepairTxn
from awsomefsd.meta.machine.device_numbers import index_of, last_number, number_of
from awsomefsd.meta.machine.segments import has_rest
from awsomefsd.meta.state import keys, rows

_HELD_STATES = (SEGMENT_LEASED, SEGMENT_QUARANTINED)


class Totals:
    """The repair of sessions, segments, devices and totals."""

    def __init__(self, repairs: RepairTxn, references: References) -> None:
        self.repairs = repairs
        self.references = references
        self.cluster = repairs.cluster()
        self.volumes = {row.volume: row for row in repairs.volumes()}
        self.sessions = repairs.sessions()
        self.devices = {row.device: row for row in repairs.devices()}
        self.segments = references.segments

    def repair(self) -> None:
        self._queue()
        self._exclusive()
        self._rows_of_segments()
        self._leased()
        self.references.finish()
        self._dead()
        self._sessions()
        self._volumes()
        self._indexes()
        self._devices()
        self._counters()
        self._checkpoints()
        self.repairs.save_cluster(self.cluster)
        repair_csi(self.repairs)

    def _checkpoints(self) -> None:
        """Leaves each node the kept segments that are no other node's.  Without its row a segment is nobody's: the next leader takes it."""
        owned: set[int] = set()
        for key, row in list(self.repairs.scan(keys.kind_range(0, keys.CHECKPOINT), rows.CHECKPOINT)):
            kept = [number for number in row.segments if number in self.segments and self.segments[number].state == SEGMENT_METADATA]
            own = [number for number in dict.fromkeys(kept) if number not in owned]
            area = row.area if set(row.area) <= set(own) else []
            if not own or key != keys.checkpoint(row.node):
                self.repairs.overlay.delete(key)
                self.repairs.note(f"checkpoints of node {row.node}", "removed: it keeps no segments")
                continue
            owned |= set(own)
            if self.repairs.correct(f"checkpoints of node {row.node}", row, segments=own, area=area):
                self.repairs.put(key, row, rows.CHECKPOINT)

    def _queue(self) -> None:
        """Queues every deleted volume to be reaped, and removes queue rows for which there is nothing to reap."""
        for key, _ in self.repairs.scan(keys.kind_range(0, keys.REAP), rows.REAP):
            kind, volume, ino, _ = keys.reap_of(key)
            session = self.sessions.get(ino)
            wrong = (
                session is None or not session.ended
                if kind == keys.REAP_SESSION
                else volume not in self.volumes or (kind == keys.REAP_VOLUME and not self.volumes[volume].deleted)
            )
            if wrong or kind not in (keys.REAP_INODE, keys.REAP_TRIM, keys.REAP_SESSION, keys.REAP_VOLUME):
                self.repairs.overlay.delete(key)
                self.repairs.note(f"reap {kind} volume {volume} {ino}", "is not queued any more: there is nothing to reap")
        for row in self.volumes.values():
            if row.deleted and self.repairs.put(keys.reap(keys.REAP_VOLUME, row.volume, 0, 0), rows.ReapRow(), rows.REAP):
                self.repairs.note(f"volume {row.volume}", "deleted: it is queued to be reaped")

    def _live(self, volume: int) -> list[rows.SessionRow]:
        return [row for _, row in sorted(self.sessions.items()) if not row.ended and row.volume == volume]

    def _exclusive(self) -> None:
        """Ends all but one of the sessions that hold a volume whole."""
        for row in self.volumes.values():
            whole = [session for session in self._live(row.volume) if not session.shared]
            keep = next((session for session in whole if session.session == row.holder), whole[-1] if whole else None)
            for session in whole:
                if session is not keep:
                    session.ended = True
                    self.repairs.note(f"session {session.session}", "ends: another one holds its volume")

    # --- segments ------------------------------------------------------------------------------------------------------------------
    def _rows_of_segments(self) -> None:
        """Makes each row belong to a device, and each segment that was leased once have a row."""
        for number, row in sorted(self.segments.items()):
            device = self.repairs.device_of(number)
            if device is None:
                del self.segments[number]
                self.repairs.overlay.delete(keys.segment(number))
                self.repairs.note(f"segment {number}", "removed: no device has it")
                continue
            self.repairs.correct(f"segment {number}", row, device=device.device, index=index_of(device, number))
            if max(row.committed_bytes, row.footer_offset + row.footer_bytes) > device.segment_bytes:
                self.repairs.correct(f"segment {number}", row, committed_bytes=device.segment_bytes, footer_offset=0, footer_bytes=0)
        held = {keys.last_u64(key): keys.first_u64(key) for key, _ in self.repairs.overlay.scan(*keys.kind_range(0, keys.HELD))}
        for device in self.devices.values():
            indexes = [row.index for row in self.segments.values() if row.device == device.device]
            listed = [keys.last_u64(key) & 0xFFFFFFFF for key, _ in self.repairs.overlay.scan(*keys.free_range(device.device))]
            used = [index for number in held if (index := index_of(device, number)) >= 0]
            end = min(max([device.unused_from - 1, *indexes, *listed, *used]) + 1, device.segments)
            for index in range(end):
                self._missing(device, index, held)
            self.repairs.correct(f"device {device.device}", device, unused_from=end)

    def _missing(self, device: rows.DeviceRow, index: int, held: dict[int, int]) -> None:
        number = number_of(device, index)
        session = held.get(number)
        row = self.segments.get(number)
        if row is None:
            reached = self.cluster.incarnation_base + self.cluster.applied_index
            self.segments[number] = row = rows.SegmentRow(number, device.device, index, SEGMENT_FREE, reached)
            self.repairs.note(f"segment {number}", "its row is made again")
            if session == 0:
                row.state = SEGMENT_METADATA
            elif session:
                row.state, row.session = SEGMENT_QUARANTINED, session
        elif session and row.state == SEGMENT_SEALED and not self.repairs.overlay.get(keys.segment(number)):
            row.state, row.session = SEGMENT_QUARANTINED, session  # made again for its extents, and a worker may still write there

    def _leased(self) -> None:
        for number, row in self.segments.items():
            if row.state not in _HELD_STATES:
                continue
            session = self.sessions.get(row.session)
            if session is None:
                self.sessions[row.session] = rows.SessionRow(row.session, 0, 0, 0, "", "", row.worker, ended=True)
                self.repairs.note(f"session {row.session}", "made again as ended: its segments are in quarantine", loss=True)
            if row.state == SEGMENT_LEASED and (session is None or session.ended):
                row.state = SEGMENT_QUARANTINED
                self.repairs.note(f"segment {number}", f"in quarantine: session {row.session} has ended")

    def _dead(self) -> None:
        for number, row in self.segments.items():
            if row.state == SEGMENT_SEALED and not self.references.live[number]:
                row.state, row.freed_index = SEGMENT_FREE, self.cluster.applied_index
                row.committed_bytes = row.footer_offset = row.footer_bytes = 0
                self.repairs.note(f"segment {number}", "is free: nothing in it lives")
            if row.state not in _HELD_STATES:
                row.session = row.worker = 0
            self.repairs.put(keys.segment(number), row, rows.SEGMENT)

    # --- sessions and volumes --------------------------------------------------------------------------------------------------------
    def _sessions(self) -> None:
        kept = {row.session for row in self.segments.values() if row.state in _HELD_STATES}
        orphans = [keys.kind_range(volume, keys.ORPHAN) for volume in self.volumes]
        pinning = {keys.last_u64(key) for span in orphans for key, _ in self.repairs.overlay.scan(*span)}
        ending = self.repairs.ending()
        leased = Counter(row.session for row in self.segments.values() if row.state == SEGMENT_LEASED)
        for number, row in sorted(self.sessions.items()):
            where = f"session {number}"
            self.repairs.correct(where, row, segments_leased=leased[number])
            if row.ended:
                self.repairs.correct(where, row, reserved_bytes=0)
                if number in pinning and number not in ending:
                    self.repairs.put(keys.reap(keys.REAP_SESSION, 0, number, 0), rows.ReapRow(), rows.REAP)
                elif number not in kept and number not in ending:
                    del self.sessions[number]
                    self.repairs.overlay.delete(keys.session(number))
                    self.repairs.note(where, "removed: it has ended, and nothing refers to it")
                    continue
            self.repairs.put(keys.session(number), row, rows.SESSION)

    def _op_logs(self) -> tuple[Counter[int], Counter[int]]:
        """Corrects what mounts were granted.  Returns by volume how many inode numbers the quota counts, and the end of the last grant."""
        live = {row.mount for row in self.sessions.values() if not row.ended}
        granted: Counter[int] = Counter()
        ends: Counter[int] = Counter()
        for key, raw in list(self.repairs.overlay.scan(*keys.kind_range(0, keys.OPLOG))):
            row: rows.OpLogRow = rows.OPLOG.loads(raw)
            mount = keys.last_u64(key)
            bounds = [bound for numbers in row.numbers for bound in numbers]
            if bounds != sorted(set(bounds)):
                self.repairs.correct(f"mount {mount:x}", row, numbers=[])
            most = sum(end - first for first, end in row.numbers) if mount in live else 0
            self.repairs.correct(f"mount {mount:x}", row, reserved=min(row.reserved, most))
            self.repairs.put(key, row, rows.OPLOG)
            granted[row.volume] += row.reserved
            ends[row.volume] = max(ends[row.volume], *bounds, 0)
        return granted, ends

    def _volumes(self) -> None:
        names: dict[str, int] = {}
        granted, ends = self._op_logs()
        for row in sorted(self.volumes.values(), key=lambda row: row.volume):
            where = f"volume {row.volume}"
            live = self._live(row.volume)
            whole = [session.session for session in live if not session.shared]
            self.repairs.correct(
                where, row, holder=whole[0] if whole else 0, sharers=len(live) - len(whole),
                reserved_bytes=sum(session.reserved_bytes for session in live), granted_inodes=granted[row.volume],
                next_ino=max(row.next_ino, ends[row.volume]),
            )  # fmt: skip
            if not row.deleted:
                if row.name in names:
                    self.repairs.correct(where, row, name=f"{row.name}-{row.volume}")
                names[row.name] = row.volume
            self.repairs.put(keys.volume(row.volume), row, rows.VOLUME)
        expected = {keys.volname(name): rows.VOLNAME.dumps(rows.VolumeNameRow(number)) for name, number in names.items()}
        self.repairs.index(keys.kind_range(0, keys.VOLNAME), expected, "names of volumes")
        self.repairs.correct("cluster", self.cluster, volumes=len(names))

    def _has_rest(self, key: bytes) -> bool:
        """Returns True if what a row of a begun segment says can be: one that is lost costs space only, so none is made again."""
        number, index = keys.begun_place(key)
        device = self.devices.get(number)
        row = None if device is None else self.segments.get(number_of(device, index))
        return device is not None and row is not None and row.state == SEGMENT_SEALED and has_rest(row, device.segment_bytes)

    # --- indexes and totals ------------------------------------------------------------------------------------------------------------
    def _indexes(self) -> None:
        holding = (*_HELD_STATES, SEGMENT_METADATA)
        held = {keys.held(row.session, row.segment): rows.MARK for row in self.segments.values() if row.state in holding}
        self.repairs.index(keys.kind_range(0, keys.HELD), held, "segments held by sessions")
        free = {
            keys.free(row.device, row.index): rows.FREE.dumps(rows.FreeRow(row.segment, row.freed_index))
            for row in self.segments.values()
            if row.state == SEGMENT_FREE
        }
        self.repairs.index(keys.kind_range(0, keys.FREE), free, "free list")
        begun = {key: rows.MARK for key, _ in self.repairs.overlay.scan(*keys.kind_range(0, keys.BEGUN)) if self._has_rest(key)}
        self.repairs.index(keys.kind_range(0, keys.BEGUN), begun, "segments that were begun")
        pins, locks, leases = {}, {}, {}
        for number in self.volumes:
            for key, _ in self.repairs.overlay.scan(*keys.kind_range(number, keys.ORPHAN)):
                pins[keys.pinner(keys.last_u64(key), number, keys.first_u64(key))] = rows.MARK
            for key, row in self.repairs.scan(keys.kind_range(number, keys.LOCKS), rows.LOCKS):
                locks.update({keys.locker(lock.session, number, keys.first_u64(key)): rows.MARK for lock in row.locks})
            for key, row in self.repairs.scan(keys.kind_range(number, keys.LEASE), rows.LEASE):
                if row.session:
                    leases[keys.leaser(row.session, number, keys.first_u64(key))] = rows.MARK
        self.repairs.index(keys.kind_range(0, keys.PINNER), pins, "pins of sessions")
        self.repairs.index(keys.kind_range(0, keys.LOCKER), locks, "locks of sessions")
        self.repairs.index(keys.kind_range(0, keys.LEASER), leases, "write leases of sessions")

    def _devices(self) -> None:
        total = free = 0
        for device in self.devices.values():
            taken = sum(row.device == device.device and row.state != SEGMENT_FREE for row in self.segments.values())
            self.repairs.correct(f"device {device.device}", device, segments_free=device.segments - taken)
            self.repairs.put(keys.device(device.device), device, rows.DEVICE)
            total += usable_bytes(device.segment_bytes) * device.segments
            free += usable_bytes(device.segment_bytes) * device.segments_free
        bytes_max = max((device.segment_bytes for device in self.devices.values() if not device.removed), default=0)
        self.repairs.correct("cluster", self.cluster, total_bytes=total, free_bytes=free, segment_bytes_max=bytes_max)

    def _counters(self) -> None:
        cluster, overlay = self.cluster, self.repairs.overlay
        for key, _ in overlay.scan(*keys.kind_range(0, keys.TOMBSTONE)):
            if keys.first_u64(key) > cluster.applied_index:
                overlay.delete(key)
                self.repairs.note(f"tombstone {keys.first_u64(key)}", "removed: of an entry that is not applied")
        self.repairs.correct(
            "cluster", cluster,
            next_session=max([cluster.next_session - 1, *self.sessions]) + 1,
            next_epoch=max([cluster.next_epoch - 1, *(row.epoch for row in self.sessions.values())]) + 1,
            next_volume=max([cluster.next_volume - 1, *self.volumes]) + 1,
            next_device=max([cluster.next_device - 1, *self.devices]) + 1,
            next_segment=max([cluster.next_segment, *(last_number(row) for row in self.devices.values())]),
            sessions=sum(not row.ended for row in self.sessions.values()),
            reserved_bytes=sum(row.reserved_bytes for row in self.sessions.values()),
            readers=sum(1 for _ in overlay.scan(*keys.kind_range(0, keys.READER))),
            reaps=sum(1 for _ in overlay.scan(*keys.kind_range(0, keys.REAP))),
            allocated_bytes=self.references.live[0],
        )  # fmt: skip
