"""A node under load that dies at chosen failpoints: what brings a process there, the proof that it died, and that the node goes on.

The writer confirms a file by a line outside the mount, only after fsync of the file returned.  It goes on after errors: an
unmount that is killed half way leaves none of its files open.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from random import Random

from awsomefsd.base.errors import Error
from awsomefsd.base.failpoints import POINTS, FailpointControl
from awsomefsd.keeper.client import KeeperClient
from buildtools import procs
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError

FIRE_S, GO_ON_S, AGAIN_S = 60.0, 60.0, 15.0  # a start under load takes seconds; killed again meanwhile, it reaches nothing
SELDOM = ("journal.file", "journal.drop", "segment", "reservation", "store", "truncate", "checkpoint")

WRITER = r"""
import hashlib, os, random, sys, time
directory, manifest, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
choose = random.Random(seed)
number = 0
kept = []
with open(manifest, "a", buffering=1) as told:
    while True:
        number += 1
        path = os.path.join(directory, f"{seed}-{number}")
        try:
            data = choose.randbytes(choose.choice((1, 500, 4096, 30_000, 200_000, 200_000, 3_000_000)))
            fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
            try:
                os.write(fd, data[: len(data) // 2])
                for piece in range(choose.choice((1, 1, 1, 8))):
                    os.setxattr(fd, "user.a", choose.randbytes(60_000))
                os.pwrite(fd, data[len(data) // 2 :], len(data) // 2)
                os.ftruncate(fd, len(data) // 2 + 1)
                os.pwrite(fd, data[len(data) // 2 + 1 :], len(data) // 2 + 1)
                os.fsync(fd)
            finally:
                os.close(fd)
            os.rename(path, path + ".final")
            told.write(f"+ {os.path.basename(path)}.final {hashlib.sha256(data).hexdigest()}\n")
            kept.append(path + ".final")
            if len(kept) > 60:
                told.write(f"- {os.path.basename(kept[0])} -\n")
                os.unlink(kept.pop(0))
            with open(path + ".loose", "wb") as loose:  # not fsynced: may be lost
                loose.write(data[:5000])
            os.unlink(path + ".loose")
        except OSError as err:
            told.write(f"! {err.errno} -\n")
            time.sleep(0.02)
"""


class Load:
    def __init__(self, node: Node, manifest: Path, seed: int) -> None:
        self.node, self.manifest, self.seed = node, manifest, seed
        self.process: subprocess.Popen[bytes] | None = None
        self.directory = node.mountpoint / "written"

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        self.seed += 1
        self.process = subprocess.Popen([sys.executable, "-c", WRITER, str(self.directory), str(self.manifest), str(self.seed)])

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            self.process = None

    def rows(self) -> list[list[str]]:
        """Whole lines; the last one may have been cut by the kill of the writer."""
        text = self.manifest.read_text() if self.manifest.exists() else ""
        return [row.split(" ") for row in text.rpartition("\n")[0].splitlines()]

    def confirmed(self) -> int:
        return sum(row[0] == "+" for row in self.rows())

    def errors(self) -> int:
        return sum(row[0] == "!" for row in self.rows())

    def await_progress(self, more: int = 1) -> None:
        before = self.confirmed()
        assert self.process is not None
        await_true("files confirmed after a kill", lambda: self.confirmed() >= before + more, GO_ON_S, 0.02)
        assert self.process.poll() is None

    def wrong(self) -> list[str]:
        wanted: dict[str, str] = {}
        for sign, name, digest in self.rows():
            if sign == "+":
                wanted[name] = digest
            elif sign == "-":
                wanted.pop(name, None)
        found = []
        for name, digest in wanted.items():
            try:
                if hashlib.sha256((self.directory / name).read_bytes()).hexdigest() != digest:
                    found.append(f"{name} differs")
            except OSError as err:
                found.append(f"{name}: {err}")
        return found


def answers(client: KeeperClient) -> bool:
    try:
        client.ping()
    except Error:
        return False
    return True


class Round:
    """One failpoint: armed, brought about, and the node serving again."""

    def __init__(self, node: Node, control: FailpointControl, load: Load, dice: Random) -> None:
        self.node, self.control, self.load, self.dice = node, control, load, dice

    def run(self, name: str) -> None:
        before = self.control.fired(name)
        self.control.arm(name, 1 if name.startswith(SELDOM) or POINTS[name] != "load" else self.dice.randint(1, 8))
        deadline = time.monotonic() + FIRE_S
        while self.control.fired(name) == before:
            assert time.monotonic() < deadline, f"{name} is not reached by: {POINTS[name]}"
            self.bring_about(POINTS[name])
            self.await_fired(name, before)
            if self.control.fired(name) == before and POINTS[name] == "worker":
                self.load.await_progress()  # a worker that dies before it has served is held back for longer and longer
        pid = self.control.died(name)
        await_true(f"the death of {pid} at {name}", lambda: not procs.alive(pid), GO_ON_S)
        if POINTS[name] == "unmount":
            self.mounted_again()
        else:
            self.load.await_progress()

    def await_fired(self, name: str, before: int) -> None:
        """Or nothing more to wait for: a worker that had nothing to flush has taken over without passing there."""
        end = time.monotonic() + (FIRE_S if POINTS[name] == "load" else AGAIN_S)
        over = self.control.hits("takeover.ready") + 1 if POINTS[name] == "worker" else sys.maxsize
        while self.control.fired(name) == before and time.monotonic() < end and self.control.hits("takeover.ready") < over:
            time.sleep(0.005)

    def bring_about(self, kind: str) -> None:
        if kind in ("worker", "daemon", "keeper", "spawn"):
            self.node.kill("worker" if kind == "spawn" else kind)
        elif kind == "upgrade":
            try:
                self.await_keeper().upgrade()
            except Exception as err:  # it dies before it answers
                print(f"upgrade: {err}")
        elif kind in ("scrub", "collect"):
            self.ask(*(("scrub", "start") if kind == "scrub" else ("device", "collect", "start")))
        elif kind == "unmount":
            self.load.stop()
            self.await_keeper()
            self.unmount()

    def await_keeper(self) -> KeeperClient:
        client = KeeperClient(self.node.run)
        await_true("an answering keeper", lambda: answers(client), GO_ON_S)
        return client

    def ask(self, *words: str) -> None:
        """The daemon may die of it."""
        try:
            self.node.await_daemon(GO_ON_S)
            self.node.cli(*words)
        except BuildError as err:
            print(f"{words}: {err}")

    def unmount(self) -> None:
        try:
            self.node.umount()
        except BuildError as err:
            print(f"umount: {err}")

    def mounted_again(self) -> None:
        def mounted() -> bool:
            self.unmount()
            try:
                self.node.mount()
            except BuildError as err:
                print(f"mount: {err}")
                return False
            return True

        await_true("the mount after a kill while it was unmounted", mounted, GO_ON_S, 0.1)
        assert self.load.wrong() == []
        self.load.start()
        self.load.await_progress()
