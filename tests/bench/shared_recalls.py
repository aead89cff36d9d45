"""How long a node waits for what another one holds under a lease, beside a plain request to the leader in the same minute.

Two nodes that do not lead: A holds, B asks, the leader recalls.  Every sample is of a file of its own, which B has open and has looked at
before A changed it: so what B asks is one question about one inode, none about names, and no file is asked for so often that it counts as
contested (decision 81) and is not leased at all.  Kinds take turns, so that a noisy second hits all.  The leader's count of recalls, read
just before B asks and after, proves that each sample was one; it is part of what is told.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from buildtools.cluster import Cluster
from buildtools.leader import figures

KIB = 1 << 10
PLAIN = "a request to the leader, nothing recalled (statfs)"
CLEAN = "stat of a file that A holds to write, all committed"
DIRTY = "stat of a file with 4 KiB that A holds back"
DIRTY_MIB = "stat of a file with 1 MiB that A holds back"
READ = "read of 4 KiB that A holds back"
READ_MIB = "read of 1 MiB that A holds back"
CHANGE = "chmod of a file that A holds to read"
KINDS: dict[str, tuple[int, bool, bool]] = {  # bytes that A writes, whether it commits them, whether B reads them
    CLEAN: (4 * KIB, True, False),
    DIRTY: (4 * KIB, False, False),
    DIRTY_MIB: (1024 * KIB, False, False),
    READ: (4 * KIB, False, True),
    READ_MIB: (1024 * KIB, False, True),
    CHANGE: (0, False, False),
}


class Stale(Exception):
    """B was told something old."""


def timed(work: Callable[[], object]) -> tuple[float, object]:
    began = time.perf_counter()
    value = work()
    return (time.perf_counter() - began) * 1_000, value


def sample(name: str, holder: Path, asker: Path, recalls: Callable[[], float]) -> tuple[float, float]:
    """Milliseconds that B's one system call took, and how many recalls it made."""
    size, commit, reads = KINDS[name]
    data = os.urandom(16) * (size // 16)
    theirs, ours = os.open(holder, os.O_RDWR), os.open(asker, os.O_RDWR)
    try:
        os.fstat(ours)
        os.fstat(theirs)
        os.pwrite(theirs, data, 0)
        if commit:
            os.fsync(theirs)
        before = recalls()
        if name == CHANGE:
            took, found = timed(lambda: os.chmod(ours, 0o640))
        elif reads:
            took, found = timed(lambda: os.pread(ours, size, 0))
        else:
            took, found = timed(lambda: os.fstat(ours).st_size)
        if name != CHANGE and found != (data if reads else size):
            raise Stale(f"{name}: B was not told of what A had written")
        return took, recalls() - before
    finally:
        os.close(theirs)
        os.close(ours)


def measure(cluster: Cluster, samples: int) -> dict[str, dict[str, list[float]]]:
    """Of each kind the milliseconds of all samples, and how many recalls the leader counted for each."""
    leader = cluster.await_leader()
    roots = [node.mountpoint for node in cluster.nodes if node is not leader]
    (roots[0] / "recalls").mkdir()
    names = [f"{kind}-{number}" for kind in range(len(KINDS)) for number in range(samples)]
    for name in names:
        (roots[0] / "recalls" / name).touch()
    if len(os.listdir(roots[1] / "recalls")) != len(names):
        raise Stale("B does not see all files that A made")
    times: dict[str, list[float]] = {name: [] for name in (PLAIN, *KINDS)}
    counted: dict[str, list[float]] = {name: [] for name in times}

    def recalls() -> float:
        return float(figures(leader.run / "meta.sock")["lease_recalls"])

    for number in range(samples):
        recalls()  # as before every other sample
        times[PLAIN].append(timed(lambda: os.statvfs(roots[1]))[0])
        for kind, name in enumerate(KINDS):
            took, made = sample(name, *(root / "recalls" / f"{kind}-{number}" for root in roots[:2]), recalls)
            times[name].append(took)
            counted[name].append(made)
    return {"ms": times, "recalls": counted}
