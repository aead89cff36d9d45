"""Raft's own entries in the state: the newest applied membership is a row, so that a state snapshot holds it.

Nothing is decided here: the core has done that when the entry was appended (meta/raft/membership.py).
"""

from __future__ import annotations

from awsomefsd.meta.api.commands import ChangeMembership, Entry, NoOp
from awsomefsd.meta.api.messages import Done, Reply
from awsomefsd.meta.raft.types import MembershipAt
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State


def noop(state: State, entry: Entry, command: NoOp) -> Reply:
    """Changes nothing: the first entry of a term."""
    return Done()


def change(state: State, entry: Entry, command: ChangeMembership) -> Reply:
    """Keeps the membership that the entry has brought."""
    state.write(keys.membership(), rows.MembershipRow(entry.index, command.membership), rows.MEMBERSHIP)
    return Done()


def newest(state: State) -> MembershipAt | None:
    """Returns the membership that was applied last and its index; None if no entry has brought one."""
    row: rows.MembershipRow | None = state.read(keys.membership(), rows.MEMBERSHIP)
    return None if row is None else MembershipAt(row.index, row.membership)
