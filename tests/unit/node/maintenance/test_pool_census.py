"""The needs of a pool are counted for everybody: when, how often, and what is told."""

from __future__ import annotations

from typing import Any

from awsomefsd.meta.api.messages import Done
from awsomefsd.meta.api.messages.pools import CountNeeds, NeedsCounted, PoolCensus, ReportCensus, StandingDrain
from awsomefsd.node.maintenance.healing_memory import RATE_MS, CopyRate
from awsomefsd.node.maintenance.pool_census import LOOK_S, SHARE, PoolCounting

S = 1_000_000_000
IDLE = PoolCensus([])


class Leader:
    """Has pages of needs, each of which takes `takes_ns` to count."""

    def __init__(self, *pages: NeedsCounted) -> None:
        self.pages = list(pages)
        self.takes_ns = 0
        self.now_ns = S
        self.asked: list[tuple[int, int]] = []
        self.told: list[PoolCensus] = []
        self.healing = IDLE
        self.counting = PoolCounting(self._ask, "node-1", lambda: self.healing, lambda: self.now_ns)

    def _ask(self, body: Any) -> Any:
        if isinstance(body, ReportCensus):
            assert body.node == "node-1"
            self.told.append(body.census)
            return Done()
        assert isinstance(body, CountNeeds)
        self.asked.append((body.priority, body.segment))
        self.now_ns += self.takes_ns
        return self.pages[[(0, 0), *(page.next for page in self.pages)].index((body.priority, body.segment))]

    def turn(self, applied: int, later_s: float = 0) -> None:
        self.now_ns += int(later_s * S)
        self.counting.turn(applied)


def page(first: int, lost: int = 0, since_ms: int = 0, after: tuple[int, int] = (-1, 0)) -> NeedsCounted:
    return NeedsCounted([first, 1, 0, 0, 0], lost, since_ms, after)


def test_pages_are_added_and_told_when_all_are_counted() -> None:
    leader = Leader(page(2, 1, 50, (0, 7)), page(3, 1, 40, (1, 9)), page(0, 0, 60))
    leader.turn(10)
    assert leader.told == [] and leader.counting.waits
    leader.turn(11)
    leader.turn(12)
    assert leader.asked == [(0, 0), (0, 7), (1, 9)]
    [told] = leader.told
    assert (told.needs, told.lost, told.since_ms) == ([5, 3, 0, 0, 0], 2, 40)
    assert leader.counting.waits, "the rows may have changed since the first page"


def test_nothing_is_counted_again_before_something_was_applied_and_some_time_has_passed() -> None:
    leader = Leader(page(0))
    leader.turn(10)
    assert not leader.counting.waits
    leader.turn(10, 10 * LOOK_S)
    assert len(leader.asked) == 1, "nothing was applied"
    leader.turn(11)
    assert len(leader.asked) == 2 and not leader.counting.waits
    leader.turn(12, LOOK_S / 2)
    assert len(leader.asked) == 2 and leader.counting.waits, "it is counted later"
    leader.turn(12, LOOK_S)
    assert len(leader.asked) == 3


def test_counting_takes_a_small_share_of_the_time() -> None:
    leader = Leader(page(1, after=(0, 7)), page(1))
    leader.takes_ns = S
    leader.turn(10)
    leader.turn(10, SHARE - 1)
    assert len(leader.asked) == 1
    leader.turn(10, 1)
    assert len(leader.asked) == 2


def test_what_is_told_once_is_not_told_again_and_copies_are_told_as_they_go_on() -> None:
    leader = Leader(page(1))
    leader.turn(10)
    leader.turn(10, 5)
    assert len(leader.told) == 1
    leader.healing = PoolCensus([], copies=1, bytes_per_s=1_000, left_alone=[3])
    leader.turn(10, 0.1)
    assert [(one.copies, one.left_alone) for one in leader.told] == [(0, []), (1, [3])]
    standing = [StandingDrain(3, 1, 5, "no room")]
    leader.healing = PoolCensus([], copies=2, standing=standing)
    leader.turn(10, 0.1)
    assert len(leader.told) == 2, "not more often than every two seconds"
    leader.turn(10, 2)
    assert (leader.told[-1].copies, leader.told[-1].standing) == (2, standing) and leader.told[-1].needs == [1, 1, 0, 0, 0]


def test_who_leads_anew_counts_anew() -> None:
    leader = Leader(page(1, after=(0, 7)), page(1))
    leader.turn(10)
    leader.counting.rest()
    leader.turn(10)
    assert leader.asked == [(0, 0), (0, 0)]


# --- how fast it goes -------------------------------------------------------------------------------------------------------
def test_the_rate_is_that_of_the_last_seconds() -> None:
    rate = CopyRate()
    assert rate.bytes_per_s(1_000) == 0
    for second in range(1, 11):
        rate.note(5, 100 * second, 1_000 * second)
    assert rate.bytes_per_s(11_000) == 100
    rate.note(5, 50, 11_000)
    assert rate.bytes_per_s(11_000) == 105, "a copy that begins anew counts what it has"
    assert rate.bytes_per_s(11_000 + RATE_MS) == 0
    rate.note(6, 4_000, 40_000)
    assert rate.bytes_per_s(41_000) == 4_000, "the pause before does not count"


def test_since_when_nothing_was_made() -> None:
    rate = CopyRate()
    rate.ended(1, True, 1_000)
    assert rate.idle_ms(9_000) == 0, "nothing is needed"
    rate.needed(True, 10_000)
    rate.needed(True, 20_000)
    assert rate.idle_ms(25_000) == 15_000
    rate.ended(2, False, 26_000)
    assert rate.idle_ms(30_000) == 20_000, "it failed"
    rate.ended(3, True, 30_000)
    assert rate.idle_ms(31_000) == 1_000
    rate.needed(False, 32_000)
    assert rate.idle_ms(33_000) == 0
