"""A process that does the operations of one user in one tree: `python -m tests.differential.user_process BASE UID GID GROUP,GROUP`.

It enters BASE as root and then gives its rights away, so the kernel checks real credentials and the path above BASE does not matter.
Requests and replies are pickles on stdin and stdout.  Paths are relative to the directory of the current example; open files are kept in
numbered slots.  A value is the same on every correct file system; an OSError travels as the name of its errno.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import mmap
import os
import pickle
import shutil
import stat
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

LIBC = ctypes.CDLL(None, use_errno=True)
AT_FDCWD, AT_SYMLINK_NOFOLLOW, AT_SYMLINK_FOLLOW = -100, 0x100, 0x400
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NOW_S = 86_400.0  # nearer than this is "now"
LOCK_FIELDS = "hhqqi4x"
SEGMENTS_MAX = 10_000
EMPTY = "empty slot"
BLOCK_BYTES = 4096
SYS_GETDENTS64 = {"x86_64": 217, "aarch64": 61}[os.uname().machine]
ENTRIES_BYTES = 600  # room for the longest name and hardly more
ENTRY_HEADER = struct.Struct("QqHB")  # inode, cookie, length, type; then the name
ENTRIES_MAX = 1000
RENAME_NOREPLACE = 1
MS_REMOUNT, MS_KEPT = 32, os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC | os.ST_NOATIME | os.ST_NODIRATIME
STATX_TYPE, STATX_MODE, STATX_BYTES, STATX_MODE_OFFSET = 1, 2, 256, 28


class Timespec(ctypes.Structure):
    _fields_ = [("seconds", ctypes.c_int64), ("nanoseconds", ctypes.c_int64)]


def filling(seed: int, length: int) -> bytes:
    """The same bytes for the same numbers, and hardly ever the same for others."""
    return hashlib.shake_128(b"%d" % seed).digest(length)


def checked(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


def time_shown(ns: int) -> Any:
    return "now" if abs(ns / 1e9 - time.time()) < NOW_S else ns


def attributes(info: os.stat_result) -> tuple[Any, ...]:
    """What must be the same of a stat: not numbers of inodes and devices, not sizes of directories."""
    size = None if stat.S_ISDIR(info.st_mode) else info.st_size
    device = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
    times = tuple(time_shown(ns) for ns in (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns))
    return oct(info.st_mode), info.st_nlink, info.st_uid, info.st_gid, size, device, times


def summary(data: bytes) -> Any:
    return data if len(data) < 64 else (len(data), hashlib.blake2b(data, digest_size=8).hexdigest())


def content(path: str) -> Any:
    with open(path, "rb") as file:
        return summary(file.read())


def extended(path: str) -> dict[str, bytes]:
    return {key: os.getxattr(path, key, follow_symlinks=False) for key in sorted(os.listxattr(path, follow_symlinks=False))}


def row_of(path: str, full: bool) -> tuple[Any, ...]:
    """(what is compared, the inode, its times)."""
    info = os.lstat(path)
    shown: tuple[Any, ...] = attributes(info)
    if stat.S_ISLNK(info.st_mode):
        shown += (os.readlink(path),)
    elif full and stat.S_ISREG(info.st_mode):
        shown += (content(path),)
    if full:
        shown += (extended(path),)
    return shown, info.st_ino, (info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns)


def entry_names(data: bytes) -> list[bytes]:
    """Of what getdents64 answered, without dots."""
    names, at = [], 0
    while at < len(data):
        length = ENTRY_HEADER.unpack_from(data, at)[2]
        names.append(data[at + 19 : at + length].split(b"\0", 1)[0])
        at += length
    return [name for name in names if name not in (b".", b"..")]


def in_child(ask: Callable[[], int]) -> int:
    """A small number that another process answers with; 255: it failed."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(ask())
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Actor:
    def __init__(self, base: str) -> None:
        os.chdir(base)
        self.base = os.open(".", os.O_RDONLY)
        self.slots: dict[int, int] = {}
        self.read_only = False  # what this user has made of the whole mount
        os.umask(0o022)

    def do(self, kind: str, arguments: tuple[Any, ...]) -> Any:
        call: Callable[..., Any] = getattr(self, f"do_{kind}")
        try:
            return call(*arguments)
        except OSError as err:
            return errno.errorcode[err.errno or 0]
        except KeyError:
            return EMPTY

    # --- the frame of an example ----------------------------------------------------------------------------------------------
    def do_make(self, name: str, mode: int) -> None:
        """The directory of an example."""
        os.fchdir(self.base)
        os.mkdir(name)
        os.chmod(name, mode)

    def do_enter(self, name: str) -> None:
        os.fchdir(self.base)
        os.chdir(name)
        os.umask(0o022)

    def do_leave(self) -> None:
        for fd in self.slots.values():
            os.close(fd)
        self.slots.clear()
        os.fchdir(self.base)

    def do_remove(self, name: str) -> None:
        if self.read_only:
            self.do_remount(False)
        os.fchdir(self.base)
        shutil.rmtree(name)

    def do_remount(self, read_only: bool) -> None:
        """The whole mount, with its other flags as they are: EPERM for users, EBUSY while a file is open for writing or has no name."""
        flags = MS_REMOUNT | os.fstatvfs(self.base).f_flag & MS_KEPT | (os.ST_RDONLY if read_only else 0)
        checked(LIBC.mount(None, b"/proc/self/fd/%d" % self.base, None, ctypes.c_ulong(flags), None))
        self.read_only = read_only

    def do_tree(self, full: bool) -> dict[str, tuple[Any, ...]]:
        found = {".": row_of(".", full)}
        for folder, folders, files in os.walk("."):
            for name in folders + files:
                path = f"{folder}/{name}"
                found[path[2:]] = row_of(path, full)
        return found

    # --- open files -----------------------------------------------------------------------------------------------------------
    def keep(self, slot: int, fd: int) -> Any:
        with suppress(KeyError):
            os.close(self.slots.pop(slot))
        self.slots[slot] = fd
        return attributes(os.fstat(fd))

    def do_open(self, slot: int, path: str, flags: int, mode: int) -> Any:
        return self.keep(slot, os.open(path, flags | os.O_NONBLOCK, mode))

    def do_close(self, slot: int) -> None:
        os.close(self.slots.pop(slot))

    def do_read(self, slot: int, length: int) -> Any:
        return summary(os.read(self.slots[slot], length))

    def do_pread(self, slot: int, offset: int, length: int) -> Any:
        return summary(os.pread(self.slots[slot], length, offset))

    def do_write(self, slot: int, seed: int, length: int) -> int:
        return os.write(self.slots[slot], filling(seed, length))

    def do_pwrite(self, slot: int, seed: int, offset: int, length: int) -> int:
        return os.pwrite(self.slots[slot], filling(seed, length), offset)

    def do_far(self, slot: int, offset: int, size: int) -> Any:
        """A few bytes far away, read back, and cut off again."""
        fd = self.slots[slot]
        os.pwrite(fd, b"far", offset)
        shown = os.fstat(fd).st_size, os.pread(fd, 10, offset - 5)
        os.ftruncate(fd, size)
        return shown

    def do_lseek(self, slot: int, offset: int, whence: int) -> int:
        if stat.S_ISDIR(os.fstat(self.slots[slot]).st_mode):
            return -1  # cookies are the file system's own
        return os.lseek(self.slots[slot], offset, whence)

    def do_ftruncate(self, slot: int, size: int) -> None:
        os.ftruncate(self.slots[slot], size)

    def do_fsync(self, slot: int, data: bool) -> None:
        (os.fdatasync if data else os.fsync)(self.slots[slot])

    def do_fstat(self, slot: int) -> Any:
        return attributes(os.fstat(self.slots[slot]))

    def do_flist(self, slot: int) -> list[str]:
        return sorted(os.listdir(self.slots[slot]))

    def do_fchmod(self, slot: int, mode: int) -> None:
        os.fchmod(self.slots[slot], mode)

    def do_fchown(self, slot: int, uid: int, gid: int) -> None:
        os.fchown(self.slots[slot], uid, gid)

    def do_map(self, slot: int, seed: int, place: float, length: int) -> Any:
        """Writes through a shared mapping.  When times follow is the kernel's affair, so they are set."""
        fd = self.slots[slot]
        size = os.fstat(fd).st_size
        if not stat.S_ISREG(os.fstat(fd).st_mode) or size <= length:
            return None
        with mmap.mmap(fd, size) as area:
            at = int(place * (size - length))
            area[at : at + length] = filling(seed, length)
            area.flush()
            os.utime(fd)
            return summary(bytes(area[max(0, at - 10) : at + length + 10]))

    def do_copy(self, source: int, target: int, start: int, end: int, length: int) -> int:
        """copy_file_range, as often as it takes."""
        copied = 0
        while copied < length:
            part = os.copy_file_range(self.slots[source], self.slots[target], length - copied, start + copied, end + copied)
            if part == 0:
                break
            copied += part
        return copied

    def do_sendfile(self, source: int, target: int, offset: int, length: int) -> int:
        return os.sendfile(self.slots[target], self.slots[source], offset, length)

    def do_fallocate(self, slot: int, mode: int, offset: int, length: int) -> None:
        checked(LIBC.fallocate(self.slots[slot], mode, ctypes.c_int64(offset), ctypes.c_int64(length)))

    def do_holes(self, slot: int) -> Any:
        """What SEEK_DATA and SEEK_HOLE say covers the file, and what they call a hole reads as zeros."""
        fd, at, place = self.slots[slot], 0, os.lseek(self.slots[slot], 0, os.SEEK_CUR)
        size = os.fstat(fd).st_size
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            return None
        try:
            for _ in range(SEGMENTS_MAX):
                try:
                    data = os.lseek(fd, at, os.SEEK_DATA)
                except OSError as err:
                    if err.errno != errno.ENXIO:
                        raise
                    data = size
                assert at <= data <= size and not any(os.pread(fd, data - at, at)), "data in a hole"
                if data == size:
                    break
                at = os.lseek(fd, data, os.SEEK_HOLE)
                assert data < at <= size, "a hole that is none"
            return size
        finally:
            os.lseek(fd, place, os.SEEK_SET)

    def do_seekend(self, slot: int, beyond: int, whence: int) -> int:
        """At the end and behind it there is neither data nor hole."""
        info = os.fstat(self.slots[slot])
        return -1 if stat.S_ISDIR(info.st_mode) else os.lseek(self.slots[slot], info.st_size + beyond, whence)

    def do_tmpfile(self, slot: int, folder: str, flags: int, mode: int) -> Any:
        return self.keep(slot, os.open(folder, flags | os.O_TMPFILE, mode))

    def do_linkslot(self, slot: int, path: str) -> None:
        """A name for an open file, through /proc as linkat(2) describes it."""
        source = b"/proc/self/fd/%d" % self.slots[slot]
        checked(LIBC.linkat(AT_FDCWD, source, AT_FDCWD, os.fsencode(path), AT_SYMLINK_FOLLOW))

    def do_direct(self, path: str, seed: int, block: int) -> int:
        """One block past the page cache; the attributes after it are compared with the tree."""
        fd = os.open(path, os.O_WRONLY | os.O_DIRECT | os.O_NONBLOCK)
        try:
            with mmap.mmap(-1, BLOCK_BYTES) as area:  # aligned, as O_DIRECT demands
                area[:] = filling(seed, BLOCK_BYTES)
                return os.pwrite(fd, area, block * BLOCK_BYTES)
        finally:
            os.close(fd)

    # --- locks ----------------------------------------------------------------------------------------------------------------
    def do_lock(self, slot: int, command: int, kind: int, start: int, length: int) -> None:
        fcntl.fcntl(self.slots[slot], command, struct.pack(LOCK_FIELDS, kind, os.SEEK_SET, start, length, 0))

    def do_getlk(self, slot: int, command: int, kind: int, start: int, length: int) -> tuple[int, ...]:
        request = struct.pack(LOCK_FIELDS, kind, os.SEEK_SET, start, length, 0)
        return struct.unpack(LOCK_FIELDS, fcntl.fcntl(self.slots[slot], command, request))[:4]

    def do_flock(self, slot: int, operation: int) -> None:
        fcntl.flock(self.slots[slot], operation | fcntl.LOCK_NB)

    def do_lockclosed(self, path: str) -> tuple[int, ...]:
        """What another process finds of a record lock and of a lock of the open file, after the first's file was closed once."""
        fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        try:
            self.lock_fd(fd, fcntl.F_SETLK, 1000)
            self.lock_fd(fd, fcntl.F_OFD_SETLK, 2000)
            os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK))
            return tuple(in_child(lambda start=start: self.lock_query(fd, start)) for start in (1000, 2000))
        finally:
            os.close(fd)

    @staticmethod
    def lock_fd(fd: int, command: int, start: int) -> None:
        fcntl.fcntl(fd, command, struct.pack(LOCK_FIELDS, fcntl.F_WRLCK, os.SEEK_SET, start, 10, 0))

    @staticmethod
    def lock_query(fd: int, start: int) -> int:
        request = struct.pack(LOCK_FIELDS, fcntl.F_WRLCK, os.SEEK_SET, start, 10, 0)
        return int(struct.unpack(LOCK_FIELDS, fcntl.fcntl(fd, fcntl.F_GETLK, request))[0])

    # --- names ----------------------------------------------------------------------------------------------------------------
    def do_umask(self, mask: int) -> int:
        return os.umask(mask)

    def do_mkdir(self, path: str, mode: int) -> None:
        os.mkdir(path, mode)

    def do_mknod(self, path: str, mode: int, device: int) -> None:
        os.mknod(path, mode, device)

    def do_rmdir(self, path: str) -> None:
        os.rmdir(path)

    def do_unlink(self, path: str) -> None:
        os.unlink(path)

    def do_symlink(self, target: str, path: str) -> None:
        os.symlink(target, path)

    def do_link(self, path: str, other: str, follow: bool) -> None:
        flags = AT_SYMLINK_FOLLOW if follow else 0
        checked(LIBC.linkat(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(other), flags))

    def do_rename(self, path: str, other: str, flags: int) -> None:
        checked(LIBC.renameat2(AT_FDCWD, os.fsencode(path), AT_FDCWD, os.fsencode(other), flags))

    def do_readlink(self, path: str) -> str:
        return os.readlink(path)

    def do_list(self, path: str) -> list[str]:
        return sorted(os.listdir(path))

    def do_listrenaming(self, path: str) -> list[str]:
        """Each entry is renamed as the listing, a few entries at a time, comes to it, back too; the listing has to end."""
        fd, found = os.open(path, os.O_RDONLY | os.O_DIRECTORY), 0
        try:
            buffer = ctypes.create_string_buffer(ENTRIES_BYTES)
            while length := checked(LIBC.syscall(SYS_GETDENTS64, fd, buffer, ENTRIES_BYTES)):
                for name in entry_names(buffer.raw[:length]):
                    found += 1
                    assert found < ENTRIES_MAX, "a listing without end"
                    other = name[:-1] if name.endswith(b"~") else name + b"~"
                    LIBC.renameat2(fd, name, fd, other, RENAME_NOREPLACE)  # gone, too long, somebody else's: it stays
            os.lseek(fd, 0, os.SEEK_SET)
            for name in os.listdir(fd):  # how often an entry is found is the file system's own
                if name.endswith("~"):
                    LIBC.renameat2(fd, os.fsencode(name), fd, os.fsencode(name[:-1]), RENAME_NOREPLACE)
            return sorted(os.listdir(fd))
        finally:
            os.close(fd)

    # --- attributes -----------------------------------------------------------------------------------------------------------
    def do_statmode(self, path: str) -> str:
        """The mode asked alone: no other attribute makes the kernel ask for news."""
        buffer = ctypes.create_string_buffer(STATX_BYTES)
        checked(LIBC.statx(AT_FDCWD, os.fsencode(path), 0, STATX_TYPE | STATX_MODE, buffer))
        return oct(struct.unpack_from("H", buffer, STATX_MODE_OFFSET)[0])

    def do_stat(self, path: str, follow: bool) -> Any:
        return attributes(os.stat(path, follow_symlinks=follow))

    def do_access(self, path: str, mode: int) -> bool:
        return os.access(path, mode, effective_ids=True)

    def do_truncate(self, path: str, size: int) -> None:
        os.truncate(path, size)

    def do_chmod(self, path: str, mode: int) -> None:
        os.chmod(path, mode)

    def do_chown(self, path: str, uid: int, gid: int, follow: bool) -> None:
        os.chown(path, uid, gid, follow_symlinks=follow)

    def do_utime(self, path: str, atime: int | str, mtime: int | str, follow: bool) -> None:
        words = {"now": Timespec(0, UTIME_NOW), "omit": Timespec(0, UTIME_OMIT)}
        both = (Timespec * 2)(*(words[t] if isinstance(t, str) else Timespec(*divmod(t, 10**9)) for t in (atime, mtime)))
        checked(LIBC.utimensat(AT_FDCWD, os.fsencode(path), both, 0 if follow else AT_SYMLINK_NOFOLLOW))

    def do_setxattr(self, path: str, key: str, length: int, flags: int, follow: bool) -> None:
        os.setxattr(path, key, filling(length, length), flags, follow_symlinks=follow)

    def do_getxattr(self, path: str, key: str) -> bytes:
        return os.getxattr(path, key)

    def do_listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(path))

    def do_removexattr(self, path: str, key: str) -> None:
        os.removexattr(path, key)

    def do_setacl(self, path: str, key: str, value: bytes) -> None:
        os.setxattr(path, key, value)

    do_getacl, do_dropacl = do_getxattr, do_removexattr

    def do_statvfs(self, path: str) -> Any:
        shown = os.statvfs(path)
        sane = shown.f_bsize > 0 and 0 <= shown.f_bavail <= shown.f_bfree <= shown.f_blocks and 0 <= shown.f_ffree <= shown.f_files
        return sane, shown.f_namemax


def main() -> None:
    base, uid, gid, groups = sys.argv[1:]
    actor = Actor(base)
    os.setgroups([int(group) for group in groups.split(",") if group])
    os.setresgid(int(gid), int(gid), int(gid))
    os.setresuid(int(uid), int(uid), int(uid))
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    with suppress(EOFError):
        while True:
            pickle.dump(actor.do(*pickle.load(requests)), replies)
            replies.flush()


if __name__ == "__main__":
    main()
