"""Names, attributes and extended attributes: the same steps on a mount and on ext4 tell the same."""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.posix.beside_ext4 import (
    ANNA,
    BERT,
    ROOT,
    Beside,
    User,
    attributes,
    ext4,
    link_empty,
    link_fd,
    moved,
    rename2,
    shown,
    tell,
    tick,
    times,
)

pytestmark = pytest.mark.root
USERS = pytest.mark.parametrize("user", [ROOT, ANNA, BERT], ids=["root", "anna", "bert"])
NOREPLACE, EXCHANGE, WHITEOUT = 1, 2, 4
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
Told = Iterator[tuple[Any, Any]]


def acl(*entries: tuple[int, int, int]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)


NOBODY = 0xFFFFFFFF
NAMED = acl((1, 7, NOBODY), (2, 5, ANNA.uid), (4, 4, NOBODY), (8, 7, 3003), (16, 7, NOBODY), (32, 1, NOBODY))
MINIMAL = acl((1, 6, NOBODY), (4, 4, NOBODY), (32, 2, NOBODY))


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


@pytest.fixture(scope="module")
def beside(node, tmp_path_factory) -> Iterator[Beside]:
    with ext4(tmp_path_factory.mktemp("beside")) as other:
        for root in (node.mountpoint, other):
            root.chmod(0o755)
        yield Beside(node.mountpoint, other)


def make(path: str, data: bytes = b"data", mode: int = 0o644) -> str:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode)
    os.write(fd, data)
    os.close(fd)
    return path


# --- O_TMPFILE ----------------------------------------------------------------------------------------------------------
def unnamed(root: str) -> Told:
    before = times(root)
    tick()
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o666)
    yield "open", shown(fd)
    yield "parent", moved(before, times(root))
    os.write(fd, b"bytes")
    yield "written", shown(fd)
    yield "listed", os.listdir(root)
    yield "through proc", tell(link_fd, fd, "named")
    yield "linked", tell(shown, "named")
    yield "again", tell(link_fd, fd, "second")
    yield "existing", tell(link_fd, fd, "second")
    os.unlink("named")
    os.unlink("second")
    yield "nameless", shown(fd)
    yield "lost its names", tell(link_fd, fd, "third")
    os.close(fd)
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    yield "empty path", tell(link_empty, fd, "empty")
    os.close(fd)
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR | os.O_EXCL, 0o600)
    yield "exclusive", tell(link_fd, fd, "never")
    os.close(fd)
    yield "read only", tell(os.open, root, os.O_TMPFILE | os.O_RDONLY)
    make("file")
    yield "no directory", tell(os.open, "file", os.O_TMPFILE | os.O_RDWR)
    yield "names", sorted(os.listdir(root))


@USERS
def test_files_without_names(beside: Beside, user: User) -> None:
    beside.same(unnamed, user)


def test_an_unnamed_file_survives_a_killed_worker(node) -> None:
    root = node.mountpoint / "unnamed-kill"
    root.mkdir()
    fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
    try:
        os.write(fd, b"before")
        for name in ("one", "two"):
            node.replaced("worker", node.kill("worker")["worker"])
            assert os.pread(fd, 10, 0) == b"before"
            link_fd(fd, str(root / name))
        assert os.fstat(fd).st_nlink == 2
    finally:
        os.close(fd)
    assert (root / "two").read_bytes() == b"before"


def test_data_of_an_unnamed_file_stays_where_link_and_last_close_meet(node) -> None:
    root = node.mountpoint / "unnamed-race"
    root.mkdir()
    for number in range(50):
        fd = os.open(root, os.O_TMPFILE | os.O_RDWR, 0o600)
        os.write(fd, b"x" * 10_000)
        link_fd(fd, str(root / str(number)))
        os.close(fd)
        assert (root / str(number)).stat().st_size == 10_000 and (root / str(number)).read_bytes() == b"x" * 10_000


# --- whiteouts ----------------------------------------------------------------------------------------------------------
def whiteouts(root: str) -> Told:
    for name in ("a", "b", "c"):
        make(name)
    os.mkdir("d")
    os.link("a", "a2")
    yield "plain", tell(rename2, "a", "x", WHITEOUT)
    yield "left", tell(shown, "a")
    yield "noreplace", tell(rename2, "b", "x", WHITEOUT | NOREPLACE)
    yield "noreplace new", tell(rename2, "b", "y", WHITEOUT | NOREPLACE)
    yield "exchange", tell(rename2, "c", "x", WHITEOUT | EXCHANGE)
    yield "both", tell(rename2, "c", "x", NOREPLACE | EXCHANGE)
    yield "unknown flag", tell(rename2, "c", "x", 8)
    yield "directory", tell(rename2, "d", "e", WHITEOUT)
    yield "left by it", tell(shown, "d")
    yield "same inode", tell(rename2, "x", "a2", WHITEOUT)
    yield "of a whiteout", tell(rename2, "a", "w", WHITEOUT)
    yield "mknod", tell(os.mknod, "node", stat.S_IFCHR | 0o000, 0)
    yield "root", shown(root)
    yield "all", [(name, shown(name)) for name in sorted(os.listdir(root))]
    yield "removed", [tell(os.unlink, name) for name in ("a", "b", "node", "w")]


@USERS
def test_whiteouts(beside: Beside, user: User) -> None:
    beside.same(whiteouts, user)


