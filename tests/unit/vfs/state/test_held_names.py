"""A mount decides by itself: random commands, decided over rows that come and go, and then done by the real machine, agree with it.

Equal replies, and in the end equal governed fields of every row that the overlay knows; the rules never go around the ledger.
"""

from __future__ import annotations

import random
import stat
from collections.abc import Iterable
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.meta.api import acl
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.held import COMMANDS, NoNumber, first_keys
from awsomefsd.meta.state import governed, keys, rows
from awsomefsd.vfs.state import overlay_state
from awsomefsd.vfs.state.overlay_state import Missing
from tests.rigs.held_rows import Holding
from tests.rigs.machine_driver import Drive, sound

NAMES = [b"a", b"b", b"c", b"d"]
XATTRS = [b"user.a", b"user.b", b"security.capability", b"user.awsomefs.consistency", acl.ACCESS, acl.DEFAULT]
KINDS = [stat.S_IFREG, stat.S_IFREG, stat.S_IFDIR, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO]


def an_acl(chance: random.Random) -> bytes:
    """user::rw-, user:N:r--, group::r--, mask::rw-, other::r--, or an empty one."""
    entries = [(1, 6, 0xFFFFFFFF), (2, 4, chance.randrange(1, 4)), (4, 4, 0xFFFFFFFF), (16, 6, 0xFFFFFFFF), (32, 4, 0xFFFFFFFF)]
    body = b"".join(tag.to_bytes(2, "little") + bits.to_bytes(2, "little") + who.to_bytes(4, "little") for tag, bits, who in entries)
    return (2).to_bytes(4, "little") + (body if chance.random() < 0.7 else b"")


class Commands:
    """Random commands on few names, so that they meet."""

    def __init__(self, chance: random.Random, volume: int) -> None:
        self.chance = chance
        self.volume = volume
        self.inodes = [1]
        self.pinned: list[int] = []

    def ino(self) -> int:
        return self.chance.choice(self.inodes[-12:] + [1] * 3)

    def name(self) -> bytes:
        return self.chance.choice(NAMES)

    def any(self) -> Any:
        chance, volume, ino = self.chance, self.volume, self.ino()
        pick = chance.randrange(13)
        if pick < 4:
            kind = chance.choice(KINDS)
            target = b"to" if kind == stat.S_IFLNK else b""
            mode = kind | chance.choice([0o644, 0o755, 0o2755])
            return c.Create(volume, ino, self.name(), mode, 1, 2, 0, target, chance.random() < 0.3, 0o22)
        if pick == 4:
            return c.Tmpfile(volume, ino, 0o600, 1, 2, 0, chance.random() < 0.8)
        if pick == 5:
            return c.Link(volume, self.ino(), ino, self.name())
        if pick < 8:
            return chance.choice([c.Unlink, c.Rmdir])(volume, ino, self.name(), chance.random() < 0.3)
        if pick < 10:
            return c.Rename(volume, ino, self.name(), self.ino(), self.name(), chance.choice([0, 0, 0, 1, 2, 4]), chance.random() < 0.3)
        if pick == 10:
            mask = chance.randrange(1 << 9)
            return c.SetAttr(volume, ino, mask, chance.randrange(1 << 12), 3, 4, chance.choice([0, 5, 9_000]), 7, None, None, 1, 50)
        if pick == 11:
            name = chance.choice(XATTRS)
            value = an_acl(chance) if name in acl.NAMES else chance.choice([b"", b"strict", b"close-to-open"])
            said = c.SetXattr(volume, ino, name, value, chance.choice([0, 0, 1, 2]))
            return said if chance.random() < 0.7 else c.RemoveXattr(volume, ino, name)
        return c.ReleaseOrphan(volume, [ino])

    def learn(self, reply: m.Reply) -> None:
        if isinstance(reply, m.Found) and reply.created:
            self.inodes.append(reply.attr.ino)


def with_data(drive: Drive) -> None:
    """A few files and directories of before, with bytes, inline and in segments, and attributes."""
    [segment] = drive.lease()
    directory = drive.mkdir(b"a")
    for name, length in ((b"b", 9_000), (b"c", 4_096)):
        drive.write(segment, drive.create(name, directory), 0, length)
    small = drive.create(b"d")
    drive.ok(drive.commit(None, c.InodeCommit(small, 1, drive.sequence + 1, 5, drive.now, [], [(0, b"bytes")])))
    drive.sequence += 1
    drive.ok(c.SetXattr(drive.volume, directory, b"user.a", b"x"))
    drive.ok(c.SetXattr(drive.volume, small, b"security.capability", b"x"))


