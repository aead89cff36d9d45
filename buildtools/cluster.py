"""Several nodes on one machine, each in a network namespace: what `up` and every test of several nodes stand on.

Layout of D: n1, n2, … (each a node's directory, nodes.py), a marker, and what the owner puts beside them.  With `share` the device in n1
is everybody's: the others find it by its superblock.  Who the nodes are to each other
(voters by configuration, one token, a founding token) is the owner's: it writes `settings` and files before `launch`.  Like a node, a
cluster needs no memory: `destroy` finds namespaces by the directory's name, processes by their marks.  Standard library only, but for
`leader`, which speaks to the metadata service and is imported where the venv runs.
"""

from __future__ import annotations

import fcntl
import functools
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from buildtools import netns, procs
from buildtools.nodes import Node, await_true, write_env
from buildtools.say import CHECKOUT, BuildError

MARKER = ".awsomefs-cluster"
LOCK = ".awsomefs-up"
LEADER_S = 60.0
HEARD_MS = 2_000
STANDING = ("T", "Z", "X", "")  # one that was just ending is reaped by nobody while its parent stands still
STOPPED_S = 60.0


def sees(node: Node) -> bool:
    """Every device of the cluster, and well."""
    devices = node.ask("device", "ls")
    return bool(devices) and all(row["path"] and row["state"] == "ok" for row in devices)


