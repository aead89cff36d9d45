"""The digest of a store: kept by every update, the same for the same rows, another one for damage."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

import lmdb
import pytest

from awsomefsd.base.errors import Refused
from awsomefsd.base.limits import MIB
from awsomefsd.meta.replica.overlay_store import OverlayStore
from awsomefsd.meta.state.digest import digest_of, pack_digest


def of_all(store: OverlayStore) -> bytes:
    return pack_digest(digest_of(store.scan(b"", b"\xff" * 8)))


def change(store: OverlayStore, rng: random.Random, count: int) -> None:
    for _ in range(count):
        key = b"k%03d" % rng.randrange(300)
        if rng.random() < 0.3:
            store.delete(key)
        else:
            store.put(key, rng.randbytes(rng.randrange(60)))


def test_kept_by_every_update_and_over_reopening(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(4):
        store = OverlayStore.open(tmp_path, digesting=True)
        assert store.digest == of_all(store)
        change(store, rng, 500)
        store.commit()
        committed = store.digest
        change(store, rng, 100)
        assert store.digest == of_all(store) != committed
        store.close()
        store = OverlayStore.open(tmp_path, digesting=True)
        assert store.digest == committed == of_all(store)
        store.close()


def test_computed_when_it_was_not_kept(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    store = OverlayStore.open(tmp_path, digesting=True)
    change(store, rng, 100)
    store.commit()
    store.close()
    store = OverlayStore.open(tmp_path)
    assert store.digest == b""
    change(store, rng, 100)
    store.commit()
    store.close()
    store = OverlayStore.open(tmp_path, digesting=True)
    assert store.digest == of_all(store) != bytes(16)
    store.close()


def test_computed_in_bounded_portions_while_rows_change(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of the state, no turn counts more rows than DIGEST_ROWS_MAX; what changes meanwhile is counted once."""
    rng = random.Random(seed)
    store = OverlayStore.open(tmp_path)
    for number in range(0, 300, 2):
        store.put(b"k%03d" % number, rng.randbytes(20))
    store.commit()
    store.close()
    monkeypatch.setattr("awsomefsd.meta.replica.overlay_store.DIGEST_ROWS_MAX", 7)
    hashed: list[int] = []

    def counting(pairs: Iterable[tuple[bytes, bytes]]) -> int:
        rows = list(pairs)
        hashed.append(len(rows))
        return digest_of(rows)

    monkeypatch.setattr("awsomefsd.meta.replica.overlay_store.digest_of", counting)
    store = OverlayStore.open(tmp_path, digesting=True)
    assert hashed == [7], "the opening counts no more than any turn"
    while store.count_rows():
        change(store, rng, 3)
        if rng.random() < 0.3:
            store.commit()
    assert max(hashed) == 7 and len(hashed) > 10
    change(store, rng, 20)
    assert store.digest == of_all(store) != b""
    store.commit()
    store.close()
    store = OverlayStore.open(tmp_path, digesting=True)
    assert store.digest == of_all(store), "kept from now on"
    store.close()


def test_a_digest_that_is_not_whole_is_not_told_and_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = OverlayStore.open(tmp_path)
    for number in range(20):
        store.put(b"k%03d" % number, b"value")
    store.commit()
    store.close()
    monkeypatch.setattr("awsomefsd.meta.replica.overlay_store.DIGEST_ROWS_MAX", 7)
    for _ in range(2):
        store = OverlayStore.open(tmp_path, digesting=True)
        assert store.digest == b""
        store.put(b"k000", b"other")
        store.commit()
        store.close()
    store = OverlayStore.open(tmp_path, digesting=True)
    assert [store.count_rows() for _ in range(3)] == [7, 6, 0]
    assert store.digest == of_all(store)
    store.close()


def test_a_full_map_is_grown_and_the_digest_stays(tmp_path: Path) -> None:
    store = OverlayStore.open(tmp_path, map_bytes_min=MIB, digesting=True)
    for number in range(1_000):
        store.put(b"%04d" % number, bytes(4_000))
    digest = store.digest
    store.commit()
    assert store.grown and store.digest == digest == of_all(store)
    store.close()
    store = OverlayStore.open(tmp_path, digesting=True)
    assert store.digest == digest == of_all(store)
    store.close()


def test_a_row_that_changed_by_itself_shows_when_it_is_written(tmp_path: Path) -> None:
    digests = []
    for name in ("sound", "damaged"):
        directory = tmp_path / name
        directory.mkdir()
        store = OverlayStore.open(directory, digesting=True)
        store.put(b"key", b"value")
        store.commit()
        store.close()
        if name == "damaged":
            env = lmdb.open(str(directory), max_dbs=2)
            with env.begin(write=True, db=env.open_db(b"rows")) as txn:
                txn.put(b"key", b"valuf")
            env.close()
        store = OverlayStore.open(directory, digesting=True)
        store.put(b"key", b"new value")
        digests.append(store.digest)
        store.close()
    assert digests[0] != digests[1]


def test_notes_and_identity_go_with_the_rows(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    store = OverlayStore.open(source, digesting=True)
    store.claim("cluster", "node 1", b"i" * 16)
    store.put(b"a", b"1")
    store.set_note(b"membership", b"who")
    store.commit()
    store.set_note(b"membership", b"not committed")
    store.copy_to(target / "data.mdb")
    store.close()
    store = OverlayStore.open(target, digesting=True)
    assert (store.note(b"membership"), store.note(b"other"), store.digest) == (b"who", b"", of_all(store))
    with pytest.raises(Refused):
        store.adopt("other cluster", "node 2", b"j" * 16, 9, 3)
    store.adopt("cluster", "node 2", b"j" * 16, 9, 3)
    store.close()
    store = OverlayStore.open(target)
    store.claim("cluster", "node 2", b"j" * 16)
    assert store.identity is not None
    assert (store.identity.state_snapshot_index, store.identity.state_snapshot_term, store.get(b"a")) == (9, 3, b"1")
    store.close()
