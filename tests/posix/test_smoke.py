"""Ordinary programs' operations on a mount, each with the result that POSIX and Linux document.  One node serves the whole file."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import shutil
import socket
import sqlite3
import stat
import struct
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.posix.errnos import fails

pytestmark = pytest.mark.root
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2


@pytest.fixture(scope="module", params=["delegated", "durable"])
def node(make_node, request):
    made = make_node(up=False)
    made.names = request.param
    made.up()
    return made


def renameat2(source: Path, target: Path, flags: int) -> None:
    if LIBC.renameat2(AT_FDCWD, os.fsencode(source), AT_FDCWD, os.fsencode(target), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3")


# --- names --------------------------------------------------------------------------------------------------------------------
def test_names_of_every_kind(place):
    names = [b"a", b"with space", b"\xff\xfe not utf-8", "ü€😀".encode(), b"n" * 255, b"new\nline", b".hidden", b"-dash"]
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(place), name), "wb") as file:
            file.write(b"%d" % number)
    assert sorted(os.listdir(os.fsencode(place))) == sorted(names)
    drop_caches()
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(place), name), "rb") as file:
            assert file.read() == b"%d" % number


def test_name_errors(place):
    with fails(errno.ENAMETOOLONG):
        (place / ("n" * 256)).touch()
    with fails(errno.ENOENT):
        (place / "nothing").stat()
    (place / "file").touch()
    with fails(errno.ENOTDIR):
        (place / "file" / "below").stat()
    with fails(errno.EEXIST):
        os.open(place / "file", os.O_CREAT | os.O_EXCL)
    with fails(errno.EEXIST):
        (place / "file").mkdir()
    with fails(errno.EISDIR):
        os.open(place, os.O_WRONLY)
    with fails(errno.ENOTDIR):
        os.rmdir(place / "file")
    (place / "loop").symlink_to("loop")
    with fails(errno.ELOOP):
        os.open(place / "loop", os.O_RDONLY)
    with fails(errno.EISDIR):
        os.unlink(place.parent / place.name)


def test_directories(place):
    (place / "a" / "b" / "c").mkdir(parents=True)
    assert (place / "a").stat().st_nlink == 3
    with fails(errno.ENOTEMPTY):
        (place / "a").rmdir()
    with fails(errno.EINVAL):
        (place / "a").rename(place / "a" / "b" / "inside")
    (place / "a" / "b").rename(place / "moved")
    assert (place / "moved" / "c").is_dir()
    assert (place / "a").stat().st_nlink == 2
    assert os.stat(place / "moved" / "..").st_ino == place.stat().st_ino
    shutil.rmtree(place / "moved")
    assert os.listdir(place) == ["a"]


def test_big_directory_lists_each_name_once_while_it_changes(place):
    wanted = {f"f{number:04d}" for number in range(1500)}
    for name in wanted:
        (place / name).touch()
    drop_caches()
    seen = []
    with os.scandir(place) as entries:
        for number, entry in enumerate(entries):
            seen.append(entry.name)
            if number % 100 == 50:  # what is added or removed meanwhile may show or not; the others show exactly once
                (place / f"new{number}").touch()
                os.unlink(place / f"new{number}")
    assert sorted(name for name in seen if not name.startswith("new")) == sorted(wanted)
    shutil.rmtree(place)
    assert not place.exists()


def test_rename_and_its_flags(place):
    (place / "one").write_text("one")
    (place / "two").write_text("two")
    with fails(errno.EEXIST):
        renameat2(place / "one", place / "two", RENAME_NOREPLACE)
    renameat2(place / "one", place / "two", RENAME_EXCHANGE)
    assert ((place / "one").read_text(), (place / "two").read_text()) == ("two", "one")
    renameat2(place / "one", place / "three", RENAME_NOREPLACE)
    os.rename(place / "three", place / "two")
    assert [(path.name, path.read_text()) for path in place.iterdir()] == [("two", "two")]
    (place / "folder").mkdir()
    with fails(errno.EISDIR):
        os.rename(place / "two", place / "folder")
    with fails(errno.ENOTDIR):
        os.rename(place / "folder", place / "two")


def test_links(place):
    (place / "file").write_text("content")
    os.link(place / "file", place / "other")
    assert (place / "file").stat().st_nlink == 2
    assert (place / "file").samefile(place / "other")
    os.rename(place / "file", place / "other")  # two names of one file: POSIX says nothing happens
    assert sorted(os.listdir(place)) == ["file", "other"]
    (place / "file").unlink()
    assert (place / "other").stat().st_nlink == 1
    long = "t" * 4000
    (place / "link").symlink_to(long)
    assert os.readlink(place / "link") == long
    assert (place / "link").lstat().st_size == 4000
    with fails(errno.EPERM):
        os.link(place, place / "directory")


def test_open_file_lives_without_a_name(place):
    with open(place / "file", "w+b") as file:
        file.write(b"x" * 100_000)
        file.flush()
        os.unlink(place / "file")
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(b"y" * 10)
        file.flush()
        assert os.pread(file.fileno(), 20, 99_990) == b"x" * 10 + b"y" * 10
    assert os.listdir(place) == []


def test_a_file_that_is_gone_is_not_opened_as_an_empty_one(place):
    """By a descriptor that is no open handle (O_PATH), of which a FUSE filesystem is not told."""
    (place / "file").write_bytes(b"content")
    fd = os.open(place / "file", os.O_PATH)
    (place / "file").unlink()
    with fails(errno.ESTALE):
        os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    os.close(fd)


# --- attributes ---------------------------------------------------------------------------------------------------------------
def test_attributes(place):
    path = place / "file"
    path.write_bytes(b"12345")
    before = path.stat()
    os.chmod(path, 0o4751)
    os.chown(path, 1234, 4321)
    after = path.stat()
    assert (after.st_uid, after.st_gid, after.st_size) == (1234, 4321, 5)
    assert stat.S_IMODE(after.st_mode) in (0o4751, 0o751)  # root's chown may or may not keep set-user-id
    assert after.st_ctime_ns >= before.st_ctime_ns
    os.utime(path, ns=(-1_000_000_007, 1_234_567_890_123_456_789))
    times = path.stat()
    assert (times.st_atime_ns, times.st_mtime_ns) == (-1_000_000_007, 1_234_567_890_123_456_789)
    path.write_bytes(b"newer")
    assert abs(path.stat().st_mtime - time.time()) < 60
    previous = os.umask(0o027)
    try:
        os.close(os.open(place / "masked", os.O_CREAT, 0o666))
    finally:
        os.umask(previous)
    assert stat.S_IMODE((place / "masked").stat().st_mode) == 0o640


def test_special_files(place):
    os.mkfifo(place / "fifo", 0o600)
    os.mknod(place / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    assert stat.S_ISFIFO((place / "fifo").stat().st_mode)
    assert (place / "null").stat().st_rdev == os.makedev(1, 3)
    with closing(socket.socket(socket.AF_UNIX)) as listener:
        folder = os.open(place, os.O_PATH)
        listener.bind(f"/proc/self/fd/{folder}/socket")
        os.close(folder)
    assert stat.S_ISSOCK((place / "socket").stat().st_mode)


def test_permissions_of_another_user(place):
    os.chmod(place, 0o755)
    (place / "secret").write_text("secret")
    os.chmod(place / "secret", 0o600)
    code = f"import os\nos.setuid(65534)\ntry:\n os.open({str(place / 'secret')!r}, os.O_RDONLY)\nexcept PermissionError:\n os._exit(7)"
    ancestors = [place.parent.parent, place.parent]
    modes = [path.stat().st_mode for path in ancestors]
    for path in ancestors:
        os.chmod(path, 0o755)
    try:
        assert subprocess.run([sys.executable, "-I", "-S", "-c", code], check=False).returncode == 7
    finally:
        for path, mode in zip(ancestors, modes, strict=True):
            os.chmod(path, stat.S_IMODE(mode))


def test_extended_attributes(place):
    path = place / "file"
    path.touch()
    os.setxattr(path, "user.one", b"1")
    os.setxattr(path, "user.large", b"L" * 5000)
    os.setxattr(path, "user.empty", b"")
    assert sorted(os.listxattr(path)) == ["user.empty", "user.large", "user.one"]
    assert os.getxattr(path, "user.large") == b"L" * 5000
    with fails(errno.EEXIST):
        os.setxattr(path, "user.one", b"2", os.XATTR_CREATE)
    with fails(errno.ENODATA):
        os.setxattr(path, "user.none", b"2", os.XATTR_REPLACE)
    os.removexattr(path, "user.one")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.one")
    assert os.getxattr(path, "user.empty") == b""


def test_statfs_follows_what_is_used(node, place, seed):
    before = os.statvfs(place)
    assert before.f_namemax == 255
    assert before.f_blocks * before.f_frsize > 1 << 30
    with open(place / "big", "wb") as file:
        file.write(random.Random(seed).randbytes(1 << 20) * 96)  # more than a worker reserves at a time
        os.fsync(file.fileno())
    assert os.statvfs(place).f_bfree < before.f_bfree


# --- data ---------------------------------------------------------------------------------------------------------------------
def test_random_writes_match_a_model(place, seed):
    choose = random.Random(seed)
    model = bytearray()
    with open(place / "file", "w+b", buffering=0) as file:
        for _ in range(400):
            offset, length = choose.randrange(3 << 20), choose.choice((1, 10, 511, 4096, 10_000, 200_000))
            kind = choose.random()
            if kind < 0.6:
                data = choose.randbytes(length)
                os.pwrite(file.fileno(), data, offset)
                model.extend(bytes(max(0, offset + length - len(model))))
                model[offset : offset + length] = data
            elif kind < 0.7:
                os.ftruncate(file.fileno(), offset)
                del model[offset:]
                model.extend(bytes(offset - len(model)))
            elif kind < 0.75:
                os.fsync(file.fileno())
            elif kind < 0.8:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            else:
                assert os.pread(file.fileno(), length, offset) == model[offset : offset + length]
    drop_caches()
    assert (place / "file").read_bytes() == model


def test_sparse_and_far(place):
    far = 1 << 40
    with open(place / "sparse", "w+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"end", far)
        os.ftruncate(file.fileno(), far + 10_000)
        assert os.pread(file.fileno(), 10, far - 2) == b"\0\0end" + bytes(5)
        assert os.pread(file.fileno(), 4096, 1 << 30) == bytes(4096)
    assert (place / "sparse").stat().st_size == far + 10_000
    assert (place / "sparse").stat().st_blocks * 512 < 1 << 20


def test_append_from_two_handles(place):
    with open(place / "log", "ab", buffering=0) as one, open(place / "log", "ab", buffering=0) as two:
        for number in range(200):
            (one, two)[number % 2].write(b"%06d\n" % number)
    assert (place / "log").read_bytes() == b"".join(b"%06d\n" % number for number in range(200))


def test_mmap_shared_and_private(place):
    path = place / "mapped"
    path.write_bytes(bytes(100_000))
    with open(path, "r+b") as file, mmap.mmap(file.fileno(), 100_000) as area:
        area[50_000:50_005] = b"hello"
        area.flush()
        assert os.pread(file.fileno(), 5, 50_000) == b"hello"
        os.pwrite(file.fileno(), b"world", 70_000)
        assert area[70_000:70_005] == b"world"
    drop_caches()
    assert path.read_bytes()[50_000:50_005] == b"hello"


def test_direct_io(place, seed):
    data = mmap.mmap(-1, 1 << 20)
    data[:] = random.Random(seed).randbytes(1 << 20)
    fd = os.open(place / "direct", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    try:
        assert os.pwrite(fd, data, 4096) == 1 << 20
        back = mmap.mmap(-1, 1 << 20)
        assert os.preadv(fd, [back], 4096) == 1 << 20
        assert back[:] == data[:]
    finally:
        os.close(fd)
    assert (place / "direct").read_bytes() == bytes(4096) + data[:]


def test_big_file_survives_a_remount(node, place, seed):
    choose = random.Random(seed)
    pieces = [choose.randbytes(1 << 20) for _ in range(7)]
    with open(place / "big", "wb", buffering=0) as file:
        for number in range(150):
            file.write(pieces[number % 7])
    node.umount()
    node.mount()
    with open(place / "big", "rb", buffering=0) as file:
        for number in range(150):
            assert file.read(1 << 20) == pieces[number % 7]
        assert file.read(1) == b""


def test_copies_by_every_way(place, seed):
    source = place / "source"
    source.write_bytes(random.Random(seed).randbytes(700_001))
    shutil.copyfile(source, place / "sendfile")
    with open(source, "rb") as a, open(place / "range", "wb") as b:
        left = 700_001
        while left:
            left -= os.copy_file_range(a.fileno(), b.fileno(), left)
    assert (place / "sendfile").read_bytes() == (place / "range").read_bytes() == source.read_bytes()


# --- locks between processes --------------------------------------------------------------------------------------------------
HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
if sys.argv[2] == "flock": fcntl.flock(file, fcntl.LOCK_EX)
else: fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)
print("held", flush=True)
sys.stdin.read()
"""


