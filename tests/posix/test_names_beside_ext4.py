"""Refusals of names and attributes as ext4 gives them, names of any bytes, and directories that change while they are read."""

from __future__ import annotations

import ctypes
import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.posix.beside_ext4 import ANNA, BERT, LIBC, ROOT, Beside, User, ext4, tell
from tests.posix.directory_stream import Walk
from tests.posix.errnos import fails

pytestmark = pytest.mark.root
USERS = pytest.mark.parametrize("user", [ROOT, ANNA, BERT], ids=["root", "anna", "bert"])
Told = Iterator[tuple[Any, Any]]
ENTRIES = 1_200


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


@pytest.fixture(scope="module")
def beside(node, tmp_path_factory) -> Iterator[Beside]:
    with ext4(tmp_path_factory.mktemp("names")) as other:
        for root in (node.mountpoint, other):
            root.chmod(0o755)
        yield Beside(node.mountpoint, other)


def make(path: str | bytes) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))


# --- refusals -------------------------------------------------------------------------------------------------------------
def set_up() -> None:
    for path in ("d", "d/sub", "d/sub/deep", "empty", "e2", "locked"):
        os.mkdir(path)
    for path in ("f", "g", "d/f"):
        make(path)
    os.symlink("f", "l")
    os.symlink("loop", "loop")
    os.symlink("d", "ld")
    os.symlink("nowhere", "dangling")
    os.mkfifo("p")
    os.chmod("locked", 0)


PATHS = (
    ".", "..", "d", "d/", "d/.", "d/..", "d/sub", "empty", "empty/", "f", "f/", "f/x", "l", "l/", "ld", "ld/", "loop", "loop/x", "dangling",
    "dangling/", "none", "none/", "none/x", "p", "", "locked/x", "n" * 256, "d/" + "n" * 256, "x/" * 2100,
)  # fmt: skip
ONE: dict[str, Callable[[str], Any]] = {
    "unlink": os.unlink,
    "rmdir": os.rmdir,
    "mkdir": os.mkdir,
    "mknod": lambda path: os.mknod(path, stat.S_IFREG | 0o600),
    "fifo": lambda path: os.mkfifo(path),
    "block device": lambda path: os.mknod(path, stat.S_IFBLK | 0o600, 0x701),
    "symlink": lambda path: os.symlink("t", path),
    "empty symlink": lambda path: os.symlink("", path),
    "long symlink": lambda path: os.symlink("t" * 4096, path),
    "readlink": os.readlink,
    "stat": lambda path: shown_of(os.stat(path)),
    "lstat": lambda path: shown_of(os.lstat(path)),
    "truncate": lambda path: os.truncate(path, 0),
    "negative truncate": lambda path: os.truncate(path, -1),
    "chmod": lambda path: os.chmod(path, 0o700),
    "listdir": lambda path: sorted(os.listdir(path)) if ".." not in path else None,
    "chdir": lambda path: os.close(os.open(path, os.O_PATH | os.O_DIRECTORY)),
    "create": lambda path: os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NONBLOCK, 0o600)),
    "create exclusively": lambda path: os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)),
    "open to write": lambda path: os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK)),
    "open no link": lambda path: os.close(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)),
    "getxattr": lambda path: os.getxattr(path, "user.none"),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1", follow_symlinks=False),
}


def shown_of(info: os.stat_result) -> tuple[Any, ...]:
    return oct(info.st_mode), 0 if stat.S_ISDIR(info.st_mode) else info.st_nlink


def one_path(root: str) -> Told:
    """Each call on each path in a tree of its own; only what succeeded makes a new one needed."""
    number = 0
    os.mkdir("0")
    os.chdir("0")
    set_up()
    for name, call in ONE.items():
        for path in PATHS:
            if path in (".", "..") and name == "chmod":
                continue
            result = tell(call, path)
            yield (name, path[:20]), result
            if not isinstance(result, (str, bytes)) or not result.startswith("E" if isinstance(result, str) else b"E"):
                number += 1
                os.chdir("..")
                os.mkdir(str(number))
                os.chdir(str(number))
                set_up()


