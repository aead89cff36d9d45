"""A database is started on one node, the node is killed, it is started on the next, again and again: what was committed is there.

A transaction counts as committed when the program that made it has said so after its commit returned.  The programs on the killed node are
killed too; the node comes up again before the next one dies, so that a majority of the metadata lives.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from buildtools.nodes import await_true
from tests.posix.test_software_databases import Postgres
from tests.rigs.external_programs import postgres, run
from tests.shared.rig import WAIT_S, Machines, SharedVolume, needs_mappings

pytestmark = [pytest.mark.root, pytest.mark.timeout(1200)]
COMMITS = 12  # in each turn, before the node dies

WRITER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=120, isolation_level=None)
base.execute("pragma synchronous=full")
assert base.execute("pragma journal_mode=" + sys.argv[2]).fetchone() == (sys.argv[2],)
base.execute("create table if not exists ledger (n integer primary key, filling)")
number = base.execute("select coalesce(max(n), 0) from ledger").fetchone()[0]
while True:
    number += 1
    base.execute("begin immediate")
    base.execute("insert into ledger values (?, ?)", (number, b"%d" % number * 300))
    base.execute("commit")
    print(number, flush=True)
"""


class Said:
    """The numbers that a program prints, one a line; the last whole one is what it has promised."""

    def __init__(self, argv: list[str], stdin: int | None = None, **options: object) -> None:
        self.child = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload]
        self.numbers: list[int] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        for line in self.child.stdout:
            if line.strip().isdigit() and line.endswith("\n"):
                self.numbers.append(int(line))

    def awaited(self, count: int) -> None:
        def enough() -> bool:
            assert self.child.poll() is None, self.child.stderr.read()[-2000:]
            return len(self.numbers) >= count

        await_true(f"{count} commits", enough, WAIT_S)

    def kill(self) -> None:
        self.child.kill()
        self.child.wait()
        self._thread.join(60)
        self.child.stderr.close()
        self.child.stdout.close()


def turns(machines: Machines, count: int, work: Callable[[int], None]) -> Iterator[int]:
    """`work` on a node, which it leaves dead; the next one goes on while it comes up."""
    for turn in range(count):
        node = turn % 3
        try:
            work(node)
        finally:
            machines.revive(node)
        yield turn


@pytest.mark.parametrize("journal", ["delete", pytest.param("wal", marks=needs_mappings)])
def test_sqlite_moves_from_dead_node_to_node(machines: Machines, places: list[Path], figures: list[str], journal: str) -> None:
    run_sqlite(machines, places, figures, journal, 4 if journal == "delete" else 2)


@pytest.mark.soak
@pytest.mark.parametrize("journal", ["delete", pytest.param("wal", marks=needs_mappings)])
def test_sqlite_moves_ten_times(machines: Machines, places: list[Path], figures: list[str], journal: str) -> None:
    run_sqlite(machines, places, figures, journal, 10)


def run_sqlite(machines: Machines, places: list[Path], figures: list[str], journal: str, count: int) -> None:
    promised = 0
    began = time.monotonic()

    def work(node: int) -> None:
        nonlocal promised
        said = Said([sys.executable, "-c", WRITER, str(places[node] / "base"), journal])
        try:
            said.awaited(COMMITS)
            machines.kill(node)
        finally:
            said.kill()
        assert said.numbers[0] in (promised + 1, promised + 2), "each is the next one; one more may be there whose program was killed"
        promised = said.numbers[-1]

    for turn in turns(machines, count, work):
        with closing(sqlite3.connect(places[(turn + 1) % 3] / "base", timeout=WAIT_S)) as base:
            assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
            last, rows = base.execute("select max(n), count(*) from ledger").fetchone()
            assert last == rows and last in (promised, promised + 1), (last, rows, promised)
            assert all(filling == b"%d" % number * 300 for number, filling in base.execute("select n, filling from ledger"))
    took = time.monotonic() - began
    figures.append(f"sqlite ({journal}) on {count} nodes in turn, each killed: {promised} commits, all there, {took:.0f} s")


