"""Power cuts of a real kernel: a node in a virtual machine, its disks' writes and flushes recorded, then cut more than 1,000 times.

On the host a node is made, mounted and stopped; its device and the filesystem with its state directory are the disks.  The machine
(qemu, emulated, a stock kernel) starts the node, and programs write, rename and fsync (workload.py, guest.py).  Then the log of writes is
replayed on the host up to each place, with the unflushed writes behind the last flush dropped, kept, in part or torn.  Each time the
host's ext4 recovers, the node's journal is replayed, fsck must be clean, and what was fsynced before the cut must be there
(check.py); some of them are started and mounted as a whole.  Void if the machine did not end, its log has no end mark, or too few
steps were done.

There is one log, so one order of what happens to both disks, and a flush covers only the disk for which it was asked.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random

import pytest

from buildtools import loops
from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT, BuildError
from tests.conftest import PREFIX, missing_for_mounts
from tests.crash.vm import check, kernel, replay, workload

DEVICE_BYTES, STATE_BYTES, LOG_BYTES = 256 << 20, 768 << 20, 4 << 30
PROGRAMS = 2
STEPS = int(os.environ.get("AWSOMEFSD_TEST_VM_STEPS", "100"))  # of each program
CUTS = int(os.environ.get("AWSOMEFSD_TEST_VM_CUTS", "1200"))
CUTS_MIN = min(CUTS, 1000)
WHOLE = 8  # cuts that are started and mounted as a whole
MACHINE_S = 3600.0
FAST = "/dev/shm"


def run(*argv: str | Path) -> None:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{argv}: {done.stderr.strip()}"


@contextmanager
def mounted(image: Path, directory: Path) -> Iterator[None]:
    """The host's ext4 recovers its journal at the mount."""
    run("mount", "-t", "ext4", "-o", "loop", image, directory)
    try:
        yield
    finally:
        words = ["umount", str(directory)]  # what was killed just now may still hold a file for a moment
        await_true(f"the end of {directory}", lambda: subprocess.run(words, capture_output=True, check=False).returncode == 0, 30, 0.05)


class Bench:
    """`work` holds the images; the node's directory is where the guest has its own, so that its paths are the same there."""

    def __init__(self, stack: ExitStack) -> None:
        place = FAST if os.path.isdir(FAST) and shutil.disk_usage(FAST).free > 3 << 30 else None
        self.work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="afs-vm-", dir=place)))
        self.node = Node(Path(tempfile.mkdtemp(prefix=PREFIX)), size_bytes=DEVICE_BYTES)
        stack.callback(self._end)
        self.node.prepare()
        self.state_image = self.work / "state.img"
        self.cut_state, self.cut_place = self.work / "cut.img", self.work / "cut"
        self.log = self.work / "log.img"
        self.cut_place.mkdir()
        for path, size in ((self.state_image, STATE_BYTES), (self.log, LOG_BYTES)):
            with path.open("wb") as file:
                file.truncate(size)

    def _end(self) -> None:
        """What a failure has left: processes, mounts, loop devices, both directories."""
        self.node.detach_mount()
        self.node.kill_everything()
        for place in (self.node.state, self.cut_place):
            subprocess.run(["umount", "-l", str(place)], capture_output=True, check=False)
        self.node.destroy()

    def make(self) -> None:
        """Disks with a node that has a device, a volume, and a session that never ended."""
        run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", self.state_image)
        with mounted(self.state_image, self.node.state):
            self.node.up()
            for program in range(PROGRAMS):
                workload.begin(str(self.node.mountpoint / str(program)))
            self.stop()

    def stop(self, *, check: bool = False) -> None:
        """By SIGKILL: nothing here waits for an orderly end.  fsck needs the device, so it runs before that goes."""
        self.node.kill_everything()
        self.node.detach_mount()
        if check:
            self.node.cli("fsck", timeout_s=120)
        for device in loops.of_file(self.node.image):
            loops.detach(device)

    def record(self, seed: int) -> str:
        root = kernel.unpacked(self.work)
        settings = {
            "directory": str(self.node.directory), "seed": seed, "steps": STEPS, "programs": PROGRAMS, "command": self.node.command,
            "environment": {"PYTHONPATH": str(CHECKOUT), "HOME": "/root", "AWSOMEFSD_LOG_LEVEL": "info"},
        }  # fmt: skip
        command = ["/usr/bin/env", f"PYTHONPATH={CHECKOUT}", self.node.python, "-m", "tests.crash.vm.guest", json.dumps(settings)]
        initrd = self.work / "initrd"
        kernel.initramfs(root, initrd, command, self.node.directory)
        drives = [self.node.image, self.state_image, self.log]
        copies = [self.work / f"disk{number}" for number in range(2)]  # the machine writes to these; the images stay as they were
        for source, copy in zip(drives, copies, strict=False):
            run("cp", "--sparse=always", source, copy)
        said = kernel.boot(root, initrd, [*copies, self.log], self.work / "console", "1500M", MACHINE_S)
        for path in (*copies, initrd):
            path.unlink()
        shutil.rmtree(root)
        return said

    def judge(self, expected: Expected, disk: replay.Disk) -> list[str]:
        def wrong(program: int, found: workload.Files) -> list[str]:
            done, begun = disk.done.get(program, 0), disk.begun.get(program, 0)
            return workload.wrong(found, expected.states[program][done], expected.steps[program][done] if begun > done else None)

        run("cp", "--sparse=auto", self.state_image, self.cut_state)
        try:
            with mounted(self.cut_state, self.cut_place):
                return check.faults(self.cut_place, self.node.image, self.node.volume, wrong, PROGRAMS)
        except Exception as err:
            return [f"{type(err).__name__}: {err}"]

    def whole(self, expected: Expected, disk: replay.Disk) -> list[str]:
        """Start and mount it all; files are read through the kernel, then fsck runs.  What is written to the device is taken back."""
        kept = self.work / "device"
        run("cp", "--sparse=auto", self.node.image, kept)
        run("cp", "--sparse=auto", self.state_image, self.cut_state)
        said: list[str] = []
        try:
            with mounted(self.cut_state, self.node.state):
                try:
                    self.node.up()
                    for program, files in enumerate(expected.states):
                        directory = self.node.mountpoint / str(program)
                        same = set(files[disk.done.get(program, 0)].items()) & set(files[disk.begun.get(program, 0)].items())
                        said += [name for name, data in same if (directory / name).read_bytes() != data]
                        (directory / "after").write_bytes(b"writing goes on")
                    self.stop(check=True)
                finally:
                    self.stop()
        except (BuildError, OSError) as err:
            said.append(f"{type(err).__name__}: {err}")
        finally:
            run("cp", "--sparse=never", "--no-target-directory", kept, self.node.image)
        return said


