"""The words for a service manager's watchdog: from the metadata loop, and only while it turns."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
import trio
import trio.testing

from awsomefsd.base.watchdog import Watchdog, keep_fed
from tests.unit.cli.test_cli import Node, node  # noqa: F401 - the fixture

INTERVAL_US = 400_000


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    made.bind(str(tmp_path / "n"))
    made.setblocking(False)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
    monkeypatch.setenv("WATCHDOG_USEC", str(INTERVAL_US))
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    return made


def words(manager: socket.socket) -> int:
    count = 0
    while True:
        try:
            assert manager.recv(64) == b"WATCHDOG=1"
        except BlockingIOError:
            return count
        count += 1


def test_a_word_each_quarter_of_the_interval(manager: socket.socket) -> None:
    now = 0
    watchdog = Watchdog(lambda: now)
    assert watchdog.watched and watchdog.look_s * 2 == INTERVAL_US / 4e6, "often enough, and no oftener"
    for now in range(0, 1_000_000_001, 1_000_000):  # noqa: B007 - the clock reads it
        watchdog.feed()
    assert words(manager) == 11
    manager.close()


@pytest.mark.parametrize("environment", [{}, {"WATCHDOG_USEC": "x"}, {"WATCHDOG_USEC": "400000", "WATCHDOG_PID": "1"}])
def test_silent_where_nobody_watches(environment: dict[str, str], manager: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WATCHDOG_USEC")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    watchdog = Watchdog()
    watchdog.feed()
    assert not watchdog.watched and words(manager) == 0
    monkeypatch.setenv("WATCHDOG_USEC", str(INTERVAL_US))
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert Watchdog().watched
    manager.close()


def test_a_daemon_that_waits_for_its_cluster_feeds(node: Node) -> None:  # noqa: F811
    """It is READY long before there is a metadata thread, and its manager would kill it."""
    heard: list[bytes] = []

    def listen(manager: socket.socket) -> None:
        heard.extend(manager.recv(512) for _ in range(4))

    node.start(after=listen, WATCHDOG_USEC=str(INTERVAL_US))
    assert heard.count(b"WATCHDOG=1") >= 3, heard
    assert node.stop() == 0


def test_fed_from_the_event_loop_while_there_is_no_metadata_thread(manager: socket.socket) -> None:
    idle = True

    async def main() -> None:
        nonlocal idle
        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep_fed, lambda: idle)
            while not words(manager):
                await trio.sleep(0.01)
            idle = False
            await trio.testing.wait_all_tasks_blocked()
            words(manager)
            await trio.sleep(INTERVAL_US / 1_000_000)
            assert words(manager) == 0
            nursery.cancel_scope.cancel()

    trio.run(main)
    manager.close()


def test_an_idle_daemon_feeds(node: Node) -> None:  # noqa: F811
    """Its manager hears READY=1, then words without anybody asking the daemon for anything."""
    import awsomefsd.cli.main as command_line

    assert command_line.run([*node.options, "init"]) == 0
    heard: list[bytes] = []
    node.start(after=lambda manager: heard.extend(manager.recv(64) for _ in range(3)), WATCHDOG_USEC=str(INTERVAL_US))
    assert heard == [b"WATCHDOG=1"] * 3
    assert node.stop() == 0
