"""Notifications beside direct writes that never end: the others are sent too, and none of pages is lost."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from awsomefsd.fuse import abi
from awsomefsd.fuse.notify import PAGE_DROPS_WAITING_MAX, QUEUED_MAX, Notifier

LIMIT_S = 60
ROUNDS = 20


class Told(Notifier):
    """Notes what the kernel is told; `busy` while the kernel holds the first notification."""

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.busy, self.held = threading.Event(), threading.Event()
        super().__init__(-1)

    def _send(self, message: bytes) -> None:
        self.messages.append(message)
        self.busy.set()
        assert self.held.wait(LIMIT_S)


@pytest.fixture
def notifier() -> Iterator[Told]:
    told = Told()
    yield told
    told.held.set()
    told.close()
    told._thread.join()


def write(told: Told, number: int, then: Callable[[], None] = lambda: None) -> None:
    told.drop_pages(7, number * 4096, 4096, then)


def test_direct_writes_that_never_end_keep_no_other_notification_back(notifier: Told) -> None:
    """One is answered, and the kernel sends the next: something always waits for its pages."""
    left = [ROUNDS * PAGE_DROPS_WAITING_MAX]

    def again() -> None:
        if left[0]:
            left[0] -= 1
            write(notifier, left[0], again)

    for number in range(PAGE_DROPS_WAITING_MAX):
        write(notifier, number, again)
    assert notifier.busy.wait(LIMIT_S)
    notifier.invalidate_inode(9)
    notifier.drop_pages(8, 0, 4096, lambda: None)  # one too many to wait
    notifier.held.set()
    assert notifier.flushed(LIMIT_S)
    others = [notifier.messages.index(message) for message in (abi.pack_inval_inode(9, 0, 0), abi.pack_inval_inode(8, 0, 4096))]
    assert max(others) <= 3 * PAGE_DROPS_WAITING_MAX


def test_pages_of_direct_writes_that_could_not_wait_go_however_many_these_are(notifier: Told) -> None:
    """The kernel keeps a page for ever, if nobody takes it."""
    notifier.drop_pages(7, 0, 4096, lambda: None)
    assert notifier.busy.wait(LIMIT_S)
    for number in range(PAGE_DROPS_WAITING_MAX - 1):
        write(notifier, number)
    notifier.drop_pages(5, 4096, 0, None)
    notifier.drop_pages(5, 0, 4096, None)
    for number in range(QUEUED_MAX + 9):
        write(notifier, 1000 + number)
        notifier.invalidate_inode(100 + number, -1)
    notifier.held.set()
    assert notifier.flushed(LIMIT_S)
    assert abi.pack_inval_inode(7, 1000 * 4096, (QUEUED_MAX + 9) * 4096) in notifier.messages
    assert abi.pack_inval_inode(5, 0, 0) in notifier.messages
