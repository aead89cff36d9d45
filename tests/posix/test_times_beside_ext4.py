"""Which operation changes which time of which inode, what reads do under each policy, and times of five centuries: as ext4 has it."""

from __future__ import annotations

import ctypes
import mmap
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from awsomefsd.vfs.ops.attributes import TIME_NS_MAX, TIME_NS_MIN
from tests.posix.beside_ext4 import (
    ANNA,
    BERT,
    CAP_FSETID,
    LIBC,
    ROOT,
    Beside,
    RootWithout,
    User,
    attributes,
    check,
    ext4,
    link_fd,
    mode_alone,
    moved,
    rename2,
    shown,
    tell,
    tick,
    times,
)

pytestmark = pytest.mark.root
Told = Iterator[tuple[Any, Any]]
DAY_NS = 24 * 3600 * 10**9
WATCHED = ("f", "g", "d", "e", "d/x", "l", "p", ".")


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


def mounts_of(node, tmp_path_factory, option: str, prefix: str) -> Iterator[Beside]:
    """A volume of its own, mounted with this option, and an ext4."""
    volume = f"{prefix}-{option}"
    ours = node.directory / volume
    ours.mkdir()
    node.cli("volume", "create", volume)
    node.cli("mount", volume, str(ours), "--options", option)
    try:
        with ext4(tmp_path_factory.mktemp(volume), option) as other:
            for root in (ours, other):
                root.chmod(0o755)
            yield Beside(ours, other)
    finally:
        node.cli("umount", str(ours))


@pytest.fixture(scope="module")
def relatime(node, tmp_path_factory) -> Iterator[Beside]:
    yield from mounts_of(node, tmp_path_factory, "relatime", "times")


@pytest.fixture(scope="module", params=["relatime", "strictatime", "noatime", "nodiratime"])
def policy(node, tmp_path_factory, request) -> Iterator[Beside]:
    yield from mounts_of(node, tmp_path_factory, request.param, "reads")


def make(path: str, data: bytes = b"data", mode: int = 0o644) -> str:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode)
    os.write(fd, data)
    os.close(fd)
    return path


def with_fd(path: str, flags: int, call: Callable[[int], Any]) -> Any:
    fd = os.open(path, flags, 0o644)
    try:
        return call(fd)
    finally:
        os.close(fd)


def linked_tmpfile() -> None:
    with_fd(".", os.O_TMPFILE | os.O_RDWR, lambda fd: link_fd(fd, "n"))


