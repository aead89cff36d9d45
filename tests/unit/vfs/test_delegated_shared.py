"""Mounts of several nodes decide names of what they hold: what is at the leader when, and what others see."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Unavailable
from awsomefsd.base.limits import LEASE_IDLE_LOOKS, OP_RECORDS_RECALL, OP_RECORDS_SHARED_MAX
from awsomefsd.base.types import LEASE_NONE, ROOT_INO
from awsomefsd.base.wait import Steps, Wait
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.vfs.session.idle_leases import IdleLeases
from awsomefsd.worker import session_change
from tests.rigs.delegated_mount import Shipping, aside, at_leader, replace_session, shipped
from tests.rigs.mount_without_kernel import BIG, LIMIT_S, VOLUME, After, Gate, Held, Rig, Started, error_of, until
from tests.rigs.sharing_nodes import Sharing, sound, two_nodes


class Deciding(Sharing):
    """Decides names under its leases."""

    caches = True
    delegated = True


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Deciding]]:
    yield from two_nodes(Deciding, tmp_path)


def requests(r: Rig) -> int:
    """Entries of the log."""
    assert r.host.service is not None
    return int(r.host.service.query(m.GetStatus()).figures["last_index"])


def decides(r: Rig, ino: int) -> bool:
    held: bool = r.worker.names.leases.may_decide(ino)
    return held


def hold(r: Rig, ino: int) -> None:
    """Returns when the mount may decide what happens to an inode."""

    def held() -> bool:
        r.worker.names.leases.want_to_decide(ino)  # again: a grant that crosses a recall counts for nothing
        return decides(r, ino)

    until(held)


def own(r: Rig, name: bytes = b"own") -> int:
    """A directory that this mount holds, and the leader knows."""
    hold(r, ROOT_INO)
    d = r.mkdir(name)
    shipped(r)
    assert decides(r, d)
    return d


def started(r: Rig, shipping: Shipping) -> None:
    """A batch is on its way, and is held."""
    until(lambda: shipping.held)


def test_creates_in_a_directory_of_ones_own_cost_few_entries(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    shipped(one)
    before, decided = requests(one), one.worker.names.decided
    for number in range(200):
        one.file(b"%d" % number, parent=d)
    shipped(one)
    assert one.worker.names.decided - decided >= 200
    assert requests(one) - before <= 10
    assert sorted(two.listdir(d)) == sorted(b"%d" % number for number in range(200))
    sound(nodes)


def test_a_directory_is_asked_for_when_it_is_changed_a_second_time(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = two.mkdir(b"d")
    decided = one.worker.names.decided
    ino = one.lookup(b"d").ino
    one.file(b"a", parent=ino)
    assert not decides(one, d)
    one.file(b"b", parent=d)
    until(lambda: decides(one, d))
    one.file(b"c", parent=d)
    assert one.worker.names.decided == decided + 1
    assert set(two.listdir(d)) == {b"a", b"b", b"c"}
    sound(nodes)


@pytest.mark.parametrize("question", ["lookup", "listdir", "getattr", "getxattr", "of a file"])
def test_another_node_sees_what_was_decided_and_not_shipped(nodes: list[Deciding], question: str) -> None:
    one, two = nodes
    d = own(one)
    old = one.file(b"old", parent=d)
    shipped(one)
    shipping = Shipping(one)
    shipping.hold()
    made = one.file(b"f", parent=d)
    one.call("setattr", old, None, SetAttrIn(c.SET_MODE, mode=0o600))
    one.call("setxattr", d, b"user.a", b"v", 0)
    ask: dict[str, Any] = {
        "lookup": lambda: two.lookup(b"f", d).ino == made,
        "listdir": lambda: set(two.listdir(d)) == {b"old", b"f"},
        "getattr": lambda: two.attr(d).mtime_ns == one.attr(d).mtime_ns,
        "getxattr": lambda: bytes(two.call("getxattr", d, b"user.a")) == b"v",
        "of a file": lambda: two.attr(old).mode == stat.S_IFREG | 0o600,
    }
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(ask[question]()))
    thread.start()
    started(one, shipping)
    assert not seen, "it waits for the batch"
    shipping.go()
    thread.join(LIMIT_S)
    assert seen == [True]
    sound(nodes)


def test_a_change_by_another_node_waits_for_what_was_decided_and_meets_it(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    shipping = Shipping(one)
    shipping.hold()
    one.file(b"f", parent=d)
    told: list[int] = []
    thread = threading.Thread(target=lambda: told.append(error_of(two.call, "create", d, b"f", 0o644, os.O_RDWR | os.O_EXCL)))
    thread.start()
    started(one, shipping)
    assert not told
    shipping.go()
    thread.join(LIMIT_S)
    assert told == [errno.EEXIST] and not decides(one, d)
    two.call("unlink", d, b"f")
    assert error_of(one.lookup, b"f", d) == errno.ENOENT
    one.file(b"f", parent=d)
    assert two.lookup(b"f", d).ino == one.lookup(b"f", d).ino
    sound(nodes)


def test_what_is_being_recalled_goes_to_the_leader_and_the_recall_waits_for_none_of_it(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    shipping = Shipping(one)
    shipping.hold()
    one.file(b"f", parent=d)
    thread = threading.Thread(target=lambda: two.file(b"g", parent=d))
    thread.start()
    until(lambda: not decides(one, d))
    decided = one.worker.names.decided
    waiting = one.begin("create", d, b"h", 0o644, os.O_RDWR)
    assert not waiting.ended.is_set() and one.worker.names.decided == decided
    shipping.go()
    thread.join(LIMIT_S)
    waiting.result()
    assert set(two.listdir(d)) == {b"f", b"g", b"h"}
    sound(nodes)


def test_two_whose_changes_wait_for_what_the_other_holds_both_go_on(nodes: list[Deciding]) -> None:
    """A recall waits for records only: not for a change of this mount that is at the leader, and waits there for another recall."""
    one, two = nodes
    a, b = own(one, b"a"), own(two, b"b")
    one.mkdir(b"x", a)
    two.mkdir(b"y", b)
    sessions = [node.worker.memory.control.state.session for node in nodes]
    shipping = [Shipping(node) for node in nodes]
    for node, held, mine in zip(nodes, shipping, (a, b), strict=True):
        shipped(node)
        held.hold()
        node.file(b"f", parent=mine)
    assert decides(one, a) and decides(two, b)
    moves = [c.Rename(VOLUME, a, b"x", b, b"x", 0, False, 0, 0), c.Rename(VOLUME, b, b"y", a, b"y", 0, False, 0, 0)]
    moving = [Started(_waited(node.worker.names.propose(move, 1 << 62))) for node, move in zip(nodes, moves, strict=True)]
    assert not any(move.ended.is_set() for move in moving), "both wait for their records"
    for held in shipping:
        held.go()
    for move in moving:
        move.result(LIMIT_S)
    assert set(one.listdir(a)) == {b"f", b"y"} and set(two.listdir(b)) == {b"f", b"x"}
    assert sessions == [node.worker.memory.control.state.session for node in nodes], "nobody was waited for until its session ended"
    sound(nodes)


def test_more_is_decided_while_a_recall_of_an_earlier_leader_waits_for_records(nodes: list[Deciding]) -> None:
    """The next leader has not asked yet, so the lease is held: what ends with the older records leaves the rows of newer ones alone."""
    one, two = nodes
    d = own(one)
    shipping = Shipping(one)
    shipping.hold()
    one.file(b"f", parent=d)
    ended = threading.Event()
    one.worker.names.let_go(d, LEASE_NONE, ended.set)  # the holder knows of no recall any more (LeaseHolder.greeted)
    started(one, shipping)
    decided = one.worker.names.decided
    one.file(b"g", parent=d)
    assert one.worker.names.decided == decided + 1
    shipping.go()
    assert ended.wait(LIMIT_S)
    shipped(one)
    assert decides(one, d) and set(two.listdir(d)) == {b"f", b"g"}
    sound(nodes)


def test_nothing_is_decided_while_the_leader_changes_what_nobody_knows_by_number(nodes: list[Deciding]) -> None:
    """An unlink in a directory that is not held may remove a file that is."""
    one, two = nodes
    d = two.mkdir(b"d")
    ino, other = two.file(b"f", parent=d), two.file(b"g", parent=d)
    assert one.lookup(b"d").ino == d and one.lookup(b"f", d).ino == ino and one.lookup(b"g", d).ino == other
    hold(one, ino)
    hold(one, other)
    client, held = one.worker.client, []
    gate = Gate(client)
    one.worker.names._metadata = gate

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.Unlink:
            return None
        held.append(Held(client.propose(command, unique)))
        return held[-1]

    gate.on_propose = on_propose
    removed = one.begin("unlink", d, b"f")
    until(lambda: held and held[0].answered.is_set())
    decided = one.worker.names.decided
    one.call("setattr", other, None, SetAttrIn(c.SET_MODE, mode=0o600))
    one.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert one.worker.names.decided == decided, "they went to the leader"
    held[0].release()
    removed.result()
    one.call("setattr", other, None, SetAttrIn(c.SET_MODE, mode=0o640))
    assert one.worker.names.decided == decided + 1 and two.attr(other).mode & 0o7777 == 0o640
    sound(nodes)


@pytest.mark.parametrize("known", [True, False])
def test_a_change_of_the_leader_that_waits_for_records_ends_with_the_worker(
    nodes: list[Deciding], known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was never sent.  What is not shipped is still this mount's, on the shipper's thread, and the successor ships it."""
    one, two = nodes
    a, b = own(one, b"a"), own(one, b"b")
    inside = one.mkdir(b"inside", a)
    shipped(one)
    batch, gate = After(None), Gate(one.worker.client)
    gate.on_propose = lambda command, _unique: batch if type(command) is c.Apply else None
    one.worker.names.shipper._metadata = gate
    file = one.file(b"f", parent=a)
    if known:
        waiting = Started(_waited(one.worker.names.propose(c.ReleaseOrphan(VOLUME, [file, a]), 1 << 62)))
    else:
        waiting = one.begin("rename", a, b"inside", b, b"inside", 0)
    assert batch.begun.wait(LIMIT_S) and not waiting.ended.is_set()
    batch.release(None, Unavailable("the client has ended"))
    with pytest.raises(Unavailable):
        waiting.result()
    assert one.lookup(b"f", a).ino == file, "from its own rows: nobody else can be asked any more"
    assert one.worker.names.shipper._thread.is_alive()
    monkeypatch.setattr(session_change, "SESSION_SELF_FENCE_MS", 0)  # there is no kernel that could believe anything
    one.restart()
    assert two.listdir(a) == {b"inside": inside, b"f": file} and two.listdir(b) == {}
    sound(nodes)


