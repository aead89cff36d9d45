"""The flags of a mount as the kernel has them now: `mount -o remount` changes them, and further directories have others.

The kernel refuses writes to a directory that is mounted read-only before they come to a worker.  What it does not do is the times of reads,
and it does not say through which directory a file is read: so they count as where most is written down.  Nor does it send a request when a
change of a name is to be durable, as `sync` and `dirsync` want it.  /proc/self/mountinfo shows the
directories of this process's mount namespace; copies in containers are not seen.  Where nothing is found the options count with which the
mount began.

A look costs one poll(2); the table is read only when it has changed.
"""

from __future__ import annotations

import select
import threading

from awsomefsd.keeper import mount_syscalls

TABLE = "/proc/self/mountinfo"
SYNCHRONOUS = frozenset({"sync", "dirsync"})
_ATIMES = ("strictatime", "relatime", "noatime")  # the first one that a writable directory has


class MountFlags:
    """Any thread may ask.  `device` is major:minor of the filesystem; "" is in no table."""

    def __init__(self, device: str, *, read_only: bool, atime: tuple[str, bool]) -> None:
        self._device = device
        self._began = read_only, atime, False
        self._now = self._began
        self._lock = threading.Lock()
        self._file = open(TABLE, "rb", buffering=0)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._read()

    def read_only(self) -> bool:
        """Returns True if no directory of this mount is writable."""
        return self._look()[0]

    def atime(self) -> tuple[str, bool]:
        """Returns which of relatime, strictatime, noatime holds, and whether directories have access times; noatime while read-only."""
        read_only, atime, _ = self._look()
        return ("noatime", False) if read_only else atime

    def synchronous(self) -> bool:
        """Returns True if changes of names are to be durable when they return (`sync`, `dirsync`)."""
        return self._look()[2]

    def _look(self) -> tuple[bool, tuple[str, bool], bool]:
        with self._lock:
            if self._poll.poll(0):  # this clears the event, so later changes raise it again
                self._read()
            return self._now

    def _read(self) -> None:
        self._file.seek(0)  # the open table: a worker without descriptors goes on
        table = mount_syscalls.parsed(self._file.read().split(b"\n"))
        found = [one for one in table if self._device and one.device == self._device]
        if not found:
            self._now = self._began
            return
        written = [one.options.split(",") for one in found if one.writable]
        kinds = {next((kind for kind in _ATIMES[1:] if kind in options), _ATIMES[0]) for options in written}
        files = next((kind for kind in _ATIMES if kind in kinds), _ATIMES[-1])
        synchronous = any(SYNCHRONOUS & set(one.super_options.split(",")) for one in found)
        self._now = not written, (files, any("nodiratime" not in options for options in written)), synchronous
