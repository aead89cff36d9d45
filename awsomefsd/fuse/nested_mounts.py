"""Finds out whether something is mounted on a directory of a mount, which INC_EPOCH would unmount.

The kernel takes a directory whose name is of an older epoch for one that was removed, and detaches the mounts on it and below
(fuse_dentry_revalidate, d_invalidate; seen).  A name whose time is over is looked up again and stays the same directory.  So while
something is mounted there, names are given to the kernel with no time, and those with a time are waited for instead of made invalid
(vfs/state/kernel_cache.py).

/proc/self/mountinfo shows this process's mount namespace only; poll(2) reports its changes.  The mounts of other namespaces (containers)
cannot be seen without a look at all processes of the machine, so where containers are to be expected (`always`) a nested mount is assumed;
it is also assumed while our own mount is not found in the table.  A mount that is made between the look and the notification, or on a
directory that was opened before the last one, may still be unmounted.

A look costs one poll(2); the table is read only when it has changed.
"""

from __future__ import annotations

import select
import threading

from awsomefsd.keeper import mount_syscalls

TABLE = "/proc/self/mountinfo"


class NestedMounts:
    """The mounts on directories of the mount at `directory`.  Any thread may ask."""

    def __init__(self, directory: str, *, always: bool = False) -> None:
        self._directory = directory
        self._always = always
        self._lock = threading.Lock()
        self._device = ""
        self._there = True
        self._file = open(TABLE, "rb", buffering=0)
        self._poll = select.poll()
        self._poll.register(self._file, select.POLLPRI)
        self._read()

    def there(self) -> bool:
        """Returns True if something is mounted on a directory of this mount, or has to be assumed to be.  Raises OSError."""
        if self._always:
            return True
        with self._lock:
            if self._poll.poll(0):  # this clears the event, so later changes raise it again
                self._read()
            return self._there

    def _read(self) -> None:
        if not self._device:
            own = [one for one in mount_syscalls.mounts(TABLE) if one.dir == self._directory and one.fstype == mount_syscalls.FSTYPE]
            self._device = own[-1].device if own else ""
        with open(TABLE, "rb") as table:
            rows = [line.split(None, 3)[:3] for line in table]
        places = {row[0] for row in rows if row[2] == self._device.encode()}
        self._there = not self._device or any(row[1] in places for row in rows)
