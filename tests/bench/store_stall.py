"""The longest stall of the thread that applies entries, with the store committed by a thread of its own and in line.

    python -m tests.bench.store_stall [inodes] [entries]

A store of `inodes` is filled below the state machine, then `entries` chmods of inodes drawn at random are applied one by one: the worst
case for a commit, since each changes another page.  A stall is what is due for the store after a batch; on a
busy machine, compare it with the longest batch, which waits for nothing but the journal.  In line: whatever makes a commit due
waits for its end, as it did before the writer thread.  Prints a line for each way.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api.commands.attributes import SET_MODE
from awsomefsd.meta.api.messages import Failed
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.replica import Replica
from tests.bench.inodes import NOW, build

CLUSTER = "00000000-0000-0000-0000-0000000000aa"
NODE = "00000000-0000-0000-0000-0000000000bb"
BATCH = 20  # entries with one sync of the journal
MS = 1_000_000


def measure(replica: Any, inodes: int, entries: int, seed: int, *, inline: bool) -> dict[str, float]:
    """Stalls in ms, and what the commits took."""
    dice = random.Random(seed)
    first = max(inodes // 10_000, 1) + 2  # behind the root and the directories
    stalls, began = [], time.monotonic_ns()
    for start in range(0, entries, BATCH):
        batch = []
        for number in range(start, start + BATCH):
            command = c.SetAttr(1, dice.randrange(first, first + inodes), SET_MODE, mode=0o600 + number % 64)
            stamp = NOW + replica.log.committed + number
            batch.append(c.Entry(0, 0, command.since, 0, 1, stamp, NOW, 0, 0, 0, 0, [], command))
        replica.propose(batch)
        took = time.monotonic_ns()
        replies = [reply for _, reply in replica.ready()]
        assert not isinstance(replies[0], Failed), replies[0]
        synced, own = time.monotonic_ns(), time.thread_time_ns()
        if inline and (due := replica.commit_due_ns()) is not None and synced >= due:
            replica.commit()
        elif not inline:
            replica.pass_time(synced)
        now = time.monotonic_ns()
        stalls.append((now - synced, time.thread_time_ns() - own, synced - took))
    total_ns = time.monotonic_ns() - began
    replica.commit()
    return {
        "entries/s": entries * 1e9 / total_ns,
        "longest stall for the store, ms": max(stall for stall, _, _ in stalls) / MS,
        "CPU of it at most, ms": max(own for _, own, _ in stalls) / MS,
        "longest apply with a sync of the journal, ms": max(turn for _, _, turn in stalls) / MS,
        "longest commit, ms": replica.commit_ns_max / MS,
        "commits": replica.commits,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("inodes", type=int, nargs="?", default=200_000)
    parser.add_argument("entries", type=int, nargs="?", default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="store-stall-") as scratch:
        build(Path(scratch), CLUSTER, NODE, options.inodes)
        for way in ("in line", "writer thread"):
            replica = Replica.open_single(Path(scratch), CLUSTER, NODE, Machine)
            try:
                found = measure(replica, options.inodes, options.entries, len(way), inline=way == "in line")
            finally:
                replica.close()
            print(f"{way:14}", ", ".join(f"{name} {value:,.1f}" for name, value in found.items()), flush=True)


if __name__ == "__main__":
    main()
