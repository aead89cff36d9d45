"""One workload on a recorded node, every cut of its recording, and a start on each image that a cut may leave."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import NAMES_DELEGATED, ROOT_INO
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.state import keys, rows
from awsomefsd.vfs.state.overlay_state import Missing
from awsomefsd.vfs.state.started import Started
from tests.crash.model.calls import Calls, filling
from tests.crash.model.oracle import Oracle, Tree, contents_of, describe, tree_of
from tests.crash.model.recording import Cutter, Image, RecordedDevice, RecordedDisk, RecordedStore, Recording
from tests.crash.model.workloads import Workload
from tests.rigs.metadata_service import CLUSTER, DEVICE, Clock, Host
from tests.rigs.mount_without_kernel import MOUNT, VOLUME, Rig, shared_memory

SEGMENTS, SEGMENT_BYTES = 24, 128 << 10
DEVICE_BYTES = (SEGMENTS + 1) * SEGMENT_BYTES
JOURNAL_FILE_BYTES = 32 << 10
EMPTY = Image({}, {}, None, {})


class CrashRig(Rig):
    """A rig over an image, its media recorded on `recording`.  Each is another boot of the machine, with a mount of its own."""

    boots = 0

    def __init__(self, directory: Path, image: Image, recording: Recording, commit_entries: int = 1_000) -> None:
        CrashRig.boots += 1
        self.boot_id, self.mount_id = f"boot {CrashRig.boots}", MOUNT + CrashRig.boots
        self.directory = directory
        self.clock, self.lease_clock = Clock(), Clock()
        self.disk, self.store = RecordedDisk(recording, image.files), RecordedStore(recording, image)
        self.device = RecordedDevice(recording, image.blocks, DEVICE_BYTES)
        options = {
            "disk": self.disk, "open_store": lambda *_args, **_named: self.store, "journal_file_bytes": JOURNAL_FILE_BYTES,
            "commit_entries": commit_entries,
        }  # fmt: skip
        self.host = Host(directory, boot_ns=self.clock, replica_options=options)
        self.null = os.open("/dev/null", os.O_RDWR)
        self.fds: dict[str, int] = {}
        self.workers = self.unique = 0
        self.unanswered = None
        self.alive = False

    def boot(self) -> CrashRig:
        self.host.start()
        self.fds = shared_memory()
        return self

    def image(self) -> Image:
        return Image(
            {path: bytes(file.now) for path, file in self.disk._files.items()},
            dict(self.store.durable.rows), self.store.durable.identity, dict(self.device.blocks),
        )  # fmt: skip

    def faults(self) -> list[Any]:
        """Ends everything; what fsck says of what is stored then."""
        if self.alive:
            self.kill()
        service, self.host.service = self.host.service, None
        service.stop()  # type: ignore[union-attr]
        return check(RecordedStore(Recording(), self.image()))


class LeasedCrashRig(CrashRig):
    """The volume is shared: write(2) buffers under write leases."""

    shared = caches = True


class DelegatedCrashRig(CrashRig):
    """The mount decides names; a directory is listed from the rows that it has, so that looking ships nothing."""

    delegated = True

    def listdir(self, ino: int = ROOT_INO, *, plus: bool = False) -> dict[bytes, int]:
        names = self.worker.names
        assert names is not None
        while True:
            found: dict[bytes, int] = {}
            try:
                with names.lock:
                    for _, raw in names._names.rows.scan(*keys.cookies_after(VOLUME, ino, 0)):  # type: ignore[union-attr]
                        row = rows.COOKIE.loads(raw)
                        found[bytes(row.name)] = row.ino
                return found
            except Missing as missing:
                block_on(Started(partial(names._fetch, names._names, missing)))  # type: ignore[arg-type]


class ThroughCrashRig(CrashRig):
    """The volume is shared and nothing is cached: write(2) is an entry."""

    shared = True


@contextmanager
def booted(
    directory: Path, image: Image, recording: Recording | None = None, commit_entries: int = 1_000, made_by: type[CrashRig] | None = None
) -> Iterator[CrashRig]:
    made = (made_by or CrashRig)(directory, image, recording or Recording(), commit_entries)
    made.hold_lease_clock()
    if recording is None:
        made.disk._recording.stop()
    try:
        yield made.boot()
    finally:
        made.close()


def first_image(directory: Path, *, delegated: bool = False) -> Image:
    """The files that workloads.py names, unmounted."""
    with booted(directory, EMPTY) as made:
        service = made.host.service
        assert service is not None
        for command in (
            c.Init(CLUSTER, 7, LEVEL),
            c.AddDevice(DEVICE, DEVICE_BYTES, SEGMENT_BYTES, SEGMENTS, SEGMENT_BYTES),
            c.CreateVolume("vol", "aaaaaaaa-aaaa-aaaa-aaaa-aaaaaaaaaaaa", 0),
            *([c.SetNames(VOLUME, NAMES_DELEGATED)] if delegated else []),
        ):
            assert not isinstance(service.propose(command, 60), m.Failed)
        made.start()
        folder = made.mkdir(b"A")
        made.mkdir(b"B")
        made.file(b"foo", filling(101, 12_000))
        made.file(b"bar", filling(102, 300))
        made.file(b"foo", filling(103, 20_000), folder)
        made.file(b"bar", filling(104, 80), folder)
        made.call("symlink", ROOT_INO, b"sl", b"foo")
        made.call("setxattr", made.lookup(b"foo").ino, b"user.old", b"old", 0)
        made.unmount()
        assert made.faults() == []
        return made.image()


@dataclass
class Found:
    """What a start on an image came to."""

    error: str
    tree: Tree
    contents: dict[int, bytes]


@dataclass
class Account:
    workloads: int = 0
    calls: int = 0
    refused: int = 0
    events: int = 0
    cuts: int = 0
    images: int = 0  # of all cuts
    started: int = 0  # different ones, each started
    during_recovery: int = 0
    used_on: int = 0  # starts after which files were written, read and removed
    wrong: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [
            f"{self.workloads:,} workloads, {self.calls:,} calls ({self.refused:,} refused), {self.cuts:,} cut points",
            f"{self.images:,} images after a cut, {self.started:,} of them different, each started and checked",
            f"{self.during_recovery:,} images after a second cut during the start; {self.used_on:,} used on afterwards",
        ]


class Model:
    def __init__(
        self, directory: Path, base: Image, seed: int, *, samples: int = 1, second_every: int = 40, commit_every: int = 0,
        kind: type[CrashRig] = CrashRig,
    ) -> None:  # fmt: skip
        """`kind`: how the volume is mounted, each time."""
        self.directory, self.base, self.kind = directory, base, kind
        self.seed, self.samples, self.second_every = seed, samples, second_every
        self.account = Account()
        self.commit_every = commit_every  # entries; 0: another number for each workload
        self._known: dict[str, Found] = {}

    def run(self, workload: Workload) -> None:
        """Raises AssertionError for the first image that is wrong."""
        account = self.account
        dice = Random(f"{self.seed} {workload}")
        oracle, recording = Oracle(), Recording()
        self._record(workload, oracle, recording, dice)
        self._known.clear()
        account.workloads += 1
        account.events += len(recording.events)
        cutter = Cutter(self.base)
        for number, event in enumerate([("start",), *recording.events]):
            cutter.feed(event)
            account.cuts += 1
            for way, image in cutter.images(dice, self.samples):
                account.images += 1
                found = self._look(image, dice, oracle, cutter.done)
                wrong = found.error or self._judge(oracle, cutter.done, found)
                assert not wrong, self._report(workload, recording, number, way, wrong)

    def _judge(self, oracle: Oracle, done: int, found: Found) -> str:
        """The first mark is the mount's: before it nothing was called."""
        return oracle.judge(max(done - 1, 0), found.tree, found.contents)

    def _report(self, workload: Workload, recording: Recording, number: int, way: str, wrong: str) -> str:
        events = [describe(event) for event in [("start",), *recording.events]]
        told = "\n  ".join(f"{'>' if at == number else ' '} {text}" for at, text in enumerate(events))
        return f"seed {self.seed}, workload {workload}\ncut behind event {number}, {way}: {wrong}\n  {told}"

    def _record(self, workload: Workload, oracle: Oracle, recording: Recording, dice: Random) -> None:
        with booted(self.directory, self.base, recording, self.commit_every or dice.choice((1, 2, 5, 1_000)), self.kind) as made:
            made.start()
            tree = tree_of(made)
            oracle.begin(tree, contents_of(made, tree))
            recording.add("mark")
            calls = Calls(made, oracle, recording)
            calls.run(workload)
            recording.stop()
            tree = tree_of(made)
            for ino, data in contents_of(made, tree).items():
                assert oracle.now(ino) == data, f"{workload}: the mount itself shows other bytes for inode {ino} than were written"
            self.account.calls += len(workload)
            self.account.refused += calls.refused

    # --- starts ---------------------------------------------------------------------------------------------------------------
    def _look(self, image: Image, dice: Random, oracle: Oracle, done: int) -> Found:
        key = image.key(self.base.blocks)
        found = self._known.get(key)
        if found is None:
            self.account.started += 1
            again = dice.randrange(self.second_every) == 0
            recording = Recording() if again else None
            found = self._known[key] = self.start(image, recording, use=dice.random() < 0.1)
            if recording is not None and not found.error:
                self._cut_the_start(image, recording, dice, found)
        return found

    def start(self, image: Image, recording: Recording | None = None, *, use: bool = False) -> Found:
        try:
            with booted(self.directory, image, recording, made_by=self.kind) as made:
                made.start()
                if recording is not None:
                    recording.stop()
                tree = tree_of(made)
                contents = contents_of(made, tree)
                if use:
                    self._use(made)
                faults = made.faults()
                return Found(f"fsck: {faults}" if faults else "", tree, contents)
        except Exception as err:
            return Found(f"the start fails: {type(err).__name__}: {err}", {}, {})

    def _use(self, made: CrashRig) -> None:
        """It goes on: what is written now is there, and can be removed."""
        self.account.used_on += 1
        for number, length in enumerate((50, 30_000)):
            name, data = b"after %d" % number, filling(number, length)
            ino = made.file(name, data)
            made.flush()
            assert made.content(ino) == data
            made.call("unlink", ROOT_INO, name)

    def _cut_the_start(self, image: Image, recording: Recording, dice: Random, first: Found) -> None:
        """The second start may find any part of what the first one had done, and says the same."""
        cutter = Cutter(image)
        seen: set[str] = set()
        for event in recording.events:
            cutter.feed(event)
            for way, other in cutter.images(dice, 1):
                key = other.key(self.base.blocks)
                if key in seen:
                    continue
                seen.add(key)
                self.account.during_recovery += 1
                found, where = self.start(other), f"second cut behind {describe(event)}, {way}"
                assert not found.error, f"{where}: {found.error}"
                assert (found.tree, found.contents) == (first.tree, first.contents), f"{where}: another state"
