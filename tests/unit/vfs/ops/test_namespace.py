"""Names through the vfs: listings while the directory changes, what is remembered, renames, and eviction."""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.types import ROOT_INO, Attr
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.ops import namespace
from awsomefsd.vfs.state import names as names_module
from awsomefsd.vfs.state.names import ABSENT, NameCache
from tests.rigs.mount_without_kernel import BIG, After, Held, Rig, error_of, finish, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


# --- listings -------------------------------------------------------------------------------------------------------------
def many(r: Rig, count: int, parent: int = ROOT_INO) -> dict[bytes, int]:
    return {b"n%03d" % at: r.file(b"n%03d" % at, parent=parent) for at in range(count)}


@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_in_many_pages(r: Rig, monkeypatch: pytest.MonkeyPatch, plus: bool) -> None:
    monkeypatch.setattr(namespace, "READDIR_ENTRIES_MAX", 7)
    made = many(r, 40)
    assert r.listdir(plus=plus) == made
    r.restart()
    assert r.listdir(plus=plus) == made
    asked: list[Any] = []
    r.gate().on_ask = asked.append
    assert error_of(r.lookup, b"not there") == errno.ENOENT
    assert r.lookup(b"n000").ino == made[b"n000"]
    assert not [body for body in asked if isinstance(body, m.Lookup) and body.name == b"not there"], "the directory is known completely"


