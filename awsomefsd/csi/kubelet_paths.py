"""Paths that kubelet names, and mounts there: nothing outside the kubelet directory is ever touched, whatever a request says.

A path is opened from a descriptor of the kubelet directory by openat2 with RESOLVE_BENEATH and RESOLVE_NO_SYMLINKS, so `..` and a symlink
that is planted between two looks lead nowhere.  Mounts are made from descriptors to descriptors (open_tree, move_mount), never by name,
and unmounted by the name in an open parent.  The kernel's mount table is read each time to see the mounts: it is the only memory.
Removing is rmdir of an empty directory, or unlink of an empty file, that nothing is mounted on: never more.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from awsomefsd.csi.errors import CsiError, invalid, not_found, precondition
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.mount_syscalls import MountEntry

_OPEN_TREE, _MOVE_MOUNT, _OPENAT2, _MOUNT_SETATTR = 428, 429, 437, 442  # the same on all architectures
_RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 2, 4, 8
_AT_EMPTY_PATH, _OPEN_TREE_CLONE = 0x1000, 1
_MOVE_FROM_FD, _MOVE_TO_FD = 0x4, 0x40
_MS_PRIVATE = 1 << 18
_TRIES = 1_000  # of a path that is changed meanwhile
_ATTRIBUTES = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "nosymfollow": 0x200000}
_OPPOSITES = {"rw": "ro", "suid": "nosuid", "dev": "nodev", "exec": "noexec", "symfollow": "nosymfollow"}
_HOW = struct.Struct("QQQ")
_ATTR = struct.Struct("QQQQ")
_libc = ctypes.CDLL(None, use_errno=True)


def _syscall(number: int, *arguments: object) -> int:
    result: int = _libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def open_beneath(directory: int, path: str, flags: int = os.O_PATH) -> int:
    """Returns a descriptor of `path` below `directory`, through no symlink.

    Raises OSError: ELOOP, EXDEV and those of open(2); and CsiError ABORTED for a path that somebody changes all the time.
    """
    how = _HOW.pack(flags | os.O_CLOEXEC, 0, _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS | _RESOLVE_NO_MAGICLINKS)
    for _ in range(_TRIES):
        try:
            return _syscall(_OPENAT2, ctypes.c_int(directory), os.fsencode(path), how, ctypes.c_size_t(len(how)))
        except OSError as err:
            if err.errno not in (errno.EAGAIN, errno.EINTR):  # the tree was changed meanwhile
                raise
    raise CsiError("ABORTED", f"{path} is being changed all the time; try again")


def bind(source: int, target: int, flags: list[str]) -> None:
    """Bind-mounts the descriptor `source` on the descriptor `target`, with mount flags of its own.  Raises OSError."""
    tree = copy_mount(source, flags)
    try:
        attach(tree, target)
    finally:
        os.close(tree)


def attach(tree: int, target: int) -> None:
    """Mounts what `copy_mount` returned on the descriptor `target`.  Raises OSError."""
    _syscall(_MOVE_MOUNT, ctypes.c_int(tree), b"", ctypes.c_int(target), b"", ctypes.c_uint(_MOVE_FROM_FD | _MOVE_TO_FD))


def copy_mount(source: int, flags: list[str]) -> int:
    """Returns a descriptor of a new mount of the descriptor `source`, which is not mounted anywhere yet.  Raises OSError."""
    tree = _syscall(_OPEN_TREE, ctypes.c_int(source), b"", ctypes.c_uint(_OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_EMPTY_PATH))
    try:
        wanted = effective(flags)
        on = sum(_ATTRIBUTES[name] for name in wanted)
        attributes = _ATTR.pack(on, sum(_ATTRIBUTES.values()) & ~on, _MS_PRIVATE, 0)
        arguments = (ctypes.c_int(tree), b"", ctypes.c_uint(_AT_EMPTY_PATH), attributes, ctypes.c_size_t(len(attributes)))
        try:
            _syscall(_MOUNT_SETATTR, *arguments)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            known = sum(_ATTRIBUTES.values()) - _ATTRIBUTES["nosymfollow"]  # came with Linux 5.14
            attributes = _ATTR.pack(on, known & ~on, _MS_PRIVATE, 0)
            _syscall(_MOUNT_SETATTR, *arguments[:3], attributes, arguments[4])
    except OSError:
        os.close(tree)
        raise
    return tree


def effective(flags: list[str]) -> set[str]:
    """Returns the flags that are in force: of two opposite ones the later wins."""
    wanted: set[str] = set()
    for flag in flags:
        if flag in _OPPOSITES:
            wanted.discard(_OPPOSITES[flag])
        else:
            wanted.add(flag)
    return wanted


@dataclass(frozen=True, slots=True)
class KubeletPath:
    """A name in an open directory below the kubelet directory.  `path` is as the mount table names it.

    The methods may block on the filesystem there, and raise CsiError.
    """

    parent: int
    name: str
    path: str

    def mounted(self) -> MountEntry | None:
        """Returns the topmost mount at the path, None if there is none; reads only the mount table."""
        return mount_syscalls.topmost(self.path)

    def open(self) -> int:
        """Returns a descriptor (O_PATH) of the file at the path now: of the topmost mount if there is one."""
        try:
            return open_beneath(self.parent, self.name)
        except OSError as err:
            raise _csi_error(err, self.path) from err

    def kind(self) -> int:
        """Returns the S_IFMT bits of the file at the path, 0 if there is none; a dead mount counts as a directory."""
        try:
            return stat.S_IFMT(os.lstat(self.name, dir_fd=self.parent).st_mode)
        except FileNotFoundError:
            return 0
        except OSError as err:
            if err.errno in (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO):  # a dead mount
                return stat.S_IFDIR
            raise _csi_error(err, self.path) from err

    def make_directory(self) -> None:
        """Makes a directory at the path; one that is there stays.

        Raises FAILED_PRECONDITION for any other file, NOT_FOUND if the parent is gone.
        """
        kind = self.kind()
        if kind and kind != stat.S_IFDIR:
            raise precondition(f"{self.path} exists and is not a directory")
        with self._made():
            os.mkdir(self.name, 0o750, dir_fd=self.parent)

    def make_file(self) -> None:
        """Makes an empty file at the path; one that is there stays.

        Raises FAILED_PRECONDITION for any other file, NOT_FOUND if the parent is gone.
        """
        kind = self.kind()
        if kind and kind != stat.S_IFREG:
            raise precondition(f"{self.path} exists and is not a file")
        with self._made():
            os.close(os.open(self.name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_WRONLY, 0o640, dir_fd=self.parent))

    @contextlib.contextmanager
    def _made(self) -> Iterator[None]:
        try:
            yield
        except FileExistsError:
            return
        except OSError as err:
            raise _csi_error(err, self.path) from err

    @contextlib.contextmanager
    def below(self, name: str) -> Iterator[KubeletPath]:
        """Yields a name in the directory at the path, open inside the `with`.  Raises NOT_FOUND without the directory, INVALID_ARGUMENT."""
        try:
            parent = open_beneath(self.parent, self.name, os.O_PATH | os.O_DIRECTORY)
        except OSError as err:
            raise _csi_error(err, self.path) from err
        try:
            yield KubeletPath(parent, name, f"{self.path}/{name}")
        finally:
            os.close(parent)

    def check_empty(self, but: str = "") -> None:
        """Raises FAILED_PRECONDITION for a directory with files other than `but`; NOT_FOUND if it is gone; and OSError."""
        try:
            fd = os.open(self.name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parent)
        except OSError as err:
            raise _csi_error(err, self.path) from err
        try:
            if set(os.listdir(fd)) - {but}:
                raise precondition(f"{self.path} is a directory with files, so nothing is mounted there; empty it")
        finally:
            os.close(fd)

    def umount(self, *, detach: bool = False) -> None:
        """Unmounts the topmost mount at the path; without one it does nothing.  Raises FAILED_PRECONDITION if it is busy."""
        flags = mount_syscalls.UMOUNT_NOFOLLOW | (mount_syscalls.MNT_DETACH if detach else 0)
        try:
            mount_syscalls.umount(f"/proc/self/fd/{self.parent}/{self.name}", flags)
        except OSError as err:
            if err.errno == errno.EBUSY:
                raise precondition(f"{self.path} is busy: a process still uses it") from err
            if err.errno not in (errno.EINVAL, errno.ENOENT):  # not mounted any more
                raise _csi_error(err, self.path) from err

    def remove(self) -> None:
        """Removes an empty directory or an empty file; anything else stays, and raises FAILED_PRECONDITION."""
        mounted = precondition(f"{self.path} is still mounted; nothing was removed")
        if self.mounted() is not None:
            raise mounted
        kind = self.kind()
        try:
            if kind == stat.S_IFDIR:
                os.rmdir(self.name, dir_fd=self.parent)
            elif kind == stat.S_IFREG and not os.lstat(self.name, dir_fd=self.parent).st_size:
                os.unlink(self.name, dir_fd=self.parent)
            elif kind:
                raise precondition(f"{self.path} is neither an empty directory nor an empty file; it was not removed")
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno == errno.EBUSY:  # under another path: somebody has renamed a directory above it
                raise mounted from err
            if err.errno == errno.ENOTEMPTY:
                raise precondition(f"{self.path} has files that are not part of a mount of awsomefs; it was not removed") from err
            raise _csi_error(err, self.path) from err


class KubeletDirectory:
    """The kubelet directory: opened once for each use, so that a directory that was made again is found."""

    def __init__(self, directory: Path) -> None:
        self._asked = os.path.normpath(directory)

    @contextlib.contextmanager
    def place(self, path: str, what: str) -> Iterator[KubeletPath]:
        """Yields a path of a request, open inside the `with`.  `what` names the field of the request in errors.

        Raises INVALID_ARGUMENT for a path that leads elsewhere, NOT_FOUND if its parent does not exist, FAILED_PRECONDITION without the
        kubelet directory.
        """
        real = os.path.realpath(self._asked)
        relative = self._inside(path, real, what)
        head, _, name = relative.rpartition("/")
        try:
            root = os.open(real, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as err:
            raise precondition(f"the kubelet directory {self._asked} (csi.kubelet_dir) cannot be opened: {err.strerror}") from err
        try:
            parent = open_beneath(root, head or ".", os.O_PATH | os.O_DIRECTORY)
        except OSError as err:
            raise _csi_error(err, path) from err
        finally:
            os.close(root)
        try:
            # A mount point is no symlink, and is not asked: its server may not answer now.
            if mount_syscalls.topmost(f"{real}/{relative}") is None and stat.S_ISLNK(_mode_of(parent, name)):
                raise invalid(f"{what} {path} is a symlink")
            yield KubeletPath(parent, name, f"{real}/{relative}")
        finally:
            os.close(parent)

    def _inside(self, path: str, real: str, what: str) -> str:
        if not path:
            raise invalid(f"{what} is missing")
        if "\0" in path or len(os.fsencode(path)) > 4000:
            raise invalid(f"{what} is not a path")
        parts = path.split("/")
        if not path.startswith("/") or ".." in parts:
            raise invalid(f"{what} {path} is not an absolute path without '..'")
        plain = "/" + "/".join(part for part in parts if part not in ("", "."))
        for root in (self._asked, real):
            if plain.startswith(root.rstrip("/") + "/"):
                return plain[len(root.rstrip("/")) + 1 :]
        raise invalid(f"{what} {path} is not below {self._asked} (csi.kubelet_dir)")


def _mode_of(parent: int, name: str) -> int:
    try:
        return os.lstat(name, dir_fd=parent).st_mode
    except OSError:
        return 0


def _csi_error(err: OSError, path: str) -> CsiError:
    if err.errno in (errno.ELOOP, errno.EXDEV, errno.ENAMETOOLONG):
        return invalid(f"{path} leads through a symlink or out of the kubelet directory")
    if err.errno == errno.ENOENT:
        return not_found(f"{path} does not exist")
    if err.errno == errno.ENOTDIR:
        return precondition(f"{path}: a part of this path is a file")
    return CsiError("INTERNAL", f"{path}: {err.strerror}")
