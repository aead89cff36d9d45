"""Write leases that nobody uses any more are given back, many at a time, before another node has to ask for them.

A file that was written, closed and committed keeps its write lease: whoever looks at it next on another node would have to wait for a
recall, one for each file of a directory.  So a lease under which nothing happened for LEASE_IDLE_LOOKS looks (its stamp is the same), of a
file that is closed here and holds nothing dirty, is turned into a read lease: what is remembered of the file stays.  A file that is open
keeps its lease, however quiet: its next write would have to ask.

As with a recall, nothing more may be buffered before it is looked whether something is: the holder pauses the inode first (`may_buffer`
is 0), then `token` is taken out of the file's state, then it is looked.  A write that comes meanwhile asks for the lease, and what is asked
for is not given back.  The leader hears it before any later question on the same inode, so it never grants the old epoch again
(held_leases.py, `lower`).  A recall that comes in between goes its own way; a successor finds no record of such a file.
"""

from __future__ import annotations

from awsomefsd.base.limits import LEASE_IDLE_LOOKS, LEASES_RETURNED_A_LOOK
from awsomefsd.meta.client.leases import Leases
from awsomefsd.vfs.state.mount_state import MountState


class IdleLeases:
    def __init__(self, mount: MountState, leases: Leases) -> None:
        self._mount = mount
        self._leases = leases
        self._seen: dict[int, tuple[tuple[int, int], int]] = {}  # inode → (grant, stamp), at how many looks in succession

    def poll(self) -> None:
        """Called again and again by one thread."""
        before, self._seen = self._seen, {}
        idle: list[int] = []
        for ino, used in self._leases.writes().items():
            same, looks = before.get(ino, (used, 0))
            looks = looks + 1 if same == used and not self._in_use(ino) else 0
            if looks > LEASE_IDLE_LOOKS and len(idle) < LEASES_RETURNED_A_LOOK:
                idle.append(ino)
            else:
                self._seen[ino] = used, looks
        if idle:
            self._leases.lower(idle, self._clean)

    def _in_use(self, ino: int) -> bool:
        state = self._mount.buffered.files.get(ino)
        return self._mount.session.opens.count(ino) > 0 or (state is not None and bool(state.dirty))

    def _clean(self, ino: int) -> bool:
        if not self._mount.names_let_go(ino):
            return False
        state = self._mount.buffered.files.get(ino)
        if state is None:
            return True
        state.let_go()
        with state.lock:
            return not state.dirty and state.error is None
