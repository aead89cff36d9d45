"""Random commands, snapshots and deletions of them against the real machine, beside a full copy for each snapshot.

What a snapshot shows is compared with the copy of what the head showed when it was made: names by look-up and in the order of readdir,
attributes, extended attributes and bytes, in a volume of which everything else goes on, Reap, collection and takeovers too.  After each
step fsck finds nothing wrong, history included; when all snapshots are gone nothing of them is left, and all segments come back.
Variants of the machine with one rule taken out have to fail.
"""

from __future__ import annotations

import errno
import random
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from msgspec import structs

from awsomefsd.base.rule_levels import SNAPSHOTS
from awsomefsd.base.types import SEGMENT_FREE, Extent, SegmentInfo
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import allocation, copy_range, filemap, ledger, reaping, relocation, snapshots
from awsomefsd.meta.state import chapters, extents, history, keys
from awsomefsd.meta.state.row_codecs import CODEC_OF
from awsomefsd.meta.state.rows_cache import State
from tests.model.test_machine_model import NAMES, Model, Node

Shown = dict[int, tuple[Any, ...]]  # ino -> what it shows

STEPS = ("create", "link", "unlink", "rmdir", "rename", "release", "write", "truncate", "xattr", "fallocate", "copy", "draw", "collect",
         "collect", "background", "tmpfile", "look", "reap", "takeover", "seal", "half", "rest")  # fmt: skip
USUAL = ("create", "write", "write", "truncate", "unlink", "rename", "xattr", "copy")  # of the first steps of a run


@contextmanager
def small() -> Iterator[None]:
    """Bounds so small that truncations and deletions are left to Reap, and caches that forget."""
    with ExitStack() as stack:
        for module in (filemap, allocation, copy_range):
            stack.enter_context(mock.patch.object(module, "REAP_EXTENTS_PER_ENTRY", 2))
        stack.enter_context(mock.patch.object(copy_range, "PIECES_PER_COPY_MAX", 2))
        stack.enter_context(mock.patch.object(copy_range, "SHARED_RUNS_MAX", 1 << 20))
        stack.enter_context(mock.patch.object(ledger, "SMALL_FILE_EXTENTS", 1))
        yield


