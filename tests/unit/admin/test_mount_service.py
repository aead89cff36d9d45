"""What the API says of mounts: whom it asks for what a power cut may take, and that a mount is told of without an answer too."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest

from awsomefsd.admin.mount_service import MountRpcs
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import Unavailable
from awsomefsd.base.power_cut import DECIDES, UNKNOWN, WHY, Why, of_mount
from awsomefsd.node.mounts import MountView

HERE = MountView(7, "vol", "/mnt", (), "serving", served_as=7)
DECIDING = {DECIDES: 1, WHY: int(Why.DECIDES)}


class Place:
    """The mounts of a node, and what the leader would answer."""

    def __init__(self) -> None:
        self.made = [HERE, replace(HERE, mount=8, directory="/further")]
        self.word = "delegated"
        self.figures: dict[int, dict[str, int]] = {}
        self.asked: list[str] = []

    # --- Mounts
    def shown(self) -> list[MountView]:
        return self.made

    def mount(self, volume: str, directory: str, options: list[str]) -> MountView:
        return replace(HERE, directory=directory, options=tuple(options))

    def remount(self, volume: str, directory: str, options: list[str]) -> MountView:
        return replace(HERE, directory=directory, options=("sync",))

    # --- Catalog
    def names(self) -> dict[str, str]:
        self.asked.append("names")
        if not self.word:
            raise Unavailable("no leader")
        return {"vol": self.word}

    def reports(self) -> dict[int, dict[str, int]]:
        self.asked.append("reports")
        return self.figures


@pytest.fixture
def place() -> Place:
    return Place()


@pytest.fixture
def rpcs(place: Place) -> MountRpcs:
    return MountRpcs(cast(Any, place), cast(Any, place), lambda: None)


def listed(rpcs: MountRpcs, *, power_cut: bool) -> list[str]:
    return [mount.power_cut for mount in rpcs.ListMounts(pb.ListMountsRequest(power_cut=power_cut), cast(Any, None)).mounts]


def test_a_new_mount_says_what_it_is_going_to_do(place: Place, rpcs: MountRpcs) -> None:
    for options in ([], ["shared"], ["dirsync"]):
        made = rpcs.Mount(pb.MountRequest(volume="vol", directory="/mnt", options=options), cast(Any, None))
        assert made.power_cut == of_mount("delegated", options, {}) and made.directory == "/mnt"


def test_a_remount_does_not_go_by_what_its_worker_has_reported_before(place: Place, rpcs: MountRpcs) -> None:
    place.figures = {7: DECIDING}
    made = rpcs.Mount(pb.MountRequest(volume="vol", directory="/mnt", options=["remount", "sync"]), cast(Any, None))
    assert made.power_cut == of_mount("delegated", ["sync"], {}) != of_mount("delegated", ["sync"], DECIDING)


def test_a_list_asks_for_it_only_if_somebody_wants_it(place: Place, rpcs: MountRpcs) -> None:
    assert listed(rpcs, power_cut=False) == ["", ""] and not place.asked
    place.figures = {7: {DECIDES: 0, WHY: Why.KEEPER}}
    assert listed(rpcs, power_cut=True) == [of_mount("delegated", [], place.figures[7])] * 2, "both directories are of one worker"


def test_without_a_leader_mounts_are_made_and_listed(place: Place, rpcs: MountRpcs) -> None:
    place.word = ""
    assert rpcs.Mount(pb.MountRequest(volume="vol", directory="/mnt"), cast(Any, None)).power_cut == UNKNOWN
    assert listed(rpcs, power_cut=True) == [UNKNOWN] * 2 and "reports" not in place.asked
