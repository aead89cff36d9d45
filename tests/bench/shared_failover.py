"""How long a lock and a file of a node that ends are kept from the others.

A program on the node holds a lock and has written and fsynced; another file was written and fsynced too, and its write lease is still
held.  The node is killed (all its processes, as the machine's death), or stopped cleanly (`umount --force`, then the supervisor's SIGTERM).
The clock starts with the kill, or with the command; it includes the start of the command.  The lock is had when a program on another node,
which had asked for it before, has it and has appended to the file and fsynced; the other file when a third node, which asked as soon as
the first one was gone, has read it.  When the leader ends, it is looked who leads all the time too, so election and sessions can be told
apart.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable

from awsomefsd.base.limits import SESSION_TTL_MS
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError, good
from buildtools.sharing import held, holder

TTL_S = SESSION_TTL_MS / 1_000
WHOLE_S = 180.0
KINDS = (  # (what, whether it led, whether it is killed)
    ("killed, did not lead", False, True),
    ("killed, led", True, True),
    ("stopped cleanly, did not lead", False, False),
    ("stopped cleanly, led", True, False),
)
DATA = b"kept " * 1_000


class _Clock:
    """Seconds since the end began, noted by several threads; what fails in one of them fails in `note`."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.found: dict[str, float] = {}
        self._errors: list[BaseException] = []
        self._threads: list[threading.Thread] = []

    def note(self, name: str, work: Callable[[], object]) -> None:
        """In a thread: how long until `work` has returned."""

        def run() -> None:
            try:
                work()
                self.found[name] = time.monotonic() - self.began
            except BaseException as err:
                self._errors.append(err)

        self._threads.append(threading.Thread(target=run, daemon=True))
        self._threads[-1].start()

    def wait(self) -> dict[str, float]:
        for thread in self._threads:
            thread.join(WHOLE_S)
            if thread.is_alive():
                raise BuildError(f"what a node that ended had held is not free after {WHOLE_S:.0f} s")
        if self._errors:
            raise BuildError(f"after the end of a node: {self._errors[0]}") from self._errors[0]
        return self.found


def _end(victim: Node, killed: bool, gone: threading.Event) -> None:
    try:
        if killed:
            victim.kill_everything()
        else:
            victim.cli("umount", "--force", str(victim.mountpoint), timeout_s=WHOLE_S)
        gone.set()
        if not killed:
            victim.stop()
    finally:
        gone.set()


def _read_kept(reader: Node, gone: threading.Event) -> None:
    gone.wait(WHOLE_S)
    if (reader.mountpoint / "kept").read_bytes() != DATA:
        raise BuildError("a file of a node that ended is not what was fsynced")


def one(cluster: Cluster, leads: bool, killed: bool) -> dict[str, float]:
    """One end, and the node's return: seconds until the lock, the file, and another leader were there."""
    leader = cluster.await_leader()
    victim = leader if leads else next(node for node in reversed(cluster.nodes) if node is not leader)
    heir, reader = (node for node in cluster.nodes if node is not victim)
    for name in ("lock", "kept"):
        (victim.mountpoint / name).unlink(missing_ok=True)
    (victim.mountpoint / "lock").touch()
    kept = os.open(victim.mountpoint / "kept", os.O_CREAT | os.O_RDWR, 0o644)
    with contextlib.ExitStack() as stack:
        stack.callback(_close, kept)
        if not held(stack.enter_context(holder(victim.mountpoint / "lock", "victim "))):
            raise BuildError("no lock on the node that is to end")
        second = stack.enter_context(holder(heir.mountpoint / "lock", "heir"))
        os.pwrite(kept, DATA, 0)
        os.fsync(kept)
        gone, clock = threading.Event(), _Clock()
        clock.note("ended_s", lambda: _end(victim, killed, gone))
        clock.note("lock_s", lambda: _has(second))
        clock.note("file_s", lambda: _read_kept(reader, gone))
        if leads:
            clock.note("leader_s", lambda: cluster.await_leader([heir, reader], WHOLE_S))
        found = clock.wait()
        if (reader.mountpoint / "lock").read_text() != "victim heir":
            raise BuildError("the file is not what both holders of its lock wrote")
    victim.detach_mount()
    victim.start()
    victim.mount()
    await_true("three voters again", cluster.whole, WHOLE_S, 0.1)
    return found


def _has(process: subprocess.Popen[str]) -> None:
    if not held(process):
        raise BuildError("no lock after the end of a node")


def _close(fd: int) -> None:
    with contextlib.suppress(OSError):  # its mount is gone
        os.close(fd)


def measure(cluster: Cluster, rounds: int) -> dict[str, list[dict[str, float]]]:
    found: dict[str, list[dict[str, float]]] = {name: [] for name, *_ in KINDS}
    for _ in range(rounds):
        for name, leads, killed in KINDS:
            row = one(cluster, leads, killed)
            found[name].append(row)
            good(f"a node is {name}: " + ", ".join(f"{what} {value:.2f}" for what, value in sorted(row.items())))
    return found
