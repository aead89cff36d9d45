"""What a mount remembers of leases that it was refused: bounded, changed by one thread at a time, and no asker waits for ever."""

from __future__ import annotations

import errno
import threading
from typing import Any

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.meta.api.messages import Contested, GetLease
from awsomefsd.meta.client import lease_cache
from awsomefsd.meta.client.lease_cache import MountLeases
from awsomefsd.meta.client.recalls import RecallQueue

PAUSED_MAX, ASKED, THREADS = 8, 400, 4
PAUSE_MS = 3_600_000


class Channel:
    """The client's: takes what is asked, for a test to answer on any thread."""

    def __init__(self) -> None:
        self.asked: list[tuple[GetLease, Any]] = []

    def submit(self, body: Any, resume: Any) -> None:
        if isinstance(body, GetLease):
            self.asked.append((body, resume))

    def lease_left_ns(self) -> int:
        return 1 << 40

    def doubt_session(self) -> None:
        pass


class Watched(dict[int, float]):
    """Changed with the lock held only: a look for the oldest beside a change ends with RuntimeError, and its asker was never resumed."""

    lock: Any

    def __setitem__(self, ino: int, until: float) -> None:
        assert self.lock._is_owned()
        super().__setitem__(ino, until)

    def __delitem__(self, ino: int) -> None:
        assert self.lock._is_owned()
        super().__delitem__(ino)

    def pop(self, *args: Any) -> Any:
        assert self.lock._is_owned()
        return super().pop(*args)


@pytest.fixture
def channel() -> Channel:
    return Channel()


@pytest.fixture
def leases(channel: Channel, monkeypatch: pytest.MonkeyPatch) -> MountLeases:
    monkeypatch.setattr(lease_cache, "LEASES_PAUSED_MAX", PAUSED_MAX)
    made = MountLeases(channel, 1, RecallQueue())
    made.begin(5, 5)
    made._paused = Watched()
    made._paused.lock = made._lock
    return made


def test_refusals_on_several_threads_resume_each_asker_and_are_remembered_up_to_a_bound(leases: MountLeases, channel: Channel) -> None:
    resumed: list[int] = []
    for ino in range(2, 2 + ASKED):
        leases.ask(ino, 1, lambda reply, error, ino=ino: resumed.append(ino))  # type: ignore[misc]
    answers, channel.asked = channel.asked, []

    def answer(part: int) -> None:
        for body, resume in answers[part::THREADS]:
            if body.ino % 2:
                resume(Contested(PAUSE_MS), None)
            else:
                resume(None, FsError(errno.EAGAIN, "no"))

    threads = [threading.Thread(target=answer, args=(part,)) for part in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(resumed) == [*range(2, 2 + ASKED)] and len(leases._paused) == PAUSED_MAX


def test_the_oldest_refusal_is_forgotten_and_asked_for_again(leases: MountLeases, channel: Channel) -> None:
    for ino in range(2, 3 + PAUSED_MAX):
        leases.cover(ino)
        channel.asked.pop()[1](Contested(PAUSE_MS), None)
    for ino in range(2, 3 + PAUSED_MAX):
        leases.cover(ino)
    assert [body.ino for body, _ in channel.asked] == [2], "the others are paused"
