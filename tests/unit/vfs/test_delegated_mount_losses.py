"""A mount that decides names by itself loses nothing silently: sessions that end, records that are put aside, and the data beside them."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.types import ROOT_INO
from awsomefsd.base.wait import block_on
from awsomefsd.io.file import shipper_core
from awsomefsd.io.file.shipper import _Rider
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.machine import inode_grants
from awsomefsd.meta.state import rows
from awsomefsd.vfs.api.context import SetAttrIn
from awsomefsd.worker import takeover
from tests.rigs.delegated_mount import Delegated, Shipping, aside, at_leader, others_change, replace_session, shipped
from tests.rigs.metadata_service import Wire
from tests.rigs.mount_without_kernel import BIG, LIMIT_S, MOUNT, VOLUME, After, Gate, Held, Rig, Started, error_of, finish, rig, until

OVERTAKEN = "another mount had the volume"


class Erring(Delegated):
    on_lease_loss = "error"


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, made_by=Delegated) as made:
        yield made


def saved(r: Rig) -> bytes:
    """The data in the conflict area."""
    folders = [folder for folder in (r.directory / "conflicts").glob("*") if not folder.name.endswith("-names")]
    return b"".join(file.read_bytes() for folder in folders for file in sorted(folder.iterdir()))


class HeldBatches(MetaClient):
    """Keeps the batches of records."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.held: list[After] = []

    def propose(self, command: Any, unique: int, token: tuple[int, int] | None = None) -> Any:
        if type(command) is not c.Apply:
            return super().propose(command, unique, token)
        self.held.append(After(None))
        return self.held[-1]


def chmod(r: Rig, ino: int, mode: int) -> None:
    r.call("setattr", ino, None, SetAttrIn(c.SET_MODE, mode=mode))


# --- data of files that were never made ---------------------------------------------------------------------------------
def test_data_of_a_file_whose_record_is_put_aside_by_a_successor_is_put_aside_too(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"acknowledged")
    r.kill()
    r.end_session()
    others_change(r)
    r.start()
    assert saved(r) == b"acknowledged" and [line["name"] for line in aside(r)] == ["f"]
    assert r.worker.memory.dirty.dirty_bytes == 0 and r.counter("files_put_aside") == 2


def test_data_of_a_file_whose_record_a_successor_finds_refused_is_put_aside_too(r: Rig) -> None:
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"theirs")
    r.write(ino, fh, 0, b"acknowledged")
    r.mkdir(b"d")
    session, epoch = r.worker.client.session_token()
    r.kill()
    wire = Wire(r.host.socket_path, MOUNT)
    made = wire.ask(m.Propose(1 << 50, session, epoch, [], c.Create(VOLUME, ROOT_INO, b"theirs", 0o100644, 0, 0)))
    wire.close()
    assert isinstance(made, m.Found)
    r.start()
    assert [line["name"] for line in aside(r)] == ["theirs", "d"] and saved(r) == b"acknowledged"


def test_data_is_not_taken_for_that_of_a_removed_file_while_its_record_is_being_put_aside(r: Rig) -> None:
    """Its commit would be refused with ENOENT, and that means else that nobody needs the data."""
    shipping, storing, may_store = Shipping(r), threading.Event(), threading.Event()
    shipping.hold()
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"acknowledged")
    save = r.worker.names.put_aside

    def put_aside(records: Any, why: str) -> None:
        storing.set()
        assert may_store.wait(LIMIT_S)
        save(records, why)

    r.worker.names.put_aside = put_aside
    r.worker.names.shipper.give_up(OVERTAKEN)
    assert storing.wait(LIMIT_S)
    synced = r.begin("fsync", ino, fh, False)
    until(lambda: r.worker.data.flusher._proposed is not None)
    assert not synced.ended.is_set()
    may_store.set()
    assert error_of(synced.result) == errno.EIO and saved(r) == b"acknowledged"


