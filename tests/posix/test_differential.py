"""The same random operations on a mount and on the machine's own filesystem: results, errnos, attributes and contents must be the same."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.root
LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD = -100
LIMIT_S = 18.0
OPERATIONS_MAX = 12_000
COMPARE_EVERY = 400
KILL_EVERY = 250
HANDLES_MAX = 12
FILE_BYTES = 300_000  # offsets are below
LENGTHS = (0, 1, 7, 100, 511, 4096, 4097, 20_000, 140_000)
NAMES = ("a", "b", "c", "d")
MODES = (0o600, 0o644, 0o755, 0o4755, 0o2775, 0o1777, 0)
OPEN_FLAGS = (
    os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_CREAT, os.O_RDWR | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_TRUNC, os.O_RDONLY | os.O_DIRECTORY, os.O_RDONLY | os.O_NOFOLLOW,
)  # fmt: skip


class Side:
    """One of the two trees, with its open handles."""

    def __init__(self, root: Path) -> None:
        root.mkdir()
        self.root = str(root)
        self.handles: dict[int, int] = {}

    def path(self, name: str) -> str:
        return f"{self.root}/{name}"

    def do(self, action: Callable[[Side], Any]) -> Any:
        try:
            return action(self)
        except OSError as err:
            return errno.errorcode[err.errno or 0]

    def close(self) -> None:
        for fd in self.handles.values():
            os.close(fd)
        self.handles.clear()


def shown(info: os.stat_result) -> tuple[Any, ...]:
    """What must be the same of a stat: not numbers of inodes and devices, not sizes of directories, not the present time."""
    size = -1 if stat.S_ISDIR(info.st_mode) else info.st_size
    return oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size


def picture(root: str) -> list[Any]:
    """Everything below a directory."""
    found: list[Any] = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders + files):
            path = f"{folder}/{name}"
            info = os.lstat(path)
            content: Any = None
            if stat.S_ISREG(info.st_mode):
                content = Path(path).read_bytes()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            attributes = {key: os.getxattr(path, key, follow_symlinks=False) for key in os.listxattr(path, follow_symlinks=False)}
            found.append((path[len(root) :], shown(info), content, attributes))
    return found


def first_difference(ours: list[Any], theirs: list[Any]) -> str:
    for one, other in zip(ours, theirs, strict=False):
        if one[:2] != other[:2] or one[3] != other[3]:
            return f"ours {one[:2]} {one[3]}, reference {other[:2]} {other[3]}"
        if one[2] != other[2]:
            at = next((i for i, (a, b) in enumerate(zip(one[2], other[2], strict=False)) if a != b), -1)
            return f"content of {one[0]} differs at {at} of {len(one[2])}"
    return f"{[entry[0] for entry in ours]} against {[entry[0] for entry in theirs]}"


class Chooser:
    """Draws operations; each is a function of a Side, so both sides do the same."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.opened = 0
        self.handles: list[int] = []
        names = [name[5:] for name in dir(self) if name.startswith("draw_")]
        self.kinds = [*names, "write", "write", "read", "truncate", "open", "rename", "rename", "unlink"]

    def name(self) -> str:
        return "/".join(self.random.choice(NAMES) for _ in range(self.random.choice((1, 1, 2, 2, 3))))

    def draw(self) -> tuple[str, Callable[[Side], Any]]:
        kind = self.random.choice(self.kinds)
        action, words = getattr(self, f"draw_{kind}")()
        return f"{kind} {words}", action

    def handle(self) -> int:
        return self.random.choice(self.handles) if self.handles else 0

    # --- handles -----------------------------------------------------------------------------------------------------------
    def draw_open(self) -> tuple[Callable[[Side], Any], Any]:
        if len(self.handles) >= HANDLES_MAX:
            return self.draw_close()
        name, flags, mode = self.name(), self.random.choice(OPEN_FLAGS), self.random.choice(MODES)
        self.opened += 1
        number = self.opened
        self.handles.append(number)

        def action(side: Side) -> Any:
            side.handles[number] = os.open(side.path(name), flags, mode)
            return shown(os.fstat(side.handles[number]))

        return action, (number, name, oct(flags), oct(mode))

    def draw_close(self) -> tuple[Callable[[Side], Any], Any]:
        number = self.handle()
        with suppress(ValueError):
            self.handles.remove(number)

        def action(side: Side) -> Any:
            fd = side.handles.pop(number, None)
            return None if fd is None else os.close(fd)

        return action, number

    def on_handle(self, call: Callable[[int], Any], *words: Any) -> tuple[Callable[[Side], Any], Any]:
        number = self.handle()
        return (lambda side: call(side.handles[number]) if number in side.handles else None), (number, *words)

    def draw_write(self) -> tuple[Callable[[Side], Any], Any]:
        data = self.random.randbytes(self.random.choice(LENGTHS))
        offset = self.random.randrange(FILE_BYTES)
        if self.random.random() < 0.2:
            return self.on_handle(lambda fd: os.write(fd, data), len(data))
        return self.on_handle(lambda fd: os.pwrite(fd, data, offset), offset, len(data))

    def draw_read(self) -> tuple[Callable[[Side], Any], Any]:
        offset, length = self.random.randrange(FILE_BYTES), self.random.choice(LENGTHS)
        if self.random.random() < 0.2:
            return self.on_handle(lambda fd: os.read(fd, length), length)
        return self.on_handle(lambda fd: os.pread(fd, length, offset), offset, length)

    def draw_ftruncate(self) -> tuple[Callable[[Side], Any], Any]:
        size = self.random.choice((0, 1, 4096, self.random.randrange(FILE_BYTES)))
        return self.on_handle(lambda fd: os.ftruncate(fd, size), size)

    def draw_seek(self) -> tuple[Callable[[Side], Any], Any]:
        offset, whence = self.random.randrange(FILE_BYTES), self.random.choice((os.SEEK_SET, os.SEEK_END))

        def call(fd: int) -> Any:
            return None if stat.S_ISDIR(os.fstat(fd).st_mode) else os.lseek(fd, -1 if whence else offset, whence)

        return self.on_handle(call, offset, whence)

    def draw_fsync(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_handle(self.random.choice((os.fsync, os.fdatasync)))

    def draw_fstat(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_handle(lambda fd: shown(os.fstat(fd)))

    def draw_list(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_handle(lambda fd: sorted(os.listdir(fd)))

    def draw_allocate(self) -> tuple[Callable[[Side], Any], Any]:
        offset, length = self.random.randrange(FILE_BYTES), self.random.choice(LENGTHS)

        def call(fd: int) -> Any:
            """What glibc does where a filesystem has no fallocate needs a handle that reads, and writes where it is told to."""
            usable = fcntl.fcntl(fd, fcntl.F_GETFL) & (os.O_ACCMODE | os.O_APPEND) == os.O_RDWR
            return os.posix_fallocate(fd, offset, length) if usable else None

        return self.on_handle(call, offset, length)

    def draw_map(self) -> tuple[Callable[[Side], Any], Any]:
        data, place = self.random.randbytes(self.random.choice((1, 100, 5000))), self.random.random()

        def call(fd: int) -> Any:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode) or info.st_size <= len(data):
                return None
            with mmap.mmap(fd, info.st_size) as area:
                at = int(place * (info.st_size - len(data)))
                area[at : at + len(data)] = data
                return area[max(0, at - 10) : at + len(data) + 10]

        return self.on_handle(call, len(data))

    # --- names -------------------------------------------------------------------------------------------------------------
    def on_name(self, call: Callable[[str], Any], *words: Any) -> tuple[Callable[[Side], Any], Any]:
        name = self.name()
        return (lambda side: call(side.path(name))), (name, *words)

    def on_names(self, call: Callable[[str, str], Any], *words: Any) -> tuple[Callable[[Side], Any], Any]:
        one, other = self.name(), self.name()
        return (lambda side: call(side.path(one), side.path(other))), (one, other, *words)

    def draw_mkdir(self) -> tuple[Callable[[Side], Any], Any]:
        mode = self.random.choice(MODES)
        return self.on_name(lambda path: os.mkdir(path, mode), oct(mode))

    def draw_rmdir(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(os.rmdir)

    def draw_unlink(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(os.unlink)

    def draw_stat(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(lambda path: shown(os.stat(path)))

    def draw_lstat(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(lambda path: shown(os.lstat(path)))

    def draw_readlink(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(os.readlink)

    def draw_listdir(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(lambda path: sorted(os.listdir(path)))

    def draw_symlink(self) -> tuple[Callable[[Side], Any], Any]:
        target = self.random.choice((*NAMES, "b/../a", "a/b", "t" * 500))
        return self.on_name(lambda path: os.symlink(target, path), target)

    def draw_mknod(self) -> tuple[Callable[[Side], Any], Any]:
        kind = self.random.choice((stat.S_IFREG, stat.S_IFREG, stat.S_IFSOCK))
        return self.on_name(lambda path: os.mknod(path, kind | 0o640))

    def draw_truncate(self) -> tuple[Callable[[Side], Any], Any]:
        size = self.random.choice((0, 0, 5, self.random.randrange(FILE_BYTES)))
        return self.on_name(lambda path: os.truncate(path, size), size)

    def draw_chmod(self) -> tuple[Callable[[Side], Any], Any]:
        mode = self.random.choice(MODES)
        return self.on_name(lambda path: os.chmod(path, mode), oct(mode))

    def draw_chown(self) -> tuple[Callable[[Side], Any], Any]:
        uid, gid = self.random.choice(((0, 0), (7, 8), (-1, 9)))
        return self.on_name(lambda path: os.lchown(path, uid, gid), uid, gid)

    def draw_utime(self) -> tuple[Callable[[Side], Any], Any]:
        times = self.random.choice(((1, 2), (10**18, 10**18 + 1), (-5, 5)))

        def call(path: str) -> Any:
            os.utime(path, ns=times)
            info = os.stat(path)
            return info.st_atime_ns, info.st_mtime_ns, abs(info.st_ctime - time.time()) < 600

        return self.on_name(call, times)

    def draw_link(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_names(lambda one, other: os.link(one, other, follow_symlinks=False))

    def draw_rename(self) -> tuple[Callable[[Side], Any], Any]:
        flags = self.random.choice((0, 0, 0, 1, 2))

        def call(one: str, other: str) -> Any:
            if LIBC.renameat2(AT_FDCWD, one.encode(), AT_FDCWD, other.encode(), flags):
                raise OSError(ctypes.get_errno(), "renameat2")

        return self.on_names(call, flags)

    def draw_setxattr(self) -> tuple[Callable[[Side], Any], Any]:
        key, value, flags = self.random.choice(("user.one", "user.two")), self.random.randbytes(30), self.random.choice((0, 0, 1, 2))
        return self.on_name(lambda path: os.setxattr(path, key, value, flags), key, flags)

    def draw_removexattr(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(lambda path: os.removexattr(path, "user.one"))

    def draw_getxattr(self) -> tuple[Callable[[Side], Any], Any]:
        return self.on_name(lambda path: sorted((key, os.getxattr(path, key)) for key in os.listxattr(path)))


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


@pytest.fixture
def sides(node, request, tmp_path) -> Iterator[tuple[Side, Side]]:
    both = Side(node.mountpoint / request.node.name.strip("]").replace("[", "-")), Side(tmp_path / "reference")
    previous = os.umask(0o022)
    yield both
    os.umask(previous)
    for side in both:
        side.close()


def compare(ours: Side, reference: Side, history: list[str], *, cold: bool) -> None:
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    one, other = picture(ours.root), picture(reference.root)
    assert one == other, "\n".join([first_difference(one, other), *history[-60:]])


@pytest.mark.parametrize("kills", [False, True])
def test_random_operations_beside_the_machines_own_filesystem(node, sides, seed, figures, kills):
    ours, reference = sides
    chooser = Chooser(seed + kills)
    history: list[str] = []
    killed = 0
    deadline = time.monotonic() + LIMIT_S
    for number in range(1, OPERATIONS_MAX):
        words, action = chooser.draw()
        history.append(words)
        if kills and number % KILL_EVERY == 0:
            node.kill("worker")  # the operation meets a mount without a worker
            killed += 1
        expected, got = reference.do(action), ours.do(action)
        assert got == expected, f"ours {str(got)[:300]}, reference {str(expected)[:300]}\n" + "\n".join(history[-60:])
        if number % COMPARE_EVERY == 0:
            compare(ours, reference, history, cold=number % (2 * COMPARE_EVERY) == 0)
        if time.monotonic() > deadline:
            break
    compare(ours, reference, history, cold=True)
    figures.append(f"differential{' under kills' if kills else ''}: {len(history)} operations, {killed} kills, seed {seed}")
