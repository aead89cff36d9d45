"""Files opened by handle (name_to_handle_at, open_by_handle_at), as a server of NFS opens them: the kernel may have forgotten the inode."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.limits import INLINE_BYTES_MAX

pytestmark = pytest.mark.root
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
HANDLE_BYTES_MAX = 128


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_uint), ("kind", ctypes.c_int), ("handle", ctypes.c_ubyte * HANDLE_BYTES_MAX)]


def handle_of(path: Path) -> Handle:
    handle, mount_id = Handle(HANDLE_BYTES_MAX), ctypes.c_int()
    if LIBC.name_to_handle_at(AT_FDCWD, os.fsencode(path), ctypes.byref(handle), ctypes.byref(mount_id), 0):
        raise OSError(ctypes.get_errno(), "name_to_handle_at")
    return handle


def opened(root: int, handle: Handle, flags: int) -> int:
    fd: int = LIBC.open_by_handle_at(root, ctypes.byref(handle), flags)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "open_by_handle_at")
    return fd


def forget_inodes() -> None:
    """The kernel forgets names and inodes that nobody uses; those of others come back when they are asked for."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


@pytest.fixture
def root(place: Path) -> Iterator[int]:
    fd = os.open(place, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.mark.parametrize("size", [100, INLINE_BYTES_MAX * 4])
def test_a_file_opened_by_handle_shows_what_was_just_written(place, root, size):
    (place / "file").write_bytes(b"x" * size)
    handle = handle_of(place / "file")
    forget_inodes()
    fd = opened(root, handle, os.O_RDWR)
    try:
        assert os.read(fd, 2 * size) == b"x" * size
        assert os.fstat(fd).st_size == os.lseek(fd, 0, os.SEEK_END) == size
        os.write(fd, b"more")
    finally:
        os.close(fd)
    assert (place / "file").read_bytes() == b"x" * size + b"more"


def test_a_directory_by_handle_and_its_parent(place, root):
    (place / "a" / "b").mkdir(parents=True)
    handle = handle_of(place / "a" / "b")
    forget_inodes()
    fd = opened(root, handle, os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert os.readlink(f"/proc/self/fd/{fd}") == str(place / "a" / "b")
    finally:
        os.close(fd)


def test_the_handle_of_a_removed_file_is_stale(place, root):
    (place / "file").write_bytes(b"x")
    handle = handle_of(place / "file")
    (place / "file").unlink()
    forget_inodes()
    with pytest.raises(OSError) as refused:
        opened(root, handle, os.O_RDONLY)
    assert refused.value.errno == errno.ESTALE
