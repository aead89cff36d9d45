"""The segment server of a device looks whether its bays hold what the rows say, after the cluster's state has gone back.

meta/machine/doubt.py has the reasons.  The highest bays come first, and what was looked at is an entry, so it goes on where another
process has ended.  Two reads a bay: the first frame, and the last one or the footer.  Nobody writes to these bays meanwhile, for a device
with doubted ones takes nothing new.
"""

from __future__ import annotations

import logging

from awsomefsd.base.limits import BLOCK_BYTES
from awsomefsd.base.types import SegmentInfo
from awsomefsd.io.device.buffers import aligned_buffer
from awsomefsd.io.pool.attach import Ask, counted, row_of
from awsomefsd.io.pool.bay_findings import VERIFY_BUFFER_BYTES, BayMedium, Findings, verify
from awsomefsd.io.pool.bay_walk import BayExtent
from awsomefsd.io.pool.device_bays import DeviceBays
from awsomefsd.meta.api.commands.pools import BaysSeen
from awsomefsd.meta.api.messages.devices import BayInfo, Bays, GetBays

LOOKED_AT_ONCE = 128

log = logging.getLogger(__name__)


class DoubtedBays:
    """Those of a device that `node` has attached with `generation`.  `ask` and `propose` are those of MetadataAccess.  One thread."""

    def __init__(self, device: DeviceBays, node: str, generation: int, ask: Ask, propose: Ask) -> None:
        self._device, self._node, self._generation, self._ask, self._propose = device, node, generation, ask, propose

    def look(self) -> bool:
        """Looks at the next of them; returns whether more are left.  Blocks.  Raises Error where the leader cannot be asked."""
        number = self._device.number
        told: Bays = self._ask(GetBays(number, 0, 1))
        if not told.doubted or told.generation != self._generation:
            return False
        first = max(told.doubted - LOOKED_AT_ONCE, 0)
        part: Bays = self._ask(GetBays(number, first, told.doubted - first))
        wrong = self._wrong(part.bays)
        if self._device.stopped:
            return False
        dropped = self._propose(BaysSeen(self._node, number, self._generation, told.doubted, first, wrong)).number
        if wrong:
            log.warning(
                "bays do not hold what the rows say: the cluster's state is older than the device",
                extra={"device": number, "bays": [index for index, _ in wrong], "count_no_more": dropped},
            )
        return first > 0

    def _wrong(self, bays: list[BayInfo]) -> list[tuple[int, int]]:
        """Returns (index, segment) of the mirrors that lack an end of what should be in them."""
        buffer = aligned_buffer(VERIFY_BUFFER_BYTES)
        wrong = []
        for bay in bays:
            if counted(bay) and (row := row_of(bay, self._ask)) is not None and (what := self._lacks(bay, row, buffer)):
                wrong.append((bay.index, bay.segment))
                log.info("a bay has something else: %s", what, extra={"device": self._device.number, "bay": bay.index})
        return wrong

    def _lacks(self, bay: BayInfo, row: SegmentInfo, buffer: memoryview) -> str:
        """Returns what is wrong at the ends of a bay, "" if nothing is."""
        end = row.footer_offset + row.footer_bytes if row.footer_bytes else row.committed_bytes // BLOCK_BYTES * BLOCK_BYTES
        findings = Findings()
        medium = BayMedium(self._device, bay.index, buffer, findings)
        try:
            found = verify(
                BayExtent(bay.segment, bay.incarnation, end, row.footer_offset if row.footer_bytes else 0), medium.read, findings,
                ends_only=True,
            )  # fmt: skip
        except OSError as err:
            return f"it cannot be read: {err.strerror}"
        return found.wrong[0].what if found.wrong_count else ""