class Snapshotted(Model):
    """The model of files, with copies of what its volume showed."""

    def __init__(self) -> None:
        super().__init__(0, SNAPSHOTS)
        self.shown: dict[int, Shown] = {}  # live snapshot -> copy
        self.nameless: set[int] = set()  # files that were made without a name
        self.lost: dict[int, int] = {}  # inode -> the chapter in which it lost its last name
        self.halves: list[tuple[int, SegmentInfo, Extent]] = []  # of frames, which are not visible yet

    @property
    def state(self) -> State:
        return self.drive.machine.state

    # --- further steps --------------------------------------------------------------------------------------------------
    def lose(self, ino: int, pinned: bool) -> None:
        node = self.nodes[ino]
        super().lose(ino, pinned)
        if not node.links:
            self.lost[ino] = self.state.now(self.drive.volume)

    def tmpfile(self) -> None:
        """A file without a name, which may get one."""
        reply = self.expect(c.Tmpfile(self.drive.volume, self.directory(), 0o600, 0, 0), 0)
        ino, name, parent = reply.attr.ino, self.name(), self.directory()
        self.nodes[ino] = Node(stat.S_IFREG, links=0, pinned=True)
        self.nameless.add(ino)
        if self.random.random() < 0.5:
            self.write()
        if self.random.random() < 0.7 and name not in self.nodes[parent].names:
            self.expect(c.Link(self.drive.volume, ino, parent, name), 0)
            self.nodes[parent].names[name] = ino
            self.nodes[ino].links, self.nodes[ino].pinned = 1, False

    def link(self) -> None:
        """As the model's, but for files that never had a name: those may get one, and here they get none."""
        if all(node.links for node in self.nodes.values()):
            super().link()

    def look(self) -> None:
        ino = self.random.choice(list(self.nodes))
        self.expect(c.SetAtimes(self.drive.volume, [(ino, self.drive.now)]), 0)

    def reap(self) -> None:
        self.expect(c.Reap(self.random.randint(1, 6)), 0)

    def seal(self) -> None:
        """A segment that is sealed may be collected."""
        if self.segment is not None:
            self.expect(self.drive.commit(self.segment, sealed=True), 0)
            self.segment = None

    def half(self) -> None:
        """The first half of a frame becomes visible; the second one perhaps in another chapter, and then the two are not joined."""
        ino = self.file()
        if ino is None or self.drive.ask(m.GetAttr(self.drive.volume, ino)).attr.inline:
            return
        segment, data = self.leased(), self.random.randbytes(2_000)
        whole = self.drive.frame(segment, self.random.choice([0, len(self.nodes[ino].data)]), len(data))
        self.places[(whole.segment, whole.frame_offset)] = data
        self.halves.append((ino, segment, structs.replace(whole, file_offset=whole.file_offset + 1_000, length=1_000, skip=1_000)))
        self.show(ino, segment, structs.replace(whole, length=1_000))
        if self.random.random() < 0.3:
            self.snapshot()
            self.rest()

    def rest(self) -> None:
        """The second half of a frame, if its segment still takes extents."""
        if self.halves:
            ino, segment, extent = self.halves.pop()
            if ino in self.nodes and segment is self.segment:
                self.show(ino, segment, extent)

    def show(self, ino: int, segment: SegmentInfo, extent: Extent) -> None:
        drive, node = self.drive, self.nodes[ino]
        drive.sequence += 1
        end = extent.file_offset + extent.length
        reply = self.expect(drive.commit(segment, c.InodeCommit(ino, 1, drive.sequence, end, drive.now, [extent])), 0)
        if reply.errnos == [0]:
            node.data.extend(bytes(max(0, extent.file_offset - len(node.data))))
            frame = self.places[(extent.segment, extent.frame_offset)]
            node.data[extent.file_offset : end] = frame[extent.skip : extent.skip + extent.length]

    def takeover(self) -> None:
        """Another daemon goes on with the rows: nothing may be in memory only."""
        self.drive.reload()

    # --- snapshots ------------------------------------------------------------------------------------------------------
    def snapshot(self) -> None:
        copy = self.tree(0)
        name = f"of entry {self.drive.index}"
        new = c.NewSnapshot(self.drive.volume, str(uuid.UUID(int=self.drive.index)))
        [made] = self.expect(c.CreateSnapshots(name, [new]), 0).snapshots
        assert made.snapshot not in self.shown and made.snapshot > max(self.shown, default=0)
        self.shown[made.snapshot] = copy

    def delete(self) -> None:
        number = self.random.choice(sorted(self.shown))
        del self.shown[number]
        self.expect(c.DeleteSnapshot(self.drive.volume, number), 0)

    def clearing(self) -> set[int]:
        """The deleted ones of which there may be values left."""
        found = (keys.reap_of(key) for key, _ in self.drive.txn.scan(*keys.kind_range(0, keys.REAP)))
        return {number for kind, _, number, _ in found if kind == keys.REAP_SNAPSHOT}

    def clear(self) -> None:
        """The whole queue, in which what deleted snapshots saw comes last."""
        while self.state.cluster.reaps:
            self.reap()

    def kept_is_shown(self) -> None:
        """All that is kept of a file is of one that a snapshot shows.

        But for those that were made without a name: what was written before they got one is as old as it is.
        """
        for kind in keys.VERSIONED:
            codec = CODEC_OF[kind]
            for place, raw in self.drive.txn.scan(*keys.kind_range(self.drive.volume, kind + keys.HISTORY)):
                key, until = keys.history_of(place)
                ino, chapter = keys.first_u64(key), codec.loads(raw).chapter
                seen = any(chapter <= at < until and ino in copy for at, copy in self.shown.items())
                assert seen or ino in self.nameless, f"no snapshot shows inode {ino} of chapters {chapter} to {until}"
                assert until <= self.lost.get(ino, until), f"inode {ino} has lost its name before {until}"

    # --- what is shown --------------------------------------------------------------------------------------------------
    def tree(self, at: int) -> Shown:
        """What the volume shows, by names from the root on."""
        found: Shown = {}
        left = [1]
        while left:
            ino = left.pop()
            if ino not in found:
                found[ino], inside = self.seen(ino, at)
                left += inside
        return found

    def seen(self, ino: int, at: int) -> tuple[tuple[Any, ...], list[int]]:
        """What the service answers about an inode."""
        ask, volume = self.drive.ask, self.drive.volume
        attr = ask(m.GetAttr(volume, ino, at=at)).attr
        attributes = (attr.mode, attr.nlink, attr.uid, attr.size, attr.mtime_ns, attr.ctime_ns)
        names = [bytes(name) for name in ask(m.ListXattr(volume, ino, at)).names]
        xattrs = {name: bytes(ask(m.GetXattr(volume, ino, name, at)).data) for name in names}
        if not stat.S_ISDIR(attr.mode):
            shown = self.bytes_of(ino, attr.size, at) if stat.S_ISREG(attr.mode) else b""
            if stat.S_ISLNK(attr.mode):
                shown = bytes(ask(m.ReadLink(volume, ino, at)).data)
            return (attributes, xattrs, shown), []
        listed = ask(m.ReadDir(volume, ino, 0, 500, True, at)).entries
        for number, entry in enumerate(listed, 1):  # readdir goes on from any place
            assert ask(m.ReadDir(volume, ino, entry.cookie, 1, True, at)).entries == listed[number : number + 1]
            assert entry.attr == ask(m.GetAttr(volume, entry.ino, at=at)).attr
        found = {bytes(entry.name): entry.ino for entry in listed}
        for name in NAMES:
            if name in found:
                assert ask(m.Lookup(volume, ino, name, at=at)).attr.ino == found[name]
            else:
                assert self.drive.ask_errno(m.Lookup(volume, ino, name, at=at)) == errno.ENOENT
        parent = ask(m.GetParent(volume, ino, at)).attr.ino
        return (attributes, xattrs, [(entry.cookie, entry.ino, bytes(entry.name)) for entry in listed], parent), list(found.values())

    def bytes_of(self, ino: int, size: int, at: int) -> bytes:
        data, start = bytearray(size), 0
        while True:
            layout = self.drive.ask(m.GetLayout(self.drive.volume, ino, start, 1 << 40, at))
            assert layout.size == size and layout.end > start
            if layout.inline is not None:
                data[: len(layout.inline)] = layout.inline
                return bytes(data)
            self.lay(data, layout)
            if layout.end == 1 << 40:
                return bytes(data)
            start = layout.end

    def lay(self, data: bytearray, layout: m.Layout) -> None:
        named, end = {told.segment: told for told in layout.segments}, 0
        for piece in layout.extents:
            start, end = end, piece.file_offset + piece.length
            assert start <= piece.file_offset and end <= len(data), "pieces overlap, or lie behind the end"
            if piece.segment:
                assert named[piece.segment].incarnation == piece.incarnation and named[piece.segment].state != SEGMENT_FREE
                frame = self.places[(piece.segment, piece.frame_offset)]
                data[piece.file_offset : end] = frame[piece.skip : piece.skip + piece.length]


