"""Files that kernels before Linux 6.6 map: which opens go through pages, and that no read(2) meets an old one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.types import Attr
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.api.context import CachePolicy, SetAttrIn
from awsomefsd.vfs.state import mapped_pages
from awsomefsd.vfs.state.mapped_pages import MappedPages
from awsomefsd.vfs.state.open_files import KIND_FILE, OpenFile
from tests.rigs.mount_without_kernel import until
from tests.unit.vfs.ops.test_data_shared import FIRST
from tests.unit.vfs.state.test_leased_caches import Caching

INO = 7


def attr(ctime: int, mtime: int = 1, size: int = 1) -> Attr:
    return Attr(INO, 0o100644, 1, 0, 0, 0, size, size, 0, mtime, ctime, 0)


def needed() -> bool:
    return True


def test_only_files_under_a_lease_and_only_where_the_kernel_needs_it() -> None:
    forgotten: list[int] = []
    pages = MappedPages(forgotten.append, needed)
    assert not pages.opened(INO, 1, os.O_RDWR, leased=False), "others may write it"
    assert not pages.opened(INO, 2, os.O_RDWR | os.O_APPEND, leased=True) and not pages.opened(INO, 2, os.O_DIRECT, leased=True)
    assert not pages.open(INO) and forgotten == []
    assert pages.opened(INO, 3, os.O_RDWR, leased=True) and pages.opened(INO, 4, os.O_RDONLY, leased=True)
    assert forgotten == [INO], "what was told with a time; never again while somebody reads"
    assert pages.beside(INO, 2) and not pages.beside(INO, 3)
    pages.closed(INO, 3)
    assert pages.open(INO)
    pages.closed(INO, 4)
    assert not pages.open(INO) and pages.known() == [] and not pages.beside(INO, 2)
    assert not MappedPages(forgotten.append).opened(INO, 3, os.O_RDWR, leased=True), "a kernel that maps in any case"


def test_pages_are_dropped_before_the_answer_only_where_the_kernel_would_keep_them() -> None:
    pages = MappedPages(lambda _ino: None, needed)
    pages.opened(INO, 1, os.O_RDONLY, leased=True)
    assert not pages.stale(attr(1)), "the open dropped them"
    assert not pages.stale(attr(2, mtime=2)) and not pages.stale(attr(3, mtime=2, size=2)), "the kernel sees it, and takes the size"
    assert pages.stale(attr(4, mtime=2, size=2)) and not pages.stale(attr(4, mtime=2, size=2)), "only the ctime moved"
    pages.mtime_taken(attr(6, mtime=5, size=2))
    assert pages.stale(attr(6, mtime=5, size=2)), "its pages may be from before another node's write"
    pages.mtime_taken(attr(7, mtime=6))
    assert not pages.stale(attr(8, mtime=6, size=9)), "the kernel would ignore the new size"


def test_a_successor_takes_every_handle_for_one_with_pages() -> None:
    inherited = [OpenFile(10, INO, os.O_RDWR, KIND_FILE, 0, 0)]
    assert MappedPages(lambda _ino: None, needed, inherited).known() == [INO]
    assert MappedPages(lambda _ino: None, bool, inherited).known() == []


def test_pages_are_taken_back_when_no_answer_is_on_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(mapped_pages.time, "monotonic", lambda: now_s)
    pages = MappedPages(lambda _ino: None, needed)
    assert pages.begin_drop(INO) is None, "nobody has any"
    pages.opened(INO, 1, os.O_RDONLY, leased=True)
    assert pages.begin_drop(INO) == 0.0 and pages.begin_drop(INO) is None, "one waits already"
    assert pages.quiet_in(INO) == 0.0
    pages.asked(INO)
    assert pages.begin_drop(INO) == mapped_pages.QUIET_S == pages.quiet_in(INO)
    now_s += mapped_pages.QUIET_S
    assert pages.quiet_in(INO) == 0.0
    pages.closed(INO, 1)
    assert pages.quiet_in(INO) is None


# --- two nodes --------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Caching]]:
    monkeypatch.setattr(mapped_pages, "QUIET_S", 0.0)
    first = Caching(tmp_path)
    first.hold_lease_clock()
    second = Caching(tmp_path, first, FIRST + 1)
    try:
        for node in (first, second):
            node.start()
            node.mount.caches.kernel.mapped._needed = needed  # type: ignore[union-attr]
        yield [first, second]
    finally:
        second.close()
        first.close()


def test_a_file_that_nobody_else_writes_is_opened_through_pages(nodes: list[Caching]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"old")
    opened = two.call("open", two.lookup(b"f").ino, os.O_RDWR)
    assert opened.cache == CachePolicy.DROP and two.vfs.attr_ttl_ns(two.attr(ino)) == 0, "each read(2) asks"
    assert two.call("open", ino, os.O_WRONLY | os.O_APPEND).cache == CachePolicy.DIRECT
    two.kernel.told.clear()
    one.write(ino, fh, 0, b"new")  # recalls it
    until(lambda: ("pages", ino) in two.kernel.told)
    assert ("attributes", ino) not in two.kernel.told, "an answer on its way has to count"
    assert two.attr(ino).size == 3 and two.read(ino, opened.fh, 0, 9) == b"new"


def test_an_own_write_beside_the_pages_makes_mappings_ask_again(nodes: list[Caching]) -> None:
    one, _ = nodes
    ino, fh = one.create(b"f", flags=os.O_RDWR | os.O_APPEND)
    one.write(ino, fh, 0, b"x")
    through = one.call("open", ino, os.O_RDWR)
    assert through.cache == CachePolicy.DROP
    one.kernel.told.clear()
    one.write(ino, through.fh, 0, b"y")
    one.write(ino, fh, 0, b"z")
    until(lambda: ("pages", ino) in one.kernel.told)


def test_after_setattr_the_pages_go_before_the_next_answer(nodes: list[Caching]) -> None:
    one, two = nodes
    ino = one.file(b"f")
    two.call("open", two.lookup(b"f").ino, os.O_RDONLY)
    two.attr(ino)
    two.kernel.told.clear()
    two.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert ("pages", ino) not in two.kernel.told, "the kernel holds up writes of pages meanwhile"
    two.attr(ino)
    assert two.kernel.told[-1] == ("pages", ino)
