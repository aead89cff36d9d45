"""Raft's own entries in the state: the newest applied membership is a row, so that a snapshot holds it.

Nothing is decided here: the core has done that when the entry was appended (raft_membership).
"""

from __future__ import annotations

from awsomefsd.meta import keys, rows
from awsomefsd.meta.commands import ChangeMembership, Entry, NoOp
from awsomefsd.meta.messages import Done, Reply
from awsomefsd.meta.raft_types import MembershipAt
from awsomefsd.meta.state import State


def noop(state: State, entry: Entry, command: NoOp) -> Reply:
    return Done()


def change(state: State, entry: Entry, command: ChangeMembership) -> Reply:
    state.write(keys.membership(), rows.MembershipRow(entry.index, command.membership), rows.MEMBERSHIP)
    return Done()


def newest(state: State) -> MembershipAt | None:
    row: rows.MembershipRow | None = state.read(keys.membership(), rows.MEMBERSHIP)
    return None if row is None else MembershipAt(row.index, row.membership)