class Cluster:
    """`nodes[0]` is machine 1; keywords go to every Node."""

    def __init__(self, directory: Path, count: int = 3, **keywords: Any) -> None:
        self.directory = directory.resolve()
        self.network = netns.Network(self.directory, count)
        self.nodes = [Node(self.directory / f"n{machine}", **keywords) for machine in range(1, count + 1)]
        for node in self.nodes:
            node.entering = self.network.entering(self.machine(node))

    def machine(self, node: Node) -> int:
        return self.nodes.index(node) + 1

    def address(self, node: Node) -> str:
        return self.network.address(self.machine(node))

    def namespace(self, node: Node) -> str:
        return self.network.namespace(self.machine(node))

    def check_place(self) -> None:
        """A directory with other people's files is refused."""
        if self.directory.exists() and not self.directory.is_dir():
            raise BuildError(f"{self.directory} is no directory; choose another --dir")
        others = self.directory.exists() and any(entry.name != LOCK for entry in self.directory.iterdir())
        if others and not (self.directory / MARKER).exists():
            raise BuildError(f"{self.directory} is not empty and not one of ours (no {MARKER} in it); choose another --dir")

    def take(self) -> int:
        """Locks the directory for this process, also for the program that it becomes; returns the descriptor.  Makes the directory.

        Children do not inherit the lock, so it ends with this process, however that ends.  Raises BuildError if another one has it.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        path = self.directory / LOCK
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
        except OSError as error:  # a link would have the file behind it emptied
            raise BuildError(f"{path} cannot be opened ({error.strerror}); remove it, or choose another --dir") from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(lock)
            raise BuildError(
                f"another build.py works in {self.directory} (process {pid}); wait for its end, stop it with `kill -INT {pid}`, "
                "or choose another --dir"
            ) from None
        if not path.exists() or not os.path.samestat(os.stat(path), os.fstat(lock)):
            os.close(lock)
            raise BuildError(f"`build.py down` has just removed {self.directory}; run the command again")
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        os.set_inheritable(lock, True)  # over exec; subprocess closes it in children
        return lock

    def prepare(self) -> None:
        """Directories and namespaces."""
        self.check_place()
        self.directory.mkdir(parents=True, exist_ok=True)
        (self.directory / MARKER).write_text("nodes of awsomefsd; build.py down deletes this directory\n")
        if not self.network.complete():  # what still runs would stay in namespaces that are gone
            for node in self.nodes:
                node.kill_everything()
            self.network.make()
        for node in self.nodes:
            node.prepare()

    def launch(self) -> None:
        """Start the supervisor of every node that has none; nobody is waited for."""
        for node in self.nodes:
            node.launch()

    # --- who leads --------------------------------------------------------------------------------------------------------
    def leader(self, among: Iterable[Node] | None = None) -> Node | None:
        """Who says that it leads, in the newest term; None while nobody does."""
        from buildtools.leader import leading_term

        found = {node: leading_term(node.run / "meta.sock") for node in (self.nodes if among is None else among)}
        best = max(found, key=lambda node: found[node], default=None)
        return best if best is not None and found[best] > 0 else None

    def await_leader(self, among: Iterable[Node] | None = None, timeout_s: float = LEADER_S) -> Node:
        chosen = self.nodes if among is None else list(among)
        node: Node = await_true("a leader", lambda: self.leader(chosen), timeout_s, 0.02)
        return node

    def whole(self) -> bool:
        """One leads, counts every node as a voter, and has heard all of them lately."""
        from buildtools.leader import figures

        leader = self.leader()
        said = figures(leader.run / "meta.sock") if leader is not None else {}
        silent: list[Any] = [value for name, value in said.items() if name.startswith("silent_ms_")]
        return said.get("voters") == len(self.nodes) == len(silent) + 1 and all(value < HEARD_MS for value in silent)

    def requests(self) -> Counter[str]:
        """Requests to the leaders so far, by kind, whoever led."""
        from buildtools.leader import requests

        found: Counter[str] = Counter()
        for node in self.nodes:
            found.update(requests(node.run / "meta.sock"))
        return found

    # --- one disk for all -------------------------------------------------------------------------------------------------
    def share(self, options: str = "shared") -> None:
        """Before `launch`: the first node's device is everybody's, and every node mounts the volume with these options."""
        first = self.nodes[0]
        for node in self.nodes:
            node.shared, node.mount_options = True, options
        disk = os.path.realpath(first.attach())
        if not first.use_loop:  # a file is looked at only where it is named
            for node in self.nodes:
                node.settings["AWSOMEFSD_DEVICES_SCAN"] = disk

    def provision(self, timeout_s: float = LEADER_S) -> float:
        """Device and volume where missing, by the first node.  Returns the seconds until all others had found the device themselves."""
        for node in self.nodes:
            node.await_daemon()  # its metadata answers before commands are taken
        self.nodes[0].provision()
        began = time.monotonic()
        for node in self.nodes:
            await_true(f"the device to be found by {node.directory.name}", functools.partial(sees, node), timeout_s, 0.2)
        return time.monotonic() - began

    def mount(self) -> None:
        for node in self.nodes:
            node.mount()

    def umount(self) -> None:
        for node in self.nodes:
            node.umount()

    # --- faults of nodes --------------------------------------------------------------------------------------------------
    def pause(self, node: Node) -> list[int]:
        """SIGSTOP all processes of a node, the supervisor first; returns the pids, all of which have stopped."""
        hit: list[int] = []
        for role in ("supervisor", "keeper", "forker", "daemon", "segments", "worker", ""):
            wanted = {pid: of for pid, of in procs.owned(str(node.directory)).items() if of == role}
            hit += procs.kill(str(node.directory), wanted, signal.SIGSTOP)
        await_true("stopped processes", lambda: all(procs.state(pid) in STANDING for pid in hit), STOPPED_S)
        return hit

    def resume(self, node: Node) -> None:
        procs.kill(str(node.directory), procs.owned(str(node.directory)), signal.SIGCONT)

    def wipe(self, node: Node, *, between: Callable[[], object] = lambda: None) -> None:
        """The machine dies and loses its metadata, and comes back; `between` runs while it is gone."""
        node.kill_everything()
        shutil.rmtree(node.state / "meta")
        between()
        node.launch()

    # --- for scripts ------------------------------------------------------------------------------------------------------
    def write_env(self) -> Path:
        """D/env: the first node's own words; the pids are those of all nodes; LEADER_PID prints nothing while nobody leads."""
        first, places = self.nodes[0], [str(node.directory) for node in self.nodes]
        tools = CHECKOUT / "buildtools"
        rows = first.env_rows()
        for name, role in (("WORKER_PIDS", "worker"), ("DAEMON_PIDS", "daemon")):
            rows[name] = [first.python, str(tools / "procs.py"), *places, role]
        rows["LEADER_PID"] = [first.python, str(tools / "leader.py"), *places]
        for node in self.nodes:
            rows[f"AWSOMEFSD{self.machine(node)}"] = node.command
            if node.shared:
                rows[f"MOUNT{self.machine(node)}"] = [str(node.mountpoint)]
            rows[f"NETNS{self.machine(node)}"] = [self.namespace(node)]
        return write_env(self.directory / "env", rows)

    # --- the end ----------------------------------------------------------------------------------------------------------
    def stop(self) -> None:
        for node in self.nodes:
            self.resume(node)
            node.stop()

    def destroy(self) -> None:
        """Everything goes: nodes, namespaces, directory; all that can go, goes, also when one part resists."""
        if not (self.directory / MARKER).exists():
            raise BuildError(f"{self.directory} is not one of ours (no {MARKER} in it): nothing was deleted")
        problems = []
        nodes = [Node(directory) for directory in sorted(self.directory.glob("n*")) if directory.is_dir()]  # also of one that had more
        for step in (Node.end, Node.destroy):  # a disk is free when no node has it open
            for node in nodes:
                try:
                    step(node)
                except (BuildError, OSError) as err:
                    problems.append(str(err))
        try:
            self.network.destroy()
        except (BuildError, OSError) as err:
            problems.append(str(err))
        if problems:
            raise BuildError("; ".join(problems))
        shutil.rmtree(self.directory)
