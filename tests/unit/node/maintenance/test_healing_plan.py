"""What is done for segments that lack something: by cases, and in random lives that find every plan that is wrong on purpose."""

from __future__ import annotations

from random import Random

import pytest

from awsomefsd.base.types import BAY_MIRROR, SegmentBay
from awsomefsd.meta.api.messages.pools import SegmentNeed
from awsomefsd.node.maintenance.healing_plan import NOWHERE, Asleep, HealingPlan
from tests.unit.node.maintenance.healing_world import HealingWorld

LIVES = 60


def test_random_lives(seed: int) -> None:
    for life in range(LIVES):
        HealingWorld(Random(f"{seed} {life}")).live(60)


class AbsentIsLost(HealingPlan):  # row 23: a rebuild storm after a reboot
    def _counts(self, number):
        return super()._counts(number) and not self._devices[number].absent


class AbsentIsThere(HealingPlan):
    def _is_there(self, number):
        return number in self._devices and not self._devices[number].lost


class LostCounts(HealingPlan):
    def _counts(self, number):
        return number in self._devices


class HostsAreNotCounted(HealingPlan):  # row 15
    def _domain(self, need, number):
        return f"device {number}"


class AnyMirrorIsASource(HealingPlan):  # row 1
    def _sources(self, need):
        return [bay for bay in need.bays if bay.role == BAY_MIRROR and self._is_there(bay.device)]


class NothingIsTooMuch(HealingPlan):
    def _surplus(self, need):
        return None


class TooMuchIsAnyMirror(HealingPlan):
    def _surplus(self, need):
        mirrors = [bay for bay in need.bays if bay.role == BAY_MIRROR]
        return mirrors[0] if len(mirrors) > need.want.copies else None


class CopiesAreNeverGivenUp(HealingPlan):
    def _go_on(self, need, copying):
        decided = super()._go_on(need, copying)
        return Asleep("never") if type(decided).__name__ == "GiveUpBay" else decided


class PartialMirrorsStay(HealingPlan):
    def _replaced(self, need, number, moves):
        found = super()._replaced(need, number, moves)
        return found if moves or found is None else NOWHERE


class NoLimits(HealingPlan):  # row 24
    def _take(self, copy):
        self._running.add(copy.segment)


class DrainedDevicesKeepTheirs(HealingPlan):
    def _drained(self, need: SegmentNeed) -> list[SegmentBay]:
        return []


class LostAndDrainedAreWaitedFor(HealingPlan):
    def _does_not_return(self, number):
        return False


class LostAndDrainedAreMoved(HealingPlan):
    def _drained(self, need):
        mirrors = [bay for bay in need.bays if bay.role == BAY_MIRROR]
        return [bay for bay in mirrors if bay.device in self._devices and self._devices[bay.device].draining]

    def _does_not_return(self, number):
        return False


class CopiesToDrainedDevices(HealingPlan):
    def _takes(self, need, number):
        return self._is_there(number)


BROKEN = [
    AbsentIsLost, AbsentIsThere, LostCounts, HostsAreNotCounted, AnyMirrorIsASource, NothingIsTooMuch, TooMuchIsAnyMirror,
    CopiesAreNeverGivenUp, PartialMirrorsStay, NoLimits, DrainedDevicesKeepTheirs, LostAndDrainedAreWaitedFor, LostAndDrainedAreMoved,
    CopiesToDrainedDevices,
]  # fmt: skip


@pytest.mark.parametrize("plan", BROKEN, ids=lambda plan: plan.__name__)
def test_random_lives_find_what_is_wrong_on_purpose(plan: type[HealingPlan], seed: int) -> None:
    for life in range(10 * LIVES):
        try:
            HealingWorld(Random(f"{seed} {life}"), plan).live(60)
        except AssertionError:
            return
    pytest.fail(f"{plan.__name__} was not found")
