"""The damage in files that a node knows of: each record of io/file/damaged_reads.py is looked at until it is over.

A program's read met wrong bytes, or scrub did.  The first look checks the whole segments of that place, since damage seldom comes alone,
and records what else is wrong in them.  From then on a record stays until its file is gone, the place was rewritten, or its bytes are
right again; so the health code that names the file neither flaps nor outlives the damage.

The layout is asked for at each look, and the device is read only where the layout has changed, or after a pause that doubles: damage that
stays costs next to nothing.  What cannot be asked for or reached now is looked at later.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Struct

from awsomefsd.base.errors import Corrupt, FormatTooNew, FsError, Unavailable
from awsomefsd.base.types import Extent, SegmentInfo
from awsomefsd.io.device.buffers import BOUNCE_BYTES, aligned_buffer
from awsomefsd.io.device.device import BlockDevice
from awsomefsd.io.file.damaged_reads import SCRUB, DamagedRead, DamagedReads
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.extent_map import cut
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.meta.api.messages import GetLayout
from awsomefsd.node.maintenance.segment_check import DATA, ScrubFinding, SegmentCheck

LOOK_MS = 5_000
READ_AGAIN_S_MAX = 600.0

log = logging.getLogger(__name__)


class _Known(Struct):
    """What the last look at a record found: its extents, and when the device is read again although they are the same."""

    extents: list[Extent]
    pause_s: float
    again_s: float


class _Counts:
    extents = rechecked = 0


class Damage:
    """The records of this node.  One thread calls `poll`; `shown` is for any thread.

    `ask` asks the metadata service, `devices` opens a device by its number, `pace` as in SegmentCheck.
    """

    def __init__(
        self,
        records: DamagedReads,
        ask: Callable[[Any], Any],
        devices: Mapping[int, BlockDevice],
        pace: Callable[[int, float], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._records = records
        self._ask = ask
        self._devices = devices
        self._pace = pace
        self._now_s = now_s
        self._known: dict[DamagedRead, _Known] = {}
        self._checked: set[tuple[int, int]] = set()  # (segment, incarnation) that were checked since the daemon started

    def shown(self) -> list[DamagedRead]:
        """Returns what is damaged now, as far as this node knows.  Blocks for the disk."""
        try:
            return self._records.all()
        except OSError as err:  # `status` has more to tell
            log.error("the records of wrong bytes cannot be read: %s", err)
            return []

    def poll(self) -> None:
        """Looks at every record once.  Blocks for service and devices; raises Error if no leader answers, OSError of the records' disk."""
        records = self._records.all()
        self._known = {one: known for one, known in self._known.items() if one in records}
        for one in records:
            if self._over(one):
                self._records.remove(one)
                log.info("a place with wrong bytes is right again, rewritten or gone", extra=_place(one))

    def _over(self, one: DamagedRead) -> bool:
        try:
            layout = self._ask(GetLayout(one.volume, one.ino, one.offset, one.offset + one.length))
        except FsError as err:
            if err.errno == errno.ENOENT:
                return True  # file or volume is gone
            if err.errno == errno.EIO:
                return False  # its rows are damaged
            raise
        end = min(one.offset + one.length, layout.end)
        extents = [part for extent in layout.extents if (part := _inside(extent, one.offset, end)) is not None]
        known = self._known.get(one)
        if known is not None and known.extents == extents and self._now_s() < known.again_s:
            return False
        infos = {info.segment: info for info in layout.segments}
        if all(self._good(one, extent, infos) for extent in extents):
            return end == one.offset + one.length
        pause_s = LOOK_MS / 1_000 if known is None or known.extents != extents else min(2 * known.pause_s, READ_AGAIN_S_MAX)
        self._known[one] = _Known(extents, pause_s, self._now_s() + pause_s)
        for extent in extents:
            if extent.segment in infos:
                self._check(infos[extent.segment], one)
        return False

    def _good(self, one: DamagedRead, extent: Extent, infos: Mapping[int, SegmentInfo]) -> bool:
        """Returns True if these bytes can be read and are right.  What cannot be reached is not known to be."""
        reader = SegmentReader(self._devices, infos.__getitem__, ChecksumCache())
        for skip in range(0, extent.length, BOUNCE_BYTES // 2):
            length = min(BOUNCE_BYTES // 2, extent.length - skip)
            began = time.monotonic()
            try:
                reader.read(extent, one.volume, one.ino, skip, length, aligned_buffer(length))
            except (Corrupt, FormatTooNew, Unavailable, OSError):
                return False
            finally:
                self._pace(length, began)
        return True

    def _check(self, info: SegmentInfo, why: DamagedRead) -> None:
        key = (info.segment, info.incarnation)
        device = self._devices.get(info.device)
        if device is None or key in self._checked:
            return
        log.warning("a segment with wrong bytes is checked", extra={"segment": info.segment, **_place(why)})
        try:
            SegmentCheck(self._ask, lambda found: self._found(found, why), self._pace, _Counts()).run(device, info)
        except FsError as err:
            if err.errno not in (errno.EPERM, errno.EACCES):
                raise
            log.info("this node may not check segments; a node of the cluster does: %s", err)
        self._checked.add(key)

    def _found(self, found: ScrubFinding, why: DamagedRead) -> None:
        log.error("wrong bytes beside others: %s", found.what, extra={"kind": found.kind, "path": found.path, "offset": found.offset})
        if found.kind == DATA:
            record(self._records, found, why.volume_name if found.volume == str(why.volume) else "")


def record(records: DamagedReads, found: ScrubFinding, volume_name: str = "") -> bool:
    """Records a finding of kind DATA; False if there are too many.  A place that is known from a read is not recorded again."""
    made = DamagedRead(
        int(found.volume), found.ino, found.offset, found.length, volume_name, found.path, found.what, time.time_ns(), SCRUB
    )  # fmt: skip
    same = (one for one in records.all() if (one.volume, one.ino) == (made.volume, made.ino))
    if any(one.offset < made.offset + made.length and made.offset < one.offset + one.length for one in same):
        return True
    return records.add(made)


def _inside(extent: Extent, start: int, end: int) -> Extent | None:
    return cut(extent, start, end) if extent.file_offset < end and start < extent.file_offset + extent.length else None


def _place(one: DamagedRead) -> dict[str, object]:
    return {"volume": one.volume_name or one.volume, "path": one.path, "offset": one.offset}
