"""What the machine itself gives: the bound that "3 nodes 2.2 times one" is held against.

Three nodes on one machine share its processors and one disk.  So beside every rate stands the processor time of the whole machine that it
took (kernel, loop device and the measuring programs too), and of it what our workers and daemons took; and in the same run 1, 2 and 3 plain
processes compute, and write to a loop device of the same kind with O_DIRECT, without any filesystem of ours.  Ticks are 10 ms: shares of
measures that last a tenth of a second mean nothing.
"""

from __future__ import annotations

import mmap
import os
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from buildtools import loops, procs
from buildtools.cluster import Cluster
from tests.bench.shared_measures import MEGABYTE, MIB, together

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
PROCESSES = (1, 2, 3)
FRAME_BYTES = 4 << 20  # as a segment is
CHECKSUM_MIB = 1_000
IDLE_S = 3.0


# --- processor time -----------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Processors:
    """Seconds since the start of the machine."""

    wall_s: float
    busy_s: float
    stolen_s: float  # by other virtual machines

    @classmethod
    def now(cls) -> Processors:
        words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, irq, softirq, steal = map(int, words[1:9])
        return cls(time.monotonic(), (user + nice + system + irq + softirq) * TICK_S, steal * TICK_S)

    def since(self, before: Processors) -> dict[str, float]:
        wall = max(self.wall_s - before.wall_s, TICK_S)
        return {
            "wall_s": wall,
            "busy_s": self.busy_s - before.busy_s,
            "stolen_s": self.stolen_s - before.stolen_s,
            "busy_percent": 100 * (self.busy_s - before.busy_s) / wall / (os.cpu_count() or 1),
        }


def of_processes(pids: list[int]) -> float:
    """Seconds that these have computed so far."""
    found = 0.0
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # ended meanwhile
        found += (int(words[11]) + int(words[12])) * TICK_S
    return found


def roles(cluster: Cluster) -> dict[str, list[int]]:
    """Workers and daemons of all nodes."""
    owned = [procs.owned(str(node.directory)) for node in cluster.nodes]
    return {role: [pid for of in owned for pid, name in of.items() if name == role] for role in ("worker", "daemon")}


def idle(cluster: Cluster) -> dict[str, float]:
    """Percent of one processor that mounted nodes use while nobody does anything."""
    pids = roles(cluster)
    own = {role: of_processes(of) for role, of in pids.items()}
    began = time.monotonic()
    time.sleep(IDLE_S)
    return {role: 100 * (of_processes(of) - own[role]) / (time.monotonic() - began) for role, of in pids.items()}


# --- without any filesystem of ours ---------------------------------------------------------------------------------------------
def checksums() -> dict[str, float]:
    """MiB/s of a checksum by 1, 2 and 3 processes: how much of another processor there is."""

    def work() -> None:
        for _ in range(CHECKSUM_MIB):
            zlib.crc32(MEGABYTE)

    return {str(count): count * CHECKSUM_MIB / together([work] * count) for count in PROCESSES}


def loop_device(mib: int) -> dict[str, float]:
    """MiB/s written with O_DIRECT and flushed at the end, by 1, 2 and 3 processes to places of their own on a new loop device."""
    folder = Path(tempfile.mkdtemp(prefix="afs-bench-loop-"))
    image = folder / "device.img"
    try:
        found, at = {}, 0
        pieces = max(1, mib * MIB // FRAME_BYTES)
        with image.open("wb") as file:
            file.truncate(sum(PROCESSES) * pieces * FRAME_BYTES)
        device = loops.attach(image)
        for count in PROCESSES:
            starts = [(at + number) * pieces * FRAME_BYTES for number in range(count)]
            at += count
            took = together([lambda start=start: _write_direct(device, start, pieces) for start in starts])
            found[str(count)] = count * pieces * FRAME_BYTES / MIB / took
        return found
    finally:
        for device in loops.of_file(image):
            loops.detach(device)
        shutil.rmtree(folder, ignore_errors=True)


def _write_direct(device: str, start: int, pieces: int) -> None:
    with mmap.mmap(-1, FRAME_BYTES) as memory:  # begins at a page, as O_DIRECT wants it
        memory.write(MEGABYTE * (FRAME_BYTES // MIB))
        fd = os.open(device, os.O_WRONLY | os.O_DIRECT)
        for number in range(pieces):
            os.pwrite(fd, memory, start + number * FRAME_BYTES)
        os.fdatasync(fd)
        os.close(fd)


def others_percent() -> float:
    """How busy the processors are while nothing is measured: above a few percent, others work here too."""
    before = Processors.now()
    time.sleep(IDLE_S)
    return Processors.now().since(before)["busy_percent"]


def machine(mib: int, rounds: int) -> dict[str, list[dict[str, float]]]:
    """Both, so often."""
    return {"checksums": [checksums() for _ in range(rounds)], "loop device": [loop_device(mib) for _ in range(rounds)]}
