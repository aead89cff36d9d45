"""Mounts of the keeper: back-off, options of mount(2), and the mount table."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.limits import BACKOFF_MS_MAX, WORKER_DEATHS_BEFORE_BACKOFF
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper import wire as wire
from awsomefsd.keeper.loop import Promise
from awsomefsd.keeper.mount import Mount, backoff_ms
from awsomefsd.keeper.mount_record import RECORD_BYTES, MountRecord
from awsomefsd.keeper.requests import KeptMounts
from awsomefsd.keeper.worker_link import KeeperLink


def test_back_off_starts_late_and_ends_somewhere() -> None:
    waits = [backoff_ms(deaths) for deaths in range(1, 100)]
    assert waits[: WORKER_DEATHS_BEFORE_BACKOFF - 1] == [0] * (WORKER_DEATHS_BEFORE_BACKOFF - 1)
    assert waits[WORKER_DEATHS_BEFORE_BACKOFF - 1] > 0 and waits == sorted(waits) and waits[-1] == BACKOFF_MS_MAX


def test_a_standby_that_does_not_know_what_was_begun_meanwhile_does_not_take_over() -> None:
    """The worker raised the format between the keeper's look and its own end."""
    for needs in (3, 1):
        mount: Any = Mount.__new__(Mount)
        killed: list[int] = []
        loaded = Promise()
        loaded.resolve()
        standby = SimpleNamespace(loaded=loaded, memory_format=1, kill=lambda killed=killed: killed.append(1))
        mount.spec, mount._standby, mount._standby_spec = {"mount": "1", "dir": "/mnt", "argv": ["newer"]}, standby, {"argv": ["older"]}
        mount._standby_takes_over, mount._record = True, SimpleNamespace(needs=lambda needs=needs: needs)
        assert mount._loaded_standby() is (None if needs == 3 else standby)
        assert mount.spec["argv"] == (["newer"] if needs == 3 else ["older"]) and killed == ([1] if needs == 3 else [])


@pytest.mark.parametrize("said", ["newest", None, [], 1e400])
def test_what_a_worker_says_wrongly_of_its_format_is_passed_over(said: object) -> None:
    """Its messages are read when it has died too, and what is done then must be done."""
    mount: Any = Mount.__new__(Mount)
    worker: Any = SimpleNamespace(loaded=Promise(), memory_format=1)
    mount._heard(worker, {"op": "loaded", "memory_format": said})
    assert worker.memory_format == 1 and worker.loaded.done


def test_memory_keeps_its_format_under_a_keeper_that_would_not_look_at_it(tmp_path: Path) -> None:
    """A keeper outlives the programs of its workers: one of an older build would start an older program beside a newer format."""
    for start, noted in (({}, 0), ({"needs": True}, 2)):
        fd = os.open(tmp_path / "record", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
        os.truncate(fd, RECORD_BYTES)
        link: Any = KeeperLink.__new__(KeeperLink)
        link.start_message, link._record = start, MountRecord(fd)
        assert link.needs(2) is bool(noted) and link._record.needs() == noted
        assert link.needs(0) and link._record.needs() == 0
        os.close(fd)


def test_mount_options() -> None:
    assert mount_syscalls.flags_of(["ro", "nosuid", "noatime", "_netdev", "x-systemd.automount"]) == 1 | 2 | 1024
    assert mount_syscalls.flags_of(["ro", "rw", "defaults"]) == 0
    with pytest.raises(OSError, match="unknown mount option 'quick'"):
        mount_syscalls.flags_of(["quick"])


def test_mount_table_with_odd_names(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_bytes(
        b"22 1 0:45 / /mnt/a\\040b\\134c rw shared:1 master:2 - fuse.awsomefs my\\040vol rw,fd=3\n"
        b"23 22 8:1 /sub /x rw - ext4 /dev/sda1 rw\nnonsense\n24 1 0:5 / / rw - proc\n"
    )
    first, second, third = mount_syscalls.mounts(str(table))
    assert (first.dir, first.source, first.device, first.minor) == ("/mnt/a b\\c", "my vol", "0:45", 45)
    assert (second.root, second.fstype) == ("/sub", "ext4") and third.source == ""


def test_an_unmount_that_is_heard_of_after_the_end_of_the_mount_is_one_that_went_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's bye may be read before the child that called umount(2) is waited for; the device number may be taken again by then."""
    monkeypatch.setattr(mount_syscalls, "superblock_lives", lambda _device: True)
    loop: Any = SimpleNamespace(within=lambda promise, *_: promise, chore=lambda *_: Promise())
    gone = Promise()
    mount: Any = SimpleNamespace(dir="/mnt", device="0:40", gone=gone, flush=lambda _id: Promise())  # what has ended has no more to it
    sequence = KeptMounts(loop, lambda _dropped: None)._umount_in_order(mount, "/mnt", {"request_id": "r"})  # type: ignore[arg-type,return-value]
    assert isinstance(next(sequence), Promise) and isinstance(next(sequence), Promise)
    gone.resolve(True)
    assert sequence.send(None) is gone
    with pytest.raises(StopIteration) as answer:
        sequence.send(True)
    assert answer.value.value == {"flushed": True, "detached": False}
