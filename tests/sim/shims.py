"""Stand-ins for the few things of the machine that production modules take by import: time, threads, epoll, and who a peer is.

They are put into those modules for the length of a run (`installed`), and speak for the node whose turn it is (`running`).  A thread runs
to its end when it is started: the journal's preparation of its next file is then a part of the turn that starts it.
"""

from __future__ import annotations

import os
import random
import select as real_select
import sys
import threading as real_threading
import time as real_time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

from awsomefsd.meta.log.journal import Journal
from awsomefsd.meta.raft.types import Config
from awsomefsd.meta.replica import open_voter
from awsomefsd.meta.voter import voter

CHUNK_BYTES = 8 << 10  # small, so that a snapshot has some
KEEP_ENTRIES = (60, 200)  # few, so that followers need snapshots
_now: list[Any] = [None]  # the clock of the node whose turn it is
_dice = [random.Random(0)]


@contextmanager
def running(machine_clock: Any) -> Iterator[None]:
    before, _now[0] = _now[0], machine_clock
    try:
        yield
    finally:
        _now[0] = before


class _Time:
    """Module `time` for production code."""

    CLOCK_BOOTTIME = real_time.CLOCK_BOOTTIME

    @staticmethod
    def monotonic_ns() -> int:
        return _now[0].boot_ns()

    @staticmethod
    def monotonic() -> float:
        return _now[0].boot_ns() / 1e9

    @staticmethod
    def time_ns() -> int:
        return _now[0].wall_ns()

    @staticmethod
    def clock_gettime_ns(_which: int) -> int:
        return _now[0].boot_ns()


class _Thread:
    def __init__(self, target: Callable[..., None], name: str = "", daemon: bool = False, args: tuple[Any, ...] = ()) -> None:
        self._target, self._args = target, args

    def start(self) -> None:
        self._target(*self._args)

    def join(self, timeout: float | None = None) -> None:
        pass

    def is_alive(self) -> bool:
        return False


class Epoll:
    """Says which of the simulated sockets have something to read."""

    def __init__(self) -> None:
        self.sockets: dict[int, Any] = {}
        self.ready: dict[int, int] = {}  # descriptor → events, in order of arrival

    def register(self, fd: int, events: int) -> None:
        pass

    def modify(self, fd: int, events: int) -> None:
        pass

    def unregister(self, fd: int) -> None:
        self.ready.pop(fd, None)

    def poll(self, _timeout: float = 0) -> list[tuple[int, int]]:
        found, self.ready = list(self.ready.items()), {}
        return found

    def close(self) -> None:
        pass


def _urandom(count: int) -> bytes:
    return _dice[0].randbytes(count)


class _Os:
    """Module `os`, but for its dice, and for the descriptors that only carry a lock: one process plays all nodes."""

    urandom = staticmethod(_urandom)

    @staticmethod
    def open(*_arguments: Any) -> int:
        return -1

    @staticmethod
    def close(_fd: int) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


TIME, _OS = _Time(), _Os()
_THREADS = SimpleNamespace(**{name: getattr(real_threading, name) for name in ("Event", "Lock", "RLock", "Condition", "current_thread")})
_THREADS.Thread = _Thread
_SELECT = SimpleNamespace(epoll=Epoll, EPOLLIN=real_select.EPOLLIN, EPOLLOUT=real_select.EPOLLOUT)
_PEER = SimpleNamespace(uid=os.geteuid(), pid=0)
_WANTED: dict[str, Any] = {"time": TIME, "threading": _THREADS, "select": _SELECT, "peer_of": lambda sock: _PEER, "os": _OS}


def _modules() -> list[Any]:
    return [module for name, module in sorted(sys.modules.items()) if name == "awsomefsd.base.clock" or name.startswith("awsomefsd.meta.")]


@contextmanager
def files_of(node: Any) -> Iterator[None]:
    """While a voter is opened: its files, its lock and its way to begin anew are the simulated node's."""
    saved = open_voter.StateSnapshotFiles, open_voter.set_aside, open_voter.lock_directory
    open_voter.StateSnapshotFiles = lambda *_arguments: node.files  # type: ignore[assignment,misc]
    open_voter.set_aside = lambda _directory: node.set_aside()
    open_voter.lock_directory = lambda _directory: -1
    try:
        yield
    finally:
        open_voter.StateSnapshotFiles, open_voter.set_aside, open_voter.lock_directory = saved  # type: ignore[misc]


@contextmanager
def installed(dice: random.Random, journaled: Callable[[int, int, int, list[bytes]], None], append_bytes: int) -> Iterator[None]:
    """Production modules see the simulation; `journaled` sees what any journal takes."""
    append = Journal.append

    def watched(self: Any, term: int, entries: Any) -> None:
        first, before = self.last_index + 1, self.term_of(self.last_index) or 0
        append(self, term, entries)
        journaled(term, first, before, list(entries))

    saved: list[tuple[Any, str, Any]] = [(Journal, "append", append)]
    saved += [(voter, name, getattr(voter, name)) for name in ("Config", "VOTER_KEEP_ENTRIES", "VOTER_KEEP_ENTRIES_MAX")]
    _dice[0] = dice
    try:
        Journal.append = watched  # type: ignore[method-assign]
        voter.Config = partial(Config, chunk_bytes=CHUNK_BYTES, append_bytes_max=append_bytes)  # type: ignore[misc,assignment,attr-defined]
        voter.VOTER_KEEP_ENTRIES, voter.VOTER_KEEP_ENTRIES_MAX = KEEP_ENTRIES  # type: ignore[attr-defined]
        for module in _modules():
            for name, stand_in in _WANTED.items():
                if hasattr(module, name):
                    saved.append((module, name, getattr(module, name)))
                    setattr(module, name, stand_in)
        yield
    finally:
        for module, name, original in reversed(saved):
            setattr(module, name, original)
