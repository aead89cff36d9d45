"""What is promised of names while something is mounted on a directory: nothing new, and all that was promised before is waited for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.types import LEASE_NONE
from awsomefsd.fuse import nested_mounts as nested
from awsomefsd.vfs.state import kernel_cache
from awsomefsd.vfs.state.kernel_cache import KernelCache
from awsomefsd.vfs.state.names import ABSENT

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
