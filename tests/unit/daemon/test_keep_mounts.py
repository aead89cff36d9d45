"""When a daemon looks at its mounts: at events, and not by the clock."""

from __future__ import annotations

import math
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from awsomefsd.daemon import keep_mounts as module
from awsomefsd.daemon.keep_mounts import HostEvents, keep_mounts
from awsomefsd.keeper import wire
from awsomefsd.node.mounts import DesiredMount


class Looks:
    """Stands where the mounts of a node stand."""

    def __init__(self) -> None:
        self.unsettled = False
        self.count = 0
        self.dead: list[DesiredMount] = []
        self.revived = threading.Event()

    def reconcile(self) -> list[DesiredMount]:
        self.count += 1
        dead, self.dead = self.dead, []
        return dead

    def revive(self, wanted: DesiredMount) -> None:
        self.revived.set()


@pytest.fixture(autouse=True)
def _only_events(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SLOW_LOOK_S", math.inf)
    monkeypatch.setattr(module, "LOOK_S", 0.001)
    monkeypatch.setattr(module, "RESTLESS_S", 0.0)


@contextmanager
def events_of(run_dir: Path) -> Iterator[HostEvents]:
    events = HostEvents(run_dir)
    try:
        yield events
    finally:
        events.close()


async def until(true: Callable[[], Any]) -> None:
    while not true():
        await trio.sleep(0.001)


def test_a_mount_and_an_unmount_are_events(tmp_path: Path) -> None:
    looks, at = Looks(), tmp_path / "at"
    at.mkdir()

    async def main(events: HostEvents) -> None:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_mounts, looks, events)
                await until(lambda: looks.count >= 1)  # mounts of others are events as well
                for command in (["mount", "-t", "tmpfs", "none", str(at)], ["umount", str(at)]):
                    before = looks.count
                    await trio.run_process(command)
                    await until(lambda before=before: looks.count > before)
                nursery.cancel_scope.cancel()

    try:
        with events_of(tmp_path) as events:
            trio.run(main, events)
    finally:
        subprocess.run(["umount", "-q", str(at)], check=False)


def test_a_mount_before_the_wait_is_an_event(tmp_path: Path) -> None:
    """The kernel tells an epoll of a change once, and a loop that only then begins to watch that epoll is not told again."""
    at = tmp_path / "at"
    at.mkdir()

    async def main(events: HostEvents) -> list[bool]:
        seen = []
        for command in (["mount", "-t", "tmpfs", "none", str(at)], ["umount", str(at)]):
            await trio.run_process(command)
            seen.append(await events.changed(60))
        return seen

    try:
        with events_of(tmp_path) as events:
            assert trio.run(main, events) == [True, True]
    finally:
        subprocess.run(["umount", "-q", str(at)], check=False)


def test_the_end_of_the_keeper_is_an_event(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = tmp_path / "mountinfo"  # what others mount meanwhile would be an event
    os.mkfifo(quiet)  # a regular file cannot be polled
    keeps_it = os.open(quiet, os.O_RDWR)
    monkeypatch.setattr(module, "_TABLE", str(quiet))
    listener = wire.listen(tmp_path / wire.SOCKET_NAME)

    async def main(events: HostEvents) -> None:
        with trio.fail_after(120):
            for _ in range(2):  # the keeper that comes next is watched too
                async with trio.open_nursery() as nursery:
                    seen: list[bool] = []

                    async def wait(seen: list[bool] = seen) -> None:
                        seen.append(await events.changed(math.inf))

                    nursery.start_soon(wait)
                    await trio.lowlevel.wait_readable(listener)
                    sock, _ = listener.accept()
                    assert not seen
                    sock.close()
                assert seen == [True]

    try:
        with listener, events_of(tmp_path) as events:
            trio.run(main, events)
    finally:
        os.close(keeps_it)


def test_what_is_not_in_order_is_looked_at_again_and_what_is_dead_is_revived(tmp_path: Path) -> None:
    looks = Looks()
    looks.unsettled = True

    async def main(events: HostEvents) -> None:
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(keep_mounts, looks, events)
                await until(lambda: looks.count > 3)
                looks.dead = [DesiredMount(1, 1, "v", "/mnt/v", ())]
                await trio.to_thread.run_sync(looks.revived.wait)
                looks.unsettled = False
                nursery.cancel_scope.cancel()

    with events_of(tmp_path) as events:
        trio.run(main, events)
