"""Changes in memory over the last commit: merged reads, two generations at most, a writer that fails, a full map."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.meta.replica.overlay_store import WRITER_THREAD, OverlayStore
from awsomefsd.meta.replica.store import MapFull, Store
from tests.rigs.memory_txn import MemTxn

ALL = (b"", b"\xff" * 8)


class Writer:
    """The writer thread as a test wants it: each generation is written when `end` is called, or when somebody waits."""

    def __init__(self) -> None:
        self.begun: list[Callable[[], None]] = []
        self.waited = 0

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        self.begun.append(work)
        return self._wait

    def _wait(self) -> None:
        self.waited += bool(self.begun)
        self.end()

    def end(self) -> None:
        while self.begun:
            self.begun.pop()()


@pytest.fixture
def writer() -> Writer:
    return Writer()


@pytest.fixture
def opened(tmp_path: Path, writer: Writer) -> Iterator[Callable[..., OverlayStore]]:
    stores: list[OverlayStore] = []

    def open_store(*, map_bytes_min: int = 16 * MIB) -> OverlayStore:
        stores.append(OverlayStore(Store.open(tmp_path, map_bytes_min=map_bytes_min, snapshot=True), digesting=True, beside=writer))
        return stores[-1]

    yield open_store
    for store in stores:
        store.close()


def crash(store: OverlayStore, writer: Writer) -> None:
    """What the writer has not written is never written."""
    writer.begun.clear()
    store.close()


def test_same_as_a_sorted_dict_through_all_layers(opened, writer, seed):
    """Rows are in the commit, in the generation that is written, in the one that is filled, deleted in one and put in another."""
    rng = random.Random(seed)
    store, model = opened(), MemTxn()
    for number in range(6_000):
        key, end = b"k%03d" % rng.randrange(600), b"k%03d" % rng.randrange(600)
        verb = rng.randrange(7)
        if verb <= 2:
            value = rng.randbytes(rng.randrange(1, 40))
            store.put(key, value)
            model.put(key, value)
        elif verb <= 4:
            assert store.delete(key) == model.delete(key)
        elif verb == 5:
            assert store.get(key) == model.get(key)
        else:
            assert list(store.scan(key, end)) == list(model.scan(key, end))
            assert store.last(key, end) == model.last(key, end)
        if rng.random() < 0.02:
            writer.end()
        if rng.random() < 0.02 and store.settle(wait=False) is None and not store.writing:
            store.begin_commit(number)
    assert list(store.scan(*ALL)) == list(model.scan(*ALL)) and store.last(*ALL) == model.last(*ALL)
    store.commit()
    assert list(store.scan(*ALL)) == list(model.scan(*ALL)) == list(store.committed.page(*ALL, 1_000))


def test_a_scan_over_deleted_rows_finds_those_behind_them(opened):
    store = opened()
    for number in range(1_000):
        store.put(b"%04d" % number, b"x")
    store.commit()
    for number in range(999):
        store.delete(b"%04d" % number)
    assert list(store.scan(b"0", b"1")) == [(b"0999", b"x")] and store.last(b"0", b"0999") is None


def test_a_scan_stands_changes_behind_it(opened):
    store = opened()
    for number in range(1_000):
        store.put(b"%04d" % number, b"x")
        if number == 500:
            store.commit()
    seen = []
    for key, _ in store.scan(b"0", b"1"):
        seen.append(key)
        store.delete(key)
    assert len(seen) == 1_000 and store.last(*ALL) is None


def test_rows_are_seen_from_the_change_on_whatever_the_writer_does(opened, writer):
    store = opened()
    store.put(b"a", b"1")
    store.begin_commit(7)
    assert store.get(b"a") == b"1" and store.settle(wait=False) is None
    writer.end()
    assert store.ended and store.get(b"a") == b"1" and store.committed.get(b"a") is None, "durable, and the snapshot is the old one"
    assert store.delete(b"a") and store.get(b"a") is None
    assert store.settle(wait=False) == 7
    assert store.get(b"a") is None and store.committed.get(b"a") == b"1"
    assert store.settle(wait=False) is None, "told once"


def test_a_crash_between_generations_leaves_whole_ones(opened, writer):
    store = opened()
    store.claim("cluster", "node", b"i" * 16)
    for generation, lost in ((1, False), (2, True)):
        for name in (b"a", b"b"):
            store.put(name, b"%d" % generation)
        store.set_note(b"at", b"%d" % generation)
        store.begin_commit(generation)
        store.put(b"filling", b"%d" % generation)
        if not lost:
            writer.end()
            assert store.settle(wait=False) == generation
    crash(store, writer)
    store = opened()
    assert list(store.scan(*ALL)) == [(b"a", b"1"), (b"b", b"1")] and store.note(b"at") == b"1"


def test_a_generation_that_was_written_and_not_settled_is_there_after_a_crash(opened, writer):
    store = opened()
    store.put(b"a", b"1")
    store.begin_commit(1)
    writer.end()
    crash(store, writer)
    assert opened().get(b"a") == b"1"


def test_never_a_third_generation(opened):
    store = opened()
    store.put(b"a", b"1")
    store.begin_commit(1)
    store.put(b"b", b"1")
    with pytest.raises(AssertionError):
        store.begin_commit(2)
    assert store.settle(wait=True) == 1


def test_a_failure_of_the_writer_is_raised_and_nothing_is_committed_any_more(opened, writer, monkeypatch):
    store = opened()
    store.put(b"a", b"1")
    tries = []

    def fail(*changes: object) -> None:
        tries.append(changes)
        raise OSError(5, "injected")

    monkeypatch.setattr(store.committed, "write", fail)
    store.begin_commit(1)
    writer.end()
    for _ in range(2):
        with pytest.raises(OSError, match="injected"):
            store.settle(wait=False)
    with pytest.raises(OSError, match="injected"):
        store.commit()
    assert len(tries) == 1, "a failed commit is not tried again"


def test_a_full_map_is_grown_and_the_generation_written_again(opened, writer):
    store = opened(map_bytes_min=MIB)
    store.put(b"kept", b"v")
    store.commit()
    for number in range(1_000):
        store.put(b"%d" % number, bytes(3_000))
    store.begin_commit(1)
    writer.end()
    assert store.settle(wait=False) is None and store.writing and store.grown == 1, "the metadata thread goes on meanwhile"
    store.put(b"1", b"newer")
    assert store.settle(wait=True) == 1
    assert store.get(b"kept") == b"v" and store.get(b"999") == bytes(3_000) and store.get(b"1") == b"newer"


def test_a_map_that_cannot_grow_leaves_nothing_durable(opened, writer, monkeypatch):
    store = opened()
    store.put(b"a", b"1")

    def full(*changes: object) -> None:
        raise MapFull("injected")

    def no_room() -> None:
        raise MemoryError("injected")

    monkeypatch.setattr(store.committed, "write", full)
    monkeypatch.setattr(store.committed, "grow", no_room)
    store.begin_commit(1)
    writer.end()
    for _ in range(2):
        with pytest.raises(MemoryError):
            store.settle(wait=True)


def test_a_thread_that_cannot_begin_leaves_nothing_durable(opened, monkeypatch):
    store = opened()
    store.put(b"a", b"1")

    def no_thread(work: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(store, "_beside", no_thread)
    with pytest.raises(RuntimeError):
        store.begin_commit(1)
    with pytest.raises(AssertionError):
        store.settle(wait=True)


def test_a_copy_holds_the_last_commit(opened, tmp_path):
    store = opened()
    store.put(b"a", b"1")
    store.commit()
    store.put(b"b", b"2")
    store.begin_commit(2)
    (tmp_path / "copy").mkdir()
    store.copy_to(tmp_path / "copy" / "data.mdb")
    copy = Store.open(tmp_path / "copy", readonly=True)
    assert list(copy.scan(*ALL)) == [(b"a", b"1")]
    copy.close()


def test_the_commit_is_made_by_a_thread_of_its_own(tmp_path):
    store = OverlayStore.open(tmp_path)
    names = []
    store.written = lambda: names.append(threading.current_thread().name)
    store.put(b"a", b"1")
    store.commit()
    store.close()
    assert names == [WRITER_THREAD]
