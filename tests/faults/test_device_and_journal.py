"""Faults of device, journal, store and sockets under a running node: the right errno, a truthful fsync, no death that is not documented,
and everything as before when the fault has ended.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import threading
import time
from itertools import pairwise

import pytest

from awsomefsd.io.segment.writer import ATTEMPTS_MAX
from buildtools import chaos
from buildtools.nodes import await_true
from tests.faults.rig import (
    changes,
    committed,
    errors_of,
    faults,
    fsync_until_true,
    load_in_phases,
    newest_index,
    refused,
    survive_everything,
)

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200)]
MIB = 1 << 20


@pytest.fixture(scope="module")
def node(make_node):
    return make_node(faults=True)


@pytest.fixture
def undisturbed(node):
    """Daemon, worker and keeper are the same processes after the test."""
    before = {role: node.pid(role) for role in ("daemon", "worker", "keeper")}
    yield before
    assert {role: node.pid(role) for role in before} == before


def test_a_failed_flush_is_told_and_the_data_is_kept(node, undisturbed, seed):
    path = node.mountpoint / "truth"
    data = random.Random(seed).randbytes(3 * MIB)
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        with faults(node, "device.flush=EIO", hits="device.flush"):
            assert os.write(fd, data) == len(data)
            assert refused(lambda: os.fsync(fd)) == errno.EIO
            assert os.pread(fd, len(data), 0) == data
            assert refused(lambda: os.fsync(fd)) == errno.EIO, "it is still not durable"
            os.pwrite(fd, b"later", 7)
            assert refused(lambda: os.fdatasync(fd)) == errno.EIO
    finally:
        os.close(fd)
    fsync_until_true(path)
    survive_everything(node)
    assert path.read_bytes() == data[:7] + b"later" + data[12:]
    undisturbed.update({role: node.pid(role) for role in undisturbed})


def test_a_flush_that_failed_behind_the_back_is_told_once(node, undisturbed):
    """By the next fsync, although the data has become durable since."""
    path, start = node.mountpoint / "behind", newest_index(node)
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        with faults(node, "device.write=ENOSPC", hits="device.write"):
            os.write(fd, bytes(MIB))
            before = node.fault_hits("device.write")
            # The writer tries another segment by itself, and has to lease it first: only when all its tries failed has the flush.
            await_true("a flush by age", lambda: node.fault_hits("device.write") >= before + ATTEMPTS_MAX, 60)
        await_true("the next try of the flusher", lambda: committed(node, start, os.fstat(fd).st_ino), 60, 0.2)
        assert refused(lambda: os.fsync(fd)) == errno.ENOSPC
        assert refused(lambda: os.fsync(fd)) == 0
    finally:
        os.close(fd)


def test_a_failed_read_is_eio_and_no_wrong_byte(node, undisturbed, seed):
    path = node.mountpoint / "reads"
    data = random.Random(seed).randbytes(2 * MIB)
    path.write_bytes(data)
    fsync_until_true(path)
    node.kill("worker")  # nothing of it is in memory
    undisturbed["worker"] = node.replaced("worker", undisturbed["worker"])
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)  # past the kernel's pages
    buffer = mmap.mmap(-1, len(data))
    try:
        with faults(node, "device.read=EIO", hits="device.read"):
            assert refused(lambda: os.preadv(fd, [buffer], 0)) == errno.EIO
        with faults(node, "device.read=short", hits="device.read"):
            assert os.preadv(fd, [buffer], 0) == len(data)
            assert buffer[:] == data
    finally:
        os.close(fd)


def test_a_file_with_wrong_bytes_is_in_the_status_until_it_is_rewritten(node, undisturbed, seed):
    path = node.mountpoint / "rotten"
    data = random.Random(f"rotten {seed}").randbytes(MIB)
    path.write_bytes(data)
    fsync_until_true(path)
    with open(node.disk.resolve(), "r+b") as disk:
        with mmap.mmap(disk.fileno(), os.path.getsize(node.image), access=mmap.ACCESS_READ) as raw:
            at = raw.find(data[512_000:512_512])
        assert at > 0
        disk.seek(at)
        disk.write(bytes(512))
        os.fsync(disk.fileno())
    node.kill("worker")  # nothing of it is in memory
    undisturbed["worker"] = node.replaced("worker", undisturbed["worker"])

    def found() -> list[str]:
        return [one["what"] for one in node.ask("status", accept=(0, 3))["health"] if one["code"] == "DAMAGED_FILE"]

    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    try:
        assert found() == []
        assert refused(lambda: os.preadv(fd, [mmap.mmap(-1, MIB)], 0)) == errno.EIO
        await_true("the health code", found, 60)
        assert all(f"file /rotten of volume {node.volume} at offset" in what for what in found()), found()
        buffer = mmap.mmap(-1, MIB)
        buffer[:] = data
        assert os.pwrite(fd, buffer, 0) == MIB
        os.fsync(fd)
        await_true("the end of the health code", lambda: not found(), 60)
    finally:
        os.close(fd)


def test_load_over_an_ill_device(node, undisturbed, figures, seed):
    phases = [
        "device.write=EIO:5%",
        "device.flush=EIO:10%",
        "device.write=short:10%",
        "device.read=EIO:10%",
        "device.read=short:10%,device.read=delay:20ms:5%",
        "device.flush=EIO:70%",
        "device.write=ENOSPC:3%,device.flush=delay:50ms:10%,device.read=EIO:1%",
    ]
    finals = load_in_phases(node, phases, seed=seed, accept="EIO,ENOSPC", between=40, name="ill")
    assert errors_of(finals) == []
    assert sum(final["refused"] for final in finals), "void: no fsync was refused"
    for final in finals:
        for name in final["manifest"]:
            fsync_until_true(node.mountpoint / "ill" / final["directory"].rpartition("/")[2] / name)
    figures.append(
        f"device faults: {sum(final['ops'] for final in finals):,} verified operations, {sum(f['refused'] for f in finals)} refused, "
        f"{node.fault_hits('device')} faults"
    )
    survive_everything(node)
    assert chaos.check_after_remount(finals) == []
    undisturbed.update({role: node.pid(role) for role in undisturbed})


def test_a_journal_that_fails_ends_the_daemon_and_it_comes_back(node, figures, seed):
    """Documented: what a failed fdatasync left in the page cache proves nothing, so the process replays what the disk has."""
    worker, keeper = node.pid("worker"), node.pid("keeper")
    running = chaos.Clients(node.mountpoint / "journal", 3, seed)
    try:
        running.await_progress(5)
        for rules in ("journal.sync=EIO:x1", "journal.write=EIO:x1", "journal.write=ENOSPC:x1", "store.commit=EIO:x1"):
            daemon = node.pid("daemon")
            with faults(node, rules, hits=rules.partition("=")[0]):
                await_true(f"the end of the daemon by {rules}", lambda pid=daemon: pid not in node.pids("daemon"), 60)
            node.replaced("daemon", daemon)
            running.await_progress(5)
        finals = running.finish()
    finally:
        node.inject("")
        running.abandon()
    assert errors_of(finals) + chaos.check_counters(node.mountpoint / "journal", finals) == []
    assert (worker, keeper) == (node.pid("worker"), node.pid("keeper"))


def test_load_over_a_slow_journal_a_full_map_and_bad_sockets(node, undisturbed, figures, seed):
    phases = [
        "journal.sync=delay:50ms:10%",
        "journal.write=short:10%",
        "store.full=EIO:50%",
        "client.send=ECONNRESET:1%",
        "client.receive=ECONNRESET:1%",
        "service.send=EPIPE:1%",
        "service.receive=ECONNRESET:1%",
        "client.send=short:10%,client.receive=short:10%,service.send=short:10%,service.receive=short:10%,service.send=delay:10ms:5%",
    ]
    finals = load_in_phases(node, phases, seed=seed + 1, accept="", between=30, name="sockets")
    assert errors_of(finals) + chaos.check_counters(node.mountpoint / "sockets", finals) == []
    figures.append(f"journal, store and socket faults: {sum(final['ops'] for final in finals):,} verified operations, none failed")


def test_a_full_dirty_log_makes_writers_wait(node, undisturbed, seed):
    """More than the memfd holds, while nothing can be flushed: write(2) waits, and goes on when the device does."""
    path = node.mountpoint / "flood"
    data = random.Random(seed).randbytes(MIB) * 130
    done = threading.Event()

    def flood() -> None:
        path.write_bytes(data)
        done.set()

    with faults(node, "device.flush=EIO", hits="device.flush"):
        writer = threading.Thread(target=flood, daemon=True)
        writer.start()
        hits = node.fault_hits("device.flush")
        await_true("flushes that fail", lambda: node.fault_hits("device.flush") > hits + 5, 60)
        assert not done.is_set()
    assert done.wait(180)
    fsync_until_true(path)
    assert path.read_bytes() == data
    path.unlink()


def test_a_clock_that_jumps_a_day(node, undisturbed, seed):
    """No session ends, file times follow the clock, log stamps only grow, and what is dirty is flushed by age all the same."""
    first = newest_index(node)
    for offset in (86_400, -86_400, 0):
        path = node.mountpoint / f"clock{offset}"
        start = newest_index(node)
        node.inject(f"clock={offset}")
        path.write_bytes(b"x" * 100)
        shift = path.stat().st_mtime - time.time()
        assert abs(shift - offset) < 3_600, f"mtime is {shift} s off"
        await_true("the flush by age", lambda start=start, path=path: committed(node, start, path.stat().st_ino), 60, 0.2)
    # what was written a day ahead is not so young for a day that only an fsync would flush it
    node.inject("clock=86400")
    path, start = node.mountpoint / "ahead", newest_index(node)
    path.write_bytes(b"y" * 100)
    node.inject("")
    await_true("the flush by age", lambda: committed(node, start, path.stat().st_ino), 60, 0.2)
    running = chaos.Clients(node.mountpoint / "clock-load", 2, seed)
    try:
        for offset in (86_400, -86_400, 86_400, 0):
            node.inject(f"clock={offset}")
            running.await_progress(10)
        finals = running.finish()
    finally:
        node.inject("")
        running.abandon()
    assert errors_of(finals) == []
    assert node.ask("status")["figures"]["sessions_expired"] == "0"
    stamps = [row["stamp"] for row in changes(node, first)]
    assert len(stamps) > 100 and all(before < after for before, after in pairwise(stamps))
