"""Two mounts of one volume that cache under leases: what is asked again and what is not, and that nothing is old."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.types import ROOT_INO
from awsomefsd.fuse.notify import Notifier
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.vfs.ops.negative_lookups import PAGE_MISSES
from awsomefsd.vfs.state.names import ABSENT
from tests.rigs.mount_without_kernel import BIG, Held, error_of, until
from tests.rigs.sharing_nodes import Sharing, two_nodes


class FakeKernel:
    """Takes down what it is told."""

    has_epoch = True
    minor = 45
    on_top = False  # something is mounted on a directory

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def forget_attributes(self, ino: int) -> None:
        self.told.append(("attributes", ino))

    def nested(self) -> bool:
        return self.on_top

    def forget_names(self) -> bool:
        if not self.on_top:
            self.told.append(("names", 0))
        return not self.on_top

    def forget_pages(self, ino: int) -> None:
        self.told.append(("pages", ino))


class Caching(Sharing):
    caches = True
    inherited: list[int] | None = None  # attributes that a successor makes the kernel forget when it starts

    def start(self, *repeat: Any, exited: bool = True) -> Any:
        forget = Notifier.forget_attributes
        inherited = self.inherited
        if inherited is not None:
            Notifier.forget_attributes = lambda notifier, ino: inherited.append(ino)  # type: ignore[method-assign]
        try:
            results = super().start(*repeat, exited=exited)
        finally:
            Notifier.forget_attributes = forget  # type: ignore[method-assign]
        self.kernel = FakeKernel()
        cache = self.mount.caches.kernel
        cache._kernel, cache._minor = self.kernel, lambda: self.kernel.minor
        self.asked: list[str] = []
        ask = self.worker.client.submit

        def counted(body: Any, resume: Any, *args: Any) -> None:
            if isinstance(body, (m.GetAttr, m.Lookup, m.ReadDir, m.GetLayout, m.GetXattr, m.ListXattr, m.ReadLink, m.GetLease)):
                self.asked.append(type(body).__name__)
            ask(body, resume, *args)

        self.worker.client.submit = counted  # type: ignore[method-assign]
        return results

    def questions(self) -> list[str]:
        asked, self.asked = self.asked, []
        return asked

    def listed(self, ino: int) -> list[bytes]:
        fh = self.call("opendir", ino, 0).fh
        names: list[bytes] = []
        offset = 0
        while page := list(self.call("readdir", ino, fh, offset, False)):
            names += [entry.name for entry in page]
            offset = page[-1].cookie
        self.call("releasedir", ino, fh)
        return names


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Caching]]:
    yield from two_nodes(Caching, tmp_path, held_clock=True)


def test_what_is_held_is_asked_once_and_what_others_change_is_seen_at_once(nodes: list[Caching]) -> None:
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"a" * BIG)
    there = two.call("open", two.lookup(b"f").ino, os.O_RDONLY).fh
    assert two.read(ino, there, 0, 9) == b"a" * 9 and two.attr(ino).size == BIG and two.listed(ROOT_INO)[2:] == [b"f"]
    two.questions()
    for _ in range(3):
        assert two.lookup(b"f").ino == ino and two.attr(ino).size == BIG and two.read(ino, there, 5, 9) == b"a" * 9
        assert error_of(two.lookup, b"g") == errno.ENOENT and two.listed(ROOT_INO)[2:] == [b"f"]
    assert two.questions() == []
    one.write(ino, fh, 5, b"b" * 10 + bytes(BIG))
    assert two.read(ino, there, 0, 9) == b"aaaaabbbb" and two.attr(ino).size == BIG + 15
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert two.attr(ino).mode & 0o777 == 0o600
    one.file(b"g")
    assert two.lookup(b"g").ino != ino and two.listed(ROOT_INO)[2:] == [b"f", b"g"]
    one.call("rename", ROOT_INO, b"f", ROOT_INO, b"h", 0)
    assert error_of(two.lookup, b"f") == errno.ENOENT and two.lookup(b"h").ino == ino
    one.call("unlink", ROOT_INO, b"h")
    assert error_of(two.lookup, b"h") == errno.ENOENT and two.attr(ino).nlink == 0
    assert two.read(ino, there, 0, 9) == b"aaaaabbbb"


@pytest.mark.parametrize(("minor", "has_epoch"), [(43, True), (45, False)])
def test_a_kernel_without_inc_epoch_keeps_attributes_and_no_names(nodes: list[Caching], minor: int, has_epoch: bool) -> None:
    one, two = nodes
    for node in nodes:
        node.kernel.minor, node.kernel.has_epoch = minor, has_epoch
    ino = one.mkdir(b"f")
    assert two.listed(ROOT_INO)[2:] == [b"f"] and two.vfs.attr_ttl_ns(two.attr(ROOT_INO)) > 0
    assert two.lookup(b"f").ino == ino
    two.questions()
    assert error_of(two.lookup, b"g") == errno.ENOENT and two.questions() == [], "the mount remembers"
    assert not two.vfs.name_ttl_ns(ROOT_INO, b"f", ino) and not two.vfs.name_ttl_ns(ROOT_INO, b"g", ABSENT), "the kernel may not"
    for node in nodes:
        node.kernel.on_top = True  # nothing was told, so no recall waits
    one.call("rename", ROOT_INO, b"f", ROOT_INO, b"g", 0)
    assert error_of(two.lookup, b"f") == errno.ENOENT and two.lookup(b"g").ino == ino and ("attributes", ROOT_INO) in two.kernel.told
    assert two.mount.caches.kernel._names_until == 0.0  # type: ignore[union-attr]


def test_names_are_waited_for_where_something_is_mounted_on_a_directory(nodes: list[Caching]) -> None:
    one, two = nodes
    one.file(b"f")
    ino = two.lookup(b"f").ino
    assert two.vfs.name_ttl_ns(ROOT_INO, b"f", ino) > 0
    two.kernel.on_top = True
    assert two.vfs.name_ttl_ns(ROOT_INO, b"f", ino) == 0
    until_s = two.mount.caches.kernel._names_until  # type: ignore[union-attr]
    one.file(b"g")  # recalls the directory
    assert time.monotonic() >= until_s and ("names", 0) not in two.kernel.told
    assert two.lookup(b"g").ino and two.vfs.name_ttl_ns(ROOT_INO, b"f", ino) == 0
    one.file(b"h")
    assert ("names", 0) not in two.kernel.told and two.lookup(b"h").ino


def test_own_changes_are_remembered_without_asking(nodes: list[Caching]) -> None:
    one, _ = nodes
    one.listed(ROOT_INO)
    one.attr(ROOT_INO)
    assert error_of(one.lookup, b"f") == errno.ENOENT
    one.questions()
    ino = one.file(b"f")
    one.call("rename", ROOT_INO, b"f", ROOT_INO, b"g", 0)
    assert one.lookup(b"g").ino == ino and error_of(one.lookup, b"f") == errno.ENOENT
    assert one.attr(ROOT_INO).mtime_ns > 0
    assert [name for name in one.questions() if name != "GetLease"].count("Lookup") <= 1
    one.call("unlink", ROOT_INO, b"g")
    assert error_of(one.lookup, b"g") == errno.ENOENT and one.listed(ROOT_INO)[2:] == []


@pytest.mark.parametrize("what", ["create", "unlink", "truncate"])
def test_an_own_change_whose_outcome_comes_while_the_session_is_fenced_is_seen(
    nodes: list[Caching], what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No leader for as long as the fence, and the next one carries out the change before it renews the session: the lease is the same."""
    one, _ = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"a" * BIG)
    one.call("fsync", ino, fh, False)
    assert one.read(ino, fh, 0, 9) == b"a" * 9
    for number in range(3 * PAGE_MISSES):
        assert error_of(one.lookup, b"no%d" % number) == errno.ENOENT
    until(lambda: one.mount.caches.names.find(ROOT_INO, b"new") == ABSENT)  # all names are known
    late: list[Held] = []

    def told_late(command: Any, unique: int) -> Any:
        late.append(Held(one.worker.client.propose(command, unique)))
        return late[0]

    one.gate().on_propose = told_late
    if what == "create":
        op = one.begin("mknod", ROOT_INO, b"new", 0o100644, 0)
    elif what == "unlink":
        op = one.begin("unlink", ROOT_INO, b"f")
    else:
        op = one.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=0))
    until(lambda: late and late[0].answered.is_set())
    one.gate()
    with monkeypatch.context() as fenced:
        fenced.setattr(one.mount.caches.leases._holder, "_left_ns", lambda: 0)  # type: ignore[union-attr]
        late[0].release()
        op.result()
    if what == "create":
        assert one.lookup(b"new").ino
    elif what == "unlink":
        assert error_of(one.lookup, b"f") == errno.ENOENT
    else:
        assert one.attr(ino).size == 0 and one.read(ino, fh, 0, 9) == b""


