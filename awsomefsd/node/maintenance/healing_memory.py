"""The leader's daemon remembers which copies failed, what cannot be mended, and since when devices are absent.  Pure: times are handed in.

None of it is in the log.  A leader that begins knows of no failures, and counts the absence of a device from when it saw it first: it
tries too much, and says too late that a device is lost, never too early.

A destination to which copies of three segments failed in a row is left alone, for ten minutes, then twice as long.  A segment that failed
three times at one destination goes to another one, and one that failed six times is not tried before the devices have changed, or that
time has passed: a segment server that was away for a minute fails many copies, and its rows are the same when it is back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable

from awsomefsd.base.types import SEGMENT_SEALED
from awsomefsd.meta.api.messages.pools import Pool, PoolDeviceInfo, SegmentNeed, StandingDrain
from awsomefsd.meta.state.pools import DRAIN, FEWER
from awsomefsd.node.maintenance.healing_plan import Asleep, Decision, MirrorCopy

FAILURES_OF_DEVICE = 3
FAILURES_AT_DEVICE = 3
FAILURES_OF_SEGMENT = 6
LEFT_ALONE_MS, LEFT_ALONE_MS_MAX = 600_000, 8 * 600_000
RATE_MS = 20_000
STANDING_TOLD_MAX = 32  # drains that do not go on, those of most segments first
LOST_AFTER_TOGETHER_MS = 60_000  # where another host is absent too


class CopyFailures:
    def __init__(self) -> None:
        self._segments: dict[int, set[int]] = {}  # device → segments that failed there since a copy was made
        self._times: dict[int, int] = {}  # device → how often it was left alone
        self._until_ms: dict[int, int] = {}
        self._failed: dict[tuple[int, int], int] = {}  # (segment, device) → how often
        self._devices: Hashable = None
        self._kept_ms, self._kept_since_ms = LEFT_ALONE_MS, 0  # how long `_failed` is kept, and since when

    def take_devices(self, pool: Pool, now_ms: int) -> None:
        """Forgets which segments failed when the devices are others than before, or after a while: a copy may be possible now."""
        devices = tuple((one.device, one.server, one.absent, one.lost, one.draining) for one in pool.devices)
        if devices != self._devices:
            self._devices, self._kept_ms = devices, LEFT_ALONE_MS
            self._failed.clear()
        if not self._failed:
            self._kept_since_ms = now_ms
        elif now_ms - self._kept_since_ms >= self._kept_ms:
            self._kept_ms = min(2 * self._kept_ms, LEFT_ALONE_MS_MAX)
            self._failed.clear()

    def note(self, copy: MirrorCopy, made: bool, now_ms: int) -> bool:
        """Counts a copy that was made, or was not.  Returns True if its destination is left alone from now on."""
        if made:
            self._segments.pop(copy.device, None)
            self._times.pop(copy.device, None)
            self._failed = {place: count for place, count in self._failed.items() if place[0] != copy.segment}
            return False
        place = copy.segment, copy.device
        self._failed[place] = self._failed.get(place, 0) + 1
        here = self._segments.setdefault(copy.device, set())
        here.add(copy.segment)
        if len(here) < FAILURES_OF_DEVICE:
            return False
        del self._segments[copy.device]
        times = self._times[copy.device] = self._times.get(copy.device, 0) + 1
        self._until_ms[copy.device] = now_ms + min(LEFT_ALONE_MS << min(times - 1, 10), LEFT_ALONE_MS_MAX)
        return True

    def left_alone(self, now_ms: int) -> set[int]:
        """Returns the devices that get no copies now."""
        return {device for device, until in self._until_ms.items() if until > now_ms}

    def failed(self, pool: Pool) -> set[tuple[int, int]]:
        """Returns (segment, device) where no further copy is tried."""
        by_segment: dict[int, int] = {}
        for (segment, _), count in self._failed.items():
            by_segment[segment] = by_segment.get(segment, 0) + count
        tired = {segment for segment, count in by_segment.items() if count >= FAILURES_OF_SEGMENT}
        found = {place for place, count in self._failed.items() if count >= FAILURES_AT_DEVICE}
        return found | {(segment, device.device) for segment in tired for device in pool.devices}


class SleepingNeeds:
    """What looks at the needs have found: those for which nothing can be done, and the drains that do not go on for that.

    A look at many needs takes several turns, of which each begins with what those before it have found.
    """

    def __init__(self) -> None:
        self.needed = False  # something lacks a mirror
        self.asleep, self.why = 0, ""
        self._moving: dict[int, tuple[int, str]] = {}  # drained device → segments that cannot leave it, and why of one
        self._since_ms: dict[int, int] = {}

    def next(self, goes_on: bool) -> SleepingNeeds:
        """Returns what the next turn begins with, which goes on with this look, or begins another one."""
        made = SleepingNeeds()
        made._since_ms = self._since_ms
        if goes_on:
            made.needed, made.asleep, made.why, made._moving = self.needed, self.asleep, self.why, dict(self._moving)
        return made

    def note(self, need: SegmentNeed, decided: Decision, drained: Iterable[int]) -> None:
        """Counts a need.  `drained`: the devices that its segment has to leave."""
        if need.priority > DRAIN or need.state != SEGMENT_SEALED:
            return
        self.needed = self.needed or need.priority <= FEWER
        if isinstance(decided, Asleep):
            self.asleep += 1
            self.why = self.why or decided.why
            for device in drained:
                count, why = self._moving.get(device, (0, decided.why))
                self._moving[device] = count + 1, why

    def ended(self, whole: bool, now_ms: int) -> None:
        """A turn has ended; `whole`: at the last need."""
        found = {device: self._since_ms.get(device, now_ms) for device in self._moving}
        self._since_ms = found if whole else {**self._since_ms, **found}

    def standing(self) -> list[StandingDrain]:
        """Returns the drains that do not go on, those of most segments first."""
        order = sorted(self._moving.items(), key=lambda one: (-one[1][0], one[0]))
        return [StandingDrain(device, count, self._since_ms[device], why) for device, (count, why) in order[:STANDING_TOLD_MAX]]


class CopyRate:
    """How many bytes were copied in the last RATE_MS, by all copies together, and since when none was made while some are needed."""

    def __init__(self) -> None:
        self._steps: deque[tuple[int, int]] = deque()  # (when, bytes since the step before)
        self._done: dict[int, int] = {}  # segment → bytes of its copy so far
        self._begin_ms = self._made_ms = self._needed_ms = 0  # 0: not

    def note(self, segment: int, done: int, now_ms: int) -> None:
        """A copy has come so far; one that began anew counts from 0."""
        step = done - self._done.get(segment, 0)
        self._done[segment] = done
        self._begin_ms = self._begin_ms or now_ms
        self._steps.append((now_ms, step if step >= 0 else done))

    def ended(self, segment: int, made: bool, now_ms: int) -> None:
        self._done.pop(segment, None)
        self._made_ms = now_ms if made else self._made_ms

    def needed(self, needed: bool, now_ms: int) -> None:
        """Whether copies are needed, at the last look."""
        self._needed_ms = (self._needed_ms or now_ms) if needed else 0

    def bytes_per_s(self, now_ms: int) -> int:
        while self._steps and self._steps[0][0] <= now_ms - RATE_MS:
            self._steps.popleft()
        if not self._steps:
            self._begin_ms = 0
            return 0
        return sum(step for _, step in self._steps) * 1_000 // max(min(RATE_MS, now_ms - self._begin_ms), 1_000)

    def idle_ms(self, now_ms: int) -> int:
        """Returns for how long no copy was made while some are needed; 0 where none is."""
        return now_ms - max(self._made_ms, self._needed_ms) if self._needed_ms else 0


class Absences:
    """Since when devices are absent, as this leader saw it; for those of a host under maintenance the time begins when that ends."""

    def __init__(self) -> None:
        self._since_ms: dict[int, int] = {}

    def lost(self, pool: Pool, now_ms: int, wall_ms: int) -> list[PoolDeviceInfo]:
        """Returns the devices that have been absent for so long that they count as lost, unless their servers answer."""
        away = [device for device in pool.devices if device.absent and not device.lost]
        kept = {host for host, until in pool.maintenance if until > wall_ms}
        since = self._since_ms
        self._since_ms = {one.device: now_ms if one.host in kept else since.get(one.device, now_ms) for one in away}
        hosts = {device.host for device in pool.devices if device.absent}
        after_ms = min(pool.lost_after_ms, LOST_AFTER_TOGETHER_MS) if len(hosts) > 1 else pool.lost_after_ms
        return [one for one in away if one.host not in kept and now_ms - self._since_ms[one.device] >= after_ms]

    @property
    def any(self) -> bool:
        return bool(self._since_ms)
