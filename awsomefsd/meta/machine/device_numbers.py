"""Segments of a device have numbers that are the cluster's.  Pure.

A device gets a run of them when it is added, and another one whenever it grows, since the numbers behind the
first run may be another device's.  `grown` keeps (index on the device, number) of the first segment of each later run.
"""

from __future__ import annotations

from awsomefsd.meta.state.rows import DeviceRow


def number_of(device: DeviceRow, index: int) -> int:
    """Returns the number of the segment at `index` on the device."""
    assert not device.pool, "bays have no numbers"
    for first, number in reversed(device.grown):
        if index >= first:
            return number + index - first
    return device.first_segment + index


def index_of(device: DeviceRow, number: int) -> int:
    """Returns the index of a segment on the device; -1 if the device has no such segment."""
    if device.pool:
        return -1
    runs = [(0, device.first_segment), *device.grown]
    ends = [first for first, _ in device.grown] + [device.segments]
    for (first, start), end in zip(runs, ends, strict=True):
        if start <= number < start + end - first:
            return first + number - start
    return -1


def last_number(device: DeviceRow) -> int:
    """Returns one more than the highest number of a device's segments."""
    return number_of(device, device.segments - 1) + 1 if device.segments and not device.pool else device.first_segment