# --- ACLs ---------------------------------------------------------------------------------------------------------------
def acls(root: str) -> Told:
    make("f")
    os.mkdir("d")
    os.symlink("f", "l")
    for path, name, value in (
        ("f", ACCESS, NAMED), ("f", ACCESS, NAMED), ("f", ACCESS, MINIMAL), ("f", ACCESS, MINIMAL),
        ("f", DEFAULT, NAMED), ("f", ACCESS, b"junk"), ("f", ACCESS, NAMED[:-8]),
        ("f", ACCESS, b""), ("f", ACCESS, struct.pack("<I", 2)), ("d", ACCESS, NAMED), ("d", DEFAULT, NAMED), ("d", DEFAULT, MINIMAL),
        ("d", "system.other", b"x"),
    ):  # fmt: skip
        before = times(path)
        tick()
        yield (path, name, value, "set"), tell(os.setxattr, path, name, value)
        yield (path, "times"), moved(before, times(path))
        yield (path, name, "is"), (tell(attributes, path), shown(path))
    yield "link", tell(os.setxattr, "l", ACCESS, NAMED, follow_symlinks=False)
    os.setxattr("f", ACCESS, NAMED)
    for mode in (0o640, 0o7777, 0o4711, 0):
        os.chmod("f", mode)
        yield ("chmod", mode), (attributes("f"), shown("f"))
    for path, name in (("f", ACCESS), ("f", ACCESS), ("f", DEFAULT), ("d", DEFAULT), ("d", DEFAULT)):
        before = times(path)
        tick()
        yield (path, name, "removed"), tell(os.removexattr, path, name)
        yield (path, "after"), (attributes(path), shown(path), moved(before, times(path)))
        yield (path, "get"), tell(os.getxattr, path, name)


@USERS
def test_acls(beside: Beside, user: User) -> None:
    beside.same(acls, user)


def inheritance(root: str) -> Told:
    for default in (NAMED, MINIMAL):
        folder = f"d{len(default)}"
        os.mkdir(folder)
        os.setxattr(folder, DEFAULT, default)
        for umask in (0o022, 0o777, 0):
            os.umask(umask)
            there = f"{folder}/{umask}"
            os.mkdir(there)
            os.chmod(there, 0o777)
            for mode in (0o666, 0o777, 0o640, 0, 0o6755):
                path = f"{there}/{mode}"
                os.close(os.open(path, os.O_CREAT | os.O_WRONLY, mode))
                os.mkdir(path + "d", mode)
                os.mknod(path + "p", stat.S_IFIFO | mode)
                os.symlink("x", path + "l")
                fd = os.open(there, os.O_TMPFILE | os.O_RDWR, mode)
                yield (path, "tmpfile"), (shown(fd), [os.getxattr(fd, name) for name in sorted(os.listxattr(fd))])
                os.close(fd)
                for name in (path, path + "d", path + "p", path + "l"):
                    yield (name,), (shown(name), attributes(name))
            os.chmod(there, 0o700)
    os.umask(0o027)
    os.mkdir("plain")
    os.chmod("plain", 0o2777)
    make("plain/f", mode=0o6777)
    os.mkdir("plain/d")
    yield "setgid", [(shown(name), attributes(name)) for name in ("plain/f", "plain/d")]


@USERS
def test_what_new_files_inherit(beside: Beside, user: User) -> None:
    beside.same(inheritance, user)


def test_the_kernel_checks_access_by_acls(beside: Beside) -> None:
    def prepare(root: str) -> None:
        for name in ("f", "g"):
            make(f"{root}/{name}", mode=0o600)
        os.setxattr(f"{root}/f", ACCESS, NAMED)
        os.mkdir(f"{root}/d", 0o700)
        os.setxattr(f"{root}/d", ACCESS, acl((1, 7, NOBODY), (2, 7, ANNA.uid), (4, 0, NOBODY), (16, 5, NOBODY), (32, 0, NOBODY)))
        make(f"{root}/d/inside")

    def access(root: str) -> Told:
        for name in ("f", "g", "d", "d/inside"):
            yield name, [tell(os.access, name, how) for how in (os.R_OK, os.W_OK, os.X_OK)]
        yield "read", [tell(lambda path: os.close(os.open(path, os.O_RDONLY)), name) for name in ("f", "g", "d", "d/inside")]
        yield "make", tell(make, "d/new")
        yield "set", tell(os.setxattr, "f", ACCESS, MINIMAL)

    told = {user.uid: beside.same(access, user, prepare=prepare) for user in (ROOT, ANNA, BERT)}
    assert told[ANNA.uid] != told[BERT.uid], "the ACL makes a difference"


def test_setgid_and_acls_of_strangers_to_the_group(beside: Beside) -> None:
    def prepare(root: str) -> None:
        for gid in (ANNA.gid, 3002, 9999):
            make(f"{root}/{gid}", mode=0o2750)
            os.mkdir(f"{root}/{gid}d")
            for path in (f"{root}/{gid}", f"{root}/{gid}d"):
                os.chown(path, ANNA.uid, gid)
                os.chmod(path, 0o2755)

    def steps(root: str) -> Told:
        for gid in (ANNA.gid, 3002, 9999):
            for path in (f"{gid}", f"{gid}d"):
                yield path, (tell(os.setxattr, path, ACCESS, NAMED), shown(path))
            yield "default", (tell(os.setxattr, f"{gid}d", DEFAULT, NAMED), shown(f"{gid}d"))
            for path in (f"{gid}", f"{gid}d"):
                yield "chmod", (tell(os.chmod, path, 0o2711), shown(path))

    beside.same(steps, ANNA, prepare=prepare)
    beside.same(steps, ROOT, prepare=prepare)
