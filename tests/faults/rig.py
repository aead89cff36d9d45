"""What the fault tests share: phases of load with faults, and the proof that nothing was lost."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from buildtools import chaos
from buildtools.nodes import Node, await_true

RETRY_S = 60.0


@contextmanager
def faults(node: Node, rules: str, *, hits: str = "") -> Iterator[None]:
    """The rules hold inside; some fault (at the seam `hits`) was dealt out before this ends, or the test proves nothing."""
    before = node.fault_hits(hits)
    node.inject(rules)
    try:
        yield
        await_true(f"a fault at {hits or rules}", lambda: node.fault_hits(hits) > before, RETRY_S)
    finally:
        node.inject("")


def refused(call: Callable[[], Any]) -> int:
    """The errno of a call, 0 if it succeeds."""
    try:
        call()
    except OSError as err:
        return err.errno or -1
    return 0


def fsync_until_true(path: Path, accept: tuple[int, ...] = (errno.EIO, errno.ENOSPC)) -> int:
    """fsync as an application does that has a disk which was ill: again, a bounded number of times.  How many were refused."""
    fd = os.open(path, os.O_RDWR)
    try:
        deadline = time.monotonic() + RETRY_S
        count = 0
        while (number := refused(lambda: os.fsync(fd))) != 0:
            assert number in accept and time.monotonic() < deadline, f"fsync of {path}: errno {number}, {count} refused before"
            count += 1
        return count
    finally:
        os.close(fd)


def load_in_phases(node: Node, phases: list[str], *, seed: int, accept: str, between: int, name: str = "load") -> list[dict[str, Any]]:
    """Verified load while one set of faults after another holds; every file checked after they ended.  The clients' last words."""
    running = chaos.Clients(node.mountpoint / name, 3, seed, accept)
    try:
        running.await_progress(5)
        for rules in phases:
            with faults(node, rules, hits=rules.partition("=")[0]):
                running.await_progress(between)
        running.await_progress(5)
        return running.finish()
    finally:
        node.inject("")
        running.abandon()


def errors_of(finals: list[dict[str, Any]]) -> list[str]:
    return [error for final in finals for error in final["errors"]]


def held(pid: int) -> dict[str, int]:
    """What a process holds now: private memory in KiB, pages of its memfds in KiB, descriptors, threads."""
    status = dict(row.split(":", 1) for row in Path(f"/proc/{pid}/status").read_text().splitlines())
    memfds = 0
    names = os.listdir(f"/proc/{pid}/fd")
    for name in names:
        path = f"/proc/{pid}/fd/{name}"
        with suppress(FileNotFoundError):  # it is closed meanwhile
            if os.readlink(path).startswith("/memfd:"):
                memfds += os.stat(path).st_blocks // 2
    return {"anon_kib": int(status["RssAnon"].split()[0]), "memfd_kib": memfds, "fds": len(names), "threads": int(status["Threads"])}


def newest_index(node: Node) -> int:
    return int(node.ask("status")["figures"]["last_index"])


def changes(node: Node, after: int) -> list[dict[str, Any]]:
    """What was decided behind that index."""
    return [json.loads(row) for row in node.cli("log", "follow", "--from", str(after), "--no-wait", "-o", "json").strip().split("\n")]


def committed(node: Node, after: int, ino: int) -> bool:
    """Whether bytes of that file were committed behind that index.

    A commit that waits for records of its files goes in their Apply (decision 243): a flush soon after the file was made does.
    """
    commits = (row["fields"]["inodes"] for row in changes(node, after) if row["command"] in ("Commit", "Apply"))
    return any(part["ino"] == ino for parts in commits for part in parts)


def survive_everything(node: Node) -> None:
    """The death of all processes, and the node again."""
    node.kill_everything()
    node.detach_mount()
    node.cli("fsck", timeout_s=120)
    node.up()
