"""Loop devices over files of volumes are found by the file behind them, as the kernel knows it, never by a remembered number.

The path that the kernel shows depends on the mount through which the file was opened.  So the driver opens files through the host's mount,
which does not end with a container of the driver.  Earlier builds did not; their devices are told apart by superblock and inode.

Between the device and the file there is direct I/O: the kernel keeps no pages of the file.  So what a device has answered is with the
volume's worker, and a volume that several nodes have mounted is as coherent through their devices as through its files.  Where the kernel
does without direct I/O it says so nowhere but in the state of the device: `check_coherent` reads it there.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import stat
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from awsomefsd.csi.errors import CsiError, precondition

_CLR_FD, _GET_STATUS64, _SET_CAPACITY, _SET_DIRECT_IO, _CONFIGURE, _GET_FREE = 0x4C01, 0x4C05, 0x4C07, 0x4C08, 0x4C0A, 0x4C82
_READ_ONLY, _DIRECT_IO = 1, 16
_CONFIG = struct.Struct("<II 5Q 4I 64s 64s 32s 2Q 8Q")  # struct loop_config with its loop_info64
_STATUS_BYTES = 232  # struct loop_info64: device and inode of the file come first
_LOOP_MAJOR = 7
Found = TypeVar("Found")
SECTOR_BYTES = 512  # of every device: partition tables and file systems on it depend on that, on whichever node it is
ANSWER_S = 2.0
ATTEMPTS = 64
GONE_S = 5.0


@dataclass(frozen=True, slots=True)
class BlockFile:
    """The file of a block volume: `dir` is where its volume is mounted on this node, `device` (major:minor) that superblock."""

    dir: str
    device: str
    name: str

    @property
    def path(self) -> str:
        return f"{self.dir}/{self.name}"


class _Answer(enum.Enum):
    THE_FILE, ANOTHER, DEAD, NONE = range(4)


def of_file(file: BlockFile) -> list[str]:
    """Returns the names (loop7) of the devices over a file, sorted.  Blocks up to ANSWER_S for a device; raises CsiError UNAVAILABLE.

    A device whose file was opened through a mount that is gone (of a container that ended) is shown with its path inside the volume.
    Such a path says little, so the kernel is asked what the file is, and the answer needs the file's filesystem.
    """
    found = []
    for name, path in _shown().items():
        if path not in (file.path, f"/{file.name}"):
            continue
        answer = _ask(name, file)
        if answer is _Answer.NONE and path != file.path:
            raise CsiError("UNAVAILABLE", f"the file behind /dev/{name} does not answer; try again")
        if answer in (_Answer.THE_FILE, _Answer.NONE):
            found.append(name)
    return sorted(found)


def dead(file: BlockFile) -> list[str]:
    """Returns the devices over a file of this name whose filesystem has ended: every request to them fails.  Blocks as `of_file`."""
    shown = _shown().items()
    return sorted(name for name, path in shown if path in (file.path, f"/{file.name}") and _ask(name, file) is _Answer.DEAD)


def is_over(rdev: int, file: BlockFile) -> bool:
    """Returns True if a device number is that of a loop device over `file`.  Raises CsiError UNAVAILABLE.

    As its path shows, which asks no filesystem and answers for a volume that is not served, too.  Only a device of an earlier build, which
    is shown with its path inside the volume, has to be asked as in `of_file`; one whose filesystem has ended is nobody's any more.
    """
    path = backing_of(rdev)
    if path != f"/{file.name}":
        return path == file.path
    answer = _ask(f"loop{os.minor(rdev)}", file)
    if answer is _Answer.NONE:
        raise CsiError("UNAVAILABLE", f"the file behind /dev/loop{os.minor(rdev)} does not answer; try again")
    return answer is not _Answer.ANOTHER


def _shown() -> dict[str, str]:
    """The devices that have a file, and its path as the kernel shows it."""
    found = {}
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached meanwhile
            found[backing.parts[3]] = backing.read_text().rstrip("\n").removesuffix(" (deleted)")
    return found


def _ask(name: str, file: BlockFile) -> _Answer:
    return _within_time(name, lambda: _compare(name, file)) or _Answer.NONE


def _within_time(name: str, look: Callable[[], Found]) -> Found | None:
    """What the kernel says of the file behind a device.  It asks the file's filesystem, which may not answer: a thread waits for that."""
    said: list[Found] = []
    asking = threading.Thread(target=lambda: said.append(look()), name=f"look at {name}", daemon=True)
    asking.start()
    asking.join(ANSWER_S)
    return said[0] if said else None


def _behind(name: str) -> tuple[str, int]:
    """The superblock (major:minor) and inode of the file behind a device.  Raises OSError."""
    device = _open(name, os.O_RDONLY)
    try:
        status = bytearray(_STATUS_BYTES)
        fcntl.ioctl(device, _GET_STATUS64, status)
    finally:
        os.close(device)
    number, inode = struct.unpack_from("QQ", status)
    return f"{os.major(number)}:{os.minor(number)}", inode


def _superblock(name: str) -> str:
    """As `_behind`; "" where it cannot be had."""
    try:
        return _behind(name)[0]
    except OSError:
        return ""


