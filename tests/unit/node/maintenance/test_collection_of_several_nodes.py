"""Collection on several nodes: each device is collected by its home and by nobody else, and gets another home when that one is gone.

The homes follow from what the nodes report to the leader.  Metadata, reports, collectors and the bytes on the devices are real.
"""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import pytest

from awsomefsd.base.limits import DEVICE_REPORT_MS, KIB, MIB
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device.memory_device import MemoryDevice
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.devices import GetSightings, ReportDevices, Sighting, Sightings
from awsomefsd.meta.server.device_reports import OK, SILENT_MS, DeviceReports
from awsomefsd.node.maintenance.collection import Collection, own_devices
from awsomefsd.node.maintenance.io_budget import IoBudget
from tests.rigs.machine_driver import sound
from tests.rigs.segment_writers import Cluster

SEGMENTS = 16
LOCAL, FIRST, SECOND = 1, 2, 3  # a device in node c, and two that all nodes see
PIECE = 75 * KIB
HOST = {"session": 0, "epoch": 0, "mount": 0}
NODES = ("a", "b", "c")


class Died(Exception):
    """A daemon was killed."""


class Open(OpenDevices):
    """The devices that a node has open."""

    def __init__(self, devices: dict[int, Any]) -> None:
        super().__init__(list, "")
        self._open = devices


