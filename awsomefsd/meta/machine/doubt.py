"""No bay is taken for what its row says after the state has gone back, and the disks have not, before its server has looked at it.

A recovery from a device, a backup, or one voter of several begins with an older state.  Its rows name bays that were trimmed and given to
other segments since.  If those counted, the surplus of a segment could be dropped for the sake of mirrors that are gone, and the only good
one with it.  So Recover marks every device of a pool: `doubted` of its row is the index below which bays are doubted, at first all that
were ever used.  Bays above it were not used in this state, and no row names them.

    Recover -> doubted = unused_from, no server -> AttachDevice -> BaysSeen, from the highest down -> doubted = 0

Meanwhile mirrors are read from as ever, for each frame says what it is; a segment with a doubted mirror is neither copied nor given one up,
and a device with doubted bays takes nothing new.  The server reads the first frame of each mirror, and the last one or the footer.  A bay
that was given away has another segment's frame at the front from its first write on, or zeros where it was discarded; one whose bytes were
lost lacks the end.  A mirror that is wrong counts no more (`durable` 0), if another one does: so the last stays, whatever it is worth, and
healing makes of all of them what there is.  A bay that was kept for a copy goes: its server may remember that of another time.

A device that is lost has no say: its mirrors count no more, and those of others are not held up by it.  When it is back they are doubted.
Needs stay as they were, and change with what is found: doubt is no loss.
"""

from __future__ import annotations

import errno
from itertools import takewhile

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import BAY_COPYING, BAY_STALE, SEGMENT_SEALED, SegmentBay
from awsomefsd.meta.api.commands import BaysSeen, Entry
from awsomefsd.meta.api.messages import Made, Reply
from awsomefsd.meta.machine import bays
from awsomefsd.meta.state import keys, pools, rows
from awsomefsd.meta.state.rows_cache import State


def begin(state: State) -> None:
    """Doubts all bays of all pools, and takes the devices from their servers, which attach them anew: the state is an older one."""
    for device in state.devices():
        if device.pool and not device.removed:
            device.doubted, device.server = device.unused_from, ""
            state.save_device(device)


def seen(state: State, entry: Entry, command: BaysSeen) -> Reply:
    """Ends the doubt about some bays of a device.  Answered by Made(how many mirrors count no more)."""
    device = bays.pool_device(state, command.device)
    if (device.server, device.generation) != (command.node, command.generation):
        raise FsError(errno.ESTALE, f"device {device.device} is served by node {device.server or 'nobody'}, or was attached again")
    if device.doubted != command.doubted:
        raise FsError(errno.ESTALE, f"bays of device {device.device} are doubted below {device.doubted}, and not {command.doubted}")
    count = command.doubted - command.first
    if command.first < 0 or not 0 < count <= bays.BAYS_PER_ENTRY_MAX or len(command.wrong) > count:
        raise FsError(errno.EINVAL, f"one entry is about 1 to {bays.BAYS_PER_ENTRY_MAX} bays")
    device.doubted = command.first
    state.save_device(device)
    return Made(sum(_judge(state, entry, device.device, index, command) for index in _used(state, command)))


def _used(state: State, command: BaysSeen) -> list[int]:
    indexes = (keys.bay_place(key)[1] for key, _ in state.txn.scan(*keys.bays_range(command.device, command.first)))
    return list(takewhile(lambda index: index < command.doubted, indexes))


def _judge(state: State, entry: Entry, device: int, index: int, command: BaysSeen) -> bool:
    """Takes up what was found in one bay; returns whether it was a mirror that counts no more."""
    held = state.read(keys.bay(device, index), rows.BAY)
    assert isinstance(held, rows.BayRow)
    row = state.segment(held.segment) if held.role != BAY_STALE else None
    bay = bays.named(row, device, index) if row is not None else None
    if row is None or bay is None or row.state != SEGMENT_SEALED:
        return False
    is_wrong = (index, row.segment) in command.wrong and bay in pools.complete(row) and _has_other(state, row, bay)
    if bay.role == BAY_COPYING:
        bays.make_stale(state, row, bay, entry.index)
    elif is_wrong:
        row.bays = [SegmentBay(one.device, one.index, 0, one.role) if one == bay else one for one in row.bays]
    else:
        return False
    bays.note_need(state, row)
    return is_wrong


def _has_other(state: State, row: rows.SegmentRow, bay: SegmentBay) -> bool:
    return any(one != bay and pools.counts(state.device(one.device)) for one in pools.complete(row))
