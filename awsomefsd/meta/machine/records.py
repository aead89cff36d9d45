"""Apply: records of a mount's op log run through the rules of their commands, in order, once each; then commits of data.

A record is an entry of its own to the rule: with its own time, request and stamp.  Nothing else of it differs from the same command that a
client proposes, so there is one set of rules.  The clock of the leader hands out as many stamps as an Apply has records, and one more: the
entry's stamp is the last of them, and that of the commits.

The row of the mount says which record was applied last, of which log.  It is changed by the entry that applies them, outlives the session,
and is all that exactly once needs: what is at or below it is skipped, and what would leave a gap is not begun.  A log is used first under
one session, and no other log takes its place before that session has ended; so a late batch of an older log finds its session over.

A refusal begins another *round*, and a batch of an earlier round is refused whole.  What was refused is put aside by its sender, with what
follows from it, and a late copy of the batch that held it must not bring it in after all: it may be acceptable by then.

Commits are done by the batch that applies the last of its records, and by no other: so a late copy, which finds that record applied, does
none.  Its reply is kept as a result, as that of a Commit is, for a sender who did not get it.

A mount that shares its volume sends records, too, of what its session holds under write leases: each inode that a record touches and does
not make.  What it makes is leased by the same entry.  So no record meets what another session has changed, whatever its sender believes.
Left to entries of their own, in the order of the leader, are there: what changes the bytes of a file, locks, and a directory that goes to
another parent, whose rule reads ancestors that others may move.

A batch ends before the first record that its rule refuses, whose names lead elsewhere than its holder saw, or whose number is none of the
mount's.  What comes behind it was decided on rows that the leader does not have.  A `check` that differs is reported only.  Attributes of
an inode that is gone are passed: it ended with an earlier session of the mount, which had it open without names.
"""

from __future__ import annotations

import errno
import stat

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import APPLY_RECORDS_MAX
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.messages import Applied, Reply
from awsomefsd.meta.machine import allocation, commits, inode_grants, locks, namespace, quota, record_checks, write_leases
from awsomefsd.meta.machine.name_rules import NAME_RULES, Rules
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.lookups import RetryLater, check_name, session_of, volume_of
from awsomefsd.meta.state.rows_cache import GivenNumber, State

RULES: Rules = {**NAME_RULES, c.Fallocate: allocation.fallocate, c.SetLock: locks.set_lock}


def apply(state: State, entry: c.Entry, command: c.Apply) -> Reply:
    """Applies records and commits of a mount that holds what they touch.  Answered by Applied, also where a record is refused.

    A refusal of the whole (an ended session, a batch that no sender makes, a segment that is not the session's) changes nothing.
    """
    session = session_of(state, entry, command.volume)
    volume = volume_of(state, entry, command.volume, host=False)
    if not session.mount or (session.shared and not write_leases.may_lease(session)):
        raise FsError(errno.EINVAL, f"session {session.session} holds neither its volume nor parts of it")
    _check_batch(command)
    if session.shared and not all(step.lease for step in command.inodes):
        raise FsError(errno.EINVAL, "commits without a lease go by themselves: others may have to let go first")
    row = inode_grants.log_of(state, session.mount, command.volume) or rows.OpLogRow(command.volume)
    _follow(row, session, command.log)
    if command.round != row.round:
        return Applied(row.applied, errno.ESTALE, f"round {command.round} of log {command.log:x}; it is {row.round}", round=row.round)
    if command.after > row.applied:
        text = f"record {command.after} of log {command.log:x} is not applied"
        return Applied(row.applied, errno.ESTALE, text, round=row.round)
    if _carries_data(command) and command.records[-1].sequence <= row.applied:
        text = f"record {command.records[-1].sequence} is applied: what goes behind it was done with it, or goes another way"
        return Applied(row.applied, errno.ESTALE, text, round=row.round)
    commits.check(state, session.session, command.inodes, command.segments)
    reply = Applied(row.applied, round=row.round)
    _run_all(state, entry, command, volume, row, reply)
    if not reply.errno:
        reply.errnos, reply.attrs = commits.settle(state, entry, session, volume, command.inodes, command.segments)
        quota.consume(state, session, volume, command.consumed)
    inode_grants.save_log(state, session.mount, row)
    return reply


