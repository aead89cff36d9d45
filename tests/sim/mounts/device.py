"""The device that all mounts of the shared volume see: frames at places of segments, and writes that land when they like.

A write that was issued lands once, also if whoever issued it is stopped, cut off, ended or dead by then: most after a moment, some after
minutes.  What is known about them is only what the product relies on: those of a worker whose exit is vouched for have landed or are gone,
and so have those of a machine that boots again.  Each landing is judged: the place must not be another session's by now.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from awsomefsd.base.types import Extent, SegmentInfo, SegmentProgress
from tests.sim.world import MS, SECOND, World

HEADER_BYTES = 64
FRAMES_PER_SEGMENT = 3
LATE_SHARE = 0.04
Landed = Callable[[Extent], None]


@dataclass
class Frame:
    """One write in flight, or what has landed."""

    mount: Any
    session: int
    segment: int
    incarnation: int
    sequence: int
    value: bytes
    landed: Landed | None = None


def extent_of(frame: Frame, start: int) -> Extent:
    """The whole file in one frame."""
    return Extent(0, len(frame.value), frame.segment, frame.incarnation, frame.sequence, start, HEADER_BYTES, 0)


class Device:
    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice("device")
        self.frames: dict[tuple[int, int], Frame] = {}  # (segment, offset) → what is there
        self._flying: dict[int, tuple[int, Frame]] = {}  # number → offset, frame
        self._lessees: dict[int, tuple[int, int]] = {}  # segment → session, incarnation, as the log says
        self._values: dict[tuple[int, int, int], bytes] = {}  # identity of a frame → its bytes
        self._number = 0
        self.ended: set[int] = set()  # sessions
        self.late_share = LATE_SHARE

    # --- what the log says --------------------------------------------------------------------------------------------------------
    def leased(self, session: int, segments: list[SegmentInfo]) -> None:
        for info in segments:
            self._lessees[info.segment] = (session, info.incarnation)

    def value_of(self, extents: list[Extent]) -> bytes:
        return b"".join(self._values[(one.segment, one.incarnation, one.sequence)] for one in extents)

    # --- writes -------------------------------------------------------------------------------------------------------------------
    def write(self, frame: Frame, start: int) -> None:
        self._number += 1
        number = self._number
        self._values[(frame.segment, frame.incarnation, frame.sequence)] = frame.value
        self._flying[number] = (start, frame)
        late = self.dice.random() < self.late_share
        delay = self.dice.expovariate(1) * (40 * SECOND if late else 2 * MS)
        self.world.count("device writes")
        self.world.after(delay, self._land, number, extent_of(frame, start))

    def is_writing(self, mount: Any) -> bool:
        """Something of this mount is on its way."""
        return any(frame.mount is mount for _, frame in self._flying.values())

    def heal(self) -> None:
        """Nothing hangs any more."""
        self.late_share = 0.0
        for number, (start, frame) in self._flying.items():
            self.world.after(self.dice.random() * SECOND, self._land, number, extent_of(frame, start))

    def _land(self, number: int, extent: Extent) -> None:
        found = self._flying.pop(number, None)
        if found is None:
            return
        start, frame = found
        lessee = self._lessees.get(frame.segment)
        if lessee != (frame.session, frame.incarnation):
            whose = f"{frame.mount.host.name}, session {frame.session}, incarnation {frame.incarnation}"
            raise self.world.broken(f"a late write of {whose}, lands in segment {frame.segment}, which is leased to {lessee}")
        if frame.session in self.ended:
            self.world.count("device writes that landed after their session")
        there = self.frames.get((frame.segment, start))
        if there is not None and there.incarnation >= frame.incarnation:
            raise self.world.broken(f"segment {frame.segment} is written twice at {start}")
        self.frames[(frame.segment, start)] = frame
        if frame.landed is not None:
            frame.landed(extent)

    def drain(self, mount: Any) -> None:
        """The worker's exit is vouched for, or its machine boots again: what it had issued has landed, or never will."""
        for number, (start, frame) in list(self._flying.items()):
            if frame.mount is mount:
                frame.landed = None
                if self.dice.random() < 0.5:
                    self._land(number, extent_of(frame, start))
                else:
                    del self._flying[number]

    # --- reads --------------------------------------------------------------------------------------------------------------------
    def read(self, extents: list[Extent]) -> bytes | None:
        """As io/segment/reader.py: identities are compared; None where something else is there by now."""
        found = b""
        for one in extents:
            frame = self.frames.get((one.segment, one.frame_offset))
            if frame is None or (frame.incarnation, frame.sequence) != (one.incarnation, one.sequence):
                return None
            found += frame.value[one.skip : one.skip + one.length]
        return found


class Segments:
    """Those of one worker under one session; a frame is written alone in its segment at any moment."""

    def __init__(self, device: Device, mount: Any) -> None:
        self._device, self._mount = device, mount
        self.session = mount.session
        self._free: list[tuple[SegmentInfo, int]] = []  # and how many frames are in it

    def leased(self, segments: list[SegmentInfo]) -> None:
        self._free += [(info, 0) for info in segments]

    @property
    def ready(self) -> bool:
        return bool(self._free)

    def place(self, value: bytes, sequence: int, then: Callable[[Extent, SegmentProgress], None]) -> None:
        """Write it; `then` when it has landed, if this worker still lives."""
        info, count = self._free.pop()
        start = count * (HEADER_BYTES + len(value))
        end, full, life = start + HEADER_BYTES + len(value), count + 1 == FRAMES_PER_SEGMENT, self._mount.life

        def landed(extent: Extent) -> None:
            if self._mount.life != life:
                return
            if not full:
                self._free.append((info, count + 1))
            then(extent, SegmentProgress(info.segment, info.incarnation, end, full))

        frame = Frame(self._mount, self.session, info.segment, info.incarnation, sequence, value, landed)
        self._device.write(frame, start)