class Snapshots(RuleBasedStateMachine):
    bounds: Any

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self.prepare(seed)

    def prepare(self, seed: int) -> None:
        self.bounds = small()
        self.bounds.__enter__()
        self.model = Snapshotted()
        for step in random.Random(seed).choices(USUAL, k=15):
            self.act(step, seed)
            seed += 1

    def act(self, step: str, seed: int) -> None:
        self.model.random.seed(seed)
        getattr(self.model, step)()

    @rule(step=st.sampled_from(STEPS), seed=st.integers(0, 1 << 32))
    def do_change(self, step: str, seed: int) -> None:
        self.act(step, seed)

    @rule(steps=st.lists(st.sampled_from(STEPS), min_size=4, max_size=8), seed=st.integers(0, 1 << 32))
    def do_changes(self, steps: list[str], seed: int) -> None:
        for number, step in enumerate(steps):
            self.act(step, seed + number)

    @rule()
    def do_snapshot(self) -> None:
        self.model.snapshot()

    @precondition(lambda self: len(self.model.shown) > 1)
    @rule(seed=st.integers(0, 1 << 32))
    def do_delete(self, seed: int) -> None:
        self.model.random.seed(seed)
        self.model.delete()

    @precondition(lambda self: self.model.clearing())
    @rule()
    def do_clear(self) -> None:
        self.model.clear()

    @invariant()
    def all_is_as_it_was(self) -> None:
        if hasattr(self, "model"):
            self.compare()

    def compare(self) -> None:
        for at, copy in self.model.shown.items():
            assert self.model.tree(at) == copy, f"snapshot {at}"
        self.model.drive.machine.flush()
        faults = check(self.model.drive.txn)
        assert [fault for fault in faults if fault.kind != "kept-unseen" or not self.model.clearing] == []
        if not self.model.clearing():
            self.model.kept_is_shown()

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        try:
            self.end()
        finally:
            self.bounds.__exit__(None, None, None)

    def end(self) -> None:
        model = self.model
        model.clear()
        self.compare()
        while model.shown:
            model.delete()
            self.compare()
            while model.clearing():
                model.clear()
        model.drive.machine.flush()
        assert check(model.drive.txn) == []
        volume = model.drive.volume
        for kind in keys.HISTORY_KINDS:
            assert list(model.drive.txn.scan(*keys.kind_range(volume, kind))) == [], "something is left of snapshots that are gone"


