"""The loss of all voters at any step of a checkpoint, with the power cut: what was durable on the device comes back, and is sound.

Three voters run over loopback; the leadership moves while copies are written, and one node does not see the device for a time.  Every
write and flush of the device is recorded, with how far the leaders said that it has the log.  A cut keeps what was flushed before it, and
any part of what was not.  A recovery from that must find the highest checkpoint that is valid, and reach what was promised before the cut.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.io.collect import checkpoint_area
from awsomefsd.io.device.device import Device
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.replica.checkpoint_progress import UNKNOWN, CheckpointProgress
from awsomefsd.node.maintenance import checkpoints
from awsomefsd.recovery import device_recover
from tests.rigs.growing_cluster import NODES, await_
from tests.unit.node.maintenance.test_checkpoints import recovered_machine
from tests.unit.node.maintenance.test_checkpoints_of_several import SEGMENTS, SHARED, Cluster, volumes_of

SECTOR = 512
STEPS = frozenset(f"checkpoint.{step}.{side}" for step in ("tail", "copy", "flush", "final", "switch") for side in ("before", "after"))


class Tape:
    """The writes and flushes of the device, the steps of checkpoints and what was promised, in their order.  Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.lock = threading.Lock()
        self.events: list[tuple[str, int | str, bytes]] = []

    def note(self, kind: str, value: int | str, data: bytes = b"") -> None:
        with self.lock:
            self.events.append((kind, value, data))

    def steps(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}
        for at, (kind, value, _) in enumerate(self.events):
            if kind == "step":
                found.setdefault(str(value), []).append(at)
        return found

    def promised(self, cut: int) -> int:
        return max((int(value) for kind, value, _ in self.events[:cut] if kind == "durable"), default=0)

    def image(self, path: Path, cut: int, choose: random.Random) -> None:
        """Writes what the device holds after a power cut behind event `cut`."""
        events = self.events[:cut]
        flushed = max((at for at, (kind, _, _) in enumerate(events) if kind == "flush"), default=0)
        with path.open("wb") as file:
            file.truncate((SEGMENTS + 2) * MIB)
            for at, (kind, offset, data) in enumerate(events):
                if kind != "write":
                    continue
                for begin in range(0, len(data), len(data) if at < flushed else SECTOR):
                    if at < flushed or choose.random() < 0.5:
                        file.seek(int(offset) + begin)
                        file.write(data[begin:] if at < flushed else data[begin : begin + SECTOR])


class Promises(CheckpointProgress):
    """Records each change of how far the device has the log."""

    def __init__(self, tape: Tape) -> None:
        self._tape = tape
        super().__init__(UNKNOWN)

    def __setattr__(self, name: str, value: object) -> None:
        super().__setattr__(name, value)
        if name == "durable":
            assert isinstance(value, int)
            self._tape.note("durable", value)


def recording(tape: Tape, monkeypatch: pytest.MonkeyPatch) -> None:
    write, flush = Device.pwritev, Device.flush

    def pwritev(self: Device, buffers: Sequence[memoryview], offset: int) -> None:
        data = b"".join(buffers)
        write(self, buffers, offset)
        if self.path == tape.path:
            tape.note("write", offset, data)

    def flushed(self: Device) -> None:
        with tape.lock:
            at = len(tape.events)  # a write that returns while the flush runs is not made durable by it
        flush(self)
        if self.path == tape.path:
            with tape.lock:
                tape.events.insert(at, ("flush", 0, b""))

    monkeypatch.setattr(Device, "pwritev", pwritev)
    monkeypatch.setattr(Device, "flush", flushed)
    for module in (checkpoints, checkpoint_area):
        monkeypatch.setattr(module, "hit", lambda step: tape.note("step", step))


def driven(cluster: Cluster, tape: Tape, choose: random.Random, rounds: int) -> dict[str, int]:
    """Runs the cluster; returns the name of each volume → an index that is not below that of its entry."""
    made: dict[str, int] = {}
    number = itertools.count()

    def some(count: int) -> None:
        for _ in range(count):
            name = f"v{next(number)}"
            cluster.rig.propose(c.CreateVolume(name, f"uuid-{name}"))
            made[name] = int(cluster.rig.ask(m.GetStatus()).figures["applied"])

    for _ in range(rounds):
        leader = cluster.rig.leader().node
        some(choose.randrange(1, 6))
        if choose.random() < 0.7:
            cluster.await_durable()
        away = choose.choice([node for node in NODES[:3] if node != leader])
        cluster.seen[away] = {}
        chosen = choose.choice([node for node in NODES[:3] if node not in (leader, away)])
        copies = len(tape.steps().get("checkpoint.copy.before", []))
        cluster.lead(chosen)
        await_("the next copy has begun", lambda copies=copies: len(tape.steps().get("checkpoint.copy.before", [])) > copies)
        some(choose.randrange(1, 6))
        if choose.random() < 0.5:  # else the leadership moves on in the middle of the copy
            cluster.await_durable()
        cluster.seen[away] = {SHARED: str(cluster.path)}
    cluster.await_durable()
    return made


def check_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, rounds: int, cuts: int) -> None:
    choose = random.Random(seed)
    tape = Tape(tmp_path / "device")
    monkeypatch.setattr(checkpoints, "CHECKPOINT_RECORD_BYTES_MAX", 4_096)  # a copy of many pieces
    recording(tape, monkeypatch)
    cluster = Cluster(tmp_path)
    try:
        for one in cluster.rig.all.values():
            one.progress = Promises(tape)
        cluster.found()
        cluster.grow()
        for node in NODES[:3]:
            cluster.checkpointer(node)
        cluster.await_durable()
        first = next(at for at, event in enumerate(tape.events) if event[1] == "checkpoint.switch.after")
        made = driven(cluster, tape, choose, rounds)
    finally:
        cluster.close()
        monkeypatch.undo()
    steps = tape.steps()
    assert set(steps) >= STEPS, f"void: never reached {STEPS - set(steps)}"
    moments = [choose.choice([at for at in found if at >= first] or found) for found in steps.values()]
    moments = choose.sample(moments, min(cuts, len(moments))) + [choose.randrange(first, len(tape.events)) for _ in range(cuts)]
    for number, cut in enumerate(sorted(max(first, cut) + 1 for cut in moments)):
        image, new = tmp_path / f"image-{number}", tmp_path / f"new-{number}"
        tape.image(image, cut, choose)
        report = device_recover.recover(new, [str(image)], "test", dry_run=False)
        promised = tape.promised(cut)
        assert (report.faults, report.done) == ([], True) and report.index >= promised, f"cut {cut} of {len(tape.events)}"
        replica, machine = recovered_machine(new)
        there = volumes_of(machine)
        replica.close()
        assert {name for name, index in made.items() if index <= promised} <= there, f"cut {cut} of {len(tape.events)}"
        image.unlink()


@pytest.mark.timeout(1_200)
def test_a_cut_at_a_step_of_a_checkpoint_loses_nothing_that_was_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    check_cuts(tmp_path, monkeypatch, seed, 3, 4)


@pytest.mark.soak
@pytest.mark.timeout(3_600)
def test_cuts_for_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    check_cuts(tmp_path, monkeypatch, seed, 10, 50)
