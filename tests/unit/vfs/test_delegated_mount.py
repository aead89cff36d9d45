"""A mount that decides names by itself: what is in the cluster's log when, and what becomes of what is not when something ends."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FsError, Overloaded
from awsomefsd.base.limits import MIB
from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.base.types import NAMES_DELEGATED, ROOT_INO
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine import records
from awsomefsd.meta.state.lookups import RetryLater
from awsomefsd.vfs.api.context import SetAttrIn
from tests.rigs.delegated_mount import Delegated, Shipping, aside, at_leader, others_change, replace_session, shipped
from tests.rigs.metadata_service import Wire
from tests.rigs.mount_without_kernel import LIMIT_S, VOLUME, After, Gate, Rig, Started, error_of, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, made_by=Delegated) as made:
        yield made


def requests(r: Rig) -> int:
    """Entries of the log."""
    assert r.host.service is not None
    return int(r.host.service.query(m.GetStatus()).figures["last_index"])


def test_many_changes_cost_few_entries(r: Rig) -> None:
    d = r.mkdir(b"d")
    shipped(r)
    before = requests(r)
    for number in range(200):
        r.file(b"%d" % number, parent=d)
    for number in range(200):
        r.call("unlink", d, b"%d" % number)
    shipped(r)
    assert requests(r) - before < 120, "two of a hundred, and a slow machine has smaller batches"
    assert r.worker.names.decided >= 401 and at_leader(r, d) == {}


def test_what_is_answered_is_not_at_the_leader_before_it_is_shipped_and_fsync_waits(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    d = r.mkdir(b"d")
    ino, fh = r.create(b"f", d)
    assert at_leader(r) == {} and r.lookup(b"f", d).ino == ino
    synced = r.begin("fsync", ino, fh, False)
    directory = r.begin("fsyncdir", d, 0, False)
    assert not synced.ended.is_set() and not directory.ended.is_set()
    shipping.go()
    synced.result()
    directory.result()
    assert at_leader(r) == {b"d": d} and at_leader(r, d) == {b"f": ino}


def test_data_is_committed_behind_the_record_that_makes_its_file(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"bytes")
    synced = r.begin("fsync", ino, fh, False)
    r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))  # decided while the commit waits
    assert not synced.ended.is_set()
    shipping.go()
    synced.result()
    assert (r.attr(ino).size, r.attr(ino).mode & 0o7777) == (5, 0o600)
    shipped(r)
    assert r.host.service.query(m.GetAttr(VOLUME, ino)).attr.mode & 0o7777 == 0o600  # type: ignore[union-attr]
    r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o640))
    assert r.attr(ino).size == 5, "the rows here have what the commit has changed"


@pytest.mark.parametrize("size", [100, 100_000], ids=["inline", "extents"])
def test_the_fsync_of_a_new_file_is_one_entry(r: Rig, size: int) -> None:
    """Its record and its data together; other files' records go with them."""
    for name in (b"leases segments", b"f"):
        shipped(r)
        before = requests(r)
        r.mkdir(b"of " + name)
        ino, fh = r.create(name)
        r.write(ino, fh, 0, b"x" * size)
        r.call("fsync", ino, fh, False)
        took = requests(r) - before
        assert at_leader(r).keys() >= {name, b"of " + name}
    assert took == 1 and r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == size  # type: ignore[union-attr]
    assert r.read(ino, fh, 0, size) == b"x" * size


