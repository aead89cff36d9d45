"""What looks at the needs of a pool remember: what cannot be mended, and which drains stand, since when."""

from __future__ import annotations

from awsomefsd.base.types import BAY_MIRROR, SEGMENT_LEASED, SEGMENT_SEALED, Redundancy, SegmentBay
from awsomefsd.meta.api.messages.pools import SegmentNeed, StandingDrain
from awsomefsd.meta.state.pools import DRAIN, FEWER, NEED_DRAIN, POLICY
from awsomefsd.node.maintenance.healing_memory import STANDING_TOLD_MAX, SleepingNeeds
from awsomefsd.node.maintenance.healing_plan import Asleep, Later

ROOM = Asleep("no room")


def need(segment: int, priority: int = DRAIN, state: int = SEGMENT_SEALED) -> SegmentNeed:
    bays = [SegmentBay(3, segment, 4096, BAY_MIRROR)]
    return SegmentNeed(priority, NEED_DRAIN, 0, segment, 1, state, 1 << 22, 4096, 0, 1, Redundancy(1, 1), bays)


def looked(before: SleepingNeeds, now_ms: int, *devices: int, goes_on: bool = False, whole: bool = True) -> SleepingNeeds:
    """A turn that finds a segment for each of these drained devices that cannot move."""
    made = before.next(goes_on)
    for segment, device in enumerate(devices, 1):
        made.note(need(segment), ROOM, [device])
    made.ended(whole, now_ms)
    return made


def test_what_sleeps_is_counted_by_the_drained_device_that_it_has_to_leave() -> None:
    made = SleepingNeeds().next(goes_on=False)
    made.note(need(1), ROOM, [4])
    made.note(need(2), Asleep("no mirror is there"), [3, 4])
    made.note(need(3, FEWER), Asleep("no mirror is there"), [])
    assert made.needed and (made.asleep, made.why) == (3, "no room")
    made.note(need(4, FEWER), Later(), [5])
    made.note(need(5, POLICY), ROOM, [6])
    made.note(need(6, state=SEGMENT_LEASED), Asleep("it is being written"), [7])
    made.ended(True, 1_000)
    assert made.asleep == 3
    assert made.standing() == [StandingDrain(4, 2, 1_000, "no room"), StandingDrain(3, 1, 1_000, "no mirror is there")]


def test_a_drain_stands_since_the_first_of_the_looks_that_found_it_so() -> None:
    first = looked(SleepingNeeds(), 1_000, 3, 4)
    second = looked(first, 5_000, 3)
    assert second.standing() == [StandingDrain(3, 1, 1_000, "no room")] and second.asleep == 1
    third = looked(second, 9_000, 3, 4)
    assert third.standing() == [StandingDrain(3, 1, 1_000, "no room"), StandingDrain(4, 1, 9_000, "no room")]


def test_a_look_of_several_turns_forgets_nothing_before_it_is_whole() -> None:
    before = looked(SleepingNeeds(), 1_000, 3, 4)
    first = looked(before, 2_000, 3, whole=False)
    assert first.standing() == [StandingDrain(3, 1, 1_000, "no room")]
    last = looked(first, 3_000, 3, 4, goes_on=True)
    assert last.standing() == [StandingDrain(3, 2, 1_000, "no room"), StandingDrain(4, 1, 1_000, "no room")] and last.asleep == 3
    assert before.asleep == 2 and first.asleep == 1, "a look is not changed by those after it"


def test_few_are_told() -> None:
    many = looked(SleepingNeeds(), 1_000, *range(1, 3 * STANDING_TOLD_MAX), 7)
    told = many.standing()
    assert len(told) == STANDING_TOLD_MAX and (told[0].device, told[0].segments) == (7, 2)
