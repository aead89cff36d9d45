"""Faults of nodes that share a mounted volume, while programs on all of them work on the same files (shared_client.py).

Each fault is over when the cluster is whole and every program has got on since.  What a fault is about is proven: processes that stand
still, packets that were dropped, a session that the others have ended, writes that landed after that (the hold of
awsomefsd/daemon/injection.py).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from awsomefsd.admin.client import AdminClient
from awsomefsd.base.limits import SESSION_TTL_MS
from awsomefsd.cli.output import message_dict
from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.cluster import shared_client
from tests.cluster.shared_judge import Row, Trouble, Written, read_log
from tests.cluster.test_shared_mount import holding, said

TTL_S = SESSION_TTL_MS / 1_000
WAIT_S = 180.0
PROGRESS_BYTES = 1_500  # of a program's log: a dozen operations
VOLUME = "together"


def mount(node: Node, options: str) -> None:
    node.cli("mount", VOLUME, str(node.mountpoint), "-O", options, timeout_s=WAIT_S)


def quarantine(node: Node) -> list[dict[str, Any]]:
    with AdminClient(node.run / "admin.sock") as client:
        sessions: list[dict[str, Any]] = message_dict(client.call("ListQuarantine")).get("sessions", [])
        return sessions


class Programs:
    """`each` on every node (one of them does nothing but locks); those of a node that died are succeeded by new ones."""

    def __init__(self, cluster: Cluster, root: str, seed: int, each: int = 3) -> None:
        self._cluster, self._root, self._seed, self._each = cluster, root, seed, each
        self._logs: list[tuple[int, int, Path]] = []  # number, node, log
        self._running: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}  # by number: node, process

    def start(self, node: Node) -> None:
        machine = self._cluster.machine(node)
        for place in range(self._each):
            number = len(self._logs) + 1
            log = self._cluster.directory / f"program-{number}.log"
            words = [
                str(node.mountpoint / self._root),
                "--number",
                str(number),
                "--seed",
                str(self._seed * 100 + number),
                "--log",
                str(log),
            ]
            process = subprocess.Popen(
                [sys.executable, shared_client.__file__, *words, *(["--locks"] if place == 0 else [])],
                stderr=(log.with_suffix(".err")).open("wb"),
            )
            self._logs.append((number, machine, log))
            self._running[number] = (machine, process)

    def kill(self, node: Node) -> None:
        """As the node's death does it."""
        for number, (machine, process) in list(self._running.items()):
            if machine == self._cluster.machine(node):
                process.kill()
                process.wait(WAIT_S)
                del self._running[number]

    def sizes(self, besides: Node | None = None) -> dict[int, int]:
        """How much each has written down; of those on other nodes."""
        found = {}
        for number, machine, log in self._logs:
            if number in self._running and (besides is None or machine != self._cluster.machine(besides)):
                process = self._running[number][1]
                assert process.poll() is None, f"program {number} ended: {log.with_suffix('.err').read_text()[-2000:]}"
                found[number] = log.stat().st_size if log.exists() else 0
        return found

    def await_progress(self, besides: Node | None = None, more: int = PROGRESS_BYTES) -> None:
        before = self.sizes(besides)

        def progressed() -> bool:
            now = self.sizes(besides)
            return all(now[number] >= size + more for number, size in before.items())

        await_true(f"progress of every program, which have written {before}", progressed, WAIT_S, 0.05)

    def finish(self) -> Written:
        for _, process in self._running.values():
            process.terminate()
        for _, process in self._running.values():
            process.wait(WAIT_S)
        self._running.clear()
        written = Written([], [], [])
        for number, machine, log in self._logs:
            if log.exists():
                read_log(log, number, machine, written)
        return written

    def abandon(self) -> None:
        for _, process in self._running.values():
            process.kill()
        for _, process in self._running.values():
            process.wait(60)
        self._running.clear()


