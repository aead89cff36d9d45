"""The RPCs about snapshots, over the rows of a machine."""

from __future__ import annotations

import errno
from typing import Any
from unittest import mock

import grpc
import pytest

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.snapshot_service import SnapshotRpcs
from awsomefsd.base import levels
from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.rule_levels import SNAPSHOTS
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.snapshots import FlushVolumes
from awsomefsd.meta.machine.queries import answer
from awsomefsd.node.catalog import Catalog
from awsomefsd.node.snapshots import SnapshotCatalog
from tests.rigs.machine_driver import Drive


class Rig:
    def __init__(self, level: int = SNAPSHOTS) -> None:
        self.drive = Drive(level=level)
        self.drive.make_volume("one")
        self.drive.make_volume("two")
        self.flushed: list[list[int]] = []
        self.refuses: FsError | None = None
        self.catalog = Catalog(self._call)
        self.rpcs = SnapshotRpcs(SnapshotCatalog(self.catalog, self._ask))
        self.context = mock.Mock(spec=grpc.ServicerContext)

    def create(self, name: str, *volumes: str, **fields: Any) -> list[pb.Snapshot]:
        return list(self.rpcs.CreateSnapshots(pb.CreateSnapshotsRequest(volumes=volumes, name=name, **fields), self.context).snapshots)

    def listed(self, volume: str) -> list[str]:
        return [one.name for one in self.rpcs.ListSnapshots(pb.ListSnapshotsRequest(volume=volume), self.context).snapshots]

    def refusal(self) -> str:
        """What the last call was refused with."""
        assert self.context.set_code.call_args.args[0] is not grpc.StatusCode.INTERNAL
        return str(self.context.set_details.call_args.args[0])

    def _ask(self, body: Any, timeout_s: float) -> Any:
        assert isinstance(body, FlushVolumes)
        self.flushed.append(body.volumes)
        if self.refuses is not None:
            raise self.refuses
        return m.Done()

    def _call(self, body: Any) -> Any:
        if isinstance(body, m.GetStatus):
            return m.Status({"level": self.drive.machine.level})
        reply = self.drive.apply(body.command) if isinstance(body, m.Propose) else answer(self.drive.machine, body)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        return reply


@pytest.fixture(autouse=True)
def unfinished(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(levels, "highest", lambda: SNAPSHOTS)


def test_mounts_are_flushed_and_then_it_is_made_listed_and_deleted() -> None:
    rig = Rig()
    made = rig.create("first", "two", "one")
    assert [(one.volume, one.name, one.number, one.word) for one in made] == [("two", "first", 1, "synced"), ("one", "first", 1, "synced")]
    assert rig.flushed == [[2, 1]]
    [crash] = rig.create("now", "one", crash_consistent=True)
    assert (crash.word, crash.number, len(rig.flushed)) == ("crash", 2, 1)
    assert rig.listed("one") == ["first", "now"] and rig.listed("two") == ["first"]
    with pytest.raises(Refused, match="has snapshots; delete them first"):
        rig.catalog.delete_volume("one", destroy=False)
    gone = rig.rpcs.DeleteSnapshot(pb.DeleteSnapshotRequest(volume="one", name="first"), rig.context)
    assert (gone.volume, gone.name, rig.listed("one")) == ("one", "first", ["now"])
    assert not rig.context.set_code.called


def test_without_the_flush_nothing_is_made() -> None:
    rig = Rig()
    rig.refuses = FsError(errno.ETIMEDOUT, "the mount of volume 1 on node b did not write what it holds back within 60 s")
    assert rig.create("first", "one") == []
    assert "on node b" in rig.refusal() and "--crash-consistent" in rig.refusal() and "one is volume 1" in rig.refusal()
    assert rig.listed("one") == []


@pytest.mark.parametrize(
    ("name", "volumes", "words"),
    [
        ("first", ["one"], "choose another name"),
        ("new", ["one", "none"], "there is no volume 'none'"),
        ("new", ["one", "one"], "each volume once"),
        ("new", [], "each volume once"),
        ("a/b", ["one"], "no name of a snapshot"),
        ("a@b", ["one"], "no name of a snapshot"),
        ("..", ["one"], "no name of a snapshot"),
        ("a\nb", ["one"], "no name of a snapshot"),
        ("", ["one"], "1 to 255 bytes"),
        ("ä" * 128, ["one"], "1 to 255 bytes"),
    ],
)
def test_what_is_refused_says_what_to_do(name: str, volumes: list[str], words: str) -> None:
    rig = Rig()
    rig.create("first", "one")
    assert rig.create(name, *volumes) == [] and words in rig.refusal()
    assert rig.listed("one") == ["first"] and (words == "choose another name" or len(rig.flushed) == 1)


def test_one_that_is_not_there_or_mounted_is_not_deleted() -> None:
    rig = Rig()
    [made] = rig.create("first", "one")
    rig.rpcs.DeleteSnapshot(pb.DeleteSnapshotRequest(volume="one", name="second"), rig.context)
    assert "has no snapshot 'second' (snapshots: first)" in rig.refusal()
    rig.drive.ok(c.OpenSnapshot(8, 1, "n1", "b1", 1, snapshot=made.number, uuid=made.uuid), mount=8)
    rig.rpcs.DeleteSnapshot(pb.DeleteSnapshotRequest(volume="one", name="first"), rig.context)
    assert "is mounted on node n1" in rig.refusal() and rig.listed("one") == ["first"]


@pytest.mark.parametrize("low", ["build", "cluster"])
def test_below_their_level_everybody_is_told(low: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig(SNAPSHOTS if low == "build" else SNAPSHOTS - 1)
    if low == "build":
        monkeypatch.setattr(levels, "highest", lambda: levels.LEVEL)
    assert rig.create("first", "one") == []
    assert ("not complete in this build" if low == "build" else "needs level 5") in rig.refusal()
