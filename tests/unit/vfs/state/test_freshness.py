"""The words for how fresh reads have to be, and what they mean: for rows, for children, for what the kernel is told and keeps."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base import consistency
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import CLOSE_TO_OPEN_ATTR_MS
from awsomefsd.base.types import ROOT_INO, Attr
from awsomefsd.config import mount_options
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.api.context import CachePolicy, SetAttrIn
from awsomefsd.vfs.state.open_files import KIND_FILE, OpenFile
from awsomefsd.vfs.state.page_cache import LoosePages
from tests.rigs.mount_without_kernel import error_of
from tests.rigs.sharing_nodes import FIRST
from tests.unit.vfs.state.test_leased_caches import Caching

NAME = consistency.XATTR


# --- words ------------------------------------------------------------------------------------------------------------------------
def test_words() -> None:
    parse = consistency.parse
    assert parse("strict") == consistency.STRICT and parse("close-to-open") == consistency.CLOSE_TO_OPEN
    assert [parse(f"bounded={text}") for text in ("5", "0.5", "0.1", "3600", "1.25")] == [5_000, 500, 100, 3_600_000, 1_250]
    for text in ("", "Strict", "bounded", "bounded=", "bounded=.", "bounded=0", "bounded=0.05", "bounded=3601", "bounded=1.23456"):
        with pytest.raises(ValueError, match=r"strict|give"):
            parse(text)
    with pytest.raises(ValueError, match="give seconds"):
        parse("bounded=\u0665")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("shared,consistency=loose", "write strict, close-to-open or bounded=SECONDS"),
        ("shared,consistency=bounded", "with a number of seconds"),
        ("shared,consistency=bounded=x", "give seconds"),
        ("shared,consistency=bounded=0", "3600 seconds"),
        ("shared,bounded=5", "write consistency=bounded=5"),
        ("shared,bounded", "write consistency=bounded=5"),
        ("consistency=close-to-open", "add shared"),
        ("shared,cache=none,consistency=bounded=5", "exclude each other"),
        ("shared,consistancy=strict", "did you mean consistency"),
    ],
)
def test_options_that_are_refused(options: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        mount_options.parse(options.split(","))


def test_options() -> None:
    assert mount_options.parse(["shared"]).consistency == consistency.STRICT == mount_options.parse(["consistency=strict"]).consistency
    assert mount_options.parse(["shared", "consistency=bounded=5"]).consistency == 5_000


# --- pages ------------------------------------------------------------------------------------------------------------------------
def attr(ctime: int, mtime: int = 1, size: int = 1) -> Attr:
    return Attr(7, 0o100644, 1, 0, 0, 0, size, size, 0, mtime, ctime, 0)


def test_pages_stay_only_while_the_version_does_and_after_a_proof() -> None:
    forgotten: list[int] = []
    pages = LoosePages(forgotten.append)
    assert pages.opened(attr(1), 10, os.O_RDONLY) == 0 and forgotten == [7]
    assert pages.opened(attr(1), 11, os.O_RDONLY) == 0, "the kernel may not have taken the first answer"
    pages.used(7, 10)
    assert pages.opened(attr(1), 12, os.O_RDONLY) == CachePolicy.KEEP and forgotten == [7]
    assert pages.opened(attr(2), 13, os.O_RDONLY) is None and forgotten == [7], "others read: their answers must count"
    assert not pages.stale(attr(3, 3))
    assert pages.opened(attr(3, 3), 9, os.O_RDWR) is None and forgotten == [7], "what was told is what is true"
    assert pages.written(7) and pages.opened(attr(4), 13, os.O_RDONLY) is None and forgotten == [7, 7], "fstat asks"
    assert pages.opened(attr(5), 13, os.O_RDONLY) is None and forgotten == [7, 7], "nothing was told since"
    forgotten.pop()
    for fh in (9, 10, 11, 12, 13):
        pages.closed(7, fh)
    assert pages.opened(attr(2), 14, os.O_RDONLY) == 0 and forgotten == [7, 7]
    pages.used(7, 14)
    pages.closed(7, 14)
    assert pages.opened(attr(2), 15, os.O_RDONLY) == CachePolicy.KEEP
    assert pages.opened(attr(2), 16, os.O_RDWR) is None and pages.opened(attr(2), 17, os.O_RDONLY) is None, "it is written here"
    pages.closed(7, 16)
    assert pages.opened(attr(2), 18, os.O_RDONLY) == CachePolicy.KEEP
    assert pages.opened(attr(2), 19, os.O_RDONLY | os.O_DIRECT) is None


def test_a_change_that_size_and_mtime_do_not_show_drops_the_pages() -> None:
    pages = LoosePages(lambda _ino: None)
    assert not pages.stale(attr(1)), "nobody reads it"
    pages.opened(attr(1, 5), 10, os.O_RDONLY)
    assert not pages.stale(attr(1, 5)) and not pages.stale(attr(2, 6)), "the kernel sees the mtime"
    assert pages.stale(attr(3, 6)) and not pages.stale(attr(3, 6)) and pages.stale(attr(4, 5)) and not pages.stale(attr(5, 7))


def test_a_handle_that_nothing_came_through_proves_nothing() -> None:
    """Perhaps the kernel never got the answer to its open, and has pages of before: size and mtime may not show that."""
    pages = LoosePages(lambda _ino: None)
    pages.opened(attr(1), 10, os.O_RDONLY)
    pages.used(7, 10)
    pages.closed(7, 10)
    assert pages.opened(attr(2), 11, os.O_RDONLY) == CachePolicy.DROP
    pages.closed(7, 11)
    assert pages.opened(attr(2), 12, os.O_RDONLY) == CachePolicy.DROP


def test_a_successor_takes_every_reading_handle_for_one_with_pages() -> None:
    forgotten: list[int] = []
    pages = LoosePages(forgotten.append, [OpenFile(10, 7, os.O_RDONLY, KIND_FILE, 0, 0)])
    assert pages.opened(attr(1), 11, os.O_RDONLY) is None and not forgotten
    assert pages.stale(attr(1)) and not pages.stale(attr(1))
    pages.closed(7, 10)
    assert pages.known() == [] and pages.opened(attr(1), 12, os.O_RDONLY) == 0 and forgotten == [7]


# --- mounts -----------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Caching]]:
    """Strict, close-to-open, bounded."""
    first = Caching(tmp_path)
    first.hold_lease_clock()
    others = [Caching(tmp_path, first, FIRST + number) for number in (1, 2)]
    made = [first, *others]
    for node, mode in zip(made, (consistency.STRICT, consistency.CLOSE_TO_OPEN, 8_000), strict=True):
        node.consistency = mode
    try:
        for node in made:
            node.start()
        yield made
    finally:
        for node in reversed(made):
            node.close()


def flags_of(node: Caching, ino: int, flags: int = os.O_RDONLY) -> int:
    opened = node.call("open", ino, flags)
    if flags == os.O_RDONLY:
        node.call("read", ino, opened.fh, 0, 1)
    node.call("release", ino, opened.fh, flags, 0, 0)
    return int(opened.cache)


def close(node: Caching, ino: int, fh: int) -> None:
    """close(2)."""
    node.call("flush", ino, fh, 0)
    node.call("release", ino, fh, os.O_RDWR, 0, 0)


def test_each_mount_keeps_what_it_may(nodes: list[Caching]) -> None:
    strict, close_to_open, bounded = nodes
    ino, fh = strict.create(b"f")
    strict.write(ino, fh, 0, b"old")
    close(strict, ino, fh)
    for node in nodes:
        assert node.lookup(b"f").ino == ino and node.attr(ino).size == 3
    assert flags_of(strict, ino) == CachePolicy.DIRECT
    for node in (close_to_open, bounded):
        assert (flags_of(node, ino), flags_of(node, ino)) == (CachePolicy.DROP, CachePolicy.KEEP)
        assert flags_of(node, ino, os.O_RDWR) == CachePolicy.DIRECT
    assert close_to_open.vfs.attr_ttl_ns(close_to_open.attr(ino)) == CLOSE_TO_OPEN_ATTR_MS * 10**6
    assert bounded.vfs.attr_ttl_ns(bounded.attr(ino)) == 7 * 10**9 == bounded.vfs.name_ttl_ns(ROOT_INO, b"f", ino)
    assert bounded.vfs.name_ttl_ns(ROOT_INO, b"none", 0) == 7 * 10**9
    bounded.questions()
    flags_of(bounded, ino)
    assert "GetLease" not in bounded.questions(), "nobody's change waits for a bounded mount"
    with_utimens = strict.open(ino)
    strict.write(ino, with_utimens, 0, b"new")
    close(strict, ino, with_utimens)
    strict.call("setattr", ino, None, SetAttrIn(c.SET_MTIME, mtime_ns=1))
    for node in (close_to_open, bounded):
        assert flags_of(node, ino) == 0


def test_close_commits_where_opens_look_no_further_back(nodes: list[Caching]) -> None:
    strict, close_to_open, _ = nodes
    for node, dirty in ((strict, True), (close_to_open, False)):
        ino, fh = node.create(b"of %d" % node.mount_id)
        node.write(ino, fh, 0, b"x" * 9)
        close(node, ino, fh)
        state = node.mount.buffered.files.get(ino)
        assert bool(state is not None and state.dirty) == dirty


def test_what_an_inode_says_wins_and_is_inherited(nodes: list[Caching]) -> None:
    strict, close_to_open, bounded = nodes
    directory = strict.call("mkdir", ROOT_INO, b"d", 0o755).ino
    strict.call("setxattr", directory, NAME, b"bounded=4", 0)
    below = strict.call("mkdir", directory, b"below", 0o755).ino
    file, opened = strict.call("create", below, b"f", 0o644, os.O_RDWR)
    close(strict, file.ino, opened.fh)
    assert strict.attr(below).consistency == 4_000 == file.consistency and strict.call("getxattr", file.ino, NAME) == b"bounded=4"
    strict.call("lookup", below, b"f")
    assert strict.vfs.name_ttl_ns(below, b"f", file.ino) == 3_500_000_000 == strict.vfs.attr_ttl_ns(strict.attr(file.ino))
    assert flags_of(strict, file.ino) == 0
    strict.call("setxattr", below, NAME, b"strict", 0)
    made = strict.call("mknod", below, b"g", 0o100644, 0)
    for node in (close_to_open, bounded):
        assert node.attr(below).consistency == consistency.STRICT and node.call("lookup", below, b"g").ino == made.ino
        assert flags_of(node, made.ino) == CachePolicy.DIRECT
    assert bounded.vfs.attr_ttl_ns(bounded.attr(made.ino)) == 0 == bounded.vfs.name_ttl_ns(below, b"g", made.ino)
    strict.call("removexattr", below, NAME)
    assert strict.attr(below).consistency == 0 and strict.call("mkdir", below, b"h", 0o755).xattrs == 0
    for node in reversed(nodes):
        node.unmount()
    strict.check()


def test_nonsense_is_einval_and_said(nodes: list[Caching], caplog: pytest.LogCaptureFixture) -> None:
    assert error_of(nodes[0].call, "setxattr", ROOT_INO, NAME, b"bounded=0", 0) == errno.EINVAL
    assert "give 0.1 to 3600 seconds" in caplog.text