class SharedNemesis:
    def __init__(self, cluster: Cluster, programs: Programs, seed: int, options: str) -> None:
        self.cluster, self.programs, self.options = cluster, programs, options
        self.dice = random.Random(seed)
        self.troubles: list[Trouble] = []
        self.late_writes = 0
        self.again_s: dict[str, list[float]] = {}  # until a lock of what ended could be had, and a file that it was writing be written
        self._boots = dict.fromkeys(cluster.nodes, 0)
        self.kinds: dict[str, Callable[[Node], None]] = {
            "kill worker": self.kill_worker,
            "kill daemon": self.kill_daemon,
            "change leader": self.change_leader,
            "kill keeper and worker": self.kill_keeper_and_worker,
            "kill node": self.kill_node,
            "kill leading node": self.kill_leading_node,
            "unmount": self.unmount,
            "stop node": self.stop_node,
            "stop worker": self.stop_worker,
            "cut": self.cut,
        }

    def inflict(self, kind: str) -> Trouble:
        cluster = self.cluster
        node = cluster.await_leader() if "lead" in kind else self.dice.choice(cluster.nodes)
        began = time.monotonic()
        try:
            self.kinds[kind](node)
        finally:
            cluster.network.heal()
            for each in cluster.nodes:
                cluster.resume(each)
                self._inject(each, "")
        await_true("a whole cluster", cluster.whole, WAIT_S, 0.05)
        self.programs.await_progress()
        self.troubles.append(Trouble(kind, cluster.machine(node), began, time.monotonic()))
        return self.troubles[-1]

    def others(self, node: Node) -> list[Node]:
        return [each for each in self.cluster.nodes if each is not node]

    # --- deaths -------------------------------------------------------------------------------------------------------------
    def kill_worker(self, node: Node) -> None:
        node.strike(["worker"])

    def kill_daemon(self, node: Node) -> None:
        node.strike(["daemon"])

    change_leader = kill_daemon

    def kill_keeper_and_worker(self, node: Node) -> None:
        for role in ("daemon", "supervisor"):  # one that has just begun has to be told
            await_true(f"a {role} that holds", lambda role=role: any(procs.holds(pid, "/dev/fuse") for pid in node.pids(role)), WAIT_S)
        hit = node.kill("keeper", "worker")
        node.replaced("worker", hit["worker"], WAIT_S)

    def kill_node(self, node: Node, what: str = "a node died") -> None:
        """And is booted anew, which its boot id says."""
        with self._heir(node, what):
            node.kill_everything()
            self.programs.kill(node)
        node.detach_mount()
        self.programs.await_progress(besides=node)  # locks and leases of the dead included
        self._boots[node] += 1
        self._inject(node, "")
        node.start()
        mount(node, self.options)
        self.programs.start(node)

    def kill_leading_node(self, node: Node) -> None:
        self.kill_node(node, "the leading node died")

    def unmount(self, node: Node) -> None:
        """The programs of the node end, and its mount."""
        with self._heir(node, "a mount ended") as holder:
            self.programs.kill(node)
            holder.kill()
            holder.wait(WAIT_S)
            node.umount()
        mount(node, self.options)
        self.programs.start(node)

    @contextlib.contextmanager
    def _heir(self, node: Node, what: str) -> Iterator[subprocess.Popen[str]]:
        """A program on `node` has a lock and has written; when another node has both, counted from the end of the block."""
        other = self.dice.choice(self.others(node))
        name = f"heir-{len(self.troubles)}"
        here, there = node.mountpoint / name, other.mountpoint / name
        here.write_bytes(b"before")
        with holding(here, "lockf") as holder:
            assert said(holder)
            here.write_bytes(b"dirty")
            with holding(there, "lockf") as heir:
                yield holder
                since = time.monotonic()
                assert said(heir)
                there.write_bytes(b"after")
                self.again_s.setdefault(what, []).append(time.monotonic() - since)
                assert there.read_bytes() == b"after"
        there.unlink()

    def _inject(self, node: Node, rules: str) -> None:
        boots = f"boot={self._boots[node]}" if self._boots[node] else ""
        node.inject(",".join(filter(None, [boots, rules])))

    # --- pauses and cuts ----------------------------------------------------------------------------------------------------
    def stop_node(self, node: Node) -> None:
        """For three TTLs, while the others change the same files."""
        until = time.monotonic() + 3 * TTL_S
        assert self.cluster.pause(node)
        self._ended(node)
        self.programs.await_progress(besides=node)
        time.sleep(max(0.0, until - time.monotonic()))  # the length of the fault

    def stop_worker(self, node: Node) -> None:
        worker = node.pid("worker")
        assert procs.kill(str(node.directory), {worker: "worker"}, signal.SIGSTOP) == [worker]
        self._ended(node, self.cluster.nodes)
        self.programs.await_progress(besides=node)

    def cut(self, node: Node) -> None:
        """The dangerous case: without the network, with the disk, and with writes on their way until long after."""
        held, released = node.fault_hits("device.write hold"), node.fault_hits("device.write released")
        self._inject(node, "device.write=hold")
        await_true("a write on its way", lambda: node.fault_hits("device.write hold") > held, WAIT_S)
        self.cluster.network.isolate(self.cluster.machine(node))
        self._ended(node)
        self.programs.await_progress(besides=node)
        assert sum(self.cluster.network.dropped(self.cluster.machine(each)) for each in self.cluster.nodes) > 0, "nothing was cut"
        if self.dice.random() < 0.5:  # they land when it has a new session
            self.cluster.network.heal()
            await_true("a whole cluster", self.cluster.whole, WAIT_S, 0.05)
            time.sleep(self.dice.random() * TTL_S)
        assert node.fault_hits("device.write released") == released
        self._inject(node, "")
        await_true("the late write", lambda: node.fault_hits("device.write released") > released, WAIT_S)
        self.late_writes += node.fault_hits("device.write released") - released

    def _ended(self, node: Node, watching: Sequence[Node] = ()) -> None:
        """The others have ended its session, and what it may still write to is in quarantine."""
        uuid, watching = node.uuid(), watching or self.others(node)

        def look() -> bool:
            leader = self.cluster.leader(watching)
            return leader is not None and any(one["node"] == uuid for one in quarantine(leader))

        await_true(f"the end of the session of {node.directory.name}", look, WAIT_S, 0.2)


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """All that a node shows below it."""
    found: dict[str, tuple[Any, ...]] = {}
    for place, folders, names in os.walk(root):
        for name in [*folders, *names]:
            path = Path(place) / name
            info = path.lstat()
            shown = path.read_bytes() if path.is_file() else b""
            found[str(path.relative_to(root))] = (info.st_ino, info.st_mode, info.st_nlink, info.st_size, info.st_mtime_ns, shown)
    return found


def rate(rows: Sequence[Row], seconds: float) -> float:
    return sum(row.known for row in rows) / seconds
