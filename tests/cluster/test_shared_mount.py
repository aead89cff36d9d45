"""One volume mounted read-write on three nodes at once: what an operation has done on one, every later operation sees on any.

Real daemons, keepers and workers, each node in a network namespace, one loop device (or file) that all of them see; no caches to be fooled
by, so each step is checked at once on all nodes, with system calls.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from buildtools.cluster import Cluster
from buildtools.leader import leading_term
from buildtools.nodes import Node, await_true
from tests.rigs.network_namespaces import found_on_one_disk

VOLUME = "together"
STEPS, FILE_BYTES, APPENDS, MANY = 40, 200_000, 40, 200
END_S = 120.0
STREAM_MIB = 128
REQUESTS_PER_GIB_MAX = 4_096  # docs/PERFORMANCE.md; a busy machine may take leases back, then each write(2) of 1 MiB is one
IN_TIME = frozenset(("Renew", "Report", "NodeReport", "ReportDevices", "GetStatus", "GetReports", "GetSessions", "ListNodes", "Hello"))
BESIDE = IN_TIME | {"GetOrphans", "ReleaseOrphan", "GetSparse", "GetDevices"}  # by time, too
CREATES = 60


def mount(node: Node) -> None:
    node.cli("mount", VOLUME, str(node.mountpoint), "-O", "shared")


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Cluster:
    return make_cluster(3)


@pytest.fixture(scope="module")
def nodes(cluster: Cluster) -> Iterator[list[Node]]:
    found_on_one_disk(cluster)
    cluster.nodes[0].cli("volume", "create", VOLUME)
    for node in cluster.nodes:
        mount(node)
    yield cluster.nodes
    for node in cluster.nodes:
        node.umount()
    cluster.stop()
    for node in cluster.nodes:
        node.cli("fsck", timeout_s=END_S)


@pytest.fixture
def places(nodes: list[Node], request: pytest.FixtureRequest) -> list[Path]:
    """A directory of the test's own, as each node shows it."""
    made = nodes[0].mountpoint / request.node.name
    made.mkdir()
    return [node.mountpoint / made.name for node in nodes]


