"""The rows of what a mount holds: as the leader told them, and above them what the mount has decided and the leader has not applied yet.

Three layers, read from the top: the changes of the *running* record, kept apart until it ends, so that nothing of an attempt stays; the
*changes* of records that are not applied yet, the newest of each row, under the sequence of its record; and the *base*, rows that were
fetched, and changes that have been applied since.  A row that is known to be absent is known too, as None.  A row that is nowhere raises
Missing, and is fetched.

Whoever reads only under its lease reads the truth: the leader's rows change by this mount's records alone, and a change hides what the
leader said of that row before or after.  One case is left, an answer that was on its way while records were applied: the answer may be
older than they are.  So each question is told which rows were applied or forgotten since it was asked, and does not bring those.

Rows that records not applied yet have changed stay; of the base the oldest go beyond a bound.  Evicting loses speed, never truth.

A *group* is the rows of one kind and one inode (all names in a directory, all attributes of a file).  A group is *whole* when a row that
is not here does not exist: those of an inode made here, those that the inode's row says are empty, and those that were fetched to the end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterable, Iterator

from awsomefsd.meta.state import governed, keys, rows

_GROUP = governed.GROUP_BYTES
_KIND_AT = keys.PREFIX_BYTES - 1
_OF_INODE = (keys.DENTRY, keys.COOKIE, keys.XATTR)  # kinds of groups beside the inode's own row


ROWS_MIN = 4_096  # of the base: far more than one command reads
GONE_MAX = 64  # keys of a group that are gone and stay in its order, beside as many as there are


class Missing(Exception):
    """Rows are not here.  `keys`: ask for these; `group`: and, unless it is b"", for all rows of that group."""

    def __init__(self, wanted: Iterable[bytes], group: bytes = b"") -> None:
        self.keys: tuple[bytes, ...] = tuple(wanted)
        self.group = group
        super().__init__(f"{[key.hex() for key in self.keys]} {group.hex()}")

    def inodes(self) -> set[int]:
        """Returns the inodes whose rows these are."""
        return {int.from_bytes(_inode_of(key), "big") for key in (*self.keys, self.group) if key}


class Question:
    """A question for rows that is under way: what was changed or forgotten since it was asked, and so may be newer than its answer."""

    __slots__ = ("applied", "forgotten", "void")

    def __init__(self) -> None:
        self.applied: set[bytes] = set()  # keys, amended ones too
        self.forgotten: set[bytes] = set()  # inodes
        self.void = False  # everything was forgotten

    def is_older(self, key: bytes) -> bool:
        """Returns True if the answer's row may be older than what has happened since."""
        return self.void or key in self.applied or self.was_forgotten(key)

    def was_forgotten(self, key: bytes) -> bool:
        """Returns True if the inode of the key, which may be a group, was forgotten since."""
        return self.void or _inode_of(key) in self.forgotten


class _GroupKeys(set[bytes]):
    """The keys of a group's rows that are here; `between` gives them in order.

    The order is made when it is first asked for, and then kept: a listing asks for page after page of a directory that may change
    meanwhile.  A new cookie is behind all others.  What is gone stays in the order until it is most of it.
    """

    __slots__ = ("_order",)

    def __init__(self, keys_: Iterable[bytes] = ()) -> None:
        super().__init__(keys_)
        self._order: list[bytes] | None = None

    def insert(self, key: bytes) -> None:
        order = self._order
        if order is not None and key not in self:
            if (not order or order[-1] < key) and len(order) <= 2 * len(self) + GONE_MAX:
                order.append(key)
            else:
                self._order = None
        self.add(key)

    def between(self, start: bytes, end: bytes) -> Iterator[bytes]:
        """Yields the keys from `start` to below `end`."""
        order = self._order
        if order is None:
            order = self._order = sorted(self)
        elif len(order) > 2 * len(self) + GONE_MAX:
            order = self._order = [key for key in order if key in self]
        at = bisect_left(order, start)
        while at < len(order) and order[at] < end:
            if order[at] in self:
                yield order[at]
            at += 1


def _amended(raw: bytes, amended: Callable[[rows.InodeRow], None]) -> bytes:
    row: rows.InodeRow = rows.INODE.loads(raw)
    amended(row)
    return rows.INODE.dumps(row)