def shown(reply: Any) -> Any:
    """The reply without the number of stored bytes: a cut in the middle of a file tells it to the leader alone."""
    if isinstance(reply, m.Committed):
        return replace(reply, attrs=[attr and replace(attr, stored_bytes=0) for attr in reply.attrs])
    names = [name for name in ("attr", "parent", "replaced", "new_parent", "whiteout") if getattr(reply, name, None) is not None]
    return replace(reply, **{name: replace(getattr(reply, name), stored_bytes=0) for name in names})


def compare(holding: Holding) -> int:
    """Compares all rows that the overlay knows with the machine's, and returns how many there were."""
    holding.drive.machine.flush()
    held, stored = holding.names.rows, holding.drive.txn.rows
    known = [key for key in held._base if key not in held._changes]
    for key in known:
        mine, theirs = held.get(key), stored.get(key)
        assert (mine is None) == (theirs is None), key.hex()
        assert mine is None or governed.fields(key, mine) == governed.fields(key, theirs), key.hex()
    for group in held._whole:
        of_group = {key for key in stored if key.startswith(group)}
        assert of_group == {key for key, _ in held.scan(group, group + b"\xff" * 300)}, group.hex()
    return len(known)


@pytest.mark.parametrize("round_", range(6))
def test_random_commands_agree_with_the_machine(seed: int, round_: int) -> None:
    chance = random.Random(f"{seed} held {round_}")
    drive = Drive(segments=64)
    drive.make_volume()
    drive.open()
    with_data(drive)
    holding = Holding(drive, rows_max=chance.choice([100, 10_000]))
    commands = Commands(chance, drive.volume)
    commands.inodes += list(range(2, holding.next_ino))
    decided = compared = 0
    for _ in range(400):
        command = commands.any()
        assert set(first_keys(command)) and type(command) in COMMANDS
        commands.learn(holding.decide(command))
        decided += 1
        if chance.random() < 0.1:
            for done, mine, theirs in holding.ship(chance.randrange(40)):
                assert shown(mine) == shown(theirs), done
        if chance.random() < 0.1:
            base = list(holding.names.rows._base)
            holding.names.rows.evict(chance.sample(base, chance.randrange(len(base) + 1)))
        if chance.random() < 0.02 and not holding.records:
            holding.names.rows.forget(commands.ino())
        if not holding.records:
            compared += compare(holding)
    for done, mine, theirs in holding.ship(len(holding.records)):
        assert shown(mine) == shown(theirs), done
    compared += compare(holding)
    assert decided and compared and holding.asked
    sound(drive)


@pytest.fixture
def holding() -> Holding:
    drive = Drive()
    drive.make_volume()
    drive.open()
    return Holding(drive)


def test_what_is_made_here_needs_no_question(holding: Holding) -> None:
    """The root is asked for with the first name, and with each name that was not known to be absent; a new directory is known whole."""
    volume = holding.drive.volume
    made = holding.decide(c.Create(volume, 1, b"a", 0o040755, 0, 0)).attr.ino
    assert holding.asked == 1
    for number in range(20):
        holding.decide(c.Create(volume, made, b"%d" % number, 0o100644, 0, 0))
        holding.decide(c.Rename(volume, made, b"%d" % number, made, b"x"))
    holding.decide(c.Unlink(volume, made, b"x"))
    assert isinstance(holding.decide(c.Rmdir(volume, 1, b"a")), m.Removed)
    assert holding.asked == 1


def test_a_removal_in_an_old_directory_is_one_question(holding: Holding) -> None:
    drive = holding.drive
    old = drive.mkdir(b"old")
    drive.create(b"a", old)
    holding.next_ino += 2
    assert holding.decide(c.Unlink(drive.volume, old, b"a")).attr.nlink == 0
    assert holding.asked == 1


