"""The same operations, proposed one by one on one machine and as batches of records on another, leave the same rows.

Batches are cut at random, and come twice, late, out of order or not at all.  What may differ: stamps, results, where the
volume's counter of inode numbers stands, and the row of the op log.
"""

from __future__ import annotations

import random
import stat
from typing import Any

import msgspec

from awsomefsd.base.types import LOCK_FLOCK, LOCK_POSIX
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.check.check import check
from awsomefsd.meta.machine import record_checks
from awsomefsd.meta.state import keys
from awsomefsd.meta.state.row_codecs import CODEC_OF
from tests.rigs.machine_driver import Drive

LOG = 9
NAMES = [b"a", b"b", b"c", b"d"]
KINDS = [stat.S_IFREG | 0o644, stat.S_IFREG | 0o644, stat.S_IFDIR | 0o2755, stat.S_IFLNK | 0o777, stat.S_IFIFO | 0o600]
NOT_COMPARED = {keys.CLUSTER, keys.RESULT, keys.OPLOG}
OPERATIONS, RUNS = 120, 3


class Holder:
    """Decides operations on a machine of its own, and writes down a record of each that is done."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.drive = Drive()
        self.volume = self.drive.make_volume()
        self.drive.open()
        self.inos = [1]
        self.directories = [1]
        self.records: list[c.DecidedRecord] = []

    def operation(self) -> c.DelegatedCommand:
        chance, volume = self.chance, self.volume
        ino, parent, other = chance.choice(self.inos[-9:]), chance.choice(self.directories[-5:]), chance.choice(self.directories[-5:])
        name, new_name = chance.choice(NAMES), chance.choice(NAMES)
        pinned = chance.random() < 0.3
        mask = chance.choice([c.SET_MODE, c.SET_UID | c.SET_GID, c.SET_SIZE, c.SET_MTIME, c.SET_ATIME | c.SET_MTIME, c.SET_KILL_SUIDGID])
        choices: list[c.DelegatedCommand] = [
            c.Create(volume, parent, name, chance.choice(KINDS), 1, 2, 3, b"target", umask=0o22),
            c.Create(volume, parent, name, chance.choice(KINDS), 1, 2, 3, b"target"),
            c.Tmpfile(volume, parent, 0o600, 1, 2),
            c.Link(volume, ino, parent, name),
            c.Unlink(volume, parent, name, pinned),
            c.Rmdir(volume, parent, name, pinned),
            c.Rename(volume, parent, name, other, new_name, chance.choice([0, 0, 0, 1, 2, 4]), pinned),
            c.SetAttr(
                volume, ino, mask, chance.choice([0o4755, 0o2711, 0o600]), 5, 6, chance.randrange(9_000), None, chance.choice([None, 7])
            ),
            c.SetXattr(volume, ino, chance.choice([b"user.a", b"user.b"]), chance.randbytes(3), chance.randrange(3)),
            c.RemoveXattr(volume, ino, chance.choice([b"user.a", b"user.b"])),
            c.ReleaseOrphan(volume, [ino]),
            c.Fallocate(volume, ino, c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE, 0, chance.randrange(1, 5_000), pinned),
            c.SetLock(volume, ino, chance.choice([LOCK_POSIX, LOCK_FLOCK]), chance.randrange(2), 7, chance.randrange(3), 0, 99),
        ]
        return chance.choice(choices[:7] if chance.random() < 0.6 else choices)

    def step(self) -> None:
        command = self.operation()
        state = self.drive.machine.state
        found = [self.drive.machine.child(self.volume, *name) for name in record_checks.names_of(command)]
        made = state.volume(self.volume).next_ino
        time_ns = self.drive.now + self.chance.choice([-5_000_000, 0, 1_000, 1_000])
        if isinstance(self.drive.apply(command, unique=self.drive.index, time_ns=time_ns), m.Failed):
            return
        ino = made if state.volume(self.volume).next_ino != made else 0
        if ino:
            self.inos.append(ino)
            if isinstance(command, c.Create) and stat.S_ISDIR(command.mode):
                self.directories.append(ino)
        sequence = (self.records[-1].sequence if self.records else 0) + self.chance.randint(1, 3)
        record = c.DecidedRecord(sequence, len(self.records) + 1, time_ns, command, 0, found, 0, ino)
        record.check = record_checks.check_of(state, record)
        self.records.append(record)


class Leader:
    """Gets the records over a way that loses, doubles and reorders batches."""

    def __init__(self, chance: random.Random, records: list[c.DecidedRecord]) -> None:
        self.chance = chance
        self.records = records
        self.drive = Drive()
        self.volume = self.drive.make_volume()
        self.drive.open()
        assert self.drive.ok(c.GrantInodes(self.volume, 4_096)).first == 2
        self.old: list[c.Apply] = []

    def cut(self, at: int) -> c.Apply:
        """A batch of records from `at` on, which may reach back."""
        after = self.records[at - 1].sequence if at else 0
        begin = max(0, at - self.chance.choice([0, 0, 0, 2]))
        part = self.records[begin : at + self.chance.choice([1, 2, 5, 40])]
        return c.Apply(self.volume, LOG, after, part[0].sequence, part, [], [], 0)

    def deliver(self, batch: c.Apply) -> int:
        reply: m.Applied = self.drive.ok(batch, unique=self.drive.index)
        assert not reply.differs, reply
        if reply.errno:
            assert not reply.refused and reply.applied < batch.after, reply
        return reply.applied

    def run(self) -> None:
        at, sequences = 0, [record.sequence for record in self.records]
        while at < len(self.records):
            batch = self.cut(at)
            ahead = self.cut(min(at + self.chance.randint(1, 9), len(self.records) - 1))
            what = self.chance.random()
            if what < 0.2:
                continue  # lost
            if what < 0.4:
                self.deliver(ahead)  # overtakes: refused for the gap, unless nothing is between
            self.old.append(batch)
            applied = self.deliver(batch)
            if what > 0.6:
                applied = self.deliver(self.chance.choice(self.old))  # twice, or long ago
            if what > 0.9:
                self.drive.reload()
            at = sequences.index(applied) + 1


def rows_of(drive: Drive) -> dict[bytes, Any]:
    """All rows that are compared, without stamps and without what the grant changes."""
    drive.machine.flush()
    assert check(drive.txn) == []
    found = {}
    for key, raw in drive.txn.rows.items():
        kind = keys.kind_of(key)[2]
        if kind not in NOT_COMPARED:
            row = CODEC_OF[kind].loads(raw)
            left_out = {"stamp", "next_ino", "granted_inodes"} & set(row.__struct_fields__)
            found[key] = msgspec.structs.replace(row, **dict.fromkeys(left_out, 0))
    return found


def test_records_in_batches_leave_the_rows_of_the_same_commands_one_by_one(seed: int) -> None:
    for run in range(RUNS):
        chance = random.Random(seed * RUNS + run)
        holder = Holder(chance)
        for _ in range(OPERATIONS):
            holder.step()
        leader = Leader(chance, holder.records)
        leader.run()
        expected, got = rows_of(holder.drive), rows_of(leader.drive)
        different = [key for key in expected.keys() | got.keys() if expected.get(key) != got.get(key)]
        assert not different, [(key.hex(), expected.get(key), got.get(key)) for key in different[:3]]
