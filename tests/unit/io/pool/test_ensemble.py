"""The ensemble: what counts, when a segment ends, and who is given up.  The numbers are those of POOLS.md section 11."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from awsomefsd.base.limits import BLOCK_BYTES, ENSEMBLE_AVOID_MS, ENSEMBLE_BEHIND_BYTES_MAX, NS_PER_MS
from awsomefsd.base.types import Redundancy
from awsomefsd.io.pool import ensemble as module
from awsomefsd.io.pool.ensemble import AvoidedDevices, Ensemble, Verdict
from awsomefsd.io.pool.gate import Bay
from tests.unit.io.pool.ensemble_world import MS, SETTLED_MS, World

A, B, C = PLACES = [Bay(1, 5), Bay(2, 4), Bay(3, 3)]
END = 16 * BLOCK_BYTES
LOOK_MS = 250


class Talk:
    """An ensemble, and the time in milliseconds."""

    def __init__(self, want: Redundancy | None = None, places: list[Bay] | None = None) -> None:
        self.avoided = AvoidedDevices()
        self.places = places or PLACES
        self.ensemble = Ensemble(self.places, want or Redundancy(3, 2), self.avoided)
        self.ms = 1_000

    def next(self, places: list[Bay] | None = None, want: Redundancy | None = None) -> None:
        """Another segment of the same client."""
        self.ensemble = Ensemble(places or self.places, want or Redundancy(3, 2), self.avoided)

    def begin(self, end: int = END, *, footer: bool = False) -> list[Bay]:
        return self.ensemble.begin(end, self.ms * MS, footer=footer)

    def answered(self, *bays: Bay, end: int = END) -> Verdict:
        for bay in bays:
            self.ensemble.answered(bay, end, self.ms * MS)
        return self.ensemble.verdict

    def failed(self, *bays: Bay) -> Verdict:
        for bay in bays:
            self.ensemble.failed(bay, "reset", self.ms * MS)
        return self.ensemble.verdict

    def wait(self, ms: int) -> list[Bay]:
        """Lets time pass, with looks; returns who was given up."""
        for _ in range(0, ms, LOOK_MS):
            self.ms += LOOK_MS
            self.ensemble.look(self.ms * MS)
        return self.ensemble.take_given_up()

    def sent(self, bay: Bay, end: int) -> None:
        self.ensemble.sent(bay, end, self.ms * MS)

    def durable(self) -> dict[Bay, int]:
        return {Bay(device, index): length for device, index, length in self.ensemble.durable()}

    def avoids(self) -> list[int]:
        return self.avoided.devices(self.ms * MS)


def reached(*, want: Redundancy | None = None) -> Talk:
    """A first batch that all mirrors have."""
    talk = Talk(want)
    talk.begin()
    assert talk.answered(A, B, C) is Verdict.REACHED
    return talk


# --- what counts ----------------------------------------------------------------------------------------------------------
def test_a_batch_is_reached_when_all_mirrors_have_answered() -> None:
    talk = Talk()
    assert talk.begin() == PLACES and talk.ensemble.waits
    assert talk.answered(A, B) is Verdict.WAITING and talk.ensemble.end == 0 and talk.durable() == {}
    assert talk.answered(C) is Verdict.REACHED and not talk.ensemble.ended and not talk.ensemble.waits
    assert talk.durable() == dict.fromkeys(PLACES, END) and talk.avoids() == []


def test_row_1_a_lost_answer_does_not_count() -> None:
    talk = reached()
    talk.begin(2 * END)
    for bay in PLACES:
        talk.sent(bay, 2 * END)  # all of it has left
    talk.answered(A, B, end=2 * END)
    assert talk.failed(C) is Verdict.REACHED and talk.ensemble.ended
    assert talk.answered(C, end=2 * END) is Verdict.REACHED, "it comes later, and is not heard"
    assert talk.durable() == {A: 2 * END, B: 2 * END, C: END} and talk.avoids() == [3]


def test_row_2_fewer_than_min_is_not_reached() -> None:
    talk = reached()
    talk.begin(2 * END)
    talk.answered(A, end=2 * END)
    assert talk.failed(B) is Verdict.WAITING, "C may answer"
    assert talk.failed(C) is Verdict.LOST
    assert talk.ensemble.end == END and talk.durable() == dict.fromkeys(PLACES, END), "what A has beyond counts for nothing"


def test_one_of_two_is_enough_where_the_policy_says_so() -> None:
    for minimum, expected in ((1, Verdict.REACHED), (2, Verdict.LOST)):
        talk = Talk(Redundancy(2, minimum), [A, B])
        talk.begin()
        talk.answered(A)
        assert talk.failed(B) is expected


def test_mirrors_that_have_not_failed_are_waited_for_though_min_is_reached() -> None:
    talk = Talk(Redundancy(3, 1))
    talk.begin()
    talk.answered(A)
    assert talk.failed(B) is Verdict.WAITING
    assert talk.answered(C) is Verdict.REACHED and talk.durable() == {A: END, C: END}


@pytest.mark.parametrize("end", [0, END, 3 * END, 2 * END - BLOCK_BYTES])
def test_row_4_nobody_is_asked_for_a_length(end: int) -> None:
    talk = reached()
    talk.begin(2 * END)
    talk.answered(A, B, end=2 * END)
    assert talk.answered(C, end=end) is Verdict.REACHED and list(talk.ensemble.failures()) == [C]
    assert talk.durable() == {A: 2 * END, B: 2 * END, C: END}, "what it had answered before stays"


def test_row_6_the_end_is_that_of_the_last_batch_and_not_of_a_mirror() -> None:
    talk = reached()
    talk.begin(2 * END)
    talk.answered(A, end=2 * END)
    talk.failed(B, C)
    assert talk.ensemble.end == END, "not the longest"
    other = reached()
    other.begin(2 * END)
    other.failed(A)
    assert other.answered(B, C, end=2 * END) is Verdict.REACHED and other.ensemble.end == 2 * END, "not the shortest"


def test_row_7_a_segment_that_has_ended_is_not_written_on() -> None:
    talk = reached()
    talk.failed(C)
    assert talk.ensemble.ended and talk.ensemble.verdict is Verdict.REACHED and talk.ensemble.end == END, "between two batches"
    assert talk.begin(2 * END) == [] and talk.ensemble.verdict is Verdict.LOST and not talk.ensemble.waits


def test_row_20_a_flush_that_succeeds_after_one_that_failed_proves_nothing() -> None:
    talk = Talk(Redundancy(3, 2, quorum=True))
    talk.begin()
    talk.answered(A, B)
    talk.begin(2 * END)
    talk.ensemble.failed(C, "EIO", talk.ms * MS)
    talk.answered(C, end=2 * END)
    assert C not in talk.durable() and talk.answered(A, B, end=2 * END) is Verdict.REACHED


def test_row_32_what_was_reached_before_all_power_is_lost_is_on_min_mirrors() -> None:
    talk = reached()
    talk.begin(2 * END)
    talk.answered(B, end=2 * END)
    assert talk.failed(A, B, C) is Verdict.LOST
    assert talk.ensemble.end == END and talk.durable() == dict.fromkeys(PLACES, END)


def test_row_41_each_mirror_is_credited_by_device_and_index() -> None:
    talk = Talk(Redundancy(3, 2), [C, A, B])
    talk.begin()
    talk.failed(A)
    assert talk.answered(B, C) is Verdict.REACHED
    assert sorted(talk.ensemble.durable()) == [(2, 4, END), (3, 3, END)]


def test_row_31_a_report_may_be_repeated_and_is_the_same() -> None:
    """The leader is away: the Commit is sent again until somebody answers, or the session is replaced."""
    talk = reached()
    first = talk.ensemble.durable()
    assert talk.wait(60_000) == [] and talk.ensemble.durable() == first and not talk.ensemble.ended, "nobody is blamed for the leader"


# --- footers --------------------------------------------------------------------------------------------------------------
def test_a_segment_that_ended_early_gets_its_footer_from_those_that_are_left() -> None:
    talk = reached()
    talk.failed(A)
    assert talk.begin(END + BLOCK_BYTES, footer=True) == [B, C]
    assert talk.answered(B, C, end=END + BLOCK_BYTES) is Verdict.REACHED
    assert talk.durable() == {A: END, B: END + BLOCK_BYTES, C: END + BLOCK_BYTES}
    assert talk.begin(2 * END) == [] == talk.begin(2 * END, footer=True), "a footer is the last"


def test_a_footer_that_too_few_have_leaves_the_end_where_it_was() -> None:
    talk = reached()
    talk.failed(A)
    talk.begin(END + BLOCK_BYTES, footer=True)
    talk.answered(B, end=END + BLOCK_BYTES)
    assert talk.failed(C) is Verdict.LOST and talk.durable() == dict.fromkeys(PLACES, END)


def test_behind_a_batch_that_was_lost_there_is_no_place_for_a_footer() -> None:
    talk = reached()
    talk.begin(2 * END)
    talk.failed(B, C)
    assert talk.begin(END + BLOCK_BYTES, footer=True) == [] and talk.ensemble.verdict is Verdict.LOST


# --- quorum ---------------------------------------------------------------------------------------------------------------
QUORUM = Redundancy(3, 2, quorum=True)


def test_a_majority_acknowledges_and_the_rest_follows() -> None:
    talk = Talk(QUORUM)
    talk.begin()
    assert talk.answered(A, B) is Verdict.REACHED and talk.ensemble.waits and talk.durable() == {A: END, B: END}
    assert talk.begin(2 * END) == PLACES
    talk.answered(C)
    talk.answered(C, end=2 * END)
    assert talk.durable() == {A: END, B: END, C: END}, "as far as a batch was reached"
    assert talk.answered(B, end=2 * END) is Verdict.REACHED
    assert talk.durable() == {A: END, B: 2 * END, C: 2 * END} and not talk.ensemble.ended


def test_an_answer_counts_for_its_own_batch() -> None:
    talk = Talk(QUORUM)
    talk.begin()
    talk.answered(A, B)
    talk.begin(2 * END)
    talk.answered(C, end=END)
    assert talk.answered(A, end=2 * END) is Verdict.WAITING


def test_a_majority_below_min_does_not_do() -> None:
    talk = Talk(Redundancy(3, 3, quorum=True))
    talk.begin()
    assert talk.answered(A, B) is Verdict.WAITING
    assert talk.failed(C) is Verdict.LOST


def test_a_quorum_of_fewer_mirrors_than_wanted_is_one_of_those_wanted() -> None:
    talk = Talk(Redundancy(5, 1, quorum=True), [A, B, C])
    talk.begin()
    assert talk.answered(A, B) is Verdict.WAITING and talk.answered(C) is Verdict.REACHED


def test_who_is_too_far_behind_is_given_up_by_time() -> None:
    talk = Talk(QUORUM)
    talk.begin()
    talk.answered(A, B)
    for number in range(8):
        assert talk.ensemble.failures() == {}
        talk.sent(C, number + 1)  # it moves
        talk.wait(250)
    assert talk.ensemble.failures() == {C: "it is too far behind"} and talk.ensemble.ended and talk.avoids() == [3]


def test_who_is_too_far_behind_is_given_up_by_bytes() -> None:
    talk = Talk(QUORUM)
    end = 0
    while end <= ENSEMBLE_BEHIND_BYTES_MAX:
        assert talk.wait(250) == []
        end += 16 << 20
        talk.begin(end)
        talk.sent(C, end)
        talk.answered(A, B, end=end)
    assert talk.wait(250) == [C]


# --- silent and slow mirrors ------------------------------------------------------------------------------------------------
def test_row_22_a_silent_mirror_is_given_up_after_2_s_where_another_moves() -> None:
    talk = Talk()
    talk.begin()
    talk.answered(A, B)
    assert talk.wait(1_750) == [] and talk.ensemble.verdict is Verdict.WAITING
    assert talk.wait(250) == [C] and talk.ensemble.verdict is Verdict.REACHED and talk.avoids() == [3]
    assert talk.ensemble.failures() == {C: "it is silent"}


def test_a_mirror_that_takes_bytes_is_not_silent() -> None:
    talk = Talk()
    talk.begin()
    talk.answered(A, B)
    for number in range(40):
        assert talk.wait(250) == []
        talk.sent(C, number + 1)


def test_where_nobody_moves_all_are_given_up_after_5_s() -> None:
    talk = Talk()
    talk.begin()
    assert talk.wait(4_750) == []
    assert talk.wait(250) == PLACES and talk.ensemble.verdict is Verdict.LOST and talk.ensemble.end == 0


def test_a_single_mirror_has_5_s() -> None:
    talk = Talk(Redundancy(1, 1), [A])
    talk.begin()
    assert talk.wait(4_750) == [] and talk.wait(250) == [A]


def test_time_in_which_the_client_did_not_run_counts_against_nobody() -> None:
    talk = Talk()
    talk.begin()
    talk.answered(A)
    talk.ms += 60_000  # SIGSTOP; the answers lie in the sockets
    assert talk.wait(250) == []
    assert talk.answered(B, C) is Verdict.REACHED and talk.avoids() == []


def test_a_mirror_that_owes_nothing_is_not_silent() -> None:
    talk = reached()
    assert talk.wait(60_000) == []
    talk.begin(2 * END)
    assert talk.wait(250) == []


def slow_turn(talk: Talk, end: int, *, took_ms: int, others_ms: int = 100) -> list[Bay]:
    talk.begin(end)
    talk.ms += others_ms
    talk.answered(A, B, end=end)
    for _ in range((took_ms - others_ms) // 50):
        talk.ms += 50
        talk.ensemble.look(talk.ms * MS)
    talk.answered(C, end=end)
    return talk.ensemble.take_given_up()


def test_row_21_a_slow_mirror_is_given_up_the_third_time_in_a_row_over_segments() -> None:
    talk = Talk()
    assert slow_turn(talk, END, took_ms=1_500) == []
    talk.next()
    assert slow_turn(talk, END, took_ms=1_500) == []
    assert slow_turn(talk, 2 * END, took_ms=1_500) == [C]
    assert talk.ensemble.verdict is Verdict.REACHED and talk.ensemble.ended and talk.avoids() == [3]
    assert talk.durable() == dict.fromkeys(PLACES, 2 * END), "it has answered"


@pytest.mark.parametrize(("took_ms", "others_ms"), [(1_000, 50), (1_500, 200)])
def test_who_is_not_ten_times_slower_or_answers_within_a_second_is_not_slow(took_ms: int, others_ms: int) -> None:
    talk = Talk()
    for number in range(1, 6):
        assert slow_turn(talk, number * END, took_ms=took_ms, others_ms=others_ms) == []


def test_one_quick_answer_in_between_forgives() -> None:
    talk = Talk()
    for number, took_ms in enumerate([1_500, 1_500, 200, 1_500, 1_500], 1):
        assert slow_turn(talk, number * END, took_ms=took_ms) == []
    assert slow_turn(talk, 6 * END, took_ms=1_500) == [C]


def test_who_answers_first_is_not_slow() -> None:
    talk = Talk()
    for number in range(1, 5):
        talk.begin(number * END)
        talk.wait(1_500)
        talk.answered(C, end=number * END)
        talk.answered(A, B, end=number * END)
        assert talk.ensemble.failures() == {}


# --- devices to avoid -------------------------------------------------------------------------------------------------------
def test_a_device_is_avoided_for_a_minute_and_longer_the_next_time() -> None:
    avoided, minute = AvoidedDevices(), ENSEMBLE_AVOID_MS * NS_PER_MS
    avoided.avoid(3, 0)
    avoided.avoid(3, minute // 2)  # another segment met the same
    assert avoided.devices(minute - 1) == [3] and avoided.devices(minute) == []
    avoided.avoid(3, minute + 1)
    assert avoided.devices(3 * minute) == [3] and avoided.devices(3 * minute + 1) == []
    avoided.avoid(3, 6 * minute)
    assert avoided.devices(7 * minute) == [], "it was good for long"


# --- everything that may happen -----------------------------------------------------------------------------------------------
WANTS = [
    (3, Redundancy(3, 2)), (3, Redundancy(3, 2, quorum=True)), (2, Redundancy(2, 1)), (2, Redundancy(2, 2)), (3, Redundancy(3, 1)),
    (3, Redundancy(3, 3, quorum=True)), (4, Redundancy(4, 2, quorum=True)), (5, Redundancy(5, 2, quorum=True)), (1, Redundancy(1, 1)),
]  # fmt: skip


class Anything(RuleBasedStateMachine):
    numbers = st.integers(0, 4)

    @initialize(policy=st.sampled_from(WANTS))
    def lease(self, policy: tuple[int, Redundancy]) -> None:
        self.world = World(*policy)

    @rule(blocks=st.integers(1, 3), footer=st.sampled_from([False] * 5 + [True]))
    def begin(self, blocks: int, footer: bool) -> None:
        self.world.begin(blocks, footer=footer)

    @rule(mirror=numbers, how=st.sampled_from(["work", "answer", "work_all", "trickles"]))
    def goes_on(self, mirror: int, how: str) -> None:
        getattr(self.world, how)(mirror)

    @rule(mirror=numbers, tried_again=st.booleans())
    def flush_fails(self, mirror: int, tried_again: bool) -> None:
        self.world.flush_fails(mirror, tried_again=tried_again)

    @rule(mirror=numbers, done=st.booleans())
    def cut(self, mirror: int, done: bool) -> None:
        self.world.cut(mirror, done=done)

    @rule(mirror=numbers, long=st.booleans())
    def answers_wrongly(self, mirror: int, long: bool) -> None:
        self.world.answers_wrongly(mirror, long=long)

    @rule(ms=st.sampled_from([250, 1_000, 2_000, SETTLED_MS]))
    def passes(self, ms: int) -> None:
        self.world.passes(ms)

    @rule(ms=st.sampled_from([400, 3_000, 60_000]))
    def stops(self, ms: int) -> None:
        self.world.stops(ms)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.ends()


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


def happens(world: World, dice: random.Random) -> None:
    """One of all the things that may happen."""
    mirror, coin = dice.randrange(5), dice.random() < 0.5
    acts: dict[Callable[[], None], int] = {
        lambda: world.begin(dice.randint(1, 3), footer=dice.random() < 0.15): 12,
        lambda: world.work(mirror): 12,
        lambda: world.answer(mirror): 12,
        lambda: world.work_all(mirror): 8,
        lambda: world.trickles(mirror): 1,
        lambda: world.flush_fails(mirror, tried_again=coin): 2,
        lambda: world.cut(mirror, done=coin): 1,
        lambda: world.answers_wrongly(mirror, long=coin): 1,
        lambda: world.passes(dice.choice([250, 1_000, 2_000, SETTLED_MS])): 2,
        lambda: world.stops(dice.choice([400, 3_000, 60_000])): 1,
    }
    dice.choices(list(acts), list(acts.values()))[0]()


def wander(dice: random.Random) -> None:
    """One life of a segment."""
    world = World(*dice.choice(WANTS))
    for _ in range(40):
        happens(world, dice)
    world.ends()


def test_any_order_of_events(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(300):
        wander(dice)


# --- ensembles that are wrong -------------------------------------------------------------------------------------------------
def _after(method: str, change: Callable[[Any], None]) -> tuple[str, Callable[..., Any]]:
    """A method that does what it does, and then something wrong."""
    right = getattr(Ensemble, method)

    def wrong(self: Any, *args: Any, **named: Any) -> Any:
        result = right(self, *args, **named)
        change(self)
        return result

    return method, wrong


def _reach_less(self: Any) -> None:
    self._min = self._enough = 1


def _majority_alone(self: Any) -> None:
    self._enough = len(self._mirrors) // 2 + 1


def _longest(self: Any) -> None:
    self.end = max(mirror.durable for mirror in self._mirrors)


def _shortest(self: Any) -> None:
    self.end = min(mirror.durable for mirror in self._mirrors)


def _lost_batches_count(self: Any) -> None:
    if self.verdict is Verdict.LOST and self._batches:
        self.end = self._batches[-1].end


def _set_goes_on(self: Any) -> None:
    self.ended = self._full


def _never_full(self: Any) -> None:
    self._full = False


def _lost_answer_counts(self: Any, bay: Bay, why: str, now_ns: int) -> None:
    mirror = self._mirror(bay)
    if not mirror.failure:
        mirror.durable = mirror.asked
    self._fail(mirror, why, now_ns)
    self._decide(self._time(now_ns))


def _flush_forgiven(self: Any, bay: Bay, why: str, now_ns: int) -> None:
    if "flush" not in why:  # who has said so goes on
        _RIGHT_FAILED(self, bay, why, now_ns)


def _by_position(self: Any) -> list[tuple[int, int, int]]:
    durable = sorted((min(mirror.durable, self.end) for mirror in self._mirrors), reverse=True)
    return [(mirror.bay.device, mirror.bay.index, length) for mirror, length in zip(self._mirrors, durable, strict=True) if length]


def _all_of_it(self: Any) -> list[tuple[int, int, int]]:
    return [(mirror.bay.device, mirror.bay.index, self.end) for mirror in self._mirrors if self.end]


def _what_was_sent(self: Any) -> list[tuple[int, int, int]]:
    return [(mirror.bay.device, mirror.bay.index, min(mirror.sent, self.end)) for mirror in self._mirrors if mirror.sent and self.end]


def _for_the_newest(self: Any, bay: Bay, end: int, now_ns: int) -> None:
    mirror = self._mirror(bay)
    _RIGHT_ANSWERED(self, bay, max(end, mirror.asked) if mirror.owes else end, now_ns)


def _late_answers_are_heard(self: Any, bay: Bay, end: int, now_ns: int) -> None:
    mirror = self._mirror(bay)
    if mirror.failure and mirror.durable < end <= mirror.asked:
        mirror.durable = end
    _RIGHT_ANSWERED(self, bay, end, now_ns)


def _lengths_are_believed(self: Any, bay: Bay, end: int, now_ns: int) -> None:
    mirror = self._mirror(bay)
    if not mirror.failure and end < mirror.durable:
        mirror.durable = end
    _RIGHT_ANSWERED(self, bay, end, now_ns)


_RIGHT_ANSWERED, _RIGHT_FAILED = Ensemble.answered, Ensemble.failed
MUTANTS: dict[str, tuple[str, Callable[..., Any]]] = {
    "a batch counts without min": _after("__init__", _reach_less),
    "a majority counts though it is below min": _after("__init__", _majority_alone),
    "the end is that of the longest mirror": _after("_decide", _longest),
    "the end is that of the shortest mirror": _after("_decide", _shortest),
    "a batch that was lost counts": _after("_decide", _lost_batches_count),
    "the set goes on when a mirror has failed": _after("_decide", _set_goes_on),
    "a footer is appended behind a batch that was lost": _after("_decide", _never_full),
    "a lost answer counts": ("failed", _lost_answer_counts),
    "a failed flush is forgiven": ("failed", _flush_forgiven),
    "mirrors are credited by their position": ("durable", _by_position),
    "every mirror is credited": ("durable", _all_of_it),
    "what was sent is credited": ("durable", _what_was_sent),
    "an answer counts for the newest batch": ("answered", _for_the_newest),
    "late answers are heard": ("answered", _late_answers_are_heard),
    "a mirror is asked for its length": ("answered", _lengths_are_believed),
    "silence is not noticed": ("_is_silent", lambda self, mirror, now: False),
    "who is far behind is kept": ("_is_behind", lambda self, mirror, now: False),
    "everybody is blamed when the client stops": ("_time", lambda self, now_ns: now_ns),
}


@contextmanager
def broken(name: str) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(module.Ensemble, *MUTANTS[name]))
        yield


@pytest.mark.parametrize("name", MUTANTS)
def test_wrong_ensembles_are_found(name: str) -> None:
    with broken(name):
        for life in range(1_000):
            try:
                wander(random.Random(life))
            except AssertionError:
                return
    pytest.fail("no life of a segment shows what is wrong")
