"""The plan of a collection that nobody carries out: what it would free now by the collector's own choice, and why it leaves the rest.

The sets are what `Candidates.choose` chooses again and again, each time without those it has chosen before.  What a collection of them
writes is no candidate here, though a real one may pack it with others: so it gives back at least what the plan says.  The rest is said by
device and reason.  All is read from the metadata, page after page, and may be old when it is told: mounts go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from awsomefsd.base.types import SEGMENT_LEASED, SEGMENT_METADATA, SEGMENT_QUARANTINED, SegmentInfo
from awsomefsd.io.collect.candidates import PAGE_ROWS, Candidates
from awsomefsd.io.collect.collect_plan import dead_bytes
from awsomefsd.io.collect.collected_pool import volume_of
from awsomefsd.meta.api.messages import GetDevices
from awsomefsd.meta.api.messages.scrub import GetLiveSegments
from awsomefsd.meta.api.space import usable_bytes

# How a set is chosen.
BY_ITSELF, WHEN_ORDERED, DRAIN, DAMAGED = "by itself", "when ordered", "drain", "damaged"
# Why a segment is left.
OPEN, QUARANTINE, METADATA, UNREADABLE, ABSENT, ELSEWHERE, NEW, THRESHOLD, NO_GAIN, LATER = (
    "open", "quarantine", "metadata", "unreadable", "absent", "elsewhere", "new", "threshold", "no gain", "later",
)  # fmt: skip

SETS_MAX = 64  # of one plan: each is chosen among all segments that the sets before have left


class PlannedSet(Struct):
    """Segments that would be copied together and be free then; `copied_bytes` is what their live bytes take, packed."""

    how: str
    segments: list[SegmentInfo]
    live_bytes: int
    copied_bytes: int

    @property
    def freed_bytes(self) -> int:
        return max(0, sum(usable_bytes(one.bytes) for one in self.segments) - self.copied_bytes)


class LeftSegments(Struct):
    """Segments of one device that are left for one reason."""

    reason: str
    device: int
    segments: int = 0
    live_bytes: int = 0
    dead_bytes: int = 0


class CollectionPlan(Struct):
    """`low_percent` is the share of dead bytes from which segments are collected when that is ordered or space is low."""

    percent: int
    low_percent: int
    segments_free: int
    segments_total: int
    sets: list[PlannedSet]
    left: list[LeftSegments]


def plan(
    ask: Callable[[Any], Any], candidates: Candidates, percent: int, low_percent: int, volume: int = 0, device: int = 0
) -> CollectionPlan:
    """Returns the plan, of segments on `device` only and with bytes of `volume` only, where they are not 0.

    Blocks for some questions a segment; raises the service's Error.
    """
    found = candidates.refresh()
    sets, rest = _sets(candidates, found, percent, low_percent)
    shown = AskedSegments(candidates, volume, device)
    left = _left(ask, candidates, found, rest, sets, low_percent, shown)
    figures = candidates.figures
    asked = [one for one in sets if any(map(shown.has, one.segments))]
    return CollectionPlan(percent, low_percent, figures.segments_free, figures.segments_total, asked, left)


class AskedSegments:
    """The segments that somebody asks about: all, those of one device, or those with bytes of one volume."""

    def __init__(self, candidates: Candidates, volume: int, device: int) -> None:
        self._candidates = candidates
        self._volume = volume
        self._device = device

    def has(self, info: SegmentInfo) -> bool:
        if self._device and info.device != self._device:
            return False
        if not self._volume or volume_of(info) == self._volume:
            return True
        if volume_of(info):
            return False
        return any(piece.volume == self._volume for part in self._candidates.parts([info]) for piece in part)


def _sets(candidates: Candidates, found: list[SegmentInfo], percent: int, low_percent: int) -> tuple[list[PlannedSet], list[SegmentInfo]]:
    sets: list[PlannedSet] = []
    rest = found
    for how, least in ((BY_ITSELF, percent), (WHEN_ORDERED, low_percent)):
        while len(sets) < SETS_MAX:
            damaged = candidates.damaged
            chosen = candidates.choose(rest, least)
            if not chosen:
                break
            if (chosen[0].segment, chosen[0].incarnation) in damaged:
                how_now = DAMAGED
            else:
                how_now = DRAIN if chosen[0].device in candidates.draining else how
            sets.append(PlannedSet(how_now, chosen, sum(one.live_bytes for one in chosen), sum(map(candidates.packed, chosen))))
            taken = {one.segment for one in chosen}
            rest = [one for one in rest if one.segment not in taken]
    return sets, rest


def _left(
    ask: Callable[[Any], Any],
    candidates: Candidates,
    found: list[SegmentInfo],
    rest: list[SegmentInfo],
    sets: list[PlannedSet],
    low_percent: int,
    shown: AskedSegments,
) -> list[LeftSegments]:
    seen = {one.segment for one in found}
    why_sparse = LATER if len(sets) >= SETS_MAX else NO_GAIN
    reasons = {one.segment: why_sparse if candidates.is_sparse(one, low_percent) else THRESHOLD for one in rest}
    absent = {one.device for one in ask(GetDevices()).devices if one.absent}
    left: dict[tuple[str, int], LeftSegments] = {}
    for info in _live(ask):
        reason = reasons.get(info.segment, "") if info.segment in seen else _unseen(candidates, info, absent)
        if not reason or not shown.has(info):  # it would be moved
            continue
        row = left.setdefault((reason, info.device), LeftSegments(reason, info.device))
        row.segments += 1
        row.live_bytes += info.live_bytes
        row.dead_bytes += 0 if reason == OPEN else dead_bytes(info)  # what is not written yet is not dead
    return sorted(left.values(), key=lambda row: (-row.dead_bytes, row.reason, row.device))


def _unseen(candidates: Candidates, info: SegmentInfo, absent: set[int]) -> str:
    """Returns why a segment with live bytes is none of the candidates."""
    if info.state in (SEGMENT_LEASED, SEGMENT_QUARANTINED, SEGMENT_METADATA):
        return {SEGMENT_LEASED: OPEN, SEGMENT_QUARANTINED: QUARANTINE, SEGMENT_METADATA: METADATA}[info.state]
    if (info.segment, info.incarnation) in candidates.left_alone:
        return UNREADABLE
    if info.device in absent:
        return ABSENT
    return NEW if candidates.is_here(info) else ELSEWHERE  # sealed since the plan was begun, or another node's


def _live(ask: Callable[[Any], Any]) -> Iterator[SegmentInfo]:
    start = 0
    while True:
        reply = ask(GetLiveSegments(start, PAGE_ROWS))
        yield from reply.segments
        start = reply.after
        if not start:
            return
