"""The store: a transaction with the machine's five verbs, commits, growth, identity."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from awsomefsd.base.errors import Corrupt, FormatTooNew, Refused
from awsomefsd.base.limits import MIB
from awsomefsd.meta.replica import store as store_module
from awsomefsd.meta.replica.store import IDENTITY, MapFull, Store, StoreIdentity
from tests.rigs.memory_txn import MemTxn
from tests.rigs.system_calls import WAIT_S, needs_strace

ROOT = Path(store_module.__file__).parents[3]


@pytest.fixture
def opened(tmp_path):
    stores = []

    def open_store(**options) -> Store:
        store = Store.open(tmp_path, **options)
        stores.append(store)
        return store

    yield open_store
    for store in stores:
        try:
            store.close()
        except lmdb.Error:
            pass


def test_same_as_a_sorted_dict(opened, seed):
    rng = random.Random(seed)
    store, model = opened(), MemTxn()
    for _ in range(4000):
        key = b"k%03d" % rng.randrange(600)
        verb = rng.randrange(6)
        if verb <= 2:
            value = rng.randbytes(rng.randrange(1, 40))
            store.put(key, value)
            model.put(key, value)
        elif verb == 3:
            assert store.delete(key) == model.delete(key)
        elif verb == 4:
            assert store.get(key) == model.get(key)
        else:
            end = b"k%03d" % rng.randrange(600)
            assert list(store.scan(key, end)) == list(model.scan(key, end))
            assert store.last(key, end) == model.last(key, end)
        if rng.random() < 0.01:
            store.commit()
    assert list(store.scan(b"", b"\xff")) == list(model.scan(b"", b"\xff"))


def test_a_scan_stands_changes_behind_it(opened):
    store = opened()
    for number in range(1000):
        store.put(b"%04d" % number, b"x")
    seen = []
    for key, _ in store.scan(b"0", b"1"):
        seen.append(key)
        store.delete(key)
    assert len(seen) == 1000 and store.last(b"", b"\xff") is None


def test_only_what_was_committed_is_there_after_a_crash(opened):
    store = opened()
    store.put(b"committed", b"1")
    store.commit()
    assert store.changes == 0
    store.put(b"lost", b"2")
    assert store.changes == 1
    store.close()
    store = opened()
    assert store.get(b"committed") == b"1" and store.get(b"lost") is None


@pytest.mark.parametrize("options", [{}, {"snapshot": True}])
def test_lmdb_syncs_by_itself(opened, options):
    flags = opened(**options)._env.flags()
    assert flags["sync"] and flags["metasync"] and not flags["writemap"] and not flags["map_async"], flags


COMMITS = """
from pathlib import Path
from awsomefsd.meta.replica.store import Store
alone = Store.open(Path("alone"))
alone.put(b"a", b"1")
alone.commit()
several = Store.open(Path("several"), snapshot=True)
several.write({b"a": b"1"}, {b"digest": b"2"})
print("told", flush=True)
"""
_CALL = re.compile(r"(\w+)\((?:AT_FDCWD, \"([^\"]*)\", (\S+)|(\d+)).* = (\d+)$")


@needs_strace
def test_what_was_committed_is_synced_when_it_returns(tmp_path):
    """Each commit writes its pages, syncs them, and then the page that makes them count, through a descriptor that syncs each write."""
    for name in ("alone", "several"):
        (tmp_path / name).mkdir()
    traced = "trace=openat,write,writev,pwrite64,pwritev,fdatasync,fsync"
    argv = ["strace", "-f", "-e", traced, "-o", str(tmp_path / "calls"), sys.executable, "-c", COMMITS]
    subprocess.run(argv, check=True, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, timeout=WAIT_S)
    opened_as: dict[str, tuple[str, bool]] = {}  # descriptor: store, and whether each write through it is synced
    unsynced, commits = {"alone": 0, "several": 0}, {"alone": 0, "several": 0}
    calls = filter(None, map(_CALL.search, (tmp_path / "calls").read_text().splitlines()))
    for name, path, flags, fd, result in (call.groups() for call in calls):
        if name == "openat":
            opened_as.pop(result, None)
            if path.endswith("data.mdb"):
                opened_as[result] = path.split("/")[0], "DSYNC" in flags
        elif name == "write" and fd == "1":
            assert not any(unsynced.values()) and all(commits.values()), (unsynced, commits)
            return
        elif fd in opened_as:
            store, syncs = opened_as[fd]
            if "write" not in name:
                unsynced[store] = 0
            elif syncs:
                assert not unsynced[store], "the page that makes them count was written before they were synced"
                commits[store] += 1
            else:
                unsynced[store] += 1
    raise AssertionError("the commits did not return")


def test_a_full_map_loses_nothing_that_was_committed(opened):
    store = opened(map_bytes_min=MIB)
    store.put(b"kept", b"v")
    store.commit()

    def fill() -> None:
        for number in range(1000):
            store.put(b"%d" % number, bytes(3000))

    with pytest.raises(MapFull):
        fill()
    store.close()
    store = opened(map_bytes_min=MIB)
    assert store.get(b"kept") == b"v" and store.get(b"0") is None


def test_the_map_grows_early(opened):
    store = opened(map_bytes_min=MIB)
    for number in range(4000):
        store.put(b"%d" % number, bytes(1000))
        if number % 100 == 0:
            store.commit()
            assert store.map_use_percent <= store_module.STORE_MAP_USE_MAX_PERCENT
    assert store.grown >= 2
    store.commit()
    store.close()
    store = opened(map_bytes_min=MIB)
    assert store.map_use_percent <= store_module.STORE_MAP_USE_MAX_PERCENT and store.get(b"3999") == bytes(1000)


def test_identity(opened):
    store = opened()
    assert store.identity is None
    store.claim("cluster", "node", b"i" * 16)
    store.put(b"row", b"v")
    store.commit()
    store.close()
    store = opened()
    assert store.identity == StoreIdentity(1, "cluster", "node", b"i" * 16)
    store.claim("cluster", "node", b"i" * 16)
    with pytest.raises(Refused):
        store.claim("cluster", "node", b"j" * 16)
    assert list(store.scan(b"", b"\xff")) == [(b"row", b"v")], "the identity is not among the machine's rows"


@pytest.mark.parametrize(
    ("identity", "readonly_works"),
    [
        (StoreIdentity(2, "c", "n", b""), False),
        (StoreIdentity(1, "c", "n", b"", incompat=1), False),
        (StoreIdentity(1, "c", "n", b"", ro_compat=1), True),
        (StoreIdentity(1, "c", "n", b"", compat=1), True),
    ],
)
def test_newer_formats(opened, identity, readonly_works):
    store = opened()
    store.claim("c", "n", b"")
    store._txn.abort()
    with store._env.begin(write=True, db=store._identities) as txn:
        txn.put(b"identity", IDENTITY.dumps(identity))
    store._env.close()
    if readonly_works:
        opened(readonly=True).close()
    else:
        with pytest.raises(FormatTooNew):
            opened(readonly=True)
    if not identity.compat:
        with pytest.raises(FormatTooNew):
            opened()


def test_a_damaged_identity_is_corrupt(opened):
    store = opened()
    store._txn.abort()
    with store._env.begin(write=True, db=store._identities) as txn:
        txn.put(b"identity", b"\0" + IDENTITY.dumps(StoreIdentity(1, "c", "n", b""))[1:])
    store._env.close()
    with pytest.raises(Corrupt):
        opened()


def test_a_copy_holds_the_last_commit(opened, tmp_path):
    store = opened()
    store.put(b"a", b"1")
    store.commit()
    store.put(b"b", b"2")
    (tmp_path / "copy").mkdir()
    store.copy_to(tmp_path / "copy" / "data.mdb")
    copy = Store.open(tmp_path / "copy", readonly=True)
    assert list(copy.scan(b"", b"\xff")) == [(b"a", b"1")]
    copy.close()
    assert store.get(b"b") == b"2"
