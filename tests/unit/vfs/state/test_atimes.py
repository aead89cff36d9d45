"""Times of reads in a worker, and unnamed files: what stat shows at once, what reaches the log when, and what a kill takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import ATIMES_PENDING_MAX, ATIMES_PER_ENTRY_MAX
from awsomefsd.base.types import ROOT_INO, Attr
from awsomefsd.base.wait import block_on
from awsomefsd.meta.api import commands as c
from awsomefsd.vfs.api.context import CachePolicy, SetAttrIn
from awsomefsd.vfs.state.atimes import NOATIME, RELATIME, STRICTATIME, Atimes, Policy
from tests.rigs.mount_without_kernel import LIMIT_S, After, Rig, error_of, rig, until

DAY_NS = 24 * 3600 * 10**9


@pytest.fixture
def r(tmp_path: Path) -> Iterator[Rig]:
    with rig(tmp_path) as made:
        yield made


def read(r: Rig, ino: int, flags: int = os.O_RDONLY) -> None:
    fh = r.open(ino, flags)
    r.read(ino, fh, 0, 100)
    r.close_file(ino, fh)


def flush(r: Rig) -> None:
    block_on(r.mount.caches.atimes.flush(), LIMIT_S)


def committed(r: Rig, ino: int) -> int:
    r.mount.caches.names.drop(ino)
    found: Attr = block_on(r.mount.attr_op(ino), LIMIT_S)
    return found.atime_ns


def test_a_read_shows_at_once_and_is_committed_later(r: Rig) -> None:
    ino = r.file(b"f", b"data")
    before = r.attr(ino)
    read(r, ino)
    after = r.attr(ino)
    assert after.atime_ns > before.mtime_ns and after.ctime_ns == before.ctime_ns
    assert committed(r, ino) == before.atime_ns, "nothing was sent for one read"
    flush(r)
    assert committed(r, ino) == after.atime_ns == r.attr(ino).atime_ns
    read(r, ino)
    assert r.attr(ino).atime_ns == after.atime_ns, "relatime: the second read does not count"
    r.check()


def test_directories_and_links_have_atimes(r: Rig) -> None:
    folder = r.mkdir(b"d")
    link = r.call("symlink", ROOT_INO, b"l", b"t").ino
    r.listdir(folder)
    r.call("readlink", link)
    for ino in (folder, link):
        assert r.attr(ino).atime_ns > r.attr(ino).mtime_ns


def test_utimens_overtakes_reads_before_it(r: Rig) -> None:
    ino = r.file(b"f", b"data")
    read(r, ino)
    r.call("setattr", ino, None, SetAttrIn(c.SET_ATIME | c.SET_MTIME, atime_ns=5, mtime_ns=1))
    assert r.attr(ino).atime_ns == 5
    flush(r)
    assert committed(r, ino) == 5


def test_utimens_overtakes_a_read_whose_entry_is_on_its_way(r: Rig) -> None:
    ino = r.file(b"f", b"data")
    read(r, ino)
    client = r.worker.client
    sent: list[After] = []

    def propose(command: object, unique: int) -> object:
        sent.append(After(client.propose(command, unique)))  # type: ignore[arg-type]
        return sent[-1]

    gate = type("Late", (), {"propose": staticmethod(propose), "ack": staticmethod(client.ack)})
    r.mount.caches.atimes.metadata = gate
    signal = r.mount.caches.atimes.flush()
    sent[0].release()
    r.call("setattr", ino, None, SetAttrIn(c.SET_ATIME, atime_ns=5))
    block_on(signal, LIMIT_S)
    assert r.attr(ino).atime_ns == 5 == committed(r, ino)


def test_a_kill_loses_times_of_reads_and_nothing_else(r: Rig) -> None:
    ino = r.file(b"f", b"data")
    before = r.attr(ino)
    read(r, ino)
    r.restart()
    after = r.attr(ino)
    assert after.atime_ns == before.atime_ns and r.content(ino) == b"data"


def test_an_unmount_loses_nothing(r: Rig) -> None:
    ino = r.file(b"f", b"data")
    read(r, ino)
    atime_ns = r.attr(ino).atime_ns
    r.remount()
    assert r.attr(ino).atime_ns == atime_ns


def test_the_kernel_drops_its_pages_where_a_read_would_count(r: Rig) -> None:
    ino = r.file(b"f", b"data")
    assert [r.call("open", ino, flags).cache for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_NOATIME)] == [
        CachePolicy.DROP, CachePolicy.DROP, CachePolicy.KEEP, CachePolicy.KEEP
    ]  # fmt: skip
    read(r, ino, os.O_RDONLY | os.O_NOATIME)
    assert r.attr(ino).atime_ns <= r.attr(ino).mtime_ns
    read(r, ino)
    assert r.call("open", ino, os.O_RDONLY).cache == CachePolicy.KEEP


def attr(atime_ns: int, mtime_ns: int, ctime_ns: int, mode: int = 0o100644) -> Attr:
    return Attr(9, mode, 1, 0, 0, 0, 0, 0, atime_ns, mtime_ns, ctime_ns, 0)


@pytest.mark.parametrize(
    ("policy", "times", "mode", "counts"),
    [
        (Policy(RELATIME), (10, 10, 5), 0o100644, True), (Policy(RELATIME), (10, 5, 10), 0o100644, True),
        (Policy(RELATIME), (10, 9, 9), 0o100644, False), (Policy(RELATIME), (10 - DAY_NS, -DAY_NS, -DAY_NS), 0o100644, True),
        (Policy(STRICTATIME), (10, 9, 9), 0o100644, True), (Policy(NOATIME), (1, 9, 9), 0o100644, False),
        (Policy(STRICTATIME, False), (1, 9, 9), 0o040755, False), (Policy(RELATIME, False), (1, 9, 9), 0o100644, True),
    ],
)  # fmt: skip
def test_policies(policy: Policy, times: tuple[int, int, int], mode: int, counts: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("awsomefsd.vfs.state.atimes.time.time_ns", lambda: 10)
    made = Atimes(1, None, None, None, lambda _: None, policy)  # type: ignore[arg-type]
    assert made.counts(attr(*times, mode)) == counts


def test_many_reads_go_out_in_entries_of_bounded_size(r: Rig) -> None:
    sizes: list[int] = []
    client = r.worker.client

    def propose(command: c.SetAtimes, unique: int) -> object:
        sizes.append(len(command.atimes))
        return client.propose(command, unique)

    r.mount.caches.atimes.metadata = type("Counting", (), {"propose": staticmethod(propose), "ack": staticmethod(client.ack)})
    for ino in range(1_000, 1_000 + ATIMES_PENDING_MAX + 1):
        r.mount.caches.atimes.accessed(Attr(ino, 0o100644, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0))
    flush(r)
    assert sum(sizes) == ATIMES_PENDING_MAX + 1 and max(sizes) == ATIMES_PER_ENTRY_MAX
    flush(r)
    assert r.mount.caches.atimes.of(1_000) is None


# --- unnamed files --------------------------------------------------------------------------------------------------------
def tmpfile(r: Rig, flags: int = os.O_RDWR) -> tuple[int, int]:
    made, opened = r.call("tmpfile", ROOT_INO, 0o640, flags)
    return made.ino, opened.fh


def is_gone(r: Rig, ino: int) -> bool:
    """Nobody waits for the release of an orphan."""
    r.mount.caches.names.drop(ino)
    try:
        block_on(r.mount.attr_op(ino), LIMIT_S)
    except FsError as err:
        return err.errno == errno.ENOENT
    return False


def test_an_unnamed_file_ends_with_its_last_close(r: Rig) -> None:
    ino, fh = tmpfile(r)
    r.write(ino, fh, 0, b"data")
    r.close_file(ino, fh)
    until(lambda: is_gone(r, ino))
    r.check()


def test_an_unnamed_file_survives_the_worker_and_gets_a_name(r: Rig) -> None:
    ino, fh = tmpfile(r)
    r.write(ino, fh, 0, b"data")
    r.restart()
    assert r.read(ino, fh, 0, 10) == b"data"
    assert r.call("link", ino, ROOT_INO, b"name").nlink == 1
    r.close_file(ino, fh)
    assert r.content(r.lookup(b"name").ino) == b"data"
    r.check()


def test_a_repeated_request_makes_one_unnamed_file(r: Rig) -> None:
    used = r.volume().used_inodes
    ctx = r.ctx()
    made, opened = block_on(r.vfs.tmpfile(ctx, ROOT_INO, 0o640, os.O_RDWR), LIMIT_S)
    again = r.restart(lambda vfs: vfs.tmpfile(r.ctx(ctx.unique), ROOT_INO, 0o640, os.O_RDWR))[0]
    assert (again[0].ino, again[1].fh) == (made.ino, opened.fh) and r.volume().used_inodes == used + 1


def held_links(r: Rig) -> list[After]:
    """Links wait here until they are released."""
    late: list[After] = []

    def propose(command: object, unique: int) -> object:
        if not isinstance(command, c.Link):
            return None
        late.append(After(r.worker.client.propose(command, unique)))
        return late[-1]

    r.gate().on_propose = propose
    return late


def test_a_last_close_during_the_first_link_ends_nothing(r: Rig) -> None:
    ino, fh = tmpfile(r)
    r.write(ino, fh, 0, b"data")
    late = held_links(r)
    linking = r.begin("link", ino, ROOT_INO, b"name")
    r.close_file(ino, fh)
    late[0].release()
    assert linking.result().nlink == 1
    assert r.content(r.lookup(b"name").ino) == b"data"


def test_a_first_link_that_fails_ends_a_closed_file(r: Rig) -> None:
    r.file(b"there")
    ino, fh = tmpfile(r)
    late = held_links(r)
    linking = r.begin("link", ino, ROOT_INO, b"there")
    r.close_file(ino, fh)
    late[0].release()
    assert error_of(linking.result) == errno.EEXIST
    until(lambda: is_gone(r, ino))