def test_a_flush_that_had_begun_commits_nothing_of_what_is_put_aside(r: Rig) -> None:
    """Its records are clean by then: while it writes, others take their places in the dirty log."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"o" * BIG)
    r.fsync(ino, fh)
    shipping, writing, may_write = Shipping(r), threading.Event(), threading.Event()
    shipping.hold()
    chmod(r, ino, 0o600)
    r.write(ino, fh, 0, b"n" * BIG)
    flusher = r.worker.data.flusher
    write = flusher._writer.write

    def slow(pieces: Any) -> Any:
        writing.set()
        assert may_write.wait(LIMIT_S)
        return write(pieces)

    flusher._writer.write = slow
    flusher.kick()
    assert writing.wait(LIMIT_S)
    r.worker.names.shipper.give_up(OVERTAKEN)
    until(lambda: r.worker.names.synced() is None)
    may_write.set()
    until(lambda: not flusher._driven)
    assert saved(r) == b"n" * BIG
    assert r.read(ino, r.open(ino), 0, 1) == b"o"


def test_an_answer_that_comes_while_data_is_put_aside_leaves_no_record_that_nobody_flushes(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The flush of the file has its answer in the middle of it: a record that stays, of a file that is held, would let no unmount end."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"o" * BIG)
    r.fsync(ino, fh)
    shipped(r)
    gate, held = r.gate(), []

    def on_propose(command: Any, unique: int) -> Any:
        if type(command) is not c.Commit:
            return None
        held.append(Held(r.worker.client.propose(command, unique)))
        return held[-1]

    gate.on_propose = on_propose
    for number in range(3):
        r.write(ino, fh, number * BIG, b"n" * BIG)
    r.worker.data.flusher.kick()
    until(lambda: held and held[0].answered.is_set())
    gate.on_propose = None
    state, files = r.mount.buffered.files.get(ino), r.mount.buffered.files
    drop = files.drop

    def answered_before(*args: Any, **options: Any) -> list[int]:
        held[0].release()
        return drop(*args, **options)

    monkeypatch.setattr(files, "drop", answered_before)
    r.worker.conflicts.save([state], "for the test")
    monkeypatch.setattr(files, "drop", drop)
    assert not state.dirty and state.in_flight == 0
    r.flush()


def test_a_record_that_the_log_does_not_take_has_not_happened(r: Rig) -> None:
    ctx = r.ctx()
    finish(r.request("mkdir", ctx, ROOT_INO, b"a", 0o755))
    with pytest.raises(ValueError, match="has a record already"):
        finish(r.request("mkdir", ctx, ROOT_INO, b"b", 0o755))
    r.vfs.replied(ctx.unique)
    r.mkdir(b"c")
    r.flush()
    assert set(r.listdir()) == set(at_leader(r)) == {b"a", b"c"}
    assert r.worker.names.shipper.differing == 0


# --- what is told -------------------------------------------------------------------------------------------------------
def test_a_handle_of_a_directory_whose_names_were_put_aside_is_lost_for_every_successor(r: Rig) -> None:
    """The worker that has put them aside dies before somebody asks."""
    handle = r.call("opendir", ROOT_INO, 0).fh
    shipping = Shipping(r)
    shipping.hold()
    r.mkdir(b"mine")
    r.worker.names.shipper.give_up(OVERTAKEN)
    until(lambda: r.worker.names.synced() is None)
    r.restart()
    assert error_of(r.call, "fsyncdir", ROOT_INO, handle, False) == errno.EIO
    r.call("fsyncdir", ROOT_INO, r.call("opendir", ROOT_INO, 0).fh, False)


def test_a_handle_of_a_directory_goes_on_where_nothing_was_put_aside(r: Rig) -> None:
    handle = r.call("opendir", ROOT_INO, 0).fh
    r.kill()
    r.end_session()
    r.start()
    assert handle in r.mount.session.failed_handles  # nobody knows what was locked; no name is lost
    r.call("fsyncdir", ROOT_INO, handle, False)


def test_an_fsync_of_a_directory_does_not_outlast_the_lease_where_nothing_may(tmp_path: Path) -> None:
    """on-lease-loss=error: nothing can be shipped, and who asked is told."""
    with rig(tmp_path, made_by=Erring) as r:
        shipping = Shipping(r)
        shipping.hold()
        r.mkdir(b"d")
        synced = r.begin("fsyncdir", ROOT_INO, 0, False)
        until(lambda: bool(shipping.held))
        r.worker.lease.hold()
        r.vfs.fenced()
        assert error_of(synced.result, 10) == errno.ETIMEDOUT
        r.worker.lease.release()
        shipping.go()
        shipped(r)
        r.call("fsyncdir", ROOT_INO, 0, False)


def test_the_list_of_what_was_put_aside_is_in_the_order_of_the_log(r: Rig) -> None:
    """First goes what follows from what was refused, then the rest, and what is decided meanwhile comes before what waited."""
    one, two = r.mkdir(b"one"), r.mkdir(b"two")
    shipped(r)
    shipping = Shipping(r)
    shipping.hold()
    for number in range(3):
        r.mkdir(b"%d" % number, two)
        r.mkdir(b"%d" % number, one)
    r.worker.names.shipper.give_up(OVERTAKEN)
    until(lambda: r.worker.names.synced() is None)
    found = [line["sequence"] for line in aside(r)]
    assert len(found) == 6 and found == sorted(found)


def test_pages_that_the_kernel_may_have_of_data_that_was_put_aside_are_not_used(r: Rig) -> None:
    """Of files that this worker remembers the kernel is told; it may have read others."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"old")
    r.fsync(ino, fh)
    shipping = Shipping(r)
    shipping.hold()
    chmod(r, ino, 0o600)
    r.write(ino, fh, 0, b"new")
    r.mount.caches.names.drop(ino)
    r.worker.names.shipper.give_up(OVERTAKEN)
    until(lambda: r.worker.names.synced() is None)
    assert saved(r) == b"new"
    assert not r.mount.caches.pages.opened(ino, 1 << 40, made=False), "the next open drops them"


