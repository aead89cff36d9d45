"""The numbers of mounts: which node each belongs to, and when it and its results are forgotten.

A mount's row is made when it opens its first session.  A command under a number without a row, which is no daemon's either, is refused: a
number is free to choose, so results of such ones would grow without end, and without them a request that is sent again would happen twice.
A row and its results go with its node (a new boot, a removal), and the oldest ones when a node has more than MOUNTS_KEPT_PER_NODE whose
session has ended, those that were unmounted first (session 0).  All that counts from the level MENDED_RULES on.
"""

from __future__ import annotations

from awsomefsd.base.limits import MOUNTS_KEPT_PER_NODE
from awsomefsd.base.rule_levels import MENDED_RULES
from awsomefsd.base.types import is_node_mount, node_mount
from awsomefsd.meta.api.commands import Entry, OpenSession
from awsomefsd.meta.machine import inode_grants
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import EpochEnded
from awsomefsd.meta.state.rows_cache import State


def every(state: State) -> list[tuple[int, rows.MountRow]]:
    """Returns (number, row) of all mounts."""
    return [(keys.last_u64(key), rows.MOUNT.loads(raw)) for key, raw in state.txn.scan(*keys.kind_range(0, keys.MOUNT))]


def forget(state: State, mount: int) -> None:
    """Deletes a mount's rows and results: it sends nothing again."""
    state.results.forget(mount)
    inode_grants.forget(state, mount)
    state.txn.delete(keys.mount(mount))


def refuse_unknown(state: State, entry: Entry) -> None:
    """Refuses an entry under the number of a mount that never opened a session, or was forgotten; OpenSession makes a number known.

    Raises EpochEnded, as for a session that has ended: the mount has to open one.
    """
    command = entry.command
    if not entry.mount or is_node_mount(entry.mount) or not state.acts_at(MENDED_RULES):
        return
    if isinstance(command, OpenSession) and command.mount == entry.mount:
        return
    if not _is_known(state, entry):
        raise EpochEnded(f"mount {entry.mount:x} has no session")


def keeps_results(state: State, entry: Entry) -> bool:
    """Returns True if the reply to this entry is to be kept: also the refusal of a mount's first OpenSession makes no number known."""
    if is_node_mount(entry.mount) or not state.acts_at(MENDED_RULES):
        return True
    return _is_known(state, entry)


def _is_known(state: State, entry: Entry) -> bool:
    session = state.session(entry.session) if entry.session else None
    if session is not None and session.mount == entry.mount:
        return True
    return state.txn.get(keys.mount(entry.mount)) is not None


def note_unmounted(state: State, mount: int) -> None:
    """A mount has ended cleanly: no data of it waits for a session to come, so its row is among the first to be forgotten."""
    row: rows.MountRow | None = state.read(keys.mount(mount), rows.MOUNT)
    if row is not None and state.acts_at(MENDED_RULES):
        row.session = 0
        state.write(keys.mount(mount), row, rows.MOUNT)


def forget_node(state: State, node: str) -> None:
    """Forgets the mounts of a node that was removed, and its daemon's results."""
    if not state.acts_at(MENDED_RULES):
        return
    for number, row in every(state):
        if row.node == node:
            forget(state, number)
    state.results.forget(node_mount(node))


def forget_oldest(state: State, node: str) -> None:
    """Forgets a node's oldest mounts without a session, if there are too many: those first that were unmounted.

    A mount that comes back is told by its row whether others had the volume; without one it would lay old data over theirs.
    """
    if not state.acts_at(MENDED_RULES):
        return
    ended = []
    for number, row in every(state):
        session = state.session(row.session) if row.node == node else None
        if row.node == node and (session is None or session.ended):
            ended.append((row.session, number))
    for _, number in sorted(ended)[: max(len(ended) - MOUNTS_KEPT_PER_NODE, 0)]:
        forget(state, number)
