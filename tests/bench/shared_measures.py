"""What several nodes do at once: the same plain system calls for every filesystem, one process on each node's mount.

A measure gets the mounts' views of one directory and returns a rate or a latency; all processes start together (a pipe is closed), and the
clock stops when the last one has ended, so a rate is the slowest one's.  Whoever appends is counted afterwards: a filesystem that is fast
because appends overwrite each other shows it.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
MEGABYTE = os.urandom(MIB)
BLOCK = os.urandom(4096)
READ_AGAIN, AGAIN = "a file of another node, read again", 3


@dataclass(frozen=True)
class Amounts:
    stream_mib: int  # each node
    creates: int  # each node
    appends: int  # each node
    turns: int


FULL = Amounts(stream_mib=32, creates=100, appends=100, turns=60)
QUICK = Amounts(stream_mib=8, creates=20, appends=10, turns=8)


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
    began = time.perf_counter()
    os.close(gate_write)
    failed = [pid for pid in children if os.waitpid(pid, 0)[1] != 0]
    took = time.perf_counter() - began
    if failed:
        raise OSError("a client process failed")
    return took


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


def readers(folders: list[Path], amounts: Amounts) -> float:
    """Each reads what another node wrote in `writers(3)`."""
    last = len(folders)
    paths = [folder / f"w{last}-{(at + 1) % last}" for at, folder in enumerate(folders)]
    return last * amounts.stream_mib / together([lambda path=path: read_file(path) for path in paths])


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
        raise OSError("the file that all wrote is not as long as it was written")
    return written / took


def create_in_one(folders: list[Path], amounts: Amounts) -> float:
    (folders[0] / "many").mkdir()

    def work(at: int, folder: Path) -> None:
        for number in range(amounts.creates):
            os.close(os.open(folder / "many" / f"{at}-{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))

    took = together([lambda at=at, folder=folder: work(at, folder) for at, folder in enumerate(folders)])
    return len(folders) * amounts.creates / took


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


# name, unit, measure; a rate is better when greater, "ms" when smaller
MEASURES: list[tuple[str, str, Callable[[list[Path], Amounts], float]]] = [
    ("1 node writes", "MiB/s", writers(1)),
    ("2 nodes write, a file each", "MiB/s", writers(2)),
    ("3 nodes write, a file each", "MiB/s", writers(3)),
    ("3 nodes read, another's file each", "MiB/s", readers),
    ("3 nodes read one file", "MiB/s", read_one),
    (READ_AGAIN, "MiB/s", read_again),
    ("3 nodes write one file, disjoint", "MiB/s", write_one),
    ("3 nodes create in one directory", "/s", create_in_one),
    ("3 nodes append 4 KiB to one file", "/s", append_all),
    ("read on B after a write on A", "ms", handover),
]
