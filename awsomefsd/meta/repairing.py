"""The rule of RepairRows: what fsck has decided, row by row, becomes part of the log.

What to write is decided outside (repair.py), from a state at rest; the entry holds the rows themselves.  So a replay writes the same, and
so does every replica, whatever build it runs.  Rejected: an entry that says "repair yourself", whose meaning would change with each rule
that is added, and which could not mend a row that the machine cannot read.
"""

from __future__ import annotations

import errno

from awsomefsd.errors import FsError
from awsomefsd.meta.commands import Entry, RepairRows
from awsomefsd.meta.messages import Done, Reply
from awsomefsd.meta.state import State
from awsomefsd.meta.txn import KEY_BYTES_MAX


def repair_rows(state: State, entry: Entry, command: RepairRows) -> Reply:
    if entry.session or entry.mount:
        raise FsError(errno.EPERM, "only fsck repairs rows")
    if not all(0 < len(key) <= KEY_BYTES_MAX for key in [*command.deletes, *(key for key, _ in command.puts)]):
        raise FsError(errno.EINVAL, "a key that no row has")
    state.flush()
    for key in command.deletes:
        state.txn.delete(key)
    for key, value in command.puts:
        state.txn.put(key, value)
    state.forget_all()
    return Done()