def ttl(node: Caching, ino: int) -> int:
    return node.vfs.attr_ttl_ns(node.attr(ino))


def test_the_kernel_is_promised_what_is_held_and_told_before_it_ends(nodes: list[Caching]) -> None:
    one, two = nodes
    ino, _ = one.create(b"f")
    two.content(ino)  # a stat would leave the lease with its writer
    assert error_of(two.lookup, b"x") == errno.ENOENT
    assert two.lookup(b"f").ino == ino
    left = two.mount.session.lease.left_ns()
    assert 0 < ttl(two, ino) <= left and 0 < two.vfs.name_ttl_ns(ROOT_INO, b"f", ino) <= left
    assert two.vfs.name_ttl_ns(ROOT_INO, b"x", 0) > 0 == two.vfs.name_ttl_ns(ROOT_INO, b"f", ino + 1)
    assert two.vfs.ttl_ns() == 0, "replies that INVAL_INODE does not reach"
    two.kernel.told.clear()
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert ("attributes", ino) in two.kernel.told and ("names", 0) not in two.kernel.told
    one.call("unlink", ROOT_INO, b"f")
    assert ("names", 0) in two.kernel.told and ("attributes", ROOT_INO) in two.kernel.told
    assert two.vfs.name_ttl_ns(ROOT_INO, b"f", ino) == 0


