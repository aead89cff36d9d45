"""Decided changes of names that the cluster has not and never will: they are kept as a list under ``state_dir/conflicts``.

It happens when somebody else had the volume since, or when a record is refused, which is a defect.  What followed from them here is
forgotten too, in the caches and by the kernel; data of the inodes that they touch is put aside as well: its file may never be there.

Order: the list, then the data, both synced, and only then the records are marked in the op log.  A worker that dies in between leaves both
to its successor, who asks the same question again.
"""

from __future__ import annotations

import json
import logging
import os
import time

from awsomefsd.io.file.dirty_log import DirtyRecord
from awsomefsd.io.file.op_log import OpRecord
from awsomefsd.io.file.shipper import record_of
from awsomefsd.meta.machine.record_checks import inodes_of
from awsomefsd.vfs.session.conflicts import RETRY_PAUSE_S, Conflicts, sync_directories, whole_directory
from awsomefsd.vfs.session.mount_session import KernelInvalidation
from awsomefsd.vfs.state.mount_state import MountState

log = logging.getLogger("awsomefsd.names")


class NamesAside:
    """`directory` is that of all conflicts."""

    def __init__(self, mount: MountState, conflicts: Conflicts, kernel: KernelInvalidation, directory: str, mount_id: int) -> None:
        self._mount = mount
        self._conflicts = conflicts
        self._kernel = kernel
        self._directory = directory
        self._mount_id = mount_id
        self.inherited: list[DirtyRecord] = []  # data of a predecessor that no state of a file has taken up

    def save(self, records: list[OpRecord], why: str) -> None:
        """Returns when they are stored and nothing that followed from them is shown.  Blocks; waits for room on the disk."""
        mount = self._mount
        where = self._keep(records)
        log.error("%s: changes of names were stored as a conflict: %s (records=%d)", why, where, len(records))
        touched = {ino for record in records if not record.damaged for ino in inodes_of(record_of(record))}
        mount.losses_untold |= touched
        mount.session.lose_handles(touched)
        self._save_data(touched, why, all_inherited=any(record.damaged for record in records))
        known = mount.caches.names.inode_numbers()
        mount.caches.names.clear()
        mount.buffered.files.forget_clean()
        mount.caches.pages.doubt()  # of a file that is not remembered here the kernel may have bytes that were put aside
        self._kernel.invalidate_all(known)
        self._conflicts.count(len(records))

    def _save_data(self, touched: set[int], why: str, *, all_inherited: bool) -> None:
        """Stores data of inodes that may never be there.  What a damaged record touches is unknown: it may have made any file."""
        states = [state for state in self._mount.buffered.files.dirty_states() if state.ino in touched]
        for state in states:
            with state.lock:
                state.held = True
        self._mount.buffered.flusher.fence()  # what it has taken before may be gone from the log while it writes
        if states:
            self._conflicts.save(states, why)
        inherited = [record for record in self.inherited if record.is_dirty and (all_inherited or record.ino in touched)]
        if inherited:
            self._conflicts.save_inherited(inherited, why)

    def _keep(self, records: list[OpRecord]) -> str:
        while True:
            try:
                return write_names(self._directory, self._mount_id, records)
            except OSError as err:
                log.error("changes of names cannot be stored as a conflict yet; operations wait: %s", err)
                time.sleep(RETRY_PAUSE_S)


def write_names(directory: str, mount: int, records: list[OpRecord]) -> str:
    """Stores records as lines of JSON, synced; returns the directory made for them.  Raises OSError."""
    path = os.path.join(directory, f"{mount:016x}-{time.time_ns()}-names")
    with whole_directory(path):
        fd = os.open(os.path.join(path, "records"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "wb") as file:
            for record in records:
                file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        sync_directories(path, directory)
    return path


def _line(record: OpRecord) -> bytes:
    """One line.  `made`: the number of the inode that the operation made, under which later lines name it; 0: it made none.

    A byte that is no UTF-8 is a surrogate, as in Python's names of files: os.fsencode gives back what was there.
    """
    said: dict[str, object] = {"sequence": record.sequence, "damaged": record.damaged}
    if not record.damaged:
        whole = record_of(record)
        fields = {name: getattr(whole.command, name) for name in whole.command.__struct_fields__}
        said |= {"time_ns": whole.time_ns, "operation": type(whole.command).__name__, "leads_to": whole.leads_to, "made": whole.ino}
        said = fields | said  # a SetAttr has a sequence of its own, of data
    return json.dumps(said, default=_text).encode() + b"\n"


def _text(value: object) -> str:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else str(value)
