"""RepairRows makes a repair that fsck has decided, row by row, part of the log.

What to write is decided outside (meta/check/repair.py), from a state at rest; the entry holds the rows themselves.  So a replay writes the
same, and so does every replica, whatever build it runs.  Rejected: an entry that says "repair yourself", whose meaning would change with
each rule that is added, and which could not repair a row that the machine cannot read.
"""

from __future__ import annotations

import errno

from awsomefsd.base.errors import FsError
from awsomefsd.meta.api.commands import Entry, RepairRows
from awsomefsd.meta.api.messages import Done, Reply
from awsomefsd.meta.state.rows_cache import State
from awsomefsd.meta.state.txn import KEY_BYTES_MAX


def repair_rows(state: State, entry: Entry, command: RepairRows) -> Reply:
    """Deletes and puts the rows of a repair, as they stand in the entry."""
    if entry.session or entry.mount:
        raise FsError(errno.EPERM, "only fsck repairs rows")
    if not all(0 < len(key) <= KEY_BYTES_MAX for key in [*command.deletes, *(key for key, _ in command.puts)]):
        raise FsError(errno.EINVAL, "a key that no row has")
    state.flush()
    for key in command.deletes:
        state.txn.delete(key)
    for key, value in command.puts:
        state.txn.put(key, value)
    state.reload()
    return Done()
