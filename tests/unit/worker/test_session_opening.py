"""Workers that die while a session is opened in the place of one that has ended: nothing goes on over what others had the volume for."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import FormatTooNew, FsError, Unavailable
from awsomefsd.base.shm import map_memfd
from awsomefsd.base.types import ROOT_INO
from awsomefsd.fuse.control_area import ControlArea
from awsomefsd.io.file import dirty_log
from awsomefsd.io.file.op_log import OpLog
from awsomefsd.io.file.record_ring import RecordRing
from awsomefsd.keeper.mount_record import FORMAT_IN_DOUBT, FORMAT_WITH_OPS
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.worker import worker as worker_module
from tests.rigs.delegated_mount import Delegated, Shipping, aside, at_leader, others_change, shipped
from tests.rigs.metadata_service import Wire
from tests.rigs.mount_without_kernel import LIMIT_S, Rig, rig, until
from tests.rigs.sharing_nodes import Sharing, two_nodes

Dies = Callable[[Rig, pytest.MonkeyPatch], tuple[int, int]]


class Died(Exception):
    pass


class Deciding(Sharing):
    """Decides names under its leases."""

    caches = True
    delegated = True


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path, made_by=Delegated) as made:
        yield made


@pytest.fixture
def durable(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[list[Deciding]]:
    yield from two_nodes(Deciding, tmp_path)


def work(r: Rig) -> int:
    """A synced file with newer bytes that nobody has, and a directory that nobody has where the mount decides names."""
    ino, fh = r.create(b"f")
    r.write(ino, fh, 0, b"old")
    r.fsync(ino, fh)
    if r.worker.names is not None and r.worker.names.decides:
        Shipping(r).hold()
        r.mkdir(b"mine")
    r.worker.data.flusher.pause(True)
    r.write(ino, fh, 0, b"new")
    return ino


def saved(r: Rig) -> bytes:
    folders = [folder for folder in (r.directory / "conflicts").glob("*") if not folder.name.endswith("-names")]
    return b"".join(file.read_bytes() for folder in folders for file in sorted(folder.iterdir()))


def left(r: Rig) -> ControlArea:
    """What a dead worker has left."""
    return ControlArea(map_memfd(r.fds["control"]))


def dies_when_opened(r: Rig, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """A successor dies with the answer to its OpenSession; returns the session that it got."""

    def die(where: str) -> None:
        if where == "takeover.session.opened":
            raise Died

    with monkeypatch.context() as patch:
        patch.setattr(worker_module, "hit", die)
        with pytest.raises(Died):
            r.start()
    session = r.worker.client.session_token()
    r.kill()
    return session


def dies_unanswered(r: Rig, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """As `dies_when_opened`; the answer never arrives."""
    opened: list[tuple[int, int]] = []
    start_session = MetaClient.start_session

    def start(client: MetaClient, *args: Any) -> Any:
        reply = start_session(client, *args)
        opened.append((reply.session, reply.epoch))
        raise Unavailable("it died before the answer came")

    with monkeypatch.context() as patch:
        patch.setattr(MetaClient, "start_session", start)
        with pytest.raises(Unavailable):
            r.start()
    r.kill()
    return opened[0]


DEATHS = (dies_when_opened, dies_unanswered)


@pytest.mark.parametrize("dies", DEATHS)
def test_what_a_worker_was_told_of_others_is_not_lost_with_it(r: Rig, monkeypatch: pytest.MonkeyPatch, dies: Dies) -> None:
    ino = work(r)
    r.kill()
    r.end_session()
    others_change(r)
    r.host.end_session(*dies(r, monkeypatch))
    r.start()
    assert set(at_leader(r)) == {b"f", b"theirs"} and r.content(ino) == b"old"
    assert [line["name"] for line in aside(r)] == ["mine"] and saved(r) == b"new"
    assert not left(r).state.opening
    r.mkdir(b"later")
    r.restart()
    assert set(r.listdir()) == {b"f", b"theirs", b"later"}


@pytest.mark.parametrize("dies", DEATHS)
def test_a_mount_with_durable_names_loses_it_neither(durable: Rig, monkeypatch: pytest.MonkeyPatch, dies: Dies) -> None:
    r = durable
    ino = work(r)
    r.kill()
    r.end_session()
    others_change(r)
    r.host.end_session(*dies(r, monkeypatch))
    r.start()
    assert r.content(ino) == b"old" and saved(r) == b"new"


def test_a_worker_that_goes_on_under_another_session_leaves_it_to_its_successor(r: Rig) -> None:
    """It dies while it puts aside what others have overtaken, and its new session ends."""
    work(r)
    storing = threading.Event()
    worker = r.worker

    def put_aside(records: Any, why: str) -> None:
        storing.set()
        raise Died

    def quiet(_args: Any) -> None:
        pass

    hook, threading.excepthook = threading.excepthook, quiet
    try:
        worker.names.put_aside = put_aside
        r.end_session()
        others_change(r)
        worker.client._keeper.doubt()
        assert storing.wait(LIMIT_S)
        until(lambda: not worker.names.shipper._thread.is_alive())
    finally:
        threading.excepthook = hook
    session = worker.client.session_token()
    r.kill()
    r.host.end_session(*session)
    r.start()
    assert set(at_leader(r)) == {b"f", b"theirs"} and [line["name"] for line in aside(r)] == ["mine"]


def test_a_session_that_goes_on_needs_no_note(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of these workers is told that the session is the one that is named."""
    ino = work(r)
    r.kill()
    for dies in DEATHS:
        dies(r, monkeypatch)
    r.start()
    shipped(r)
    assert set(at_leader(r)) == {b"f", b"mine"} and r.content(ino) == b"new" and not (r.directory / "conflicts").exists()


