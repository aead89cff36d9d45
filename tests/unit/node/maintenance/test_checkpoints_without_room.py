"""Checkpoints of three voters on a device that is full, and while one of two devices is away, or both."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import MIB
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.superblock import Superblock, write_superblock
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.nodes import GetNode
from awsomefsd.meta.machine.checkpoint_segments import KEPT_SHARE
from awsomefsd.node.maintenance import checkpoints
from awsomefsd.recovery import device_recover
from tests.rigs.growing_cluster import CLUSTER, NODES, await_
from tests.unit.node.maintenance.test_checkpoints import recovered_machine
from tests.unit.node.maintenance.test_checkpoints_of_several import SEGMENTS, SHARED, Cluster, volumes_of

OTHER = "ffffffff-eeee-eeee-eeee-eeeeeeeeeeee"
SESSION_MAX = 64  # segments that a session leases


class Machines(Cluster):
    """Three voters with checkpoints; `fill` leaves no segment of the device to anybody."""

    def begin(self) -> None:
        self.found()
        self.grow()
        for node in NODES[:3]:
            self.checkpointer(node)
        self.await_durable()

    def second_device(self) -> Path:
        """Another device that all of them see."""
        path = self.path.with_name("second")
        with path.open("wb") as file:
            file.truncate((SEGMENTS + 2) * MIB)
        with Device.open(path) as device:
            write_superblock(device, Superblock(CLUSTER, OTHER, device.bytes, MIB, SEGMENTS, 1))
        self.rig.propose(c.AddDevice(OTHER, (SEGMENTS + 2) * MIB, MIB, SEGMENTS, MIB, True))
        for seen in self.seen.values():
            seen[OTHER] = str(path)
        return path

    def fill(self) -> None:
        """Sessions lease all that there is but the segment which only collection gets."""
        volume = self.rig.propose(c.CreateVolume("full", "uuid-full")).number
        number = 20
        while self.free() > 1:
            opened = self.rig.ask(m.Propose(0, 0, 0, [], c.OpenSession(number, volume, "n", "boot", number, False, True)))
            lease = m.Propose(0, opened.session, opened.epoch, [], c.LeaseSegments(SESSION_MAX, 0))
            while not isinstance(self.rig.leader().ask(lease), m.Failed):
                pass
            number += 1
            assert number < 60

    def free(self) -> int:
        return sum(info.segments_free for info in self.rig.ask(m.GetDevices()).devices)

    def await_room(self) -> dict[str, int]:
        """Waits until each of them keeps segments; returns how many."""
        return await_("all to keep room", lambda: len(kept := self.kept()) == 3 and kept)

    def kept(self) -> dict[str, int]:
        return {one.node: len(one.segments) for one in self.rig.ask(m.GetCheckpoints()).nodes}

    def take_all_room(self, device: int) -> None:
        """Nobody gets room for checkpoints on a device any more, as if it were full; who has some on it loses what does not count."""
        self.await_room()
        call = self.call
        newest = {number for one in self.rig.ask(m.GetCheckpoints()).nodes for number in one.area}

        def without_room(body: Any) -> Any:
            command = getattr(body, "command", None)
            if isinstance(command, c.KeepForCheckpoint) and command.device == device:
                raise FsError(errno.ENOSPC, "what is free is promised to writers")
            return call(body)

        for one in self.made.values():
            one._call = without_room
        for one in self.rig.ask(m.GetCheckpoints()).nodes:
            self.rig.propose(c.ReturnSegments(one.node, [number for number in one.segments if number not in newest]))

    def kill(self, node: str) -> None:
        self.made[node].stop()
        self.rig.all[node].stop()

    def wake(self) -> None:
        for one in self.made.values():
            one._index.wake()

    def recovered(self, directory: Path, *paths: Path) -> set[str]:
        """The volumes that come back after the loss of all nodes."""
        self.lose_everything()
        report = device_recover.recover(directory, [str(path) for path in paths], "test", dry_run=False)
        assert (report.faults, report.checkpointed, report.done) == ([], True, True)
        replica, machine = recovered_machine(directory)
        found = volumes_of(machine)
        replica.close()
        return found


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_STAND_BY_MS", 200)
    made = Machines(tmp_path)
    try:
        made.begin()
        yield made
    finally:
        made.close()


def test_who_leads_next_has_room_for_its_checkpoints_on_a_full_device(cluster: Machines, tmp_path: Path) -> None:
    """Two of them, so that it goes on for long; the node that led is dead, and what it keeps is of no use."""
    first = cluster.rig.leader().node
    cluster.await_room()
    cluster.fill()
    cluster.kill(first)
    second = cluster.rig.leader().node
    await_("a checkpoint, or its end", lambda: cluster.made[second].state == "ok" or cluster.made[second].state.startswith("suspended"))
    assert cluster.made[second].state == "ok"
    cluster.made[second]._current.tail_bytes = 1 << 40  # as if much had been written
    await_("another one", lambda: cluster.wake() or cluster.made[second]._written == 2 or cluster.made[second].failures)
    cluster.rig.propose(c.CreateVolume("later", "uuid-later"))
    assert cluster.await_durable().node == second
    assert "later" in cluster.recovered(tmp_path / "new", cluster.path)


def test_the_room_of_those_who_stand_by_is_bounded_and_given_back_by_a_device_that_is_drained(cluster: Machines) -> None:
    assert sum(cluster.await_room().values()) <= SEGMENTS // KEPT_SHARE
    cluster.second_device()
    cluster.rig.propose(c.DrainDevice(1, True))
    cluster.wake()
    await_("nothing is kept there", lambda: {one.device for one in cluster.rig.ask(m.GetCheckpoints()).kept} == {2})


def test_a_node_that_is_to_go_gives_its_room_back(cluster: Machines) -> None:
    """What it keeps when it is removed would stay kept."""
    cluster.await_room()
    leader = cluster.rig.leader().node
    goes = next(node for node in NODES[:3] if node != leader)
    call = cluster.call

    def drained(body: Any) -> Any:
        return SimpleNamespace(nodes=[SimpleNamespace(state="draining")]) if isinstance(body, GetNode) else call(body)

    cluster.made[goes]._call = drained
    await_("it keeps nothing", lambda: cluster.wake() or goes not in cluster.kept())


@pytest.mark.parametrize("why", ["full", "away"])
def test_checkpoints_move_to_the_other_device(cluster: Machines, tmp_path: Path, why: str) -> None:
    """Where the first one has no room for whoever leads, or is absent."""
    first = cluster.rig.leader().node
    second_path = cluster.second_device()
    if why == "full":
        cluster.take_all_room(1)
        cluster.kill(first)
    else:
        for seen in cluster.seen.values():
            del seen[SHARED]
        cluster.rig.propose(c.SetAbsent(1, True))
    cluster.rig.propose(c.CreateVolume("later", "uuid-later"))
    await_("a checkpoint there", lambda: cluster.wake() or cluster.newest().device == 2)
    leader = cluster.await_durable().node
    assert cluster.made[leader].state == "ok"
    if why == "away":
        cluster.path.unlink()
    assert "later" in cluster.recovered(tmp_path / "new", *([cluster.path] if why == "full" else []), second_path)


def test_with_both_devices_away_checkpoints_are_suspended_until_one_is_back(cluster: Machines, tmp_path: Path) -> None:
    second_path = cluster.second_device()
    aside = second_path.with_name("unplugged")
    shutil.copyfile(second_path, aside)
    for seen in cluster.seen.values():
        seen.clear()
    for device, path in enumerate((cluster.path, second_path), 1):
        os.truncate(path, 0)  # who has it open gets no answer
        path.unlink()
        cluster.rig.propose(c.SetAbsent(device, True))
    leader = cluster.rig.leader().node
    await_("the end of checkpoints", lambda: cluster.wake() or cluster.made[leader].state.startswith("suspended"))
    cluster.rig.propose(c.CreateVolume("meanwhile", "uuid-meanwhile"))
    aside.rename(second_path)
    for seen in cluster.seen.values():
        seen[OTHER] = str(second_path)
    cluster.rig.propose(c.SetAbsent(2, False))
    await_("checkpoints again", lambda: cluster.wake() or cluster.made[cluster.rig.leader().node].state == "ok")
    cluster.await_durable()
    assert "meanwhile" in cluster.recovered(tmp_path / "new", second_path)
