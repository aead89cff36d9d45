"""What is promised of names while something is mounted on a directory: nothing new, and all that was promised before is waited for."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.consistency import CLOSE_TO_OPEN, STRICT, UNSAID
from awsomefsd.base.types import LEASE_NONE, Attr
from awsomefsd.fuse import nested_mounts as nested
from awsomefsd.vfs.state import kernel_cache
from awsomefsd.vfs.state.freshness import Modes
from awsomefsd.vfs.state.kernel_cache import KernelCache
from awsomefsd.vfs.state.names import ABSENT
from awsomefsd.vfs.state.open_files import KIND_FILE, OpenFile

LEFT_NS = 5_000_000_000


class Kernel:
    has_epoch = True
    minor = 45
    on_top = False
    epochs = 0

    def nested(self) -> bool:
        return self.on_top

    def forget_names(self) -> bool:
        self.epochs += not self.on_top
        return not self.on_top

    def forget_attributes(self, ino: int) -> None:
        pass

    forget_pages = forget_attributes


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(kernel_cache, "after", lambda pause_s, _call: found.append(pause_s))
    return found


@pytest.fixture
def cache(kernel: Kernel) -> KernelCache:
    leases: Any = SimpleNamespace(changing=lambda _ino: False, leaving=lambda _ino: False)
    names: Any = SimpleNamespace(find=lambda _parent, _name: 5, drop=lambda _ino: None)
    modes: Any = SimpleNamespace(name_ns=lambda _ino: 0)
    threads: Any = None
    return KernelCache(leases, names, kernel, threads, lambda: LEFT_NS, lambda: kernel.minor, modes)


def recall(cache: KernelCache, ino: int) -> bool:
    """Whether it is answered at once."""
    answered: list[int] = []
    cache.forget_for_recall(ino, LEASE_NONE, lambda: answered.append(ino))
    return bool(answered)


def test_each_directory_is_waited_for(cache: KernelCache, kernel: Kernel, waits: list[float]) -> None:
    assert [cache.name_ttl_ns(ino, b"n", 5) for ino in (1, 2, 3)] == [LEFT_NS] * 3
    kernel.on_top = True
    assert not recall(cache, 1) and not recall(cache, 2) and recall(cache, 9), "of 9 no name was told"
    assert cache.name_ttl_ns(1, b"n", 5) == 0
    assert all(pause_s > LEFT_NS / 1e9 for pause_s in waits) and kernel.epochs == 0
    kernel.on_top = False
    assert recall(cache, 3) and kernel.epochs == 1


def test_when_their_time_is_over_nobody_waits(
    cache: KernelCache, kernel: Kernel, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.name_ttl_ns(1, b"n", 5)
    kernel.on_top = True
    later_s = time.monotonic() + 60
    monkeypatch.setattr(kernel_cache.time, "monotonic", lambda: later_s)
    assert recall(cache, 1) and not waits


def test_names_that_cannot_be_made_invalid_are_not_forgotten_when_they_are_too_many(
    cache: KernelCache, kernel: Kernel, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel_cache, "TOLD_MAX", 2)
    for ino in (1, 2):
        cache.name_ttl_ns(ino, b"n", 5)
    monkeypatch.setattr(kernel, "forget_names", lambda: False)  # it is mounted between the look and the notification of the third
    assert cache.name_ttl_ns(3, b"n", 5) == 0
    assert not recall(cache, 1) and not recall(cache, 2) and len(waits) == 2


@pytest.mark.parametrize(("minor", "has_epoch"), [(43, True), (45, False)])
def test_a_kernel_that_cannot_be_told_to_ask_again_gets_no_name_and_is_waited_for_never(
    minor: int, has_epoch: bool, cache: KernelCache, kernel: Kernel, waits: list[float]
) -> None:
    """Before 7.44, and one that has refused INC_EPOCH."""
    kernel.minor, kernel.has_epoch = minor, has_epoch
    assert [cache.name_ttl_ns(1, b"n", 5), cache.name_ttl_ns(1, b"gone", ABSENT)] == [0, 0]
    kernel.on_top = True
    assert recall(cache, 1) and not waits and not kernel.epochs


def test_until_the_own_mount_is_found_something_may_be_mounted_on_it(tmp_path: Any) -> None:
    assert nested.NestedMounts(str(tmp_path)).there() and nested.NestedMounts("/proc", always=True).there()


class Threads:
    """What is submitted runs when the test says so."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []

    def submit(self, work: Callable[[], None]) -> None:
        self.work.append(work)


def opened(ino: int, flags: int) -> OpenFile:
    return OpenFile(9, ino, flags, KIND_FILE, 1, 1)


