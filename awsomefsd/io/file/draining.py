"""The writer of a mount leaves devices that are being drained or absent: it seals its leased segments there, as soon as it writes nothing.

A writer that has been at rest for a while seals all its segments, so that other mounts fill them: small volumes do not keep one each.  It
also gives back what was leased while the session was replaced, which the writer does not use.

The thread that flushes calls it between two batches, and holds the lock of the one that writes through: a segment is sealed only when all
that was written to it is decided.  While a thread is busy its segments fill up by themselves, and new ones are leased elsewhere.  What a
refused entry reported is reported again with the next commit, or by the next rest.  Where ended segments are all that there is, that rest
is due at once: a mount that cannot write (it is leased segments on a device that its node does not see) has no next commit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.types import SegmentProgress
from awsomefsd.io.segment.store import SegmentWrites
from awsomefsd.io.segment.writer import Written

LOOK_S = 3.0
REST_S = 30.0  # who writes again sooner keeps the segment: sealing costs a footer and an entry, leasing another entry

log = logging.getLogger("awsomefsd.writer")


class Draining:
    """The check for devices to leave, and for rest.

    `to_leave` returns the numbers of those that are being drained, and of the absent ones; `report` proposes what was sealed.
    Both raise an Error if that fails.
    """

    def __init__(
        self, writer: SegmentWrites, to_leave: Callable[[], tuple[set[int], set[int]]], report: Callable[[list[SegmentProgress]], None],
        now_s: Callable[[], float] = time.monotonic, undecided: threading.Lock | None = None,
    ) -> None:  # fmt: skip
        """`undecided` is held by others while something is written and not decided."""
        self._writer = writer
        self._to_leave = to_leave
        self._report = report
        self._now_s = now_s
        self._undecided = undecided or threading.Lock()
        self._doubtful: list[SegmentProgress] = []  # the session may hold them or not; offered until the machine has said so
        self._look_s = 0.0
        self._rest_s = now_s() + REST_S

    def poll(self) -> None:
        """Seals the segments that are leased on devices to leave; nothing is written to absent ones.  Seals all of a writer at rest.

        Asks every LOOK_S seconds, and only while something is leased or still to be reported; blocks for that.  Raises no Error.
        """
        if self._now_s() < self._look_s or not (self._writer.devices_in_use() or self._writer.owes_report() or self._doubtful):
            return
        self._look_s = self._now_s() + LOOK_S
        self._give_back()
        try:
            if self._now_s() >= self._rest_s or (self._writer.owes_report() and not self._writer.devices_in_use()):
                self._rest_s = self._now_s() + REST_S
                if progress := self._seal(self._writer.rest):
                    log.info("nothing was written for a while; the segments are sealed", extra={"segments": len(progress)})
            draining, absent = self._to_leave()
            leaving = (draining | absent) & self._writer.devices_in_use()
            if not leaving:
                return
            if progress := self._seal(lambda: self._writer.leave(leaving, absent)):
                log.info("segments on draining or absent devices are sealed", extra={"devices": sorted(leaving), "segments": len(progress)})
        except Error as err:
            log.info("sealed segments cannot be given back now: %s", err)

    def _seal(self, seal: Callable[[], Written]) -> list[SegmentProgress]:
        """Seals and reports; nothing while a write is not decided, whose entry would find its segment given back."""
        if not self._undecided.acquire(blocking=False):
            return []
        try:
            sealed = seal()
            if sealed.progress:
                try:
                    self._report(sealed.progress)
                except Error:
                    self._writer.report_again(sealed)
                    raise
            return sealed.progress
        finally:
            self._undecided.release()

    def _give_back(self) -> None:
        offered, self._doubtful = self._doubtful + self._writer.take_in_doubt(), []
        for step in offered:
            try:
                self._report([step])
            except FsError as err:  # mostly: it was the old session's, and went with it
                log.info("segment %d, leased while the session was replaced, is not given back: %s", step.segment, err)
            except Error as err:  # that says nothing of the segment
                log.info("segment %d, leased while the session was replaced, cannot be given back now: %s", step.segment, err)
                self._doubtful.append(step)