def is_kept(command: c.Apply, reply: Reply) -> bool:
    """Returns whether the reply is kept as a result: records are counted, so they may come twice, but commits that were done may not.

    A segment that was ended once would be refused, and what a commit consumes be taken again.
    """
    return _carries_data(command) and isinstance(reply, Applied) and not reply.errno


def _carries_data(command: c.Apply) -> bool:
    return bool(command.inodes or command.segments or command.consumed)


def _check_batch(command: c.Apply) -> None:
    """Raises FsError for a batch that no sender makes."""
    if len(command.records) > APPLY_RECORDS_MAX:
        raise FsError(errno.E2BIG, f"more than {APPLY_RECORDS_MAX} records")
    before = 0
    for record in command.records:
        if record.sequence <= before or record.command.volume != command.volume:
            raise FsError(errno.EINVAL, f"record {record.sequence}: out of order, or of another volume")
        before = record.sequence
    if _carries_data(command) and not command.records:
        raise FsError(errno.EINVAL, "commits of data without a record")
    if not command.log or command.first != (command.records[0].sequence if command.records else 0):
        raise FsError(errno.EINVAL, f"log {command.log:x}: the first record is not {command.first}")


def _follow(row: rows.OpLogRow, session: rows.SessionRow, log: int) -> None:
    """Begins with another log: the mount has lost the older one, with all that was in it."""
    if row.log == log:
        return
    if row.session == session.session:
        raise FsError(errno.EINVAL, f"session {session.session} has the op log {row.log:x}")
    row.log, row.session, row.applied, row.round = log, session.session, 0, 0


# --- records ------------------------------------------------------------------------------------------------------------
def _run_all(state: State, entry: c.Entry, command: c.Apply, volume: rows.VolumeRow, row: rows.OpLogRow, reply: Applied) -> None:
    """Runs the records that are not applied yet, up to the first that is refused, and writes down in the reply how far it came."""
    count = len(command.records)
    for ordinal, record in enumerate(command.records):
        if record.sequence <= row.applied:
            continue
        gone = _is_of_nothing(state, record.command)
        try:
            if not gone:
                run(state, entry_of(entry, record, entry.stamp - count + ordinal), record, volume, row)
        except FsError as err:
            reply.errno, reply.text, reply.retry, reply.refused = err.errno, str(err.args[0]), err.retry_helps, record.sequence
            if not reply.retry:
                row.round += 1
                reply.round = row.round
            return
        row.applied = reply.applied = record.sequence
        if record.check and not gone and not reply.differs and record_checks.check_of(state, record) != record.check:
            reply.differs = record.sequence


def _is_of_nothing(state: State, command: c.DelegatedCommand) -> bool:
    """Returns True for attributes of an inode that is gone: it had no names, and ended with the session that had it open.

    Its mount had decided that before it heard of the end, or goes on with what it knew.  Nobody can see what the record says.
    """
    return isinstance(command, (c.SetAttr, c.SetXattr, c.RemoveXattr)) and state.inode(command.volume, command.ino) is None


def entry_of(entry: c.Entry, record: c.DecidedRecord, stamp: int) -> c.Entry:
    """Returns the entry that the rule of a record sees."""
    return c.Entry(
        entry.index, entry.term, entry.version, entry.shard, entry.site, stamp, record.time_ns, entry.mount, record.unique,
        entry.session, entry.epoch, [], record.command,
    )  # fmt: skip


