"""The port of a filesystem, as handlers ask it: vfs.Vfs in production, a dict in tests.

`Result[T]` is a T, or Steps (a generator, see base/wait.py) that return one.  Whatever a method raises as errors.Error is answered with
its errno.  What `readdir` yields is consumed lazily until the reply is full, so it is an iterable that is no generator: a list, `map`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar, Union

from awsomefsd.base.types import Attr, Dirent, Lock, StatFs
from awsomefsd.base.wait import Steps
from awsomefsd.vfs.api.context import Context, Opened, SetAttrIn

T = TypeVar("T")
Promise = tuple[int, int]  # the session's stamp, and when it was read (ns of CLOCK_BOOTTIME)
Result = Union[T, Steps]


class FilesystemSession(Protocol):
    """The trust that the kernel may put in answers, and the end of its requests.  These never wait."""

    def ttl_ns(self) -> int:
        """The time (ns) for which the kernel may use names and attributes that it is told now, by whatever reply; 0: not at all."""

    def attr_ttl_ns(self, attr: Attr) -> int:
        """As `ttl_ns`, for what GETATTR says."""

    def name_ttl_ns(self, parent: int, name: bytes, ino: int) -> int:
        """As `ttl_ns`, for a name that LOOKUP or READDIRPLUS says; `ino` 0: that there is none."""

    def promise(self) -> Promise:
        """To be asked for before a reply is made that the kernel may remember."""

    def delivered(self, promise: Promise, ctx: Context, value: Any, *, pages: bool) -> None:
        """The kernel has that reply: what it may not believe any more, because the reply was on its way for too long, it is told to forget.

        `value`: the result in it; None for an error.  `pages`: it has data that the kernel keeps.
        """

    def may_give_up(self, *, names: bool) -> bool:
        """Says whether the kernel can be made to forget what a request changes whose outcome it will not know; `names`: names too."""

    def abandoned(self, value: Any) -> None:
        """The result of a request whose caller is gone: a handle in it is nobody's."""

    def interrupt(self, unique: int) -> None:
        """The caller of a waiting request got a signal."""

    def replied(self, unique: int) -> None:
        """The kernel has the answer of a request that changed something; nobody asks for its result again."""

    def forget(self, ino: int, nlookup: int) -> None: ...


class FilesystemNames(Protocol):
    """Names of directories.  What is made is in the log when it returns."""

    def lookup(self, ctx: Context, parent: int, name: bytes) -> Result[Attr]: ...
    def readlink(self, ctx: Context, ino: int) -> Result[bytes]: ...
    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int) -> Result[Attr]: ...
    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int) -> Result[Attr]: ...
    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> Result[Attr]: ...
    def link(self, ctx: Context, ino: int, new_parent: int, new_name: bytes) -> Result[Attr]: ...
    def unlink(self, ctx: Context, parent: int, name: bytes) -> Result[None]: ...
    def rmdir(self, ctx: Context, parent: int, name: bytes) -> Result[None]: ...
    def rename(self, ctx: Context, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Result[None]: ...


class FilesystemAttributes(Protocol):
    """Attributes, extended ones too.  Raises FsError: ENOENT, EPERM, ENODATA, ERANGE and what setxattr(2) names."""

    def getattr(self, ctx: Context, ino: int, fh: int | None) -> Result[Attr]: ...
    def setattr(self, ctx: Context, ino: int, fh: int | None, change: SetAttrIn) -> Result[Attr]: ...
    def statfs(self, ctx: Context, ino: int) -> Result[StatFs]: ...
    def setxattr(self, ctx: Context, ino: int, name: bytes, value: bytes, flags: int) -> Result[None]: ...
    def getxattr(self, ctx: Context, ino: int, name: bytes) -> Result[bytes]: ...
    def listxattr(self, ctx: Context, ino: int) -> Result[list[bytes]]: ...
    def removexattr(self, ctx: Context, ino: int, name: bytes) -> Result[None]: ...


class FilesystemFiles(Protocol):
    """Open files and their bytes.  Raises FsError: EIO for a handle whose session was lost, EFBIG, ENOSPC, EDQUOT, EROFS."""

    def create(self, ctx: Context, parent: int, name: bytes, mode: int, flags: int) -> Result[tuple[Attr, Opened]]: ...
    def tmpfile(self, ctx: Context, parent: int, mode: int, flags: int) -> Result[tuple[Attr, Opened]]: ...
    def open(self, ctx: Context, ino: int, flags: int) -> Result[Opened]: ...

    def read(self, ctx: Context, ino: int, fh: int, offset: int, size: int) -> Result[list[Any]]:
        """Pieces (bytes-like) that need to stay as they are only until the calling thread has written the reply."""

    def write(self, ctx: Context, ino: int, fh: int, offset: int, data: memoryview, write_flags: int) -> Result[int]:
        """`data` is valid until the result is there."""

    def fallocate(self, ctx: Context, ino: int, fh: int, mode: int, offset: int, length: int) -> Result[None]: ...

    def lseek(self, ctx: Context, ino: int, fh: int, offset: int, whence: int) -> Result[int]:
        """SEEK_DATA and SEEK_HOLE; the kernel does the others."""

    def copy_file_range(
        self, ctx: Context, ino: int, offset: int, new_ino: int, new_fh: int, new_offset: int, length: int, flags: int
    ) -> Result[int]:
        """May copy less; EOPNOTSUPP or EXDEV make the kernel copy the bytes itself."""

    def flush(self, ctx: Context, ino: int, fh: int, lock_owner: int) -> Result[None]: ...
    def release(self, ctx: Context, ino: int, fh: int, flags: int, release_flags: int, lock_owner: int) -> Result[None]: ...
    def fsync(self, ctx: Context, ino: int, fh: int, datasync: bool) -> Result[None]: ...


class FilesystemDirectories(Protocol):
    """Open directories."""

    def opendir(self, ctx: Context, ino: int, flags: int) -> Result[Opened]: ...
    def readdir(self, ctx: Context, ino: int, fh: int, offset: int, plus: bool) -> Result[Iterable[Dirent]]: ...
    def releasedir(self, ctx: Context, ino: int, fh: int) -> Result[None]: ...
    def fsyncdir(self, ctx: Context, ino: int, fh: int, datasync: bool) -> Result[None]: ...


class FilesystemLocks(Protocol):
    """Locks of open files: flock(2), and those of fcntl(2).  Raises FsError: EAGAIN, EDEADLK, EINTR for a wait that was interrupted."""

    def getlk(self, ctx: Context, ino: int, fh: int, lock: Lock) -> Result[Lock | None]: ...
    def setlk(self, ctx: Context, ino: int, fh: int, lock: Lock, wait: bool) -> Result[None]: ...


class Filesystem(
    FilesystemSession, FilesystemNames, FilesystemAttributes, FilesystemFiles, FilesystemDirectories, FilesystemLocks, Protocol
):
    """All that the kernel asks, by subject.  Any thread may call; no method blocks but on a device: what has to wait returns Steps."""