def test_what_nobody_had_since_goes_on_though_the_worker_that_was_told_so_died(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ino = work(r)
    r.kill()
    r.end_session()
    r.host.end_session(*dies_when_opened(r, monkeypatch))
    assert not left(r).state.opening
    r.start()
    shipped(r)
    assert set(at_leader(r)) == {b"f", b"mine"} and r.content(ino) == b"new" and not (r.directory / "conflicts").exists()


def test_a_session_that_was_refused_is_none(r: Rig) -> None:
    """Another mount has the volume, so this one has opened nothing; the next one is told what was."""
    work(r)
    r.kill()
    r.end_session()
    wire = Wire(r.host.socket_path, 99)
    opened = wire.open_session(99)
    refused: list[int] = []

    def start(client: MetaClient, *args: Any) -> Any:
        try:
            return start_session(client, *args)
        except FsError as err:
            refused.append(err.errno)
            raise Died from err  # once: open_session would ask again for a time

    start_session, MetaClient.start_session = MetaClient.start_session, start  # type: ignore[method-assign]
    try:
        with pytest.raises(Died):
            r.start()
    finally:
        MetaClient.start_session = start_session  # type: ignore[method-assign]
    assert refused == [errno.EBUSY]
    r.kill()
    r.host.end_session(opened.session, opened.epoch)
    wire.close()
    r.start()
    assert [line["name"] for line in aside(r)] == ["mine"]


@pytest.mark.parametrize(("number", "noted"), [(errno.EBUSY, False), (errno.EIO, True)])
def test_a_refusal_ends_the_note_and_the_end_of_the_client_does_not(r: Rig, number: int, noted: bool) -> None:
    class Refusing:
        session = 0

        def start_session(self, _command: Any) -> Any:
            assert control.state.opening
            raise FsError(number)

    control, opening = r.worker.memory.control, r.worker.opening
    opening._client = Refusing()  # type: ignore[assignment]
    for _ in range(2):
        with pytest.raises(FsError):
            opening.start_session(r.worker.open_command)
        assert control.state.opening == noted


def test_where_files_have_leases_each_is_decided_for_itself(nodes: list[Deciding], monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of its changes outlives any number of sessions; names are put aside, as with any session that has ended."""
    one, two = nodes
    inos = {name: one.file(name, b"old") for name in (b"f", b"g")}
    one.flush()
    one.worker.data.flusher.pause(True)
    for ino in inos.values():
        one.write(ino, one.open(ino), 0, b"new")
    Shipping(one).hold()
    until(lambda: one.worker.names.leases.want_to_decide(ROOT_INO) or one.worker.names.leases.may_decide(ROOT_INO))
    one.mkdir(b"mine")
    one.kill()
    one.end_session()
    fh = two.open(inos[b"f"])
    two.write(inos[b"f"], fh, 0, b"theirs")
    two.fsync(inos[b"f"], fh)
    one.host.end_session(*dies_when_opened(one, monkeypatch))
    one.start()
    one.flush()
    assert [one.content(ino) for ino in inos.values()] == [b"theirs", b"new"]
    assert [line["name"] for line in aside(one)] == ["mine"] and saved(one) == b"new"


# --- other builds ---------------------------------------------------------------------------------------------------------
def earlier_build(r: Rig) -> None:
    """Opens the logs as a build that knows version 3 of the area only."""
    area = dirty_log.AREA._replace(version_max=dirty_log.VERSION_WITH_OPS)
    RecordRing(map_memfd(r.fds["dirty"]), area, left(r).state.dirty_log, False, dirty_log.DIRTY_RECALL_BYTES, 0)


def test_earlier_builds_are_refused_while_a_rest_may_be_overtaken(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not know the note, and would be told by the leader that nobody had the volume."""
    work(r)
    r.kill()
    earlier_build(r)
    r.end_session()
    others_change(r)
    session = dies_when_opened(r, monkeypatch)
    assert r.worker.link.needed == FORMAT_IN_DOUBT  # type: ignore[attr-defined]
    with pytest.raises(FormatTooNew, match="version 4"):
        earlier_build(r)
    r.host.end_session(*session)
    r.start()
    assert r.worker.link.needed == FORMAT_WITH_OPS  # type: ignore[attr-defined]
    earlier_build(r)
    assert [line["name"] for line in aside(r)] == ["mine"]


def test_earlier_builds_are_not_refused_where_nothing_is_left(r: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    r.mkdir(b"d")
    shipped(r)
    r.flush()
    r.kill()
    r.end_session()
    others_change(r)
    dies_when_opened(r, monkeypatch)
    earlier_build(r)


def test_a_control_area_of_an_earlier_build_is_taken_over(r: Rig) -> None:
    """Its record ends before the note."""
    work(r)
    r.kill()
    control = left(r)
    raw = control._doubled.load()
    assert raw is not None and raw[0] == 0x99 and raw[-1] == 0xC2, "nine fields, the last one False"
    control._doubled.store(b"\x98" + raw[1:-1])
    assert not left(r).state.opening
    r.start()
    shipped(r)
    assert set(at_leader(r)) == {b"f", b"mine"}


def test_a_change_of_the_version_that_was_cut_is_finished(r: Rig) -> None:
    work(r)
    r.kill()
    view = map_memfd(r.fds["dirty"])
    dirty = dirty_log.DirtyLog(view, left(r).state.dirty_log, with_ops=True)
    before = bytes(view[:128])
    OpLog(map_memfd(r.fds["ops"]), dirty).doubted()
    after = bytes(view[:128])
    assert before != after
    for version, seal in ((after, before), (before, after)):
        at = next(at for at in range(0, 128, 8) if before[at : at + 8] != after[at : at + 8])
        view[:128] = version[: at + 8] + seal[at + 8 :]
        again = dirty_log.DirtyLog(map_memfd(r.fds["dirty"]), left(r).state.dirty_log, with_ops=True)
        assert again.version == (4 if version is after else 3)
