"""Two nodes show a file alike, whatever comes between a look, a commit, a recall and the answer of a request that was sent twice."""

from __future__ import annotations

import errno
import random
import threading
import time
import types
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.types import ROOT_INO
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs.mount_without_kernel import LIMIT_S, VOLUME, Held, Started, error_of, until
from tests.unit.vfs.ops.test_buffered_writes import Leased, nodes, sound

__all__ = ["nodes"]


class ToldLate(Held):
    """As `Held`, of a request that was sent more than once: its answer is a result that the leader has kept since the first time."""

    repeated = True


@pytest.mark.parametrize("what", ["attributes", "names", "write"])
def test_the_kept_result_of_a_repeated_request_hides_no_later_change_of_others(nodes: list[Leased], what: str) -> None:
    """The first copy's answer was lost with its connection; others changed the same, and this node has the lease again when it is told."""
    one, two = nodes
    ino, fh = one.create(b"f")
    there = two.open(ino)
    late: list[ToldLate] = []

    def told_late(command: Any, unique: int) -> Any:
        if isinstance(command, (c.SetAttr, c.Rename, c.WriteData)) and not late:
            late.append(ToldLate(one.worker.client.propose(command, unique)))
            return late[0]
        return None

    if what == "write":
        one.vfs.policy._contested[ino] = float("inf")  # type: ignore[union-attr]
    one.gate().on_propose = told_late
    if what == "attributes":
        op = one.begin("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    elif what == "names":
        op = one.begin("rename", ROOT_INO, b"f", ROOT_INO, b"g", 0)
    else:
        op = Started(one.vfs.write(one.ctx(), ino, fh, 0, memoryview(b"mine"), 0))
    until(lambda: late and late[0].answered.is_set())
    if what == "attributes":
        two.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o644))
        assert one.attr(ino).mode & 0o777 == 0o644
    elif what == "names":
        two.call("rename", ROOT_INO, b"g", ROOT_INO, b"f", 0)
        assert one.lookup(b"f").ino == ino and error_of(one.lookup, b"g") == errno.ENOENT
    else:
        two.truncate(ino, 1)
        assert one.attr(ino).size == 1
    until(lambda: one.worker.caches.leases.grant(ROOT_INO if what == "names" else ino))  # type: ignore[union-attr]
    late[0].release()
    op.result()
    assert one.attr(ino) == two.attr(ino)
    assert [node.lookup(b"f").ino for node in nodes] == [ino] * 2 and error_of(one.lookup, b"g") == errno.ENOENT
    assert one.read(ino, fh, 0, 9) == two.read(ino, there, 0, 9)
    sound(nodes)


def test_a_commit_that_was_sent_again_hides_no_later_change(nodes: list[Leased]) -> None:
    """Its answer is what the leader has kept since the first copy; the mode was changed meanwhile."""
    one, two = nodes
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, b"hello")
    late: list[ToldLate] = []

    def told_late(command: Any, unique: int) -> Any:
        if isinstance(command, c.Commit):
            late.append(ToldLate(one.worker.client.propose(command, unique)))
            return late[0]
        return None

    one.gate().on_propose = told_late
    synced = one.begin("fsync", ino, fh, False)
    until(lambda: late and late[0].answered.is_set())
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    late[0].release()
    synced.result()
    assert one.attr(ino) == two.attr(ino) and one.attr(ino).mode & 0o777 == 0o600 and one.attr(ino).size == 5
    sound(nodes)


class Settling(list[Any]):
    """Dirty records that are committed and clean just after somebody has looked whether there are any."""

    def __init__(self, records: list[Any], commit: Any) -> None:
        super().__init__(records)
        self.commit = commit

    def __bool__(self) -> bool:
        found, commit, self.commit = len(self) > 0, self.commit, None
        if commit is not None:
            commit()
        return found


def test_a_commit_while_attributes_are_shown(nodes: list[Leased]) -> None:
    """Either what is buffered counts or what the commit has told, never what was before both."""
    one = nodes[0]
    ino, fh = one.create(b"f")
    before = one.mount.caches.names.attr(ino)
    one.write(ino, fh, 0, b"hello")
    wanted = one.attr(ino)
    state = one.mount.buffered.files.get(ino)
    state.dirty = Settling(state.dirty, one.flush)
    shown = one.mount.shown(before)
    assert not state.dirty and (shown.mtime_ns, shown.ctime_ns, shown.size) == (wanted.mtime_ns, wanted.ctime_ns, 5)
    sound(nodes)