def test_attributes_that_an_own_change_makes_old_are_taken_back(nodes: list[Caching]) -> None:
    one, _ = nodes
    old = one.attr(ROOT_INO)
    assert one.vfs.attr_ttl_ns(old) > 0
    one.kernel.told.clear()
    one.file(b"f")
    assert ("attributes", ROOT_INO) in one.kernel.told
    assert one.vfs.attr_ttl_ns(old) == 0, "an answer that was made before"
    assert ttl(one, ROOT_INO) > 0


def test_a_successor_makes_the_kernel_forget_before_others_change_anything(nodes: list[Caching]) -> None:
    one, two = nodes
    ino, _ = one.create(b"f")
    two.content(ino)
    assert two.lookup(b"f").ino == ino and ttl(two, ino) > 0
    told: list[int] = []
    two.inherited = told
    two.restart()
    assert {ino, ROOT_INO} <= set(told)
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert two.attr(ino).mode & 0o777 == 0o600


def test_a_lost_session_is_believed_nothing_of(nodes: list[Caching]) -> None:
    one, two = nodes
    ino, _ = one.create(b"f")
    assert two.lookup(b"f").ino == ino and two.attr(ino).nlink == 1
    state = two.worker.memory.control.state
    session, service = state.session, two.host.service
    assert service is not None and not isinstance(service.propose(c.EndSession(session, state.epoch, True), 60), m.Failed)
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    two.worker.client.doubt_session()
    until(lambda: two.worker.memory.control.state.session != session and two.mount.session.lease.left_ns() > 0)
    assert two.attr(ino).mode & 0o777 == 0o600
    two.content(ino)
    two.questions()
    two.attr(ino)
    assert two.questions() == [], "held anew"


