"""A snapshot becomes the store whole or not at all, wherever the process ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.raft.messages import StateSnapshotChunk
from awsomefsd.meta.replica import state_snapshot_files as files_module
from awsomefsd.meta.replica.state_snapshot_files import StateSnapshotFiles, set_aside
from awsomefsd.meta.voter.ports import RAFT_NOTE, AppliedAt, pack_note

CLUSTER, INCARNATION = "cluster", b"i" * 16


class Killed(BaseException):
    """The process ends here."""


def files(directory: Path) -> StateSnapshotFiles:
    directory.mkdir(exist_ok=True)
    return StateSnapshotFiles(directory, OsDisk().beside, 1 << 22)


def with_state(directory: Path, value: bytes, index: int) -> StateSnapshotFiles:
    made = files(directory)
    store = made.open_store()
    store.claim(CLUSTER, "node of " + directory.name, INCARNATION)
    store.put(b"key", value)
    store.set_note(RAFT_NOTE, pack_note(AppliedAt(index, 3)))
    store.commit()
    store.close()
    return made


def test_killed_at_every_step_of_the_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = with_state(tmp_path / "source", b"new", 9)
    store = source.open_store()
    source.start_copy(store)
    while (meta := source.copied()) is None:
        pass
    data = source.read(meta.name, 0, meta.size)
    store.close()
    assert data is not None and (meta.index, meta.term) == (9, 3)
    left, counted = [-1], []

    def counting(call):
        def step(*arguments, **options):
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            counted.append(call.__name__)
            return call(*arguments, **options)

        return step

    monkeypatch.setattr(Path, "rename", counting(Path.rename))
    monkeypatch.setattr(files_module, "sync_directory", counting(files_module.sync_directory))
    monkeypatch.setattr(files_module.shutil, "rmtree", counting(files_module.shutil.rmtree))
    seen = set()
    for step in range(30):
        target = tmp_path / f"target{step}"
        made = with_state(target, b"old", 2)
        made.write(StateSnapshotChunk("a", "b", 3, meta, 0, meta.size, data))
        left[0] = step
        try:
            made.stage(meta, CLUSTER, "me", INCARNATION)
            made.open_store().close()
            finished = True
        except Killed:
            finished = False
        left[0] = -1
        store = files(target).open_store()
        assert store.identity is not None
        state = (store.get(b"key"), store.identity.node, store.identity.state_snapshot_index)
        store.close()
        assert state in ((b"old", f"node of target{step}", 0), (b"new", "me", 9))
        assert not (target / "incoming.store").exists() and not (target / "store.ready").exists()
        seen.add(state[0])
        if finished:
            break
    assert finished and seen == {b"old", b"new"}


def test_what_is_set_aside_is_kept_three_times(tmp_path: Path) -> None:
    for number in range(5):
        for name in ("journal", "store"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "mark").write_text(str(number))
        set_aside(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{name}.aside.{n}" for name in ("journal", "store") for n in (3, 4, 5)]
    assert (tmp_path / "store.aside.5" / "mark").read_text() == "4"