def test_what_one_path_refuses(beside: Beside) -> None:
    assert len({str(result) for _, result in beside.same(one_path, ANNA)}) > 10


def test_sticky_directories(beside: Beside) -> None:
    def prepare(root: str) -> None:
        for number, (uid, mode) in enumerate(((0, 0o1777), (ANNA.uid, 0o1777), (0, 0o0777))):
            os.mkdir(f"{root}/{number}")
            for owner in (ANNA.uid, BERT.uid):
                for kind, call in (("f", make), ("d", os.mkdir)):
                    for copy in range(3):
                        path = f"{root}/{number}/{kind}{owner}-{copy}"
                        call(path)
                        os.chown(path, owner, owner)
            os.chown(f"{root}/{number}", uid, 0)
            os.chmod(f"{root}/{number}", mode)

    def steps(root: str) -> Told:
        for number in range(3):
            for owner in (ANNA.uid, BERT.uid):
                for kind, remove in (("f", os.unlink), ("d", os.rmdir)):
                    path = f"{number}/{kind}{owner}"
                    yield (path, "remove"), tell(remove, f"{path}-0")
                    yield (path, "rename"), tell(os.rename, f"{path}-1", f"{path}-new")
                    if kind == "f":
                        make(f"{number}/own{owner}")
                        yield (path, "over"), tell(os.rename, f"{number}/own{owner}", f"{path}-2")

    for user in (ANNA, BERT, ROOT):
        beside.same(steps, user, prepare=prepare)


# --- xattrs ---------------------------------------------------------------------------------------------------------------
def xattr_refusals(root: str) -> Told:
    make("f")
    os.mkdir("d")
    os.symlink("f", "l")
    os.mkfifo("p")
    names = ("user.a", "user.", "user", "trusted.a", "security.a", "system.a", "other.a", "", "user." + "n" * 250, "user." + "n" * 251)
    for path in ("f", "d", "l", "p", "none"):
        for name in names:
            for flags in (0, os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE):
                yield (path, name[:12], flags), tell(os.setxattr, path, name, b"value", flags, follow_symlinks=False)
            yield (path, name[:12], "get"), tell(os.getxattr, path, name, follow_symlinks=False)
        yield (path, "list"), tell(lambda path: sorted(os.listxattr(path, follow_symlinks=False)), path)
        for name in names:
            yield (path, name[:12], "remove"), tell(os.removexattr, path, name, follow_symlinks=False)
    yield "too big", tell(os.setxattr, "f", "user.big", b"x" * 65_537)
    os.setxattr("f", "user.a", b"")
    yield "empty", os.getxattr("f", "user.a")
    os.setxattr("f", "user.a", b"twelve bytes")
    room = ctypes.create_string_buffer(4)
    yield "no room for the value", (LIBC.getxattr(b"f", b"user.a", room, 4), ctypes.get_errno())
    yield "no room for the names", (LIBC.listxattr(b"f", room, 4), ctypes.get_errno())


@USERS
def test_xattr_refusals(beside: Beside, user: User) -> None:
    beside.same(xattr_refusals, user)


def test_many_and_large_xattrs(node) -> None:
    """More than ext4 holds: 64 KiB a value, 256 KiB an inode."""
    path = str(node.mountpoint / "xattrs")
    make(path)
    for number in range(1_000):
        os.setxattr(path, f"user.{number:04}", b"v" * (number % 200))
    assert len(os.listxattr(path)) == 1_000 and os.getxattr(path, "user.0999") == b"v" * 199
    os.unlink(path)
    make(path)
    for number in range(3):
        os.setxattr(path, f"user.{number}", b"x" * 65_536)
    with pytest.raises(OSError, match="No space left"):
        os.setxattr(path, "user.more", b"x" * 65_536)
    assert os.getxattr(path, "user.2") == b"x" * 65_536


