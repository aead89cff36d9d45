"""The check of a mirror: when it is given up, when nothing is changed because nobody knows, and what is gone before it was compared."""

from __future__ import annotations

import errno
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import BAY_MIRROR, SEGMENT_SEALED, SegmentBay, SegmentInBays
from awsomefsd.io.transport.messages import WRONG_MAX, Verified, Wrong
from awsomefsd.meta.api.commands import BaysWrong
from awsomefsd.meta.api.messages import GetSegments, Made, Segments
from awsomefsd.meta.api.messages.collection import GetPieces, Pieces
from awsomefsd.node.maintenance.bay_check import BayCheck
from awsomefsd.node.maintenance.segment_check import ScrubFinding

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

    def run(self) -> None:
        check = BayCheck("n1", self._call, self._propose, self._verify, self.found.append, lambda _count, _began: None, self.counted)
        check.run(self.info, {OWN})

    def _call(self, question: Any) -> Any:
        if isinstance(question, GetSegments):
            return self.segments()
        assert isinstance(question, GetPieces)
        return Pieces([])

    def _propose(self, command: Any) -> Any:
        self.proposed.append(command)
        return self.propose(command)

    def _verify(self, _info: SegmentInBays, bay: SegmentBay, _end: int) -> Verified:
        said = self.said[bay.device - 1]
        if isinstance(said, OSError):
            raise said
        return said


def refused(number: int) -> Any:
    raise FsError(number, "refused")


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
