"""The values that snapshots see are kept at their first change, and freed by the shelf.

A *chapter* is the time between two snapshots of a volume.  A versioned row says in which one its value was written; a snapshot has the
number of the chapter that it ends.  The head stays where it is.  When a value that a live snapshot sees is changed or deleted, it goes into
history under its own key and `until`, the present chapter; what is written then has the present chapter, so later changes in it keep
nothing.  A snapshot s sees a value exactly if chapter <= s < until, and a value of the head has no end.

A kept value lies on the *shelf* (until, chapter): all on one shelf are seen by the same snapshots, so a shelf is cleared with the last of
them, in whatever order snapshots go.  Markers say what lies on it, and its row counts.  Nothing is moved to a neighbour or looked at twice.

Work that comes late is as of when it was decided: Reap, and whoever meets a row before it, says in which chapter the value ended, and the
value is kept until then if a snapshot between is alive (`until` below).  So a shelf is what was seen, however long Reap takes.

An extent takes its reverse row along, so that whoever has a place finds the extents that use it, kept ones too.  No counter is changed
here: an extent that was kept still holds its bytes, and who clears a shelf is told what was on it.

history.py calls these functions for volumes that have a chapter; no command makes a snapshot yet.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.txn import Txn

BEFORE_ALL = -1  # below every chapter: there is no snapshot before

_CODECS = {
    keys.INODE: rows.INODE, keys.DENTRY: rows.DENTRY, keys.COOKIE: rows.COOKIE,
    keys.EXTENT: rows.EXTENT, keys.INLINE: rows.INLINE, keys.XATTR: rows.XATTR,
}  # fmt: skip
_UNTIL_MAX = (1 << 32) - 1


class Chapter(NamedTuple):
    """Where a volume is: its present chapter, and its newest live snapshot; 0 if there is none, since they are numbered from 1."""

    now: int
    newest: int


class KeptValue(NamedTuple):
    """A value that was kept: the key that it had in the head, and its row."""

    key: bytes
    row: Any


def _row(key: bytes, raw: bytes) -> Any:
    return _CODECS[keys.kind_of(key)[2]].loads(raw)


# --- changing -----------------------------------------------------------------------------------------------------------
def keep(txn: Txn, chapter: Chapter, key: bytes, until: int) -> bool:
    """Keeps the value of the head, which ended in chapter `until`, if a snapshot sees it.  Returns True if it did.

    The caller writes the head's, as of the present chapter, or deletes it.
    """
    assert not chapter.newest or chapter.newest < chapter.now, "the newest snapshot ended an earlier chapter"
    raw = txn.get(key) if chapter.newest else None
    if raw is None:
        return False
    row = _row(key, raw)
    if not _is_seen(txn, chapter, key, row.chapter, until):
        return False
    put_kept(txn, key, until, row, raw)
    if reverse := _reverse(key, row, 0):
        assert txn.delete(reverse), "an extent without its reverse row"
    return True


def begin_inode(txn: Txn, chapter: Chapter, key: bytes, row: Any) -> bool:
    """Makes the row of an inode that was changed one of the present chapter, and keeps what is stored if a snapshot sees it.

    Without a name it stays of the chapter in which it lost its name: what is done to it since, no snapshot sees.  Then it returns False.
    """
    if row.chapter == chapter.now:
        return True
    raw = txn.get(key)
    if raw is not None:
        named = _row(key, raw).nlink
        if not named and not row.nlink:
            return False
        if named:
            keep(txn, chapter, key, chapter.now)
    row.chapter = chapter.now
    return True


def _is_seen(txn: Txn, chapter: Chapter, key: bytes, first: int, until: int) -> bool:
    """Returns True if a live snapshot is in [first, until)."""
    if first >= until or first > chapter.newest:
        return False
    if until > chapter.newest:
        return True
    volume = keys.kind_of(key)[1]
    return txn.last(keys.snapshot(volume, first), keys.snapshot(volume, until)) is not None


def put_kept(txn: Txn, key: bytes, until: int, row: Any, raw: bytes) -> None:
    """Puts a value into history, with its marker, on its shelf, with its reverse row.  `raw`: the row as it is stored."""
    txn.put(keys.history(key, until), raw)
    txn.put(keys.kept(key, until, row.chapter), rows.MARK)
    _count(txn, key, until, row, 1)
    if reverse := _reverse(key, row, until):
        txn.put(reverse, rows.REVERSE.dumps(rows.ReverseRow(row.incarnation)))


def _reverse(key: bytes, row: Any, until: int) -> bytes:
    """Returns the key of the reverse row of an extent (`until` 0: in the head); b"" of what has none."""
    _, volume, kind = keys.kind_of(key)
    if kind != keys.EXTENT or not row.segment:
        return b""
    return keys.reverse_until(keys.reverse(row.segment, row.frame_offset, volume, keys.first_u64(key), keys.last_u64(key)), until)


def _bytes(row: Any) -> int:
    if isinstance(row, rows.ExtentRow):
        return row.length if row.segment else 0
    return len(row.data) if isinstance(row, rows.InlineRow) else 0


def _count(txn: Txn, key: bytes, until: int, row: Any, step: int) -> None:
    """Counts one value more or less on its shelf; a shelf with none has no row."""
    place = keys.shelf(keys.kind_of(key)[1], until, row.chapter)
    raw = txn.get(place)
    shelf: rows.ShelfRow = rows.SHELF.loads(raw) if raw is not None else rows.ShelfRow(0, 0)
    shelf.rows += step
    shelf.bytes += step * _bytes(row)
    assert shelf.rows >= 0 and shelf.bytes >= 0, "a shelf counts less than nothing"
    if shelf.rows:
        txn.put(place, rows.SHELF.dumps(shelf))
    else:
        txn.delete(place)


# --- reading ------------------------------------------------------------------------------------------------------------
def value(txn: Txn, key: bytes, at: int) -> Any:
    """Returns the row that snapshot `at` sees under a key, or None: two probes, however many snapshots there are.

    Of what Reap will end later it may be one that is hidden: the caller has the trims.
    """
    found = next(iter(txn.scan(keys.history(key, at + 1), keys.history(key, _UNTIL_MAX) + b"\0")), None)
    raw = found[1] if found is not None else txn.get(key)
    row = _row(key, raw) if raw is not None else None
    return row if row is not None and row.chapter <= at else None


def kept_value(txn: Txn, key: bytes, until: int) -> Any:
    """Returns the row that a key of the head had until a chapter, if it is kept; else None."""
    raw = txn.get(keys.history(key, until))
    return None if raw is None else _row(key, raw)


def values(txn: Txn, start: bytes, end: bytes, at: int) -> Iterator[tuple[bytes, Any]]:
    """Yields (key of the head, row) with start <= key < end as snapshot `at` sees them, ascending; all keys are of one kind.

    The caller changes nothing meanwhile.
    """
    heads = txn.scan(start, end)
    kept = _kept_in(txn, start, end, at)
    head, old = next(heads, None), next(kept, None)
    while head is not None or old is not None:
        if old is None or (head is not None and head[0] < old[0]):
            assert head is not None
            key, raw = head
            head = next(heads, None)
        else:
            key, raw = old
            if head is not None and head[0] == key:
                head = next(heads, None)
            old = next(kept, None)
        row = _row(key, raw)
        if row.chapter <= at:
            yield key, row


def _kept_in(txn: Txn, start: bytes, end: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """Yields (key of the head, value) of the first values in history that were kept after snapshot `at`, each key once."""
    _, volume, kind = keys.kind_of(start)
    low, high = keys.kind_range(volume, kind + keys.HISTORY)
    last = b""
    for place, raw in txn.scan(low + start[keys.PREFIX_BYTES :], high):
        key, until = keys.history_of(place)
        if key >= end:
            return
        if key < start or key == last or until <= at:
            continue  # before `start` is what has a name that begins one that `start` ends
        last = key
        yield key, raw


# --- freeing ------------------------------------------------------------------------------------------------------------
def shelves(txn: Txn, volume: int, below: int, at: int, above: int) -> Iterator[tuple[int, int, rows.ShelfRow]]:
    """Yields (until, chapter, counts) of the shelves that snapshot `at` sees and no other live one does.

    `below`, `above`: its neighbours that live; BEFORE_ALL, and the present chapter, where there is none.
    """
    place, end = keys.shelf(volume, at + 1, below + 1), keys.shelf(volume, above, at) + b"\0"
    while place < end and (found := next(iter(txn.scan(place, end)), None)) is not None:
        until, chapter = keys.shelf_of(found[0])
        if chapter <= below:
            place = keys.shelf(volume, until, below + 1)
        elif chapter > at:
            place = keys.shelf(volume, until + 1, below + 1)
        else:
            yield until, chapter, rows.SHELF.loads(found[1])
            place = found[0] + b"\0"


def clear(txn: Txn, volume: int, below: int, at: int, above: int, count: int) -> list[KeptValue]:
    """Frees at most `count` of the values that only snapshot `at` sees, and returns them; fewer than `count`: there are no more.

    Their reverse rows go too.  It begins where it has ended, because what is freed is gone.
    """
    freed: list[KeptValue] = []
    for until, chapter, _ in list(islice(shelves(txn, volume, below, at, above), count)):
        markers = [key for key, _ in islice(txn.scan(*keys.kept_range(volume, until, chapter)), count - len(freed))]
        freed += [drop_kept(txn, keys.kept_of(marker)[2], until) for marker in markers]
        if len(freed) == count:
            break
    return freed


def clear_all(txn: Txn, volume: int, count: int) -> list[KeptValue]:
    """Frees at most `count` of all kept values of a volume, and returns them."""
    markers = [keys.kept_of(key) for key, _ in islice(txn.scan(*keys.kind_range(volume, keys.KEPT)), count)]
    return [drop_kept(txn, key, until) for until, _, key in markers]


def drop_kept(txn: Txn, key: bytes, until: int) -> KeptValue:
    """Takes a value out of history, with its marker, from its shelf, with its reverse row."""
    row = kept_value(txn, key, until)
    assert row is not None, "a marker of a value that is not kept"
    if reverse := _reverse(key, row, until):
        txn.delete(reverse)
    txn.delete(keys.history(key, until))
    txn.delete(keys.kept(key, until, row.chapter))
    _count(txn, key, until, row, -1)
    return KeptValue(key, row)


def live(txn: Txn, volume: int, at: int) -> tuple[int, int]:
    """Returns the live snapshots next to a number: (below, BEFORE_ALL if there is none; above, 0 if there is none)."""
    low, high = keys.snapshots_range(volume)
    below = txn.last(low, keys.snapshot(volume, at))
    above = next(iter(txn.scan(keys.snapshot(volume, at + 1), high)), None)
    return keys.last_u32(below[0]) if below else BEFORE_ALL, keys.last_u32(above[0]) if above else 0
