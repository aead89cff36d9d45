"""Files and trees as the metadata has them: what an inode is and where its data lies, and the sizes and counts of a tree.

Both ask the metadata like any client, one bounded question after the other, so no question keeps the metadata thread from others for longer
than a page of a directory or of a layout does.  Nothing is read from devices, and no mount is needed.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.limits import READDIR_ENTRIES_MAX
from awsomefsd.base.types import Attr, Extent
from awsomefsd.meta.api.messages import GetAttr, GetLayout, ReadDir

EXTENTS_COUNTED_MAX = 1 << 20  # of one file: some 64 questions
EXTENTS_SHOWN_MAX = 256
HELD_MAX = 1 << 19  # inodes that a summary remembers: some 40 MiB, and two may run
_END = (1 << 63) - 1

Ask = Callable[[Any], Any]  # a request to the metadata service; refusals are raised


@dataclass
class DevicePart:
    """The part of a file that is on one device.  `device` is its number."""

    device: int
    segments: set[int] = field(default_factory=set)
    extents: int = 0
    bytes: int = 0


@dataclass
class FileReport:
    """One inode.  `first`: (extent, device) of the first EXTENTS_SHOWN_MAX.  `cut`: there are more extents than were counted."""

    attr: Attr
    extents: int = 0
    first: list[tuple[Extent, int]] = field(default_factory=list)
    places: dict[int, DevicePart] = field(default_factory=dict)
    cut: bool = False


def file_report(ask: Ask, volume: int, ino: int) -> FileReport:
    """Returns what the metadata has of an inode; of a regular file also where its data lies.  Blocks; raises the service's Error."""
    report = FileReport(ask(GetAttr(volume, ino)).attr)
    if not stat.S_ISREG(report.attr.mode) or report.attr.inline:
        return report
    start = 0
    while start < report.attr.size and not report.cut:
        layout = ask(GetLayout(volume, ino, start, _END))
        devices = {one.segment: one.device for one in layout.segments}
        for extent in layout.extents:
            if extent.segment in devices:  # not one of zeros, or of lost data: it has no place
                _add(report, extent, devices[extent.segment])
        if layout.inline is not None or layout.end <= start:
            break
        start = layout.end
        report.cut = report.extents >= EXTENTS_COUNTED_MAX and start < report.attr.size
    return report


def _add(report: FileReport, extent: Extent, device: int) -> None:
    if len(report.first) < EXTENTS_SHOWN_MAX:
        report.first.append((extent, device))
    report.extents += 1
    place = report.places.setdefault(device, DevicePart(device))
    place.segments.add(extent.segment)
    place.extents += 1
    place.bytes += extent.length


@dataclass
class TreeSummary:
    """Sizes and counts; `bytes` and `stored_bytes` are those of files, each once however many names it has."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    others: int = 0
    bytes: int = 0
    stored_bytes: int = 0
    further_names: int = 0


def summaries(ask: Ask, volume: int, ino: int) -> Iterator[TreeSummary]:
    """Yields the sizes and counts of what is at and below an inode, after each page of a directory; the last one is whole.

    It is of no single moment where the tree changes meanwhile; a directory that is removed meanwhile counts as empty.  Blocks; raises the
    service's Error, and Refused for a tree of which more than HELD_MAX inodes would have to be remembered.
    """
    told = TreeSummary()
    linked: dict[int, int] = {}  # files with several names that were counted, and how many of these are still to come
    attr = ask(GetAttr(volume, ino, buffered=True)).attr
    _count(told, linked, attr)
    waiting = [ino] if stat.S_ISDIR(attr.mode) else []
    while waiting:
        directory, after, end = waiting.pop(), 0, False
        while not end:
            try:
                page = ask(ReadDir(volume, directory, after, READDIR_ENTRIES_MAX, True))
            except FsError as err:
                if directory == ino or err.errno != errno.ENOENT:
                    raise
                break  # removed meanwhile
            for entry in page.entries:
                if (attr := entry.attr or _attr(ask, volume, entry.ino)) is not None:
                    _count(told, linked, attr)
                if stat.S_ISDIR(entry.kind):
                    waiting.append(entry.ino)
                after = entry.cookie
            end = page.end or not page.entries
            if len(linked) + len(waiting) > HELD_MAX:
                raise Refused(
                    f"more than {HELD_MAX:,} files with further names elsewhere, or directories to visit; ask for parts of the tree"
                )
            yield told
    yield told


def _attr(ask: Ask, volume: int, ino: int) -> Attr | None:
    """Asks for what a page leaves out of an inode that a mount writes; None of one that was removed meanwhile.

    As stat(2) of another mount does, so the writer keeps its lease and flushes nothing.
    """
    try:
        found: Attr = ask(GetAttr(volume, ino, buffered=True)).attr
    except FsError as err:
        if err.errno != errno.ENOENT:
            raise
        return None
    return found


def _count(told: TreeSummary, linked: dict[int, int], attr: Attr) -> None:
    if stat.S_ISDIR(attr.mode):
        told.directories += 1
        return
    if attr.nlink > 1:
        if attr.ino in linked:
            told.further_names += 1
            linked[attr.ino] -= 1
            if not linked[attr.ino]:
                del linked[attr.ino]
            return
        linked[attr.ino] = attr.nlink - 1
    if stat.S_ISREG(attr.mode):
        told.files += 1
        told.bytes += attr.size
        told.stored_bytes += attr.stored_bytes
    elif stat.S_ISLNK(attr.mode):
        told.symlinks += 1
    else:
        told.others += 1
