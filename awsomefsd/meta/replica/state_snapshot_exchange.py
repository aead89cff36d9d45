"""The traffic in whole states among several voters: copies go out, a state snapshot comes in.  The replica calls `turn` once a turn.

The steps of one exchange are split between the replica, which owns the store, and this, which owns the files, so that nothing but the
replica ever closes or opens the store it applies to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from awsomefsd.base.errors import Error
from awsomefsd.base.failpoints import hit
from awsomefsd.meta.log.journal import JournalFailed, JournalFull
from awsomefsd.meta.raft.messages import StateSnapshot
from awsomefsd.meta.replica.overlay_store import OverlayStore
from awsomefsd.meta.replica.state_store import StateStore
from awsomefsd.meta.voter.ports import RAFT_NOTE
from awsomefsd.meta.voter.voter import Voter

log = logging.getLogger(__name__)
COPY_RETRY_TURNS = 20

__all__ = ["RAFT_NOTE", "StateFiles", "StateSnapshotExchange"]


class StateFiles(Protocol):
    """The calls to StateSnapshotFiles that the exchange needs; ChunkFiles (meta/voter/state_snapshot_chunks.py) has the rest."""

    def open_store(self) -> OverlayStore:
        """The store in use; a staged state has become it."""

    def start_copy(self, store: StateStore) -> None:
        """Begin a copy of the last commit, on another thread; harmless while one is under way."""

    def copied(self) -> StateSnapshot | None:
        """The copy that was begun, once it is done, and once; otherwise None.  Raises what went wrong with it."""

    def end_copy(self) -> None:
        """Wait for a copy under way; its result is forgotten."""

    def stage(self, meta: StateSnapshot, cluster: str, node: str, incarnation: bytes) -> None:
        """Make the received file this node's store from the next `open_store` on, durably.  Raises Corrupt, Refused, OSError."""

    def close(self) -> None:
        """Wait for a copy under way, and close the file that is received."""


class StateSnapshotExchange:
    """The exchange of one voter.  `cluster`, `node`, `incarnation`: the owner that a received state gets."""

    def __init__(self, voter: Voter, files: StateFiles, cluster: str, node: str, incarnation: bytes) -> None:
        self._voter = voter
        self._files = files
        self._owner = (cluster, node, incarnation)
        self._wanted = False
        self._wanted_index = 0  # a copy has at least the entries up to here
        self._staged: StateSnapshot | None = None
        self._wait_turns = 0

    def turn(self, log_: object, store: StateStore, applied: int, is_stored: Callable[[int], bool]) -> bool:
        """Go on with what is under way.  Only staging waits for the disk.

        `applied`: the newest applied entry.  `is_stored`: the store has an entry durably; asked each turn until it has the one that was
        applied when the copy was wanted, then that is begun.  True: a state snapshot is staged; close the store, call `open_store`, then
        `finish`.
        """
        assert log_ is self._voter
        transfers = self._voter.state_snapshots
        if (meta := transfers.to_install) is not None:
            return self._stage(meta)
        if transfers.take_wanted() and not self._wanted:
            self._wanted, self._wanted_index = True, applied
        self._wait_turns = max(self._wait_turns - 1, 0)
        try:
            if (made := self._files.copied()) is not None:
                transfers.copied(made)
            elif self._wanted and not self._wait_turns and is_stored(self._wanted_index):
                self._wanted = False
                self._files.start_copy(store)
        except (OSError, Error) as err:
            log.warning("no copy of the state could be made for a follower: %s", err)
            self._wanted, self._wait_turns = True, COPY_RETRY_TURNS
        return False

    def _stage(self, meta: StateSnapshot) -> bool:
        self._files.end_copy()  # the store is going to be closed under it
        try:
            self._files.stage(meta, *self._owner)
        except (OSError, Error) as err:
            log.warning("a snapshot of the state was refused: %s", err)
            self._voter.state_snapshots.refused(meta)
            return False
        self._staged = meta
        return True

    def open_store(self) -> OverlayStore:
        return self._files.open_store()

    def finish(self, log_: object) -> None:
        """The state is the state snapshot's: the journal begins behind it.  Raises JournalFailed; then the next start does that."""
        assert log_ is self._voter and self._staged is not None
        meta, self._staged = self._staged, None
        hit("exchange.install.before")
        try:
            self._voter.installed(meta)
        except JournalFull as err:
            raise JournalFailed(f"the state was replaced by the state snapshot, but the journal was not: {err}") from err
        hit("exchange.install.after")
        log.info("took over a snapshot of the metadata state", extra={"index": meta.index, "bytes": meta.size})

    def close(self) -> None:
        self._files.close()