def run(state: State, entry: c.Entry, record: c.DecidedRecord, volume: rows.VolumeRow, row: rows.OpLogRow) -> Reply:
    """Runs the rule of one record, and returns its reply.  Raises FsError if it is refused; then nothing is changed."""
    _check_names(state, record)
    session = state.session(entry.session)
    shares = session is not None and session.shared
    if shares:
        _check_held(state, entry, record)
    _check_once_an_entry(state, entry, record)
    if not inode_grants.holds(row, record.ino) if record.ino else _makes(record):
        raise FsError(errno.EINVAL, f"inode number {record.ino} was not granted, or is not above those used")
    given = GivenNumber(record.ino, paid=row.reserved > 0) if record.ino else None
    state.given = given
    try:
        reply = RULES[type(record.command)](state, entry, record.command)
    finally:
        state.given = None
    if given is not None and given.taken:
        inode_grants.use(state, volume, row, given.ino)
        if shares and not write_leases.holder_of(state, volume.volume, given.ino):
            write_leases.grant_with_inode(state, entry, volume.volume, given.ino)
    return reply


def _check_names(state: State, record: c.DecidedRecord) -> None:
    """Raises FsError(ESTALE) if a name does not lead where the holder saw it lead."""
    names = record_checks.names_of(record.command)
    if len(record.leads_to) != len(names):
        raise FsError(errno.EINVAL, f"{len(names)} names lead to {len(record.leads_to)} inodes")
    for (parent, name), ino in zip(names, record.leads_to, strict=True):
        check_name(name)
        dentry = namespace.find(state, record.command.volume, parent, name)
        there = 0 if dentry is None else dentry.ino
        if there != ino:
            raise FsError(errno.ESTALE, f"a name in directory {parent} leads to inode {there}, not {ino}")


def _check_held(state: State, entry: c.Entry, record: c.DecidedRecord) -> None:
    """Raises FsError for a record of a sharing session that touches what it does not hold, or that no lease covers."""
    command = record.command
    number = command.volume
    if _is_the_leaders(state, command, record.leads_to):
        raise FsError(errno.EINVAL, f"{type(command).__name__} is no record where others share the volume")
    for ino in record_checks.inodes_of(record):
        if ino == record.ino or state.inode(number, ino) is None:
            continue
        holder = write_leases.holder_of(state, number, ino)
        if holder != entry.session:
            raise FsError(errno.ENOLCK, f"session {entry.session} does not hold inode {ino}, session {holder} does (0: none)")


def _is_the_leaders(state: State, command: c.DelegatedCommand, leads_to: list[int]) -> bool:
    if isinstance(command, c.SetAttr):
        return bool(command.mask & c.SET_SIZE)
    if isinstance(command, c.Rename):
        if command.parent == command.new_parent:
            return False
        moved = (state.inode(command.volume, ino) for ino in leads_to if ino)
        return any(row is not None and stat.S_ISDIR(row.mode) for row in moved)
    return isinstance(command, (c.Fallocate, c.SetLock))


def _check_once_an_entry(state: State, entry: c.Entry, record: c.DecidedRecord) -> None:
    """Raises RetryLater for what one entry can do to an inode only once.

    A cut through very many extents leaves a trim row under the number of the entry (filemap.py).  A second one would replace the first.
    """
    command = record.command
    if not isinstance(command, (c.Fallocate, c.SetAttr)) or (isinstance(command, c.SetAttr) and not command.mask & c.SET_SIZE):
        return
    if state.txn.get(keys.reap(keys.REAP_TRIM, command.volume, command.ino, entry.index - 1)) is not None:
        raise RetryLater(errno.EAGAIN, f"inode {command.ino} is cut once an entry")
    if isinstance(command, c.Fallocate) and command.mode != c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE:
        raise FsError(errno.EINVAL, "space is kept by an entry of its own")


def _makes(record: c.DecidedRecord) -> bool:
    """Returns True if the command makes an inode, where its names lead to what the record says."""
    command = record.command
    if isinstance(command, c.Rename):
        source, target = record.leads_to
        return bool(command.flags & c.RENAME_WHITEOUT) and source != target
    return isinstance(command, c.Tmpfile) or (isinstance(command, c.Create) and not record.leads_to[0])