MODEL = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # a run of real commands shrinks for minutes; its steps are printed as they are
)  # fmt: skip
TestSnapshots = Snapshots.TestCase
TestSnapshots.settings = MODEL


# --- the same with one rule taken out -------------------------------------------------------------------------------------
def played(seed: int, steps: int) -> None:
    """One run of the machine above without Hypothesis, which costs more than the model.  Each run prefers a few kinds of steps."""
    chance = random.Random(seed)
    liked = chance.choices(STEPS, k=4)
    run = Snapshots()

    def drawn() -> int:
        return chance.randrange(1 << 32)

    try:
        run.prepare(drawn())
        for _ in range(steps):
            number = chance.random()
            if number < 0.7:
                run.act(chance.choice(liked if chance.random() < 0.6 else STEPS), drawn())
            elif number < 0.82:
                run.model.snapshot()
            elif number < 0.9 and len(run.model.shown) > 1:
                run.model.delete()
            elif run.model.clearing():
                run.model.clear()
            run.compare()
        run.end()
    finally:
        run.bounds.__exit__(None, None, None)


def _moved_in_this_chapter(row: Any, places: Any) -> Any:
    pieces = [extents.piece_of(place, row.index) for place in places]
    for _, moved in pieces:
        moved.shared, moved.chapter = row.shared, row.chapter + 1
    return pieces


def _trims_of_no_chapter(real: Callable[..., Any]) -> Any:
    return lambda state, volume, ino: [(start, end, index, state.now(volume)) for start, end, index, _ in real(state, volume, ino)]


def _swallowing(real: Callable[..., Any]) -> Any:
    """The trims of a map as if all were of the chapter that clears: a larger one takes the place of each."""

    def clear(self: Any, start: int, end: int, index: int) -> None:
        kept, decided = self._trims, history.ended(self._now, self._inode)
        self._trims = [(*trim[:3], decided) for trim in kept]
        real(self, start, end, index)

    return clear


