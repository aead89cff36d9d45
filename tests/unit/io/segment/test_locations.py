"""What a worker remembers of segments: bounded, never older than what it was told, and asked for again when it went."""

from __future__ import annotations

import errno
import random
import threading
from typing import Any

import pytest

from awsomefsd.base.errors import Corrupt, FsError
from awsomefsd.base.types import SEGMENT_SEALED, SegmentInfo
from awsomefsd.base.wait import MustWait, begin_reading_requests
from awsomefsd.io.segment import locations as module
from awsomefsd.io.segment.locations import Locations
from awsomefsd.meta.api.messages import Segments


def row(segment: int, incarnation: int = 1) -> SegmentInfo:
    return SegmentInfo(segment, incarnation, 1, segment << 20, 1 << 20, SEGMENT_SEALED, 0)


class Service:
    def __init__(self) -> None:
        self.asked: list[int] = []
        self.there = 1_000

    def ask(self, body: Any) -> Segments:
        (segment,) = body.segments
        self.asked.append(segment)
        if segment >= self.there:
            raise FsError(errno.ENOENT, f"no segment {segment}")  # so answers the service, meta/machine/queries.py
        return Segments([row(segment)])


def test_the_map_is_bounded_and_what_went_is_asked_for_again(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(module, "SEGMENTS_KNOWN_MAX", 64)
    service, chance = Service(), random.Random(seed)
    locations = Locations(service.ask, service.ask)
    for _ in range(2_000):
        if chance.randrange(2):
            first = chance.randrange(900)
            locations.learn(map(row, range(first, first + chance.randrange(90))))
        else:
            wanted = chance.randrange(1_000)
            assert locations.locate(wanted).segment == wanted
        assert len(locations._segments) <= 64
    locations.bound(0.25)
    assert len(locations._segments) <= 16
    locations.learn([row(5)])
    del service.asked[:]
    locations.locate(5)
    assert not service.asked, "what was learnt last stays"
    with pytest.raises(Corrupt):
        locations.locate(5_000)
    service.there = 5
    with pytest.raises(Corrupt):  # its row went with its last live byte: readers ask for the layout again
        locations.locate_again(5)


def test_a_thread_that_reads_requests_does_not_ask() -> None:
    service, met = Service(), []
    locations = Locations(service.ask, service.ask)
    locations.learn(map(row, range(3)))

    def read() -> None:
        begin_reading_requests()
        with pytest.raises(MustWait):
            locations.locate(3)
        met.append(locations.locate(0).segment)

    thread = threading.Thread(target=read)
    thread.start()
    thread.join()
    assert met == [0] and not service.asked


def test_an_older_row_does_not_replace_a_newer_one() -> None:
    service = Service()
    locations = Locations(service.ask, service.ask)
    locations.learn([row(3, 7)])
    locations.learn([row(3, 6)])
    assert locations.locate(3).incarnation == 7 and not service.asked