def test_an_attempt_leaves_nothing(holding: Holding) -> None:
    """Rows miss in the middle of a rule, after its first change; a refusal, a row that is missing, and no number: nothing is seen."""
    drive, held = holding.drive, holding.names
    ino = drive.create(b"f")
    holding.next_ino += 1
    drive.ok(c.SetXattr(drive.volume, ino, acl.ACCESS, an_acl(random.Random(1))))
    chmod = c.SetAttr(drive.volume, ino, c.SET_MODE, 0o600)
    with pytest.raises(Missing) as missing:
        held.decide(chmod, drive.now)
    holding.fetch(missing.value)
    before = held.rows.get(keys.inode(drive.volume, ino))
    with pytest.raises(Missing) as missing:  # the ACL, once the mode is changed
        held.decide(chmod, drive.now)
    assert not held.rows.changed and held.rows.get(keys.inode(drive.volume, ino)) == before
    next_one = held.decide(c.SetAttr(drive.volume, ino, c.SET_ATIME, atime_ns=1), drive.now)
    assert next_one.attr.mode == rows.INODE.loads(before).mode, "it takes nothing of the attempt along"
    held.abandon()
    holding.fetch(missing.value)
    assert held.decide(chmod, drive.now).attr.mode == 0o100600 and held.rows.changed
    held.abandon()
    assert held.rows.get(keys.inode(drive.volume, ino)) == before
    holding.decide(c.Create(drive.volume, 1, b"f", 0o100644, 0, 0))  # EEXIST
    assert held.rows.unapplied == 0
    holding.fetch(Missing([keys.dentry(drive.volume, 1, b"new")]))
    with pytest.raises(NoNumber):
        held.decide(c.Create(drive.volume, 1, b"new", 0o100644, 0, 0), drive.now)
    assert not held.rows.changed


def test_an_answer_older_than_what_was_applied_is_not_taken(holding: Holding) -> None:
    drive, rows = holding.drive, holding.names.rows
    holding.decide(c.Create(drive.volume, 1, b"a", 0o100644, 0, 0))
    root, name = keys.inode(drive.volume, 1), keys.dentry(drive.volume, 1, b"a")
    question, silent = rows.ask(), rows.ask()
    body = m.GetRows(drive.session, drive.epoch, drive.volume, [root, name])
    late = drive.ask(body)
    assert late.rows[1] == (name, None)
    holding.ship(1)
    rows.evict([root, name])
    rows.learn(question, late.rows)
    rows.give_up(silent)
    assert not rows.knows(root) and not rows.knows(name)
    question = rows.ask()
    rows.learn(question, drive.ask(body).rows)
    assert rows.get(name) is not None


def test_an_answer_older_than_a_commit_of_data_is_not_taken(holding: Holding) -> None:
    """A directory is fetched in several answers: the first ones may be old when the last one comes."""
    drive, overlay = holding.drive, holding.names.rows
    made: m.Found = drive.ok(c.Create(drive.volume, 1, b"f", stat.S_IFREG | 0o644, 1, 2))
    key = overlay.inode_key(made.attr.ino)
    question = overlay.ask()
    found = drive.ask(m.GetRows(drive.session, drive.epoch, drive.volume, [key])).rows
    overlay.learn(overlay.ask(), found)

    def committed(row: rows.InodeRow) -> None:
        row.size = 5

    overlay.amend(made.attr.ino, committed)
    overlay.learn(question, found)
    attr = holding.names.attr(made.attr.ino)
    assert attr is not None and attr.size == 5


def test_what_touches_an_inode_is_known_until_it_is_applied(holding: Holding) -> None:
    drive, rows = holding.drive, holding.names.rows
    for name in (b"a", b"b"):
        holding.decide(c.Create(drive.volume, 1, name, 0o100644, 0, 0))
    first = holding.next_ino - 2
    assert [rows.newest_of(ino) for ino in (1, first, first + 1, 99)] == [2, 1, 2, 0]
    with pytest.raises(AssertionError):
        rows.forget(1)
    rows.evict(list(rows._base))
    assert rows.get(keys.dentry(drive.volume, 1, b"a")) is not None  # a record that is not applied keeps it
    holding.ship(1)
    assert [rows.newest_of(ino) for ino in (1, first)] == [2, 0] and rows.unapplied == 1
    holding.ship(1)
    rows.forget(1)
    assert not rows.knows(keys.inode(drive.volume, 1)) and not rows.knows(keys.dentry(drive.volume, 1, b"a"))