def test_an_fsync_whose_commit_went_with_its_record_asks_the_shipper_no_more(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer to the batch tells it both, however late the thread of the shipper takes that up."""
    shipper, waited = r.worker.names.shipper, []
    go, wait = threading.Event(), shipper.wait
    settle = shipper._settle
    monkeypatch.setattr(shipper, "wait", lambda through: waited.append(through) or wait(through))
    monkeypatch.setattr(shipper, "_settle", lambda through: (go.wait(LIMIT_S), settle(through)))
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"bytes")
    r.call("fsync", ino, fh, False)
    assert waited == [] and r.worker.memory.ops.newest_unapplied()
    go.set()
    shipped(r)
    until(lambda: not r.worker.memory.ops.newest_unapplied())


def test_a_commit_whose_record_is_applied_before_it_can_go_goes_by_itself(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"f")
    r.begin("fsyncdir", ROOT_INO, 0, False)  # the record is on its way
    until(lambda: bool(shipping.held))
    r.write(ino, fh, 0, b"bytes")
    synced = r.begin("fsync", ino, fh, False)
    shipping.go()
    synced.result()
    assert r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == 5  # type: ignore[union-attr]


@pytest.mark.parametrize("number", [errno.ESTALE, errno.E2BIG])
def test_a_commit_that_is_refused_with_its_batch_holds_no_record_up(r: Rig, number: int) -> None:
    """ESTALE: a segment is not the session's any more, although the session lives."""
    gate = Gate(r.worker.client)
    r.worker.names.shipper._metadata = gate
    refused: list[Any] = []

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.Apply or not command.inodes or refused:
            return None
        refused.append(command)
        fails = After(None)
        fails.release(None, FsError(number, "not now"))
        return fails

    gate.on_propose = on_propose
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"bytes")
    if number == errno.ESTALE:  # it is written again
        r.call("fsync", ino, fh, False)
    else:
        assert error_of(r.call, "fsync", ino, fh, False) == number
        r.call("fsync", ino, fh, False)
    assert refused
    assert at_leader(r) == {b"f": ino} and r.worker.names.decides
    assert r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == 5  # type: ignore[union-attr]


def test_a_batch_for_which_the_client_has_no_place_is_sent_again(r: Rig) -> None:
    gate = Gate(r.worker.client)
    r.worker.names.shipper._metadata = gate
    refused: list[Any] = []

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.Apply or len(refused) == 2:
            return None
        refused.append(command)
        fails = After(None)
        fails.release(None, Overloaded("too many requests"))
        return fails

    gate.on_propose = on_propose
    d = r.mkdir(b"d")
    r.call("fsyncdir", ROOT_INO, 0, False)
    assert len(refused) == 2 and at_leader(r) == {b"d": d} and r.worker.names.decides


def test_a_commit_goes_with_the_rest_of_a_batch_that_was_stopped(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped: list[int] = []
    check_once = records._check_once_an_entry

    def busy(state: Any, entry: Any, record: c.DecidedRecord) -> None:
        if type(record.command) is c.Create and not stopped:
            stopped.append(record.sequence)
            raise RetryLater(errno.EAGAIN, "later")
        check_once(state, entry, record)

    monkeypatch.setattr(records, "_check_once_an_entry", busy)
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"bytes")
    r.call("fsync", ino, fh, False)
    assert stopped and r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == 5  # type: ignore[union-attr]


def test_no_commit_goes_with_records_under_a_session_that_came_after_it_was_made(r: Rig) -> None:
    """Its segments are not that session's; the flusher writes it again."""
    r.call("fsyncdir", ROOT_INO, 0, False)
    gate = Gate(r.worker.client)
    r.worker.names.shipper._metadata = gate
    held = After(None)
    sent: list[c.Apply] = []

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.Apply:
            return None
        sent.append(command)
        return held if len(sent) == 1 else None

    gate.on_propose = on_propose
    r.mkdir(b"on its way")
    r.begin("fsyncdir", ROOT_INO, 0, False)
    until(lambda: bool(sent))
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"bytes")
    synced = r.begin("fsync", ino, fh, False)  # its commit waits for the next batch
    until(lambda: r.worker.data.flusher._proposed is not None)
    r.end_session()
    replace_session(r)
    held.release(None, FsError(errno.ESTALE, "ended"))
    synced.result()
    batch = next(command for command in sent[1:] if any(record.command.name == b"f" for record in command.records))
    assert batch.inodes == [] and r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == 5  # type: ignore[union-attr]


def test_the_session_ends_while_a_commit_goes_with_records(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"x" * 100_000)
    synced = r.begin("fsync", ino, fh, False)
    until(lambda: bool(shipping.held))
    r.end_session()
    shipping.go()
    replace_session(r)
    synced.result()
    assert at_leader(r) == {b"f": ino} and r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == 100_000  # type: ignore[union-attr]


