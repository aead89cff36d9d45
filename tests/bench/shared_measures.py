"""What several nodes do at once: the same plain system calls for every filesystem, one process on each node's mount.

A measure gets the mounts' views of one directory and returns a rate or a latency; all processes start together (a pipe is closed), and the
clock stops when the last one has ended, so a rate is the slowest one's.  Whoever appends is counted afterwards: a filesystem that is fast
because appends overwrite each other shows it.  Processes that do not end are killed after a while, so that one filesystem that hangs costs
its own figure and not the run.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
MEGABYTE = os.urandom(MIB)
BLOCK = os.urandom(4096)
LONGEST_S = 300.0  # of one measure
READ_AGAIN, AGAIN = "a file of another node, read again", 3


@dataclass(frozen=True)
class Amounts:
    stream_mib: int  # each node
    creates: int  # each node
    appends: int  # each node
    turns: int
    samples: int  # of latencies of ours


FULL = Amounts(stream_mib=128, creates=300, appends=300, turns=100, samples=300)
QUICK = Amounts(stream_mib=16, creates=40, appends=20, turns=10, samples=30)


class Wrong(Exception):
    """What was read is not what was written: shown instead of a figure, which would be of something else."""


def together(works: Sequence[Callable[[], None]]) -> float:
    """Seconds from the start of all, each in a process of its own, to the end of the last."""
    gate_read, gate_write = os.pipe()
    children = []
    for work in works:
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                os.close(gate_write)
                os.read(gate_read, 1)
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        children.append(pid)
    os.close(gate_read)
    descriptors = [os.pidfd_open(pid) for pid in children]
    late = threading.Event()
    impatient = threading.Timer(LONGEST_S, _kill, [descriptors, late])
    impatient.start()
    began = time.perf_counter()
    os.close(gate_write)
    ends = [os.waitpid(pid, 0)[1] for pid in children]
    took = time.perf_counter() - began
    impatient.cancel()
    impatient.join()
    for descriptor in descriptors:
        os.close(descriptor)
    if any(ends):
        raise OSError(f"no end within {LONGEST_S:.0f} s" if late.is_set() else "a client process failed")
    return took


def _kill(descriptors: list[int], late: threading.Event) -> None:
    late.set()
    for descriptor in descriptors:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)


def write_file(path: Path, mib: int) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    for _ in range(mib):
        os.write(fd, MEGABYTE)
    os.fsync(fd)
    os.close(fd)


def read_file(path: Path) -> None:
    fd, buffer = os.open(path, os.O_RDONLY), bytearray(MIB)
    while os.readv(fd, [buffer]):
        pass
    os.close(fd)


def writers(count: int) -> Callable[[list[Path], Amounts], float]:
    def measure(folders: list[Path], amounts: Amounts) -> float:
        paths = [folder / f"w{count}-{at}" for at, folder in enumerate(folders[:count])]
        return count * amounts.stream_mib / together([lambda path=path: write_file(path, amounts.stream_mib) for path in paths])

    return measure


def readers(count: int) -> Callable[[list[Path], Amounts], float]:
    """Each reads, for the first time, what another node wrote in `writers(count)`."""

    def measure(folders: list[Path], amounts: Amounts) -> float:
        nodes = folders[1:2] if count == 1 else folders[:count]
        paths = [folder / f"w{count}-{(at + 1) % count}" for at, folder in enumerate(nodes)]
        return count * amounts.stream_mib / together([lambda path=path: read_file(path) for path in paths])

    return measure


def read_one(folders: list[Path], amounts: Amounts) -> float:
    name = f"w{len(folders)}-0"
    return len(folders) * amounts.stream_mib / together([lambda folder=folder: read_file(folder / name) for folder in folders])


def read_again(folders: list[Path], amounts: Amounts) -> float:
    """A file of another node that was read once: where the kernel may keep pages it is in memory."""
    mib = 2 * amounts.stream_mib
    write_file(folders[0] / "again", mib)
    path = folders[-1] / "again"
    read_file(path)

    def work() -> None:
        for _ in range(AGAIN):
            read_file(path)

    return AGAIN * mib / together([work])


def write_one(folders: list[Path], amounts: Amounts) -> float:
    """Disjoint ranges of one file."""
    (folders[0] / "one").touch()

    def part(at: int, folder: Path) -> None:
        fd = os.open(folder / "one", os.O_WRONLY)
        for number in range(amounts.stream_mib):
            os.pwrite(fd, MEGABYTE, (at * amounts.stream_mib + number) * MIB)
        os.fsync(fd)
        os.close(fd)

    took = together([lambda at=at, folder=folder: part(at, folder) for at, folder in enumerate(folders)])
    written = len(folders) * amounts.stream_mib
    if os.stat(folders[0] / "one").st_size != written * MIB:
        raise Wrong("its length is shown wrong right after")
    return written / took


def creators(name: str, count: int, apart: bool) -> Callable[[list[Path], Amounts], float]:
    """Empty files, by `count` nodes, in a directory each or in one."""

    def measure(folders: list[Path], amounts: Amounts) -> float:
        places = [folder / (f"{name}-{at}" if apart else name) for at, folder in enumerate(folders[:count])]
        for place in places[: count if apart else 1]:
            place.mkdir()

        def work(at: int, place: Path) -> None:
            for number in range(amounts.creates):
                os.close(os.open(place / f"{at}-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

        return count * amounts.creates / together([lambda at=at, place=place: work(at, place) for at, place in enumerate(places)])

    return measure


def append_all(folders: list[Path], amounts: Amounts) -> float:
    """Records of 4 KiB."""
    (folders[0] / "log").touch()

    def work(folder: Path) -> None:
        fd = os.open(folder / "log", os.O_WRONLY | os.O_APPEND)
        for _ in range(amounts.appends):
            os.write(fd, BLOCK)
        os.fsync(fd)
        os.close(fd)

    took = together([lambda folder=folder: work(folder) for folder in folders])
    made, there = len(folders) * amounts.appends, os.stat(folders[0] / "log").st_size // len(BLOCK)
    if there != made:
        raise Wrong(f"{made - there} of {made} not seen")
    return made / took


def handover(folders: list[Path], amounts: Amounts) -> float:
    """Milliseconds (median) of a read on one node of what another has just written: caches there have to be given up first."""
    files = [os.open(folder / "turn", os.O_CREAT | os.O_RDWR, 0o644) for folder in folders[:2]]
    times, stale = [], 0
    for turn in range(amounts.turns):
        writer, reader = files[turn % 2], files[1 - turn % 2]
        word = turn.to_bytes(8, "little")
        os.pread(reader, 8, 0)  # it has it cached
        os.pwrite(writer, word, 0)
        began = time.perf_counter()
        stale += os.pread(reader, 8, 0) != word
        times.append(time.perf_counter() - began)
    for fd in files:
        os.close(fd)
    if stale:
        raise Wrong(f"{stale} of {amounts.turns} reads stale")
    return statistics.median(times) * 1_000


def closed_then_opened(folders: list[Path], amounts: Amounts) -> float:
    """Milliseconds (median) to open and read on one node what another has just written and closed: the least that programs rely on."""
    paths = [folder / "closed" for folder in folders[:2]]
    paths[0].write_bytes(b"begin...")
    times, stale = [], 0
    for turn in range(amounts.turns):
        word = turn.to_bytes(8, "little")
        paths[1 - turn % 2].read_bytes()  # it has it cached
        paths[turn % 2].write_bytes(word)
        began = time.perf_counter()
        stale += paths[1 - turn % 2].read_bytes() != word
        times.append(time.perf_counter() - began)
    if stale:
        raise Wrong(f"{stale} of {amounts.turns} reads stale")
    return statistics.median(times) * 1_000


# name, unit, measure; a rate is better when greater, "ms" when smaller.  Those of a kind by 1, 2 and 3 nodes show how it scales.
WRITES = ("1 node writes", "2 nodes write, a file each", "3 nodes write, a file each")
READS = ("1 node reads another's file", "2 nodes read, another's file each", "3 nodes read, another's file each")
CREATES = ("1 node creates", "2 nodes create, a directory each", "3 nodes create, a directory each")
IN_ONE, HANDOVER = "3 nodes create in one directory", "read on B after a write on A"
MEASURES: list[tuple[str, str, Callable[[list[Path], Amounts], float]]] = [
    *((name, "MiB/s", writers(count)) for count, name in enumerate(WRITES, 1)),
    *((name, "MiB/s", readers(count)) for count, name in enumerate(READS, 1)),
    ("3 nodes read one file", "MiB/s", read_one),
    (READ_AGAIN, "MiB/s", read_again),
    ("3 nodes write one file, disjoint", "MiB/s", write_one),
    *((name, "/s", creators(f"made{count}", count, apart=True)) for count, name in enumerate(CREATES, 1)),
    (IN_ONE, "/s", creators("many", 3, apart=False)),
    ("3 nodes append 4 KiB to one file", "/s", append_all),
    (HANDOVER, "ms", handover),
    ("open and read on B after write and close on A", "ms", closed_then_opened),
]