def holder(path: Path, kind: str) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", ["flock", "fcntl"])
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_lock_of_another_process(place, kind, end):
    path = place / "locked"
    path.write_bytes(bytes(200))
    with holder(path, kind) as process, open(path, "r+b") as file:
        lock = (lambda op: fcntl.flock(file, op)) if kind == "flock" else (lambda op: fcntl.lockf(file, op, 1, 105))
        with fails(errno.EAGAIN):
            lock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        if kind == "fcntl":
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, 0)  # another range is free
            asked = fcntl.fcntl(file, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 105, 1, 0))
            assert struct.unpack("hhqqi4x", asked) == (fcntl.F_WRLCK, 0, 100, 10, process.pid)
        if end == "kill":
            process.kill()
        else:
            assert process.stdin is not None
            process.stdin.close()
        lock(fcntl.LOCK_EX)  # waits until the other one is gone
        lock(fcntl.LOCK_UN)


def test_waiting_lock_ends_with_a_signal(place):
    path = place / "locked"
    path.write_bytes(bytes(200))
    code = (
        "import fcntl, signal, sys\nclass Rang(Exception): pass\ndef ring(*a): raise Rang\nsignal.signal(signal.SIGALRM, ring)\n"
        "file = open(sys.argv[1], 'r+b')\n"
        "try:\n signal.setitimer(signal.ITIMER_REAL, 0.3)\n fcntl.lockf(file, fcntl.LOCK_EX, 10, 100)\nexcept Rang: sys.exit(9)"
    )
    with holder(path, "fcntl") as process:
        assert subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False).returncode == 9
        process.kill()


