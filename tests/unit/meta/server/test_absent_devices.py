"""The leader says which devices are absent: by what nodes report, and by which of them live."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from awsomefsd.base.limits import ABSENT_AFTER_MS, DEVICE_REPORT_MS
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.devices import ReportDevices, Sighting
from awsomefsd.meta.server.absent_devices import _is_away
from awsomefsd.meta.server.device_reports import SILENT_MS
from awsomefsd.meta.state.rows import DeviceRow
from tests.unit.meta.server.leader_group import Cluster, Wire

STEP_S = DEVICE_REPORT_MS / 1_000
DECIDED_S = (SILENT_MS + ABSENT_AFTER_MS) / 1_000 + 3 * STEP_S


class Nodes:
    """A cluster of three with a shared device and one of node n2; `sees` says what each node reports, and who reports at all."""

    def __init__(self, level: int = 3) -> None:
        self.cluster = Cluster()
        self.leader = "n1"
        self.sees: dict[str, dict[str, str]] = {name: {"s": "ok"} for name in ("n1", "n2", "n3")}
        self.sees["n2"]["l"] = "ok"
        host = self.cluster.wire("n1", 0)
        for device, shared, home in (("s", True, ""), ("l", False, "n2")):
            self.propose(host, c.AddDevice(device, 1 << 30, 1 << 22, 64, 1 << 20, shared, home))
        self.propose(host, c.RaiseLevel(level))

    def propose(self, wire: Wire, command: c.AnyCommand) -> None:
        assert not isinstance(wire.ask(m.Propose(0, 0, 0, [], command)), m.Failed)

    def go_on(self, seconds: float = DECIDED_S) -> set[str]:
        """Lets time pass; returns the UUIDs of the devices that are absent then."""
        for _ in range(round(seconds / STEP_S)):
            for node, seen in self.sees.items():
                wire = self.cluster.wire(self.leader, 0)
                wire.ask(ReportDevices(node, [Sighting(uuid, f"/dev/{uuid}", 1, state) for uuid, state in seen.items()]))
            for _ in range(10):  # a leader that was not asked for longer has been paused, and ends no session then
                self.cluster.advance(STEP_S / 10)
                self.cluster.turn()
        return self.absent()

    def absent(self) -> set[str]:
        voter = self.cluster.voters[self.leader]
        return {row.uuid for row in voter.replica.machine.device_rows() if row.absent}


@pytest.fixture
def nodes() -> Nodes:
    """Of them, "d" is the rig's own: it is shared by nobody, has no home and is never seen."""
    return Nodes()


def test_a_shared_device_is_absent_when_no_node_sees_it_and_back_with_the_first_that_does(nodes: Nodes) -> None:
    assert nodes.go_on() == {"d"}
    del nodes.sees["n1"]["s"], nodes.sees["n2"]["s"]
    assert nodes.go_on() == {"d"}, "n3 sees it"
    nodes.sees["n3"]["s"] = "cannot be read: Input/output error"
    assert nodes.go_on(2 * STEP_S) == {"d"}, "it may be a moment only"
    assert nodes.go_on() == {"d", "s"}
    nodes.sees["n2"]["s"] = "ok"
    assert nodes.go_on(STEP_S) == {"d"}


@pytest.mark.parametrize("state", ["does not answer", "cannot be looked at now: Too many open files"])
def test_a_node_that_could_not_look_says_nothing_of_the_device(nodes: Nodes, state: str) -> None:
    """Its workers may have it open, and write to it."""
    for seen in nodes.sees.values():
        seen["s"] = state
    nodes.sees["n2"]["l"] = state
    assert nodes.go_on() == {"d"}


def test_a_device_of_a_node_goes_with_the_node_and_comes_back_with_it(nodes: Nodes) -> None:
    seen = nodes.sees.pop("n2")
    assert nodes.go_on() == {"d", "l"}, "n2 is gone; the shared one is seen by others"
    nodes.sees["n2"] = seen
    assert nodes.go_on(STEP_S) == {"d"}
    del nodes.sees["n2"]["l"]
    nodes.sees["n1"]["x"] = "ok"
    assert nodes.go_on() == {"d", "l"}, "it was unplugged"


def test_nobody_else_keeps_a_local_device_in_use_by_its_word(nodes: Nodes) -> None:
    """It has no path to it; what is written to a device that is called present waits for it."""
    nodes.sees["n3"]["l"] = "ok"
    del nodes.sees["n2"]["l"]
    assert nodes.go_on() == {"d", "l"}
    nodes.sees["n2"]["l"] = "ok"
    assert nodes.go_on(STEP_S) == {"d"}


def test_while_the_mounts_of_a_silent_node_live_its_devices_are_not_called_absent(nodes: Nodes) -> None:
    """Its daemon is replaced, and its workers go on with devices that nobody else may see."""
    wire = nodes.cluster.wire("n1", 7)
    opened = wire.ask(m.Propose(1, 0, 0, [], c.OpenSession(7, 1, "n2", "boot", 1)))
    assert isinstance(opened, m.SessionOpened)
    del nodes.sees["n2"]
    for seen in nodes.sees.values():
        del seen["s"]
    for _ in range(round(DECIDED_S / STEP_S)):
        assert isinstance(wire.ask(m.Renew(opened.session, opened.epoch, 0)), m.Done)
        assert not nodes.go_on(STEP_S)
    assert nodes.go_on(2 * DECIDED_S) == {"d", "l", "s"}, "its session has ended"


def test_what_is_mounted_at_a_silent_node_says_nothing_of_its_device_in_a_pool() -> None:  # row 23 of what goes wrong in pools
    """Only a segment server has that open."""
    row = DeviceRow(1, "p", 1 << 30, 1 << 22, 64, 1 << 20, False, 0, 64, home="n2")
    assert not _is_away(row, {"n1"}, {"n2"})
    assert _is_away(replace(row, pool=1), {"n1"}, {"n2"})


def test_a_new_leader_waits_for_reports_before_it_judges(nodes: Nodes) -> None:
    nodes.go_on()
    nodes.cluster.lead("n2")
    nodes.leader = "n2"
    del nodes.sees["n2"]
    assert nodes.go_on((SILENT_MS + ABSENT_AFTER_MS) / 1_000 - STEP_S) == {"d"}
    assert nodes.go_on() == {"d", "l"}
    proposed = [entry.command for entry in nodes.cluster.entries if isinstance(entry.command, c.SetAbsent)]
    assert len(proposed) == 2, "each change is one entry"


def test_where_nobody_reports_and_below_its_level_nothing_is_decided() -> None:
    silent = Nodes()
    silent.sees = {}
    assert silent.go_on() == set()
    older = Nodes(level=2)
    assert older.go_on() == set()
    assert not [entry for entry in older.cluster.entries if isinstance(entry.command, c.SetAbsent)]
