"""The attaching of a pool's device by the segment server of its node: from a path to a device that may be served.

In this order, each step relying on the one before:

1. the lock on the device: who served it before, on this machine, has no I/O under way any more;
2. the superblock says that it is that device, of this cluster and era;
3. its generation is not below the one that the log has: a device that was rolled back with its machine, or an older copy of it, is refused
   before anything was written to it;
4. the look at the newest bays: of those whose rows are youngest each has the last frame, or the footer, up to where it counts.  A device
   that was rolled back *and* kept its generation, or that lied about a flush before a power cut, lacks one, and is refused;
5. the superblock gets the next generation, durably;
6. the log takes it (AttachDevice), which refuses one that another copy has had already, a node that is not its home, or a living server.

A crash between 5 and 6 leaves a generation above the log's, from which the next attempt goes on.  The other order was rejected: a crash
in between would leave a device that is refused for ever.

Rows are asked for before the device is read, and only what counts in them is looked for; a bay that was freed meanwhile is passed over.
Bays of the metadata's own segments hold no frames and are not looked at.  After a recovery the rows may be older than the device: then step
4 is left out, and all bays are looked at while the device is served (doubted_bays.py).
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import BAYS_PER_ANSWER_MAX, BLOCK_BYTES, SEGMENT_NEWEST_BAYS
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_LEASED, SEGMENT_SEALED, DeviceInfo, SegmentInfo
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.device.device import BlockDevice, Device
from awsomefsd.io.device.identified import require_identity
from awsomefsd.io.device.superblock import Superblock, write_superblock
from awsomefsd.io.pool.bay_walk import TILE_BYTES_MAX, BayExtent, last_frame, read_footer
from awsomefsd.io.pool.server_state import ROLLED_BACK
from awsomefsd.meta.api.commands.pools import AttachDevice
from awsomefsd.meta.api.messages import GetSegments
from awsomefsd.meta.api.messages.devices import BayInfo, GetBays

log = logging.getLogger(__name__)
Ask = Callable[[Any], Any]


class RolledBack(Refused):
    """The device is an earlier state of itself, or lacks what it had confirmed.  Nothing was written to it."""


def attach(
    path: str, cluster: str, info: DeviceInfo, node: str, ask: Ask, propose: Ask, open_device: Callable[[str], Device] = Device.open
) -> tuple[Device, Superblock]:
    """Attaches device `info` at `path` for `node`; returns it, locked, with its new superblock.

    `ask` and `propose` are those of MetadataAccess.  Blocks for the device and the leader.  Raises RolledBack, what `open_identified`
    raises, Refused where a process of this machine has the device, FsError of the log, and Unavailable.
    """
    device = open_device(path)
    try:
        hit("device.attach.before")
        device.lock()
        hit("device.attach.locked")
        found = require_identity(device, cluster, info.uuid, info.era)
        hit("device.attach.identified")
        generation, newest = newest_bays(info.device, ask)
        if found.generation < generation:
            raise RolledBack(
                f"{ROLLED_BACK}{path} has generation {found.generation}, and device {info.device} was attached with {generation};"
                " this is an older copy of it, or it was restored from an image"
            )
        hit("device.attach.compared")
        look_at_newest(device, found, newest, ask)
        hit("device.attach.looked")
        attached = replace(found, generation=found.generation + 1)
        write_superblock(device, attached)
        hit("device.attach.raised")
        propose(AttachDevice(info.device, attached.generation, node))
        hit("device.attach.after")
    except BaseException:
        device.close()
        raise
    log.info("attached", extra={"device": info.device, "path": path, "generation": attached.generation})
    return device, attached


def newest_bays(device: int, ask: Ask) -> tuple[int, list[BayInfo]]:
    """Returns the generation of a device as the log has it, and the bays in which something counts, the newest SEGMENT_NEWEST_BAYS; none
    while some are doubted.

    Raises FsError(ENOENT) for what is no device of a pool, and Unavailable.
    """
    newest: list[tuple[int, int, BayInfo]] = []
    first, generation = 0, 0
    while first >= 0:
        part = ask(GetBays(device, first, BAYS_PER_ANSWER_MAX))
        found = [(bay.entry, bay.index, bay) for bay in part.bays if counted(bay) and not part.doubted]
        newest = heapq.nlargest(SEGMENT_NEWEST_BAYS, [*newest, *found])
        first, generation = part.next, part.generation
    return generation, [bay for _, _, bay in newest]


def counted(bay: BayInfo) -> bool:
    """Returns whether something counts in a bay, as far as its row goes."""
    return bay.role == BAY_MIRROR and bay.durable > 0 and bay.state in (SEGMENT_LEASED, SEGMENT_SEALED)


def look_at_newest(device: BlockDevice, superblock: Superblock, newest: list[BayInfo], ask: Ask) -> None:
    """Raises RolledBack if one of these bays lacks the last of what counts in it; OSError if the device cannot be read."""
    buffer = aligned_buffer(TILE_BYTES_MAX)
    for bay in newest:
        start = superblock.first_segment_offset + bay.index * superblock.segment_bytes
        why = _lacks(device, start, bay, row_of(bay, ask), buffer)
        if why:
            raise RolledBack(
                f"{ROLLED_BACK}bay {bay.index} of {device.path} lacks what segment {bay.segment} had there up to {bay.durable} ({why});"
                " the device lost confirmed writes, or was restored from an image"
            )


def row_of(bay: BayInfo, ask: Ask) -> SegmentInfo | None:
    """Returns the row of a bay's segment; None if it was freed since."""
    try:
        info: SegmentInfo = ask(GetSegments([bay.segment])).segments[0]
    except FsError:
        return None
    return info if info.incarnation == bay.incarnation else None


def _lacks(device: BlockDevice, start: int, bay: BayInfo, row: SegmentInfo | None, buffer: memoryview) -> str:
    """Returns what is wrong at the end of a bay, "" if nothing is."""
    if row is None:
        return ""

    def read(offset: int, length: int) -> memoryview:
        low, high = offset // BLOCK_BYTES * BLOCK_BYTES, -(-(offset + length) // BLOCK_BYTES) * BLOCK_BYTES
        into = buffer[: high - low] if high - low <= len(buffer) else aligned_buffer(high - low)
        device.pread_into(into, start + low)
        return into[offset - low : offset - low + length]

    footer_end = row.footer_offset + row.footer_bytes
    if row.footer_bytes and bay.durable >= footer_end:
        return read_footer(BayExtent(bay.segment, bay.incarnation, footer_end, row.footer_offset), read)[1]
    end = min(bay.durable, row.committed_bytes) // BLOCK_BYTES * BLOCK_BYTES
    low = max(0, end - TILE_BYTES_MAX)
    return last_frame(BayExtent(bay.segment, bay.incarnation, end), read(low, end - low)) if end else ""