# --- sessions -----------------------------------------------------------------------------------------------------------
def test_nothing_is_shipped_under_a_session_before_it_is_known_whether_others_were_here(r: Rig) -> None:
    shipper = r.worker.names.shipper
    shipper._not_before_ns = 1 << 62
    r.mkdir(b"mine")
    abandon = r.worker.sessions._abandon_segments
    tried = threading.Event()
    not_taken = shipper._not_taken

    def noted(error: BaseException | None) -> None:
        not_taken(error)
        tried.set()

    shipper._not_taken = noted

    def opened() -> None:
        shipper._not_before_ns = 0
        shipper.wait(0)  # wakes it
        assert tried.wait(LIMIT_S), "it was taken"
        abandon()

    r.worker.sessions._abandon_segments = opened
    r.end_session()
    others_change(r)
    replace_session(r)
    until(lambda: r.worker.names.synced() is None)
    assert set(at_leader(r)) == {b"theirs"} and [line["name"] for line in aside(r)] == ["mine"]


def test_a_successor_whose_session_ends_while_it_ships_leaves_everything_to_the_next_one(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would flush data as of the session before, although another mount has changed the volume since."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"old")
    r.fsync(ino, fh)
    shipping = Shipping(r)
    shipping.hold()
    r.mkdir(b"mine")
    r.write(ino, fh, 0, b"new")
    r.kill()
    monkeypatch.setattr(r, "make_client", lambda *args: HeldBatches(*args, **r.client_options))
    ended: list[BaseException] = []

    def start() -> None:
        try:
            r.start()
        except Error as err:
            ended.append(err)

    starting = threading.Thread(target=start)
    starting.start()
    until(lambda: getattr(r.worker.client, "held", None))
    r.end_session()
    others_change(r)
    r.worker.client._keeper.doubt()
    starting.join(LIMIT_S)
    assert not starting.is_alive() and [type(err) for err in ended] == [Unavailable]
    monkeypatch.undo()
    r.restart()
    assert set(at_leader(r)) == {b"f", b"theirs"} and r.content(ino) == b"old"
    assert saved(r) == b"new" and [line["name"] for line in aside(r)] == ["mine"]


def test_the_next_session_is_noted_when_what_others_have_overtaken_is_put_aside(r: Rig) -> None:
    """Else a successor would find that session its own, and ship what is left."""
    shipping, storing, may_store = Shipping(r), threading.Event(), threading.Event()
    shipping.hold()
    r.mkdir(b"mine")
    save = r.worker.names.put_aside

    def put_aside(records: Any, why: str) -> None:
        storing.set()
        assert may_store.wait(LIMIT_S)
        save(records, why)

    r.worker.names.put_aside = put_aside
    control = r.worker.memory.control
    before = control.state.session
    r.end_session()
    others_change(r)
    r.worker.client._keeper.doubt()
    assert storing.wait(LIMIT_S)
    until(lambda: r.worker.client.session != before)
    assert control.state.session == before
    may_store.set()
    until(lambda: not r.worker.sessions._busy.locked())
    assert control.state.session == r.worker.client.session and [line["name"] for line in aside(r)] == ["mine"]


def test_nothing_is_decided_over_old_rows_once_another_mount_had_the_volume(r: Rig) -> None:
    r.mkdir(b"mine")
    assert set(r.listdir()) == {b"mine"}
    shipped(r)
    shipper, told = r.worker.names.shipper, []
    give_up, shipper.give_up = shipper.give_up, told.append  # its thread may take it up late
    r.end_session()
    others_change(r)
    replace_session(r)
    assert error_of(r.mkdir, b"theirs") == errno.EEXIST
    give_up(told[0])


def test_a_request_whose_record_was_put_aside_is_executed_again(r: Rig) -> None:
    shipping, asked = Shipping(r), r.ctx()
    shipping.hold()
    Started(r.request("mkdir", asked, ROOT_INO, b"mine", 0o755)).result()
    r.kill()
    r.end_session()
    others_change(r)
    r.unanswered = [asked.unique]
    (made,) = r.start(lambda vfs: vfs.mkdir(asked, ROOT_INO, b"mine", 0o755))
    assert at_leader(r)[b"mine"] == made.ino


def test_what_a_successor_decides_does_not_follow_from_what_was_put_aside_before_it(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is there as long as its request is not answered, and the worker that has put it aside dies before."""
    shipping, asked = Shipping(r), r.ctx()
    shipping.hold()
    Started(r.request("mkdir", asked, ROOT_INO, b"mine", 0o755)).result()
    r.kill()
    r.end_session()
    others_change(r)
    r.unanswered = [asked.unique]

    def dies(where: str) -> None:
        assert where != "takeover.requests.repeated"

    with monkeypatch.context() as patch:
        patch.setattr(takeover, "hit", dies)
        with pytest.raises(AssertionError):
            r.start()
    r.kill()
    (made,) = r.start(lambda vfs: vfs.mkdir(asked, ROOT_INO, b"mine", 0o755))
    r.mkdir(b"later")
    shipped(r)
    assert at_leader(r)[b"mine"] == made.ino and set(at_leader(r)) == {b"mine", b"theirs", b"later"}
    assert [line["name"] for line in aside(r)] == ["mine"] and r.worker.names.decides


def test_no_number_is_used_under_a_session_whose_quota_does_not_count_it(r: Rig) -> None:
    r.mkdir(b"d")
    shipped(r)
    service = r.host.service
    assert service is not None and not isinstance(service.propose(c.SetVolume(VOLUME, quota_inodes=40), 60), m.Failed)
    r.restart()
    r.mkdir(b"e")
    shipped(r)
    shipping = Shipping(r)
    shipping.hold()
    for number in range(3):
        r.mkdir(b"on its way %d" % number)
    r.end_session()
    replace_session(r)
    shipping.go()
    for number in range(34):
        r.mkdir(b"%d" % number)
    assert error_of(r.mkdir, b"one more") == errno.EDQUOT
    shipped(r)
    assert len(at_leader(r)) == 39 and r.worker.names.decides


@pytest.mark.parametrize("unshipped", [True, False])
def test_a_file_without_names_that_ended_with_its_session_takes_nothing_with_it(r: Rig, unshipped: bool) -> None:
    ino, _ = r.create(b"f")
    r.call("unlink", ROOT_INO, b"f")
    shipped(r)
    shipping = Shipping(r)
    shipping.hold()
    r.mkdir(b"d")
    if unshipped:
        chmod(r, ino, 0o600)
    r.end_session()
    replace_session(r)
    shipping.go()
    if not unshipped:
        assert error_of(chmod, r, ino, 0o600) == errno.ENOENT
        assert error_of(r.call, "link", ino, ROOT_INO, b"again") == errno.ENOENT
    r.mkdir(b"e")
    shipped(r)
    assert set(at_leader(r)) == {b"d", b"e"} and r.worker.names.decides
    assert r.worker.names.figures()["names_diverged"] == 0


# --- order --------------------------------------------------------------------------------------------------------------
def test_a_truncation_is_not_there_before_what_was_decided_before_it(r: Rig) -> None:
    ino, fh = r.create(b"log")
    r.write(ino, fh, 0, b"what is renamed next is in it")
    r.fsync(ino, fh)
    shipping = Shipping(r)
    shipping.hold()
    r.mkdir(b"d")
    cut = r.begin("setattr", ino, fh, SetAttrIn(c.SET_SIZE, size=0))
    until(lambda: shipping.held)
    assert not cut.ended.is_set() and r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size  # type: ignore[union-attr]
    shipping.go()
    cut.result()
    assert r.attr(ino).size == 0 and set(at_leader(r)) == {b"log", b"d"}


# --- metadata that was recovered from an older copy ------------------------------------------------------------------------
def roll_back(r: Rig) -> None:
    """The session has ended, and the row of the mount says less than it did, as after `meta recover`."""
    r.end_session()
    inode_grants.save_log(r.host.replica.machine.state, MOUNT, rows.OpLogRow(VOLUME, r.worker.memory.dirty.log_id))


def test_a_successor_ships_nothing_onto_metadata_that_lacks_what_came_before(r: Rig) -> None:
    """What is in the log builds upon what is lost: some of it would be refused, and some of it would be done."""
    ino = r.file(b"f")
    shipped(r)
    Shipping(r).hold()
    chmod(r, ino, 0o600)
    r.mkdir(b"d")
    r.kill()
    roll_back(r)
    r.start()
    assert [line["operation"] for line in aside(r)] == ["SetAttr", "Create"]
    assert r.attr(ino).mode & 0o777 == 0o644 and set(at_leader(r)) == {b"f"}
    assert r.mount.names_figures()["names_diverged"] == 0
    Shipping(r).hold()
    r.mkdir(b"later")
    r.restart()
    assert set(r.listdir()) == set(at_leader(r)) == {b"f", b"later"} and len(aside(r)) == 2


def test_a_mount_whose_metadata_was_rolled_back_puts_aside_what_it_has(r: Rig) -> None:
    ino = r.file(b"f")
    shipped(r)
    Shipping(r).hold()
    chmod(r, ino, 0o600)
    roll_back(r)
    replace_session(r)
    until(lambda: r.worker.names.shipper.has_refused and r.worker.names.synced() is None)
    assert [line["operation"] for line in aside(r)] == ["SetAttr"] and r.attr(ino).mode & 0o777 == 0o644
    assert r.mount.names_figures()["names_diverged"] == 0


# --- rows ---------------------------------------------------------------------------------------------------------------
def test_a_directory_that_is_fetched_in_pages_is_known_whole(r: Rig) -> None:
    d = r.mkdir(b"d")
    count = 300
    for number in range(count):
        r.call("symlink", d, b"%04d" % number, b"x" * 4_000)  # more than an answer with rows takes
    shipped(r)
    r.restart()
    for number in (count - 2, count - 1, *range(count)):
        r.lookup(b"%04d" % number, d)
    assert error_of(r.call, "symlink", d, b"%04d" % (count // 2), b"another") == errno.EEXIST


# --- the end of the worker ----------------------------------------------------------------------------------------------
def test_who_waits_for_records_is_told_that_the_client_has_ended(r: Rig) -> None:
    """A flush, and the flusher's own thread, would wait for ever; the records stay for the next worker."""
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"x" * BIG)
    waiting = r.worker.names.synced()
    assert waiting is not None
    until(lambda: bool(shipping.held))
    cut = r.begin("setattr", r.create(b"g")[0], None, SetAttrIn(c.SET_SIZE, size=1))  # it waits for the record of its file
    r.worker.client.close()
    for held in shipping.held:
        held.release(error=Unavailable("the metadata client is closed"))
    with pytest.raises(Unavailable):
        block_on(waiting, LIMIT_S)
    late = r.worker.names.synced()
    assert late is not None
    with pytest.raises(Unavailable):
        block_on(late, LIMIT_S)
    with pytest.raises(Unavailable):
        cut.result()
    r.restart()
    r.flush()
    assert r.content(ino) == b"x" * BIG and b"f" in at_leader(r)


# --- the end of the node, and of waits ----------------------------------------------------------------------------------
def test_names_of_a_mount_whose_node_is_removed_are_put_aside(r: Rig) -> None:
    """Its session had ended before, so a batch waits for the next one, which never comes."""
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"mine")
    r.write(ino, fh, 0, b"acknowledged")
    synced = r.begin("fsync", ino, fh, False)
    until(lambda: bool(shipping.held))
    r.end_session()
    wire = Wire(r.host.socket_path, 99)
    wire.open_session(99)  # nobody else gets the volume
    shipper, told = r.worker.names.shipper, []
    not_taken = shipper._not_taken
    shipper._not_taken = lambda error: (not_taken(error), told.append(error))
    shipping.go()
    until(lambda: len(told) == 2)  # with the commit, and without
    until(lambda: r.worker.sessions._busy.locked())
    r.worker.events.removed("the node was removed")
    assert error_of(synced.result) == errno.EIO
    until(lambda: r.worker.names.synced() is None)
    assert [line["name"] for line in aside(r)] == ["mine"] and saved(r) == b"acknowledged"
    r.unmount()
    wire.close()