@pytest.fixture
def base(machines: Machines, shared_volume: SharedVolume, places: list[Path], tmp_path: Path) -> Iterator[list[Postgres]]:
    """The same files as each node's server sees them; made on a local disk and copied, since initdb writes much."""
    for program in ("initdb", "pg_ctl", "psql", "pg_amcheck"):
        postgres(program)
    for folder in (machines.cluster.directory, *(node.directory for node in machines.nodes), *tmp_path.parents[:3], tmp_path):
        os.chmod(folder, 0o755)
    (tmp_path / "local").mkdir()
    local, made = Postgres(tmp_path / "local"), [Postgres(place) for place in places]
    local.call("initdb", "-D", str(local.data), "-A", "trust", "-E", "UTF8", "--no-sync", "--wal-segsize=1")
    with (local.data / "postgresql.conf").open("a") as file:
        file.write("listen_addresses = ''\nunix_socket_directories = '.'\nshared_buffers = 16MB\nmin_wal_size = 2MB\n")
        file.write("recovery_init_sync_method = syncfs\n")
    copy_by_all(local.data, [server.data for server in made])
    for node, root in zip(machines.nodes, shared_volume.roots, strict=True):
        node.cli("flush", str(root), timeout_s=WAIT_S)
    try:
        yield made
    finally:
        for server in made:
            server.close()


def copy_by_all(source: Path, targets: list[Path]) -> None:
    """A tree whose `base` has most of the files: each node copies some of it."""
    run("tar", "-C", str(source), "--exclude=./base/*", "-cf", str(source.parent / "most.tar"), ".")
    targets[0].mkdir()
    run("tar", "-C", str(targets[0]), "-xpf", str(source.parent / "most.tar"), timeout_s=300)
    folders = sorted((source / "base").iterdir())
    copying = [subprocess.Popen(["cp", "-a", str(one), str(targets[n % 3] / "base")]) for n, one in enumerate(folders)]
    assert [child.wait(300) for child in copying] == [0] * len(folders)


def ledger(server: Postgres, first: int) -> Said:
    """psql that commits one number after the other and says each."""
    said = Said([postgres("psql"), "-XAtq", "-v", "ON_ERROR_STOP=1"], subprocess.PIPE, env=server.env, cwd="/")

    def tell() -> None:
        try:
            for number in range(first, first + 100_000):
                said.child.stdin.write(f"insert into ledger values ({number}, repeat('{number} ', 200));\n\\echo {number}\n")
                said.child.stdin.flush()
        except (OSError, ValueError):
            return

    threading.Thread(target=tell, daemon=True).start()
    return said


def run_postgres(machines: Machines, base: list[Postgres], figures: list[str], count: int) -> None:
    promised, began = 0, time.monotonic()

    def started(node: int) -> int:
        """The number of commits, after all of them were found."""
        base[node].env["PGHOST"] = str(base[node].data)
        base[node].start()
        if promised == 0:
            base[node].sql("create table ledger (n integer primary key, filling text)")
        last, rows = map(int, base[node].sql("select coalesce(max(n), 0), count(*) from ledger").split("|"))
        assert last == rows and last in (promised, promised + 1), (last, rows, promised)
        return last

    def work(node: int) -> None:
        nonlocal promised
        last = started(node)
        said, pids = ledger(base[node], last + 1), base[node].pids()
        try:
            said.awaited(COMMITS)
            machines.kill(node)
        finally:
            for pid in pids:
                subprocess.run(["kill", "-9", str(pid)], capture_output=True, check=False)
            said.kill()
        promised = said.numbers[-1]
        await_true("the end of the server", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), WAIT_S)

    for _ in turns(machines, count, work):
        pass
    started(count % 3)
    base[count % 3].call("pg_amcheck", "--install-missing", "--heapallindexed", "postgres")
    base[count % 3].call("pg_ctl", "-D", str(base[count % 3].data), "-w", "-m", "fast", "stop")
    figures.append(f"PostgreSQL on {count} nodes in turn, each killed: {promised} commits, {time.monotonic() - began:.0f} s")


def test_postgresql_moves_from_dead_node_to_node(machines: Machines, base: list[Postgres], figures: list[str]) -> None:
    run_postgres(machines, base, figures, 2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_postgresql_moves_ten_times(machines: Machines, base: list[Postgres], figures: list[str]) -> None:
    run_postgres(machines, base, figures, 10)
