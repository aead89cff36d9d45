"""Last step of a repair: sessions, segments, devices, and every total, index and counter of the cluster.

A session whose row is gone may still have a living worker that writes: what it had leased is put into quarantine under an ended session of
the same number, as after an expiry, and freed by the same proof.  A segment without a row is free, in an incarnation that no lease can have
reached: each lease is an entry of the log, so none is above the base of incarnations and the applied index.
"""

from __future__ import annotations

from collections import Counter

from awsomefsd.meta import keys, rows
from awsomefsd.meta.check_csi import mend_csi
from awsomefsd.meta.device_numbers import index_of, last_number, number_of
from awsomefsd.meta.mend_bytes import Places
from awsomefsd.meta.mender import Mender
from awsomefsd.meta.segments import usable_bytes
from awsomefsd.types import SEGMENT_FREE, SEGMENT_LEASED, SEGMENT_METADATA, SEGMENT_QUARANTINED, SEGMENT_SEALED

_HELD_STATES = (SEGMENT_LEASED, SEGMENT_QUARANTINED)


class Holders:
    def __init__(self, mender: Mender, places: Places) -> None:
        self.mender = mender
        self.places = places
        self.cluster = mender.cluster()
        self.volumes = {row.volume: row for row in mender.volumes()}
        self.sessions = mender.sessions()
        self.devices = {row.device: row for row in mender.devices()}
        self.segments = places.segments

    def mend(self) -> None:
        self._queue()
        self._exclusive()
        self._rows_of_segments()
        self._leased()
        self.places.finish()
        self._dead()
        self._sessions()
        self._volumes()
        self._indexes()
        self._devices()
        self._counters()
        self.mender.save_cluster(self.cluster)
        mend_csi(self.mender)

    def _queue(self) -> None:
        """Only what can be reaped is queued, and every deleted volume is."""
        for key, _ in self.mender.scan(keys.kind_range(0, keys.REAP), rows.REAP):
            kind, volume, ino, _ = keys.reap_of(key)
            session = self.sessions.get(ino)
            wrong = (
                session is None or not session.ended
                if kind == keys.REAP_SESSION
                else volume not in self.volumes or (kind == keys.REAP_VOLUME and not self.volumes[volume].deleted)
            )
            if wrong or kind not in (keys.REAP_INODE, keys.REAP_TRIM, keys.REAP_SESSION, keys.REAP_VOLUME):
                self.mender.txn.delete(key)
                self.mender.did(f"reap {kind} volume {volume} {ino}", "is queued no more: there is nothing to reap")
        for row in self.volumes.values():
            if row.deleted and self.mender.put(keys.reap(keys.REAP_VOLUME, row.volume, 0, 0), rows.ReapRow(), rows.REAP):
                self.mender.did(f"volume {row.volume}", "deleted: it is queued to be reaped")

    def _live(self, volume: int) -> list[rows.SessionRow]:
        return [row for _, row in sorted(self.sessions.items()) if not row.ended and row.volume == volume]

    def _exclusive(self) -> None:
        """One session holds a volume whole, or several share it."""
        for row in self.volumes.values():
            whole = [session for session in self._live(row.volume) if not session.shared]
            keep = next((session for session in whole if session.session == row.holder), whole[-1] if whole else None)
            for session in whole:
                if session is not keep:
                    session.ended = True
                    self.mender.did(f"session {session.session}", "ends: another one holds its volume")

    # --- segments ------------------------------------------------------------------------------------------------------------------
    def _rows_of_segments(self) -> None:
        """Each row belongs to a device, and each that was leased once has one."""
        for number, row in sorted(self.segments.items()):
            device = self.mender.device_of(number)
            if device is None:
                del self.segments[number]
                self.mender.txn.delete(keys.segment(number))
                self.mender.did(f"segment {number}", "removed: no device has it")
                continue
            self.mender.correct(f"segment {number}", row, device=device.device, index=index_of(device, number))
            if max(row.committed_bytes, row.footer_offset + row.footer_bytes) > device.segment_bytes:
                self.mender.correct(f"segment {number}", row, committed_bytes=device.segment_bytes, footer_offset=0, footer_bytes=0)
        held = {keys.last_u64(key): keys.first_u64(key) for key, _ in self.mender.txn.scan(*keys.kind_range(0, keys.HELD))}
        for device in self.devices.values():
            indexes = [row.index for row in self.segments.values() if row.device == device.device]
            listed = [keys.last_u64(key) & 0xFFFFFFFF for key, _ in self.mender.txn.scan(*keys.free_range(device.device))]
            used = [index for number in held if (index := index_of(device, number)) >= 0]
            end = min(max([device.unused_from - 1, *indexes, *listed, *used]) + 1, device.segments)
            for index in range(end):
                self._missing(device, index, held)
            self.mender.correct(f"device {device.device}", device, unused_from=end)

    def _missing(self, device: rows.DeviceRow, index: int, held: dict[int, int]) -> None:
        number = number_of(device, index)
        session = held.get(number)
        row = self.segments.get(number)
        if row is None:
            reached = self.cluster.incarnation_base + self.cluster.applied_index
            self.segments[number] = row = rows.SegmentRow(number, device.device, index, SEGMENT_FREE, reached)
            self.mender.did(f"segment {number}", "its row is made anew")
            if session == 0:
                row.state = SEGMENT_METADATA
            elif session:
                row.state, row.session = SEGMENT_QUARANTINED, session
        elif session and row.state == SEGMENT_SEALED and not self.mender.txn.get(keys.segment(number)):
            row.state, row.session = SEGMENT_QUARANTINED, session  # made anew for its extents, and somebody may still write there

    def _leased(self) -> None:
        for number, row in self.segments.items():
            if row.state not in _HELD_STATES:
                continue
            session = self.sessions.get(row.session)
            if session is None:
                self.sessions[row.session] = rows.SessionRow(row.session, 0, 0, 0, "", "", row.worker, ended=True)
                self.mender.did(f"session {row.session}", "made anew as ended: its segments are in quarantine", loss=True)
            if row.state == SEGMENT_LEASED and (session is None or session.ended):
                row.state = SEGMENT_QUARANTINED
                self.mender.did(f"segment {number}", f"in quarantine: session {row.session} has ended")

    def _dead(self) -> None:
        for number, row in self.segments.items():
            if row.state == SEGMENT_SEALED and not self.places.live[number]:
                row.state, row.freed_index = SEGMENT_FREE, self.cluster.applied_index
                row.committed_bytes = row.footer_offset = row.footer_bytes = 0
                self.mender.did(f"segment {number}", "is free: nothing in it lives")
            if row.state not in _HELD_STATES:
                row.session = row.worker = 0
            self.mender.put(keys.segment(number), row, rows.SEGMENT)

    # --- sessions and volumes --------------------------------------------------------------------------------------------------------
    def _sessions(self) -> None:
        kept = {row.session for row in self.segments.values() if row.state in _HELD_STATES}
        pinning = {keys.last_u64(key) for volume in self.volumes for key, _ in self.mender.txn.scan(*keys.kind_range(volume, keys.ORPHAN))}
        ending = self.mender.ending()
        leased = Counter(row.session for row in self.segments.values() if row.state == SEGMENT_LEASED)
        for number, row in sorted(self.sessions.items()):
            where = f"session {number}"
            self.mender.correct(where, row, segments_leased=leased[number])
            if row.ended:
                self.mender.correct(where, row, reserved_bytes=0)
                if number in pinning and number not in ending:
                    self.mender.put(keys.reap(keys.REAP_SESSION, 0, number, 0), rows.ReapRow(), rows.REAP)
                elif number not in kept and number not in ending:
                    del self.sessions[number]
                    self.mender.txn.delete(keys.session(number))
                    self.mender.did(where, "removed: it has ended, and nothing refers to it")
                    continue
            self.mender.put(keys.session(number), row, rows.SESSION)

    def _volumes(self) -> None:
        names: dict[str, int] = {}
        for row in sorted(self.volumes.values(), key=lambda row: row.volume):
            where = f"volume {row.volume}"
            live = self._live(row.volume)
            whole = [session.session for session in live if not session.shared]
            self.mender.correct(
                where, row, holder=whole[0] if whole else 0, sharers=len(live) - len(whole),
                reserved_bytes=sum(session.reserved_bytes for session in live),
            )  # fmt: skip
            if not row.deleted:
                if row.name in names:
                    self.mender.correct(where, row, name=f"{row.name}-{row.volume}")
                names[row.name] = row.volume
            self.mender.put(keys.volume(row.volume), row, rows.VOLUME)
        expected = {keys.volname(name): rows.VOLNAME.dumps(rows.VolumeNameRow(number)) for name, number in names.items()}
        self.mender.index(keys.kind_range(0, keys.VOLNAME), expected, "names of volumes")
        self.mender.correct("cluster", self.cluster, volumes=len(names))

    # --- indexes and totals ------------------------------------------------------------------------------------------------------------
    def _indexes(self) -> None:
        holding = (*_HELD_STATES, SEGMENT_METADATA)
        held = {keys.held(row.session, row.segment): rows.MARK for row in self.segments.values() if row.state in holding}
        self.mender.index(keys.kind_range(0, keys.HELD), held, "segments held by sessions")
        free = {
            keys.free(row.device, row.index): rows.FREE.dumps(rows.FreeRow(row.segment, row.freed_index))
            for row in self.segments.values()
            if row.state == SEGMENT_FREE
        }
        self.mender.index(keys.kind_range(0, keys.FREE), free, "free list")
        pins, locks, leases = {}, {}, {}
        for number in self.volumes:
            for key, _ in self.mender.txn.scan(*keys.kind_range(number, keys.ORPHAN)):
                pins[keys.pinner(keys.last_u64(key), number, keys.first_u64(key))] = rows.MARK
            for key, row in self.mender.scan(keys.kind_range(number, keys.LOCKS), rows.LOCKS):
                locks.update({keys.locker(lock.session, number, keys.first_u64(key)): rows.MARK for lock in row.locks})
            for key, row in self.mender.scan(keys.kind_range(number, keys.LEASE), rows.LEASE):
                if row.session:
                    leases[keys.leaser(row.session, number, keys.first_u64(key))] = rows.MARK
        self.mender.index(keys.kind_range(0, keys.PINNER), pins, "pins of sessions")
        self.mender.index(keys.kind_range(0, keys.LOCKER), locks, "locks of sessions")
        self.mender.index(keys.kind_range(0, keys.LEASER), leases, "write leases of sessions")

    def _devices(self) -> None:
        total = free = 0
        for device in self.devices.values():
            taken = sum(row.device == device.device and row.state != SEGMENT_FREE for row in self.segments.values())
            self.mender.correct(f"device {device.device}", device, segments_free=device.segments - taken)
            self.mender.put(keys.device(device.device), device, rows.DEVICE)
            total += usable_bytes(device.segment_bytes) * device.segments
            free += usable_bytes(device.segment_bytes) * device.segments_free
        bytes_max = max((device.segment_bytes for device in self.devices.values() if not device.removed), default=0)
        self.mender.correct("cluster", self.cluster, total_bytes=total, free_bytes=free, segment_bytes_max=bytes_max)

    def _counters(self) -> None:
        cluster, txn = self.cluster, self.mender.txn
        for key, _ in txn.scan(*keys.kind_range(0, keys.TOMBSTONE)):
            if keys.first_u64(key) > cluster.applied_index:
                txn.delete(key)
                self.mender.did(f"tombstone {keys.first_u64(key)}", "removed: of an entry that is not applied")
        self.mender.correct(
            "cluster", cluster,
            next_session=max([cluster.next_session - 1, *self.sessions]) + 1,
            next_epoch=max([cluster.next_epoch - 1, *(row.epoch for row in self.sessions.values())]) + 1,
            next_volume=max([cluster.next_volume - 1, *self.volumes]) + 1,
            next_device=max([cluster.next_device - 1, *self.devices]) + 1,
            next_segment=max([cluster.next_segment, *(last_number(row) for row in self.devices.values())]),
            sessions=sum(not row.ended for row in self.sessions.values()),
            reserved_bytes=sum(row.reserved_bytes for row in self.sessions.values()),
            readers=sum(1 for _ in txn.scan(*keys.kind_range(0, keys.READER))),
            reaps=sum(1 for _ in txn.scan(*keys.kind_range(0, keys.REAP))),
            allocated_bytes=self.places.live[0],
        )  # fmt: skip
