"""Loop devices over files of volumes are found by the file behind them, as the kernel shows it, never by a remembered number."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import time
from pathlib import Path

from awsomefsd.csi.errors import CsiError, precondition

_CLR_FD, _SET_CAPACITY, _CONFIGURE, _GET_FREE = 0x4C01, 0x4C07, 0x4C0A, 0x4C82
_READ_ONLY, _DIRECT_IO = 1, 16
_CONFIG = struct.Struct("<II 5Q 4I 64s 64s 32s 2Q 8Q")  # struct loop_config with its loop_info64
_LOOP_MAJOR = 7
ATTEMPTS = 64
GONE_S = 5.0


def of_file(path: str) -> list[str]:
    """Returns the names (loop7) of the devices over the file at `path`, sorted."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # detached meanwhile
            if backing.read_text().rstrip("\n") == path:
                found.append(backing.parts[3])
    return sorted(found)


def below(directory: str) -> list[str]:
    """Returns the names of the devices over files below a directory, sorted."""
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            if backing.read_text().startswith(directory.rstrip("/") + "/"):
                found.append(backing.parts[3])
    return sorted(found)


def backing_of(rdev: int) -> str:
    """Returns the path of the file behind a loop device, "" if the number is not one or it has none."""
    try:
        return Path(f"/sys/dev/block/{os.major(rdev)}:{os.minor(rdev)}/loop/backing_file").read_text().rstrip("\n")
    except OSError:
        return ""


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
    info = _CONFIG.pack(file, 0, 0, 0, 0, 0, 0, 0, 0, 0, flags, b"", b"", b"", 0, 0, *[0] * 8)
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