def test_the_leader_has_a_prefix_at_every_moment(r: Rig, seed: int) -> None:
    chance = random.Random(seed)
    there: dict[bytes, int] = {}
    states = [{}]
    for _ in range(150):
        name = b"%d" % chance.randrange(12)
        if name not in there:
            there[name] = r.file(name)
        elif chance.random() < 0.5:
            r.call("unlink", ROOT_INO, name)
            del there[name]
        else:
            new = b"%d" % chance.randrange(12, 24)
            r.call("rename", ROOT_INO, name, ROOT_INO, new, 0)
            there[new] = there.pop(name)
        states.append(dict(there))
        if chance.random() < 0.2:
            found = at_leader(r)
            assert found in states, "the leader has what never was"
            del states[: states.index(found)]
    shipped(r)
    assert at_leader(r) == there


def test_a_successor_ships_what_it_inherits_and_answers_the_same_again(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    d = r.mkdir(b"d")
    asked = r.ctx()
    attr = Started(r.request("mkdir", asked, d, b"once", 0o755)).result()
    assert at_leader(r) == {}
    r.unanswered = [asked.unique]
    again = r.restart(lambda vfs: vfs.mkdir(asked, d, b"once", 0o755))
    assert [found.ino for found in again] == [attr.ino], "it was made once"
    r.unanswered = None
    assert at_leader(r) == {b"d": d} and at_leader(r, d) == {b"once": attr.ino} and r.listdir(d) == {b"once": attr.ino}
    assert r.mkdir(b"more", d) > attr.ino, "numbers of its predecessor are not used again"


def test_a_removal_is_answered_again_by_who_did_not_do_it(r: Rig) -> None:
    d, asked, other = r.mkdir(b"d"), r.ctx(), r.ctx()
    r.file(b"f", parent=d)
    r.file(b"g", parent=d)
    Started(r.request("unlink", asked, d, b"f")).result()
    Started(r.request("rename", other, d, b"g", d, b"h", 0)).result()
    r.unanswered = [asked.unique, other.unique]
    repeated = [lambda vfs: vfs.unlink(asked, d, b"f"), lambda vfs: vfs.rename(other, d, b"g", d, b"h", 0)]
    assert r.restart(*repeated) == [None, None]
    assert set(r.listdir(d)) == {b"h"}


def test_records_go_on_under_the_next_session_of_the_mount(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    d = r.mkdir(b"d")
    r.end_session()
    replace_session(r)
    shipping.go()
    ino = r.mkdir(b"e", d)
    shipped(r)
    assert at_leader(r) == {b"d": d} and at_leader(r, d) == {b"e": ino}


def test_what_another_mount_has_overtaken_is_put_aside_and_told(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    r.mkdir(b"mine")
    r.kill()
    r.end_session()
    theirs = others_change(r)
    r.start()
    assert r.listdir() == {b"theirs": theirs}
    assert [(line["operation"], line["name"]) for line in aside(r)] == [("Create", "mine")]
    with pytest.raises(FsError, match="conflicts"):
        r.worker.conflicts.tell()
    r.mkdir(b"more")
    shipped(r)
    assert set(at_leader(r)) == {b"theirs", b"more"}


def test_a_refused_record_ends_decisions_and_nothing_goes_silently(r: Rig) -> None:
    """It is a defect of ours: here another one makes the name behind the back of the mount that holds the volume."""
    other = r.mkdir(b"other")
    shipped(r)
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"f")
    d = r.mkdir(b"d")
    r.mkdir(b"inside", other)  # follows from neither
    session, epoch = r.worker.client.session_token()
    wire = Wire(r.host.socket_path, 5)
    assert isinstance(wire.ask(m.Propose(1 << 50, session, epoch, [], c.Create(VOLUME, 1, b"f", 0o100644, 0, 0))), m.Found)
    wire.close()
    synced = r.begin("fsync", ino, fh, False)
    shipping.go()
    assert error_of(synced.result) == errno.EIO
    assert [line["name"] for line in aside(r)] == ["f", "d", "inside"]
    assert any({ino, d} <= set(told) for told in r.worker.kernel.forgotten), "the kernel shows them no more"
    assert error_of(r.lookup, b"d") == errno.ENOENT and r.lookup(b"f").ino != ino
    assert not r.worker.names.decides and set(r.listdir()) == {b"f", b"other"} and r.listdir(other) == {}
    assert r.worker.mount.names_figures()["names_diverged"] == 1
    assert error_of(r.call, "fsync", ino, fh, False) == errno.EIO, "its handle is lost"
    assert error_of(r.call, "fsyncdir", ROOT_INO, 0, False) == errno.EIO, "told once, through any handle"
    r.call("fsyncdir", ROOT_INO, 0, False)
    r.mkdir(b"d")
    assert set(at_leader(r)) == {b"f", b"d", b"other"}, "the leader decides now"


def test_fsync_does_not_pass_while_what_it_waits_for_is_being_put_aside(r: Rig) -> None:
    shipping, storing, may_store = Shipping(r), threading.Event(), threading.Event()
    shipping.hold()
    r.mkdir(b"d")
    save = r.worker.names.put_aside

    def put_aside(records: Any, why: str) -> None:
        storing.set()
        assert may_store.wait(LIMIT_S)
        save(records, why)

    r.worker.names.put_aside = put_aside
    r.worker.names.shipper.give_up("another mount had the volume")
    assert storing.wait(LIMIT_S) and not r.worker.names.decides
    synced = r.begin("fsyncdir", ROOT_INO, 0, False)
    assert not synced.ended.is_set()
    may_store.set()
    assert error_of(synced.result) == errno.EIO


def test_a_full_log_lets_changes_wait(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r.worker.names._log, "_records_max", 256 + 20)
    shipping = Shipping(r)
    shipping.hold()
    d = r.mkdir(b"d")
    begun = []
    for number in range(40):
        asked = r.ctx()
        begun.append((asked, Started(r.request("mkdir", asked, d, b"%d" % number, 0o755))))
    waiting = [asked for asked, one in begun if not one.ended.is_set()]
    assert 10 < len(waiting) < 40 and at_leader(r) == {}
    shipping.go()
    for asked, one in begun:
        one.result(LIMIT_S)
        r.vfs.replied(asked.unique)
    shipped(r)
    assert len(at_leader(r, d)) == 40


def test_a_quota_of_inodes_is_told_at_the_call(r: Rig) -> None:
    r.mkdir(b"d")
    shipped(r)
    assert not isinstance(r.host.service.propose(c.SetVolume(VOLUME, quota_inodes=12), 60), m.Failed)  # type: ignore[union-attr]
    r.restart()
    made = 10
    for number in range(made):
        r.mkdir(b"%d" % number)
    assert error_of(r.mkdir, b"one more") == errno.EDQUOT
    r.call("rmdir", ROOT_INO, b"0")
    shipped(r)
    r.mkdir(b"again")
    assert set(r.listdir()) == {b"d", b"again", *(b"%d" % number for number in range(1, made))}
    for number in range(1, 6):
        r.call("rmdir", ROOT_INO, b"%d" % number)
    before = r.worker.names.decided
    assert not isinstance(r.host.service.propose(c.SetVolume(VOLUME, quota_inodes=50), 61), m.Failed)  # type: ignore[union-attr]
    for number in range(30):
        r.mkdir(b"more %d" % number)
    assert r.worker.names.decided > before + 10, "having met its quota once does not make it slow for ever"


def test_a_write_without_room_waits_for_removals_that_are_not_shipped(tmp_path: Path) -> None:
    """Else a program that removes a file and goes on writing is told EDQUOT for what the leader has not heard of."""
    with rig(tmp_path, made_by=Delegated, quota_bytes=8 * MIB) as r, ThreadPoolExecutor(1) as thread:
        ino, fh = r.create(b"full")
        at = 0
        with contextlib.suppress(FsError):
            while True:
                r.write(ino, fh, at, bytes(MIB))
                at += MIB
        assert at >= 6 * MIB
        r.close_file(ino, fh)
        r.flush()  # else the commit of its data would take the records along
        other, fh = r.create(b"other")
        shipped(r)
        shipping = Shipping(r)
        shipping.hold()
        r.call("unlink", ROOT_INO, b"full")
        writing = thread.submit(r.write, other, fh, 0, bytes(MIB))
        until(lambda: bool(shipping.held))
        ended_without = writing.done()
        shipping.go()
        with contextlib.suppress(FsError):  # its room may still be reaped
            writing.result(LIMIT_S)
        assert not ended_without and r.worker.names.synced() is None


def test_a_truncation_waits_for_records_of_its_file_and_they_for_it(r: Rig) -> None:
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"some bytes")
    r.truncate(ino, 4)
    r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=0o600))
    assert (r.attr(ino).size, r.content(ino)) == (4, b"some")
    os_flags = os.O_RDWR | os.O_TRUNC
    r.open(ino, os_flags)
    assert r.attr(ino).size == 0 and r.attr(ino).mode & 0o7777 == 0o600


