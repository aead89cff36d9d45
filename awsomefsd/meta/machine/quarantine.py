"""Segments in quarantine belong to ended sessions, and must never starve the living ones.  Pure.

A session that expired may have writes on their way, so what it had leased is in quarantine until it is proved that they cannot
land any more (segments.clear_quarantine).  That may take any time; so what may be lost to quarantine is bounded before it happens,
when segments are leased:

- nothing is leased ahead of need out of what is promised to other sessions, and SEGMENTS_RESERVED stay free beyond those promises.  A
  session that leases what it has a promise for takes one segment at a time, as long as there is one;
- once one part in QUARANTINE_SHARE of all segments is in quarantine, no session leases ahead: a node that dies again and again then costs
  one segment a death and mount.

So a promise (and with it every acknowledged write) can always be kept, however many others die; what quarantine takes, new promises miss.
"""

from __future__ import annotations

from awsomefsd.base.limits import QUARANTINE_SHARE, SEGMENTS_FOR_COLLECTION, SEGMENTS_RESERVED
from awsomefsd.base.types import SEGMENT_QUARANTINED
from awsomefsd.meta.api.messages import Reply
from awsomefsd.meta.api.messages.devices import GetQuarantine, Quarantine, QuarantineInfo
from awsomefsd.meta.machine import locality
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State


def _ended(state: State) -> list[rows.SessionRow]:
    return [row for row in state.scan(keys.kind_range(0, keys.SESSION), rows.SESSION) if row.ended]


def _quarantined(state: State, session: int) -> list[rows.SegmentRow]:
    found = [state.segment(keys.last_u64(key)) for key in state.keys_in(keys.held_range(session))]
    return [row for row in found if row is not None and row.state == SEGMENT_QUARANTINED]


def quarantined_count(state: State) -> int:
    """Returns the number of segments in quarantine."""
    return sum(len(state.keys_in(keys.held_range(row.session))) for row in _ended(state))


def leasable_count(state: State, count: int, free: int, total: int, promised_to_others: int) -> int:
    """Returns how many of `count` segments a session gets.  All figures are segments of the devices that its volume may use."""
    if count > 1:
        crowded = quarantined_count(state) * QUARANTINE_SHARE >= total
        ahead = 1 if crowded else free - promised_to_others - SEGMENTS_RESERVED
        count = max(1, min(count, ahead))
    return min(count, free - SEGMENTS_FOR_COLLECTION)


def listing(state: State, body: GetQuarantine) -> Reply:
    """Answers GetQuarantine: the sessions whose segments are in quarantine."""
    found = []
    for row in _ended(state):
        segments = _quarantined(state, row.session)
        if segments:
            size = sum(state.device(one.device).segment_bytes for one in segments)
            live = sum(one.live_bytes for one in segments)
            found.append(
                QuarantineInfo(
                    row.session, row.mount, row.volume, row.node, row.boot_id, row.worker, row.ended_ms, len(segments), size, live
                )
            )  # fmt: skip
    return Quarantine(found, sum(device.segments for device in locality.leasable(state.devices())))
