"""Real SIGKILLs: a child mutates a shared memfd, dies at a random moment, and what it finished must be there for its successor.

Operation k is a pure function of (seed, k, model), so the parent knows what the memory must hold from the number of operations that the
child finished: that state, or the one after the operation it was in.
"""

from __future__ import annotations

import mmap
import os
import random
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import pytest

from awsomefsd.base import shm
from awsomefsd.fuse.parked_requests import ParkArea
from awsomefsd.fuse.slots import DONE
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.vfs.state import open_files
from awsomefsd.vfs.state.open_files import OpenTable
from tests.conftest import SEED

RUN_S = 0.7  # of each area
LIMIT_S = 60.0  # on a busy machine most children die before their first operation
Model = dict[int, Any]  # unique to what a successor must find
Step = Callable[[Any, int, Model], None]


def pick(k: int) -> random.Random:
    return random.Random(SEED << 32 | k)


def park_request(k: int) -> bytes:
    rng = pick(k)
    body = rng.randbytes(rng.choice((0, 200, 1500, 3000)))
    return struct.pack("<IIQQIIIHH", 40 + len(body), 31, k, 1, 0, 0, 0, 0, 0) + body


# Each step applies operation k to the model and, if there is an area, to that.


def dirty_step(log: DirtyLog | None, k: int, model: Model) -> None:
    rng = pick(k)
    oldest = min(model, default=k)
    if len(model) < 12 and oldest > k - 20 and rng.random() < 0.6:
        data = rng.randbytes(rng.choice((0, 10, 4096, 5000)))
        model[k] = (k % 7, k * 3, data)
        if log is not None:
            assert log.append_write(k % 7, k * 3, data, k, 0, 0) is not None
            if rng.random() < 0.5:
                log.answered(k)
    elif model:
        unique = oldest if oldest <= k - 20 else rng.choice(sorted(model))
        del model[unique]
        if log is not None:
            record = log.find_unique(unique)
            assert record is not None and record.is_dirty
            log.mark_clean([record])
            log.answered(unique)  # the log goes on behind what is clean and answered


def dirty_observe(log: DirtyLog) -> Model:
    found = {record.unique: (record.ino, record.offset, bytes(record.data)) for record in log.recover()}
    assert not log.corrupt
    return found


def opens_step(table: OpenTable | None, k: int, model: Model) -> None:
    rng = pick(k)
    if len(model) < 20 and rng.random() < 0.55:
        model[k] = k % 7
        if table is not None:
            table.open(k % 7, 0, k)
    elif model:
        unique = rng.choice(sorted(model))
        del model[unique]
        if table is not None:
            fh = table.find_unique(unique)
            assert fh is not None and table.close(fh) is not None


def opens_observe(table: OpenTable) -> Model:
    return {file.unique: file.ino for file in table}


def park_step(area: ParkArea | None, k: int, model: Model) -> None:
    rng = pick(k)
    choice = rng.random()
    entries = {entry.unique: entry for entry in area.entries()} if area is not None else {}
    if len(model) < 12 and choice < 0.5:
        model[k] = (park_request(k), b"")
        if area is not None:
            assert area.park(park_request(k)) is not None
    elif model:
        unique = rng.choice(sorted(model))
        if choice < 0.7 and not model[unique][1]:
            model[unique] = (model[unique][0], b"reply %d" % k)
            if area is not None:
                entries[unique].store_reply(b"reply %d" % k)
        else:
            del model[unique]
            if area is not None:
                entries[unique].free()


def park_observe(area: ParkArea) -> Model:
    assert all(entry.is_intact for entry in area.entries())
    return {entry.unique: (bytes(entry.request()), entry.reply() if entry.state == DONE else b"") for entry in area.entries()}


AREAS: dict[str, tuple[int, Callable[[Any], Any], Step, Callable[[Any], Model]]] = {
    "dirty": (512 * 1024, lambda mem: DirtyLog(mem, 77, recall_bytes=4096), dirty_step, dirty_observe),
    "opens": (open_files.required_bytes(64), OpenTable, opens_step, opens_observe),
    "park": (256 * 1024, lambda mem: ParkArea(mem, recall_bytes=0), park_step, park_observe),
}


def child(area: Any, step: Step, model: Model, progress: memoryview) -> None:
    """Runs until it is killed; never returns into the test."""
    try:
        while True:
            k = progress[0] + 1
            step(area, k, model)
            progress[0] = k
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(1)


@pytest.mark.parametrize("name", AREAS)
def test_a_kill_leaves_the_old_or_the_new_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_files, "SLACK_RECORDS", 8)
    size, make, step, observe = AREAS[name]
    fd = shm.create_memfd(name, size)
    progress = shm.words(memoryview(mmap.mmap(-1, shm.PAGE_BYTES)))
    rng = random.Random(SEED)
    model: Model = {}
    kills = between = 0
    handles: dict[int, int] = {}
    try:
        began = time.monotonic()
        while time.monotonic() < began + RUN_S or kills < 5 or progress[0] <= kills:
            assert time.monotonic() < began + LIMIT_S, f"{kills} children got no further than {progress[0]} operations"
            mem = shm.map_memfd(fd)
            done = progress[0]
            area = make(mem)
            assert observe(area) == model, f"seed {SEED}, after {done} operations"
            handles = check_handles(area, handles)
            run_and_kill(area, step, dict(model), progress, rng.random() * (0.006 if progress[0] > kills else 0.1))
            kills += 1
            for k in range(done + 1, progress[0] + 1):
                step(None, k, model)
            found = observe(make(shm.map_memfd(fd)))
            if found != model:  # killed after the last store, before it was counted
                progress[0] += 1
                step(None, progress[0], model)
                between += 1
                assert found == model, f"seed {SEED}, killed in operation {progress[0]}"
    finally:
        os.close(fd)
    print(f"{name}: {kills} kills, {progress[0]} operations, {between} not counted by the child")


def run_and_kill(area: Any, step: Step, model: Model, progress: memoryview, after_s: float) -> None:
    pid = os.fork()
    if pid == 0:
        child(area, step, model, progress)
    try:
        time.sleep(after_s)  # the moment of death is the random input here, nothing is awaited
    finally:
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child failed by itself, see its traceback"


def check_handles(area: Any, before: dict[int, int]) -> dict[int, int]:
    """Handles stay what they were, and new ones are above all that were seen."""
    if not isinstance(area, OpenTable):
        return {}
    now = {file.unique: file.fh for file in area}
    newest = max(before.values(), default=0)
    for unique, fh in now.items():
        assert before[unique] == fh if unique in before else fh > newest
    return now