OPERATIONS: dict[str, Callable[[], Any]] = {
    "chmod": lambda: os.chmod("f", 0o600),
    "chmod to the same": lambda: os.chmod("f", 0o644),
    "chown": lambda: os.chown("f", os.getuid(), os.getgid()),
    "chown to nobody else": lambda: os.chown("f", -1, -1),
    "utimens": lambda: os.utime("f", ns=(1, 2)),
    "utimens now": lambda: os.utime("f"),
    "utimens of a link": lambda: os.utime("l", ns=(1, 2), follow_symlinks=False),
    "link": lambda: os.link("f", "d/n"),
    "unlink one of two": lambda: os.unlink("d/x"),
    "unlink": lambda: os.unlink("g"),
    "rename": lambda: os.rename("f", "n"),
    "rename into": lambda: os.rename("f", "d/n"),
    "rename over": lambda: os.rename("f", "g"),
    "rename to its other link": lambda: os.rename("h", "d/x"),
    "rename a directory": lambda: os.rename("e", "d/e"),
    "exchange": lambda: rename2("f", "d/x", 2),
    "whiteout": lambda: rename2("f", "d/n", 4),
    "write": lambda: with_fd("f", os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "write nothing": lambda: with_fd("f", os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "append": lambda: with_fd("f", os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "open with O_TRUNC": lambda: with_fd("f", os.O_WRONLY | os.O_TRUNC, shown),
    "open with O_CREAT what is there": lambda: with_fd("f", os.O_WRONLY | os.O_CREAT, shown),
    "open with O_CREAT and O_TRUNC": lambda: with_fd("f", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, shown),
    "truncate": lambda: os.truncate("f", 1),
    "truncate to the same": lambda: os.truncate("f", 4),
    "ftruncate to the same": lambda: with_fd("f", os.O_WRONLY, lambda fd: os.ftruncate(fd, 4)),
    "truncate, longer": lambda: os.truncate("f", 10_000),
    "create": lambda: make("n"),
    "create empty": lambda: make("n", b""),
    "mkdir": lambda: os.mkdir("d/n"),
    "rmdir": lambda: os.rmdir("e"),
    "symlink": lambda: os.symlink("x", "d/n"),
    "mknod": lambda: os.mknod("d/n", stat.S_IFIFO | 0o600),
    "tmpfile and link": linked_tmpfile,
    "setxattr": lambda: os.setxattr("f", "user.a", b"1"),
    "setxattr again": lambda: os.setxattr("g", "user.there", b"1"),
    "removexattr": lambda: os.removexattr("g", "user.there"),
    "fsync": lambda: with_fd("f", os.O_WRONLY, os.fsync),
    "mmap store": lambda: with_fd("f", os.O_RDWR, store_through_mmap),
}


def store_through_mmap(fd: int) -> None:
    with mmap.mmap(fd, 4) as area:
        area[:1] = b"m"
        area.flush()


def set_up() -> None:
    for name in ("f", "g", "h"):
        make(name)
    os.setxattr("g", "user.there", b"1")
    for name in ("d", "e"):
        os.mkdir(name)
    os.link("h", "d/x")
    os.symlink("f", "l")
    os.mkfifo("p")


def times_table(root: str) -> Told:
    for number, (name, operation) in enumerate(OPERATIONS.items()):
        os.mkdir(str(number))
        os.chdir(str(number))
        set_up()
        tick()
        inodes = {path: os.open(path, os.O_PATH | os.O_NOFOLLOW) for path in WATCHED}
        before = {path: fd_times(fd) for path, fd in inodes.items()}
        tick()
        result = tell(operation)
        after = {path: fd_times(fd) for path, fd in inodes.items()}
        yield name, (result if isinstance(result, str) else None, {path: moved(before[path], after[path]) for path in WATCHED})
        for fd in inodes.values():
            os.close(fd)
        os.chdir("..")


def fd_times(fd: int) -> tuple[int, int, int]:
    info = os.fstat(fd)
    return info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns


@pytest.mark.parametrize("user", [ROOT, ANNA], ids=["root", "anna"])
def test_which_operation_changes_which_times(relatime: Beside, user: User) -> None:
    relatime.same(times_table, user)


def test_times_of_one_change_are_the_same_or_in_order(relatime: Beside) -> None:
    """utimens with now, a write, a create: one time for all."""
    path = str(make(str(relatime.ours / "equal")))
    os.utime(path)
    info = os.stat(path)
    assert info.st_atime_ns == info.st_mtime_ns == info.st_ctime_ns


# --- reads --------------------------------------------------------------------------------------------------------------
def read(path: str, flags: int = 0) -> bytes:
    return with_fd(path, os.O_RDONLY | flags, lambda fd: os.read(fd, 100))


def map_and_read(path: str) -> bytes:
    def look(fd: int) -> bytes:
        with mmap.mmap(fd, 4, prot=mmap.PROT_READ) as area:
            return area[:4]

    return with_fd(path, os.O_RDONLY, look)


def age(path: str, atime_ns: int, mtime_ns: int) -> None:
    os.utime(path, ns=(atime_ns, mtime_ns), follow_symlinks=False)


def reads(root: str) -> Told:
    set_up()
    make("d/inside")
    now = os.stat("f").st_mtime_ns
    steps: list[tuple[str, str, Callable[[], Any]]] = [
        ("first read", "f", lambda: read("f")),
        ("second read", "f", lambda: read("f")),
        ("stat is no read", "f", lambda: os.stat("f")),
        ("a day old", "f", lambda: (age("f", now - 2 * DAY_NS, now - 3 * DAY_NS), os.chmod("f", 0o600), read("f"))[-1]),
        ("written and read", "f", lambda: (with_fd("f", os.O_WRONLY, lambda fd: os.write(fd, b"new")), tick(), read("f"))[-1]),
        ("O_NOATIME", "g", lambda: read("g", os.O_NOATIME)),
        ("mapped", "g", lambda: map_and_read("g")),
        ("listed", "d", lambda: os.listdir("d")),
        ("listed again", "d", lambda: os.listdir("d")),
        ("changed and listed", "d", lambda: (make("d/more"), tick(), os.listdir("d"))[-1]),
        ("looked into", "d", lambda: os.stat("d/inside")),
        ("link read", "l", lambda: os.readlink("l")),
        ("written only", "h", lambda: with_fd("h", os.O_WRONLY, lambda fd: os.write(fd, b"z"))),
        ("executed", "x", lambda: run("x")),
    ]
    make("x", b"#!/bin/true\n", 0o755)
    for name, path, step in steps:
        before = times(path)
        tick()
        result = tell(step)
        yield name, (result if isinstance(result, (str, bytes)) else None, moved(before, times(path)))


def run(path: str) -> None:
    subprocess.run([f"./{path}"], check=True, timeout=60)


def test_reads_under_each_policy(policy: Beside) -> None:
    policy.same(reads)


def test_a_later_utimens_stands_and_a_read_survives_unmount(node) -> None:
    volume = "atime-kept"
    place = node.directory / volume
    place.mkdir()
    node.cli("volume", "create", volume)
    node.cli("mount", volume, str(place))
    try:
        for name in ("read", "set"):
            make(str(place / name))
            tick()
            read(str(place / name))
        atime = times(str(place / "read"))[0]
        assert atime > times(str(place / "read"))[1], "the read shows before it is committed"
        age(str(place / "set"), 5, 6)
        node.cli("umount", str(place))
        node.cli("mount", volume, str(place))
        assert times(str(place / "read"))[0] == atime
        assert times(str(place / "set"))[:2] == (5, 6)
    finally:
        node.cli("umount", str(place))


# --- utimensat ----------------------------------------------------------------------------------------------------------
YEARS_NS = (0, 1, -1, -(2**31) * 10**9, 2**31 * 10**9, 2**32 * 10**9 + 7, 15_032_385_534 * 10**9 + 999_999_999, 9_223_372_036_854_775_807)


def centuries(root: str) -> Told:
    make("f")
    os.mkdir("d")
    os.symlink("f", "l")
    for path in ("f", "d", "l"):
        for time_ns in YEARS_NS:
            os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)
            yield (path, time_ns), times(path)[:2]


def test_times_from_1901_to_2446(relatime: Beside) -> None:
    told = dict(relatime.same(centuries))
    assert all(shown == (time_ns, time_ns) for (_, time_ns), shown in told.items())


def permissions(root: str) -> Told:
    for name in ("mine", "theirs", "writable"):
        for what, kwargs in (("now", {}), ("set", {"ns": (1, 2)})):
            before = times(name)
            tick()
            yield (name, what), (tell(os.utime, name, **kwargs), moved(before, times(name)))


def test_who_may_set_times(relatime: Beside) -> None:
    def prepare(root: str) -> None:
        for name, uid, mode in (("mine", ANNA.uid, 0o400), ("theirs", BERT.uid, 0o644), ("writable", BERT.uid, 0o666)):
            os.chown(make(f"{root}/{name}"), uid, 0)
            os.chmod(f"{root}/{name}", mode)

    relatime.same(permissions, ANNA, prepare=prepare)


# --- privileges that changes take away ------------------------------------------------------------------------------------
CAPABILITY = bytes.fromhex("0000000200000000000000000000000000000000")[:20]
LOSING: dict[str, Callable[[str], Any]] = {
    "write": lambda path: with_fd(path, os.O_WRONLY, lambda fd: os.write(fd, b"x")),
    "write at the end": lambda path: with_fd(path, os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b"x")),
    "direct write": lambda path: with_fd(path, os.O_RDWR | os.O_DIRECT, lambda fd: os.pwrite(fd, mmap.mmap(-1, 4096), 0)),
    "fallocate": lambda path: with_fd(path, os.O_WRONLY, lambda fd: allocate(fd, 0)),
    "fallocate, size kept": lambda path: with_fd(path, os.O_WRONLY, lambda fd: allocate(fd, FALLOC_KEEP_SIZE)),
    "punch": lambda path: with_fd(path, os.O_WRONLY, lambda fd: allocate(fd, FALLOC_PUNCH_HOLE | FALLOC_KEEP_SIZE)),
    "zero": lambda path: with_fd(path, os.O_WRONLY, lambda fd: allocate(fd, FALLOC_ZERO_RANGE)),
    "copy_file_range": lambda path: with_fd(path, os.O_RDWR, lambda fd: os.copy_file_range(fd, fd, 1, 0, 1 << 20)),
    "splice": lambda path: with_fd(path, os.O_WRONLY, from_pipe),
    "write nothing": lambda path: with_fd(path, os.O_WRONLY, lambda fd: os.write(fd, b"")),
    "truncate": lambda path: os.truncate(path, 1),
    "ftruncate": lambda path: with_fd(path, os.O_WRONLY, lambda fd: os.ftruncate(fd, 1)),
    "O_TRUNC": lambda path: with_fd(path, os.O_WRONLY | os.O_TRUNC, shown),
    "chown": lambda path: os.chown(path, os.getuid(), os.getgid()),
    "chgrp": lambda path: os.chown(path, -1, os.getgid()),
    "chmod": lambda path: os.chmod(path, 0o6755),
    "utimens": lambda path: os.utime(path),
    "mmap store": lambda path: with_fd(path, os.O_RDWR, store_through_mmap),
    "setxattr": lambda path: os.setxattr(path, "user.a", b"1"),
    "setfacl": lambda path: os.setxattr(path, "system.posix_acl_access", ACL),
}
FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, FALLOC_ZERO_RANGE = 1, 2, 16
ACL = bytes.fromhex("02000000" "01000700ffffffff" "02000700d2070000" "04000500ffffffff" "10000700ffffffff" "20000500ffffffff")


def allocate(fd: int, mode: int) -> None:
    check(LIBC.fallocate(fd, mode, ctypes.c_int64(0), ctypes.c_int64(8192)))


def from_pipe(fd: int) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x")
    os.splice(reader, fd, 1, offset_dst=0)
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("user", [ROOT, ANNA, BERT, RootWithout(CAP_FSETID)], ids=["root", "anna", "bert", "root without CAP_FSETID"])
def test_setuid_setgid_and_capabilities(relatime: Beside, user: User) -> None:
    modes = (0o4777, 0o2777, 0o6777, 0o6767, 0o2767)

    def prepare(root: str) -> None:
        for number in range(len(LOSING)):
            for mode in modes:
                path = make(f"{root}/{number}-{mode}")
                os.chown(path, ANNA.uid, ANNA.gid)
                os.chmod(path, mode)
                os.setxattr(path, "security.capability", CAPABILITY)

    def steps(root: str) -> Told:
        for number, (name, call) in enumerate(LOSING.items()):
            for mode in modes:
                path = f"{number}-{mode}"
                shown(path)  # the kernel knows the mode from before
                result = tell(call, path)
                told = mode_alone(path)  # first: the kernel asks for all when it asks for anything
                found = {key: value for key, value in attributes(path).items() if key.startswith("sec")}
                yield (name, oct(mode)), (result if isinstance(result, str) else None, told, shown(path), found)

    relatime.same(steps, user, prepare=prepare)


@pytest.mark.parametrize("seconds", [1 << 35, -(1 << 35)])
def test_a_time_beyond_what_is_stored_is_the_nearest_one(place, seconds):
    """The service accepts no such number, so the worker must not send it."""
    (place / "file").touch()
    subprocess.run(["touch", "-d", f"@{seconds}", place / "file"], timeout=60, check=True)
    found = (place / "file").stat()
    assert found.st_mtime_ns == found.st_atime_ns == (TIME_NS_MAX if seconds > 0 else TIME_NS_MIN)


def test_a_time_in_the_future_is_not_the_time_of_change(place):
    """utimensat sets the mtime of a file with dirty data; ctime is the time of that call."""
    with open(place / "file", "wb", buffering=0) as file:
        file.write(b"dirty")
        os.utime(file.fileno(), (1, 4_000_000_000))
        found = os.fstat(file.fileno())
        assert found.st_mtime == 4_000_000_000 and abs(found.st_ctime - time.time()) < 60
        file.write(b"again")
        assert abs(os.fstat(file.fileno()).st_mtime - time.time()) < 60