# --- programs -----------------------------------------------------------------------------------------------------------------
def test_sqlite_in_both_journal_modes(place):
    for mode in ("delete", "wal"):
        with closing(sqlite3.connect(place / f"{mode}.db")) as database:
            database.execute(f"pragma journal_mode={mode}")
            with database:
                database.execute("create table t (a integer primary key, b text)")
                database.executemany("insert into t (b) values (?)", [("x" * 100,) for _ in range(2000)])
            with database:
                database.execute("delete from t where a % 3 = 0")
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
            assert database.execute("select count(*) from t").fetchone() == (1334,)


def test_script_and_binary_execute(place):
    (place / "script").write_text("#!/bin/sh\necho from the mount\n")
    (place / "script").chmod(0o755)
    assert subprocess.check_output([place / "script"], text=True) == "from the mount\n"
    shutil.copy("/bin/ls", place / "ls")
    assert "script" in subprocess.check_output([place / "ls", place], text=True).split()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_git_commits_and_clones(place):
    def git(*words: str) -> None:
        command = ["git", "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "init.defaultBranch=main", *words]
        env = os.environ | {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
        subprocess.run(command, check=True, capture_output=True, cwd=place, env=env)

    git("init", "one")
    for number in range(60):
        (place / "one" / f"f{number}").write_text(f"{number}\n" * number)
    git("-C", "one", "add", ".")
    git("-C", "one", "commit", "-m", "first")
    git("clone", "--no-hardlinks", "one", "two")
    git("-C", "two", "fsck", "--strict")
    assert (place / "two" / "f59").read_text() == "59\n" * 59
    git("-C", "two", "gc")
    git("-C", "two", "status")
