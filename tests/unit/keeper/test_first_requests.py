"""Requests behind the start of a keeper wait for the workers that have a mount to bring."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.sockets import readable
from awsomefsd.keeper import forker_client, server, wire
from awsomefsd.keeper.mount_syscalls import FSTYPE
from awsomefsd.keeper.server import Keeper

DEVICE = "0:99"


def turn(keeper: Keeper) -> None:
    """Everything that is due is done."""
    for _ in range(5):  # what is done makes something due
        keeper.loop._running = True
        keeper.loop.later(0, keeper.loop.stop)
        keeper.loop.run()


@pytest.mark.parametrize("comes", [True, False])
def test_a_question_waits_for_the_mounts_that_are_there_but_not_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: bool
) -> None:
    monkeypatch.setattr(forker_client, "_adopt_orphans", lambda: True)  # orphans of all later tests would become children of this process
    monkeypatch.setattr(server, "mounts", lambda: [SimpleNamespace(device=DEVICE, fstype=FSTYPE)])
    monkeypatch.setattr(server, "ADOPT_GRACE_MS", 3_600_000 if comes else 0)
    keeper = Keeper(tmp_path, tmp_path, [])
    keeper.begin()
    with wire.connect(tmp_path / wire.SOCKET_NAME, 60) as sock:
        wire.send(sock, {"op": "list"})
        turn(keeper)
        if comes:
            assert not readable([sock.fileno()], 0), "the worker of that mount is about to come"
            mount: Any = SimpleNamespace(device=DEVICE, describe=lambda: {"mount": "1"})
            keeper._mounts.by_id["1"] = mount
            keeper._settle_early()
            turn(keeper)
        answer = wire.receive(sock)
        assert answer is not None and answer[0]["mounts"] == ([{"mount": "1"}] if comes else [])
    for client in keeper._clients.values():
        client.sock.close()