def test_a_listing_of_a_directory_that_was_fetched_whole(holding: Holding) -> None:
    drive, rows = holding.drive, holding.names.rows
    for number in range(30):
        drive.create(b"%02d" % number)
    holding.next_ino += 30
    holding.decide(c.Unlink(drive.volume, 1, b"07"))
    span = keys.cookies_after(drive.volume, 1, 0)
    with pytest.raises(Missing) as missing:
        list(rows.scan(*span))
    assert missing.value.group == span[0][: governed.GROUP_BYTES]
    holding.fetch(missing.value)
    holding.decide(c.Create(drive.volume, 1, b"new", 0o100644, 0, 0))
    listed = [governed.fields(key, value)[2] for key, value in rows.scan(*span)]
    assert listed == [b"%02d" % number for number in range(30) if number != 7] + [b"new"]
    assert rows.last(*span)[0] == max(key for key, _ in rows.scan(*span))
    rows.clear()
    assert rows.unapplied == 0 and not rows.knows(keys.inode(drive.volume, 1))


def test_a_large_directory_is_put_in_order_once_however_many_pages_are_asked_for(holding: Holding, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is asked for under the lock of all names, so it may not cost as much as the directory is large.  Names come and go."""
    drive, count, page = holding.drive, 3_000, 100
    directory = holding.decide(c.Create(drive.volume, 1, b"d", stat.S_IFDIR | 0o755, 0, 0)).attr.ino
    for number in range(count):
        holding.decide(c.Create(drive.volume, directory, b"%d" % number, stat.S_IFREG | 0o644, 0, 0))
    ordered = 0

    def counting(found: Iterable[bytes]) -> list[bytes]:
        nonlocal ordered
        listed = sorted(found)
        ordered += len(listed)
        return listed

    monkeypatch.setattr(overlay_state, "sorted", counting, raising=False)
    after, names = 0, []
    while entries := holding.names.ask(m.ReadDir(drive.volume, directory, after, page, False)).entries:
        names += [entry.name for entry in entries]
        after = entries[-1].cookie
        for entry in entries[::3]:
            holding.decide(c.Unlink(drive.volume, directory, entry.name))
        if after < count:
            holding.decide(c.Create(drive.volume, directory, b"late %d" % after, stat.S_IFREG | 0o644, 0, 0))
        holding.ship(len(holding.records))
    assert [name for name in names if not name.startswith(b"late")] == [b"%d" % number for number in range(count)]
    assert len(names) == len(set(names)) > count
    assert ordered <= 2 * count


def test_what_is_remembered_is_bounded_however_much_was_made_and_removed() -> None:
    """A spool has new names for ever in one directory, and a tree grows for ever.  A directory that does not fit is no endless question."""
    drive = Drive()
    drive.make_volume()
    drive.open()
    holding = Holding(drive, rows_max=300)
    volume, rows = holding.drive.volume, holding.names.rows
    spool = holding.decide(c.Create(volume, 1, b"spool", stat.S_IFDIR | 0o755, 0, 0)).attr.ino

    def remembered() -> int:
        orders = sum(len(group._order or ()) for group in rows._groups.values())
        return len(rows._base) + len(rows._whole) + sum(1 + len(group) for group in rows._groups.values()) + orders

    def make(names: range, *, remove: bool) -> None:
        for number in names:
            holding.decide(c.Create(volume, spool, b"%d" % number, stat.S_IFREG | 0o644, 0, 0))
            if remove:
                holding.decide(c.Unlink(volume, spool, b"%d" % number))
        holding.ship(len(holding.records))

    make(range(20), remove=True)
    before = remembered()
    make(range(20, 400), remove=True)
    assert remembered() == before
    holding.decide(c.Create(volume, spool, b"stays", stat.S_IFREG | 0o644, 0, 0))
    holding.ship(1)
    assert len(list(rows.scan(*keys.cookies_after(volume, spool, 0)))) == 1  # from now on their order is kept
    make(range(400, 420), remove=True)
    before = remembered()
    for number in range(420, 900, 20):
        make(range(number, number + 20), remove=True)
    assert remembered() <= before + 2 * 20 + overlay_state.GONE_MAX
    make(range(1_000, 2_000), remove=False)
    before = remembered()
    make(range(2_000, 3_000), remove=False)
    assert remembered() < before + 100
    for number in (1_000, 2_999):
        assert holding.decide(c.Unlink(volume, spool, b"%d" % number)).attr.nlink == 0
    assert all(isinstance(there, m.Removed) for _, _, there in holding.ship(2))
