"""The rows of `awsomefsd bench`: what is measured, the limit, and what a figure beyond it asks for.

A limit is no promise: it is where other causes than this program are the first to look at.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

MS, MIB_S = "ms", "MiB/s"
MIB = 1 << 20


class BenchRow(NamedTuple):
    """`limit`: the largest median of times (ms), the smallest of rates (MiB/s)."""

    name: str
    unit: str
    limit: float
    what: str
    advice: str


_NETWORK = "`awsomefsd doctor` looks for lost packets; nodes far away from each other make every change slow"
_JOURNAL = "put state_dir on an SSD that keeps its cache through a power cut, alone there"
_DEVICE = "`awsomefsd device identify` says which disk it is; look at its health and at who else uses it"
_COMMIT = "the slowest of a majority of the voters counts: compare disk.sync and network.connect on each of them"
_ASKED = "what this mount does not hold the leader is asked for: compare metadata.ask, and network.connect to it"
_LINKS = "compare device.stream, and whether another mount of this node is busy (`awsomefsd top`)"
ROWS = {
    row.name: row
    for row in (
        BenchRow("disk.sync", MS, 5, "4 KiB written over and synced in the state directory, as a journal does", _JOURNAL),
        BenchRow("device.read", MS, 5, "4 KiB read from anywhere on a device, past the page cache", _DEVICE),
        BenchRow("device.stream", MIB_S, 100, "1 MiB read after the other from a device, past the page cache", _DEVICE),
        BenchRow("network.connect", MS, 2, "a TCP connection to another node: one packet there and one back", _NETWORK),
        BenchRow("metadata.ask", MS, 20, "a question to the metadata service through the daemon", _COMMIT),
        BenchRow("mount.create", MS, 5, "a file made and closed", _COMMIT),
        BenchRow("mount.stat", MS, 1, "the attributes of one of these files", _ASKED),
        BenchRow("mount.list", MS, 300, "all these files listed with attributes, for each 1,000 of them", _ASKED),
        BenchRow("mount.rename", MS, 5, "one of these files renamed", _COMMIT),
        BenchRow("mount.remove", MS, 5, "one of these files removed", _COMMIT),
        BenchRow("mount.sync", MS, 20, "4 KiB appended and synced (fsync)", _COMMIT),
        BenchRow("mount.mkdir", MS, 20, "a directory made, and its parent synced", _COMMIT),
        BenchRow("mount.write", MIB_S, 100, "1 MiB written after the other, and a sync at the end", _LINKS),
        BenchRow("mount.read", MIB_S, 100, "the same read again; devices and other nodes may still have it in memory", _LINKS),
        BenchRow("mount.read4k", MS, 5, "4 KiB read from anywhere of that file", _DEVICE),
    )
}


class Measured(NamedTuple):
    """`of`: the node, device or directory.  `worst`: of times the 99th percentile, of rates the slowest piece."""

    name: str
    of: str
    median: float
    worst: float
    samples: int

    @property
    def row(self) -> BenchRow:
        return ROWS[self.name]

    @property
    def within(self) -> bool:
        return self.median <= self.row.limit if self.row.unit == MS else self.median >= self.row.limit


def times(name: str, of: str, do: Callable[[int], object], most: int, seconds: float, least: int = 3) -> Measured:
    """Does something with 0, 1, 2 … for `seconds`, at least `least` and at most `most` times; the figures are of the time of each."""
    spent: list[float] = []
    end = time.monotonic() + seconds
    while len(spent) < most and (len(spent) < least or time.monotonic() < end):
        began = time.perf_counter()
        do(len(spent))
        spent.append((time.perf_counter() - began) * 1_000)
    return of_times(name, of, spent)


def of_times(name: str, of: str, spent: list[float]) -> Measured:
    return Measured(name, of, statistics.median(spent), sorted(spent)[(len(spent) * 99 - 1) // 100], len(spent))


def rate(name: str, of: str, pieces: list[tuple[int, float]]) -> Measured:
    """Returns the rate of all pieces (bytes, seconds), and that of the slowest one."""
    rates = [count / MIB / max(seconds, 1e-9) for count, seconds in pieces]
    total = sum(count for count, _ in pieces) / MIB / max(sum(seconds for _, seconds in pieces), 1e-9)
    return Measured(name, of, total, min(rates), len(pieces))
