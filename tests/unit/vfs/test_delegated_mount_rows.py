"""A mount that decides names by itself shows what the leader has, and whoever waits there for rows or numbers is told how it ended."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Overloaded
from awsomefsd.base.types import ROOT_INO, Attr
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs.delegated_mount import Delegated, Shipping, replace_session, shipped
from tests.rigs.delegated_mount import at_leader as names_at_leader
from tests.rigs.mount_without_kernel import VOLUME, After, Gate, Held, Rig, error_of, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, made_by=Delegated) as made:
        yield made


def at_leader(r: Rig, ino: int) -> Attr:
    assert r.host.service is not None
    reply = r.host.service.query(m.GetAttr(VOLUME, ino))
    assert isinstance(reply, m.Found), reply
    return reply.attr


def gate_of_names(r: Rig) -> Gate:
    gate = Gate(r.worker.client)
    assert r.worker.names is not None
    r.worker.names._metadata = gate
    return gate


def spend_numbers(r: Rig) -> None:
    """No inode number is left, and none is on its way: the mount asked for its first ones as it began."""
    until(lambda: r.worker.names._granting is None)
    r.worker.names._numbers.clear()


def test_a_write_moves_the_time_that_an_earlier_mount_has_set(r: Rig) -> None:
    """The time was set behind more records than the next mount has written: its dirty log begins to count anew."""
    ino, fh = r.create(b"f")
    for _ in range(20):
        r.write(ino, fh, 0, b"old")
    r.call("setattr", ino, None, SetAttrIn(c.SET_MTIME, mtime_ns=10**9))
    r.close_file(ino, fh)
    r.remount()
    assert r.lookup(b"f").mtime_ns == 10**9
    fh = r.open(ino)
    r.write(ino, fh, 0, b"new")
    r.fsync(ino, fh)
    r.mount.caches.names.drop(ino)
    assert r.attr(ino).mtime_ns == at_leader(r, ino).mtime_ns > 10**9


def test_a_time_of_access_that_was_set_stays_although_that_of_a_read_is_on_its_way(r: Rig) -> None:
    ino, fh = r.create(b"f")
    r.fsync(ino, fh)
    shipped(r)
    gate, held = gate_of_names(r), []

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.SetAtimes:
            return None
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[-1]

    gate.on_propose = on_propose
    r.mount.caches.atimes._pending[ino] = 5 * 10**9
    r.mount.caches.atimes.flush()
    setting = r.begin("setattr", ino, None, SetAttrIn(c.SET_ATIME, atime_ns=7 * 10**9))
    held[0].release()
    assert setting.result().atime_ns == r.attr(ino).atime_ns == 7 * 10**9
    shipped(r)
    r.mount.caches.names.clear()
    assert r.attr(ino).atime_ns == at_leader(r, ino).atime_ns == 7 * 10**9


def test_a_time_of_access_that_was_set_is_not_overtaken_by_that_of_a_read_that_waits_for_records(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    ino, _ = r.create(b"f")
    until(lambda: shipping.held)
    r.mount.caches.atimes._pending[ino] = 5 * 10**9
    read = r.mount.caches.atimes.flush()
    setting = r.begin("setattr", ino, None, SetAttrIn(c.SET_ATIME, atime_ns=7 * 10**9))
    until(lambda: r.worker.names.shipper._core._waiters)  # the time of the read
    shipping.go()
    block_on(read, 10)
    setting.result()
    shipped(r)
    assert r.attr(ino).atime_ns == at_leader(r, ino).atime_ns == 7 * 10**9


def test_a_file_without_a_name_that_ended_with_its_session_is_not_said_to_have_got_one(r: Rig) -> None:
    """A record of its name would be refused under the next session, and all that was decided after it with it."""
    attr, opened = r.call("tmpfile", ROOT_INO, 0o644, os.O_RDWR)
    r.write(attr.ino, opened.fh, 0, b"data")
    r.fsync(attr.ino, opened.fh)
    shipped(r)
    shipping = Shipping(r)
    shipping.hold()
    r.mkdir(b"before")
    linking = r.begin("link", attr.ino, ROOT_INO, b"linked")
    making = r.begin("mkdir", ROOT_INO, b"after", 0o755)
    r.end_session()
    replace_session(r)
    shipping.go()
    assert error_of(linking.result) == errno.ENOENT
    making.result()
    shipped(r)
    assert set(names_at_leader(r)) == {b"before", b"after"} == set(r.listdir())
    assert r.worker.names.decides and r.worker.names.figures()["names_diverged"] == 0


def test_a_file_without_a_name_gets_one(r: Rig) -> None:
    attr, opened = r.call("tmpfile", ROOT_INO, 0o644, os.O_RDWR)
    r.write(attr.ino, opened.fh, 0, b"data")
    assert r.call("link", attr.ino, ROOT_INO, b"linked").nlink == 1
    assert names_at_leader(r) == {b"linked": attr.ino}
    assert r.call("link", attr.ino, ROOT_INO, b"again").nlink == 2
    r.close_file(attr.ino, opened.fh)
    shipped(r)
    assert r.content(attr.ino) == b"data" and r.attr(attr.ino).nlink == 2
    assert names_at_leader(r) == r.listdir() == dict.fromkeys((b"linked", b"again"), attr.ino)
    assert r.worker.names.figures()["names_diverged"] == 0


def test_who_gets_no_number_for_an_inode_is_told_so(r: Rig) -> None:
    """To ask again at once would be without end: the client has no place, or has ended."""
    gate = gate_of_names(r)

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.GrantInodes:
            return None
        refused = After(None)
        refused.release(None, Overloaded("too many requests wait"))
        return refused

    gate.on_propose = on_propose
    spend_numbers(r)
    with pytest.raises(Overloaded):
        r.create(b"f")
    gate.on_propose = None
    r.create(b"f")


def test_an_old_tree_is_removed_by_two_questions_a_directory(r: Rig) -> None:
    """Its list, and its names with what they lead to."""
    for directory in (b"a", b"b", b"c"):
        made = r.call("mkdir", ROOT_INO, directory, 0o755).ino
        for number in range(50):
            r.create(b"%d" % number, parent=made)
    r.remount()
    asked: list[Any] = []
    gate_of_names(r).on_ask = asked.append
    for directory in sorted(r.listdir()):
        ino = r.lookup(directory).ino
        asked.clear()
        for name in r.listdir(ino):
            r.call("unlink", ino, name)
        r.call("rmdir", ROOT_INO, directory)
        if directory != b"a":  # with it the others' rows came
            assert [type(body).__name__ for body in asked] == ["ReadDir", "GetRows"], asked
    assert r.listdir() == {}


def test_a_remount_that_adds_sync_makes_each_change_durable(r: Rig) -> None:
    r.create(b"before")
    r.worker.names.synchronous = lambda: True
    decided = r.worker.names.decided
    ino, fh = r.create(b"f")
    assert r.worker.names.synced() is None and set(names_at_leader(r)) == {b"before", b"f"}
    r.call("rename", ROOT_INO, b"f", ROOT_INO, b"g", 0)
    r.call("setattr", ino, fh, SetAttrIn(c.SET_MODE, mode=0o600))
    assert at_leader(r, ino).mode & 0o7777 == 0o600 and b"g" in names_at_leader(r)
    assert r.listdir() == names_at_leader(r) and r.worker.names.decided == decided
    r.worker.names.synchronous = lambda: False
    r.create(b"after")
    assert r.worker.names.decided == decided + 1


@pytest.mark.parametrize("numbers", [False, True])
def test_what_was_asked_under_an_ended_session_and_refused_late_goes_on(r: Rig, numbers: bool) -> None:
    """The mount is served under the next session already: nobody announces that again before its next renewal."""
    shipped(r)
    gate = gate_of_names(r)
    held: list[After] = []

    def hold(wait: Any) -> After:
        held.append(After(wait))
        return held[-1]

    if numbers:
        spend_numbers(r)
        token = r.worker.client.session_token()
        gate.on_propose = lambda command, unique: (
            hold(r.worker.client.propose(command, unique, token)) if type(command) is c.GrantInodes and not held else None
        )
        asking = r.begin("mkdir", ROOT_INO, b"d", 0o755)
    else:
        gate.on_ask = lambda body: hold(r.worker.client.ask(body)) if type(body) is m.GetRows and not held else None
        r.worker.names._names.rows.clear()
        r.mount.caches.names.clear()
        asking = r.begin("lookup", ROOT_INO, b"absent")
    until(lambda: held and held[0].begun.is_set())
    r.end_session()
    replace_session(r)
    held[0].release()
    if numbers:
        assert asking.result(10).ino
    else:
        assert error_of(asking.result, 10) == errno.ENOENT
