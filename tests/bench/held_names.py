"""What deciding costs a mount that holds its names, without the kernel, the log and the leader: CPU of one thread, in µs a command.

    PYTHONPATH=. python tests/bench/held_names.py [count]

Each kind of command runs `count` times in a directory made here, five rounds, the median is printed.  `Machine.apply` of the same creates
over a dict is printed beside them: the leader's share.
"""

from __future__ import annotations

import stat
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.meta.api import commands as c
from awsomefsd.meta.state import keys
from tests.rigs.held_rows import Holding
from tests.rigs.machine_driver import Drive

ROUNDS = 5
FILE, NOW = stat.S_IFREG | 0o644, 1_800_000_000_000_000_000


def us_each(count: int, step: Callable[[int], Any]) -> float:
    begun = time.thread_time_ns()
    for number in range(count):
        step(number)
    return (time.thread_time_ns() - begun) / count / 1_000


class Round:
    """A directory of its own, and commands in it."""

    def __init__(self, count: int) -> None:
        self.drive = Drive()
        volume = self.drive.make_volume()
        self.drive.open()
        self.holding = Holding(self.drive)
        self.names = self.holding.names
        self.parent: int = self.holding.decide(c.Create(volume, 1, b"d", stat.S_IFDIR | 0o755, 0, 0)).attr.ino
        self.first = self.holding.next_ino
        self.sequence = self.holding.sequence
        self.count, self.volume = count, volume

    def done(self, command: Any, number: int = 0) -> None:
        self.sequence += 1
        self.names.decide(command, NOW + self.sequence, number)
        self.names.keep(self.sequence)

    def figures(self) -> dict[str, float]:
        volume, parent, first = self.volume, self.parent, self.first
        name = [b"file-%06d" % number for number in range(self.count)]
        new = [b"new-%06d" % number for number in range(self.count)]
        found = {
            "create": us_each(self.count, lambda n: self.done(c.Create(volume, parent, name[n], FILE, 0, 0), first + n)),
            "chmod": us_each(self.count, lambda n: self.done(c.SetAttr(volume, first + n, c.SET_MODE, 0o600))),
            "rename": us_each(self.count, lambda n: self.done(c.Rename(volume, parent, name[n], parent, new[n]))),
            "unlink": us_each(self.count, lambda n: self.done(c.Unlink(volume, parent, new[n]))),
        }
        begun, records = time.thread_time_ns(), self.names.rows.unapplied
        self.names.rows.applied(self.sequence)
        found["applied, a record"] = (time.thread_time_ns() - begun) / records / 1_000
        return found | {"create, Machine.apply": self._at_the_leader(name)}

    def _at_the_leader(self, name: list[bytes]) -> float:
        directory = self.drive.mkdir(b"leader")
        entries = [self.drive.entry(c.Create(self.volume, directory, one, FILE, 0, 0)) for one in name]
        assert self.drive.txn.get(keys.inode(self.volume, 1)) is not None
        return us_each(self.count, lambda n: self.drive.machine.apply(entries[n]))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 5_000
    rounds = [Round(count).figures() for _ in range(ROUNDS)]
    for what in rounds[0]:
        print(f"{what:24} {statistics.median(figures[what] for figures in rounds):7.1f} µs")


if __name__ == "__main__":
    main()