def _waited(wait: Wait) -> Steps:
    return (yield wait)


def test_a_directory_goes_to_another_parent_by_the_leader(nodes: list[Deciding]) -> None:
    one, two = nodes
    a, b = own(one, b"a"), own(one, b"b")
    inside, file = one.mkdir(b"inside", a), one.file(b"f", parent=a)
    shipped(one)
    decided = one.worker.names.decided
    one.call("rename", a, b"inside", b, b"inside", 0)
    assert one.worker.names.decided == decided and at_leader(one, b) == {b"inside": inside}
    one.call("rename", a, b"f", b, b"f", 0)
    assert error_of(one.call, "rename", ROOT_INO, b"b", inside, b"x", 0) == errno.EINVAL, "below itself"
    assert two.listdir(b) == {b"inside": inside, b"f": file}
    sound(nodes)


def test_an_unlinked_file_stays_for_another_node_that_has_it_open(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    ino = one.file(b"f", b"bytes", parent=d)
    there = two.open(two.lookup(b"f", d).ino)
    hold(one, ino)
    hold(one, d)
    decided = one.worker.names.decided
    one.call("unlink", d, b"f")
    assert one.worker.names.decided == decided + 1
    assert error_of(two.lookup, b"f", d) == errno.ENOENT
    assert two.read(ino, there, 0, 100) == b"bytes" and two.call("getattr", ino, there).nlink == 0
    shipped(one)
    two.close_file(ino, there)
    assert not any(node.worker.names.figures()["names_diverged"] for node in nodes)
    sound(nodes)


def test_data_of_a_file_that_is_gone_is_dropped(nodes: list[Deciding]) -> None:
    """Its last name went by a record, and the other node's right to it by an entry of that node's: the leader knows when it is gone."""
    one, two = nodes
    d = own(one)
    ino, fh = one.create(b"f", d)
    one.write(ino, fh, 0, b"x" * BIG)
    one.worker.data.flusher.pause(True)
    one.close_file(ino, fh)
    decided = one.worker.names.decided
    one.call("unlink", d, b"f")
    assert one.worker.names.decided == decided + 1
    until(lambda: not one.mount.buffered.dirty.dirty_bytes)
    assert error_of(two.attr, ino) == errno.ENOENT
    one.worker.data.flusher.pause(False)
    sound(nodes)


def test_no_more_is_behind_than_others_may_have_to_wait_for(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    shipping = Shipping(one)
    shipping.hold()
    made = 0
    while (waiting := one.begin("mknod", d, b"%d" % made, stat.S_IFREG | 0o644, 0)).ended.is_set():
        one.vfs.replied(one.unique)
        made += 1
    assert OP_RECORDS_SHARED_MAX - OP_RECORDS_RECALL - 10 <= made <= OP_RECORDS_SHARED_MAX
    shipping.go()
    waiting.result()
    one.vfs.replied(one.unique)
    assert len(two.listdir(d)) == made + 1
    sound(nodes)


def test_a_successor_ships_what_it_inherits_before_anybody_is_answered(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    Shipping(one).hold()
    ino = one.file(b"f", b"bytes", parent=d)
    one.call("setattr", d, None, SetAttrIn(c.SET_MODE, mode=0o700))
    one.restart()
    assert at_leader(one, d) == {b"f": ino}
    assert two.lookup(b"f", d).ino == ino and two.content(ino) == b"bytes" and two.attr(d).mode & 0o7777 == 0o700
    hold(one, d)
    one.file(b"g", parent=d)
    assert set(two.listdir(d)) == {b"f", b"g"}
    sound(nodes)


def test_what_was_not_shipped_when_the_session_ended_is_put_aside_and_told(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    one.file(b"before", parent=d)
    shipped(one)
    Shipping(one).hold()
    lost, lost_fh = one.create(b"f", d)
    one.write(lost, lost_fh, 0, b"bytes")
    before = one.worker.memory.control.state.session
    one.end_session()
    two.file(b"theirs", parent=d)
    replace_session(one, before)
    assert [line["operation"] for line in aside(one)] == ["Create"]
    assert set(one.listdir(d)) == set(two.listdir(d)) == {b"before", b"theirs"}
    assert error_of(one.fsync, lost, lost_fh) == errno.EIO
    assert error_of(one.call, "fsyncdir", d, 0, False) == errno.EIO, "once"
    one.file(b"after", parent=d)
    assert not one.worker.names.decides and set(two.listdir(d)) == {b"before", b"theirs", b"after"}
    one.restart()
    hold(one, d)
    one.file(b"again", parent=d)
    assert b"again" in two.listdir(d)
    sound(nodes)


def test_a_batch_that_was_applied_before_the_session_ended_is_not_put_aside(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    shipping = Shipping(one)
    client = one.worker.client
    lost: list[Any] = []

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.Apply:
            return None
        lost.append(Held(client.propose(command, unique)))
        return lost[-1]

    shipping._gate.on_propose = on_propose
    ino = one.file(b"f", parent=d)
    until(lambda: lost and lost[0].answered.is_set())
    before = one.worker.memory.control.state.session
    one.end_session()
    replace_session(one, before)
    assert not list((one.directory / "conflicts").glob("*-names")) and one.lookup(b"f", d).ino == ino
    shipping._gate.on_propose = None
    hold(one, d)
    one.file(b"g", parent=d)
    assert set(two.listdir(d)) == {b"f", b"g"}
    sound(nodes)


def test_a_session_that_ends_with_nothing_decided_changes_nothing(nodes: list[Deciding]) -> None:
    one, two = nodes
    d = own(one)
    one.file(b"f", parent=d)
    shipped(one)
    before = one.worker.memory.control.state.session
    one.end_session()
    two.file(b"g", parent=d)
    replace_session(one, before)
    assert not decides(one, d) and set(one.listdir(d)) == {b"f", b"g"}
    hold(one, d)
    decided = one.worker.names.decided
    one.file(b"h", parent=d)
    assert one.worker.names.decided == decided + 1
    assert {b"f", b"g", b"h"} == set(two.listdir(d))
    sound(nodes)


def test_a_lease_is_not_given_back_before_what_was_decided_is_shipped(nodes: list[Deciding]) -> None:
    one, _two = nodes
    d = own(one)
    shipping = Shipping(one)
    shipping.hold()
    ino = one.file(b"f", parent=d)
    idle = IdleLeases(one.mount, one.mount.caches.leases)
    for _ in range(2 * LEASE_IDLE_LOOKS + 2):
        idle.poll()
    assert decides(one, ino) and decides(one, d)
    shipping.go()
    shipped(one)
    for _ in range(2 * LEASE_IDLE_LOOKS + 2):
        idle.poll()
    assert not decides(one, ino) and not decides(one, d)
    assert one.worker.names._names.attr(ino) is None, "nothing is known of it"
    sound(nodes)


def test_a_mount_that_shares_without_strict_leases_decides_nothing(tmp_path: Path) -> None:
    class Plain(Deciding):
        caches = False

    for nodes in two_nodes(Plain, tmp_path):
        assert all(node.worker.names is None for node in nodes)
        nodes[0].file(b"f")
        assert nodes[1].lookup(b"f")
