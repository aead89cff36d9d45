"""Kills under load: clients that verify (load.py), a list of whom to kill, and the account of it.

A kill counts only if it is proven (another pid serves in that role afterwards) and if the clients got on since (a kill that hits an idle
system tests nothing).  Stalls are attributed by time: a slow operation belongs to the kill it was under way at, else to the one before it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from buildtools import load
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError

PROGRESS_S = 120.0
WINDOW_S = 8.0


@dataclass
class Kill:
    at_s: float
    roles: tuple[str, ...]
    replaced_s: float


@dataclass
class Account:
    """What a run came to."""

    began_s: float = 0.0
    seconds: float = 0.0
    operations: int = 0
    errors: list[str] = field(default_factory=list)
    kills: list[Kill] = field(default_factory=list)
    slow: list[tuple[float, float, str]] = field(default_factory=list)
    finals: list[dict[str, Any]] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        return self.operations / max(self.seconds, 1e-9)

    def count(self, *roles: str) -> int:
        return sum(1 for kill in self.kills if kill.roles == roles)

    def longest_stall_s(self, *roles: str) -> float:
        """The slowest operation that a kill of exactly these roles delayed; of all operations without an argument."""
        if not roles:
            return max((took for _, took, _ in self.slow), default=0.0)
        owners = ((took, self._owner(began, began + took)) for began, took, _ in self.slow)
        return max((took for took, owner in owners if owner is not None and owner.roles == roles), default=0.0)

    def _owner(self, began: float, ended: float) -> Kill | None:
        """The kill that an operation was under way at, else the last one before it, if that is not long ago."""
        before = [kill for kill in self.kills if kill.at_s <= ended]
        during = [kill for kill in before if kill.at_s >= began]
        if during:
            return during[0]
        return before[-1] if before and began < before[-1].at_s + WINDOW_S else None

    def lines(self) -> list[str]:
        kinds = sorted({kill.roles for kill in self.kills})
        rows = [f"{self.operations:,} verified operations in {self.seconds:.1f} s ({self.per_second:,.0f}/s), {len(self.errors)} errors"]
        for roles in kinds:
            again = sorted(kill.replaced_s for kill in self.kills if kill.roles == roles)
            rows.append(
                f"{self.count(*roles):3d} x {'+'.join(roles):13s} killed: longest stall {self.longest_stall_s(*roles):.2f} s, "
                f"new process after {again[len(again) // 2] * 1000:.0f} ms (median), {again[-1] * 1000:.0f} ms (worst)"
            )
        for began, took, name in sorted(self.slow, key=lambda row: -row[1])[:3]:
            owner = self._owner(began, began + took)
            killed = "+".join(owner.roles) if owner else "nobody"
            rows.append(f"    {took:.2f} s {name} at second {began - self.began_s:.1f}, kill of {killed}")
        return rows


class Clients:
    """Several load.py processes in one directory, and what they last said."""

    def __init__(self, directory: Path, count: int, seed: int, accept: str = "", think_s: float = 0.0) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.latest: list[dict[str, Any]] = [{"ops": 0, "errors": []} for _ in range(count)]
        self.began = time.monotonic()
        program = [sys.executable, str(Path(load.__file__)), str(directory), "--accept", accept, "--think", str(think_s)]
        self.processes = [
            subprocess.Popen([*program, "--seed", str(seed * 100 + number)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            for number in range(count)
        ]
        self.threads = [threading.Thread(target=self._listen, args=(number,), daemon=True) for number in range(count)]
        for thread in self.threads:
            thread.start()

    def _listen(self, number: int) -> None:
        for row in self.processes[number].stdout or ():
            self.latest[number] = json.loads(row)

    @property
    def operations(self) -> int:
        return sum(row["ops"] for row in self.latest)

    def each(self) -> list[int]:
        return [row["ops"] for row in self.latest]

    def errors(self) -> list[str]:
        return [error for row in self.latest for error in row["errors"]]

    def check_running(self) -> None:
        for process in self.processes:
            if process.poll() is not None:
                said = process.stderr.read() if process.stderr else ""
                raise BuildError(f"a client ended early with {process.returncode}: {self.errors()} {said}")

    def await_progress(self, more: int) -> None:
        """Every client has done `more` operations since now."""
        before = self.each()

        def progressed() -> bool:
            self.check_running()
            return all(now >= then + more for now, then in zip(self.each(), before, strict=True))

        await_true(f"{more} more operations of every client (now {before})", progressed, PROGRESS_S, 0.02)

    def finish(self, timeout_s: float = 120) -> list[dict[str, Any]]:
        """SIGTERM; every client checks all its files and says its last word."""
        for process in self.processes:
            process.terminate()
        for process, thread in zip(self.processes, self.threads, strict=True):
            process.wait(timeout_s)
            thread.join(timeout_s)
        pairs = zip(self.processes, self.latest, strict=True)
        silent = [process.stderr.read() for process, row in pairs if "final" not in row and process.stderr]
        if silent:
            raise BuildError(f"clients without a last word: {silent}")
        return self.latest

    def abandon(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
                process.wait(30)
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()


def check_counters(directory: Path, finals: list[dict[str, Any]]) -> list[str]:
    """Each increment that a client made under a lock is in the counter."""
    wrong = []
    for kind in ("fcntl", "flock"):
        made = sum(final["increments"][kind] for final in finals)
        path = directory / f"counter-{kind}"
        found = int.from_bytes(path.read_bytes()[:8], "little") if path.exists() else 0
        if found != made:
            wrong.append(f"counter under {kind} locks says {found}, {made} increments were made")
    return wrong


def kill_under_load(
    node: Node,
    directory: Path,
    rounds: Iterable[tuple[str, ...]],
    *,
    clients: int,
    seed: int,
    between: int = 5,
    tell: Callable[[Kill], None] = lambda kill: None,
    strike: Callable[[tuple[str, ...]], None] | None = None,
) -> Account:
    """Kill the roles of each round in turn, letting every client do `between` operations before each and after the last.

    `strike` does it and returns when others have taken their place; by default it is the node's own processes.  At the end the daemon
    answers.
    """
    account = Account()
    strike = strike or node.strike
    running = Clients(directory, clients, seed)
    try:
        for roles in rounds:
            running.await_progress(between)
            at = time.monotonic()
            strike(roles)
            account.kills.append(Kill(at, roles, time.monotonic() - at))
            tell(account.kills[-1])
        running.await_progress(between)
        account.began_s = running.began
        account.seconds = time.monotonic() - running.began
        account.operations = running.operations
        account.finals = running.finish()
    finally:
        running.abandon()
    node.await_daemon()  # clients may have gone on without it, and whoever comes next asks it
    account.slow = sorted(tuple(row) for final in account.finals for row in final["slow"])
    account.errors = [error for final in account.finals for error in final["errors"]] + check_counters(directory, account.finals)
    return account


def check_after_remount(finals: list[dict[str, Any]]) -> list[str]:
    return [wrong for final in finals for wrong in load.check_manifest(final["directory"], final["manifest"])]
