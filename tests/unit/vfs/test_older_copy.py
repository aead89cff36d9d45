"""What a mount tells of data that it holds when the cluster goes on from an older copy of its metadata (decision 456)."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from awsomefsd.base.errors import Error
from awsomefsd.base.identity import Node
from awsomefsd.base.limits import SESSION_SELF_FENCE_MS
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.recovery.device_recover import adopt, fill_journal
from awsomefsd.recovery.first_entries import recover_from_copy
from awsomefsd.worker import takeover as takeover_module
from tests.rigs.delegated_mount import Delegated, others_change, shipped
from tests.rigs.metadata_service import CLUSTER, NODE
from tests.rigs.mount_without_kernel import VOLUME, Rig, error_of, rig, until


class Shared(Rig):
    shared = caches = True


KINDS = [Rig, Delegated, Shared]


def go_back(r: Rig, copy: Path, incarnation_seen: int = 0) -> None:
    """The host goes on from the copy, and Recover is its first entry, as recovery/restore.py does it."""
    if r.host.service is not None:
        r.host.service.stop()
    meta = r.directory / "meta"
    shutil.rmtree(meta)
    shutil.copytree(copy, meta)
    shutil.rmtree(meta / "journal")
    (meta / "journal").mkdir(mode=0o700)
    node, incarnation = Node(CLUSTER, NODE, 7), os.urandom(16)
    index, term = adopt(meta / "store", node, incarnation, 1)
    fill_journal(meta / "journal", node, incarnation, 1_000, index, term, iter(()))
    recovered(meta, incarnation_seen)
    r.host.start()


def recovered(meta: Path, incarnation_seen: int = 0) -> None:
    replica = Replica.open_single(meta, CLUSTER, NODE, Machine)
    try:
        recover_from_copy(replica, incarnation_seen, "a test", "")
        replica.commit()
    finally:
        replica.close()


def copied(r: Rig, to: Path) -> None:
    r.host.service.stop()
    shutil.copytree(r.directory / "meta", to)
    r.host.start()


def put_aside(r: Rig) -> bytes:
    area = r.directory / "conflicts"
    return b"".join(path.read_bytes() for path in sorted(area.rglob("*")) if path.is_file())


def lose_the_session(r: Rig) -> None:
    """The worker finds out, and has opened another one when this returns."""
    before = r.worker.memory.control.state.session
    r.lease_clock.advance(SESSION_SELF_FENCE_MS / 1_000 + 1)
    r.worker.client._keeper.doubt()
    until(lambda: r.worker.memory.control.state.session != before and not r.worker.sessions._busy.locked())


def written(r: Rig, tmp_path: Path) -> tuple[int, int]:
    """A file that the copy lacks, with data that is not synced; returns its inode and a handle."""
    r.flush()
    copied(r, tmp_path / "copy")
    ino, fh = r.create(b"f")
    if isinstance(r, Delegated):
        shipped(r)
    r.write(ino, fh, 0, b"acknowledged")
    return ino, fh


@pytest.mark.parametrize("kind", KINDS)
def test_a_living_mount_puts_aside_what_it_holds_and_says_so(tmp_path: Path, kind: type[Rig]) -> None:
    (tmp_path / "rig").mkdir()
    with rig(tmp_path / "rig", made_by=kind) as r:
        ino, fh = written(r, tmp_path)
        go_back(r, tmp_path / "copy")
        lose_the_session(r)
        assert b"acknowledged" in put_aside(r)
        with pytest.raises((Error, OSError)):
            r.fsync(ino, fh)


@pytest.mark.parametrize("kind", KINDS)
def test_a_successor_puts_aside_what_a_dead_worker_held(tmp_path: Path, kind: type[Rig]) -> None:
    (tmp_path / "rig").mkdir()
    with rig(tmp_path / "rig", made_by=kind) as r:
        written(r, tmp_path)
        r.kill()
        go_back(r, tmp_path / "copy")
        r.start()
        assert b"acknowledged" in put_aside(r)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_newer_is_laid_over_what_the_copy_has(tmp_path: Path, kind: type[Rig]) -> None:
    """The copy lacks a write that was synced; the one behind it would make a file that never was."""
    (tmp_path / "rig").mkdir()
    with rig(tmp_path / "rig", made_by=kind) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"A" * 8)
        r.flush()
        copied(r, tmp_path / "copy")
        r.write(ino, fh, 0, b"B" * 8)
        r.flush()
        r.write(ino, fh, 4, b"C")
        go_back(r, tmp_path / "copy")
        lose_the_session(r)
        with pytest.raises((Error, OSError)):
            r.fsync(ino, fh)
        assert b"C" in put_aside(r) and r.content(ino) == b"A" * 8


def test_what_others_changed_since_the_recovery_is_not_overwritten(tmp_path: Path) -> None:
    """Recover deletes the sessions, so the leader cannot say to the mount of before that another one had its volume."""
    with rig(tmp_path, made_by=Rig) as r:
        ino, fh = r.create(b"f")
        r.write(ino, fh, 0, b"mine")
        r.flush()
        r.write(ino, fh, 0, b"dirty here")
        r.kill()
        r.host.service.stop()
        recovered(r.directory / "meta")
        r.host.start()
        others_change(r)
        r.start()
        assert b"dirty here" in put_aside(r) and r.content(ino) == b"mine"


@pytest.mark.parametrize("kind", KINDS)
def test_a_recovery_while_a_successor_looks_what_is_there(tmp_path: Path, kind: type[Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """It opened its session before, so nothing tells it that the file is gone because the copy lacks it."""
    (tmp_path / "rig").mkdir()
    with rig(tmp_path / "rig", made_by=kind) as r:
        written(r, tmp_path)
        r.kill()

        def recovery(name: str) -> None:
            if name == "takeover.records.found":
                go_back(r, tmp_path / "copy")

        monkeypatch.setattr(takeover_module, "hit", recovery)
        r.start()
        assert b"acknowledged" in put_aside(r)


def replacing(r: Rig, tmp_path: Path) -> None:
    """A file that the copy has, and a new version of it, of which the copy has the name and no bytes, though they are synced."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"old version")
    r.close_file(ino, fh)
    ino, fh = r.create(b"f.new")
    r.flush()
    copied(r, tmp_path / "copy")
    r.write(ino, fh, 0, b"new version")
    r.fsync(ino, fh)
    r.close_file(ino, fh)
    r.flush()


