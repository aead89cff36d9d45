"""A mount that decides names loses its volume to another one now and then: at random moments of random histories, and its worker dies too.
So do successors while they take up what it left, and sessions that they have opened.

What was synced is there afterwards, with every name that was decided before it.  What was not may be put aside, but from one moment on:
the names that are left are those of some moment since the last fsync, and the bytes of a file are ones that it had since its own.  Nothing
comes in after the other mount had the volume.  The mount shows what the cluster has, and goes on.
"""

from __future__ import annotations

import contextlib
import errno
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.types import ROOT_INO
from awsomefsd.io.file.op_log import OpLog
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.worker import takeover as takeover_module
from awsomefsd.worker import worker as worker_module
from tests.rigs.delegated_mount import Delegated, Shipping, at_leader, replace_session, shipped
from tests.rigs.metadata_service import Wire
from tests.rigs.mount_without_kernel import VOLUME, Rig, rig

STEPS = 120
OTHER = 99  # the mount that comes in between
TAKEOVER = ("takeover.session.opened", "takeover.records.found", "records.put.aside", "takeover.requests.repeated", "takeover.ready")
Names = dict[bytes, int]


class Died(Exception):
    pass


def dying_at(where: str) -> Callable[[str], None]:
    def hit(name: str) -> None:
        if name == where:
            raise Died

    return hit


def before(hit: Callable[[str], None], name: str, step: Callable[..., Any]) -> Callable[..., Any]:
    def stepped(*args: Any) -> Any:
        hit(name)
        return step(*args)

    return stepped


