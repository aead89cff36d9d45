"""`init` and `join` wait for the daemon that waited for them; without that the next command of a script met a closed socket."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from awsomefsd.base.errors import Unavailable
from awsomefsd.cli.processes import new_node


class Client:
    """Answers as the daemon does on its way: it waits still, closes its socket, and is the node."""

    def __init__(self, answers: list[str | Exception]) -> None:
        self._answers = answers
        self.asked = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def call(self, name: str) -> Any:
        assert name == "GetStatus"
        self.asked += 1
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return SimpleNamespace(node=answer)


def awaited(client: Client) -> bool:
    return new_node.await_daemon(cast(Any, SimpleNamespace(client=lambda: client)), "ours")


def test_it_waits_until_the_daemon_is_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_node, "LOOK_S", 0)
    client = Client(["", Unavailable("no daemon answers"), "ours"])
    assert awaited(client) and client.asked == 3


def test_it_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(new_node, "GOES_ON_S", 0.01)
    monkeypatch.setattr(new_node, "LOOK_S", 0)
    assert not awaited(Client([""]))
    new_node.tell_next(True, False)
    assert "does not answer as this node" in capsys.readouterr().out


def test_it_says_what_to_start_only_where_nothing_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = cast(Any, SimpleNamespace(admin_socket=tmp_path / "admin.sock"))
    assert not new_node.daemon_waits(place)
    new_node.tell_next(False, False)
    assert "awsomefsd keeper & awsomefsd run &" in capsys.readouterr().out
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place.admin_socket))
        listener.listen()
        assert new_node.daemon_waits(place)
    new_node.tell_next(True, True)
    assert capsys.readouterr().out == ""