@pytest.mark.parametrize("by_client", [True, False])
def test_a_removal_of_the_node_is_no_difference_of_names(r: Rig, by_client: bool) -> None:
    """A batch is in flight: it ends with the client, or its leader refuses it before the mount has heard of the removal."""
    batch = After(None)
    gate = Gate(r.worker.client)
    gate.on_propose = lambda command, unique: batch if type(command) is c.Apply else None
    r.worker.names.shipper._metadata = gate
    r.mkdir(b"mine")
    r.begin("fsyncdir", ROOT_INO, 0, False)
    assert batch.begun.wait(LIMIT_S)
    if by_client:
        fail = r.worker.client.fail

        def failing(error: Error) -> None:
            fail(error)
            batch.release(error=error)

        r.worker.client.fail = failing
        r.worker.events.removed("the node was removed")
    else:
        batch.release(error=FsError(errno.EACCES, "the node was removed"))
    until(lambda: r.worker.names.shipper.has_refused and r.worker.names.synced() is None)
    assert [line["name"] for line in aside(r)] == ["mine"]
    assert r.mount.names_figures()["names_diverged"] == 0


def test_a_quota_that_was_lowered_without_a_session_is_no_difference_of_names(r: Rig) -> None:
    """What the quota counts for numbers ends with the session: the records find no room under the next one, and are put aside."""
    service = r.host.service
    assert service is not None and isinstance(service.propose(c.SetVolume(VOLUME, quota_inodes=40), 60), m.Done)
    r.restart()
    shipping = Shipping(r)
    shipping.hold()
    r.mkdir(b"d")
    r.end_session()
    assert isinstance(service.propose(c.SetVolume(VOLUME, quota_inodes=1), 60), m.Done)
    shipping.go()
    replace_session(r)
    until(lambda: r.worker.names.shipper.has_refused and r.worker.names.synced() is None)
    assert [line["name"] for line in aside(r)] == ["d"] and at_leader(r) == {}
    assert r.mount.names_figures()["names_diverged"] == 0