@pytest.mark.parametrize("how", ["getattr", "lookup"])
def test_a_lease_that_goes_while_attributes_are_shown(nodes: list[Leased], how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was buffered is committed and all that was remembered is dropped, after the old attributes were looked up here."""
    one, two = nodes
    ino, fh = one.create(b"f")
    two.lookup(b"f")
    one.lookup(b"f")
    one.write(ino, fh, 0, b"hello")
    asked: list[int] = []

    def taken(seen: int) -> None:
        if not asked:
            asked.append(seen)
            two.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))

    monkeypatch.setattr(one.mount.caches.atimes, "of", taken)
    shown = one.attr(ino) if how == "getattr" else one.lookup(b"f")
    assert asked and (shown.size, shown.mode & 0o777) == (5, 0o600)
    sound(nodes)


@pytest.mark.parametrize("how", ["truncate", "fallocate"])
def test_a_write_behind_an_own_change_is_later_by_the_clock_of_the_leader_too(
    nodes: list[Leased], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This node's clock is behind the leader's: what it shows of data that is buffered is what the commit will say."""
    one, two = nodes
    behind = types.SimpleNamespace(time_ns=lambda: time.time_ns() - 10**12, monotonic=time.monotonic)
    monkeypatch.setattr("awsomefsd.vfs.ops.data_leased.time", behind)
    ino, fh = one.create(b"f")
    one.write(ino, fh, 0, bytes(9_000))
    if how == "truncate":
        one.truncate(ino, 5_000)
    else:
        one.call("fallocate", ino, fh, c.FALLOC_PUNCH_HOLE | c.FALLOC_KEEP_SIZE, 0, 5_000)
    before = one.attr(ino)
    one.write(ino, fh, 0, b"hello")
    shown = one.attr(ino)
    assert one.mount.buffered.dirty.dirty_bytes == 5 and shown.mtime_ns > before.mtime_ns
    assert two.attr(ino).mtime_ns == shown.mtime_ns == one.attr(ino).mtime_ns
    sound(nodes)


def test_an_open_of_a_file_without_a_lease_is_one_question(nodes: list[Leased], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the leader answers: the answer is looked at before any that tells of a removal."""
    one, two = nodes
    monkeypatch.setattr(two.mount, "_delegated", None)
    ino, fh = one.create(b"f")
    there = two.open(ino)
    for turn in range(12):
        for node, handle in ((one, fh), (two, there)):
            node.clock.advance(0.001)
            node.write(ino, handle, turn, b"a")
    asked: list[Any] = []
    two.gate().on_ask = asked.append
    assert two.mount.caches.names.attr(ino) is None, "it is contested: nothing is remembered of it"
    again = two.open(ino)
    assert [body for body in asked if isinstance(body, m.GetAttr)] == [m.GetAttr(VOLUME, ino)]
    two.close_file(ino, again)
    sound(nodes)


def test_a_lease_that_goes_while_a_file_is_opened(nodes: list[Leased], monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = nodes
    ino = one.file(b"f", b"data")
    two.lookup(b"f")
    until(lambda: two.attr(ino) and two.mount.caches.names.attr(ino) is not None)
    opened = two.mount.session.opens.open

    def late(*given: Any) -> int:
        """Its last name goes, and nothing is kept of it for this node, before the handle is in the table."""
        if one.volume().used_inodes == before:
            one.call("unlink", ROOT_INO, b"f")
            block_on(two.vfs.orphans.release_unopened(two.worker.client.session), LIMIT_S)
            until(lambda: one.volume().used_inodes == before - 1)
        return opened(*given)

    before = one.volume().used_inodes
    monkeypatch.setattr(two.mount.session.opens, "open", late)
    assert error_of(two.open, ino) == errno.ENOENT and not two.mount.session.opens.count(ino)
    sound(nodes)


def test_a_file_that_is_opened_while_it_loses_its_name(nodes: list[Leased], seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a lease: it is refused, or stays for as long as it is open."""
    one, two = nodes
    dice = random.Random(seed)
    monkeypatch.setattr(two.mount, "_delegated", None)
    monkeypatch.setattr(two.mount.caches, "cover", lambda *_, **__: None)
    for number in range(20):
        name = b"%d" % number
        ino = one.file(name, b"data")
        pauses = [dice.random() * 0.004 for _ in range(2)]

        def remove(name: bytes = name, pause_s: float = pauses[0]) -> None:
            time.sleep(pause_s)
            one.call("unlink", ROOT_INO, name)

        def release(pause_s: float = pauses[1]) -> None:
            time.sleep(pause_s)
            for _ in range(3):
                block_on(two.vfs.orphans.release_unopened(two.worker.client.session), LIMIT_S)

        others = [threading.Thread(target=work) for work in (remove, release)]
        for other in others:
            other.start()
        try:
            fh = two.open(ino)
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            fh = 0
        for other in others:
            other.join()
        release(0)
        if fh:
            assert two.read(ino, fh, 0, 9) == b"data"
            two.close_file(ino, fh)
    sound(nodes)