def test_unmounting_ships_everything_and_the_memory_needs_no_new_build_then(r: Rig) -> None:
    d = r.mkdir(b"d")
    assert r.worker.link.needed == 2  # type: ignore[attr-defined]
    r.unmount()
    assert at_leader(r) == {b"d": d}
    r.check()


def test_a_volume_with_durable_names_is_decided_by_the_leader(tmp_path: Path) -> None:
    made = Rig(tmp_path)
    try:
        made.start()
        d = made.mkdir(b"d")
        names = made.worker.names
        assert names is not None and not names.decides and at_leader(made) == {b"d": d} and names.decided == 0
        assert made.worker.memory.dirty.version == 1, "any build may take the mount over"
        assert "shipper" not in [thread.name for thread in threading.enumerate()]
        made.end_session()
        ino, fh = made.create(b"f")
        made.call("fsync", ino, fh, False)
        made.call("fsyncdir", ROOT_INO, 0, False)
        assert set(at_leader(made)) == {b"d", b"f"}
    finally:
        made.close()


class BeforeDelegation(Rig):
    level = DELEGATION - 1


def test_a_cluster_that_is_raised_under_a_mount_changes_nothing_for_it_until_its_worker_is_replaced(tmp_path: Path) -> None:
    made = BeforeDelegation(tmp_path)
    made.hold_lease_clock()
    try:
        made.start()
        service = made.host.service
        assert service is not None
        refused = service.propose(c.SetNames(VOLUME, NAMES_DELEGATED), 60)
        assert isinstance(refused, m.Failed) and refused.errno == errno.EOPNOTSUPP, "a voter of the older build could not read it"
        for made_so in (c.CreateVolume("new", "uuid-new", names=1), c.MakeCsiVolume(str(uuid.UUID(int=1)), "pvc", 0, False, [], names=1)):
            refused = service.propose(made_so, 60)
            assert isinstance(refused, m.Failed) and f"level {DELEGATION}" in refused.detail, "an older voter would make it without"
        ino, fh = made.create(b"before")
        made.write(ino, fh, 0, b"dirty while all this happens")
        for command in (c.RaiseLevel(DELEGATION), c.SetNames(VOLUME, NAMES_DELEGATED)):
            assert not isinstance(service.propose(command, 60), m.Failed)
        made.mkdir(b"still")
        assert at_leader(made) == {b"before": ino, b"still": made.lookup(b"still").ino}
        made.end_session()
        replace_session(made)
        made.mkdir(b"durable")
        names = made.worker.names
        assert names is not None and not names.decides and b"durable" in at_leader(made)
        made.call("fsync", ino, fh, False)
        made.restart()
        names = made.worker.names
        assert names is not None and names.decides
        made.mkdir(b"decided")
        shipped(made)
        assert set(at_leader(made)) == {b"before", b"still", b"durable", b"decided"} and names.decided == 1
        assert made.content(ino) == b"dirty while all this happens"
    finally:
        made.close()
