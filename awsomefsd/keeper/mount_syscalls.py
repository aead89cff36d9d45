"""mount(2) and umount2(2) by ctypes, the mount table, and the users of a mount; standard library only, for the keeper.

Everything here may hang with the filesystem that a path lies on: the keeper calls it in a forked child (Loop.chore of loop.py).
Functions that read only the mount table do not touch the mounts themselves.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from awsomefsd.base.log import printable
from awsomefsd.keeper import fusermount

FSTYPE = "fuse.awsomefs"

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8
_CLONE_NEWNS = 0x20000
_MS_REMOUNT = 32
_MS_BIND = 1 << 12
_MS_REC = 1 << 14
_MS_PRIVATE = 1 << 18

_SYS_FSCONFIG, _SYS_FSPICK = 431, 433  # on every architecture
_AT_FDCWD = -100
_FSPICK_SYMLINK_NOFOLLOW = 2
_FSCONFIG_SET_FLAG, _FSCONFIG_CMD_RECONFIGURE = 0, 7

# The names of mount(8), and the bit to set (True) or clear.  Options that only mean something to mount(8) and fstab have no bit.
_FLAGS: dict[str, tuple[int, bool]] = {
    "ro": (1, True),
    "rw": (1, False),
    "nosuid": (2, True),
    "suid": (2, False),
    "nodev": (4, True),
    "dev": (4, False),
    "noexec": (8, True),
    "exec": (8, False),
    "sync": (16, True),
    "async": (16, False),
    "dirsync": (128, True),
    "nosymfollow": (256, True),
    "symfollow": (256, False),
    "noatime": (1024, True),
    "atime": (1024, False),
    "nodiratime": (2048, True),
    "diratime": (2048, False),
    "relatime": (1 << 21, True),
    "norelatime": (1 << 21, False),
    "strictatime": (1 << 24, True),
    "nostrictatime": (1 << 24, False),
    "lazytime": (1 << 25, True),
    "nolazytime": (1 << 25, False),
    "defaults": (0, True),
    "auto": (0, True),
    "noauto": (0, True),
    "nofail": (0, True),
    "user": (0, True),
    "nouser": (0, True),
    "_netdev": (0, True),
}
_ATIME_KINDS = _FLAGS["noatime"][0] | _FLAGS["relatime"][0] | _FLAGS["strictatime"][0]
_OF_ONE_MOUNT = _ATIME_KINDS | sum(_FLAGS[word][0] for word in ("ro", "nosuid", "nodev", "noexec", "nosymfollow", "nodiratime"))


@dataclass(frozen=True, slots=True)
class MountEntry:
    """One line of /proc/self/mountinfo."""

    device: str  # major:minor
    root: str
    dir: str
    fstype: str
    source: str
    options: str = ""  # of this mount, not of the filesystem
    super_options: str = ""  # of the filesystem

    @property
    def writable(self) -> bool:
        return "ro" not in self.options.split(",") and "ro" not in self.super_options.split(",")

    @property
    def minor(self) -> int:
        return int(self.device.partition(":")[2])


def flags_of(options: list[str]) -> int:
    """Returns the MS_ bits of mount options.  Raises OSError(EINVAL), which names an unknown one."""
    flags = 0
    for option in options:
        if option.startswith(("x-", "X-", "comment=")):
            continue  # fstab's own, for other programs
        bit, on = _FLAGS.get(option, (None, True))
        if bit is None:
            raise OSError(errno.EINVAL, f"unknown mount option {option!r}")
        flags = flags | bit if on else flags & ~bit
    return flags


def is_read_only(options: list[str]) -> bool:
    return bool(flags_of(options) & _FLAGS["ro"][0])


def mount_fuse(fd: int, dir: str, source: str, options: list[str], fuse_options: str) -> None:
    """Mounts the connection of `fd` (an open /dev/fuse of this very process) at `dir`.  May hang; raises OSError as mount(2)."""
    words = [f"fd={fd}", "rootmode=40000", f"user_id={os.getuid()}", f"group_id={os.getgid()}"]
    words += [word for word in fuse_options.split(",") if word]
    _call("mount", source.encode(), os.fsencode(dir), FSTYPE.encode(), ctypes.c_ulong(flags_of(options)), ",".join(words).encode())


def allow_writing(dir: str) -> None:
    """Makes the filesystem at `dir` writable; each of its mounts keeps its own `ro`.  Raises OSError.

    mount(2) with MS_RDONLY makes both read-only, and then no further directory could be writable.
    """
    _reconfigure(dir, ["rw"])


def _reconfigure(dir: str, words: list[str]) -> None:
    context = _syscall(_SYS_FSPICK, ctypes.c_int(_AT_FDCWD), os.fsencode(dir), ctypes.c_uint(_FSPICK_SYMLINK_NOFOLLOW))
    try:
        for word in words:
            _syscall(_SYS_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_FSCONFIG_SET_FLAG), word.encode(), None, ctypes.c_int(0))
        _syscall(_SYS_FSCONFIG, ctypes.c_int(context), ctypes.c_uint(_FSCONFIG_CMD_RECONFIGURE), None, None, ctypes.c_int(0))
    finally:
        os.close(context)


def remount(dir: str, options: list[str]) -> None:
    """Gives the mount at `dir` these options; what they do not name is off.  May hang; raises OSError, EBUSY for `ro` while files are
    open for writing.

    Only this mount becomes read-only: other directories, and copies in containers, keep their own `ro`.  `sync` and `lazytime` belong to
    the filesystem, so to all of them.  So does `dirsync`, which stays as it was: the kernel refuses to reconfigure that one.
    """
    asked = flags_of(options)
    flags = asked & _OF_ONE_MOUNT
    if not flags & _ATIME_KINDS:
        flags |= _FLAGS["relatime"][0]  # none at all would leave it as it is
    _call("mount", b"none", os.fsencode(dir), None, ctypes.c_ulong(flags | _MS_REMOUNT | _MS_BIND), None)
    pairs = (("sync", "async"), ("lazytime", "nolazytime"))
    _reconfigure(dir, ["rw", *(on if asked & _FLAGS[on][0] else off for on, off in pairs)])


def umount(dir: str, flags: int = UMOUNT_NOFOLLOW) -> None:
    """Unmounts `dir`; without root by fusermount3, which takes only mounts of its caller.  May hang; raises OSError as umount2(2)."""
    if fusermount.needed():
        fusermount.umount(dir, bool(flags & MNT_DETACH))
        return
    _call("umount2", os.fsencode(dir), ctypes.c_int(flags))


def _call(name: str, *arguments: object) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def mounts(table: str = "/proc/self/mountinfo") -> list[MountEntry]:
    """Returns the mount table of this namespace, in the order of mounting (the last of two at one place is on top)."""
    with open(table, "rb") as lines:
        return parsed(lines)


def parsed(lines: Iterable[bytes]) -> list[MountEntry]:
    """Returns the entries of a mount table that is read already."""
    return [entry for line in lines if (entry := _parse(line)) is not None]


def _parse(line: bytes) -> MountEntry | None:
    # 36 35 98:0 /root /mount/point rw,noatime master:1 - ext3 /dev/source rw,errors=continue
    left, separator, right = line.partition(b" - ")
    before, after = left.split(), right.split()
    if not separator or len(before) < 5 or not after:
        return None
    source = after[1] if len(after) > 1 else b""
    options = before[5].decode() if len(before) > 5 else ""
    super_options = after[2].decode(errors="replace") if len(after) > 2 else ""
    return MountEntry(
        before[2].decode(), _unescape(before[3]), _unescape(before[4]), after[0].decode(), _unescape(source), options, super_options
    )


def _unescape(field: bytes) -> str:
    head, *rest = field.split(b"\\")
    parts = [head]
    for piece in rest:
        parts.append(bytes([int(piece[:3], 8)]) + piece[3:] if piece[:3].isdigit() else b"\\" + piece)
    return os.fsdecode(b"".join(parts))


def topmost(dir: str) -> MountEntry | None:
    """Returns the topmost mount at exactly `dir`, None if there is none.  Reads only the mount table."""
    found = None
    for entry in mounts():
        if entry.dir == dir:
            found = entry
    return found


def clear_stale(dir: str) -> int:
    """Detaches dead mounts of ours at `dir`, and returns how many.  May hang; raises OSError(EBUSY) if a living one is there."""
    detached = 0
    while (entry := _topmost_ours(dir)) is not None:
        try:
            os.statvfs(dir)  # always asks the server, no cache answers it
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
        else:
            raise OSError(errno.EBUSY, f"{dir} has {entry.source} mounted already")
        umount(dir, MNT_DETACH | UMOUNT_NOFOLLOW)
        detached += 1
    return detached


def _topmost_ours(dir: str) -> MountEntry | None:
    entry = topmost(dir)
    return entry if entry is not None and entry.fstype == FSTYPE else None


def abort_connection(minor: int) -> None:
    """Aborts a FUSE connection by its device number: every request on it fails at once.  Raises OSError.

    Where fusectl is not mounted, it is mounted in a new mount namespace of the caller, so only a child that ends soon may call this.
    """
    path = Path(f"/sys/fs/fuse/connections/{minor}/abort")
    if not path.exists():
        _call("unshare", ctypes.c_int(_CLONE_NEWNS))
        _call("mount", b"none", b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
        _call("mount", b"fusectl", b"/sys/fs/fuse/connections", b"fusectl", ctypes.c_ulong(0), None)
    path.write_text("1")


def superblock_lives(device: str) -> bool:
    """Returns True if the filesystem is still mounted anywhere, in any namespace: its bdi goes with its superblock."""
    return os.path.isdir(f"/sys/class/bdi/{device}")


def set_read_ahead(device: str, kib: int) -> None:
    """Sets the kernel's read-ahead of a filesystem, by its major:minor.  Raises OSError."""
    Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(kib))


