"""The leader's node dies at each step of a checkpoint, among three voters: the device alone brings back what was promised, and who leads
next goes on with checkpoints.

Three voters run over loopback.  A kill ends the thread that writes in the middle of its step, and then the node's voter; what is on its
local disk stays, and it comes back.  At each kill the device is copied as it is then, and a recovery reads the copy.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import subprocess
import threading
from pathlib import Path

import pytest

from awsomefsd.io.collect import checkpoint_area
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.node.maintenance import checkpoints
from awsomefsd.node.maintenance.checkpoints import Checkpointer
from awsomefsd.recovery import device_recover
from tests.rigs.growing_cluster import NODES, await_
from tests.unit.node.maintenance.test_checkpoint_cuts import STEPS, Promises, Tape
from tests.unit.node.maintenance.test_checkpoints import recovered_machine
from tests.unit.node.maintenance.test_checkpoints_of_several import Cluster, volumes_of

TAIL = "checkpoint.tail"
IN_A_COPY = ("checkpoint.flush.before", "checkpoint.flush.after", "checkpoint.final.before")  # a part of it is on the device
IN_A_RUN = (("tail",), ("copy", "flush"), ("final", "switch"))


class Killed(BaseException):
    """Ends the thread that passes the step; the writer of checkpoints catches nothing of it."""


class Kills:
    """Where the writer of checkpoints dies next, whichever node's it is; `fired` is set by its death."""

    def __init__(self) -> None:
        self.step = ""
        self.fired = threading.Event()

    def arm(self, step: str) -> None:
        self.fired.clear()
        self.step = step

    def hit(self, step: str) -> None:
        if step == self.step:
            self.step = ""
            self.fired.set()
            raise Killed


class Dying:
    """The cluster, the volumes that were made, and what was promised of them."""

    def __init__(self, directory: Path, kills: Kills, choose: random.Random) -> None:
        self.directory, self.kills, self.choose = directory, kills, choose
        self.cluster = Cluster(directory)
        self.tape = Tape(self.cluster.path)
        self.made: dict[str, int] = {}  # volume → an index that is not below that of its entry
        self.number = itertools.count()
        for one in self.cluster.rig.all.values():
            one.progress = Promises(self.tape)
        self.cluster.found()
        self.cluster.grow()
        for node in NODES[:3]:
            self.cluster.checkpointer(node)
        self.cluster.await_durable()

    def some(self) -> None:
        for _ in range(self.choose.randrange(1, 6)):
            name = f"v{next(self.number)}"
            self.cluster.rig.propose(c.CreateVolume(name, f"uuid-{name}"))
            self.made[name] = int(self.cluster.rig.ask(m.GetStatus()).figures["applied"])

    def die(self, step: str) -> tuple[str, str]:
        """The leader's node dies at a step of its checkpoint.  Returns whose was the newest checkpoint, and who died."""
        self.some()
        leader = self.cluster.await_durable().node
        if not step.startswith(TAIL):
            self.some()
        self.kills.arm(step)
        if step.startswith(TAIL):
            self.some()
        else:  # a new leader makes a copy
            self.cluster.lead(self.choose.choice([node for node in NODES[:3] if node != leader]))
        return leader, self.await_death(step)

    def die_again(self, step: str, newest: str, dead: str) -> str:
        """Who leads next dies too: the one that has the newest checkpoint, if it lives.  Returns which one."""
        self.kills.arm(step)
        if newest != dead:
            (third,) = {*NODES[:3]} - {newest, dead}
            seen, self.cluster.seen[third] = self.cluster.seen[third], {}  # it writes nothing, should it lead for a moment
            self.cluster.lead(newest)
            self.cluster.seen[third] = seen
        return self.await_death(step)

    def await_death(self, step: str) -> str:
        """Returns the node whose writer has died at a step; its voter is ended too."""
        await_(f"the death at {step}", lambda: self.wake() or self.kills.fired.is_set())
        running = [node for node in NODES[:3] if self.cluster.rig.all[node].service is not None]
        node: str = await_("its end", lambda: next((node for node in running if not self.cluster.made[node]._thread.is_alive()), None))
        self.check(f"{node} has died at {step}")
        self.cluster.rig.all[node].stop()
        return node

    def wake(self) -> None:
        for one in self.cluster.rig.all.values():
            if one.progress is not None:
                one.progress.wake()

    def check(self, when: str) -> None:
        """A recovery from the device as it is now has all that was promised."""
        promised = self.tape.promised(len(self.tape.events))
        image, new = self.directory / "image", self.directory / "new"
        subprocess.run(["cp", "--sparse=always", self.cluster.path, image], check=True)
        report = device_recover.recover(new, [str(image)], "test", dry_run=False)
        assert (report.faults, report.checkpointed, report.done) == ([], True, True), when
        assert report.index >= promised, when
        replica, machine = recovered_machine(new)
        missing = {name for name, index in self.made.items() if index <= promised} - volumes_of(machine)
        faults = check(replica.store)
        replica.close()
        assert not missing and not faults, when
        shutil.rmtree(new)
        image.unlink()

    def come_back(self, node: str) -> None:
        one = self.cluster.rig.all[node]
        one.progress = Promises(self.tape)
        one.start()
        self.cluster.checkpointer(node)


@pytest.fixture
def kills(monkeypatch: pytest.MonkeyPatch) -> Kills:
    made, main = Kills(), Checkpointer._main

    def until_killed(self: Checkpointer) -> None:
        with contextlib.suppress(Killed):
            main(self)

    monkeypatch.setattr(Checkpointer, "_main", until_killed)
    for module in (checkpoints, checkpoint_area):
        monkeypatch.setattr(module, "hit", made.hit)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_RECORD_BYTES_MAX", 4_096)  # a copy of many pieces
    return made


def check_kills(directory: Path, kills: Kills, seed: int, steps: list[str]) -> None:
    """At each of the steps the leader's node dies; then who leads next dies too, within its own copy, and both come back."""
    choose = random.Random(seed)
    rig = Dying(directory, kills, choose)
    try:
        for step in steps:
            newest, dead = rig.die(step)
            for node in (dead, rig.die_again(choose.choice(IN_A_COPY), newest, dead)):
                rig.come_back(node)
        rig.some()
        rig.cluster.await_durable()
        rig.check("at the end")
    finally:
        rig.cluster.close()


@pytest.mark.timeout(1_200)
def test_the_leader_dies_at_a_step_of_its_checkpoint(tmp_path: Path, kills: Kills, seed: int) -> None:
    """At one step of each kind."""
    choose = random.Random(f"steps {seed}")
    steps = [f"checkpoint.{choose.choice(kind)}.{choose.choice(('before', 'after'))}" for kind in IN_A_RUN]
    check_kills(tmp_path, kills, seed, choose.sample(steps, len(steps)))


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_the_leader_dies_at_every_step_of_its_checkpoint(tmp_path: Path, kills: Kills, seed: int) -> None:
    check_kills(tmp_path, kills, seed, sorted(STEPS) * 3)