class History:
    """`states`: the names as they were since the last fsync, oldest first.  `versions`: the contents of a file since its own last one."""

    def __init__(self, r: Rig, seed: int) -> None:
        self.r = r
        self.chance = random.Random(seed)
        self.names: Names = {}
        self.states: list[Names] = [{}]
        self.versions: dict[int, list[bytes]] = {}
        self.shipping = Shipping(r)
        self.held = False
        self.others = 0
        self.overtaken = self.put_aside = self.deaths = 0
        self.written = 0
        self.told: list[str] = []
        self.touched: set[int] = set()  # inodes of which names may have been put aside, and nobody was told
        self.may_lack_bytes: set[int] = set()  # inodes of which bytes may have been put aside, and nobody was told

    # --- operations ------------------------------------------------------------------------------------------------------
    def some(self) -> bytes:
        return b"%d" % self.chance.randrange(8)

    def write(self) -> None:
        """A whole file, made if it is not there, of a size that stays inline or not; perhaps synced."""
        name, synced = self.some(), self.chance.random() < 0.4
        if name in self.names:
            ino, fh = self.names[name], self.r.open(self.names[name])
        else:
            ino, fh = self.r.create(name)
            self.became({**self.names, name: ino})
            self.versions[ino] = [b""]
        self.written += 1
        size = 3_000 if self.chance.random() < 0.5 else 30_000
        data = (b"%9d " % self.written) * (size // 10)
        before = self.versions[ino][-1]
        self.r.write(ino, fh, 0, data)
        self.versions[ino].append(data + before[len(data) :])
        if synced and not self.held:
            self.fsync("fsync", ino, fh)
            self.versions[ino] = self.versions[ino][-1:]
            self.states = self.states[-1:]
        self.told.append(f"write {name!r} {ino} {size}{' fsync' if synced and not self.held else ''}")
        if self.held:  # closing waits for the cluster where the file is new
            self.r.call("release", ino, fh, 0, 0, 0)
        else:
            self.r.close_file(ino, fh)

    def unlink(self) -> None:
        name = self.some()
        if name in self.names:
            self.r.call("unlink", ROOT_INO, name)
            self.told.append(f"unlink {name!r}")
            self.became({one: ino for one, ino in self.names.items() if one != name})

    def rename(self) -> None:
        name, new = self.some(), self.some()
        if name in self.names and name != new and not (self.held and new in self.names):  # over a name: the bytes are flushed before
            self.rename_once_told(name, new)
            self.told.append(f"rename {name!r} {new!r}")
            after = {one: ino for one, ino in self.names.items() if one != name}
            self.became({**after, new: self.names[name]})

    def rename_once_told(self, name: bytes, new: bytes) -> None:
        """Over a name, of a file that may have lost bytes: the first try may tell it, and changes nothing."""
        ino = self.names[name]
        if new in self.names and ino in self.may_lack_bytes:
            self.may_lack_bytes.discard(ino)
            try:
                return self.r.call("rename", ROOT_INO, name, ROOT_INO, new, 0)
            except FsError as err:
                if err.errno != errno.EIO:
                    raise
                assert {one: ino for one, ino in self.r.listdir().items() if not one.startswith(b"theirs")} == self.names
        self.r.call("rename", ROOT_INO, name, ROOT_INO, new, 0)

    def sync(self) -> None:
        if not self.held:
            self.fsync("fsyncdir", ROOT_INO, 0)
            self.told.append("fsyncdir")
            self.states = self.states[-1:]

    def fsync(self, method: str, ino: int, fh: int) -> None:
        """The first one after names of the inode were put aside may tell it."""
        if ino in self.touched:
            self.touched.discard(ino)
            with contextlib.suppress(FsError):
                self.r.call(method, ino, fh, False)
        self.r.call(method, ino, fh, False)

    def hold(self) -> None:
        """Nothing is shipped for a while."""
        if not self.held:
            self.shipping.hold()
        else:
            self.shipping.go()
        self.held = not self.held
        self.told.append(f"held {self.held}")

    def became(self, names: Names) -> None:
        self.names = names
        self.states.append(names)

    # --- what others do --------------------------------------------------------------------------------------------------
    def lose_volume(self) -> None:
        """The session ends, another mount changes something, and this mount goes on; or its worker dies, and the next one does."""
        dies = self.chance.random() < 0.4
        self.told.append(f"overtaken, {'a successor' if dies else 'it'} goes on")
        self.r.end_session()
        found = self.theirs()
        if dies:
            self.r.kill()
            self.end_hold()
            for _ in range(self.chance.choice((0, 1, 1, 2))):
                found = self.successor_dies(found)
            self.r.start()
        else:
            self.end_hold()
            replace_session(self.r)
            self.r.restart()  # it decides names again
        self.overtaken += 1
        self.shipping = Shipping(self.r)
        assert self.at_leader() == found, "something was brought in after the other mount had the volume"
        self.touched |= {ROOT_INO} | {ino for names in self.states for ino in names.values()}
        self.may_lack_bytes |= {ino for ino, versions in self.versions.items() if len(versions) > 1}
        self.names, self.states = found, [found]
        self.look(synced_only=True)

    def successor_dies(self, found: Names) -> Names:
        """At one of the steps of its takeover; its session may end as well, and another mount have the volume again.  Returns the names."""
        where = self.chance.choice(TAKEOVER)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(worker_module, "hit", dying_at(where))
            patch.setattr(takeover_module, "hit", dying_at(where))
            patch.setattr(OpLog, "put_aside", before(dying_at(where), "records.put.aside", OpLog.put_aside))
            with contextlib.suppress(Died):
                self.r.start()
        session = self.r.worker.client.session_token()
        self.r.kill()
        self.deaths += 1
        ends = self.chance.random() < 0.7
        self.told.append(f"a successor dies at {where}{', and its session ends' if ends else ''}")
        if ends:
            self.r.host.end_session(*session)
            self.names, self.states = found, [found]
            if self.chance.random() < 0.3:
                return self.theirs()
        return found

    def end_hold(self) -> None:
        """What was held back goes now, under a session that has ended."""
        if self.held:
            with contextlib.suppress(Error):
                self.shipping.go()
            self.held = False

    def at_leader(self) -> Names:
        return {name: ino for name, ino in at_leader(self.r).items() if not name.startswith(b"theirs")}

    def theirs(self) -> Names:
        """Another mount makes a directory and removes a file.  Returns the names that it leaves."""
        self.others += 1
        found = self.at_leader()
        assert found in self.states, f"{found} was not one of the last {len(self.states)} moments"
        self.put_aside += found != self.names
        wire = Wire(self.r.host.socket_path, OTHER)
        opened = wire.open_session(OTHER)
        change = c.Create(VOLUME, ROOT_INO, b"theirs%d" % self.others, 0o040755, 0, 0)
        made = wire.ask(m.Propose(2 * self.others + 100, opened.session, opened.epoch, [], change))
        assert isinstance(made, m.Found), made
        if found:
            name = self.chance.choice(sorted(found))
            del found[name]
            gone = wire.ask(m.Propose(2 * self.others + 1_000_000, opened.session, opened.epoch, [], c.Unlink(VOLUME, ROOT_INO, name)))
            assert isinstance(gone, m.Removed), gone
        wire.ask(m.Propose(2 * self.others + 101, opened.session, opened.epoch, [], c.EndSession(opened.session, opened.epoch, True)))
        wire.close()
        return found

    def look(self, *, synced_only: bool = False) -> None:
        """Names and bytes that the mount shows."""
        shown = {name: ino for name, ino in self.r.listdir().items() if not name.startswith(b"theirs")}
        assert shown == self.names
        for name, ino in self.names.items():
            data, versions = self.r.content(ino), self.versions[ino]
            assert data in versions if synced_only else data == versions[-1], f"{name!r}, inode {ino}: other bytes"
            self.versions[ino] = [data] if synced_only else versions

    def step(self) -> None:
        ways = [self.write] * 6 + [self.unlink] * 2 + [self.rename] * 2 + [self.sync, self.hold]
        self.chance.choice(ways)()
        if self.chance.random() < 0.04:
            self.lose_volume()


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, segments=200, made_by=Delegated) as made:
        yield made


@pytest.mark.parametrize("round_", range(3))
def test_what_was_synced_outlives_the_loss_of_the_volume(r: Rig, seed: int, round_: int, figures: list[str]) -> None:
    history = History(r, seed * 10 + round_)
    try:
        for _ in range(STEPS):
            history.step()
        history.write()
        history.lose_volume()
        history.write()
        history.look()
        shipped(r)
        r.unmount()
        r.check()
    except BaseException:
        print(f"seed {seed * 10 + round_}:\n" + "\n".join(history.told[-40:]))
        raise
    figures.append(f"overtaken {history.overtaken} times in {STEPS} operations; names were put aside {history.put_aside} times")
    figures.append(f"{history.deaths} successors died")