def test_what_stays_is_listed_once_while_others_come_and_go(r: Rig, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(namespace, "READDIR_ENTRIES_MAX", 5)
    rng = random.Random(seed)
    stays = many(r, 40)
    goes = [b"g%d" % at for at in range(20)]
    for name in goes:
        r.file(name)
    r.mount.caches.names.clear()
    fh = r.call("opendir", ROOT_INO, 0).fh
    found: list[bytes] = []
    offset, fresh = 0, 0
    while entries := r.readdir(ROOT_INO, fh, offset, plus=rng.random() < 0.5):
        for entry in entries[: rng.randrange(1, len(entries) + 1)]:
            found.append(entry.name)
            offset = entry.cookie
        if goes and rng.random() < 0.7:
            r.call("unlink", ROOT_INO, goes.pop(rng.randrange(len(goes))))
        if fresh < 10:
            fresh += 1
            r.file(b"new%d" % fresh)
    r.call("releasedir", ROOT_INO, fh)
    assert [found.count(name) for name in stays] == [1] * len(stays)
    assert set(r.listdir()) == {*stays, *goes, *(b"new%d" % at for at in range(1, fresh + 1))}
    for name in goes:
        assert r.lookup(name)
    for at in range(20):
        name = b"g%d" % at
        if name not in goes:
            assert error_of(r.lookup, name) == errno.ENOENT


@pytest.mark.parametrize("listings_max", [64, 0])
@pytest.mark.parametrize("plus", [False, True])
def test_a_listing_ends_although_each_entry_found_is_renamed(
    r: Rig, monkeypatch: pytest.MonkeyPatch, plus: bool, listings_max: int
) -> None:
    monkeypatch.setattr(namespace, "READDIR_ENTRIES_MAX", 7)
    monkeypatch.setattr(namespace, "LISTINGS_MAX", listings_max)
    made = list(many(r, 40))
    r.mount.caches.names.clear()
    fh = r.call("opendir", ROOT_INO, 0).fh
    for _ in range(2):  # the second time after rewinddir(3)
        found: list[bytes] = []
        offset = 0
        while entries := r.readdir(ROOT_INO, fh, offset, plus=plus):
            offset = entries[-1].cookie
            for entry in entries:
                if entry.name not in (b".", b".."):
                    found.append(entry.name)
                    r.call("rename", ROOT_INO, entry.name, ROOT_INO, b"x" + entry.name, 0)
                    assert len(found) <= len(made), "it lists what it has renamed"
        assert found == made
        r.file(b"new")
        assert r.readdir(ROOT_INO, fh, offset, plus=plus) == [], "it came after the listing had begun"
        made = [b"x" + name for name in made] + [b"new"]
        r.restart()  # a successor goes on with the handle
    r.call("releasedir", ROOT_INO, fh)
    assert not r.vfs.releasedir.__self__._newest


def test_a_listing_ends_with_a_service_that_does_not_say_what_is_newest(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "READDIR_ENTRIES_MAX", 7)
    made = many(r, 20)
    r.mount.caches.names.clear()

    class Older:
        def __init__(self, wait: Any) -> None:
            self._wait = wait

        def start(self, resume: Any) -> None:
            self._wait.start(lambda value, error: resume(value and m.Entries(value.entries, value.end), error))

    gate = r.gate()
    gate.on_ask = lambda body: Older(r.worker.client.ask(body)) if isinstance(body, m.ReadDir) else None
    assert r.listdir() == made


def test_seekdir_goes_anywhere_and_does_not_make_the_directory_complete(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "READDIR_ENTRIES_MAX", 4)
    made = many(r, 30)
    r.restart()
    fh = r.call("opendir", ROOT_INO, 0).fh
    first = r.readdir(ROOT_INO, fh, 0)
    last = first[-1].cookie
    while rest := r.readdir(ROOT_INO, fh, last + 10):  # names in between are never seen
        last = rest[-1].cookie - 10
        if len(rest) < 4:
            break
    r.readdir(ROOT_INO, fh, 10_000)
    for name, ino in made.items():
        assert r.lookup(name).ino == ino
    again = r.readdir(ROOT_INO, fh, first[-1].cookie)
    assert again[0].name == b"n%03d" % (len(first) - 2)
    assert [entry.name for entry in r.readdir(ROOT_INO, fh, 0)][:2] == [b".", b".."]


def test_more_directories_open_than_listings_are_kept(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "READDIR_ENTRIES_MAX", 4)
    monkeypatch.setattr(namespace, "LISTINGS_MAX", 3)
    made = many(r, 30)
    r.mount.caches.names.clear()
    handles = [r.call("opendir", ROOT_INO, 0).fh for _ in range(8)]
    found: dict[int, list[bytes]] = {fh: [] for fh in handles}
    offsets = dict.fromkeys(handles, 0)
    while offsets:
        for fh in list(offsets):
            entries = r.readdir(ROOT_INO, fh, offsets.pop(fh))[:3]  # the rest of a page that may be gone by then
            found[fh] += [entry.name for entry in entries]
            if entries:
                offsets[fh] = entries[-1].cookie
    assert all(names == [b".", b"..", *made] for names in found.values())
    assert len(r.vfs.releasedir.__self__._listings) == 3
    for fh in handles:
        r.call("releasedir", ROOT_INO, fh)
    assert not r.vfs.releasedir.__self__._listings
    assert [r.lookup(name).ino for name in made] == list(made.values()) and error_of(r.lookup, b"not there") == errno.ENOENT


def test_a_page_does_not_bring_a_removed_name_back(r: Rig) -> None:
    """The removal is answered after the page and before the listing's last wait."""
    directory = r.mkdir(b"d")
    r.file(b"a", parent=directory)
    r.restart()
    gate = r.gate()
    held: list[After] = []

    def on_ask(body: Any) -> Any:
        if isinstance(body, m.GetParent):
            held.append(After(r.worker.client.ask(body)))
            return held[0]
        return None

    gate.on_ask = on_ask
    fh = r.call("opendir", directory, 0).fh
    page = r.begin("readdir", directory, fh, 0, True)
    until(lambda: bool(held) and held[0].begun.is_set())
    r.call("unlink", directory, b"a")
    held[0].release()
    page.result()
    gate.on_ask = None
    assert error_of(r.lookup, b"a", directory) == errno.ENOENT
    assert r.listdir(directory) == {}


def test_readdirplus_gives_no_attributes_of_a_name_that_leads_elsewhere_now(r: Rig) -> None:
    ino = r.file(b"a", b"x")
    r.file(b"b")
    fh = r.call("opendir", ROOT_INO, 0).fh
    r.readdir(ROOT_INO, fh, 0, plus=True)
    r.call("rename", ROOT_INO, b"a", ROOT_INO, b"b", 0)
    entries = {entry.name: entry for entry in r.readdir(ROOT_INO, fh, 2, plus=True)}
    assert all(entry.attr is None or (name, entry.attr.ino) == (b"b", ino) for name, entry in entries.items())


def test_readdirplus_shows_sizes_of_dirty_files(r: Rig) -> None:
    r.file(b"a", b"x" * BIG)
    fh = r.call("opendir", ROOT_INO, 0).fh
    sizes = {entry.name: entry.attr.size for entry in r.readdir(ROOT_INO, fh, 0, plus=True) if entry.attr is not None}
    assert sizes[b"a"] == BIG


def test_a_removed_directory_that_is_open_is_empty_and_ends_with_its_close(r: Rig) -> None:
    directory = r.mkdir(b"d")
    fh = r.call("opendir", directory, 0).fh
    r.call("rmdir", ROOT_INO, b"d")
    assert [entry.name for entry in r.readdir(directory, fh, 0)] == [b".", b".."]
    assert error_of(r.create, b"a", directory) == errno.ENOENT
    r.restart()
    assert r.readdir(directory, fh, 2) == []
    r.call("releasedir", directory, fh)
    r.mkdir(b"other")
    assert r.volume().used_inodes == 2


# --- what is remembered ---------------------------------------------------------------------------------------------------
def test_links_and_attributes_follow_each_other(r: Rig) -> None:
    ino = r.file(b"a", b"x")
    attr: Attr = r.call("link", ino, ROOT_INO, b"b")
    assert attr.nlink == 2 and attr.size == 1
    r.call("unlink", ROOT_INO, b"a")
    assert r.lookup(b"b").nlink == 1 and r.content(ino) == b"x"
    directory = r.mkdir(b"d")
    assert r.attr(ROOT_INO).nlink == 3
    assert r.call("lookup", directory, b"..").ino == ROOT_INO
    assert r.call("lookup", directory, b".").ino == directory
    assert error_of(r.call, "link", directory, ROOT_INO, b"hard") == errno.EPERM


def test_dot_shows_what_is_not_committed_yet(r: Rig) -> None:
    """The kernel looks "." up of any inode, also of a file, to open it by a handle that outlived its cache."""
    ino = r.file(b"file", b"x" * BIG)
    shown = r.attr(ino)
    assert r.call("lookup", ino, b".") == shown and shown.size == BIG
    r.mount.caches.names.clear()
    assert r.call("lookup", ino, b".") == shown
    directory = r.mkdir(b"read")
    child = r.mkdir(b"below", parent=directory)
    r.file(b"newer", parent=directory)
    assert r.listdir(directory)
    read = r.attr(directory)
    assert read.atime_ns > r.mount.caches.names.attr(directory).atime_ns, "the read is not committed"
    assert r.call("lookup", directory, b".") == read == r.call("lookup", child, b"..")
    fh = r.open(ino)
    r.call("unlink", ROOT_INO, b"file")
    assert r.call("lookup", ino, b".").size == BIG, "it is open"
    r.close_file(ino, fh)
    gone = r.file(b"gone")
    r.call("unlink", ROOT_INO, b"gone")
    assert error_of(r.call, "lookup", gone, b".") == errno.ENOENT == error_of(r.call, "lookup", ino, b".")


@pytest.mark.parametrize("flags", [0, c.RENAME_EXCHANGE])
def test_a_rename_between_two_names_of_one_inode_does_nothing(r: Rig, flags: int) -> None:
    ino = r.file(b"a", b"x")
    r.call("link", ino, ROOT_INO, b"b")
    r.call("rename", ROOT_INO, b"a", ROOT_INO, b"b", flags)
    assert r.lookup(b"a").ino == r.lookup(b"b").ino == ino
    r.call("rename", ROOT_INO, b"a", ROOT_INO, b"a", flags)
    assert r.lookup(b"a").nlink == 2
    assert r.listdir() == {b"a": ino, b"b": ino}


def test_a_rename_over_a_file_flushes_the_source_first(r: Rig) -> None:
    source = r.file(b"a", b"new" * BIG)
    r.file(b"b", b"old")
    r.flush()
    fh = r.open(source)
    r.write(source, fh, 0, b"newest")
    seen: list[str] = []
    r.gate().on_propose = lambda command, _: seen.append(type(command).__name__)
    r.call("rename", ROOT_INO, b"a", ROOT_INO, b"b", 0)
    assert seen.index("Commit") < seen.index("Rename")
    assert r.listdir() == {b"b": source}
    assert r.volume().used_inodes == 2


def test_a_replaced_open_file_stays_readable(r: Rig) -> None:
    r.file(b"a", b"new")
    target, fh = r.create(b"b")
    r.write(target, fh, 0, b"old" * BIG)
    r.call("rename", ROOT_INO, b"a", ROOT_INO, b"b", 0)
    assert r.read(target, fh, 0, 6) == b"oldold"
    r.restart()
    assert r.read(target, fh, 0, 6) == b"oldold"
    r.close_file(target, fh)
    r.flush()
    r.mkdir(b"d")
    assert r.volume().used_inodes == 3 and r.volume().used_bytes == 3


def test_an_open_waits_for_a_removal_that_is_under_way(r: Rig) -> None:
    ino = r.file(b"a", b"x")
    gate = r.gate()
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, c.Unlink):
            held.append(Held(r.worker.client.propose(command, unique)))
            return held[0]
        return None

    gate.on_propose = on_propose
    removal = r.begin("unlink", ROOT_INO, b"a")
    opening = r.begin("open", ino, os.O_RDWR)
    assert not opening.ended.is_set()
    held[0].release()
    removal.result()
    assert error_of(opening.result) == errno.ENOENT


