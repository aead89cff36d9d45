"""The check of one mirror of a segment in a pool: its segment server verifies all of the bay, and nothing of it crosses the network.

A mirror with wrong bytes counts no more, where another one has these places right: the segment lacks a mirror from then on, and healing
copies it to another bay, which takes the place of this one (healing.py).  Until then it may give what is wrong in the others.  Where all
are wrong in the same place nothing can be copied, and all stay.

A server names the first places that are wrong, and counts the rest.  Where a list is cut short nobody knows of the places behind it, so
only a mirror without any fault is then known to be right there.

No false alarms: what looks wrong is verified again when the row was asked for again.  A bay that cannot be verified now is looked at in the
next round.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_SEALED, SegmentBay, SegmentInBays
from awsomefsd.io.transport.messages import Verified
from awsomefsd.meta.api.commands import BaysWrong
from awsomefsd.meta.api.messages import GetSegments
from awsomefsd.meta.api.messages.collection import GetPieces, LivePiece
from awsomefsd.meta.client.paths import path_of
from awsomefsd.node.maintenance.segment_check import PAGE, Counted, ScrubFinding

BAY = "bay"  # kind of a finding

log = logging.getLogger(__name__)


class BayCheck:
    """Checks mirrors on devices of this node, one thread at a time.

    `call` asks the metadata service, `propose` has a command made an entry.  `verify(info, bay, end)` has a mirror verified; it blocks, and
    raises OSError where that cannot be done.  `found` and `pace` as in SegmentCheck.
    """

    def __init__(
        self, node: str, call: Callable[[Any], Any], propose: Callable[[Any], Any],
        verify: Callable[[SegmentInBays, SegmentBay, int], Verified], found: Callable[[ScrubFinding], None],
        pace: Callable[[int, float], None], counted: Counted,
    ) -> None:  # fmt: skip
        self._node, self._call, self._propose, self._verify = node, call, propose, verify
        self._found, self._pace, self._counted = found, pace, counted

    def run(self, info: SegmentInBays, own: set[int]) -> None:
        """Verifies the mirrors of a segment on the devices `own`.  Blocks; raises what `call` and `pace` raise."""
        for bay in _whole(info):
            if bay.device in own and info.state == SEGMENT_SEALED:
                self._check(info, bay)

    def _check(self, info: SegmentInBays, bay: SegmentBay) -> None:
        if not self._wrong(info, bay):
            return
        now = self._row_now(info.segment)
        if now is None or now.state != SEGMENT_SEALED or bay not in now.bays:
            self._counted.rechecked += 1
            return
        wrong = self._wrong(now, bay)
        if not wrong:
            self._counted.rechecked += 1
            return
        volume, path, offset = self._file(now, wrong.wrong[0].offset if wrong.wrong else 0)
        first = f"{wrong.wrong[0].what} at {wrong.wrong[0].offset}" if wrong.wrong else "unknown"
        given_up = self._give_up(now, bay, wrong)
        mended = "it counts no more, and another one is copied" if given_up else "no other mirror is known to be right there"
        what = f"a mirror has {wrong.wrong_count} places with wrong bytes ({first}); {mended}"
        where = f"segment {info.segment} device {bay.device} bay {bay.index}"
        self._found(ScrubFinding(BAY, where, what, volume, path, offset, repaired=given_up))

    def _row_now(self, segment: int) -> SegmentInBays | None:
        """Returns the row of a segment; None for one that is gone: its row goes with its last live byte."""
        try:
            (now,) = self._call(GetSegments([segment])).segments
        except FsError as err:
            if err.errno == errno.ENOENT:
                return None
            raise
        assert isinstance(now, SegmentInBays)
        return now

    def _wrong(self, info: SegmentInBays, bay: SegmentBay) -> Verified | None:
        """Returns what a mirror has that is not as it was written; None for a good one, and for one that cannot be verified now."""
        began = time.monotonic()
        try:
            verified = self._verify(info, bay, _end(info))
        except OSError as err:
            log.warning("a mirror cannot be verified now: %s", err, extra={"segment": info.segment, "device": bay.device})
            self._pace(0, began)  # a server that hangs was waited for: the scrub may have to end
            return None
        self._pace(_end(info), began)
        return verified if verified.wrong_count else None

    def _give_up(self, info: SegmentInBays, bad: SegmentBay, wrong: Verified) -> bool:
        """Has a mirror count no more where another one has right what is wrong in it; returns whether it did."""
        for other in _whole(info):
            if other == bad:
                continue
            began = time.monotonic()
            try:
                right = _right_where(wrong, self._verify(info, other, _end(info)))
            except OSError as err:
                log.warning("a mirror cannot be compared now: %s", err, extra={"segment": info.segment, "device": other.device})
                self._pace(0, began)
                continue
            if right:
                return self._propose_wrong(info, bad)
        return False

    def _propose_wrong(self, info: SegmentInBays, bad: SegmentBay) -> bool:
        try:
            return bool(self._propose(BaysWrong(self._node, bad.device, [(bad.index, info.segment)])).number)
        except FsError as err:  # the device is served by another node by now, or is gone
            log.warning("a mirror with wrong bytes cannot be given up: %s", err, extra={"segment": info.segment, "device": bad.device})
            return False

    def _file(self, info: SegmentInBays, offset: int) -> tuple[str, str, int]:
        """Returns volume, path and offset in the file of what lives at an offset of a segment; ("", "", 0) where nothing does."""
        after: tuple[int, int, int, int] | None = (0, 0, 0, 0)
        until = 0
        while after is not None and after[0] <= offset:
            page = self._call(GetPieces(info.segment, *after, PAGE, until))
            for piece in page.pieces:
                if _covers(piece, offset):
                    path = path_of(self._call, piece.volume, piece.ino)
                    return str(piece.volume), path, piece.extent.file_offset
            after, until = page.after, page.until
        return "", "", 0


def _right_where(wrong: Verified, other: Verified) -> bool:
    """Returns whether a mirror, of which `other` was found, is known to have right all that is `wrong` in another one."""
    if not other.wrong_count:
        return True
    named = all(len(one.wrong) == one.wrong_count for one in (wrong, other))
    return named and not {one.offset for one in wrong.wrong} & {one.offset for one in other.wrong}


def _covers(piece: LivePiece, offset: int) -> bool:
    extent = piece.extent
    return bool(extent.frame_offset <= offset < extent.frame_offset + extent.header_bytes + extent.skip + extent.length)


def _end(info: SegmentInBays) -> int:
    return max(info.committed_bytes, info.footer_offset + info.footer_bytes)


def _whole(info: SegmentInBays) -> list[SegmentBay]:
    return [bay for bay in info.bays if bay.role == BAY_MIRROR and bay.durable >= _end(info)]
