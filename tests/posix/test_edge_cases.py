"""What was wrong once, found by running public suites and random operations beside ext4; each test says what a program saw."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import time
from pathlib import Path

import pytest

from awsomefsd.vfs.ops.attributes import TIME_NS_MAX, TIME_NS_MIN

pytestmark = pytest.mark.root
WRITE_LOCK = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 10, 0)


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


@pytest.fixture
def place(node, request) -> Path:
    folder = node.mountpoint / request.node.name.translate(str.maketrans("[]", "__"))[:80]
    folder.mkdir()
    return folder


def fails(code: int):
    return pytest.raises(OSError, match=rf"\[Errno {code}\]")


@pytest.mark.parametrize("seconds", [1 << 35, -(1 << 35)])
def test_a_time_beyond_what_is_stored_is_the_nearest_one(place, seconds):
    """The service dropped the worker's connection for the number, and the worker sent it again for ever: the mount hung."""
    (place / "file").touch()
    subprocess.run(["touch", "-d", f"@{seconds}", place / "file"], timeout=60, check=True)
    shown = (place / "file").stat()
    assert shown.st_mtime_ns == shown.st_atime_ns == (TIME_NS_MAX if seconds > 0 else TIME_NS_MIN)


def test_a_name_that_is_too_long_is_never_just_absent(place):
    """ENOENT from what is known of the directory."""
    for call in (os.stat, os.unlink, os.rmdir, os.listdir, lambda path: os.rename(path, place / "b"), lambda path: os.chmod(path, 0)):
        with fails(errno.ENAMETOOLONG):
            call(place / ("n" * 256))
    (place / ("n" * 255)).touch()
    with fails(errno.ENAMETOOLONG):
        os.rename(place / ("n" * 255), place / ("n" * 256))


def lock_by_handle(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, WRITE_LOCK)
    except BlockingIOError:
        return False
    return True


def eventually(check) -> bool:
    deadline = time.monotonic() + 60
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("killed", [False, True])
def test_a_lock_of_an_open_file_ends_with_its_close(node, place, killed):
    """The kernel's RELEASE says nothing of them, so they stayed until the unmount."""
    (place / "file").write_bytes(bytes(100))
    one = os.open(place / "file", os.O_RDWR)
    other = os.open(place / "file", os.O_RDWR)
    assert lock_by_handle(one)
    copy = os.dup(one)
    os.close(one)
    if killed:
        node.replaced("worker", node.kill("worker")["worker"])
    assert not lock_by_handle(other)  # the copy still is the same open file
    os.close(copy)
    assert eventually(lambda: lock_by_handle(other))
    os.close(other)


def test_a_time_in_the_future_is_not_the_time_of_change(place):
    """ctime was shown as the mtime that utimensat had set, while data was dirty."""
    with open(place / "file", "wb", buffering=0) as file:
        file.write(b"dirty")
        os.utime(file.fileno(), (1, 4_000_000_000))
        shown = os.fstat(file.fileno())
        assert shown.st_mtime == 4_000_000_000 and abs(shown.st_ctime - time.time()) < 60
        file.write(b"again")
        assert abs(os.fstat(file.fileno()).st_mtime - time.time()) < 60


def test_rewinddir_sees_the_directory_as_it_is(place):
    """The page of the first reading was handed out again."""
    (place / "a").touch()
    fd = os.open(place, os.O_RDONLY)
    assert os.listdir(fd) == ["a"]
    (place / "b").touch()
    assert sorted(os.listdir(fd)) == ["a", "b"]
    (place / "a").unlink()
    assert os.listdir(fd) == ["b"]
    os.close(fd)


def test_a_file_that_is_gone_is_not_opened_as_an_empty_one(place):
    """Through a descriptor that is no open handle (O_PATH), which is not told to a FUSE filesystem."""
    (place / "file").write_bytes(b"content")
    fd = os.open(place / "file", os.O_PATH)
    (place / "file").unlink()
    with fails(errno.ENOENT):
        os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)


def test_an_attribute_needs_a_name_behind_its_prefix(place):
    for prefix in ("user.", "trusted.", "security."):
        with fails(errno.EINVAL):
            os.setxattr(place, prefix, b"value")
