"""NodeUnstage of a block volume whose mount is not served at that moment: nothing is given up, and it is asked again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.csi import blocks, volume_mounts
from awsomefsd.csi.errors import CsiError
from awsomefsd.csi.node import NodeService
from awsomefsd.csi.volume_mounts import VolumeMounts
from awsomefsd.keeper import mount_syscalls
from awsomefsd.node.mounts import DEAD, SERVING, UNWATCHED


class Stage:
    """A block volume that is staged: its mount is in the kernel's table, and a loop device is over its file."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.state = SERVING
        self.loops = ["loop7"]
        self.did: list[str] = []
        mounts = SimpleNamespace(of_volume=lambda number: SimpleNamespace(directory=str(directory), state=self.state))
        self.entry = SimpleNamespace(dir=str(directory), device="0:77", root="/", fstype=mount_syscalls.FSTYPE)
        monkeypatch.setattr(mount_syscalls, "topmost", lambda place: self.entry)
        monkeypatch.setattr(mount_syscalls, "mounts", list)
        monkeypatch.setattr(volume_mounts, "BACK_S", 0.0)
        monkeypatch.setattr(blocks, "of_file", lambda file: list(self.loops))
        monkeypatch.setattr(blocks, "below", lambda place, device: list(self.loops))
        monkeypatch.setattr(blocks, "detach", lambda name: self.did.append(f"detach {name}") or self.loops.remove(name))
        monkeypatch.setattr("awsomefsd.csi.node.published", lambda name: False)
        monkeypatch.setattr("awsomefsd.csi.node.block_file", lambda found, mount: Path("/block"))
        made: Any = VolumeMounts(directory, mounts)  # type: ignore[arg-type]
        monkeypatch.setattr(made, "leave", lambda volume: self.did.append("leave"))
        self.node: Any = object.__new__(NodeService)
        self.node._volume_mounts = made
        self.node._blocks = SimpleNamespace(detach_dead=lambda found, mount: None)
        self.node._driver = SimpleNamespace(node="n1")
        self.node._volumes = SimpleNamespace(propose=lambda command: self.did.append(type(command).__name__), claims=lambda volume: [])

    def unstage(self) -> None:
        volume = SimpleNamespace(volume=3, uuid="u", name="v")
        self.node._unstage(SimpleNamespace(handle="h", volume=volume, path="", block=True, inline_node=""))


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(tmp_path, monkeypatch)


@pytest.mark.parametrize("state", ["starting", "waiting", "mounting", "unmounting", UNWATCHED])
def test_a_claim_stays_while_the_mount_is_not_served_at_this_moment(stage: Stage, state: str) -> None:
    stage.state = state
    with pytest.raises(CsiError, match="try again") as refused:
        stage.unstage()
    assert refused.value.status == "UNAVAILABLE" and not stage.did
    stage.state = SERVING
    stage.unstage()
    assert stage.did == ["detach loop7", "leave", "EndClaims"]


def test_a_mount_that_is_dead_keeps_nobody(stage: Stage) -> None:
    stage.state = DEAD
    stage.unstage()
    assert stage.did == ["leave", "EndClaims"]
