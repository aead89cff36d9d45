"""Every failpoint is reached, and a process that dies at one takes nothing with it that fsync has confirmed; fsck is clean.

The normal run reaches every point of the table: counted in this process (data and metadata path, journal, collection, voters) and on a
node (daemon, keeper, workers), where some of them kill; each point of a snapshot's way kills a child.  In the soak each of the others kills
its process in turn.  Counts are of all processes, from a shared file.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import pytest

from awsomefsd.base import failpoints
from awsomefsd.base.failpoints import POINTS, FailpointControl
from awsomefsd.keeper.client import KeeperClient
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.raft.types import Config
from awsomefsd.meta.replica.state_snapshot_files import StateSnapshotFiles
from awsomefsd.meta.voter import voter as voter_module
from awsomefsd.meta.voter.ports import RAFT_NOTE, AppliedAt, pack_note
from buildtools.nodes import Node, await_true
from tests.crash.failpoint_rounds import GO_ON_S, Load, Round
from tests.rigs.mount_without_kernel import rig as mounted
from tests.rigs.sharing_nodes import FIRST, Sharing
from tests.unit.io.collect import test_collector as collecting
from tests.unit.io.pool import test_attach as attaching
from tests.unit.meta.voter import test_membership_changes as growing
from tests.unit.meta.voter import test_voter as voting
from tests.unit.vfs.ops.test_buffered_writes import Leased

POINTS_MIN = 40
ORDER = ("load", "worker", "daemon", "scrub", "collect", "keeper", "upgrade", "spawn", "unmount")
CHOSEN = (
    "journal.sync.before", "journal.sync.after", "request.reply.stored", "dirty.store.after", "device.flush.before", "flush.commit.after",
    "checkpoint.tail.before", "takeover.records.found", "takeover.requests.repeated", "log.replay.before", "checkpoint.final.before",
    "scrub.copy.after", "collect.relocate.after", "keeper.adopt.before", "keeper.exec.after", "keeper.start.before", "segment.seal.after",
)  # fmt: skip
SNAPSHOT_KILLS = [name for name in POINTS if name.startswith("snapshot.")]
INSTALL_KILLS = [name for name in POINTS if name.startswith("exchange.")]
INSTALL = "import pathlib, sys; from tests.crash.test_failpoints import voters; voters(pathlib.Path(sys.argv[1]), int(sys.argv[2]))"
EXCHANGE = r"""
import sys
from pathlib import Path
from awsomefsd.meta.log.disk import OsDisk
from awsomefsd.meta.raft.messages import StateSnapshotChunk
from awsomefsd.meta.replica.state_snapshot_files import StateSnapshotFiles
source, target = (StateSnapshotFiles(Path(name), OsDisk().beside, 1 << 22) for name in sys.argv[1:])
store = source.open_store()
source.start_copy(store)
while (meta := source.copied()) is None:
    pass
