"""The check of a mirror: when it is given up, when nothing is changed because nobody knows, and what is gone before it was compared."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_SEALED, SegmentBay, SegmentInBays
from awsomefsd.io.pool.remote_errors import ServerAway
from awsomefsd.io.pool.verifying import Verifying
from awsomefsd.io.transport.messages import WRONG_MAX, Verified, Wrong
from awsomefsd.meta.api.commands import BaysWrong
from awsomefsd.meta.api.messages import GetSegments, Made, Segments
from awsomefsd.meta.api.messages.collection import GetPieces, Pieces
from awsomefsd.node.maintenance.bay_check import BayCheck
from awsomefsd.node.maintenance.segment_check import ScrubFinding
from tests.rigs.segment_servers import until

END = 64 << 20
OWN = 1
FRAME = 1 << 20


def wrong_at(*offsets: int) -> Verified:
    """What a server says of a mirror that is wrong in these places: it names the first WRONG_MAX of them."""
    return Verified(9, END, len(offsets), [Wrong(offset, "checksum mismatch") for offset in offsets[:WRONG_MAX]])


def row(mirrors: int) -> SegmentInBays:
    bays = [SegmentBay(device, 0, END, BAY_MIRROR) for device in range(1, mirrors + 1)]
    return SegmentInBays(7, 1, 0, 0, END, SEGMENT_SEALED, END, 0, 0, END, bays, 0, 3)


class Checked:
    """A segment with mirrors on devices 1, 2, ..., and what each server says of its own (an OSError: it cannot now)."""

    def __init__(self, *said: Verified | OSError) -> None:
        self.info, self.said = row(len(said)), said
        self.found: list[ScrubFinding] = []
        self.proposed: list[BaysWrong] = []
        self.counted = SimpleNamespace(extents=0, rechecked=0)
        self.segments: Callable[[], Segments] = lambda: Segments([self.info])
        self.propose: Callable[[BaysWrong], Made] = lambda command: Made(len(command.bays))

        self.pace: Callable[[int, float], None] = lambda _count, _began: None
        self.verified: list[int] = []

    def run(self, own: frozenset[int] = frozenset({OWN})) -> None:
        check = BayCheck("n1", self._call, self._propose, self._verify, self.found.append, self.pace, self.counted)
        check.run(self.info, set(own))

    def _call(self, question: Any) -> Any:
        if isinstance(question, GetSegments):
            return self.segments()
        assert isinstance(question, GetPieces)
        return Pieces([])

    def _propose(self, command: Any) -> Any:
        self.proposed.append(command)
        return self.propose(command)

    def _verify(self, _info: SegmentInBays, bay: SegmentBay, _end: int) -> Verified:
        self.verified.append(bay.device)
        said = self.said[bay.device - 1]
        if isinstance(said, OSError):
            raise said
        return said


def refused(number: int) -> Any:
    raise FsError(number, "refused")


AWAY = OSError(errno.ETIMEDOUT, "no answer")
FAR = [FRAME * number for number in range(40)]
MANY = [4096 * number for number in range(WRONG_MAX + 1)]  # more places than an answer names


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (wrong_at(FRAME), wrong_at()),
        (wrong_at(FRAME), wrong_at(5 * FRAME)),
        (wrong_at(*FAR[::2]), wrong_at(*FAR[1::2])),
        (wrong_at(*MANY), wrong_at()),
    ],
    ids=["good", "elsewhere", "here_and_there", "good_where_many_are"],
)
def test_a_mirror_is_given_up_where_another_one_is_right(own: Verified, other: Verified) -> None:
    checked = Checked(own, other)
    checked.run()
    assert checked.proposed == [BaysWrong("n1", OWN, [(0, 7)])] and [one.repaired for one in checked.found] == [True]


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (wrong_at(FRAME), wrong_at(FRAME)),
        (wrong_at(*FAR[:3]), wrong_at(FAR[2])),
        (wrong_at(*MANY), wrong_at(MANY[-1])),
        (wrong_at(MANY[-1]), wrong_at(*MANY)),
        (wrong_at(*MANY), wrong_at(*(one + FRAME for one in MANY))),
        (wrong_at(FRAME), OSError(errno.EHOSTDOWN, "away")),
    ],
    ids=["same", "one_of_them", "own_list_is_cut", "other_list_is_cut", "both_are_cut", "away"],
)
def test_nothing_is_given_up_where_no_other_mirror_is_known_to_be_right(own: Verified, other: Verified | OSError) -> None:
    checked = Checked(own, other)
    checked.run()
    assert not checked.proposed and [one.repaired for one in checked.found] == [False]


def test_a_third_mirror_may_be_the_one_that_is_right() -> None:
    checked = Checked(wrong_at(*MANY), wrong_at(MANY[-1]), wrong_at())
    checked.run()
    assert checked.proposed and checked.found[0].repaired


def test_a_segment_that_died_meanwhile_is_no_finding_and_ends_no_round() -> None:
    checked = Checked(wrong_at(FRAME), wrong_at())
    checked.segments = lambda: refused(errno.ENOENT)
    checked.run()
    assert not checked.found and not checked.proposed and checked.counted.rechecked == 1


def test_a_device_that_moved_to_another_node_meanwhile_leaves_an_open_finding() -> None:
    checked = Checked(wrong_at(FRAME), wrong_at())
    checked.propose = lambda _command: refused(errno.ESTALE)
    checked.run()
    assert [one.repaired for one in checked.found] == [False]


class End(Exception):
    """The scrub is to end."""


@pytest.mark.parametrize(
    ("said", "verified"), [((AWAY, AWAY, AWAY), [1]), ((wrong_at(FRAME), AWAY, AWAY), [1, 1, 2])], ids=["own", "compared"]
)
def test_a_scrub_that_is_to_end_does_so_after_one_server_that_hangs(said: tuple[Any, ...], verified: list[int]) -> None:
    """Each may take a minute: all mirrors of a device that hangs would hold up the end of the daemon for hours."""
    checked = Checked(*said)

    def pace(count: int, _began: float) -> None:
        if not count:
            raise End

    checked.pace = pace
    with pytest.raises(End):
        checked.run(frozenset({1, 2, 3}))
    assert checked.verified == verified


def test_an_order_that_is_waited_for_ends_with_the_scrub_and_the_next_one_connects_anew() -> None:
    made: list[Hanging] = []

    def make() -> Any:
        made.append(Hanging())
        return made[-1]

    verifying, info, failed = Verifying(make), row(1), []

    def ask() -> None:
        try:
            verifying.verify(info, info.bays[0], END)
        except OSError as err:
            failed.append(err)

    for number in (1, 2):
        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda number=number: len(made) == number and made[-1].asked.is_set())  # type: ignore[misc]
        verifying.close()
        asking.join(60)
        assert not asking.is_alive() and len(failed) == number


class Hanging:
    """Devices whose servers never answer; an order ends when they are closed."""

    def __init__(self) -> None:
        self.asked, self.closed = threading.Event(), threading.Event()
        self.server = self

    def device_of(self, _number: int) -> Hanging:
        return self

    def order(self, _record: Any, _deadline_ns: int) -> Any:
        self.asked.set()
        assert self.closed.wait(60)
        raise ServerAway(errno.ESHUTDOWN, "closed")

    def close(self) -> None:
        self.closed.set()
