"""The rules of names, attributes and extended attributes, run by the mount that holds what they touch.

They are the leader's own functions over other rows: those that the mount was given under its lease, and above them what it has decided and
the leader has not applied yet (vfs/state/overlay_state.py).  What a rule does beyond that is the ledger's (meta/state/ledger.py), and the
holder's ledger does nothing: the leader's does it when the record is applied.  The rows that belong to no inode are made here (`own_rows`):

* the cluster acts at a level and has no reader of the change stream: tombstones are the leader's;
* the volume has no quota, since numbers come from a grant that the quota has reserved, and nobody shares it: no rule asks for the leases
  and the pins of others, of which there are none on what is held.  Sessions that do not say what they open keep an inode longer at the
  leader than here, where it ends with its last name and handle;
* the session is the mount's own.

What rules read beyond the inodes that a command names is little: the inode a name leads to, extended attributes by name (default ACL,
capability, consistency), and, where a directory goes to another parent, its new ancestors up to the root.  Whether a directory is empty
stands in its row.  No rule scans a range of rows here, so none needs to know a directory whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import NAME_BYTES_MAX, REAP_EXTENTS_PER_ENTRY, XATTR_NAME_BYTES_MAX
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Failed, Reply
from awsomefsd.meta.machine import name_queries, record_checks
from awsomefsd.meta.machine.name_rules import NAME_RULES
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State
from awsomefsd.meta.state.txn import Txn

COMMANDS = frozenset(NAME_RULES)  # that a holder may decide
QUESTIONS = frozenset(name_queries.QUERIES)  # that it may answer


class NoNumber(Exception):
    """The rule makes an inode and was given no number for it.  Nothing was changed; the operation is the leader's."""


class NamesHolder(NamedTuple):
    """Who decides: a session of a mount, at the level and site of its cluster.  `shared` to `caches` as in SessionRow."""

    volume: int
    mount: int
    session: int
    epoch: int
    level: int
    site: int
    shared: bool = False
    uncached: bool = False
    caches: bool = False


def own_rows(holder: NamesHolder) -> dict[bytes, bytes]:
    """Returns the rows that belong to no inode, as the rules of a holder see them."""
    cluster = rows.ClusterRow(site=holder.site, level=holder.level, next_session=holder.session + 1, next_epoch=holder.epoch + 1)
    volume = rows.VolumeRow(holder.volume, "", "", 0, 0)
    session = rows.SessionRow(
        holder.session, holder.epoch, holder.mount, holder.volume, "", "", 0,
        shared=holder.shared, uncached=holder.uncached, caches=holder.caches,
    )  # fmt: skip
    return {
        keys.cluster(): rows.CLUSTER.dumps(cluster),
        keys.volume(holder.volume): rows.VOLUME.dumps(volume),
        keys.session(holder.session): rows.SESSION.dumps(session),
    }


class HolderLedger:
    """Implements ledger.Ledger for one record at a time.  `number`: for the inode that it may make, 0 for none; `made`: the one it made."""

    __slots__ = ("made", "number")

    def __init__(self) -> None:
        self.number = self.made = 0

    def new_number(self, state: State, volume: rows.VolumeRow) -> int:
        if not self.number:
            raise NoNumber
        self.made, self.number = self.number, 0
        return self.made

    def grant(self, state: State, session: int, volume: int, ino: int, lease: rows.LeaseRow) -> None:
        """The lease is what the leader grants with the record."""

    def pin(self, state: State, sessions: Iterable[int], volume: int, ino: int) -> None:
        """The inode stays without names: this mount has it open."""

    def unpin(self, state: State, entry: c.Entry, volume: rows.VolumeRow, ino: int, session: int) -> None:
        row = state.inode(volume.volume, ino)
        if row is not None and not row.nlink:
            self.end(state, entry, volume, ino, row)

    def drop_pins(self, state: State, volume: int, ino: int) -> None:
        """Its nlink says that it has a name again."""

    def end(self, state: State, entry: c.Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow) -> None:
        state.drop_inode(volume.volume, ino)

    def cut(self, state: State, entry: c.Entry, volume: rows.VolumeRow, ino: int, row: rows.InodeRow, size: int) -> None:
        """Inline bytes are as many as stored ones, and of a file cut to nothing the leader frees every extent, if they are not too many.

        What a cut in the middle frees is not known here: `stored_bytes` then says too much until the leader has answered.
        """
        if row.inline:
            row.stored_bytes = min(row.stored_bytes, size)
        elif not size and row.extents <= REAP_EXTENTS_PER_ENTRY:
            row.extents = row.stored_bytes = row.allocated_bytes = 0


