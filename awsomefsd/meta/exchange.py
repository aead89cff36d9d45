"""What several voters do with whole states: copies go out, a snapshot comes in.  The replica calls `turn` once a turn.

The steps of one exchange are split between the replica, which owns the store, and this, which owns the files, so that nothing but the
replica ever closes or opens the store it applies to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Protocol

from awsomefsd.errors import Error
from awsomefsd.failpoints import hit
from awsomefsd.meta.journal import JournalFailed, JournalFull
from awsomefsd.meta.raft_messages import SnapshotMeta
from awsomefsd.meta.snapshot import RAFT_NOTE
from awsomefsd.meta.state_store import StateStore
from awsomefsd.meta.store import Store
from awsomefsd.meta.voter import Voter

log = logging.getLogger(__name__)
COPY_RETRY_TURNS = 20

__all__ = ["RAFT_NOTE", "Exchange", "StateFiles"]


class StateFiles(Protocol):
    """What is used of snapshot.SnapshotFiles here; voter.Chunks has the rest."""

    def open_store(self) -> Store: ...

    def start_copy(self, store: StateStore) -> None: ...

    def copied(self) -> SnapshotMeta | None: ...

    def end_copy(self) -> None: ...

    def stage(self, meta: SnapshotMeta, cluster: str, node: str, incarnation: bytes) -> None: ...

    def close(self) -> None: ...


class Exchange:
    """Of one voter.  `cluster`, `node`, `incarnation`: whose a snapshot becomes."""

    def __init__(self, voter: Voter, files: StateFiles, cluster: str, node: str, incarnation: bytes) -> None:
        self._voter = voter
        self._files = files
        self._owner = (cluster, node, incarnation)
        self._wanted = False
        self._staged: SnapshotMeta | None = None
        self._wait_turns = 0

    def turn(self, log_: object, store: StateStore, commit: Callable[[], None]) -> bool:
        """True: a snapshot is staged; close the store, `open_store`, then `finish`."""
        voter = self._voter
        assert log_ is voter
        if (meta := voter.to_install) is not None:
            return self._stage(meta)
        self._wanted = voter.take_snapshot_wanted() or self._wanted
        self._wait_turns = max(self._wait_turns - 1, 0)
        try:
            if (made := self._files.copied()) is not None:
                voter.snapshot_made(made)
            elif self._wanted and not self._wait_turns:
                self._wanted = False
                commit()
                self._files.start_copy(store)
        except (OSError, Error) as err:
            log.warning("no copy of the state could be made for a follower: %s", err)
            self._wanted, self._wait_turns = True, COPY_RETRY_TURNS
        return False

    def _stage(self, meta: SnapshotMeta) -> bool:
        self._files.end_copy()  # the store is going to be closed under it
        try:
            self._files.stage(meta, *self._owner)
        except (OSError, Error) as err:
            log.warning("a snapshot of the state is refused: %s", err)
            self._voter.refused(meta)
            return False
        self._staged = meta
        return True

    def open_store(self) -> Store:
        return self._files.open_store()

    def finish(self, log_: object) -> None:
        """The state is the snapshot's: the journal begins behind it.  JournalFailed: the next start does that."""
        assert log_ is self._voter and self._staged is not None
        meta, self._staged = self._staged, None
        hit("exchange.install.before")
        try:
            self._voter.installed(meta)
        except JournalFull as err:
            raise JournalFailed(f"the state is the snapshot's, the journal could not follow: {err}") from err
        hit("exchange.install.after")
        log.info("took over a snapshot of the metadata state", extra={"index": meta.index, "bytes": meta.size})

    def close(self) -> None:
        self._files.close()
