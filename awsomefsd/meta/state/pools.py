"""The rows of a pool say together which bays count, and what a segment lacks.  Pure; rules, invariants and fsck ask the same questions.

A mirror *counts* if its device is neither lost nor removed: an absent device comes back with all its bytes.  A mirror is *complete* if it
is durable up to the end of its segment.  Two complete mirrors on one host protect as much as one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from awsomefsd.base.types import BAY_COPYING, BAY_MIRROR, SEGMENT_LEASED, SPREAD_DEVICE, Redundancy, SegmentBay
from awsomefsd.meta.state import rows

Devices = Callable[[int], rows.DeviceRow]
Need = tuple[int, int]  # (priority, reasons)

NEED_SHORT, NEED_DRAIN, NEED_POLICY = 1, 4, 8  # reasons; 2 and 16 are kept for bays with wrong bytes and for balance
LAST_MIRROR, FEWER, DRAIN, POLICY = range(4)  # priorities
NEED_PRIORITIES = 5  # with that of balance, which nothing asks for yet


def domain(device: rows.DeviceRow, want: Redundancy) -> str:
    """Returns what no two mirrors may have in common: the host of a device, or the device itself."""
    return f"device {device.device}" if want.spread == SPREAD_DEVICE else device.host


def counts(device: rows.DeviceRow) -> bool:
    return not device.lost and not device.removed


def is_there(device: rows.DeviceRow) -> bool:
    return counts(device) and not device.absent


def is_doubted(bay: SegmentBay, devices: Devices) -> bool:
    """Returns True for a bay that counts, and of which nobody has seen yet that it still holds what this state says (doubt.py)."""
    device = devices(bay.device)
    return counts(device) and bay.index < device.doubted


def doubted(row: rows.SegmentRow, devices: Devices) -> bool:
    """Returns whether a mirror of a segment is doubted: then nothing is copied, and none is replaced."""
    return any(bay.role == BAY_MIRROR and is_doubted(bay, devices) for bay in row.bays)


def seen(row: rows.SegmentRow, devices: Devices) -> list[SegmentBay]:
    """Returns the mirrors for whose sake others may be given up: complete, on a device that is there, and not doubted."""
    return [bay for bay in complete(row) if is_there(devices(bay.device)) and not is_doubted(bay, devices)]


def complete(row: rows.SegmentRow) -> list[SegmentBay]:
    """Returns the mirrors that hold all of the segment; of one that is being written, all."""
    mirrors = [bay for bay in row.bays if bay.role == BAY_MIRROR]
    return mirrors if row.state == SEGMENT_LEASED else [bay for bay in mirrors if bay.durable >= row.end]


def domains(bays: Iterable[SegmentBay], want: Redundancy, devices: Devices) -> set[str]:
    return {domain(device, want) for bay in bays if counts(device := devices(bay.device))}


def lack(row: rows.SegmentRow, devices: Devices) -> Need | None:
    """Returns the most urgent thing that a segment lacks, with all reasons; None if it lacks nothing."""
    assert row.want is not None, "a segment in bays wants nothing"
    whole = complete(row)
    protected = len(domains(whole, row.want, devices))
    missing = row.want.copies - protected
    draining = any(devices(bay.device).draining for bay in row.bays if bay.role == BAY_MIRROR)
    kept = sum(bay.role in (BAY_MIRROR, BAY_COPYING) for bay in row.bays)  # a copy that nobody needs any more has to be found too
    surplus = row.state != SEGMENT_LEASED and kept > row.want.copies
    reasons = NEED_SHORT * (missing > 0) | NEED_DRAIN * draining | NEED_POLICY * (surplus and missing <= 0)
    if not reasons:
        return None
    if missing > 0:
        return (LAST_MIRROR if protected <= 1 else FEWER), reasons
    return (DRAIN if draining else POLICY), reasons


def walks_before(row: rows.SegmentRow, walks: Iterable[rows.WalkRow]) -> bool:
    """Returns True if a walk has still to come to this segment: until then its need may be an old one."""
    for walk in walks:
        if walk.device and any(bay.device == walk.device and bay.index >= walk.position for bay in row.bays):
            return True
        if walk.volume and walk.volume == row.volume and row.segment >= walk.position:
            return True
    return False