target.write(StateSnapshotChunk("a", "b", 3, meta, 0, meta.size, source.read(meta.name, 0, meta.size)))
target.stage(meta, "cluster", "me", b"i" * 16)
target.open_store().close()
"""


# --- counted in this process ----------------------------------------------------------------------------------------------------
@contextmanager
def counting(control: FailpointControl) -> Iterator[None]:
    failpoints.configure("", str(control.path))
    try:
        yield
    finally:
        failpoints.configure("", "")


def a_mount(directory: Path, dice: Random) -> None:
    """Segments and journal files of a worker and service are filled, sealed, collected and dropped."""
    with mounted(directory) as r:
        kept = {}
        for number in range(48):
            ino, fh = r.create(b"f%d" % number)
            data = dice.randbytes(200_000)
            r.write(ino, fh, 0, data)
            r.call("setxattr", ino, b"user.a", dice.randbytes(30_000), 0)
            r.close_file(ino, fh)
            if number % 4 == 0:
                r.flush()
                r.truncate(ino, 150_000)
                kept[ino] = data[:150_000]
        r.flush()
        for number in range(48):
            if number % 4:
                collecting.remove(r, b"f%d" % number)
        assert collecting.collect(collecting.collector(r)) > 0
        r.restart()
        assert all(r.content(ino) == data for ino, data in kept.items())
        r.unmount()
        r.check()


def a_shared_mount(directory: Path) -> None:
    """A write that goes through to the device at once, and one that is held back until another mount reads it."""
    (directory / "through").mkdir()
    node = Sharing(directory / "through")
    try:
        node.start()
        ino, fh = node.create(b"shared")
        node.write(ino, fh, 0, b"through" * 10_000)
        node.close_file(ino, fh)
        assert node.content(ino) == b"through" * 10_000
        node.unmount()
        node.check()
    finally:
        node.close()
    node = Leased(directory)
    other = Leased(directory, node, FIRST + 1)
    try:
        node.start()
        other.start()
        ino, fh = node.create(b"held")
        node.write(ino, fh, 0, b"back")
        assert other.content(ino) == b"back"
        other.unmount()
        node.unmount()
        node.check()
    finally:
        other.close()
        node.close()


@contextmanager
def three_voters(directory: Path, seed: int) -> Iterator[voting.Rig]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(voter_module, "VOTER_KEEP_ENTRIES", 20)
        patch.setattr(voter_module, "VOTER_KEEP_ENTRIES_MAX", 100)
        patch.setattr(voter_module, "Config", partial(Config, cache_entries_max=10, chunk_bytes=4_096))
        rig = voting.Rig(directory, seed)
        rig.file_bytes = 16 << 10
        try:
            yield rig
        finally:
            for node in rig.all.values():
                node.stop()


def voters(directory: Path, seed: int) -> None:
    """A follower so far behind that it gets a snapshot; journals of 16 KiB are begun and dropped on the way."""
    with three_voters(directory, seed) as rig:
        rig.start()
        rig.propose(50)
        late = rig.others(rig.led())[0]
        late.stop()
        voting.forget_the_past(rig)
        late.start()
        rig.until(rig.same)
        assert late.voter is not None and late.voter.state_snapshots.installs == 1
        late.stop()
        late.start()


# --- kills ----------------------------------------------------------------------------------------------------------------------
def state_of(directory: Path) -> tuple[bytes | None, int]:
    store = StateSnapshotFiles(directory, OsDisk().beside, 1 << 22).open_store()
    try:
        assert store.identity is not None
        return store.get(b"key"), store.identity.state_snapshot_index
    finally:
        store.close()


def exchange_that_dies(directory: Path, control: FailpointControl, name: str) -> None:
    """The state after it is the old one or the new one, and the next exchange works."""
    for part, index in (("source", 9), ("target", 2)):
        (directory / part).mkdir(parents=True)
        store = StateSnapshotFiles(directory / part, OsDisk().beside, 1 << 22).open_store()
        store.claim("cluster", part, b"i" * 16)
        store.put(b"key", part.encode())
        store.set_note(RAFT_NOTE, pack_note(AppliedAt(index, 3)))
        store.commit()
        store.close()
    argv = [sys.executable, "-c", EXCHANGE, str(directory / "source"), str(directory / "target")]
    env = os.environ | {"AWSOMEFSD_FAILPOINTS_FILE": str(control.path), "PYTHONPATH": os.pathsep.join(sys.path)}
    control.arm(name, 1)
    assert subprocess.run(argv, env=env, check=False, timeout=60).returncode == -signal.SIGKILL, name
    assert control.fired(name) == 1
    new = name in ("snapshot.ready.after", "snapshot.replace.before", "snapshot.replace.removed", "snapshot.replace.after")
    assert state_of(directory / "target") == ((b"source", 9) if new else (b"target", 0)), name
    assert state_of(directory / "source") == (b"source", 0)
    assert subprocess.run(argv, env=env, check=False, timeout=60).returncode == 0
    assert state_of(directory / "target") == (b"source", 9)


def install_that_dies(directory: Path, control: FailpointControl, name: str, seed: int) -> None:
    """All three voters are one process here; started again they go on, and hold the same."""
    env = os.environ | {"AWSOMEFSD_FAILPOINTS_FILE": str(control.path), "PYTHONPATH": os.pathsep.join(sys.path)}
    control.arm(name, 1)
    argv = [sys.executable, "-c", INSTALL, str(directory), str(seed)]
    assert subprocess.run(argv, env=env, check=False, timeout=120).returncode == -signal.SIGKILL, name
    with three_voters(directory, seed) as rig:
        rig.start()
        assert min(node.voter.first_index for node in rig.all.values()) > 50, "the late one stands behind the snapshot"
        rig.propose(5)
        rig.until(rig.same)


def kills_on_a_node(node: Node, control: FailpointControl, load: Load, dice: Random, names: list[str]) -> None:
    """Each in turn, under load; then unmounted, and clean."""
    errors_before_unmount = -1
    try:
        load.start()
        load.await_progress()
        for name in names:
            if POINTS[name] == "unmount" and errors_before_unmount < 0:
                errors_before_unmount = load.errors()
            began = time.monotonic()
            Round(node, control, load, dice).run(name)
            print(f"{name}: {time.monotonic() - began:.1f} s")
    finally:
        load.stop()
    assert errors_before_unmount == 0, "no operation fails, also where keeper and worker die together"
    assert load.wrong() == []
    assert [name for name in names if not control.fired(name)] == []


def clean_end(node: Node, load: Load) -> None:
    node.await_daemon()
    node.umount()
    node.stop()
    node.cli("fsck", timeout_s=120)
    assert load.confirmed() > 0


def begin(make_node, control: FailpointControl) -> Node:
    node: Node = make_node(up=False)
    node.failpoints = control.path
    node.up()
    return node


def tell(figures: list[str], control: FailpointControl, title: str, began: float) -> None:
    figures.append(f"failpoints, {title} ({time.monotonic() - began:.0f} s): {len(POINTS)} names; hits:")
    figures += [f"  {name:28s} {control.hits(name):10,d}  kills {control.fired(name)}" for name in POINTS]


@pytest.mark.root
@pytest.mark.timeout(1_200)
def test_every_failpoint_is_reached(make_node, figures, seed, tmp_path):
    assert len(POINTS) >= POINTS_MIN
    began = time.monotonic()
    control = FailpointControl(tmp_path / "failpoints")
    with counting(control):
        (tmp_path / "rig").mkdir()
        a_mount(tmp_path / "rig", Random(seed))
        (tmp_path / "shared").mkdir()
        a_shared_mount(tmp_path / "shared")
        voters(tmp_path / "voters", seed)
        (tmp_path / "growing").mkdir()
        growing.grow_alone(tmp_path / "growing")
        (tmp_path / "attached").mkdir()
        attaching.Rig(tmp_path / "attached").once()
    for name in SNAPSHOT_KILLS:
        exchange_that_dies(tmp_path / name, control, name)
    for name in INSTALL_KILLS:
        install_that_dies(tmp_path / name, control, name, seed)
    print(f"in process: {time.monotonic() - began:.1f} s")
    node = begin(make_node, control)
    load = Load(node, tmp_path / "manifest", seed * 1000)
    kills_on_a_node(node, control, load, Random(seed), list(CHOSEN))
    node.cli("scrub", "start")
    await_true("the end of the scrub", lambda: node.ask("scrub", "status")["state"] == "done", 60, 0.1)
    hit = node.kill("keeper")  # the worker may have died with the keeper in the round above: then nobody was adopted in it
    node.replaced("keeper", hit["keeper"], GO_ON_S)
    await_true("an adoption", lambda: control.hits("keeper.adopt.after"), GO_ON_S, 0.1)
    KeeperClient(node.run).upgrade()
    clean_end(node, load)
    tell(figures, control, f"{len(CHOSEN) + len(SNAPSHOT_KILLS) + len(INSTALL_KILLS)} kills, {load.confirmed():,} fsynced files", began)
    never = [name for name in POINTS if not control.hits(name) and POINTS[name] != "founding"]  # those: tests/cluster/test_founding.py
    assert never == [], "never reached"


@pytest.mark.root
@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_a_kill_at_each_failpoint(make_node, figures, seed, tmp_path):
    dice = Random(seed)
    began = time.monotonic()
    control = FailpointControl(tmp_path / "failpoints")
    node = begin(make_node, control)
    load = Load(node, tmp_path / "manifest", seed * 1000)
    names = [name for name in POINTS if POINTS[name] in ORDER]
    dice.shuffle(names)
    names.sort(key=lambda name: ORDER.index(POINTS[name]))
    kills_on_a_node(node, control, load, dice, names)
    clean_end(node, load)
    tell(figures, control, f"a kill at each, {load.confirmed():,} fsynced files", began)
    elsewhere = sorted(name for name in POINTS if POINTS[name] in ("snapshot", "founding", "shared", "attach"))
    where = "those kill in the normal run (of shared mounts: test_shared_failpoints.py; of pools: unit/segments/test_kills.py)"
    assert sorted({*POINTS} - {*names}) == elsewhere, where