def _compare(name: str, file: BlockFile) -> _Answer:
    try:
        superblock, inode = _behind(name)
        if superblock != file.device:
            return _Answer.ANOTHER
        return _Answer.THE_FILE if os.stat(file.path).st_ino == inode else _Answer.ANOTHER
    except OSError as err:
        return _Answer.DEAD if err.errno in (errno.ENOTCONN, errno.ECONNABORTED) else _Answer.ANOTHER


def below(directory: str, superblock: str) -> list[str]:
    """Returns the names of the devices over files below a directory, sorted, as their paths show.  Blocks as `of_file`.

    Not those of another superblock: where several nodes share a kernel (kind), another node's device shows the path that this one uses.
    """
    inside = directory.rstrip("/") + "/"
    shown = [name for name, path in _shown().items() if path.startswith(inside)]
    return sorted(name for name in shown if _within_time(name, partial(_superblock, name)) in (superblock, "", None))


def backing_of(rdev: int) -> str:
    """Returns the path of the file behind a loop device, "" if the number is not one or it has none."""
    try:
        shown = Path(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/loop/backing_file").read_text()
    except OSError:
        return ""
    return shown.rstrip("\n").removesuffix(" (deleted)")


def is_empty(rdev: int) -> bool:
    """Returns True for the number of a loop device without a file."""
    return os.major(rdev) == _LOOP_MAJOR and not backing_of(rdev)


def check_coherent(name: str) -> None:
    """Raises CsiError FAILED_PRECONDITION for a device that may not stand beside those of other nodes over the same file.

    One that was made without direct I/O gets it first, if the kernel has it now.
    """
    state = Path(f"/sys/block/{name}")
    if (state / "loop/dio").read_text().strip() != "1":
        device = _open(name, os.O_RDONLY)
        try:
            with contextlib.suppress(OSError):  # the state says whether it has it
                fcntl.ioctl(device, _SET_DIRECT_IO, 1)
        finally:
            os.close(device)
    if (state / "loop/dio").read_text().strip() != "1":
        raise precondition(
            f"this node's kernel ({os.uname().release}) gives loop devices no direct I/O over files of awsomefs, so it would keep pages "
            "of a block volume that others have overwritten; ask for the volume with a SINGLE_NODE access mode, or use a newer kernel"
        )
    sector = int((state / "queue/logical_block_size").read_text())
    if sector != SECTOR_BYTES:
        raise precondition(f"/dev/{name} has sectors of {sector} bytes, other nodes have {SECTOR_BYTES}: unstage the volume here first")


def attach(file: int, *, read_only: bool) -> str:
    """Makes a device over an open file, with direct I/O where the file has that, and returns its name.

    Raises CsiError: RESOURCE_EXHAUSTED without a free device, INTERNAL if one cannot be set up; and OSError.
    """
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(ATTEMPTS):
            name = f"loop{fcntl.ioctl(control, _GET_FREE)}"
            device = _open(name, os.O_RDONLY if read_only else os.O_RDWR)
            try:
                for flags in (_DIRECT_IO, 0):
                    if _configure(device, file, flags | (_READ_ONLY if read_only else 0)):
                        return name
            except OSError as err:
                if err.errno != errno.EBUSY:  # another process was faster
                    raise CsiError("INTERNAL", f"{name} cannot be set up: {err.strerror}") from err
            finally:
                os.close(device)
    finally:
        os.close(control)
    raise CsiError("RESOURCE_EXHAUSTED", "no loop device is free")


def _configure(device: int, file: int, flags: int) -> bool:
    """Sets a device up; returns False where the file has no direct I/O."""
    info = _CONFIG.pack(file, SECTOR_BYTES, 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0, *[0] * 8)
    try:
        fcntl.ioctl(device, _CONFIGURE, info)
    except OSError as err:
        if err.errno == errno.EINVAL and flags & _DIRECT_IO:
            return False
        raise
    return True


def _open(name: str, flags: int) -> int:
    path, number = f"/dev/{name}", os.makedev(_LOOP_MAJOR, int(name.removeprefix("loop")))
    if not os.path.exists(path):  # a /dev that is no devtmpfs
        with contextlib.suppress(FileExistsError):
            os.mknod(path, stat.S_IFBLK | 0o600, number)
    return os.open(path, flags | os.O_CLOEXEC)


def detach(name: str) -> None:
    """Detaches a device; one that has no file is fine.  Blocks up to GONE_S.  Raises CsiError FAILED_PRECONDITION while it is in use."""
    path = Path(f"/sys/block/{name}/loop/backing_file")
    try:
        before = path.read_text()
        device = _open(name, os.O_RDONLY)
    except OSError:
        return
    try:
        fcntl.ioctl(device, _CLR_FD)
    except OSError as err:
        if err.errno != errno.ENXIO:
            raise precondition(f"/dev/{name} cannot be detached: {err.strerror}") from err
    finally:
        os.close(device)
    deadline = time.monotonic() + GONE_S
    while True:  # the kernel detaches with the last close, without an event
        try:
            if path.read_text() != before:
                return
        except OSError:
            return
        if time.monotonic() > deadline:
            raise precondition(f"/dev/{name} is still open; it is detached when its last user closes it")
        time.sleep(0.01)


def resize(name: str) -> None:
    """Gives a device the present size of the file behind it.  Raises OSError."""
    device = _open(name, os.O_RDONLY)
    try:
        fcntl.ioctl(device, _SET_CAPACITY)
    finally:
        os.close(device)
