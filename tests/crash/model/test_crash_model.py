"""Power cuts at every point of short workloads, and deaths of the worker at its calls; see recording.py, oracle.py, takeover.py.

Broken variants of the product prove that the model can see: each must be caught by a few workloads.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from random import Random

import pytest

from awsomefsd.io.file.file_data import FileTable
from awsomefsd.io.segment.writer import SegmentWriter
from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.vfs.ops.data import DataOps
from awsomefsd.vfs.ops.namespace import NamespaceOps
from awsomefsd.vfs.state.delegated_names import DelegatedNames
from tests.crash.model.run import CrashRig, DelegatedCrashRig, LeasedCrashRig, Model, ThroughCrashRig, first_image
from tests.crash.model.takeover import Died, Takeovers
from tests.crash.model.workloads import BESIDE_A_TRUNCATION, OPERATIONS, Workload, on_data, sample, singles

SAMPLE = int(os.environ.get("AWSOMEFSD_CRASH_WORKLOADS", "200"))
SHARED, DELEGATED, TAKEOVERS = SAMPLE // 16, SAMPLE // 12, SAMPLE // 2
TIMEOUT_S = max(900, 3 * SAMPLE)  # of each test


def run_all(directory: Path, seed: int, workloads: Iterable[Workload], kind: type[CrashRig] = CrashRig) -> Model:
    model = Model(directory, first_image(directory, delegated=kind.delegated), seed, kind=kind)
    for workload in workloads:
        model.run(workload)
    return model


def tell(figures: list[str], title: str, model: Model, began: float) -> None:
    figures.append(f"crash model, {title} ({time.monotonic() - began:.0f} s):")
    figures += [f"  {row}" for row in model.account.lines()]


@pytest.mark.timeout(900)
def test_every_workload_of_one_operation(tmp_path, seed, figures):
    began = time.monotonic()
    model = run_all(tmp_path, seed, singles())
    tell(figures, f"all of one operation out of {len(OPERATIONS)}", model, began)
    assert model.account.refused < model.account.calls / 5, "workloads that do nothing prove nothing"


@pytest.mark.timeout(TIMEOUT_S)
def test_a_sample_of_two_and_three_operations(tmp_path, seed, figures):
    began = time.monotonic()
    model = run_all(tmp_path, seed, sample(Random(seed), SAMPLE))
    tell(figures, "two and three operations", model, began)
    assert model.account.workloads == SAMPLE
    assert model.account.refused < model.account.calls / 3


@pytest.mark.timeout(900)
def test_writes_beside_a_truncation(tmp_path, seed, figures):
    began = time.monotonic()
    model = run_all(tmp_path, seed, BESIDE_A_TRUNCATION)
    tell(figures, "a write before a truncation is answered", model, began)
    assert not model.account.refused


@pytest.mark.timeout(14_400)
@pytest.mark.parametrize("kind", [LeasedCrashRig, ThroughCrashRig])
def test_a_volume_that_is_shared(tmp_path, seed, figures, kind):
    """Synchronous writes first: there the kernel sends no FSYNC behind them."""
    began = time.monotonic()
    synchronous = [workload for workload in OPERATIONS if workload[-1][0] == "syncwrite"]
    model = run_all(tmp_path, seed, [*synchronous, *on_data(Random(seed + 3), SHARED)], kind)
    tell(figures, f"a shared volume, {kind.__name__}", model, began)
    assert model.account.workloads == len(synchronous) + SHARED


@pytest.mark.timeout(14_400)
def test_a_mount_that_decides_names(tmp_path, seed, figures):
    """What a cut leaves of names is what they were after some call, not older than the last fsync; fsck is clean."""
    began = time.monotonic()
    dice = Random(seed + 4)
    chosen = [dice.choice([*singles()]) for _ in range(DELEGATED // 2)]
    model = run_all(tmp_path, seed, [*chosen, *sample(dice, DELEGATED - len(chosen))], DelegatedCrashRig)
    tell(figures, "a mount that decides names", model, began)
    assert model.account.workloads == DELEGATED
    gc.collect()  # workers are circles of objects that hold descriptors


@pytest.fixture
def _threads_may_die(monkeypatch: pytest.MonkeyPatch) -> None:
    """Died ends the thread that makes the call, as it is meant to; pytest would keep each of them with its traceback and descriptors."""
    others = threading.excepthook

    def hook(args: threading.ExceptHookArgs, /) -> None:
        if args.exc_type is not Died:
            others(args)

    monkeypatch.setattr(threading, "excepthook", hook)


@pytest.mark.timeout(TIMEOUT_S)
@pytest.mark.usefixtures("_threads_may_die")
def test_a_worker_that_dies_at_any_call_is_not_missed(tmp_path, seed, figures):
    takeovers = Takeovers(tmp_path, first_image(tmp_path), seed)
    for workload in sample(Random(seed + 2), TAKEOVERS):
        takeovers.run(workload, tries=3)
    figures.append(
        f"crash model, worker dies at a call: {takeovers.workloads} workloads, {takeovers.points} points, {takeovers.deaths} deaths"
    )
    assert takeovers.deaths > takeovers.points * 0.9, "the deaths have to happen"


# --- broken variants ------------------------------------------------------------------------------------------------------------
def journal_that_does_not_sync(patch):
    def sync(self):
        self._synced = self._end

    patch.setattr(Journal, "_sync_file", sync)


def device_that_is_not_flushed(patch):
    patch.setattr(SegmentWriter, "_flush", lambda self, segments: None)


def store_that_is_not_committed_before_the_journal_drops(patch):
    def begin_commit(self):
        self.machine.flush()
        self._uncommitted = 0
        self.log.compact(self.machine.applied_index + 1)

    patch.setattr(Replica, "_begin_commit", begin_commit)


def rename_that_does_not_flush(patch):
    def nothing(self, command):
        yield from ()
        return 0

    patch.setattr(NamespaceOps, "_target_of", nothing)


def close_that_does_not_flush_after_a_truncation(patch):
    patch.setattr(DataOps, "flush", lambda self, ctx, ino, fh, lock_owner: None)


def synchronous_write_that_is_not_committed(patch):
    def write(self, ctx, ino, fh, offset, data, write_flags):
        return self._policy.write(ctx, ino, fh, offset, data, write_flags)

    patch.setattr(DataOps, "write", write)


def fsync_that_does_nothing(patch):
    patch.setattr(DataOps, "fsync", lambda self, ctx, ino, fh, datasync: None)


def truncation_that_begins_no_generation(patch):
    patch.setattr(FileTable, "begin_cut", lambda self, ino: self.log.last_sequence)


def fsync_that_waits_for_no_names(patch):
    patch.setattr(DelegatedNames, "synced", lambda self: None)


LONG = [("setxattr", "foo", "user.a", 3_000)] * 12  # more than a journal file holds
BROKEN = [
    (journal_that_does_not_sync, [("creat", "new")]),
    (device_that_is_not_flushed, [("append", "foo", 9_000), ("fsync", "foo", False)]),
    (store_that_is_not_committed_before_the_journal_drops, LONG),
    (rename_that_does_not_flush, [("append", "foo", 9_000), ("rename", "foo", "bar", 0)]),
    (close_that_does_not_flush_after_a_truncation, [("opentrunc", "foo", "k"), ("tmpwrite", "k", 6_000), ("closeall",)]),
    (synchronous_write_that_is_not_committed, [("syncwrite", "foo", 0, 9_000, os.O_DSYNC)]),
    (truncation_that_begins_no_generation, [("append", "foo", 5_000), ("cutbeside", "foo", 0, 3, 10, True)]),
    (fsync_that_does_nothing, [("append", "foo", 9_000), ("fsync", "foo", False)]),
]


OF_NAMES = [
    (rename_that_does_not_flush, [("append", "foo", 9_000), ("rename", "foo", "bar", 0), ("fsyncdir", ".")]),
    (fsync_that_waits_for_no_names, [("creat", "new"), ("fsync", "new", False)]),
]


@pytest.mark.parametrize(("broken", "workload"), BROKEN, ids=[broken.__name__ for broken, _ in BROKEN])
def test_the_model_sees_a(broken, workload, tmp_path, seed, monkeypatch):
    _is_seen(broken, workload, tmp_path, seed, monkeypatch, CrashRig)


@pytest.mark.parametrize(("broken", "workload"), OF_NAMES, ids=[broken.__name__ for broken, _ in OF_NAMES])
def test_on_a_mount_that_decides_names_the_model_sees_a(broken, workload, tmp_path, seed, monkeypatch):
    _is_seen(broken, workload, tmp_path, seed, monkeypatch, DelegatedCrashRig)


def _is_seen(broken, workload, tmp_path, seed, monkeypatch, kind):
    base = first_image(tmp_path, delegated=kind.delegated)
    Model(tmp_path, base, seed, kind=kind).run(workload)
    broken(monkeypatch)
    with pytest.raises(AssertionError):
        Model(tmp_path, base, seed, commit_every=1, kind=kind).run(workload)