def test_a_recall_waits_until_the_kernel_has_no_page(cache: KernelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    threads, answered = Threads(), []
    late: list[Callable[[], None]] = []
    monkeypatch.setattr(kernel_cache, "after", lambda _pause_s, call: late.append(call) or SimpleNamespace(cancel=lambda: None))
    cache._threads, cache.filled = threads, {5, 6}
    cache.forget_for_recall(4, LEASE_NONE, lambda: answered.append(4))
    assert answered == [4], "of this one it has none"
    cache.forget_for_recall(5, LEASE_NONE, lambda: answered.append(5))
    cache.forget_for_recall(6, LEASE_NONE, lambda: answered.append(6))
    assert answered == [4], "those of the others are not gone yet"
    threads.work[0]()
    assert answered == [4, 5]
    late[1]()
    assert answered == [4, 5, 6], "READs, or a program that holds a page, keep it for too long"
    threads.work[1]()
    late[0]()
    assert answered == [4, 5, 6], "each is answered once"


def test_pages_are_not_waited_for_where_they_may_be_dirty(cache: KernelCache) -> None:
    cache.filled = {5, 6}
    cache._opens = [opened(5, os.O_RDWR), opened(5, os.O_RDONLY), opened(6, os.O_RDONLY), opened(7, os.O_WRONLY)]
    assert [cache.has_old_pages(ino) for ino in (4, 5, 6, 7)] == [False, False, True, False]
    assert recall(cache, 5)


@pytest.mark.parametrize(("default", "own", "forgets"), [
    (STRICT, None, True), (STRICT, UNSAID, True), (STRICT, CLOSE_TO_OPEN, False),
    (CLOSE_TO_OPEN, None, False), (CLOSE_TO_OPEN, UNSAID, False), (CLOSE_TO_OPEN, STRICT, True),
])  # fmt: skip
def test_a_recall_takes_back_the_attributes_of_a_strict_file_that_a_dead_worker_has_opened(
    kernel: Kernel, default: int, own: int | None, forgets: bool
) -> None:
    """`own`: the mode that its attributes name; None: they are not known."""
    attr = None if own is None else Attr(5, stat.S_IFREG, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, consistency=own)
    leases: Any = SimpleNamespace(changing=lambda _ino: False, leaving=lambda _ino: False)
    names: Any = SimpleNamespace(attr=lambda _ino: attr, drop=lambda _ino: None)
    inherited = [opened(5, os.O_RDONLY)]
    threads: Any = Threads()
    cache = KernelCache(leases, names, kernel, threads, lambda: LEFT_NS, lambda: kernel.minor, Modes(default), inherited)
    forgotten: list[int] = []
    kernel.forget_attributes = forgotten.append  # type: ignore[method-assign]
    assert recall(cache, 5)
    assert forgotten == [5] * forgets


@pytest.mark.parametrize(("own", "forgets"), [(None, False), (CLOSE_TO_OPEN, False), (STRICT, True)])
def test_a_recall_lets_attributes_arrive_of_a_file_that_was_opened_here_as_one_that_need_not_be_strict(
    kernel: Kernel, own: int | None, forgets: bool
) -> None:
    """On a strict mount, by the file's own mode.  Its attributes are not known while a GETATTR, or an own change, is on its way."""

    def of(mode: int) -> Attr:
        return Attr(5, stat.S_IFREG, 1, 0, 0, 0, 9, 0, 0, 0, 0, 0, consistency=mode)

    known: list[Attr | None] = [of(CLOSE_TO_OPEN)]
    leases: Any = SimpleNamespace(changing=lambda _ino: False, leaving=lambda _ino: False)
    names: Any = SimpleNamespace(attr=lambda _ino: known[0], drop=lambda _ino: None)
    threads: Any = Threads()
    cache = KernelCache(leases, names, kernel, threads, lambda: LEFT_NS, lambda: kernel.minor, Modes(STRICT))
    cache.attr_ttl_ns(of(CLOSE_TO_OPEN))  # stat(2) before the open
    assert cache.loose.opened(of(CLOSE_TO_OPEN), 9, os.O_RDONLY) is not None
    forgotten: list[int] = []
    kernel.forget_attributes = forgotten.append  # type: ignore[method-assign]
    known[0] = None if own is None else of(own)
    if own == STRICT:
        assert cache.attr_ttl_ns(of(STRICT)) == 0, "a recall may find its mode unknown, and take it for what it was opened as"
    assert recall(cache, 5)
    assert forgotten == [5] * forgets
    cache.loose.closed(5, 9)
    assert not cache.reads_loosely(5)