def test_a_commit_that_waited_for_records_goes_under_its_own_session_or_not_at_all(r: Rig) -> None:
    """Its data is saved as a conflict where others have the volume since; what they have done to the file stays."""
    shipping = Shipping(r)
    shipping.hold()
    ino, fh = r.create(b"f")
    r.begin("fsyncdir", ROOT_INO, 0, False)  # the record is on its way
    until(lambda: bool(shipping.held))
    r.write(ino, fh, 0, b"overtaken")
    synced = r.begin("fsync", ino, fh, False)
    until(lambda: r.worker.data.flusher._proposed is not None)
    names, reached, go = r.worker.names, threading.Event(), threading.Event()
    applied = names.applied

    def late(through: int) -> None:
        reached.set()
        assert go.wait(LIMIT_S)
        applied(through)

    names.applied = late
    shipping.go()
    assert reached.wait(LIMIT_S)
    r.end_session()
    others_change(r)
    replace_session(r)
    go.set()
    until(lambda: synced.ended.is_set())
    until(lambda: r.worker.data.flusher._proposed is None)
    assert saved(r) == b"overtaken"
    assert r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == 0  # type: ignore[union-attr]


def test_a_truncation_forgets_no_row_whose_record_is_still_taken_for_not_applied(r: Rig) -> None:
    """The op log hears of an answer before the rows do."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"some bytes")
    r.fsync(ino, fh)
    shipped(r)
    names, reached, go = r.worker.names, threading.Event(), threading.Event()
    applied = names.applied

    def late(through: int) -> None:
        reached.set()
        assert go.wait(LIMIT_S)
        applied(through)

    names.applied = late
    chmod(r, ino, 0o600)
    r.begin("fsyncdir", ROOT_INO, 0, False)
    assert reached.wait(LIMIT_S)
    waited, wait = threading.Event(), names.shipper.wait
    names.shipper.wait = lambda through: (waited.set(), wait(through))[1]
    cut = r.begin("setattr", ino, None, SetAttrIn(c.SET_SIZE, size=4))
    until(lambda: waited.is_set() or r.host.service.query(m.GetAttr(VOLUME, ino)).attr.size == 4)  # type: ignore[union-attr]
    go.set()
    cut.result()
    assert (r.attr(ino).size, r.attr(ino).mode & 0o7777, r.content(ino)) == (4, 0o600, b"some")


def test_the_answer_of_a_commit_that_comes_at_once_does_not_wait_for_the_rows_with_the_lock_of_the_flusher(
    r: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever has the lock of the rows may ask the flusher for something: each would wait for the other, for ever."""
    monkeypatch.setattr(shipper_core, "SHIP_GAP_MS", 3_600_000)  # the record is there until the commit goes behind it
    names, flusher, riders = r.worker.names, r.worker.data.flusher, []
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"bytes")
    post = names.shipper._post

    def slow(do: Any, *args: Any) -> None:
        post(do, *args)
        if args and isinstance(args[0], _Rider):
            riders.append(args[0])
            until(lambda: args[0].done)

    names.shipper._post = slow
    synced = threading.Thread(target=r.call, args=("fsync", ino, fh, False))
    with names.lock:
        synced.start()
        until(lambda: riders and riders[0].done)
        assert flusher._cond.acquire(timeout=LIMIT_S / 4)
        flusher._cond.release()
    synced.join(LIMIT_S)
    assert not synced.is_alive() and r.attr(ino).size == 5
