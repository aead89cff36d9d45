"""Others are told the size and times of a file that this mount writes under a lease as its own programs see them.

While the lease is held nobody else changes the inode, so what stat(2) is answered from memory here is right everywhere.  Nothing is flushed
for it.  Where it is not known from memory (a change of this mount has no outcome yet, attributes were dropped) nothing is said: the leader
then recalls the lease.
"""

from __future__ import annotations

from collections.abc import Callable

from awsomefsd.io.file.file_data import FileTable
from awsomefsd.meta.client.leases import Shown
from awsomefsd.vfs.state.mount_state import with_buffered
from awsomefsd.vfs.state.names import NameCache


class ShownToOthers:
    """Thread-safe as its parts are; does not block."""

    def __init__(self, files: FileTable, names: NameCache, told: Callable[[int], bool] | None = None) -> None:
        """`told`: whether the leader knows all else of an inode, of a mount that decides names."""
        self._files = files
        self._names = names
        self._told = told

    def of(self, ino: int) -> Shown | None:
        """Returns what is shown of a file; None: that is not known just now.  Who asks looks afterwards whether the lease is still held."""
        if self._told is not None and not self._told(ino):
            return None
        before = self._names.attr(ino)
        if before is None:
            return None
        shown = with_buffered(before, self._files.get(ino))
        now = self._names.attr(ino)  # a commit puts the new attributes here before its records are clean
        if now is None:
            return None
        shown = now if shown is None else shown
        return Shown(shown.size, shown.stored_bytes, shown.mtime_ns, shown.ctime_ns)