@pytest.mark.parametrize("mode", [stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK])
def test_mknod_of_every_kind(r: Rig, mode: int) -> None:
    attr = r.call("mknod", ROOT_INO, b"n", mode | 0o640, 0x103 if mode in (stat.S_IFCHR, stat.S_IFBLK) else 0)
    r.restart()
    again = r.lookup(b"n")
    assert (again.mode, again.rdev) == (mode | 0o640, attr.rdev)


def test_xattrs(r: Rig) -> None:
    ino = r.file(b"a")
    assert r.call("listxattr", ino) == []
    assert error_of(r.call, "getxattr", ino, b"user.a") == errno.ENODATA
    r.call("setxattr", ino, b"user.a", b"1", c.XATTR_CREATE)
    assert error_of(r.call, "setxattr", ino, b"user.a", b"2", c.XATTR_CREATE) == errno.EEXIST
    assert error_of(r.call, "setxattr", ino, b"system.a", b"2", 0) == errno.EOPNOTSUPP
    assert error_of(r.call, "setxattr", ino, b"user." + b"n" * 255, b"2", 0) == errno.ERANGE
    r.call("setxattr", ino, b"trusted.a", b"2", 0)
    r.restart()
    assert r.call("getxattr", ino, b"user.a") == b"1"
    assert sorted(r.call("listxattr", ino)) == [b"trusted.a", b"user.a"]
    assert finish(r.vfs.listxattr(r.ctx(uid=5), ino)) == [b"user.a"]
    r.call("removexattr", ino, b"user.a")
    r.call("removexattr", ino, b"trusted.a")
    assert r.attr(ino).xattrs == 0


