"""The report of a file and the summary of a tree ask bounded questions, and count what is there once."""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.limits import READDIR_ENTRIES_MAX
from awsomefsd.base.types import SEGMENT_FREE, Attr, Dirent, Extent, SegmentInfo
from awsomefsd.meta.api import messages as m
from awsomefsd.node import observing

VOLUME = 1


def attr(ino: int, kind: int = stat.S_IFREG, size: int = 0, nlink: int = 1, *, inline: bool = False) -> Attr:
    return Attr(ino, kind | 0o644, nlink, 0, 0, 0, size, size // 2, 0, 0, 0, 0, inline)


class Tree:
    """Metadata of a volume: directories with (name, attributes), and the layouts of files."""

    def __init__(self, directories: dict[int, list[tuple[bytes, Attr]]], layouts: dict[int, list[m.Layout]] | None = None) -> None:
        self.directories = directories
        self.layouts = layouts or {}
        self.attrs = {one.ino: one for entries in directories.values() for _, one in entries}
        self.asked: list[Any] = []
        self.gone: set[int] = set()
        self.errno = errno.ENOENT  # of what is gone
        self.written: set[int] = set()  # by a mount: pages come without the attributes

    def ask(self, body: Any) -> Any:
        self.asked.append(body)
        if isinstance(body, m.GetAttr):
            if body.ino in self.gone:
                raise FsError(self.errno)
            return m.Found(attr(body.ino, stat.S_IFDIR, nlink=2) if body.ino in self.directories else self.attrs[body.ino])
        if isinstance(body, m.GetLayout):
            return next(part for part in self.layouts[body.ino] if part.end > body.start)
        assert isinstance(body, m.ReadDir) and body.plus and body.count <= READDIR_ENTRIES_MAX
        if body.ino in self.gone:
            raise FsError(self.errno)
        found = [
            Dirent(name, one.ino, stat.S_IFMT(one.mode), at, None if one.ino in self.written else one)
            for at, (name, one) in enumerate(self.directories[body.ino], 1)
            if at > body.after
        ]
        return m.Entries(found[: body.count], len(found) <= body.count)


def last(tree: Tree, ino: int) -> observing.TreeSummary:
    return list(observing.summaries(tree.ask, VOLUME, ino))[-1]


def test_a_tree_is_counted_page_by_page() -> None:
    many = [(b"f%d" % number, attr(100 + number, size=10)) for number in range(READDIR_ENTRIES_MAX + 1)]
    below = [(b"link", attr(2000, stat.S_IFLNK, 7)), (b"pipe", attr(2001, stat.S_IFIFO))]
    tree = Tree({1: [*many, (b"below", attr(2, stat.S_IFDIR, nlink=2))], 2: below})
    told = last(tree, 1)
    assert (told.directories, told.files, told.symlinks, told.others) == (2, len(many), 1, 1)
    assert (told.bytes, told.stored_bytes) == (10 * len(many), 5 * len(many))
    assert len([body for body in tree.asked if isinstance(body, m.ReadDir)]) == 3


def test_a_file_with_two_names_counts_once() -> None:
    one = attr(7, size=100, nlink=2)
    told = last(Tree({1: [(b"a", one), (b"b", one)]}), 1)
    assert (told.files, told.bytes, told.further_names) == (1, 100, 1)


def test_files_with_several_names_are_remembered_until_the_last_one_and_never_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observing, "HELD_MAX", READDIR_ENTRIES_MAX)
    pairs = [(b"%d-%d" % (number, name), attr(100 + number, size=10, nlink=2)) for number in range(2_000) for name in range(2)]
    told = last(Tree({1: pairs}), 1)
    assert (told.files, told.bytes, told.further_names) == (2_000, 20_000, 2_000)
    with pytest.raises(Refused, match="ask for parts of the tree"):
        last(Tree({1: pairs[::2]}), 1)


def test_a_directory_that_is_removed_meanwhile_is_empty_and_a_missing_root_is_an_error() -> None:
    tree = Tree({1: [(b"below", attr(2, stat.S_IFDIR, nlink=2))], 2: [(b"file", attr(3, size=5))]})
    tree.gone = {2}
    assert (last(tree, 1).directories, last(tree, 1).files) == (2, 0)
    tree.gone = {1}
    with pytest.raises(FsError):
        last(tree, 1)


def test_files_and_directories_that_a_mount_writes_are_counted() -> None:
    """Pages of a directory leave their attributes out."""
    tree = Tree({1: [(b"file", attr(3, size=5)), (b"below", attr(2, stat.S_IFDIR, nlink=2))], 2: [(b"other", attr(4, size=7))]})
    tree.written = {2, 3}
    told = last(tree, 1)
    assert (told.directories, told.files, told.bytes) == (2, 2, 12)
    assert all(body.buffered for body in tree.asked if isinstance(body, m.GetAttr)), "a writer would lose its lease"
    tree.gone = {3}
    assert last(tree, 1).files == 1, "it was removed since the page"


@pytest.mark.parametrize("written", [False, True])
def test_what_cannot_be_read_is_no_empty_directory(written: bool) -> None:
    tree = Tree({1: [(b"below", attr(2, stat.S_IFDIR, nlink=2))], 2: [(b"file", attr(3, size=5))]})
    tree.gone, tree.errno, tree.written = {2}, errno.EIO, {2} if written else set()
    with pytest.raises(FsError):
        last(tree, 1)


def test_a_summary_of_a_file_is_of_that_file() -> None:
    assert last(Tree({1: [(b"file", attr(3, size=5))]}), 3).bytes == 5


def extent(offset: int, segment: int) -> Extent:
    return Extent(offset, 10, segment, 1, 1, 0, 64, 0)


def place(segment: int, device: int) -> SegmentInfo:
    return SegmentInfo(segment, 1, device, 0, 1 << 20, SEGMENT_FREE, 0)


def test_a_layout_in_parts_is_one_report(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        m.Layout(40, [extent(0, 1), extent(10, 2)], [place(1, 5), place(2, 6)], None, 20),
        m.Layout(40, [extent(20, 1), extent(30, 0)], [place(1, 5)], None, 40),
    ]
    tree = Tree({1: [(b"file", attr(3, size=40))]}, {3: parts})
    told = observing.file_report(tree.ask, VOLUME, 3)
    assert (told.extents, [device for _, device in told.first], told.cut) == (3, [5, 6, 5], False), "one of zeros has no place"
    assert {number: (len(one.segments), one.extents, one.bytes) for number, one in told.places.items()} == {5: (1, 2, 20), 6: (1, 1, 10)}
    monkeypatch.setattr(observing, "EXTENTS_COUNTED_MAX", 2)
    told = observing.file_report(tree.ask, VOLUME, 3)
    assert told.cut and told.extents == 2


def test_data_in_the_metadata_has_no_place() -> None:
    told = observing.file_report(Tree({1: [(b"small", attr(3, size=5, inline=True))]}).ask, VOLUME, 3)
    assert (told.extents, told.places) == (0, {})