def _as_a_whole(self: Any, start: int, end: int) -> None:
    """A punch that keeps all of what is overwritten in part, and puts the rest back as new."""
    for piece in self.stored(start, end):
        left = extents.without(piece, start, end)
        self.free(piece)
        for part in left:
            self.add(part)


def _of_this_chapter(real: Callable[..., Any]) -> Any:
    def add(self: Any, piece: Any) -> None:
        piece[1].chapter = self._now
        real(self, piece)

    return add


def _never_ended(real: Callable[..., Any]) -> Any:
    return lambda piece, now, trims: now


def _not_written_back(real: Callable[..., Any]) -> Any:
    def make(*of: Any) -> Any:
        with mock.patch.object(State, "write_back"):
            return real(*of)

    return make


VARIANTS: dict[str, tuple[object, str, Callable[[Any], Any]]] = {
    "3: what is only in the cache is not in the snapshot": (snapshots, "_make_all", _not_written_back),
    "5: kept bytes are let go": (history, "drop_extent", lambda real: lambda *of: real(*of) and False),
    "5: kept extents have no reverse row": (chapters, "_reverse", lambda real: lambda *of: b"" if of[2] else real(*of)),
    "6: collection makes versions": (filemap, "moved_to", lambda real: _moved_in_this_chapter),
    "8: a truncation ends when Reap comes": (filemap, "ended", _never_ended),
    "8: a trim has no chapter": (filemap, "trims_of", _trims_of_no_chapter),
    "9: Reap keeps nothing": (filemap, "drop_extent", lambda real: lambda *of: real(*of[:4], 0)),
    "10: a part that is cut off is new": (filemap.FileMap, "add", _of_this_chapter),
    "10: old and new bytes are joined": (extents, "joins", lambda real: lambda a, b: real(a, (b[0], _like(b[1], a[1].chapter)))),
    "17: a file without a name is kept until its last close": (history, "ended", lambda real: lambda now, inode: now),
    "30: a larger truncation takes the place of one before the snapshot": (filemap.FileMap, "clear", _swallowing),
    "an inode keeps nothing": (chapters, "begin_inode", lambda real: _begun_without),
    "a name keeps nothing": (history, "drop_name", lambda real: _dropped),
    "an attribute keeps nothing": (history, "_keep", lambda real: lambda state, volume, inode, key: state.now(volume)),
    "a new attribute has no chapter": (history, "_keep", lambda real: lambda *of: real(*of) * 0),
    "all of an extent is kept where a part is overwritten": (filemap.FileMap, "punch", lambda real: _as_a_whole),
    "deletion forgets the snapshots that live": (chapters, "live", lambda real: lambda *of: (chapters.BEFORE_ALL, 0)),
    "what no snapshot sees is kept": (chapters, "_is_seen", lambda real: lambda txn, chapter, key, first, until: first < until),
}


def _like(row: Any, chapter: int) -> Any:
    return structs.replace(row, chapter=chapter)


def _begun_without(txn: Any, chapter: Any, key: bytes, row: Any) -> bool:
    row.chapter = chapter.now
    return True


def _dropped(state: State, volume: int, parent: int, name: bytes, row: Any) -> None:
    state.txn.delete(keys.dentry(volume, parent, name))
    state.txn.delete(keys.cookie(volume, parent, row.cookie))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_rule_that_is_taken_out_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, attribute, broken = VARIANTS[name]
    real = getattr(where, attribute)
    taken_out = broken(real)
    for module in (where, filemap, ledger, reaping, relocation):  # those that have the function under their own name
        if getattr(module, attribute, None) is real:
            monkeypatch.setattr(module, attribute, taken_out)
    for seed in range(200):
        try:
            played(seed, 40)
        except AssertionError:
            return
    pytest.fail("200 runs without the rule have found nothing")
