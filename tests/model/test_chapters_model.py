"""Random changes, snapshots and deletions of them over the rows of one volume, beside a plain copy for each snapshot.

After every step each live snapshot shows its copy, by key and by range; all that is kept is seen by a live snapshot, lies on its shelf and
is counted there; the reverse rows are those of the extents of the head and of those that are kept.  When all snapshots are gone nothing is
left of them.  Variants with one rule taken out have to fail.
"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from awsomefsd.meta.state import chapters, keys, rows
from awsomefsd.meta.state.chapters import BEFORE_ALL, Chapter
from awsomefsd.meta.state.row_codecs import CODEC_OF
from awsomefsd.meta.state.txn import Txn
from tests.rigs.memory_txn import MemTxn

VOLUME = 3
NAMES = (b"a", b"a\x01", b"ab", b"b")  # one begins another, and one goes on with the smallest byte that a name may have
OFFSETS = (0, 4096, 8192)

KEYS = (
    *(keys.inode(VOLUME, ino) for ino in (1, 2)),
    *(keys.dentry(VOLUME, parent, name) for parent in (1, 2) for name in NAMES),
    *(keys.cookie(VOLUME, 1, number) for number in (16, 17)),
    *(keys.extent(VOLUME, ino, offset) for ino in (1, 2) for offset in OFFSETS),
    keys.inline(VOLUME, 2),
    *(keys.xattr(VOLUME, 1, name) for name in NAMES),
)
RANGES = (
    *(keys.kind_range(VOLUME, kind) for kind in keys.VERSIONED),
    keys.extents_range(VOLUME, 1),
    keys.xattrs_range(VOLUME, 1),
    keys.cookies_after(VOLUME, 1, 16),
    (keys.dentry(VOLUME, 1, b"a") + b"\0", keys.dentry(VOLUME, 2, b"ab")),
    (keys.extent(VOLUME, 1, 4096), keys.extent(VOLUME, 2, 4096)),
)


def row_of(key: bytes, number: int) -> Any:
    """Another value for each number.  Extents of an even number have a place, the others are unwritten."""
    made: dict[int, Callable[[], Any]] = {
        keys.INODE: lambda: rows.InodeRow(stat.S_IFREG, 1, 0, 0, 0, number, *[0] * 7),
        keys.DENTRY: lambda: rows.DentryRow(number, stat.S_IFREG, 16, 1, 1),
        keys.COOKIE: lambda: rows.CookieRow(number, stat.S_IFREG, b"a"),
        keys.EXTENT: lambda: rows.ExtentRow(number % 4096 + 1, (number + 1) % 2, 1, 0, number, 0, 0, number),
        keys.INLINE: lambda: rows.InlineRow(b"%d" % number),
        keys.XATTR: lambda: rows.XattrRow(b"%d" % number),
    }
    return made[keys.kind_of(key)[2]]()


def reverse_of(key: bytes, row: Any) -> bytes:
    """The key of the reverse row of an extent with a place in the head; b"" of other rows."""
    if not isinstance(row, rows.ExtentRow) or not row.segment:
        return b""
    return keys.reverse(row.segment, row.frame_offset, VOLUME, keys.first_u64(key), keys.last_u64(key))


def head_row(txn: Txn, key: bytes) -> Any:
    raw = txn.get(key)
    return None if raw is None else CODEC_OF[keys.kind_of(key)[2]].loads(raw)


class Chapters(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.txn = MemTxn()
        self.now = self.number = 0
        self.copies: dict[int, dict[bytes, Any]] = {}  # snapshot -> what it has to show

    def chapter(self) -> Chapter:
        return Chapter(self.now, max(self.copies, default=0))

    # --- steps ----------------------------------------------------------------------------------------------------------
    @rule(key=st.sampled_from(KEYS))
    def do_write(self, key: bytes) -> None:
        self.number += 1
        row, old = row_of(key, self.number), head_row(self.txn, key)
        chapters.keep(self.txn, self.chapter(), key, self.now)
        row.chapter = self.now
        self.txn.put(key, CODEC_OF[keys.kind_of(key)[2]].dumps(row))
        self._follow(key, old, row)

    @rule(key=st.sampled_from(KEYS))
    def do_remove(self, key: bytes) -> None:
        old = head_row(self.txn, key)
        chapters.keep(self.txn, self.chapter(), key, self.now)
        self.txn.delete(key)
        self._follow(key, old, None)

    def _follow(self, key: bytes, old: Any, row: Any) -> None:
        """Does what the caller does: the reverse rows of the head are its."""
        if old is not None and (reverse := reverse_of(key, old)):
            self.txn.delete(reverse)
        if row is not None and (reverse := reverse_of(key, row)):
            self.txn.put(reverse, rows.REVERSE.dumps(rows.ReverseRow(row.incarnation)))

    @rule()
    def do_snapshot(self) -> None:
        at = max(self.now, 1)
        self.copies[at] = {key: row for key in KEYS if (row := head_row(self.txn, key)) is not None}
        self.now = at + 1

    @precondition(lambda self: self.copies)
    @rule(data=st.data(), count=st.integers(1, 3))
    def do_delete(self, data: st.DataObject, count: int) -> None:
        at = data.draw(st.sampled_from(sorted(self.copies)))
        self.drop(at, count)

    def drop(self, at: int, count: int) -> None:
        del self.copies[at]
        below = max((other for other in self.copies if other < at), default=BEFORE_ALL)
        above = min((other for other in self.copies if other > at), default=self.now)
        told = sum(shelf.rows for _, _, shelf in chapters.shelves(self.txn, VOLUME, below, at, above))
        freed = 0
        while len(found := chapters.clear(self.txn, VOLUME, below, at, above, count)) == count:
            freed += len(found)
        assert freed + len(found) == told, "what deletion would free is not what it has freed"

    # --- what always holds ----------------------------------------------------------------------------------------------
    @invariant()
    def each_snapshot_shows_its_copy(self) -> None:
        for at, copy in self.copies.items():
            assert {key: row for key in KEYS if (row := chapters.value(self.txn, key, at)) is not None} == copy
            for start, end in RANGES:
                wanted = [(key, copy[key]) for key in sorted(copy) if start <= key < end]
                assert list(chapters.values(self.txn, start, end, at)) == wanted

    @invariant()
    def what_is_kept_is_seen_and_counted(self) -> None:
        wanted, counts, sizes = set(), Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for kind in keys.VERSIONED:
            for place, raw in self.txn.scan(*keys.kind_range(VOLUME, kind + keys.HISTORY)):
                key, until = keys.history_of(place)
                row = CODEC_OF[kind].loads(raw)
                assert any(row.chapter <= at < until for at in self.copies), f"no snapshot sees {key.hex()} of [{row.chapter}, {until})"
                wanted.add(keys.kept(key, until, row.chapter))
                counts[until, row.chapter] += 1
                if kind == keys.EXTENT and row.segment:
                    sizes[until, row.chapter] += row.length
                elif kind == keys.INLINE:
                    sizes[until, row.chapter] += len(row.data)
        markers = {key for key, _ in self.txn.scan(*keys.kind_range(VOLUME, keys.KEPT))}
        assert markers == wanted
        shelves = {keys.shelf_of(key): rows.SHELF.loads(raw) for key, raw in self.txn.scan(*keys.kind_range(VOLUME, keys.SHELF))}
        assert shelves == {place: rows.ShelfRow(counts[place], sizes[place]) for place in counts}

    @invariant()
    def places_lead_to_extents(self) -> None:
        wanted = set()
        for key, raw in self.txn.scan(*keys.kind_range(VOLUME, keys.EXTENT)):
            wanted.add(reverse_of(key, rows.EXTENT.loads(raw)))
        for place, raw in self.txn.scan(*keys.kind_range(VOLUME, keys.EXTENT + keys.HISTORY)):
            key, until = keys.history_of(place)
            if reverse := reverse_of(key, rows.EXTENT.loads(raw)):
                wanted.add(reverse + until.to_bytes(4, "big"))
        assert {key for key, _ in self.txn.scan(*keys.kind_range(0, keys.REVERSE))} == wanted - {b""}

    def teardown(self) -> None:
        for at in sorted(self.copies, key=lambda at: hash((at, self.number))):
            self.drop(at, 2)
        low, high = keys.kind_range(VOLUME, keys.INODE + keys.HISTORY)[0], keys.kind_range(VOLUME, keys.SHELF)[1]
        assert list(self.txn.scan(low, high)) == [], "something is left of snapshots that are gone"


MODEL = settings(
    max_examples=150, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)  # fmt: skip
TestChapters = Chapters.TestCase
TestChapters.settings = MODEL


# --- the same with one rule taken out -------------------------------------------------------------------------------------
def _keep_all(real: Callable[..., bool]) -> Callable[..., bool]:
    return lambda txn, chapter, key, until: real(txn, Chapter(chapter.now, chapter.now - 1) if chapter.newest else chapter, key, until)


def _value_of_any_chapter(txn: Txn, key: bytes, at: int) -> Any:
    found = next(iter(txn.scan(keys.history(key, at + 1), keys.history(key, 1 << 31))), None)
    raw = found[1] if found is not None else txn.get(key)
    return None if raw is None else CODEC_OF[keys.kind_of(key)[2]].loads(raw)


def _cleared_to_the_next(real: Callable[..., Any]) -> Callable[..., Any]:
    """Only what was kept until the chapter behind the snapshot, as if nothing were kept over several."""
    return lambda txn, volume, below, at, above: real(txn, volume, below, at, min(above, at + 1))


VARIANTS: dict[str, list[tuple[str, Callable[[Any], Any]]]] = {
    "a change keeps nothing": [("keep", lambda real: lambda txn, chapter, key, until: False)],
    "a name is not kept": [
        ("keep", lambda real: lambda txn, chapter, key, until: keys.kind_of(key)[2] != keys.DENTRY and real(txn, chapter, key, until)),
    ],
    "what no snapshot sees is kept": [("keep", _keep_all)],
    "a snapshot sees what is younger": [("value", lambda real: _value_of_any_chapter)],
    "a snapshot sees what ended with it": [("value", lambda real: lambda txn, key, at: real(txn, key, at - 1))],
    "a range begins in the middle of history": [("_kept_in", lambda real: lambda txn, start, end, at: real(txn, start, end, at + 1))],
    "a range leaves history out": [("_kept_in", lambda real: lambda txn, start, end, at: iter(()))],
    "deletion frees what an earlier snapshot sees": [
        ("shelves", lambda real: lambda txn, volume, below, at, above: real(txn, volume, BEFORE_ALL, at, above)),
    ],
    "deletion frees what a later snapshot sees": [
        ("shelves", lambda real: lambda txn, volume, below, at, above: real(txn, volume, below, at, 1 << 31)),
    ],
    "deletion leaves what was kept for longer": [("shelves", _cleared_to_the_next)],
    "a kept extent leaves its place to the head": [("_reverse", lambda real: lambda key, row, until: b"")],
    "a shelf counts what has left it": [
        ("_count", lambda real: lambda txn, key, until, row, step: real(txn, key, until, row, step) if step > 0 else None),
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_a_rule_that_is_taken_out_is_found(name: str) -> None:
    looking = settings(MODEL, max_examples=400, database=None, phases=[Phase.generate], derandomize=True, print_blob=False)
    patches = [mock.patch.object(chapters, attribute, broken(getattr(chapters, attribute))) for attribute, broken in VARIANTS[name]]
    for patch in patches:
        patch.start()
    try:
        with pytest.raises(AssertionError):
            run_state_machine_as_test(Chapters, settings=looking)
    finally:
        mock.patch.stopall()
