"""What `awsomefsd device drain` says of a drain that does not go on."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.cli import device, main


def report(used: int, why: str = "", standing: int = 1) -> pb.DrainDeviceReply:
    return pb.DrainDeviceReply(device=pb.Device(device=3), segments_used=used, segments_standing=standing if why else 0, why=why)


class Client:
    """Has a report for each call; the last one stays."""

    def __init__(self, *reports: pb.DrainDeviceReply) -> None:
        self.left = list(reports)
        self.asked: list[dict[str, Any]] = []

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def call(self, rpc: str, timeout_s: float, **fields: Any) -> pb.DrainDeviceReply:
        assert rpc == "DrainDevice"
        self.asked.append(fields)
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "DRAIN_POLL_S", 0.0)


def waited(capsys: pytest.CaptureFixture[str], first: pb.DrainDeviceReply, *more: pb.DrainDeviceReply) -> list[str]:
    client: Any = Client(*more)
    assert device._emptied(client, first).segments_used == 0
    assert all(fields == {"device": "3", "look": True} for fields in client.asked)
    return capsys.readouterr().err.splitlines()


def test_each_reason_is_said_once_when_it_has_stood_for_two_looks(capsys: pytest.CaptureFixture[str]) -> None:
    room, away = "no device has room", "no mirror is there"
    looks = [report(9, room), report(8, room), report(8, room), report(8, away, 2), report(8, away, 2), report(1), report(0)]
    assert waited(capsys, report(9), *looks) == [
        f"1 segment cannot leave device 3 now: {room}; the command goes on waiting",
        f"2 segments cannot leave device 3 now: {away}; the command goes on waiting",
    ]


def test_what_stands_for_a_moment_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert waited(capsys, report(9), report(9, "no device has room"), report(4), report(0)) == []


def test_a_drain_that_stands_is_told_without_waiting_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(main.Invocation, "client", lambda self: Client(report(2, "no device has room", 2)))
    done = CliRunner().invoke(main.cli, ["device", "drain", "3"], obj=main.Invocation())
    assert done.exit_code == 0, done.output
    assert "2 segments cannot leave device 3 now: no device has room" in done.output