# --- the cache by itself --------------------------------------------------------------------------------------------------
def attr_of(ino: int) -> Attr:
    return Attr(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0)


def test_eviction_loses_speed_and_never_truth(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(names_module, "INODES_CACHED_MAX", 32)
    monkeypatch.setattr(names_module, "DENTRIES_CACHED_MAX", 40)
    monkeypatch.setattr(names_module, "DIRECTORY_LISTED_ENTRIES_MAX", 10)
    rng = random.Random(seed)
    cache = NameCache()
    truth: dict[tuple[int, bytes], int] = {}
    for _ in range(5_000):
        parent, name = rng.randrange(1, 9), b"%d" % rng.randrange(30)
        kind = rng.randrange(6)
        if kind < 3:
            truth[parent, name] = rng.randrange(1, 1_000)
            cache.enter(parent, name, truth[parent, name])
            cache.put(attr_of(truth[parent, name]))
        elif kind == 3:
            truth[parent, name] = ABSENT
            cache.enter(parent, name, ABSENT)
        elif kind == 4 and rng.random() < 0.1:
            cache.drop(parent)
        found = cache.find(parent, name)
        assert found is None or found == truth.get((parent, name), ABSENT)
        assert len(cache) <= 32
        counted = sum(len(directory.names) for directory in cache._directories.values())
        assert cache._name_count == counted


def test_the_number_of_names_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names_module, "DENTRIES_CACHED_MAX", 40)
    monkeypatch.setattr(names_module, "DIRECTORY_LISTED_ENTRIES_MAX", 10)
    cache = NameCache()
    for parent in range(1, 9):
        cache.directory(parent)
    for at in range(1_000):
        cache.enter(1 + at % 8, b"%d" % at, ABSENT)
        assert sum(len(directory.names) for directory in cache._directories.values()) <= 40 + 8 * 10


def test_two_names_of_an_inode_are_removed_one_after_the_other(r: Rig) -> None:
    """Otherwise the first to end would let an open through while the second, told that nobody has it open, takes the inode away."""
    ino = r.file(b"a", b"x")
    r.call("link", ino, ROOT_INO, b"b")
    gate = r.gate()
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if isinstance(command, c.Unlink):
            held.append(Held(r.worker.client.propose(command, unique)))
            return held[-1]
        return None

    gate.on_propose = on_propose
    first = r.begin("unlink", ROOT_INO, b"a")
    second = r.begin("unlink", ROOT_INO, b"b")
    assert len(held) == 1, "both at once"
    held[0].release()
    first.result()
    assert len(held) == 2
    opening = r.begin("open", ino, os.O_RDWR)
    assert not opening.ended.is_set()
    held[1].release()
    second.result()
    assert error_of(opening.result) == errno.ENOENT
