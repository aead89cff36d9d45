"""A layout of very many extents is told in parts (an answer has to fit a frame, and the metadata thread must not read for long)."""

from __future__ import annotations

import pytest

from awsomefsd.meta.api.commands import InodeCommit
from awsomefsd.meta.api.messages import GetLayout, Layout
from awsomefsd.meta.machine import queries
from tests.rigs.machine_driver import Drive


def layout(drive: Drive, ino: int, start: int, end: int) -> Layout:
    reply = queries.answer(drive.machine, GetLayout(drive.volume, ino, start, end))
    assert isinstance(reply, Layout)
    return reply


def fragmented(monkeypatch: pytest.MonkeyPatch, extents: int) -> tuple[Drive, int]:
    monkeypatch.setattr(queries, "LAYOUT_EXTENTS_MAX", 10)
    drive = Drive()
    drive.make_volume()
    drive.open()
    ino = drive.create(b"f")
    (segment,) = drive.lease()
    for number in reversed(range(extents)):  # backwards, and with holes: nothing joins
        drive.write(segment, ino, number * 8192, 4096)
    return drive, ino


def test_the_parts_together_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    drive, ino = fragmented(monkeypatch, 35)
    seen, start = [], 0
    while start < 1 << 30:
        part = layout(drive, ino, start, 1 << 30)
        assert part.end > start, "no progress"
        assert len(part.extents) <= 11
        seen += [extent.file_offset for extent in part.extents if extent.file_offset >= start]
        start = part.end
    assert seen == [number * 8192 for number in range(35)]


def test_a_layout_that_fits_is_exact_up_to_the_asked_end(monkeypatch: pytest.MonkeyPatch) -> None:
    drive, ino = fragmented(monkeypatch, 5)
    assert layout(drive, ino, 0, 1 << 30).end == 1 << 30
    assert layout(drive, ino, 0, 12288).end == 12288


def test_inline_data_comes_whole() -> None:
    drive = Drive()
    drive.make_volume()
    drive.open()
    ino = drive.create(b"f")
    drive.ok(drive.commit(None, InodeCommit(ino, 1, 1, 3, 5, inline=[(0, b"abc")])))
    part = layout(drive, ino, 0, 100)
    assert (part.inline, part.end) == (b"abc", 100)
