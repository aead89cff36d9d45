"""What an operation costs in system calls, requests and syncs.  Each bound is what the code needs, and a little for what time brings."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections import Counter
from pathlib import Path

import pytest

from awsomefsd.base.limits import MIB, SEGMENT_BYTES_DEFAULT, SEGMENTS_WANTED
from buildtools.nodes import Node, await_true
from tests.conftest import MakeNode
from tests.rigs.system_calls import counted, needs_strace, split_at, traced
from tests.rigs.wake_ups import wake_ups_per_s

pytestmark = [pytest.mark.root, pytest.mark.timeout(1_200), needs_strace]
ROUNDS = 100
SPANS_MAX = 6
STREAM_MIB = 160
LARGE_DEVICE_BYTES = (SEGMENTS_WANTED + 8) * SEGMENT_BYTES_DEFAULT
MAPPING = ("mmap", "mremap", "munmap")


@pytest.fixture(scope="module")
def node(make_node: MakeNode) -> Node:
    return make_node()


def each(counts: Counter[str], *names: str) -> float:
    """How many calls of these names an operation costs."""
    return sum(counts[name] for name in names) / ROUNDS


def thread_names(pid: int) -> list[str]:
    found = []
    for one in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ends meanwhile
            found.append((one / "comm").read_text())
    return found


def fewest(pid: int, enough: float) -> float:
    """The wake-ups a second in the quietest of a few spans: on a busy machine a process's threads also wait for each other."""
    counts: list[float] = []
    while len(counts) < SPANS_MAX and (not counts or counts[-1] > enough):
        counts.append(wake_ups_per_s(pid))
    return min(counts)


def test_an_idle_node_wakes_up_seldom(node: Node, figures: list[str]) -> None:
    """Half as much again as was measured; docs/PERFORMANCE.md says which threads it is."""
    await_true("the admin socket has no server", lambda: not list((node.run / "admin").glob("*.sock")), 60)
    await_true("gRPC's threads have ended", lambda: not any("event_engine" in name for name in thread_names(node.pid("daemon"))), 60)
    daemon, worker = fewest(node.pid("daemon"), 24), fewest(node.pid("worker"), 8)
    figures.append(f"wake-ups a second of an idle node: daemon {daemon:.1f}, worker {worker:.1f}")
    assert daemon <= 24, "11 to 15.4 were measured; 31.5 before, in the same hour, with threads of gRPC and looks by the clock"
    assert worker <= 8, "5.3 to 6 were measured"


def test_a_create_is_one_request_and_no_new_memory(node: Node, tmp_path: Path, figures: list[str]) -> None:
    place = node.mountpoint / "creates"
    place.mkdir()
    with counted(node.pid("worker"), tmp_path) as counts:
        for number in range(ROUNDS):
            os.close(os.open(place / str(number), os.O_CREAT | os.O_WRONLY))
    figures.append(f"create and close, calls of the worker: {dict(counts)}")
    assert each(counts, "sendto") <= 1.1, "requests to the metadata service"
    assert each(counts, "readv") <= 5.1, "LOOKUP, CREATE, GETATTR, FLUSH, RELEASE"
    assert each(counts, *MAPPING) <= 0.2, "an answer is received into memory that is there"


def test_a_synced_write_is_two_syncs(node: Node, tmp_path: Path, figures: list[str]) -> None:
    with counted(node.pid("worker"), tmp_path) as counts, (node.mountpoint / "synced").open("wb", buffering=0) as file:
        for _ in range(ROUNDS):
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
    figures.append(f"4 KiB write and fdatasync, calls of the worker: {dict(counts)}")
    assert each(counts, "fdatasync") <= 1.1, "the other one is the journal's"
    assert each(counts, "sendto") <= 1.2
    assert each(counts, *MAPPING) <= 0.4


def test_a_synced_write_is_flushed_by_the_reader_that_was_asked(node: Node, tmp_path: Path, figures: list[str]) -> None:
    """The reader syncs the device and sends the Commit; who receives the answer answers the fsync.  No thread waits for another one."""
    with (
        traced(node.pid("worker"), tmp_path, "readv,fdatasync,sendto,futex") as calls,
        (node.mountpoint / "asked").open("wb", buffering=0) as file,
    ):
        for _ in range(ROUNDS):
            file.write(bytes(4096))
            os.fdatasync(file.fileno())
    asked = [between for between in split_at("readv", calls) if "fdatasync" in between]
    here = sum("sendto" in between[between.index("fdatasync") :] for between in asked)
    futex = sum(name == "futex" for _, name in calls)
    figures.append(f"4 KiB write and fdatasync: {here} of {ROUNDS} flushed and proposed by a reader; {futex / ROUNDS:.1f} futex calls each")
    assert here >= ROUNDS * 0.9


def test_a_cold_read_is_one_request_and_hands_no_turn_on(node: Node, tmp_path: Path, figures: list[str]) -> None:
    path = node.mountpoint / "cold"
    with path.open("wb", buffering=0) as file:
        file.write(os.urandom(ROUNDS * 4096))
        os.fsync(file.fileno())
    fd, page = os.open(path, os.O_RDONLY | os.O_DIRECT), mmap.mmap(-1, 4096)
    try:
        os.preadv(fd, [page], 0)  # the layout is known from here on
        with traced(node.pid("worker"), tmp_path, "readv,preadv2,futex") as calls:
            for number in range(ROUNDS):
                assert os.preadv(fd, [page], number * 7 % ROUNDS * 4096) == 4096
    finally:
        os.close(fd)
    reads = [between for between in split_at("readv", calls) if "preadv2" in between]
    without = sum("futex" not in between for between in reads)
    figures.append(f"cold 4 KiB reads: {len(reads)}, {without} without a futex call; preadv2 {sum(r.count('preadv2') for r in reads)}")
    assert len(reads) >= ROUNDS * 0.9
    assert without >= ROUNDS / 10, "the turn is handed on for every READ; on a busy machine for many"


def test_a_cold_sequential_read_is_one_transfer_a_request(make_node: MakeNode, tmp_path: Path, figures: list[str]) -> None:
    """Frames end where the requests of such a read do; at the end of a segment one straddles two, and its footer is read.

    On a device that is large enough for segments of 64 MiB: the tests' own have so many ends of segments that every second MiB meets one.
    """
    node = make_node(size_bytes=LARGE_DEVICE_BYTES)
    path = node.mountpoint / "stream"
    with path.open("wb", buffering=0) as file:
        for _ in range(STREAM_MIB):
            file.write(os.urandom(MIB))
        os.fsync(file.fileno())
    (node.mountpoint / "other").write_bytes(bytes(MIB))
    node.umount()
    node.mount()
    (node.mountpoint / "other").read_bytes()  # the device is open, and known to be ours, from here on
    buffer = mmap.mmap(-1, MIB)
    with traced(node.pid("worker"), tmp_path, "readv,preadv2") as calls, path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    reads = [between for between in split_at("readv", calls) if "preadv2" in between]
    transfers = sum(between.count("preadv2") for between in reads)
    figures.append(f"cold sequential read of {STREAM_MIB} MiB: {len(reads)} requests, {transfers} preadv2")
    assert STREAM_MIB * 0.9 <= len(reads) <= STREAM_MIB + 2, "each request is of 1 MiB"
    assert transfers <= STREAM_MIB * 1.05