def users_of(dir: str, count_max: int = 5) -> list[str]:
    """Returns up to `count_max` reasons why `dir` is busy, in words: mounts below it, and processes with their use of it.

    The words are printable: whoever uses `dir` chooses the names in them.
    """
    found = [f"mount at {entry.dir}" for entry in mounts() if entry.dir.startswith(dir.rstrip("/") + "/")]
    found += _processes(_use_by, dir, count_max)
    if not found:  # last, because the maps of a whole machine take seconds
        found = _processes(_mapped, dir, count_max)
    return [printable(words) for words in found[:count_max]]


def _processes(use_by: Callable[[Path, str], str | None], dir: str, count_max: int) -> list[str]:
    others = (name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid())
    uses = ((name, use_by(Path("/proc") / name, dir)) for name in others)
    return list(islice((f"{_command(name)} (pid {name}, {use})" for name, use in uses if use is not None), count_max))


def holders_of(device: str, count_max: int = 5) -> list[str]:
    """Returns up to `count_max` places that have a filesystem (major:minor) mounted: directories here, processes of other namespaces.

    Each other mount namespace is named by the process in it with the lowest id.  Namespaces without a process that is seen are left out.
    The words are printable, as those of `users_of`.
    """
    found = [f"mount at {entry.dir}" for entry in mounts() if entry.device == device]
    seen = {"", _target(Path("/proc/self/ns/mnt"))}  # "": it has just ended
    for pid in sorted((name for name in os.listdir("/proc") if name.isdigit()), key=int):
        if len(found) >= count_max:
            break
        if (namespace := _target(Path(f"/proc/{pid}/ns/mnt"))) in seen:
            continue
        seen.add(namespace)
        with contextlib.suppress(OSError):  # it has just ended
            place = next((entry.dir for entry in mounts(f"/proc/{pid}/mountinfo") if entry.device == device), None)
            if place is not None:
                found.append(f"{_command(pid)} (pid {pid}, at {place} in another mount namespace)")
    return [printable(words) for words in found[:count_max]]


def _command(pid: str) -> str:
    with contextlib.suppress(OSError):
        return os.fsdecode(Path(f"/proc/{pid}/comm").read_bytes().strip())
    return "a process"


def _use_by(process: Path, dir: str) -> str | None:
    for link, words in (("cwd", "working directory"), ("root", "root directory"), ("exe", "program")):
        if _within(_target(process / link), dir):
            return words
    for descriptor in _children(process / "fd"):
        target = _target(descriptor)
        if _within(target, dir):
            return f"has {target} open"
    return None


def _mapped(process: Path, dir: str) -> str | None:
    try:
        with open(process / "maps", "rb") as lines:
            for line in lines:
                fields = line.rstrip(b"\n").split(None, 5)
                if len(fields) == 6 and _within(os.fsdecode(fields[5]), dir):
                    return f"maps {os.fsdecode(fields[5])}"
    except OSError:
        pass
    return None


def _children(path: Path) -> Iterator[Path]:
    try:
        yield from path.iterdir()
    except OSError:
        return


def _target(link: Path) -> str:
    try:
        return os.readlink(link)  # names the file without asking its filesystem
    except OSError:
        return ""


def _within(path: str, dir: str) -> bool:
    return path == dir or path.startswith(dir.rstrip("/") + "/")