def test_of_too_many_leases_the_oldest_are_given_up(nodes: list[Caching], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    monkeypatch.setattr("awsomefsd.meta.client.lease_cache.LEASES_KEPT_MAX", 16)
    inos = [one.file(b"%d" % number) for number in range(40)]
    for ino in inos:
        two.attr(ino)
    assert two.mount.caches.leases is not None
    until(lambda: two.mount.caches.leases._holder.count <= 17)
    one.call("setattr", inos[0], None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert two.attr(inos[0]).mode & 0o777 == 0o600


def made(node: Caching, folder: int, name: bytes, data: bytes = b"data") -> int:
    """As a program does it: the kernel asks for the name, then creates, writes and closes."""
    assert error_of(node.call, "lookup", folder, name) == errno.ENOENT
    attr, opened = node.call("create", folder, name, 0o644, os.O_RDWR | os.O_EXCL)
    node.write(attr.ino, opened.fh, 0, data)
    node.close_file(attr.ino, opened.fh)
    assert node.attr(attr.ino).size == len(data)
    ino: int = attr.ino
    return ino


def test_what_a_node_makes_in_a_directory_of_its_own_asks_nothing(nodes: list[Caching]) -> None:
    one, two = nodes
    folder = one.call("mkdir", ROOT_INO, b"d", 0o755).ino
    one.questions()
    inos = {b"%d" % number: made(one, folder, b"%d" % number) for number in range(20)}
    inner = one.call("mkdir", folder, b"inner", 0o755).ino
    inos[b"x"] = made(one, inner, b"x")
    assert one.questions() == []
    assert two.listed(folder)[2:] == [*(b"%d" % number for number in range(20)), b"inner"]
    assert all(two.content(ino) == b"data" for ino in inos.values())
    assert error_of(one.call, "lookup", folder, b"new") == errno.ENOENT
    new = made(two, folder, b"new", b"theirs")
    assert one.call("lookup", folder, b"new").ino == new and one.content(new) == b"theirs"
    two.call("unlink", folder, b"3")
    assert error_of(one.call, "lookup", folder, b"3") == errno.ENOENT


def test_a_directory_that_is_asked_for_new_names_is_listed_once(nodes: list[Caching], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.vfs.ops.negative_lookups.READDIR_ENTRIES_MAX", 8)
    one, two = nodes
    for number in range(20):
        two.file(b"old%d" % number)
    one.questions()
    for number in range(40):
        assert error_of(one.lookup, b"no%d" % number) == errno.ENOENT
        if number % 7 == 3:
            one.file(b"new%d" % number)
            one.call("unlink", ROOT_INO, b"old%d" % (number // 2))
    asked = one.questions()
    assert asked.count("ReadDir") == 3 and asked.count("Lookup") <= 24, asked
    until(lambda: one.mount.caches.names.directory(ROOT_INO).complete)
    one.questions()
    assert error_of(one.lookup, b"never") == errno.ENOENT and one.lookup(b"new3") and error_of(one.lookup, b"old1") == errno.ENOENT
    assert "Lookup" not in one.questions()
    ino = two.file(b"never")
    assert one.lookup(b"never").ino == ino


def test_names_on_two_nodes_at_random(nodes: list[Caching], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step on one of them; what both say of a name is what the model says, whoever held the directory."""
    monkeypatch.setattr("awsomefsd.vfs.ops.negative_lookups.READDIR_ENTRIES_MAX", 3)
    dice, model = random.Random(seed), {}
    folders = [ROOT_INO]
    for step in range(250):
        node, folder = dice.choice(nodes), dice.choice(folders)
        name = b"n%d" % dice.randrange(12)
        there = model.get((folder, name))
        kind = dice.random()
        if there is None and kind < 0.5:
            if len(folders) < 4 and kind < 0.1:
                model[folder, name] = node.call("mkdir", folder, name, 0o755).ino
                folders.append(model[folder, name])
            else:
                model[folder, name] = made(node, folder, name)
        elif there is not None and there not in folders and kind < 0.3:
            node.call("unlink", folder, name)
            del model[folder, name]
        elif there is not None and there not in folders and kind < 0.5:
            other, target = dice.choice(folders), b"n%d" % dice.randrange(12)
            if model.get((other, target)) not in folders:
                node.call("rename", folder, name, other, target, 0)
                model[other, target] = model.pop((folder, name))
        for asker in nodes:
            for _ in range(3):
                where, what = dice.choice(folders), b"n%d" % dice.randrange(14)
                found = model.get((where, what))
                if found is None:
                    assert error_of(asker.call, "lookup", where, what) == errno.ENOENT, step
                else:
                    assert asker.call("lookup", where, what).ino == found, step
    for folder in folders:
        names = sorted(name for (parent, name) in model if parent == folder)
        assert [sorted(node.listed(folder)[2:]) for node in nodes] == [names] * 2


def test_files_that_are_removed_are_given_up_together(nodes: list[Caching]) -> None:
    one, two = nodes
    gone = [one.file(b"%d" % number) for number in range(30)]
    fh = two.open(gone[7])
    given: list[list[int]] = []
    for node in nodes:
        propose = node.worker.client.propose

        def counted(command: Any, unique: int, *under: Any, propose: Any = propose) -> Any:
            if isinstance(command, c.ReleaseOrphan):
                given.append(list(command.inos))
            return propose(command, unique, *under)

        node.worker.client.propose = counted  # type: ignore[method-assign]
    for number in range(30):
        one.call("unlink", ROOT_INO, b"%d" % number)
    until(lambda: sum(map(len, given)) >= 59)
    assert len(given) <= 20, given
    assert two.attr(gone[7]).nlink == 0 and two.read(gone[7], fh, 0, 9) == b""
    two.close_file(gone[7], fh)
    until(lambda: [ino for batch in given for ino in batch].count(gone[7]) == 2)


def test_pages_that_the_kernel_fills_go_with_the_lease(nodes: list[Caching], monkeypatch: pytest.MonkeyPatch) -> None:
    """Mappings and sendfile(2) fill them, also of a file that is open for direct I/O."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"a" * BIG)
    dropped: list[tuple[int, int, int]] = []
    caches = two.mount.caches
    caches.drop_pages = lambda ino, offset, length, then: dropped.append((ino, offset, length))

    def fill(through: int) -> None:
        ctx = two.ctx()
        ctx.fills_pages = True
        two.request("read", ctx, ino, through, 0, 4096)

    there = two.call("open", ino, os.O_RDONLY).fh
    two.read(ino, there, 0, 9)
    fill(there)
    assert not dropped, "the recall of the lease will take them"
    one.write(ino, fh, 0, b"b" * 9)
    assert ("pages", ino) in two.kernel.told and two.read(ino, there, 0, 9) == b"b" * 9

    monkeypatch.setattr(caches.leases, "leaving", lambda _ino: True)
    fill(there)
    assert dropped == [(ino, 0, 4096)], "the recall may have taken the pages before this one was there"
    writer = two.call("open", ino, os.O_RDWR).fh
    fill(there)
    assert len(dropped) == 1, "a mapping through the other handle may have dirty ones"
    two.close_file(ino, writer)
    monkeypatch.undo()
    two.read(ino, there, 0, 9)
    grants = iter(range(1, 9))
    monkeypatch.setattr(caches.leases, "grant", lambda _ino: next(grants))
    fill(there)
    assert len(dropped) == 2, "another lease than before the bytes were looked at: somebody may have changed them in between"