class HeldRules:
    """The rules over the rows of one holder.  One thread at a time; `txn` may raise what it likes for a row that it does not have.

    Rows are remembered decoded between two records: whoever drops what was decided, or changes the rows otherwise, calls `forget`.
    """

    __slots__ = ("_holder", "_ledger", "_state")

    def __init__(self, txn: Txn, holder: NamesHolder) -> None:
        self._holder = holder
        self._ledger = HolderLedger()
        self._state = State(txn, self._ledger)

    def forget(self) -> None:
        """Forgets what was decoded: the rows may be others, or what was decided has not happened."""
        self._state.forget()

    def decide(self, command: c.Command, time_ns: int, stamp: int, number: int = 0) -> tuple[Reply, int]:
        """Returns the reply of the rule, as the leader would give it, and the inode that it made (0: none).

        `stamp`: another one for each record.  The changes are in the transaction when it returns.  After Failed, NoNumber or an exception
        of the transaction, part of them may be: the caller keeps them apart until the record is decided, and calls `forget`.
        """
        state, ledger, holder = self._state, self._ledger, self._holder
        state.evict()
        ledger.number, ledger.made = number, 0
        entry = c.Entry(
            0, 0, command.since, 0, holder.site, stamp, time_ns, holder.mount, 0, holder.session, holder.epoch, [], command,  # type: ignore[arg-type]
        )  # fmt: skip
        try:
            reply = NAME_RULES[type(command)](state, entry, command)
        except FsError as err:
            return Failed(err.errno, str(err.args[0]), err.retry_helps), 0
        state.write_back()
        return reply, ledger.made

    def check_of(self, record: c.DecidedRecord, touched: list[int]) -> int:
        """Returns the checksum of what the record touches, as its rule has left it (record_checks.py)."""
        return record_checks.check_of(self._state, record, touched)

    def ask(self, body: Any) -> Reply:
        """Answers one of QUESTIONS, as the leader would once all records are applied.  The transaction may raise for rows it lacks."""
        self._state.evict()
        try:
            return name_queries.QUERIES[type(body)](self._state, body)
        except FsError as err:
            return Failed(err.errno, str(err.args[0]), err.retry_helps)


# --- what to ask for ----------------------------------------------------------------------------------------------------
def _name(volume: int, parent: int, name: bytes) -> list[bytes]:
    found = [keys.inode(volume, parent)]
    return [*found, keys.dentry(volume, parent, name)] if 0 < len(name) <= NAME_BYTES_MAX else found


def _xattr_keys(command: c.SetXattr | c.RemoveXattr) -> list[bytes]:
    found = [keys.inode(command.volume, command.ino)]
    return [*found, keys.xattr(command.volume, command.ino, command.name)] if 0 < len(command.name) <= XATTR_NAME_BYTES_MAX else found


def _rename_keys(command: c.Rename) -> list[bytes]:
    return _name(command.volume, command.parent, command.name) + _name(command.volume, command.new_parent, command.new_name)


_KEYS: dict[type[c.Command], Callable[[Any], list[bytes]]] = {
    **dict.fromkeys((c.Create, c.Unlink, c.Rmdir), lambda command: _name(command.volume, command.parent, command.name)),
    c.Tmpfile: lambda command: [keys.inode(command.volume, command.parent)],
    c.Link: lambda command: [keys.inode(command.volume, command.ino), *_name(command.volume, command.parent, command.name)],
    c.Rename: _rename_keys,
    **dict.fromkeys((c.SetXattr, c.RemoveXattr), _xattr_keys),
    c.SetAttr: lambda command: [keys.inode(command.volume, command.ino)],
    c.ReleaseOrphan: lambda command: [keys.inode(command.volume, ino) for ino in command.inos],
}


def first_keys(command: c.Command) -> list[bytes]:
    """Returns the keys of the rows that the rule of a command reads whatever it finds, so that they can be asked for together."""
    return _KEYS[type(command)](command)
