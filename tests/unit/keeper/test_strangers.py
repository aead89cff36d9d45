"""Who may ask the keeper: root and the keeper's own user; the kernel says who connects, whatever the mode of the socket is by then."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from awsomefsd.keeper import forker_client, wire
from awsomefsd.keeper.server import Keeper


@pytest.mark.parametrize(("uid", "heard"), [(12_345, False), (0, True), (os.getuid(), True)])
def test_every_operation_is_for_root_and_ourselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uid: int, heard: bool) -> None:
    """The door is before the operations: of a stranger nothing is read, so there is no operation that could be open to one."""
    monkeypatch.setattr(forker_client, "_adopt_orphans", lambda: True)  # orphans of all later tests would become children of this process
    keeper = Keeper(tmp_path, tmp_path, [])
    keeper.begin()
    place = tmp_path / wire.SOCKET_NAME
    assert place.stat().st_mode & 0o777 == 0o600
    monkeypatch.setattr(wire, "peer", lambda _sock: (1, uid))
    with wire.connect(place, 60) as sock:
        keeper._accept()
        if heard:
            assert len(keeper._clients) == 1
        else:
            assert keeper._clients == {} and sock.recv(1) == b""
    for client in keeper._clients.values():
        client.sock.close()
