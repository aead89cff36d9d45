"""Finds out whether something is mounted on a directory of a mount, which INC_EPOCH would unmount.

The kernel takes a directory whose name is of an older epoch for one that was removed, and detaches what is mounted on it or below
(fuse_dentry_revalidate, d_invalidate; seen).  A name whose time is over is looked up again and stays the same directory.  So while
something is mounted there, names are told without a timeout, and what was told before is waited for instead of made invalid
(vfs/state/kernel_cache.py).

/proc/self/mountinfo tells of this process's mount namespace only; poll(2) says when it has changed.  In other namespaces (containers)
nobody can see what is mounted without looking at all processes of the machine, so where containers are to be expected (`always`) it is
taken for granted; so too while the own mount is not found in the table.  What is mounted between the look and the notification, or on a
directory that was opened before the last one, may still be unmounted.

A look costs one poll(2); the table is read only when it has changed.
"""

from __future__ import annotations

import select
import threading

from awsomefsd.keeper import mount_syscalls

TABLE = "/proc/self/mountinfo"


class NestedMounts:
    """Thread-safe.  `directory`: where the filesystem is mounted."""

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
        if self._always:
            return True
        with self._lock:
            if self._poll.poll(0):  # from here on later changes are news again, so they are seen now or then
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