@pytest.mark.parametrize("kind", KINDS)
def test_what_waits_through_a_recovery_is_not_done_behind_it(tmp_path: Path, kind: type[Rig]) -> None:
    """A program that writes a new version, syncs it and renames it would put an empty file in the place of the old one."""
    (tmp_path / "rig").mkdir()
    with rig(tmp_path / "rig", made_by=kind) as r:
        replacing(r, tmp_path)
        r.host.service.stop()
        r.host.service = None
        if isinstance(r, Delegated):
            r.lease_clock.advance(SESSION_SELF_FENCE_MS / 1_000 + 1)  # else it decides it
        renaming = r.begin("rename", 1, b"f.new", 1, b"f", 0)
        go_back(r, tmp_path / "copy")
        lose_the_session(r)
        assert error_of(renaming.result) == errno.EIO
        assert r.content(r.lookup(b"f").ino) == b"old version" and r.lookup(b"f.new").size == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_successor_does_not_repeat_what_was_asked_for_before_a_recovery(tmp_path: Path, kind: type[Rig]) -> None:
    (tmp_path / "rig").mkdir()
    with rig(tmp_path / "rig", made_by=kind) as r:
        replacing(r, tmp_path)
        r.kill()
        go_back(r, tmp_path / "copy")
        (renamed,) = r.start(lambda vfs: vfs.rename(r.ctx(), 1, b"f.new", 1, b"f", 0))
        assert getattr(renamed, "errno", None) == errno.EIO
        assert r.content(r.lookup(b"f").ino) == b"old version"


@pytest.mark.parametrize("kind", KINDS)
def test_a_second_recovery_from_the_same_copy_is_noticed_too(tmp_path: Path, kind: type[Rig]) -> None:
    """It gave the same numbers out again: the mount was taken for one whose session goes on."""
    (tmp_path / "rig").mkdir()
    with rig(tmp_path / "rig", made_by=kind) as r:
        written(r, tmp_path)
        seen = 0
        for round_ in range(3):
            go_back(r, tmp_path / "copy", seen)
            lose_the_session(r)
            ino, fh = r.create(b"g%d" % round_)
            r.write(ino, fh, 0, bytes(100_000))
            r.fsync(ino, fh)
            layout = block_on(r.mount.metadata.ask(m.GetLayout(VOLUME, ino, 0, 1 << 40)))
            seen = max(seen, layout.extents[0].incarnation)
            r.write(ino, fh, 0, b"held back %d" % round_)
        go_back(r, tmp_path / "copy", seen)
        lose_the_session(r)
        assert all(b"held back %d" % round_ in put_aside(r) for round_ in range(3))
        with pytest.raises((Error, OSError)):
            r.fsync(ino, fh)
