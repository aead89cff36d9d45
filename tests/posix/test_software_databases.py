"""Databases on a mount, with their own load and SIGKILLs of the worker: no transaction fails, and all that was committed is there."""

from __future__ import annotations

import os
import pwd
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from buildtools.nodes import Node, await_true
from tests.rigs.external_programs import killing_workers, postgres, run

pytestmark = pytest.mark.root
WRITERS, TRANSACTIONS = 3, 80
ACCOUNTS = 50
PGBENCH = ("-n", "-c", "4", "-j", "2")  # -n: else it empties its history
SUMS = "select (select sum(abalance) from pgbench_accounts), (select sum(bbalance) from pgbench_branches), " \
    "(select sum(tbalance) from pgbench_tellers), (select coalesce(sum(delta), 0) from pgbench_history)"  # fmt: skip


@pytest.fixture(scope="module")
def node(make_node):
    return make_node()


# --- sqlite -----------------------------------------------------------------------------------------------------------------------
WRITER = """
import random, sqlite3, sys
path, seed, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
chooser = random.Random(seed)
base = sqlite3.connect(path, timeout=120, isolation_level=None)
for _ in range(count):
    base.execute("begin immediate")
    amount = chooser.randrange(100)
    one, other = chooser.randrange(50), chooser.randrange(50)
    base.execute("update account set balance = balance - ? where id = ?", (amount, one))
    base.execute("update account set balance = balance + ? where id = ?", (amount, other))
    base.execute("insert into transfer values (?, ?, ?, ?)", (one, other, amount, chooser.randbytes(chooser.choice((10, 3000)))))
    base.execute("update counter set n = n + 1")
    base.execute("commit")
base.close()
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite(node, seed, figures, journal):
    """Several processes move money; what each committed is counted in the same transaction."""
    path = node.mountpoint / f"{journal}.db"
    with closing(sqlite3.connect(path)) as base:
        assert base.execute(f"pragma journal_mode={journal}").fetchone() == (journal,)
        base.executescript(
            "create table account (id integer primary key, balance); create table counter (n); insert into counter values (0);"
            "create table transfer (one, other, amount, filling); create index by_one on transfer (one, amount);"
        )
        base.executemany("insert into account values (?, 1000)", [(n,) for n in range(ACCOUNTS)])
        base.commit()
    with killing_workers(node) as hit:
        argv = [sys.executable, "-c", WRITER, str(path)]
        writers = [subprocess.Popen([*argv, str(seed * 10 + n), str(TRANSACTIONS)], stderr=subprocess.PIPE) for n in range(WRITERS)]
        said = [writer.communicate(timeout=200)[1] for writer in writers]
    assert not any(said), said
    with closing(sqlite3.connect(path)) as base:
        assert base.execute("pragma integrity_check").fetchall() == [("ok",)]
        assert base.execute("select n from counter").fetchone() == (WRITERS * TRANSACTIONS,)
        assert base.execute("select count(*) from transfer").fetchone() == (WRITERS * TRANSACTIONS,)
        assert base.execute("select sum(balance), count(*) from account").fetchone() == (1000 * ACCOUNTS, ACCOUNTS)
    figures.append(f"sqlite, journal {journal}: {WRITERS * TRANSACTIONS} transactions of {WRITERS} processes, {len(hit)} kills")


# --- PostgreSQL -------------------------------------------------------------------------------------------------------------------
class Postgres:
    """A server of our own in a directory: own socket, no port, no service."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.data = folder, folder / "data"
        self.user = pwd.getpwnam("postgres")
        os.chown(folder, self.user.pw_uid, self.user.pw_gid)
        self.env = {"PATH": os.environ["PATH"], "PGHOST": str(folder), "PGUSER": "postgres", "PGDATABASE": "postgres", "LC_ALL": "C"}

    def call(self, program: str, *words: str) -> str:
        user = {"user": self.user.pw_uid, "group": self.user.pw_gid, "extra_groups": []}
        return run(postgres(program), *words, env=self.env, cwd=self.folder, timeout_s=200, **user)

    def make(self) -> None:
        self.call("initdb", "-D", str(self.data), "-A", "trust", "-E", "UTF8")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(f"listen_addresses = ''\nunix_socket_directories = '{self.folder}'\nshared_buffers = 16MB\n")

    def start(self) -> None:
        log = self.folder / "log"
        try:
            self.call("pg_ctl", "-D", str(self.data), "-w", "-t", "180", "-l", str(log), "start")
        except AssertionError as err:
            raise AssertionError(f"{err}\n{log.read_text()[-3000:]}") from None

    def sql(self, text: str) -> str:
        return self.call("psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-c", text).strip()

    def pids(self) -> list[int]:
        """The server's processes, its postmaster first."""
        try:
            first = int((self.data / "postmaster.pid").read_text().split()[0])
            return [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        except (OSError, ValueError, IndexError):
            return []

    def kill(self) -> None:
        """SIGKILL of all of it."""
        pids = self.pids()
        assert len(pids) > 1, "no server runs"
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        await_true("the end of the server", lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), 60)

    def check(self) -> list[str]:
        """Money is neither made nor lost, and the indexes agree with their tables.  Returns the sums."""
        sums = self.sql(SUMS).split("|")
        assert len(set(sums)) == 1, sums
        self.call("pg_amcheck", "--install-missing", "--heapallindexed", "postgres")
        return sums

    def close(self) -> None:
        for pid in self.pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


@pytest.fixture
def server(node: Node) -> Iterator[Postgres]:
    for program in ("initdb", "pg_ctl", "pgbench", "pg_amcheck", "psql"):
        postgres(program)
    os.chmod(node.directory, 0o711)  # the way to the mount, for a user who is not root
    folder = node.mountpoint / "pg"
    folder.mkdir()
    made = Postgres(folder)
    try:
        made.make()
        made.start()
        yield made
    finally:
        made.close()


def test_postgresql(node, server, figures):
    """pgbench over kills of the worker; then a kill of the server itself in the middle of its load, and its recovery."""
    server.call("pgbench", "-i", "-q", "-s", "1", "postgres")
    with killing_workers(node) as hit:
        server.call("pgbench", *PGBENCH, "-t", "100", "postgres")
    server.check()
    assert server.sql("select count(*) from pgbench_history") == "400"
    words = [postgres("pgbench"), *PGBENCH, "-T", "60", "postgres"]
    load = subprocess.Popen(words, env=server.env, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        await_true("progress", lambda: int(server.sql("select count(*) from pgbench_history")) > 600, 60, 0.1)
        server.kill()
    finally:
        load.kill()
        load.wait(60)
    began = time.monotonic()
    server.start()
    server.check()
    assert int(server.sql("select count(*) from pgbench_history")) > 600
    figures.append(f"PostgreSQL: {len(hit)} kills of the worker under pgbench, then recovery in {time.monotonic() - began:.1f} s")
    server.call("pg_ctl", "-D", str(server.data), "-w", "-m", "fast", "stop")