class Nodes:
    """Three nodes that collect.

    `sees` has what each of them reports; `moved` who has moved bytes away from which device; `dying` dies before it does.
    """

    def __init__(self, chance: random.Random) -> None:
        self.chance, self.now_ms, self.reports = chance, 0, DeviceReports()
        self.cluster = Cluster(0, device=False)
        self.drive = self.cluster.drive
        self.moved: set[tuple[str, int]] = set()
        self.dying = ""
        self._add(LOCAL, False, "c")
        self.kept = [self.cluster.mount("local", "c")]  # its place is decided while there is no other device
        self.gone = [self.cluster.mount("local-gone", "c")]
        self._add(FIRST, True, "")
        self._add(SECOND, True, "")
        self.kept.append(self.cluster.mount("shared"))
        self.sees = {
            "a": {FIRST: OK, SECOND: "not found on this node"},
            "b": {FIRST: OK, SECOND: OK},
            "c": {LOCAL: OK, FIRST: OK, SECOND: OK},
        }
        self.collections = {node: self._collection(node) for node in NODES}
        self.report()

    def _add(self, number: int, shared: bool, home: str) -> None:
        size = (SEGMENTS + 1) * MIB
        self.drive.ok(c.AddDevice(f"d{number}", size, MIB, SEGMENTS, MIB, shared, home), **HOST)
        self.cluster.devices[number] = MemoryDevice(size)

    def _collection(self, node: str) -> Collection:
        opened = Open({number: self.cluster.devices[number] for number in self.sees[node]})
        return Collection(partial(self.ask, node), self.devices, opened, node, "boot", IoBudget(1 << 60))

    def devices(self) -> list[DeviceInfo]:
        found: list[DeviceInfo] = self.drive.ask(m.GetDevices()).devices
        return found

    def ask(self, node: str, body: Any) -> Any:
        if isinstance(body, GetSightings):
            return self.reports.listing({}, self.now_ms, body.after)
        if isinstance(body, m.Propose) and isinstance(body.command, c.Relocate):
            if node == self.dying:
                raise Died
            numbers = {move.extent.segment for move in body.command.moves}
            self.moved |= {(node, info.device) for info in self.drive.ask(m.GetSegments(sorted(numbers))).segments}
        return self.cluster.ask(body)

    def report(self, milliseconds: int = DEVICE_REPORT_MS) -> None:
        """Time passes, and the nodes go on to report."""
        for _ in range(milliseconds // DEVICE_REPORT_MS):
            self.now_ms += DEVICE_REPORT_MS
            for node, seen in self.sees.items():
                sightings = [Sighting(f"d{number}", f"/dev/{number}", 1, state) for number, state in seen.items()]
                self.reports.take_report(ReportDevices(node, sightings), ["d2", "d3"], self.now_ms)

    def fill(self) -> None:
        """Leaves segments on each device of which most is dead; on the local one the first time only."""
        for device in (LOCAL, FIRST, SECOND) if self.gone else (FIRST, SECOND):
            self.drive.ok(c.SetAbsent(FIRST, device == SECOND), **HOST)  # so that the writers take the second one
            kept = self.kept[device != LOCAL]
            gone = self.cluster.mount(f"gone-{self.drive.index}", kept.node) if device != LOCAL else self.gone.pop()
            for _ in range(7):  # they fill the same segments, one after the other
                for mount, size in ((kept, PIECE), (gone, 4 * PIECE)):
                    mount.write(self.chance.randbytes(size))
                    self.cluster.pause()
            gone.unmount()
            self.drive.ok(c.DeleteVolume(gone.volume, True), **HOST)
            self.drive.ok(c.Reap(10_000), **HOST)
        self.drive.ok(c.SetAbsent(FIRST, False), **HOST)

    def collect(self, *order: str) -> set[tuple[str, int]]:
        """Each of the nodes does all that it has to do; returns who has moved bytes away from which device."""
        self.moved = set()
        for node in order:
            self.collections[node]._look_s = 0.0
            self.collections[node]._turn()
        assert all(mount.read() == mount.content for mount in self.kept)
        sound(self.drive)
        return self.moved


@pytest.fixture
def nodes(seed: int) -> Nodes:
    made = Nodes(random.Random(seed))
    made.fill()
    return made


HOMES = {("c", LOCAL), ("a", FIRST), ("b", SECOND)}


@pytest.mark.parametrize("order", [NODES, NODES[::-1]], ids="-".join)
def test_each_device_is_collected_by_its_home_and_by_nobody_else(nodes: Nodes, order: tuple[str, ...]) -> None:
    """Whoever comes first leaves alone what is another one's, although it sees it too."""
    assert nodes.collect(*order) == HOMES


def test_a_device_whose_home_dies_gets_another_one(nodes: Nodes) -> None:
    """The home dies between two steps of a round, with copies on the device that nothing names."""
    nodes.dying = "a"
    with pytest.raises(Died):
        nodes.collect("a")
    del nodes.sees["a"]
    nodes.report(SILENT_MS)
    assert nodes.collect("b", "c") == HOMES - {("a", FIRST)}, "it may report again"
    nodes.report(2 * DEVICE_REPORT_MS)
    assert {node for node, device in nodes.collect("c", "b") if device == FIRST} == {"b"}


def test_a_device_that_goes_away_from_its_home_gets_another_one_until_it_is_back(nodes: Nodes) -> None:
    nodes.sees["a"][FIRST] = "does not answer"
    nodes.sees["b"].pop(FIRST)
    nodes.report()
    assert nodes.collect(*NODES) == {("c", LOCAL), ("c", FIRST), ("b", SECOND)}
    nodes.fill()
    for seen in nodes.sees.values():
        seen.pop(FIRST, None)
    nodes.report()
    assert nodes.collect(*NODES) == {("b", SECOND)}, "nobody sees it"
    nodes.sees["a"][FIRST] = OK
    nodes.report()
    assert nodes.collect(*NODES[::-1]) == {("a", FIRST)}


def test_devices_of_pools_are_collected_and_scrubbed_by_no_daemon() -> None:
    def ask(body: Any) -> Any:
        return m.Nodes([]) if isinstance(body, m.ListNodes) else Sightings([], [], {})

    devices = [DeviceInfo(number, f"u{number}", 0, MIB, 8, 8, 0, "/dev/x", home="a", pool=number - 1) for number in (1, 2)]
    assert [one.device for one in own_devices("a", ask, devices)] == [1]
