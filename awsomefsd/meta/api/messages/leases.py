"""Inode leases: what a worker asks and reports, and what the leader answers."""

from __future__ import annotations

from awsomefsd.meta.api.messages.base import Message


class GetInherited(Message, tag=140):
    """Asked by a worker that has just taken its session over.  Answered by Inodes, on which its predecessor held leases.

    ENODATA where the leader began since, and knows none.
    """

    session: int
    epoch: int


class ReturnLeases(Message, tag=150):
    """Write leases, by inode and epoch, under which nothing is buffered: from now on the session only reads under them.

    Of a session that asks for none of them again before it has said this, on the same connections.
    """

    session: int
    epoch: int
    leases: list[tuple[int, int]]


class GetLease(Message, tag=50):
    """A lease on an inode (a directory: with all its names) for a session that shares its volume.  Leased, when nothing conflicts,
    or Contested at once.

    `known` as in AcquireLease.  `unless_written`: Contested, and nothing is recalled, where another session has the write lease.
    """

    session: int
    epoch: int
    volume: int
    ino: int
    mode: int  # LEASE_READ or LEASE_WRITE
    known: int = 0
    unless_written: bool = False


class ReportLeases(Message, tag=51):
    """Tells a leader of a new term the read leases of the session, which honours nothing older than this term any more."""

    session: int
    epoch: int
    term: int
    inos: list[int]


class AwaitRecalls(Message, tag=52):
    """Answered by Recalls with all open recalls of the session once there is one with a sequence > `after`."""

    session: int
    epoch: int
    after: int


class AnswerRecall(Message, tag=53):
    """Says that a recall is done: buffered data is committed, caches are dropped.  Nothing older than it is honoured any more.

    `shown` answers a look (a recall with LEASE_WRITE as the mode that may stay), which ends nothing: size, stored bytes, mtime and ctime
    in ns, as this mount shows them.  None: it does not say, as builds that know no looks; then the lease is recalled.
    """

    session: int
    epoch: int
    term: int
    sequence: int
    shown: tuple[int, int, int, int] | None = None


class ExtendRecall(Message, tag=54):
    """Still at it: `done` counts what was committed for it so far, and only a growing number moves the deadline."""

    session: int
    epoch: int
    term: int
    sequence: int
    done: int


class ReleaseLeases(Message, tag=55):
    """Leases that are not needed any more; not those granted with a sequence > `sequence`, which the session has not seen yet."""

    session: int
    epoch: int
    term: int
    sequence: int
    inos: list[int]


class Leased(Message, tag=40):
    """A grant, number `sequence` of those that the leader of `term` gave the session.  `epoch`: of a write lease, for commits.

    `changes` as in LeaseRow; `changed_by_others`: it differs from what the session said it knew.
    """

    term: int
    sequence: int
    mode: int
    epoch: int
    changes: int
    changed_by_others: bool


class Recalls(Message, tag=41):
    """(sequence, inode, mode that may stay) of the open recalls, in order.  LEASE_WRITE: a look, see AnswerRecall."""

    term: int
    recalls: list[tuple[int, int, int]]


class Contested(Message, tag=144):
    """Answers GetLease: others use the inode too much for a lease, at least for `pause_ms`.  Ask for everything, write through.

    0 ms: another session writes it, and the question was `unless_written`.
    """

    pause_ms: int
