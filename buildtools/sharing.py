"""What `build.py up` shows of one disk under several nodes: what one writes the others read, and a dead node's lock passes to another.

Standard library only.  Programs that hold locks are processes of their own, outside of every node: a node's death takes its mount away from
them, not their lives, so each is killed at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from buildtools.cluster import Cluster
from buildtools.nodes import Node
from buildtools.say import BuildError

FILE_BYTES = 32 << 20
PIECE_BYTES = 1 << 20
LINES = 20
HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
fcntl.lockf(fd, fcntl.LOCK_EX)
os.pwrite(fd, sys.argv[2].encode(), os.fstat(fd).st_size)
os.fsync(fd)
print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(path: Path, word: str) -> Iterator[subprocess.Popen[str]]:
    """A program that waits for the lock of a file, appends a word, and keeps the lock."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, path, word], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def held(process: subprocess.Popen[str]) -> bool:
    """Waits until it has the lock; false if it ended instead."""
    assert process.stdout is not None
    return process.stdout.readline() == "held\n"


@dataclass
class Passed:
    """One file's way: seconds to write it on one node, and to read it on each of the others."""

    bytes: int
    wrote_s: float
    read_s: list[float]


def pass_file(cluster: Cluster, seed: int) -> Passed:
    """Written on the first node, read and compared on all others."""
    first, *others = cluster.nodes
    piece = hashlib.shake_128(str(seed).encode()).digest(PIECE_BYTES)
    began = time.monotonic()
    with (first.mountpoint / "passed").open("wb", buffering=0) as file:
        for number in range(FILE_BYTES // PIECE_BYTES):
            file.write(number.to_bytes(8, "little") + piece[8:])
        os.fsync(file.fileno())
    passed = Passed(FILE_BYTES, time.monotonic() - began, [])
    for node in others:
        began = time.monotonic()
        with (node.mountpoint / "passed").open("rb", buffering=0) as file:
            for number in range(FILE_BYTES // PIECE_BYTES):
                if file.read(PIECE_BYTES) != number.to_bytes(8, "little") + piece[8:]:
                    raise BuildError(f"{node.mountpoint}/passed differs from what {first.mountpoint} wrote, in MiB {number}")
        passed.read_s.append(time.monotonic() - began)
    return passed


def append_in_turn(cluster: Cluster) -> int:
    """Lines appended by all nodes in turn; after each, every node sees all of them.  Returns how many."""
    paths = [node.mountpoint / "in-turn" for node in cluster.nodes]
    paths[0].unlink(missing_ok=True)
    wanted = ""
    for number in range(LINES):
        wanted += f"line {number}\n"
        with paths[number % len(paths)].open("a") as file:
            file.write(f"line {number}\n")
        for path in paths:
            if path.read_text() != wanted:
                raise BuildError(f"{path} does not end with line {number}, which is written")
    return LINES


@dataclass
class Death:
    """Seconds from a node's death until another node had its lock, and until the node served again; whether it led."""

    led: bool
    heir_s: float
    again_s: float


def kill(victim: Node) -> None:
    victim.kill_everything()


def stop(victim: Node) -> None:
    """Cleanly, though programs still use its mount: what it holds it gives back."""
    victim.cli("umount", "--force", str(victim.mountpoint), timeout_s=180)
    victim.stop()


def node_ends(cluster: Cluster, victim: Node, tell: Callable[[str], None], how: Callable[[Node], None] = kill) -> Death:
    """A node ends, by default by SIGKILL of all its processes, while a program there holds a lock that another node waits for.

    Afterwards it is started and mounted again.
    """
    heir, witness = (node for node in cluster.nodes if node is not victim)
    path = victim.mountpoint / "lock"
    path.unlink(missing_ok=True)
    path.touch()
    led = cluster.await_leader() is victim
    with contextlib.ExitStack() as programs:
        if not held(programs.enter_context(holder(path, "victim "))):
            raise BuildError(f"no lock on {path}")
        second = programs.enter_context(holder(heir.mountpoint / "lock", "heir"))
        began = time.monotonic()
        ending = threading.Thread(target=how, args=(victim,))
        ending.start()
        if not held(second):
            raise BuildError(f"no lock on {heir.mountpoint}/lock after the end of {victim.directory.name}")
        heir_s = time.monotonic() - began
        ending.join()
        tell(f"{victim.directory.name} ended while a program on it held a lock that {heir.directory.name} waited for")
        if (witness.mountpoint / "lock").read_text() != "victim heir":
            raise BuildError(f"{witness.mountpoint}/lock is not what both holders wrote")
    began = time.monotonic()
    victim.detach_mount()  # of one that was killed it is still there
    victim.start()
    victim.mount()
    return Death(led, heir_s, time.monotonic() - began)
