"""The journal while a copy takes 4 and 16 minutes (stores of 15 and 60 GB), at 1,000 entries a second.  Time is simulated."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.identity import Node
from awsomefsd.base.limits import CHECKPOINT_TAIL_MS, KIB, MIB
from awsomefsd.base.types import SEGMENT_METADATA, DeviceInfo, SegmentInfo
from awsomefsd.io.collect import checkpoint_format as form
from awsomefsd.io.collect.checkpoint_area import checkpoints_of, scan_segments
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.replica.checkpoint_progress import UNKNOWN, CheckpointProgress
from awsomefsd.node.maintenance import checkpoints
from tests.rigs.metadata_service import CLUSTER, DEVICE, NODE

ENTRIES_PER_S = 1_000
SIZES = {"15 GB": 240, "60 GB": 960}  # of the store → seconds that its copy takes at 64 MiB/s
COPY_BYTES_PER_S, PIECE_BYTES = 16 * MIB // 960, 16 * KIB
SEGMENTS = 120
JOURNAL_MAX = 5 * ENTRIES_PER_S * CHECKPOINT_TAIL_MS // 1_000


class Log:
    """A journal that grows with simulated time, and drops what the store has and nobody holds, as Replica.commit does."""

    def __init__(self, progress: CheckpointProgress) -> None:
        self.progress = progress
        self.first, self.last, self.most = 1, 100, 0
        self.now_s = 0.0
        progress.stored = self.last

    def wait(self, seconds: float) -> bool:
        self.now_s += seconds
        self.last = 100 + int(self.now_s * ENTRIES_PER_S)
        self.most = max(self.most, self.last - self.first + 1)
        self.progress.stored = self.last
        self.first = max(self.first, self.progress.kept_from(self.last) + 1)
        return False

    def is_set(self) -> bool:
        return False

    def call(self, body: Any) -> Any:
        if isinstance(body, m.GetStatus):
            return SimpleNamespace(figures={"first_index": self.first, "term": 3, "level": 3})
        assert isinstance(body, m.Follow)
        last = min(body.after + 512, self.last)
        found = [c.entry_encode(c.Entry(at, 3, 3, 0, 1, at, at, 0, 1, 0, 0, [], c.NoOp())) for at in range(body.after + 1, last + 1)]
        return SimpleNamespace(entries=found if body.after + 1 >= self.first else [], first_kept=self.first)


class Places:
    """Segments without end, as far as the device reaches."""

    def __init__(self, version: int) -> None:
        self.version, self.number = version, 0
        self.left = [SegmentInfo(number, 1, 1, number * MIB, MIB, SEGMENT_METADATA, 0) for number in range(SEGMENTS)]

    def free(self, info: DeviceInfo) -> list[SegmentInfo]:
        return []

    def keep(self, info: DeviceInfo, count: int, *, needed: bool) -> list[SegmentInfo]:
        taken, self.left = self.left[:count], self.left[count:]
        return taken

    def done(self, *_: Any) -> None:
        pass


def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int, seconds: int) -> tuple[Log, MemoryDevice]:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_RECORD_BYTES_MAX", PIECE_BYTES // 4)
    monkeypatch.setattr(checkpoints, "CHECKPOINT_BYTES_PER_S_MAX", COPY_BYTES_PER_S)
    progress = CheckpointProgress(UNKNOWN)
    log, device = Log(progress), MemoryDevice(SEGMENTS * MIB)
    device.write_once = False
    monkeypatch.setattr(checkpoints, "time", SimpleNamespace(monotonic_ns=lambda: int(log.now_s * 1e9)))
    monkeypatch.setattr(checkpoints, "examine", lambda _: (100, 3, {}))
    writer = checkpoints.Checkpointer(
        tmp_path, Node(CLUSTER, NODE, 1), log.call, lambda path: path.write_bytes(bytes(COPY_BYTES_PER_S * seconds)), progress, dict
    )
    monkeypatch.setattr(writer, "_stop", log)
    info = DeviceInfo(1, DEVICE, SEGMENTS * MIB, MIB, SEGMENTS, SEGMENTS, 0)
    writer._new_checkpoint(device, info, Places(version))  # type: ignore[arg-type]
    return log, device


@pytest.mark.parametrize("seconds", SIZES.values(), ids=list(SIZES))
def test_the_journal_stays_short_while_a_large_copy_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figures: list[str], seconds: int
) -> None:
    """The bound is one number, whatever the size of the store."""
    log, device = made(tmp_path, monkeypatch, form.VERSION, seconds)
    assert log.last >= 100 + seconds * ENTRIES_PER_S * 9 // 10, "void: the copy was done too soon"
    assert log.most <= JOURNAL_MAX
    figures.append(f"journal during a copy of {seconds} s at {ENTRIES_PER_S} entries/s: at most {log.most} of {log.last} entries")
    found = scan_segments(device, range(0, SEGMENTS * MIB, MIB), bytes.fromhex(CLUSTER.replace("-", "")))
    (area,) = checkpoints_of(device, found)
    assert (area.index, area.last) == (100, log.last), "every entry that was committed meanwhile is behind the copy"


def test_without_an_early_tail_the_checkpoint_never_becomes_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mechanism is for: the areas of version 1 wait for the journal, which keeps 200,000 entries for them."""
    with pytest.raises(checkpoints.Gap):
        made(tmp_path, monkeypatch, form.WITHOUT_EARLY_TAIL, max(SIZES.values()))
