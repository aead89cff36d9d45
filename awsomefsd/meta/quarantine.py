"""Segments in quarantine: whose they are, and that they never starve those who live.  Pure.

A session that expired may have writes on their way, so what it had leased is sealed and set aside until somebody proves that they cannot
land any more (segments.clear_quarantine).  Nobody knows when that will be; so what may be lost to quarantine is bounded before it happens,
when segments are leased:

- nothing is leased ahead of need out of what is promised to other sessions, and SEGMENTS_RESERVED stay free beyond those promises.  A
  session that leases what it has a promise for takes one segment at a time, as long as there is one;
- once one part in QUARANTINE_SHARE of all segments is in quarantine, nobody leases ahead: a node that dies again and again then costs one
  segment a death and mount.

So a promise (and with it every acknowledged write) can always be kept, however many others die; what quarantine takes, new promises miss.
"""

from __future__ import annotations

from awsomefsd.limits import QUARANTINE_SHARE, SEGMENTS_FOR_COLLECTION, SEGMENTS_RESERVED
from awsomefsd.meta import homes, keys, rows
from awsomefsd.meta.device_messages import GetQuarantine, Quarantine, QuarantineInfo
from awsomefsd.meta.messages import Reply
from awsomefsd.meta.state import State
from awsomefsd.types import SEGMENT_QUARANTINED


def _ended(state: State) -> list[rows.SessionRow]:
    return [row for row in state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION) if row.ended]


def _held(state: State, session: int) -> list[rows.SegmentRow]:
    found = [state.segment(keys.last_u64(key)) for key in state.keys_in(keys.held_range(session))]
    return [row for row in found if row is not None and row.state == SEGMENT_QUARANTINED]


def in_quarantine(state: State) -> int:
    """Segments."""
    return sum(len(state.keys_in(keys.held_range(row.session))) for row in _ended(state))


def may_lease(state: State, count: int, free: int, total: int, promised_to_others: int) -> int:
    """How many of `count` a session gets.  Figures in segments, of the devices that its volume may use."""
    if count > 1:
        crowded = in_quarantine(state) * QUARANTINE_SHARE >= total
        ahead = 1 if crowded else free - promised_to_others - SEGMENTS_RESERVED
        count = max(1, min(count, ahead))
    return min(count, free - SEGMENTS_FOR_COLLECTION)


def told(state: State, body: GetQuarantine) -> Reply:
    found = []
    for row in _ended(state):
        held = _held(state, row.session)
        if held:
            size = sum(state.device(one.device).segment_bytes for one in held)
            live = sum(one.live_bytes for one in held)
            found.append(
                QuarantineInfo(
                    row.session, row.mount, row.volume, row.node, row.boot_id, row.worker, row.ended_ms, len(held), size, live
                )
            )  # fmt: skip
    return Quarantine(found, sum(device.segments for device in homes.leasable(state.devices())))
