"""The demonstration of `build.py up`: three nodes by one token on one disk, real files, programs that trust them, kills that harm nobody,
a restart, and a node's death.

Runs under the venv's interpreter.  The second `up` on the same directory repairs what is missing, verifies what the first one wrote
(manifest.json beside the node) and demonstrates again; a failure leaves everything in place to be looked at.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from awsomefsd.base.limits import SESSION_TTL_MS
from buildtools import chaos, sharing
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from buildtools.say import CHECKOUT, BuildError, bad, good, line, size, step

FILES_MAX = 1_500  # each is replicated to three nodes before it is there
FILES_MIN = 1_000  # fewer are no real tree
BYTES_MAX = 300 << 20
KILLS = [("worker",), ("daemon",), ("worker",), ("worker", "daemon"), ("worker",), ("keeper",), ("worker",), ("daemon",)]
LEADER_KILLS = [("leader",)] * 5
FORM_S = 120.0
READERS = 8
SAMPLE = 100
ALONE = ""  # no mount options: the volume is one node's
SQLITE_WRITERS = 4
SQLITE_TRANSFERS = 60
C_PROGRAM = r"""
#include <stdio.h>
#include <string.h>
int main(int argc, char **argv) {
    FILE *out = fopen(argv[1], "w+");
    char line[64] = "";
    if (!out) return 1;
    for (int i = 0; i < 1000; i++) fprintf(out, "line %d\n", i);
    rewind(out);
    while (fgets(line, sizeof line, out)) {}
    fclose(out);
    printf("%s", line);
    return strcmp(line, "line 999\n") != 0;
}
"""


@contextlib.contextmanager
def bar(console: Console, text: str, total: int) -> Iterator[Progress]:
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        progress.add_task(text, total=total)
        yield progress


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()


def real_tree() -> list[Path]:
    """Real files, 1,500 or so: an even sample of /usr/share, else of Python's library, up to FILES_MAX and BYTES_MAX."""
    chosen: list[Path] = []
    for root in (Path("/usr/share"), Path(os.__file__).parent):
        found = [Path(folder, name) for folder, _, names in os.walk(root) for name in sorted(names)]
        files = [path for path in found if not path.is_symlink() and path.is_file()]
        chosen = sorted(files)[:: max(1, len(files) // FILES_MAX)][:FILES_MAX]
        if len(chosen) >= FILES_MIN:
            break
    total, bounded = 0, []
    for path in chosen:
        total += path.stat().st_size
        if total > BYTES_MAX:
            break
        bounded.append(path)
    return bounded


class Demonstration:
    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.node = cluster.nodes[0]  # its device, its volume, its mount
        self.console = Console(width=max(100, Console().width))
        self.figures: list[tuple[str, str]] = []
        self.manifest_path = cluster.directory / "manifest.json"
        self.token_path = cluster.directory / "token"
        self.seed = int(os.environ.get("AWSOMEFSD_SEED") or random.SystemRandom().randrange(1 << 20))

    def figure(self, name: str, value: str) -> None:
        self.figures.append((name, value))
        good(f"{name}: {value}")

    # --- the parts --------------------------------------------------------------------------------------------------------
    def bring_up(self) -> None:
        count = len(self.cluster.nodes)
        step(f"Founding a cluster: {count} nodes, each in a network namespace, one token")
        began = time.monotonic()
        self.cluster.prepare()
        self.cluster.share()
        self.write_token()
        fresh = not (self.node.state / "node.json").exists()
        self.launch()
        took = time.monotonic() - began
        self.figure("cluster made from one token" if fresh else "nodes run again", f"{count} voters, after {took:.1f} s")
        self.cluster.umount()  # what the last `up` ended with
        found = self.cluster.provision()
        good(f"one disk, {self.node.disk.resolve()}: node 1 added it, the other nodes found it by its superblock within {found:.1f} s")
        self.node.mount(ALONE)
        self.figure("the volume is mounted on node 1", f"after {time.monotonic() - began:.1f} s")
        for node in self.cluster.nodes:
            machine = self.cluster.machine(node)
            good(f"node {machine}: {self.cluster.address(node)} in namespace {self.cluster.namespace(node)}")
        good(f"the volume is mounted at {self.node.mountpoint} on node 1 alone; the next steps test this one mount with all its caches")
        self.cluster.write_env()

    def write_token(self) -> None:
        """The same for all; made offline, before there is any cluster.  It is in a file of root's, never in an argument."""
        if not self.token_path.exists():
            token = self.node.cli("token", "generate", "--expect", str(len(self.cluster.nodes)))
            descriptor = os.open(self.token_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                file.write(token)
        for node in self.cluster.nodes:
            node.founds = False
            node.settings |= {"AWSOMEFSD_TOKEN_FILE": str(self.token_path), "AWSOMEFSD_CLUSTER_NAME": node.directory.name}

    def launch(self) -> None:
        """All at once; until all are voters that the leader hears."""
        self.cluster.launch()
        for node in self.cluster.nodes:
            node.await_daemon(FORM_S)
        await_true(f"one cluster (logs in {self.cluster.directory}/n*/log)", self.cluster.whole, FORM_S, 0.05)

    def verify_manifest(self, when: str, node: Node | None = None, count: int = 0) -> None:
        """All files, or so many of them; several readers, for where each file costs round trips."""
        mountpoint = (node or self.node).mountpoint
        if not self.manifest_path.exists():
            return
        manifest = json.loads(self.manifest_path.read_text())
        names = sorted(manifest)[:: max(1, len(manifest) // count)] if count else list(manifest)
        drop_caches()

        def is_wrong(name: str) -> bool:
            path = mountpoint / name
            return not path.exists() or checksum(path) != manifest[name]

        wrong = []
        with bar(self.console, f"verifying {when}", len(names)) as progress, ThreadPoolExecutor(READERS) as readers:
            for name, bad_one in zip(names, readers.map(is_wrong, names), strict=True):
                wrong += [name] if bad_one else []
                progress.advance(progress.task_ids[0])
        if wrong:
            raise BuildError(f"{len(wrong)} of {len(names)} files are missing or differ {when}: {wrong[:5]}")
        self.figure(f"checksums equal {when}", f"{len(names):,} files")

    def copy_tree(self) -> None:
        step("Copying a real tree and comparing every checksum")
        sources = real_tree()
        target = self.node.mountpoint / "tree"
        if target.exists():
            shutil.rmtree(target)
        manifest, total, began = {}, 0, time.monotonic()
        with bar(self.console, "copying", len(sources)) as progress:
            for source in sources:
                place = target / source.relative_to("/")
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, place)
                manifest[str(place.relative_to(self.node.mountpoint))] = checksum(source)
                total += source.stat().st_size
                progress.advance(progress.task_ids[0])
        took = time.monotonic() - began
        self.figure("copied", f"{len(sources):,} files, {size(total)} in {took:.1f} s ({len(sources) / took:,.0f} files/s)")
        self.manifest_path.write_text(json.dumps(manifest))
        self.verify_manifest("after the copy")

    def build_program(self) -> None:
        step("Building and running a C program on the mount")
        folder = self.node.mountpoint / "program"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "main.c").write_text(C_PROGRAM)
        subprocess.run(["gcc", "-O1", "-o", "main", "main.c"], cwd=folder, check=True)
        said = subprocess.run(["./main", "out.txt"], cwd=folder, check=True, capture_output=True, text=True).stdout
        if said != "line 999\n":
            raise BuildError(f"the program said {said!r}")
        good("compiled, linked, ran, and read back what it wrote")

    def sqlite(self) -> None:
        step("sqlite: transfers by concurrent writers, then an integrity check")
        path = self.node.mountpoint / "accounts.db"
        for leftover in self.node.mountpoint.glob("accounts.db*"):
            leftover.unlink()
        began = time.monotonic()
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            database.execute("create table account (id integer primary key, balance integer)")
            database.executemany("insert into account values (?, 1000)", [(number,) for number in range(20)])
        problems: list[Exception] = []
        writers = [threading.Thread(target=transfer, args=(path, self.seed + number, problems)) for number in range(SQLITE_WRITERS)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        with contextlib.closing(sqlite3.connect(path)) as database:
            total = database.execute("select sum(balance) from account").fetchone()[0]
            verdict = database.execute("pragma integrity_check").fetchone()[0]
        if problems or total != 20_000 or verdict != "ok":
            raise BuildError(f"sqlite: sum {total} (expected 20000), integrity {verdict}, errors {problems}")
        count = SQLITE_WRITERS * SQLITE_TRANSFERS
        self.figure("sqlite", f"{count} transactions by {SQLITE_WRITERS} writers, {count / (time.monotonic() - began):.0f}/s, integrity ok")

    def kills(self) -> None:
        step(f"SIGKILL of worker, daemon and keeper in the middle of verified writes (seed {self.seed})")
        folder = self.node.mountpoint / "kills"
        shutil.rmtree(folder, ignore_errors=True)
        with bar(self.console, "killing", len(KILLS)) as progress:
            account = chaos.kill_under_load(
                self.node, folder, KILLS, clients=2, seed=self.seed, between=50, tell=lambda kill: progress.advance(progress.task_ids[0])
            )
        if account.errors:
            raise BuildError(f"errors under kills: {account.errors[:5]}")
        for row in account.lines():
            good(row)
        self.figures.append(("verified operations under kills", f"{account.operations:,} ({account.per_second:,.0f}/s), 0 errors"))
        self.figures.append(("kills", f"{len(account.kills)} (every one proven by a new pid)"))
        self.figures.append(("longest stall at a worker's death", f"{account.longest_stall_s('worker') * 1000:.0f} ms"))
        self.finals = account.finals

    def leader_kills(self) -> None:
        step("SIGKILL of the leader while files are written")
        folder = self.node.mountpoint / "leaders"
        shutil.rmtree(folder, ignore_errors=True)
        with bar(self.console, "killing", len(LEADER_KILLS)) as progress:
            account = chaos.kill_under_load(
                self.node,
                folder,
                LEADER_KILLS,
                clients=2,
                seed=self.seed + 1,
                between=50,
                tell=lambda kill: progress.advance(progress.task_ids[0]),
                strike=lambda roles: self.strike_leader(),
            )
        if account.errors:
            raise BuildError(f"errors while leaders were killed: {account.errors[:5]}")
        for row in account.lines():
            good(row)
        self.figure("leaders killed", f"{len(account.kills)}, {account.operations:,} verified operations, 0 errors")
        self.figures.append(("longest stall at a leader's death", f"{account.longest_stall_s('leader'):.2f} s"))
        self.figures.append(("its daemon was started again within", f"{max(kill.replaced_s for kill in account.kills):.2f} s"))
        await_true("three voters again", self.cluster.whole, FORM_S, 0.05)
        self.finals += account.finals

    def strike_leader(self) -> None:
        leader = self.cluster.await_leader()
        leader.strike(["daemon"])

    def restart(self) -> None:
        step("Unmounting, stopping everything, starting everything again, and mounting the volume on every node")
        began = time.monotonic()
        self.cluster.umount()
        self.cluster.stop()
        self.launch()
        self.cluster.provision()
        self.cluster.mount()
        self.figure("all stopped, and mounted again on every node, after", f"{time.monotonic() - began:.1f} s")
        self.verify_manifest("after the restart, on node 3", self.cluster.nodes[-1])
        wrong = chaos.check_after_remount(self.finals)
        if wrong:
            raise BuildError(f"after the restart: {wrong[:5]}")
        good("the files of the kill run are byte for byte what was acknowledged")

    def one_disk(self) -> None:
        step("One disk: what one node writes, the others read")
        passed = sharing.pass_file(self.cluster, self.seed)
        rates = ", ".join(f"{size(passed.bytes / took)}/s" for took in passed.read_s)
        self.figure(f"{size(passed.bytes)} written on node 1", f"{size(passed.bytes / passed.wrote_s)}/s; read on nodes 2 and 3: {rates}")
        good(f"{sharing.append_in_turn(self.cluster)} lines appended by three nodes in turn, each seen by all at once")
        victim = self.cluster.nodes[-1]
        step("SIGKILL of all of node 3, where a program holds a lock")
        death = sharing.node_ends(self.cluster, victim, good)
        which = ", which led," if death.led else ""
        lives = f"a session ends after {SESSION_TTL_MS // 1_000} s"
        self.figure(f"node 3{which} was killed: node 1 got its lock", f"after {death.heir_s:.1f} s ({lives})")
        self.figure("node 3 started and mounted again", f"after {death.again_s:.1f} s")
        self.verify_manifest("after the death, on node 3", victim, SAMPLE)
        await_true("three voters again", self.cluster.whole, FORM_S, 0.05)

    def close(self) -> None:
        step("awsomefsd status")
        line(self.node.cli("status", accept=(0, 3)))
        table = Table(title="What was measured", title_justify="left")
        table.add_column("what")
        table.add_column("figure", justify="right")
        for row in self.figures:
            table.add_row(*row)
        self.console.print(table)
        directory, default = self.cluster.directory, CHECKOUT / ".awsomefs-demo"
        suffix = "" if directory == default else f" --dir {directory}"
        line("What to type next:")
        first, second, third = (node.mountpoint for node in self.cluster.nodes)
        line(f"  echo hello > {first}/a; cat {second}/a {third}/a   # $MOUNT1, $MOUNT2, $MOUNT3: three nodes, one disk")
        line(f"  . {directory / 'env'} && $AWSOMEFSD status   # the CLI against this node")
        line(f"  . {directory / 'env'} && kill -9 $($WORKER_PIDS)   # all workers die; no program gets an error")
        line(f"  . {directory / 'env'} && kill -9 $($LEADER_PID)    # the leader dies; after a pause $AWSOMEFSD2 status shows the next one")
        line(f"  . {directory / 'env'} && ip netns exec $NETNS3 ping -c1 {self.cluster.address(self.node)}")
        line(f"  python3 build.py down{suffix}        # removes the demonstration; .venv and awsomefsd.egg-info stay")

    def run(self) -> None:
        self.bring_up()
        self.verify_manifest("from last time")
        self.copy_tree()
        self.build_program()
        self.sqlite()
        self.kills()
        self.leader_kills()
        self.restart()
        self.one_disk()
        self.close()


def transfer(path: Path, seed: int, problems: list[Exception]) -> None:
    """One sqlite writer: moves money between accounts; the sum never changes."""
    choose = random.Random(seed)
    try:
        with contextlib.closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
            for _ in range(SQLITE_TRANSFERS):
                source, target = choose.sample(range(20), 2)
                amount = choose.randrange(100)
                database.execute("begin immediate")
                database.execute("update account set balance = balance - ? where id = ?", (amount, source))
                database.execute("update account set balance = balance + ? where id = ?", (amount, target))
                database.execute("commit")
    except sqlite3.Error as err:
        problems.append(err)


def drop_caches() -> None:
    """So that what is read comes from the filesystem, not from the page cache; needs root, and some containers refuse."""
    with contextlib.suppress(OSError):
        Path("/proc/sys/vm/drop_caches").write_text("3")


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--dir", type=Path, required=True)
    arguments.add_argument("--size", type=int, required=True)
    chosen = arguments.parse_args()
    cluster = Cluster(chosen.dir, size_bytes=chosen.size)
    try:
        Demonstration(cluster).run()
    except (BuildError, OSError, subprocess.CalledProcessError, KeyboardInterrupt) as err:
        bad(str(err) or "interrupted")
        line(f"  nothing was removed; logs are in {cluster.directory}/n*/log; `python3 build.py down` removes the demonstration")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
