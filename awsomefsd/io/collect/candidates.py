"""The segments that a node may collect, and which of them are worth it now.  It asks the metadata service, and changes nothing anywhere.

The collector (collector.py) copies what is chosen here.  A plan that only looks (node/maintenance/collection_plan.py) makes an object of
its own, which knows what the collector's has found out by reading (`like`), and chooses until nothing is left.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator
from typing import Any

from awsomefsd.base.types import DeviceInfo, SegmentInfo, bays_of
from awsomefsd.io.collect.collect_plan import Key, choose, dead_bytes, is_sparse, key_of, lay_together, packed_bytes, packed_or_guess
from awsomefsd.io.collect.collected_pool import PoolPlaces, volume_of
from awsomefsd.meta.api.messages import GetDevices
from awsomefsd.meta.api.messages.collection import GetPieces, GetSparse, LivePiece

PART_PIECES = 16_384  # in memory at once
PAGE_ROWS = 2_048  # of one question
DRAINED_AT_ONCE = 8  # segments of a draining device in one round

Ask = Callable[[Any], Any]  # a request to the metadata service; refusals are raised


class Figures:
    """The counters for status and metrics, since the daemon started."""

    def __init__(self) -> None:
        self.rounds = self.segments = self.copied_bytes = self.moved_bytes = self.skipped_bytes = self.merged_bytes = 0
        self.corrupt_pieces = self.reclaimable_bytes = self.segments_free = self.segments_total = 0

    def named(self) -> dict[str, int]:
        return {
            "rounds": self.rounds,
            "segments": self.segments,
            "copied_bytes": self.copied_bytes,
            "moved_bytes": self.moved_bytes,
            "skipped_bytes": self.skipped_bytes,
            "merged_bytes": self.merged_bytes,
            "corrupt_pieces": self.corrupt_pieces,
            "reclaimable_bytes": self.reclaimable_bytes,
            "segments_free": self.segments_free,
            "segments_total": self.segments_total,
        }


class Candidates:
    """`refresh` and `choose` find work.  One thread calls; both block for the service, and raise its Error.

    `devices`: those that are open here.  `places`: of segments in pools; None leaves these alone.  `between` is called before each question
    of a long row of them.
    """

    def __init__(
        self,
        ask: Ask,
        devices: Container[object],
        collects: Callable[[DeviceInfo], bool],
        places: PoolPlaces | None,
        between: Callable[[], object] = lambda: None,
    ) -> None:
        self._ask = ask
        self._devices = devices
        self._collects = collects  # whether a device is this node's to collect; others do it for the rest
        self._places = places
        self._between = between
        self._here: set[int] = set()
        self._kinds: dict[int, str] = {}
        self.draining: set[int] = set()  # devices
        self._tried: set[Key] = set()  # of draining devices
        self._measured: dict[Key, int] = {}
        self.damaged: frozenset[tuple[int, int]] = frozenset()  # (segment, incarnation) to be emptied next; any thread sets it
        self.left_alone: set[tuple[int, int]] = set()  # (segment, incarnation) with bytes that cannot be read
        self.figures = Figures()

    def like(self, other: Candidates) -> Candidates:
        """Takes up what another one has learned by reading; that one may be at work in its thread.  Returns itself."""
        self.damaged, self.left_alone, self._measured = other.damaged, set(other.left_alone), dict(other._measured)
        return self

    def refresh(self) -> list[SegmentInfo]:
        """Asks for the devices and the segments again; returns all segments that may be collected."""
        devices = self._ask(GetDevices()).devices
        self._kinds = {info.device: "" if info.shared else info.home for info in devices}
        self.draining = {info.device for info in devices if info.draining}
        self._here = {info.device for info in devices if self._collects(info)}
        if self._places is not None:
            self._places.look(devices, self._collects)
        found: list[SegmentInfo] = []
        start = 0
        while True:
            reply = self._ask(GetSparse(start, PAGE_ROWS))
            found += [info for info in reply.segments if self._may_collect(info)]
            start = reply.after
            if not start:
                break
        self.figures.segments_free, self.figures.segments_total = reply.free, reply.total
        self.figures.reclaimable_bytes = sum(map(dead_bytes, found))
        keys = set(map(key_of, found))
        self._measured = {key: packed for key, packed in self._measured.items() if key in keys}
        return found

    def free_percent(self) -> int:
        """Returns the share of free segments among all (0 to 100), asked from the service again."""
        reply = self._ask(GetSparse(0, 1))
        self.figures.segments_free, self.figures.segments_total = reply.free, reply.total
        return 100 * int(reply.free) // max(int(reply.total), 1)

    def _may_collect(self, info: SegmentInfo) -> bool:
        return (info.segment, info.incarnation) not in self.left_alone and self.is_here(info)

    def is_here(self, info: SegmentInfo) -> bool:
        """Returns whether a segment is this node's to collect, as `refresh` has seen the devices."""
        if bays := bays_of(info):
            return self._places is not None and self._places.takes(bays, info.committed_bytes)
        return info.device in self._here and info.device in self._devices

    def kind_of(self, info: SegmentInfo) -> str:
        """Returns what the segments have in common that are packed together: where their devices are, or their volume in a pool."""
        return f"volume {volume}" if (volume := volume_of(info)) else self._kinds.get(info.device, "")

    def choose(self, found: list[SegmentInfo], dead_percent_min: int) -> list[SegmentInfo]:
        """Returns a set of segments that gives one back when it is packed; before that, damaged ones, and any of a draining device.

        Empty if there is nothing to collect.
        """
        if damaged := self.damaged:
            asked = [info for info in found if (info.segment, info.incarnation) in damaged]
            alike = self._alike(asked)
            self.damaged = frozenset((info.segment, info.incarnation) for info in asked if info not in alike)
            if alike:
                return alike
        untried = [info for info in found if info.device in self.draining and key_of(info) not in self._tried]
        if untried:
            alike = self._alike(untried)
            self._tried.update(map(key_of, alike))
            return alike
        self._tried.clear()  # what could not be moved now may be later
        found = [info for info in found if info.device not in self.draining]
        kinds: dict[str, list[SegmentInfo]] = {}
        for info in found:
            kinds.setdefault(self.kind_of(info), []).append(info)
        return next(filter(None, (self._choose(kind, dead_percent_min) for kind in kinds.values())), [])

    def _alike(self, found: list[SegmentInfo]) -> list[SegmentInfo]:
        return [info for info in found if self.kind_of(info) == self.kind_of(found[0])][:DRAINED_AT_ONCE]

    def _choose(self, found: list[SegmentInfo], dead_percent_min: int) -> list[SegmentInfo]:
        while True:
            chosen = choose(found, self._measured, dead_percent_min)
            unknown = [info for info in chosen if key_of(info) not in self._measured]
            if not unknown:
                return chosen
            for info in unknown:
                self.packed(info)

    def is_sparse(self, info: SegmentInfo, dead_percent_min: int) -> bool:
        """Returns whether enough of a segment is dead, as far as that is known without a measurement."""
        return is_sparse(info, packed_or_guess(info, self._measured), dead_percent_min)

    def packed(self, info: SegmentInfo) -> int:
        """Returns the bytes that what lives in a segment takes when it is packed, measured once."""
        if key_of(info) not in self._measured:
            self._measured[key_of(info)] = sum(packed_bytes(lay_together(part)) for part in self.parts([info]))
        return self._measured[key_of(info)]

    def parts(self, chosen: list[SegmentInfo]) -> Iterator[list[LivePiece]]:
        """Yields the live pieces, PART_PIECES and a page at a time; owners of one frame stay together unless they fill a part."""
        part: list[LivePiece] = []
        for info in chosen:
            place: tuple[int, int, int, int] | None = (0, 0, 0, 0)
            until = 0
            while place is not None:
                self._between()
                reply = self._ask(GetPieces(info.segment, *place, PAGE_ROWS, until))
                part += [one for one in reply.pieces if one.extent.incarnation == info.incarnation]
                place, until = reply.after, reply.until
                if len(part) < PART_PIECES:
                    continue
                frame = (info.segment, place[0] if place is not None else -1)  # the one that may go on in the next page
                held = [one for one in part if (one.extent.segment, one.extent.frame_offset) == frame]
                if len(held) < len(part):
                    yield [one for one in part if (one.extent.segment, one.extent.frame_offset) != frame]
                    part = held
                else:
                    yield part
                    part = []
        if part:
            yield part