def _inode_of(key: bytes) -> bytes:
    return key[_KIND_AT + 1 : _GROUP]


class OverlayState:
    """Implements Txn over the rows of one volume.  Used under the mount's lock, by one thread at a time; nothing blocks.

    `own`: rows of the cluster that the rules look at (held.own_rows).  `rows_max`: rows of the base; far more than a command reads, or what
    it fetched first goes before it has the rest.
    """

    def __init__(self, volume: int, own: dict[bytes, bytes], rows_max: int) -> None:
        self._own = own
        self._rows_bound = self._rows_max = rows_max
        self._prefixes = frozenset(keys.kind_range(volume, kind)[0] for kind in governed.KINDS)
        self._inode_prefix = keys.kind_range(volume, keys.INODE)[0]
        self._group_prefixes = tuple(keys.kind_range(volume, kind)[0] for kind in _OF_INODE)
        self.learned = 0  # counts what has changed the base other than by records: who remembers decoded rows drops them
        self._questions: list[Question] = []
        self._running: dict[bytes, bytes | None] = {}
        self._changes: dict[bytes, tuple[int, bytes | None]] = {}
        self._records: deque[tuple[int, list[bytes]]] = deque()  # sequence, keys; not applied
        self._newest: dict[bytes, int] = {}  # inode -> newest of these that changed a row of it
        self._base: dict[bytes, bytes | None] = {}
        self._groups: dict[bytes, _GroupKeys] = {}  # group -> keys of its rows in base and changes
        self._whole: set[bytes] = set()

    def _groups_of(self, ino: bytes) -> list[bytes]:
        return [prefix + ino for prefix in self._group_prefixes]

    # --- Txn ------------------------------------------------------------------------------------------------------------
    def get(self, key: bytes) -> bytes | None:
        """Raises Missing."""
        running = self._running
        if key in running:
            return running[key]
        change = self._changes.get(key)
        if change is not None:
            return change[1]
        base = self._base
        if key in base:
            return base[key]
        if key in self._own:
            return self._own[key]
        assert key[: keys.PREFIX_BYTES] in self._prefixes, f"a rule went around the ledger: {key.hex()}"
        if key[:_GROUP] in self._whole:
            return None
        raise Missing((key,))

    def put(self, key: bytes, value: bytes) -> None:
        assert key[: keys.PREFIX_BYTES] in self._prefixes, f"a rule went around the ledger: {key.hex()}"
        self._running[key] = value

    def delete(self, key: bytes) -> bool:
        """Raises Missing.  The row by which readdir finds a name is deleted unseen: it is there if the name is, and no rule asks."""
        found = key[_KIND_AT] == keys.COOKIE or self.get(key) is not None
        if found:
            assert key[: keys.PREFIX_BYTES] in self._prefixes, f"a rule went around the ledger: {key.hex()}"
            self._running[key] = None
        return found

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Scans within one group.  Raises Missing with the group if it is not whole.  Of the cluster's rows there are none to scan."""
        if start[: keys.PREFIX_BYTES] not in self._prefixes:
            assert keys.kind_of(start)[1] == 0, f"a rule went around the ledger: {start.hex()}"
            return
        group = start[:_GROUP]
        assert len(group) == _GROUP, "a scan over several inodes"
        if group not in self._whole:
            raise Missing((), group)
        held = self._groups.get(group) or _GroupKeys()
        found: Iterable[bytes] = held.between(start, end)
        if running := [key for key in self._running if start <= key < end and key not in held]:
            found = sorted([*found, *running])
        for key in found:
            value = self.get(key)
            if value is not None:
                yield key, value

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        """Raises Missing, as `scan`."""
        return max(self.scan(start, end), default=None)

    # --- records --------------------------------------------------------------------------------------------------------
    @property
    def changed(self) -> bool:
        """True if the running record has changed a row; one that has not needs no place in the log."""
        return bool(self._running)

    def keep(self, sequence: int, made: int = 0) -> None:
        """Ends the running record: its changes are seen from now on.  `sequence`: above every earlier one; `made`: the inode it made."""
        assert not self._records or self._records[-1][0] < sequence, "records are kept in order"
        running, changes, newest, groups = self._running, self._changes, self._newest, self._groups
        for key, value in running.items():
            changes[key] = sequence, value
            newest[key[_KIND_AT + 1 : _GROUP]] = sequence
            if key[_KIND_AT] != keys.INODE:
                group = key[:_GROUP]
                if group in groups:
                    groups[group].insert(key)
                else:
                    groups[group] = _GroupKeys((key,))
        if made:
            self._whole.update(self._groups_of(made.to_bytes(8, "big")))
        self._records.append((sequence, list(running)))
        self._running = {}

    def abandon(self) -> None:
        """Ends the running record as if it had not been."""
        self._running.clear()

    def applied(self, upto: int) -> None:
        """The leader has applied all records up to that sequence: their changes become base."""
        records, changes = self._records, self._changes
        ended: list[bytes] = []
        while records and records[0][0] <= upto:
            sequence, touched = records.popleft()
            for question in self._questions:
                question.applied.update(touched)
            for key in touched:
                last, value = changes[key]
                if last != sequence:
                    continue  # a later record has changed it again
                del changes[key]
                self._base.pop(key, None)
                if value is not None or key[:_GROUP] not in self._whole:
                    self._base[key] = value  # at the end: it is young
                else:
                    self._unlist(key)
                if self._newest.get(_inode_of(key)) == sequence:
                    del self._newest[_inode_of(key)]
                if value is None and key[_KIND_AT] == keys.INODE:
                    ended.append(_inode_of(key))
        for ino in ended:
            self._forget(ino)  # its number does not come again, and sessions that have it open may keep it at the leader
        self._trim()

    def newest_of(self, ino: int) -> int:
        """Returns the sequence of the newest record, not applied yet, that changed a row of the inode; 0 if there is none."""
        return self._newest.get(ino.to_bytes(8, "big"), 0)

    @property
    def newest(self) -> int:
        """The sequence of the newest record that is not applied yet; 0 if there is none."""
        return self._records[-1][0] if self._records else 0

    @property
    def unapplied(self) -> int:
        """The number of records that are not applied yet."""
        return len(self._records)

    # --- base -----------------------------------------------------------------------------------------------------------
    def known_inode(self, ino: int) -> bytes | None:
        """Returns the newest row of an inode that is known and there."""
        key = self._inode_prefix + ino.to_bytes(8, "big")
        change = self._changes.get(key)
        return change[1] if change is not None else self._base.get(key)

    def inode_key(self, ino: int) -> bytes:
        return self._inode_prefix + ino.to_bytes(8, "big")

    def amend(self, ino: int, amended: Callable[[rows.InodeRow], None]) -> None:
        """Changes an inode as the leader has changed it beside all records: in each layer, so that it stays when they go."""
        key = self._inode_prefix + ino.to_bytes(8, "big")
        change, base = self._changes.get(key), self._base.get(key)
        if change is not None and change[1] is not None:
            self._changes[key] = change[0], _amended(change[1], amended)
        if base is not None:
            self._base[key] = _amended(base, amended)
        for question in self._questions:
            question.applied.add(key)
        self.learned += 1

    def knows(self, key: bytes) -> bool:
        """Returns True if the row, or that there is none, is known."""
        return key in self._changes or key in self._base or key[:_GROUP] in self._whole

    def ask(self) -> Question:
        """Call it before rows are asked for; every question ends with `learn` or `give_up`."""
        question = Question()
        self._questions.append(question)
        return question

    def give_up(self, question: Question) -> None:
        """The question has no answer."""
        self._questions.remove(question)

    def was_touched(self, question: Question, ino: int) -> bool:
        """Returns True if a record, or the leader beside all records, has changed a row of the inode since the question was asked."""
        raw = ino.to_bytes(8, "big")
        return question.void or raw in self._newest or any(_inode_of(key) == raw for key in question.applied)

    def learn(self, question: Question, found: Iterable[tuple[bytes, bytes | None]], whole: bytes = b"") -> None:
        """Takes up rows, None for an absent one, as the leader tells them.  `whole`: these are all rows of that group."""
        self._questions.remove(question)
        self.learned += 1
        young = 0
        for key, value in found:
            assert key[: keys.PREFIX_BYTES] in self._prefixes, f"a row that nobody asked for: {key.hex()}"
            if question.is_older(key):
                continue
            self._base.pop(key, None)
            self._base[key] = value
            young += 1
            if key[_KIND_AT] != keys.INODE:
                self._groups.setdefault(key[:_GROUP], _GroupKeys()).insert(key)
            elif value is not None:
                self._learn_empty(_inode_of(key), rows.INODE.loads(value))
        if whole and not question.was_forgotten(whole):
            applied = (key for key in question.applied if key.startswith(whole))
            if all(key in self._base or key in self._changes for key in applied):
                self._whole.add(whole)
        self._trim(young)

    def _learn_empty(self, ino: bytes, row: rows.InodeRow) -> None:
        """An inode's row says which of its groups are empty at the leader; what was decided since is in the changes."""
        names, cookies, xattrs = self._groups_of(ino)
        if not row.xattrs:
            self._whole.add(xattrs)
        if not row.entries:
            self._whole.update((names, cookies))

    def forget(self, ino: int) -> None:
        """Forgets the rows of an inode: a lease has gone, or the leader changes it otherwise.  All records that touch it are applied."""
        raw = ino.to_bytes(8, "big")
        assert raw not in self._newest, f"inode {ino} has records that are not applied"
        self._forget(raw)

    def _forget(self, ino: bytes) -> None:
        self.learned += 1
        for question in self._questions:
            question.forgotten.add(ino)
        self._base.pop(self._inode_prefix + ino, None)
        for group in self._groups_of(ino):
            self._whole.discard(group)
            for key in self._groups.pop(group, ()):
                self._base.pop(key, None)

    def forget_nameless(self) -> None:
        """Forgets inodes without names, which may have ended with a session; not those of records that are not applied."""
        inodes = [(key, value) for key, value in self._base.items() if key[_KIND_AT] == keys.INODE and value is not None]
        for key, value in inodes:
            ino = _inode_of(key)
            if ino not in self._newest and not rows.INODE.loads(value).nlink:
                self._forget(ino)

    def clear(self) -> None:
        """Forgets everything, records too: what the mount had decided does not count any more."""
        self.learned += 1
        self._running.clear()
        self._changes.clear()
        self._records.clear()
        self._newest.clear()
        self._base.clear()
        self._groups.clear()
        self._whole.clear()
        for question in self._questions:
            question.void = True

    def bound(self, share: float) -> None:
        """So much of the bound of the base holds from now on; what is over it goes with what comes next."""
        self._rows_max = max(int(self._rows_bound * share), ROWS_MIN)

    @property
    def rows_max(self) -> int:
        """So many rows of the base are remembered now."""
        return self._rows_max

    def _trim(self, young: int = 0) -> None:
        """Evicts what is over the bound, but not the `young` newest rows: whoever has asked for them is about to read them."""
        over = min(len(self._base) - self._rows_max, len(self._base) - young)
        if over > 0:
            self.evict([key for key, _ in zip(self._base, range(over), strict=False)])

    def evict(self, evicted: Iterable[bytes]) -> None:
        """Drops rows of the base.  What records not applied yet have changed stays known by their changes."""
        for key in evicted:
            value = self._base.pop(key)
            if key in self._changes:
                continue
            if key[_KIND_AT] == keys.INODE:  # whoever fetches it again learns from it which of its groups are empty
                self._whole.difference_update([group for group in self._groups_of(_inode_of(key)) if group not in self._groups])
                continue
            if value is not None:
                self._whole.discard(key[:_GROUP])
            self._unlist(key)

    def _unlist(self, key: bytes) -> None:
        """Forgets that there is a row of a group to look for.  A group of which nothing is known is not remembered as whole."""
        group, ino = key[:_GROUP], self._inode_prefix + _inode_of(key)
        held = self._groups.get(group)
        if held is None:
            return
        held.discard(key)
        if not held:
            del self._groups[group]
            if ino not in self._base and ino not in self._changes:
                self._whole.discard(group)
