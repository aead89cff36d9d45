"""The mount's side of its flusher: the flusher asks here for layouts, and tells here of commits and of lost leases."""

from __future__ import annotations

from awsomefsd.base.errors import Error
from awsomefsd.base.types import Attr
from awsomefsd.base.wait import block_on
from awsomefsd.io.file.draining import Draining
from awsomefsd.io.file.file_data import FileState
from awsomefsd.vfs.session.conflicts import Conflicts
from awsomefsd.vfs.state.mount_state import MountState
from awsomefsd.vfs.vfs import Vfs


class MountFlushEvents:
    """Implements io.file.flusher.FlushEvents."""

    def __init__(self, mount: MountState, vfs: Vfs, conflicts: Conflicts, draining: Draining) -> None:
        self._mount = mount
        self._vfs = vfs
        self._conflicts = conflicts
        self._draining = draining

    def refresh_layout(self, ino: int) -> None:
        state = self._mount.buffered.files.get(ino)
        if state is not None:
            block_on(self._vfs.fetch_layout(state, 0, 1))

    def committed(self, attr: Attr, repeated: bool) -> None:
        self._mount.caches.committed(attr, repeated)

    def lease_lost(self, state: FileState) -> None:
        leases = self._mount.caches.leases
        if leases is not None:
            leases.note_ended(state.ino, state.lease)
        self._conflicts.save([state], "a write lease had ended")

    def refused_for_good(self, state: FileState, errno_: int) -> None:
        self._conflicts.save([state], f"the commit of inode {state.ino} is refused for good (errno {errno_})")

    def error_told(self, ino: int, error: Error) -> None:
        self._mount.session.flush_failed(ino, error)

    def idle(self) -> None:
        self._draining.poll()

    def write_failed(self) -> None:
        self._draining.poll()  # the device may be absent: then the next try goes elsewhere