@pytest.fixture
def bench() -> Iterator[Bench]:
    if why := missing_for_mounts():
        pytest.skip(why)
    if not loops.usable():
        pytest.skip("needs loop devices")
    kernel.need_programs("qemu-system-x86_64", "dmsetup", "mkfs.ext4")
    with ExitStack() as stack:
        yield Bench(stack)


def states_of(steps: list[workload.Step]) -> list[workload.Files]:
    states = [workload.first()]
    for step in steps:
        states.append(workload.after(step, states[-1]))
    return states


class Expected:
    """The steps of each program, and its files after each step."""

    def __init__(self, seed: int) -> None:
        self.steps = [workload.steps_of(seed, program, STEPS) for program in range(PROGRAMS)]
        self.states = [states_of(own) for own in self.steps]


def with_a_lying_disk(bench: Bench, log: list[replay.Entry], expected: Expected, number: int) -> list[str]:
    """What is said of a cut at the end if one of the disks has ignored all flushes: the proof that losses are seen."""
    images = [bench.node.image, bench.state_image]
    kept = [bench.work / f"kept{count}" for count in range(len(images))]
    for image, copy in zip(images, kept, strict=True):
        run("cp", "--sparse=always", image, copy)
    disk = replay.Disk(bench.log, images, liar=number)
    try:
        for entry in log:
            disk.forward(entry)
        with disk.cut("dropped", Random(0)):
            return bench.judge(expected, disk)
    finally:
        disk.close()
        for image, copy in zip(images, kept, strict=True):
            run("cp", "--sparse=always", copy, image)


def try_cuts(bench: Bench, log: list[replay.Entry], expected: Expected, seed: int) -> tuple[Counter[str], list[str], int]:
    """(cuts of each kind, what was wrong, flushes)."""
    choose = Random(seed)
    planned = replay.plan(log, choose, CUTS)
    whole = set(choose.sample(sorted(planned), min(WHOLE, len(planned))))
    counts: Counter[str] = Counter()
    failures: list[str] = []
    disk = replay.Disk(bench.log, [bench.node.image, bench.state_image])
    try:
        for number, entry in enumerate(log):
            for kind in planned.get(number, ()):
                with disk.cut(kind, choose) as unflushed:
                    said = bench.judge(expected, disk)
                    counts[kind] += 1
                    counts["with unflushed writes"] += bool(unflushed)
                    if number in whole and kind == planned[number][0]:
                        said += [f"mounted: {row}" for row in bench.whole(expected, disk)]
                        counts["mounted"] += 1
                    failures += [f"cut at {number} of {len(log)}, {kind}, {unflushed} unflushed: {row}" for row in said]
            disk.forward(entry)
        assert disk.ended, "void: the log has no end"
        assert all(disk.flushes), f"void: a disk was never flushed: {disk.flushes}"
    finally:
        disk.close()
    return counts, failures, sum(disk.flushes)


@pytest.mark.soak
@pytest.mark.root
@pytest.mark.timeout(14400)
def test_what_was_fsynced_survives_a_power_cut_anywhere(bench, figures, seed):
    bench.make()
    began = time.monotonic()
    said = bench.record(seed)
    recorded = time.monotonic()
    assert "guest: complete" in said, said[-6000:]
    log = replay.entries(bench.log)
    assert any(entry.mark == "end" for entry in log), "void: the log has no end"
    expected = Expected(seed)
    for number in range(2):
        assert with_a_lying_disk(bench, log, expected, number), "void: a disk that ignores flushes was not noticed"
    counts, failures, flushes = try_cuts(bench, log, expected, seed)
    cuts = sum(counts[kind] for kind in replay.KINDS)
    written = sum(not entry.flags & replay.MARK and entry.length > 0 for entry in log)
    figures.append(
        f"power cuts in a virtual machine: {cuts:,} cuts ({', '.join(f'{name} {count:,}' for name, count in counts.items())}), "
        f"{len(failures)} failures; {PROGRAMS * STEPS} steps, {written:,} writes, {flushes:,} flushes; "
        f"machine {recorded - began:.0f} s, cuts {time.monotonic() - recorded:.0f} s"
    )
    assert not failures, failures[:20]
    assert cuts >= CUTS_MIN, f"void: {cuts} cuts"
