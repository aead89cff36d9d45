"""Data that write(2) acknowledged and that may not be committed any more: somebody else may have changed the file since.

It happens when a session has ended, for a volume that another mount had meanwhile, or of whose metadata an older copy is in use since; or
for one file of a shared volume (its write lease has ended, and the leader tells of others' changes or refuses the commit). The bytes are
kept as files under ``state_dir/conflicts``, which `status` names; every open handle of the file answers EIO until it is closed, in this
worker and in its successors.

Order: handles first, so that an fsync that waits for these very records finds its handle lost when they are gone; then nothing more is
buffered of these files; then the bytes, synced; then the records.  What is written meanwhile through a new handle waits until the records
are gone (FileTable.hold), so all of them are stored.  A worker that dies in between leaves records and lost handles to its successor, who
asks the same question again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from awsomefsd.base.errors import FsError
from awsomefsd.io.file.dirty_log import DirtyRecord
from awsomefsd.io.file.file_data import FileState
from awsomefsd.vfs.state.mount_state import MountState

RETRY_PAUSE_S = 1.0
OVERTAKEN = "the session had ended, and another mount had the volume since, or the cluster was recovered from a copy"

log = logging.getLogger("awsomefsd.session")


class LastingCount(Protocol):
    """A number that outlives the worker."""

    @property
    def value(self) -> int: ...

    def add(self, amount: int = 1) -> None: ...


class Conflicts:
    """`store` is write_conflicts of this mount; `saved` counts files, `told` those of which a flush of the mount has told."""

    def __init__(self, mount: MountState, store: Callable[[list[Any]], str], saved: LastingCount, told: LastingCount) -> None:
        self._mount = mount
        self._store = store
        self._saved = saved
        self._told = told
        self._telling = threading.Lock()

    def tell(self) -> None:
        """Raises FsError(EIO) if files became conflicts since the last call: a flush of the mount finds nothing else of them."""
        with self._telling:
            untold = self._saved.value - self._told.value
            self._told.add(untold)
        if untold:
            raise FsError(errno.EIO, f"buffered data of {untold} files became conflicts since the last flush; see `awsomefsd status`")

    def count(self, number: int) -> None:
        """Counts other things that were put aside: the next flush of the mount tells of them."""
        self._saved.add(number)

    def save(self, states: list[FileState], reason: str) -> None:
        """Waits until there is room for the bytes.  No flush of these files may be under way."""
        mount = self._mount
        inos = {state.ino for state in states}
        mount.session.lose_handles(inos)
        for state in states:
            state.let_go()
        records = [record for state in states for record in list(state.dirty) if record.length]  # what was committed meanwhile goes away
        if records:
            self._note_lost(records)
            where = self._keep(records)
            log.error("%s: dirty data was stored as a conflict: %s (files=%d records=%d)", reason, where, len(inos), len(records))
            self._saved.add(len(inos))
        for state in states:
            mount.buffered.release_space(mount.buffered.files.drop(state.ino, in_flight=True))
        mount.buffered.flusher.wake()  # who waited to write to these files looks again

    def save_inherited(self, records: list[DirtyRecord], reason: str) -> None:
        """Stores records of a predecessor that no state of a file has taken up; waits as `save`."""
        inos = {record.ino for record in records}
        self._mount.session.lose_handles(inos)
        self._note_lost(records)
        where = self._keep(records)
        log.error("%s: dirty data was stored as a conflict: %s (files=%d records=%d)", reason, where, len(inos), len(records))
        self._saved.add(len(inos))
        self._mount.buffered.dirty.mark_clean(records)

    def _note_lost(self, records: list[DirtyRecord]) -> None:
        """Who has such a file open for writing hears of it by the handle, and if nobody has, the next one who syncs it."""
        mount, inos = self._mount, {record.ino for record in records}
        mount.session.data_lost |= inos
        mount.losses_untold |= inos - {file.ino for file in mount.session.opens if file.flags & os.O_ACCMODE != os.O_RDONLY}

    def _keep(self, records: list[Any]) -> str:
        while True:
            try:
                return self._store(records)
            except OSError as err:
                log.error("dirty data of an ended session cannot be stored as a conflict yet; operations wait: %s", err)
                time.sleep(RETRY_PAUSE_S)


def write_conflicts(directory: str, mount: int, records: list[Any]) -> str:
    """Store records that may not be committed; returns the directory made for them.

    One file per record named ``<inode>-<offset>-<sequence>``, holding its bytes; everything is synced before this returns.  Raises OSError.
    """
    path = os.path.join(directory, f"{mount:016x}-{time.time_ns()}")
    with whole_directory(path):
        for record in records:
            name = os.path.join(path, f"{record.ino}-{record.offset}-{record.sequence}")
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                done = 0
                while done < len(record.data):
                    done += os.write(fd, record.data[done:])
                os.fsync(fd)
            finally:
                os.close(fd)
        sync_directories(path, directory)
    return path


@contextlib.contextmanager
def whole_directory(path: str) -> Iterator[None]:
    """Makes a directory, which goes again with all that is in it if the block raises OSError.

    A disk that is full stays full if each try leaves what it has written, and nobody could tell which of the tries is whole.
    """
    os.makedirs(path, mode=0o700)
    try:
        yield
    except OSError:
        with contextlib.suppress(OSError):
            for name in os.listdir(path):
                os.unlink(os.path.join(path, name))
            os.rmdir(path)
        raise


def sync_directories(path: str, directory: str) -> None:
    """Syncs a directory that was made in `directory`, and all that says where it is.  Raises OSError."""
    for parent in (path, directory, os.path.dirname(directory)):
        fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