def tree(place: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for name in os.listdir(place):
        path = place / name
        info, what = path.stat(), path.read_bytes()
        found[name] = (info.st_ino, info.st_mode, info.st_nlink, info.st_size, info.st_mtime_ns, what)
    return found


class Dice(random.Random):
    """One operation at random on one node; the model says what has to be there."""

    def step(self, place: Path, model: dict[str, bytes]) -> str:
        name = f"n{self.randrange(4)}"
        path = place / name
        if name not in model:
            data = self.randbytes(self.choice((0, 5, 3_000, 9_000)))
            path.write_bytes(data)
            model[name] = data
            return f"make {name} of {len(data)}"
        kind = self.choice(("write", "append", "truncate", "unlink", "rename", "link", "replace"))
        old = model[name]
        if kind == "write":
            at, data = self.randrange(12_000), self.randbytes(self.randrange(1, 6_000))
            with path.open("r+b", buffering=0) as file:
                file.seek(at)
                file.write(data)
            model[name] = old[:at] + bytes(max(0, at - len(old))) + data + old[at + len(data) :]
        elif kind == "append":
            with path.open("ab", buffering=0) as file:
                file.write(b"more")
            model[name] = old + b"more"
        elif kind == "truncate":
            size = self.randrange(12_000)
            os.truncate(path, size)
            model[name] = old[:size] + bytes(max(0, size - len(old)))
        elif kind == "unlink":
            path.unlink()
            del model[name]
        else:
            target = f"n{self.randrange(4)}"
            if target == name:
                return "nothing"
            if kind == "link":
                with contextlib.suppress(FileExistsError):
                    os.link(path, place / target)
                    path.unlink()
                    model[target] = model.pop(name)
            else:
                os.rename(path, place / target)
                model[target] = model.pop(name)
        return f"{kind} {name}"


def test_each_step_on_a_node_is_seen_on_all(places: list[Path], seed: int) -> None:
    dice, model = Dice(seed), dict[str, bytes]()
    for step in range(STEPS // 2):
        done = dice.step(dice.choice(places), model)
        trees = [tree(place) for place in places]
        assert trees[0] == trees[1] == trees[2], (step, done)
        assert {name: row[-1] for name, row in trees[0].items()} == model, (step, done)


def test_attributes_links_and_directories(places: list[Path]) -> None:
    one, two, three = places
    (one / "f").write_bytes(b"x")
    os.chmod(two / "f", 0o640)
    os.setxattr(three / "f", "user.a", b"1")
    os.symlink("f", one / "s")
    os.utime(two / "f", ns=(5, 7))
    assert [(p / "f").stat().st_mode & 0o777 for p in places] == [0o640] * 3
    assert [os.getxattr(p / "f", "user.a") for p in places] == [b"1"] * 3
    assert [(p / "f").stat().st_mtime_ns for p in places] == [7] * 3 and os.readlink(three / "s") == "f"
    (two / "d").mkdir()
    (three / "d" / "in").write_bytes(b"")
    with pytest.raises(OSError, match="not empty"):
        (one / "d").rmdir()
    (one / "d" / "in").unlink()
    (two / "d").rmdir()
    assert sorted(os.listdir(three)) == ["f", "s"] and not (one / "d").exists()
    (two / "f").unlink()
    (one / "f").mkdir()
    assert (three / "f").is_dir()


def test_open_files_see_what_others_write(places: list[Path]) -> None:
    (places[0] / "f").touch()
    files = [os.open(place / "f", os.O_RDWR) for place in places]
    try:
        assert [os.read(fd, 10) for fd in files] == [b""] * 3
        os.pwrite(files[1], b"hello", 0)
        assert [os.pread(fd, 10, 0) for fd in files] == [b"hello"] * 3 and [os.fstat(fd).st_size for fd in files] == [5] * 3
        os.pwrite(files[2], b"end", 100_000)
        assert all(os.pread(fd, 200_000, 0) == b"hello" + bytes(99_995) + b"end" for fd in files)
        os.ftruncate(files[0], 3)
        assert [os.pread(fd, 10, 0) for fd in files] == [b"hel"] * 3 and [os.lseek(fd, 0, os.SEEK_END) for fd in files] == [3] * 3
        os.posix_fallocate(files[1], 0, 50)
        assert [os.fstat(fd).st_size for fd in files] == [50] * 3
    finally:
        for fd in files:
            os.close(fd)


def test_one_file_written_by_all_in_turn(places: list[Path], seed: int) -> None:
    dice, model = random.Random(seed), bytearray(FILE_BYTES)
    (places[0] / "f").write_bytes(model)
    files = [os.open(place / "f", os.O_RDWR) for place in places]
    try:
        for _ in range(STEPS):
            at, data = dice.randrange(FILE_BYTES - 9_000), dice.randbytes(dice.randrange(1, 9_000))
            assert os.pwrite(dice.choice(files), data, at) == len(data)
            model[at : at + len(data)] = data
            assert os.pread(dice.choice(files), len(data) + 20, max(0, at - 10)) == model[max(0, at - 10) :][: len(data) + 20]
        assert all(os.pread(fd, FILE_BYTES + 1, 0) == model for fd in files)
    finally:
        for fd in files:
            os.close(fd)


def appending(path: Path, number: int, rounds: Iterable[int], size: int, failed: list[BaseException]) -> threading.Thread:
    def work() -> None:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            for turn in rounds:
                record = b"%d-%d." % (number, turn)
                record += b"%d" % number * (size - len(record) - 1) + b"\n"
                assert os.write(fd, record) == size
            os.close(fd)
        except BaseException as err:
            failed.append(err)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize(("rounds", "size"), [(APPENDS, 100), (4, (1 << 20) - 4_096)])
def test_appends_from_all_nodes_are_whole_and_all_there(places: list[Path], rounds: int, size: int) -> None:
    (places[0] / "log").touch()
    failed: list[BaseException] = []
    threads = [appending(place / "log", number, range(rounds), size, failed) for number, place in enumerate(places)]
    for thread in threads:
        thread.join(END_S)
    assert not failed, failed
    lines = (places[0] / "log").read_bytes().splitlines(keepends=True)
    for number in range(3):
        mine = [line for line in lines if line.startswith(b"%d-" % number)]
        assert [line.split(b".")[0] for line in mine] == [b"%d-%d" % (number, turn) for turn in range(rounds)]
        assert all(len(line) == size and not line.split(b".")[1].strip(b"%d\n" % number) for line in mine)
    assert len(lines) == 3 * rounds


Load = Callable[[Node, Path], object]


def measured(cluster: Cluster, places: list[Path], load: Load, before: Load = lambda node, place: None) -> tuple[Counter[str], int, Path]:
    """What a load costs the leader, by a node that does not lead in a directory of its own: requests by kind, and bytes on its interface;
    and that directory.  Where another one leads afterwards (a busy machine may bring that about), nothing was measured, and it is done
    again."""
    for _ in range(3):
        leading = cluster.await_leader()
        number = next(at for at, node in enumerate(cluster.nodes) if node is not leading)
        node, place = cluster.nodes[number], places[number] / f"own{len(os.listdir(places[number]))}"
        place.mkdir()
        before(node, place)
        carried, asked = cluster.network.carried(cluster.machine(leading)), cluster.requests()
        load(node, place)
        passed, made = cluster.network.carried(cluster.machine(leading)) - carried, cluster.requests() - asked
        if cluster.await_leader() is leading:
            return made, passed, place
    raise AssertionError("three times another one led afterwards")


def test_data_passes_by_the_leader(cluster: Cluster, places: list[Path], figures: list[str], seed: int) -> None:
    """While a node writes, its bytes go to the disk: the leader is asked for places, not given data."""
    data = random.Random(seed).randbytes(1 << 20)

    def stream(_node: Node, place: Path) -> None:
        with (place / "big").open("wb", buffering=0) as file:
            for _ in range(STREAM_MIB):
                assert file.write(data) == len(data)
            os.fsync(file.fileno())

    made, passed, place = measured(cluster, places, stream)
    busy = sum(count for kind, count in made.items() if kind not in IN_TIME)
    share = passed / (STREAM_MIB << 20)
    row = f"{STREAM_MIB} MiB written on a shared mount: {share:.2%} of it on the leader's interface"
    figures.append(f"{row}, {busy * 1024 // STREAM_MIB} requests/GiB")
    assert passed > 0 and share < 0.01 and STREAM_MIB // 64 < busy < REQUESTS_PER_GIB_MAX * STREAM_MIB / 1024, (share, made)
    assert [(other / place.name / "big").stat().st_size for other in places] == [STREAM_MIB << 20] * 3


MAKES: dict[str, Callable[[Path], object]] = {
    "create": lambda path: path.write_bytes(bytes(4_096)),
    "rename": lambda path: os.rename(path, path.with_suffix(".new")),
    "unlink": lambda path: path.with_suffix(".new").unlink(),
}


def make(kinds: list[str], node: Node, place: Path) -> None:
    for kind in kinds:
        for file in range(CREATES):
            MAKES[kind](place / f"f{file}")
        node.cli("flush", str(node.mountpoint))


def test_what_a_node_makes_by_itself_costs_little_more_than_its_entries(cluster: Cluster, places: list[Path], figures: list[str]) -> None:
    """Counts of requests, no times: create, write and close; rename; unlink.  Each is one entry; the rest is asked for by many at once."""
    kinds = list(MAKES)
    for at, what in enumerate(kinds):
        made, _, _ = measured(cluster, places, functools.partial(make, [what]), functools.partial(make, kinds[:at]))
        busy = {kind: count for kind, count in made.items() if kind not in BESIDE}
        figures.append(f"{what}, one node in its directory: {sum(busy.values()) * 1_000 // CREATES} requests per 1,000")
        assert made[what.title()] == CREATES and sum(busy.values()) < CREATES * 2, busy


def used_inodes(nodes: list[Node]) -> int:
    return int(next(row for row in nodes[0].ask("volume", "ls") if row["name"] == VOLUME)["used_inodes"])


def named(root: Path) -> set[int]:
    """The inodes that have a name, without the root."""
    return {os.lstat(os.path.join(at, name)).st_ino for at, directories, files in os.walk(root) for name in directories + files}


def test_an_open_file_outlives_its_name_on_another_node(nodes: list[Node], places: list[Path]) -> None:
    before = 1 + len(named(nodes[0].mountpoint))
    await_true("what other tests removed to go", lambda: used_inodes(nodes) == before, END_S, 0.2)
    (places[0] / "f").write_bytes(b"kept")
    fd = os.open(places[1] / "f", os.O_RDWR)
    (places[2] / "f").unlink()
    (places[0] / "g").write_bytes(b"new")
    assert not (places[1] / "f").exists() and os.fstat(fd).st_nlink == 0
    for _ in range(3):
        assert os.pread(fd, 9, 0) == b"kept"
        os.pwrite(fd, b"KEPT", 0)
        assert os.pread(fd, 9, 0) == b"KEPT"
        os.pwrite(fd, b"kept", 0)
    other = os.open(places[2] / "g", os.O_RDONLY)
    (places[0] / "h").write_bytes(b"over")
    os.rename(places[0] / "h", places[0] / "g")
    assert os.pread(other, 9, 0) == b"new" and (places[2] / "g").read_bytes() == b"over"
    os.close(fd)
    os.close(other)
    await_true("the files to go", lambda: used_inodes(nodes) == before + 1, END_S, 0.2)


HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
getattr(fcntl, sys.argv[2])(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holding(path: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that holds a lock (and says so), until its input ends."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path), kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as it:
        try:
            yield it
        finally:
            it.kill()


def said(process: subprocess.Popen[str]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == "held\n"


@pytest.mark.parametrize("kind", ["lockf", "flock"])
def test_locks_exclude_block_and_wake(places: list[Path], kind: str) -> None:
    (places[0] / "f").touch()
    lock = getattr(fcntl, kind)
    with holding(places[0] / "f", kind) as first:
        assert said(first)
        with (places[1] / "f").open("r+b") as file:
            with pytest.raises(OSError) as refused:
                lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            assert refused.value.errno in (errno.EAGAIN, errno.EACCES)
        with holding(places[2] / "f", kind) as second:
            first.communicate()
            assert said(second)


def leader(nodes: list[Node]) -> Node:
    terms = {node: leading_term(node.run / "meta.sock") for node in nodes}
    return max(nodes, key=lambda node: terms[node])


def test_a_killed_worker_or_leader_loses_nothing_and_keeps_locks(nodes: list[Node], places: list[Path]) -> None:
    failed: list[BaseException] = []
    over, done = threading.Event(), [0, 0, 0]  # records of each

    def until_over(number: int) -> Iterator[int]:
        while done[number] < MANY or not over.is_set():
            yield done[number]
            done[number] += 1

    (places[0] / "log").touch()
    (places[1] / "f").touch()
    with holding(places[1] / "f", "lockf") as holder:
        assert said(holder)
        threads = [appending(place / "log", number, until_over(number), 100, failed) for number, place in enumerate(places)]
        try:
            for role in ("worker", "worker", "daemon"):
                before = list(done)
                await_true("appends of all", lambda before=before: failed or all(done[n] >= before[n] + 10 for n in range(3)), END_S)
                assert not failed, failed
                (nodes[1] if role == "worker" else leader(nodes)).strike([role])
        finally:
            over.set()
        for thread in threads:
            thread.join(END_S)
        assert not failed, failed
        with (places[2] / "f").open("r+b") as file, pytest.raises(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    lines = (places[2] / "log").read_bytes().splitlines()
    assert sorted(line.split(b".")[0] for line in lines) == sorted(b"%d-%d" % (n, i) for n in range(3) for i in range(done[n]))
    assert {len(line) for line in lines} == {99}


def test_the_locks_of_a_dead_node_end_with_its_session(nodes: list[Node], places: list[Path]) -> None:
    """Last: the machine dies, the others have its lock after the TTL, and go on."""
    (places[0] / "f").write_bytes(b"before")
    with holding(places[2] / "f", "lockf") as holder:
        assert said(holder)
        with holding(places[0] / "f", "lockf") as heir:
            nodes[2].kill_everything()
            assert said(heir)
            (places[1] / "f").write_bytes(b"after")
            assert (places[0] / "f").read_bytes() == b"after"
    nodes[2].detach_mount()
    nodes[2].start()
    mount(nodes[2])
    assert (places[2] / "f").read_bytes() == b"after"
