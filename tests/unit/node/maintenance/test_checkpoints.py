"""The daemon's thread that makes checkpoints, over a real service and a file as the device; and the recovery from that file."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import durable
from awsomefsd.base import identity as node_module
from awsomefsd.base.errors import AlreadyExists, FsError, NotFound, Refused
from awsomefsd.base.limits import MIB
from awsomefsd.base.rule_levels import CHECKPOINTS_OF_NODES
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.superblock import FIRST_SEGMENT_OFFSET, Superblock, second_copy_offset, write_superblock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.nodes import GetSigner, GetVerifier, ListCas
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.meta.replica.checkpoint_progress import OFF, UNKNOWN, CheckpointProgress
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.node.maintenance.checkpoint_places import PlacesAlone, PlacesOfNode
from awsomefsd.node.maintenance.checkpoints import STANDS_BY, Checkpointer
from awsomefsd.recovery import device_recover
from buildtools.nodes import await_true
from tests.rigs.metadata_service import CLUSTER, NODE, Host, host

SECOND = "eeeeeeee-eeee-eeee-eeee-eeeeeeeeeeee"
SEGMENTS = 70


def make_device(path: Path, cluster: str = CLUSTER, uuid: str = SECOND) -> Path:
    with path.open("wb") as file:
        file.truncate((SEGMENTS + 2) * MIB)
    with Device.open(path) as device:
        write_superblock(device, Superblock(cluster, uuid, device.bytes, MIB, SEGMENTS, 1))
    return path


@pytest.fixture(params=[2, CHECKPOINTS_OF_NODES], ids=["level 2", "level 3"], autouse=True)
def level(request: pytest.FixtureRequest) -> int:
    """Of the cluster: below level 3 no row says whose the segments are, and which checkpoint counts."""
    Rig.level = request.param
    return request.param


class Rig:
    level = 0

    def __init__(self, on: Host, path: Path) -> None:
        self.on, self.path = on, path
        self.index: CheckpointProgress = on.checkpoint_progress
        self.made: Checkpointer | None = None

    def call(self, body: Any) -> Any:
        assert self.on.service is not None
        reply = self.on.service.query(body)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply

    def propose(self, command: c.AnyCommand) -> Any:
        return self.call(m.Propose(HOST_UNIQUE, 0, 0, [], command))

    def start(self, leads: Callable[[], bool] = lambda: True) -> Checkpointer:
        assert self.on.service is not None
        identity = node_module.Node(CLUSTER, NODE, 7)
        self.made = Checkpointer(
            self.on.directory,
            identity,
            self.call,
            self.on.service.copy_store,
            self.index,
            lambda: {SECOND: str(self.path)},
            leads=leads,
        )
        self.made.start()
        return self.made

    def stop(self) -> None:
        if self.made is not None:
            self.made.stop()
            self.made = None

    @property
    def applied(self) -> int:
        return int(self.on.figures()["applied"])

    def await_durable(self) -> int:
        applied = self.applied
        self.index.wanted.set()
        await_true("the device has it", lambda: self.index.durable >= applied, 60)
        return applied


@contextmanager
def rig(tmp_path: Path, **replica_options: int) -> Iterator[Rig]:
    path = make_device(tmp_path / "device")
    with host(tmp_path, checkpoint_progress=CheckpointProgress(UNKNOWN), replica_options=replica_options, level=Rig.level) as on:
        made = Rig(on, path)
        made.propose(c.AddDevice(SECOND, (SEGMENTS + 2) * MIB, MIB, SEGMENTS, MIB))
        try:
            yield made
        finally:
            made.stop()


def recovered_machine(directory: Path) -> tuple[Replica, Machine]:
    identity = node_module.load(directory)
    replica = Replica.open_single(directory / "meta", identity.cluster, identity.node, Machine)
    assert isinstance(replica.machine, Machine)
    return replica, replica.machine


def rests(made: Rig) -> None:
    await_true("the writer has nothing to do, and waits for an entry", lambda: made.index.resting, 60)


def test_an_entry_ends_the_rest_of_an_idle_writer(tmp_path):
    with rig(tmp_path) as made:
        checkpointer = made.start()
        for number in range(3):
            rests(made)
            assert made.index.durable >= made.applied and checkpointer.figures(made.applied + 1)["checkpoint_lag_entries"] == 1
            made.propose(c.CreateVolume(f"v{number}", f"uuid-{number}"))
            applied = made.applied
            await_true("its entry is on the device, and nobody asked for it", lambda applied=applied: made.index.durable >= applied, 60)
        rests(made)
        made.stop()
        assert checkpointer.state == "off: the daemon ends"


def test_what_becomes_the_first_of_several_ends_the_rest_of_an_idle_writer(tmp_path):
    with rig(tmp_path) as made:
        checkpointer = made.start()
        rests(made)
        checkpointer.growing()
        await_true("it stands by", lambda: checkpointer.state == STANDS_BY, 60)


def test_the_end_of_a_leadership_ends_the_rest_of_an_idle_writer(tmp_path):
    with rig(tmp_path) as made:
        leads = [True]
        checkpointer = made.start(lambda: leads[0])
        rests(made)
        leads[0] = False
        made.index.wake()  # as the leader that steps down does
        await_true("it stands by", lambda: checkpointer.state == STANDS_BY, 60)


def test_a_new_path_of_a_device_ends_the_rest_of_an_idle_writer(tmp_path):
    with rig(tmp_path) as made:
        table = DeviceTable(tmp_path, made.index.wake)
        looked = threading.Event()
        checkpointer = made.start()
        rests(made)
        choosing = checkpointer._paths
        checkpointer._paths = lambda: (looked.set(), choosing())[1]
        table.add("other", "/dev/other")
        assert looked.wait(60), "the writer asks where it is to write"


def test_commits_reach_the_device_and_a_new_node_has_them(tmp_path):
    with rig(tmp_path) as made:
        checkpointer = made.start()
        made.await_durable()
        for number in range(30):
            made.propose(c.CreateVolume(f"v{number}", f"uuid-{number}"))
        last = made.await_durable()
        figures = checkpointer.figures(last)
        assert (figures["checkpoint"], figures["checkpoint_lag_entries"], figures["checkpoint_lag_ms"]) == ("ok", 0, 0)
        with pytest.raises(Refused, match="in use"):
            device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=True)
        made.stop()
        last = made.applied
        made.propose(c.CreateVolume("lost", "uuid-lost"))
    before = made.path.read_bytes()
    report = device_recover.recover(tmp_path / "new", [str(made.path)], "", dry_run=True)
    assert report.index == last and not report.done and made.path.read_bytes() == before and not (tmp_path / "new").exists()
    with pytest.raises(Refused, match="confirm"):
        device_recover.recover(tmp_path / "new", [str(made.path)], "", dry_run=False)
    report = device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=False)
    assert (report.index, report.faults, report.checkpointed) == (last, [], True)
    replica, machine = recovered_machine(tmp_path / "new")
    names = {row.name for number in range(1, machine.state.cluster.next_volume) if (row := machine.state.volume(number))}
    base, term = machine.state.cluster.incarnation_base, replica.log.term
    replica.close()
    assert "v29" in names and "lost" not in names
    with pytest.raises(AlreadyExists):
        device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=False)
    device_recover.recover(tmp_path / "newer", [str(made.path)], "test", dry_run=False)
    replica, machine = recovered_machine(tmp_path / "newer")
    assert replica.log.term > term and machine.state.cluster.incarnation_base > base, (
        "the first recovery is on the device, with its numbers"
    )
    replica.close()


def on_device(path: Path, scratch: Path) -> bytes:
    """Returns the copy and the entries of the newest checkpoint as a recovery reads them."""
    with ExitStack() as undo, scratch.open("w+b") as file:
        batches = list(device_recover.survey([str(path)], undo).reader.restore(file))
        file.seek(0)
        return file.read() + b"".join(entry for batch in batches for entry in batch)


def test_no_secret_of_the_cluster_is_on_the_device_and_none_is_believed_after_a_recovery(tmp_path):
    """Whoever reads the device must not be able to sign for the cluster, nor to join it."""
    key, verifier = "-----BEGIN PRIVATE KEY-----\n" + "k" * 180, bytes(range(1, 65))
    with rig(tmp_path, commit_ms=10) as made:
        made.propose(c.PutCa("a1", "certificate", key, "active"))
        made.propose(c.PutToken("f1", "founding", "node", verifier, 1 << 50, 3))
        await_true("the store has them, so the copy too", lambda: made.index.stored >= made.applied, 60)
        made.start()
        made.await_durable()
        made.propose(c.PutCa("a2", "certificate", key[::-1], "trusted"))  # in the tail
        made.await_durable()
        made.stop()
    for number in range(2):
        raw = on_device(made.path, tmp_path / f"copy-{number}")
        assert b"certificate" in raw
        for secret in (key.encode(), key[::-1].encode(), verifier[:32], verifier[32:]):
            assert secret not in raw
        device_recover.recover(tmp_path / ("new", "newer")[number], [str(made.path)], "test", dry_run=False)  # which writes a checkpoint
    replica, machine = recovered_machine(tmp_path / "new")
    try:
        assert [(row.id, row.state) for row in answer(machine, ListCas()).cas] == [("a1", "active")]
        for asked in (GetSigner(), GetVerifier("f1")):
            reply = answer(machine, asked)
            assert isinstance(reply, m.Failed) and reply.errno == errno.ENOENT
    finally:
        replica.close()


def test_a_recovery_that_was_interrupted_is_done_again(tmp_path, monkeypatch):
    with rig(tmp_path) as made:
        made.start()
        made.await_durable()
    target = tmp_path / "new"
    with monkeypatch.context() as patch:
        patch.setattr(device_recover.DeviceTable, "add", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "cut")))
        with pytest.raises(OSError, match="cut"):
            device_recover.recover(target, [str(made.path)], "test", dry_run=False)
    assert not (target / "node.json").exists()
    assert device_recover.recover(target, [str(made.path)], "test", dry_run=False).faults == []
    assert not (target / "recovering").exists()


def test_devices_of_two_clusters_or_without_a_checkpoint_are_refused(tmp_path):
    one = make_device(tmp_path / "one")
    other = make_device(tmp_path / "other", "12345678-2222-3333-4444-555555555555")
    with pytest.raises(Refused, match="one cluster"):
        device_recover.recover(tmp_path / "new", [str(one), str(other)], "test", dry_run=False)
    with pytest.raises(NotFound, match="no checkpoint"):
        device_recover.recover(tmp_path / "new", [str(one)], "test", dry_run=False)
    assert not (tmp_path / "new").exists()


def test_after_a_restart_what_was_durable_counts_and_a_new_checkpoint_follows(tmp_path):
    with rig(tmp_path) as made:
        made.start()
        last = made.await_durable()
        made.stop()
        held = made.call(m.GetOwnSegments()).segments
        made.index.durable = UNKNOWN
        seen: list[int] = []
        checkpointer = made.start()
        await_true("a first word", lambda: seen.append(made.index.durable) or made.index.durable, 60)
        assert made.index.durable >= last, "nothing that was freed before is in doubt"
        made.await_durable()
        await_true("a new checkpoint", lambda: checkpointer.figures(0)["checkpoints_written"] == 1, 60)
        assert len(made.call(m.GetOwnSegments()).segments) <= len(held) + 1, "two generations, whatever the number of starts"


def test_a_device_that_fails_suspends_checkpoints_and_ends_it_when_it_works(tmp_path, monkeypatch):
    with rig(tmp_path) as made:
        checkpointer = made.start()
        made.await_durable()
        with monkeypatch.context() as patch:

            def fail(_self: Device) -> None:
                raise OSError(errno.EIO, "broken")

            patch.setattr(Device, "flush", fail)
            made.propose(c.CreateVolume("while-broken", "uuid"))
            made.index.wanted.set()
            await_true("suspended", lambda: checkpointer.state.startswith("suspended") and "broken" in checkpointer.state, 60)
            assert made.index.durable == OFF, "freed segments can be leased"
        made.await_durable()
        await_true("ok again", lambda: checkpointer.state == "ok", 60)


def test_a_full_state_disk_ends_no_checkpoints_for_good(tmp_path: Path) -> None:
    """The copy of the store needs as much room as the store.  LMDB tells of that by an error of its own."""
    with rig(tmp_path) as r:
        assert r.on.service is not None
        failed, copy_store = threading.Event(), r.on.service.copy_store

        def full_once(path: Path) -> None:
            if failed.is_set():
                copy_store(path)
                return
            path.with_name(path.name + ".new").symlink_to("/dev/full")
            failed.set()
            copy_store(path)

        r.on.service.copy_store = full_once  # type: ignore[method-assign]
        checkpoints = r.start()
        assert failed.wait(60)
        r.await_durable()
        assert checkpoints.state == "ok" and checkpoints.figures(r.applied)["checkpoint_errors"] == 1


def test_a_full_tail_begins_a_new_checkpoint(tmp_path, seed):
    choose = random.Random(seed)
    with rig(tmp_path) as made:
        checkpointer = made.start()
        made.await_durable()
        volume = made.propose(c.CreateVolume("big", "uuid-big")).number
        for number in range(1_200):
            target = choose.randbytes(1_900).hex().encode()
            made.propose(c.Create(volume, 1, b"%d" % number, 0o120777, 0, 0, 0, target))
            if number % 120 == 119:
                made.await_durable()
        assert checkpointer.figures(0)["checkpoints_written"] >= 2
        made.stop()
        applied = made.applied
    assert device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=False).index == applied


@pytest.mark.parametrize("why", ["not found", "in use"])
def test_a_device_that_comes_late_keeps_its_newest_checkpoint_until_the_next_one_is_done(tmp_path, monkeypatch, why):
    monkeypatch.setattr("awsomefsd.node.maintenance.checkpoints.CHECKPOINT_RETRY_MS", 20)
    with rig(tmp_path) as made:
        made.start()
        made.await_durable()
        made.propose(c.CreateVolume("kept", "uuid-kept"))
        made.await_durable()
        made.stop()
        made.index.durable = UNKNOWN
        with monkeypatch.context() as broken:
            # the next copy is cut short, as by a crash
            broken.setattr(Device, "flush", lambda _self: (_ for _ in ()).throw(OSError(errno.EIO, "cut")))
            with monkeypatch.context() as absent, Device.open(made.path) as other:
                if why == "in use":
                    other.lock()
                else:
                    absent.setattr(PlacesAlone, "choose", lambda *_: None)
                    absent.setattr(PlacesOfNode, "choose", lambda *_: None)
                checkpointer = made.start()
                await_true("suspended", lambda: made.index.durable == OFF, 60)
            await_true("a try that fails", lambda: "cut" in checkpointer.state, 60)
            made.stop()
    assert device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=True).index > 0


def test_a_checkpoint_that_cannot_be_read_just_now_is_not_written_over(tmp_path, monkeypatch):
    with rig(tmp_path) as made:
        made.start()
        made.await_durable()
        made.stop()
        made.index.durable = UNKNOWN
        read = Device.pread_into

        def refuse(device: Device, buffer: memoryview, offset: int) -> int:
            if FIRST_SEGMENT_OFFSET <= offset < second_copy_offset(device.bytes):
                raise OSError(errno.EIO, "not now")
            return read(device, buffer, offset)  # the superblock says that it is the device

        with monkeypatch.context() as broken:
            broken.setattr(Device, "pread_into", refuse)
            broken.setattr(Device, "flush", lambda _self: (_ for _ in ()).throw(OSError(errno.EIO, "cut")))
            checkpointer = made.start()
            await_true("a try that fails", lambda: "cut" in checkpointer.state, 60)
            made.stop()
    assert device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=True).index > 0


def test_a_device_at_the_path_of_another_one_gets_no_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr("awsomefsd.node.maintenance.checkpoints.CHECKPOINT_RETRY_MS", 20)
    with rig(tmp_path) as made:
        ours = made.path
        made.path = make_device(tmp_path / "other", uuid="aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa")
        before = made.path.read_bytes()
        checkpointer = made.start()
        await_true("suspended", lambda: made.index.durable == OFF, 60)
        assert "wrong device" in checkpointer.state
        assert made.path.read_bytes() == before
        made.path = ours
        await_true("a checkpoint on the right one", lambda: checkpointer.state == "ok", 60)


def test_a_journal_is_never_laid_over_the_checkpoint_of_another_recovery(tmp_path):
    """Once the device was recovered elsewhere, its entries and those of the old node's journal tell two stories under the same numbers."""
    with rig(tmp_path) as made:
        made.start()
        made.await_durable()
        made.stop()
        for number in range(20):
            made.propose(c.CreateVolume(f"old{number}", f"uuid-old-{number}"))
    device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=False)
    durable.write_json(node_module.identity_path(tmp_path), asdict(node_module.Node(CLUSTER, NODE, 7)))
    (tmp_path / "meta" / "store" / "data.mdb").unlink()
    report = device_recover.recover_in_place(tmp_path, [str(made.path)], "test", dry_run=False)
    assert (report.source, report.faults) == ("device", [])
    replica, machine = recovered_machine(tmp_path)
    assert machine.state.cluster.next_session > 1 << 32, "what the first recovery made to jump"
    assert not any((row := machine.state.volume(number)) and row.name == "old19" for number in range(1, 40))
    replica.close()
