"""A mount that decides names by itself: rules whose absence no other test would notice (docs/TESTING.md has the table)."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.limits import MIB
from awsomefsd.base.power_cut import Why
from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.base.types import ROOT_INO
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.worker import delegation
from tests.rigs.delegated_mount import Delegated, Shipping, at_leader, replace_session, shipped
from tests.rigs.mount_without_kernel import LIMIT_S, VOLUME, Gate, Held, Rig, Started, error_of, rig, until


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, made_by=Delegated) as made:
        yield made


def hold(r: Rig, kind: type) -> tuple[Gate, list[Held]]:
    """Holds the answers to commands of a kind, until the gate is told otherwise; returns it, and those that were held."""
    held: list[Held] = []

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not kind:
            return None
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[-1]

    gate = Gate(r.worker.client)
    r.worker.names._metadata = gate
    gate.on_propose = on_propose
    return gate, held


def test_a_record_of_a_file_waits_while_the_leader_changes_it_and_others_do_not(r: Rig) -> None:
    ino, other = r.file(b"f", b"some bytes"), r.file(b"g")
    r.flush()
    shipped(r)
    gate, held = hold(r, c.SetAttr)
    truncating = r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=4))
    until(lambda: held and held[0].answered.is_set())
    gate.on_propose = None
    decided = r.worker.names.decided
    changing = r.begin("setxattr", ino, b"user.x", b"1", 0)
    r.call("setxattr", other, b"user.x", b"1", 0)
    assert r.worker.names.decided == decided + 1 and not changing.ended.is_set()
    held[0].release()
    truncating.result(LIMIT_S)
    changing.result(LIMIT_S)
    shipped(r)
    assert r.attr(ino).size == 4 and r.call("getxattr", ino, b"user.x") == b"1"
    assert r.worker.names.figures()["names_diverged"] == 0


def test_numbers_of_an_ended_session_are_not_used_under_the_next(r: Rig) -> None:
    """The quota does not count them any more: what is made with them would be refused when it is shipped."""
    service = r.host.service
    assert service is not None
    r.mkdir(b"d")
    shipped(r)
    assert r.worker.names._numbers
    r.end_session()
    assert isinstance(service.propose(c.SetVolume(VOLUME, quota_inodes=2), 60), m.Done)
    replace_session(r)
    assert error_of(r.mkdir, b"e") == errno.EDQUOT
    shipped(r)
    assert r.worker.names.decides and not (r.directory / "conflicts").exists()


def test_a_difference_is_told_and_nothing_is_lost(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(r.worker.names._names, "check_of", lambda record, touched: 1)
    r.mkdir(b"d")
    shipped(r)
    until(lambda: r.worker.names.figures()["names_diverged"])
    assert list(at_leader(r)) == [b"d"]


def test_data_that_is_committed_beside_a_record_is_no_difference(r: Rig) -> None:
    """The leader has it before the record, and the mount has not heard of that: the check leaves size and times of data out."""
    ino, fh = r.create(b"f")
    shipped(r)
    gate, held = hold(r, c.Commit)
    r.write(ino, fh, 0, b"some bytes")
    syncing = r.begin("fsync", ino, fh, False)
    until(lambda: held and held[0].answered.is_set())
    gate.on_propose = None
    decided = r.worker.names.decided
    r.call("setxattr", ino, b"user.x", b"1", 0)
    r.call("fsyncdir", ROOT_INO, 0, False)
    assert r.worker.names.decided == decided + 1 and not syncing.ended.is_set()
    held[0].release()
    syncing.result(LIMIT_S)
    assert r.attr(ino).size == 10 and r.worker.names.figures()["names_differing"] == 0


def test_data_that_cannot_be_flushed_takes_no_room_from_names(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The device hangs until the dirty log is full; names are decided and shipped meanwhile."""
    go_on, full = threading.Event(), threading.Event()
    r.device.on_flush = lambda: go_on.wait(LIMIT_S)
    append = DirtyLog.append_write

    def noticing(self: DirtyLog, *args: Any, **kwargs: Any) -> Any:
        record = append(self, *args, **kwargs)
        if record is None:
            full.set()
        return record

    monkeypatch.setattr(DirtyLog, "append_write", noticing)
    ino, fh = r.create(b"f")
    writes: list[tuple[int, Started]] = []
    try:
        while not full.is_set():
            asked = r.ctx()
            writes.append((asked.unique, Started(r.request("write", asked, ino, fh, len(writes) * MIB, memoryview(bytes(MIB)), 0))))
            until(lambda: full.is_set() or writes[-1][1].ended.is_set())
        made = {b"%d" % number: r.mkdir(b"%d" % number) for number in range(300)}
        r.call("fsyncdir", ROOT_INO, 0, False)
        assert made.items() <= at_leader(r).items() and not writes[-1][1].ended.is_set()
    finally:
        go_on.set()
    for unique, write in writes:
        write.result(LIMIT_S)
        r.vfs.replied(unique)


def test_a_listing_of_a_directory_that_is_not_known_whole_waits_for_its_records(r: Rig) -> None:
    d = r.mkdir(b"d")
    for number in range(3):
        r.file(b"%d" % number, parent=d)
    shipped(r)
    r.restart()
    shipping = Shipping(r)
    shipping.hold()
    r.call("unlink", d, b"0")
    with ThreadPoolExecutor(1) as thread:
        listing = thread.submit(r.listdir, d)
        until(lambda: bool(shipping.held))
        early = listing.done()
        shipping.go()
        assert set(listing.result(LIMIT_S)) == {b"1", b"2"} and not early


def test_a_worker_that_does_not_know_the_rules_of_the_cluster_decides_nothing(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delegation, "highest", lambda: DELEGATION - 1)
    r.restart()
    d = r.mkdir(b"d")
    assert not r.worker.names.decides and r.worker.names.why_not == Why.LEVEL and at_leader(r) == {b"d": d}
