"""The log of dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst), and the images that a power cut may leave of it.

Log: a superblock, then entries; each is a sector with a header, followed by its data.  Writes stand there in the order in which they
had ended, before the flush that covers them; a write with FUA stands alone.  A mark has its text in the header's sector.

A cut is a place in the log.  What the last flush covers, and FUA, is there; of the writes after it a disk may have any.  A flush
covers the image in which its offset is, as of two disks of their own: the kernel keeps the offset of the part that was flushed.
`Disk` goes forward only and keeps what is certain in its images; a cut writes what it keeps of the rest over them and takes it back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

MAGIC = 0x6A736677736872
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8
SECTOR = 512
HEAD = struct.Struct("<4Q")


@dataclass(frozen=True)
class Entry:
    """`offset` and `length` on the logged device, in bytes; the data is at `at` in the log."""

    flags: int
    offset: int
    length: int
    at: int
    mark: str = ""


def entries(log: Path) -> list[Entry]:
    with log.open("rb") as file:
        magic, version, count, sector = struct.unpack("<3QI", file.read(28))
        assert (magic, version) == (MAGIC, 1), "no log of dm-log-writes"
        place = sector
        found = []
        for _ in range(count):
            file.seek(place)
            raw = file.read(sector)
            first, sectors, flags, length = HEAD.unpack_from(raw)
            place += sector
            mark = raw[HEAD.size : HEAD.size + length].rstrip(b"\0").decode() if flags & MARK else ""
            found.append(Entry(flags, first * sector, sectors * sector, place, mark))
            if not flags & (MARK | DISCARD):
                place += sectors * sector
    return found


Pieces = list[tuple[int, bytes]]


class Disk:
    """Two images, one behind the other, as of a place in the log.  One of them may be a disk that ignores flushes."""

    def __init__(self, log: Path, images: list[Path], liar: int | None = None) -> None:
        self._liar = liar
        self._log = log.open("rb")
        self._files = [image.open("r+b", buffering=0) for image in images]
        self._sizes = [image.stat().st_size for image in images]
        self.pending: list[Entry] = []
        self.done: dict[int, int] = {}  # program -> steps that are done
        self.begun: dict[int, int] = {}
        self.started = self.ended = False
        self.flushes = [0] * len(images)

    def close(self) -> None:
        for file in [self._log, *self._files]:
            file.close()

    def forward(self, entry: Entry) -> None:
        if entry.flags & MARK:
            self._mark(entry.mark.split(":"))
            return
        if entry.flags & FLUSH:
            disk = self._place(entry.offset)[0]
            self.flushes[disk] += 1
            if disk != self._liar:
                self._settle(disk)
        if entry.length:
            self.pending.append(entry)

    def _settle(self, disk: int) -> None:
        for write in self.pending:
            if self._place(write.offset)[0] == disk:
                self._write([(write.offset, self._data(write))])
        self.pending = [write for write in self.pending if self._place(write.offset)[0] != disk]

    def _mark(self, words: list[str]) -> None:
        if words[0] in ("begin", "done"):
            counted = self.begun if words[0] == "begin" else self.done
            counted[int(words[1])] = int(words[2]) + 1
        self.started |= words[0] == "start"
        self.ended |= words[0] == "end"

    def _data(self, entry: Entry) -> bytes:
        if entry.flags & DISCARD:
            return bytes(entry.length)
        self._log.seek(entry.at)
        return self._log.read(entry.length)

    # --- cuts -------------------------------------------------------------------------------------------------------------
    @contextmanager
    def cut(self, kind: str, choose: Random) -> Iterator[int]:
        """The images as a power cut here leaves them, while the block lasts; yields how many unflushed writes there were."""
        pieces: Pieces = []
        for entry in self.pending:
            pieces += self._kept(entry, kind, choose)
        before = [(offset, self._read(offset, len(data))) for offset, data in pieces]
        self._write(pieces)
        try:
            yield len(self.pending)
        finally:
            for offset, data in reversed(before):  # overlapping ones too: what was read before the first write wins
                self._write([(offset, data)])

    def _kept(self, entry: Entry, kind: str, choose: Random) -> Pieces:
        data = self._data(entry)
        if kind == "kept" or (entry.flags & FUA and self._place(entry.offset)[0] != self._liar):
            return [(entry.offset, data)]
        if kind == "dropped" or choose.random() < 0.4:
            return []
        if kind == "torn" and choose.random() < 0.5:
            sectors = [at for at in range(0, len(data), SECTOR) if choose.random() < 0.5]
            return [(entry.offset + at, data[at : at + SECTOR]) for at in sectors]
        return [(entry.offset, data)]

    def _place(self, offset: int) -> tuple[int, int]:
        number = 0
        while offset >= self._sizes[number]:
            offset -= self._sizes[number]
            number += 1
        return number, offset

    def _read(self, offset: int, length: int) -> bytes:
        number, at = self._place(offset)
        self._files[number].seek(at)
        data = self._files[number].read(length)
        assert data is not None and len(data) == length
        return data

    def _write(self, pieces: Pieces) -> None:
        for offset, data in pieces:
            number, at = self._place(offset)
            self._files[number].seek(at)
            assert self._files[number].write(data) == len(data)


KINDS = ("dropped", "kept", "some", "torn")


def plan(log: list[Entry], choose: Random, wanted: int) -> dict[int, list[str]]:
    """Place -> kinds of cuts just before the entry there.  Every flush and FUA write is a place; others are drawn until `wanted` are there.

    Where more than `wanted` would come out, every boundary keeps one kind, and the rest is drawn.
    """
    begin = next((number for number, entry in enumerate(log) if entry.mark == "start"), 0)
    bounds = [number for number in range(begin, len(log)) if log[number].flags & (FLUSH | FUA)]
    others = [number for number in range(begin, len(log)) if not log[number].flags & (FLUSH | FUA)]
    planned: dict[int, list[str]] = {}
    for count, number in enumerate(bounds):
        planned[number] = [KINDS[count % len(KINDS)]]
    more = [(number, kind) for number in bounds for kind in KINDS if kind not in planned[number]]
    more += [(number, kind) for number in others for kind in KINDS]
    choose.shuffle(more)
    for number, kind in more[: max(0, wanted - len(bounds))]:
        planned.setdefault(number, []).append(kind)
    return planned