# --- names of any bytes -----------------------------------------------------------------------------------------------------
def test_names_of_all_bytes_and_of_the_greatest_length(beside: Beside) -> None:
    def names(root: str) -> Told:
        usable = [bytes([byte]) for byte in range(1, 256) if byte not in b"/."]
        longest = [bytes(1 + (start + at) % 255 for at in range(255)).replace(b"/", b"_") for start in range(0, 255, 17)]
        for name in usable + longest:
            make(name)
        os.mkdir(b"\xff" * 255)
        os.symlink(b"\xfe" * 4000, b"link")
        yield "list", sorted(os.listdir(b"."))
        yield "link", os.readlink(b"link")
        for name in longest:
            os.rename(name, name[::-1])
        yield "renamed", sorted(os.listdir(b"."))
        yield "there", [tell(os.path.lexists, name) for name in usable + longest]

    beside.same(names)


# --- directories that change while they are read ------------------------------------------------------------------------
def test_a_name_that_is_too_long_is_never_just_absent(place):
    """ENAMETOOLONG, also where what is known of the directory would answer ENOENT."""
    for call in (os.stat, os.unlink, os.rmdir, os.listdir, lambda path: os.rename(path, place / "b"), lambda path: os.chmod(path, 0)):
        with fails(errno.ENAMETOOLONG):
            call(place / ("n" * 256))
    (place / ("n" * 255)).touch()
    with fails(errno.ENAMETOOLONG):
        os.rename(place / ("n" * 255), place / ("n" * 256))


def test_an_attribute_needs_a_name_behind_its_prefix(place):
    for prefix in ("user.", "trusted.", "security."):
        with fails(errno.EINVAL):
            os.setxattr(place, prefix, b"value")


def test_rewinddir_sees_the_directory_as_it_is(place):
    """Not the page of the first reading."""
    (place / "a").touch()
    fd = os.open(place, os.O_RDONLY)
    assert os.listdir(fd) == ["a"]
    (place / "b").touch()
    assert sorted(os.listdir(fd)) == ["a", "b"]
    (place / "a").unlink()
    assert os.listdir(fd) == ["b"]
    os.close(fd)


@pytest.fixture(scope="module")
def large(node) -> Path:
    folder = node.mountpoint / "large"
    folder.mkdir()
    fill(folder, ENTRIES)
    return folder


def fill(folder: Path, count: int) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for number in range(count):
            os.mknod(f"{number:06}", stat.S_IFREG | 0o600, dir_fd=fd)
    finally:
        os.close(fd)


def test_a_walk_sees_each_entry_once_whatever_is_added_and_removed(large: Path) -> None:
    walk = Walk(large)
    seen, removed, added = [], set(), 0
    try:
        while name := walk.next():
            seen.append(name)
            if len(seen) % 100 == 0:
                gone = f"{(len(seen) * 7) % ENTRIES:06}"
                if gone not in removed:
                    os.unlink(large / gone)
                    removed.add(gone)
                make(str(large / f"new-{added}"))
                os.rename(large / f"new-{added}", large / f"moved-{added}")
                added += 1
    finally:
        walk.close()
    assert len(seen) == len(set(seen)), "a name twice"
    stayed = {f"{number:06}" for number in range(ENTRIES)} - removed
    assert stayed <= set(seen) and added > 8
    assert set(os.listdir(large)) == stayed | {f"moved-{number}" for number in range(added)}


def test_telldir_and_seekdir(large: Path) -> None:
    walk = Walk(large)
    try:
        cookies = {}
        for _ in range(600):
            cookie = walk.tell()
            cookies[cookie] = walk.next()
        following = walk.rest()
        for cookie in [*list(cookies)[500:], *list(cookies)[::97], next(iter(cookies))]:
            walk.seek(cookie)
            assert walk.next() == cookies[cookie]
        walk.seek(list(cookies)[-1])
        victim = list(cookies.values())[-1]
        os.unlink(large / victim)
        other = Walk(large)
        other.seek(list(cookies)[-1])
        assert other.rest()[: len(following)] == following, "a removed entry's cookie still leads to the next"
        other.close()
        walk.rewind()
        assert victim not in walk.rest()
    finally:
        walk.close()


def test_everything_is_removed_while_it_is_walked(node) -> None:
    folder = node.mountpoint / "emptied"
    folder.mkdir()
    fill(folder, 600)
    walk = Walk(folder)
    try:
        while name := walk.next():
            if not name.startswith("."):
                os.unlink(folder / name)
    finally:
        walk.close()
    folder.rmdir()
