"""A writer leaves devices that are being drained: what it has leased there is sealed, as soon as it has nothing to write.

Called by the thread that writes, between two batches, so no write is under way.  While it is busy its segments there fill up by themselves,
and new ones are leased elsewhere.  If the entry is refused the session has ended, or these segments stay leased until it does.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from awsomefsd.base.errors import Error
from awsomefsd.base.types import SegmentProgress
from awsomefsd.io.segment.store import SegmentWrites

LOOK_S = 3.0

log = logging.getLogger("awsomefsd.writer")


class Draining:
    """`report` proposes what was sealed, and raises an Error if that did not succeed.  `draining` is set by anybody."""

    def __init__(
        self, writer: SegmentWrites, draining: Callable[[], set[int]], report: Callable[[list[SegmentProgress]], None],
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._writer = writer
        self._draining = draining
        self._report = report
        self._now_s = now_s
        self._look_s = 0.0

    def poll(self) -> None:
        """Seals what is leased on draining devices.  Asks every LOOK_S seconds, and only while something is leased; blocks for that."""
        if self._now_s() < self._look_s or not self._writer.devices_in_use():
            return
        self._look_s = self._now_s() + LOOK_S
        try:
            draining = self._draining() & self._writer.devices_in_use()
            if not draining:
                return
            progress = self._writer.leave(draining)
            self._report(progress)
            log.info("segments on draining devices are sealed", extra={"devices": sorted(draining), "segments": len(progress)})
        except Error as err:
            log.info("segments on draining devices are not given back now: %s", err)
