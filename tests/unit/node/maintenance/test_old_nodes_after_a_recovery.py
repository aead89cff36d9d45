"""Nodes of before a recovery come back with their state directories, or never went: the devices are refused to them (decision 169)."""

from __future__ import annotations

import errno
import hashlib
import time
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

from awsomefsd.base.errors import AlreadyExists, FormatTooNew, FsError, Refused
from awsomefsd.base.limits import MIB
from awsomefsd.base.rule_levels import ERAS
from awsomefsd.base.types import DeviceInfo
from awsomefsd.io.device import superblock as superblocks
from awsomefsd.io.device.device import Device
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.identified import RecoveredDevice, open_identified
from awsomefsd.io.device.open_devices import OpenDevices
from awsomefsd.io.device.superblock import read_superblock, second_copy_offset, with_era
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.machine.queries import answer
from awsomefsd.node.devices.device_scan import Looked
from awsomefsd.node.devices.device_watch import DeviceWatch
from awsomefsd.node.devices.devices import NodeDevices
from awsomefsd.node.health import rules
from awsomefsd.recovery import device_recover, eras
from buildtools.nodes import await_true
from tests.rigs.growing_cluster import NODES, await_
from tests.rigs.metadata_service import CLUSTER, DEVICE, NODE, host
from tests.unit.node.maintenance.test_checkpoints import SECOND, Rig, make_device, recovered_machine, rig
from tests.unit.node.maintenance.test_checkpoints_of_several import SHARED, Cluster

THIRD = "ffffffff-ffff-ffff-ffff-ffffffffffff"


@pytest.fixture(autouse=True)
def level() -> None:
    Rig.level = ERAS


def infos_of(machine: Machine, paths: dict[str, Path]) -> list[DeviceInfo]:
    known = answer(machine, m.GetDevices())
    assert isinstance(known, m.Devices)
    return [replace(info, path=str(paths[info.uuid])) for info in known.devices if info.uuid in paths]


def recovered_infos(directory: Path, paths: dict[str, Path]) -> list[DeviceInfo]:
    replica, machine = recovered_machine(directory)
    try:
        return infos_of(machine, paths)
    finally:
        replica.close()


def content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def block(text: bytes) -> memoryview:
    from awsomefsd.io.device.buffers import aligned_buffer

    made = aligned_buffer(4096)
    made[: len(text)] = text
    return made


def test_a_device_is_refused_to_the_node_that_was_there_before_and_works_for_the_new_one(tmp_path: Path) -> None:
    with rig(tmp_path) as made:
        made.start()
        made.await_durable()
        made.stop()
        before = [replace(info, path=str(made.path)) for info in made.call(m.GetDevices()).devices if info.uuid == SECOND]
        stays_open = OpenDevices(lambda: before, CLUSTER)  # a worker that nobody stopped
        device = stays_open[2]
        device.pwritev([block(b"before")], 60 * MIB)
        stays_open.look_again()
        device.pwritev([block(b"before")], 60 * MIB)
        device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=False)
        stays_open.look_again()
        with pytest.raises(OSError, match="rebuilt from") as refused:
            device.pwritev([block(b"behind its back")], 60 * MIB)
        assert refused.value.errno == errno.EROFS
        assert OpenDevices(lambda: before, CLUSTER).get(2) is None, "nor is it opened again"
        after = recovered_infos(tmp_path / "new", {SECOND: made.path})
        assert OpenDevices(lambda: after, CLUSTER)[2].path == str(made.path)
        with pytest.raises(RecoveredDevice, match="move its state directory away, and join the rebuilt cluster"):
            open_identified(str(made.path), CLUSTER, SECOND, before[0].era)
        untouched = content(made.path)
        checkpointer = made.start()  # the old daemon
        made.index.wanted.set()
        await_true("it is refused", lambda: "rebuilt from" in checkpointer.state or checkpointer._errors, 60)
        made.stop()
        assert content(made.path) == untouched
    first = after[0].era
    device_recover.recover(tmp_path / "newer", [str(made.path)], "test", dry_run=False)
    (again,) = recovered_infos(tmp_path / "newer", {SECOND: made.path})
    assert again.era > first > before[0].era == 0


def test_a_leader_that_goes_on_beside_a_recovery_writes_no_more_checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its operator was wrong: the voters were not lost, only out of sight.  The lock of one machine does not reach theirs."""
    cluster = Cluster(tmp_path)
    try:
        cluster.found()
        cluster.grow()
        for node in NODES[:3]:
            cluster.checkpointer(node)
        leader = cluster.await_durable()
        monkeypatch.setattr(Device, "lock", lambda _: None)
        device_recover.recover(tmp_path / "new", [str(cluster.path)], "test", dry_run=False)
        ghost = cluster.made[leader.node]
        cluster.rig.propose(c.CreateVolume("of-a-ghost", "uuid"))
        assert leader.progress is not None
        leader.progress.wanted.set()
        await_("it has noticed", lambda: ghost._errors > 0)
        untouched = content(cluster.path)
        written = ghost._written
        cluster.rig.propose(c.CreateVolume("of-a-ghost-too", "uuid-2"))
        errors = ghost._errors
        await_("it has tried again", lambda: ghost._errors > errors)
        assert content(cluster.path) == untouched and ghost._written == written
    finally:
        cluster.close()
    (info,) = recovered_infos(tmp_path / "new", {SHARED: cluster.path})
    open_identified(info.path, info_cluster(cluster), SHARED, info.era).close()


def info_cluster(cluster: Cluster) -> str:
    with Device.open(cluster.path, read_only=True) as device:
        return read_superblock(device).cluster_uuid


def test_a_recovery_below_level_3_raises_the_level_so_that_devices_have_eras(tmp_path: Path) -> None:
    Rig.level = 2
    with rig(tmp_path) as made:
        made.start()
        made.await_durable()
        made.stop()
    device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=False)
    replica, machine = recovered_machine(tmp_path / "new")
    assert machine.level == ERAS and infos_of(machine, {SECOND: made.path})[0].era
    replica.close()


def test_a_recovery_that_ends_between_two_superblocks_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    third = make_device(tmp_path / "third", uuid=THIRD)
    with rig(tmp_path) as made:
        made.propose(c.AddDevice(THIRD, third.stat().st_size, MIB, 70, MIB))
        made.start()
        made.await_durable()
        made.stop()
    paths = {SECOND: made.path, THIRD: third}
    for survives in range(3):
        left = [survives]

        def write(device: Device, superblock: Any, left: list[int] = left) -> None:
            if not left[0]:
                raise OSError(errno.EIO, "the machine dies here")
            left[0] -= 1
            superblocks.write_superblock(device, superblock)

        monkeypatch.setattr(eras, "write_superblock", write)
        directory = tmp_path / f"new-{survives}"
        if survives < 2:
            with pytest.raises(OSError, match="dies here"):
                device_recover.recover(directory, [str(path) for path in paths.values()], "test", dry_run=False)
            monkeypatch.setattr(eras, "write_superblock", superblocks.write_superblock)
        report = device_recover.recover(directory, [str(path) for path in paths.values()], "test", dry_run=False)
        assert (report.done, report.faults, report.missing_devices) == (True, [], [DEVICE])
        after = recovered_infos(directory, paths)
        assert len({info.era for info in after}) == 1
        opened = OpenDevices(lambda after=after: after, CLUSTER)  # type: ignore[misc]
        assert opened[2] and opened[3]


def added(tmp_path: Path, infos: list[DeviceInfo], proposed: list[Any]) -> NodeDevices:
    def add_device(command: c.AddDevice) -> DeviceInfo:
        proposed.append(command)
        return infos[0]

    catalog = SimpleNamespace(devices=lambda: infos, propose=proposed.append, add_device=add_device)
    return NodeDevices(CLUSTER, NODE, DeviceTable(tmp_path), catalog)  # type: ignore[arg-type]


def test_a_device_that_was_not_given_is_used_again_after_it_was_added(tmp_path: Path) -> None:
    third = make_device(tmp_path / "third", uuid=THIRD)
    with rig(tmp_path) as made:
        made.propose(c.AddDevice(THIRD, third.stat().st_size, MIB, 70, MIB))
        made.start()
        made.await_durable()
        made.stop()
    report = device_recover.recover(tmp_path / "new", [str(made.path)], "test", dry_run=False)
    assert report.missing_devices == [DEVICE, THIRD]
    after = recovered_infos(tmp_path / "new", {SECOND: made.path, THIRD: third})
    with pytest.raises(RecoveredDevice, match=f"not recovered: .*awsomefsd device add {third}"):
        open_identified(str(third), CLUSTER, THIRD, after[1].era)
    open_identified(str(third), CLUSTER, THIRD, 0).close()
    proposed: list[Any] = []
    nodes_devices = added(tmp_path, after, proposed)
    with pytest.raises(AlreadyExists, match="of this cluster already"):
        nodes_devices.add(str(third), shared=True, destroy=False)
    assert [state for _, state in nodes_devices.all()] == ["ok", "ok"] and proposed == []
    with pytest.raises(RecoveredDevice, match="rebuilt from"):
        open_identified(str(third), CLUSTER, THIRD, 0)
    old = added(tmp_path, [replace(info, era=0) for info in after], proposed)
    with pytest.raises(RecoveredDevice):
        old.add(str(third), shared=True, destroy=False)
    assert all(state.startswith("recovered: ") for _, state in old.all())


def test_a_recovered_device_that_the_state_does_not_know_is_added_with_its_era(tmp_path: Path) -> None:
    """A backup of before the device was added was restored."""
    path = make_device(tmp_path / "device")
    with Device.open(path) as device:
        superblocks.write_superblock(device, with_era(read_superblock(device), 77))
    proposed: list[Any] = []
    other = DeviceInfo(1, THIRD, 0, 0, 0, 0, 0)
    added(tmp_path, [other], proposed).add(str(path), shared=True, destroy=False)
    assert [type(command) for command in proposed] == [c.SetDeviceEra, c.AddDevice] and proposed[0] == c.SetDeviceEra(SECOND, 77)


def test_an_old_node_does_not_take_up_a_recovered_device_that_it_searches_for(tmp_path: Path) -> None:
    path = make_device(tmp_path / "device")
    info = DeviceInfo(1, SECOND, 0, 0, 0, 0, 0, "", True)
    table = DeviceTable(tmp_path)
    asked: list[Any] = []
    watch = DeviceWatch(
        CLUSTER, NODE, table, lambda body: (asked.append(body), m.Devices([info]))[1], (),
        lambda prober, known, extra: [seen for seen in [prober.probe(str(path))] if seen], now_ns=time.monotonic_ns,
    )  # fmt: skip
    watch.poll()
    assert table.paths() == {SECOND: str(path)}
    with Device.open(path) as device:
        superblocks.write_superblock(device, with_era(read_superblock(device), 1))
    assert watch.sighting(info).state.startswith("recovered: ")
    table.forget(SECOND)
    watch.poll()
    (found,) = watch.search()
    assert isinstance(found, Looked) and found.verdict.startswith("recovered: ") and table.paths() == {}


@pytest.mark.parametrize("known", [True, False], ids=["its path is known", "it is found"])
def test_an_old_majority_that_calls_the_device_absent_still_says_why(tmp_path: Path, known: bool) -> None:
    """All nodes that are left refuse it, so their leader calls it absent; "connect it again" would send an operator the wrong way."""
    path = make_device(tmp_path / "device")
    with Device.open(path) as device:
        superblocks.write_superblock(device, with_era(read_superblock(device), 1))
    table = DeviceTable(tmp_path)
    if known:
        table.add(SECOND, str(path))
    info = DeviceInfo(1, SECOND, 0, 0, 0, 0, 0, str(path) if known else "", True, absent=True)

    def scanning(prober: Any, known: Any, extra: Any) -> list[Looked]:
        return [seen for seen in [prober.probe(str(path))] if seen]

    watch = DeviceWatch(CLUSTER, NODE, table, lambda body: m.Devices([info]), (), scanning)
    for _ in range(3):  # the devices are heard of, searched for, and looked at
        watch.poll()
    catalog = SimpleNamespace(devices=lambda: [info])
    devices = NodeDevices(CLUSTER, NODE, table, catalog, watch.refused)  # type: ignore[arg-type]
    state = devices.state(info)
    assert state.startswith("recovered: ") and str(path) in state
    view = rules.NodeView(True, devices=[rules.DeviceView(SECOND, info.path, state)])
    assert "DEVICE_RECOVERED" in [finding.code for finding in rules.of_node(view)]
    with pytest.raises(Refused, match="rebuilt from"):
        devices.require("")


def test_the_copy_of_the_later_era_counts_and_older_builds_refuse_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_device(tmp_path / "device")
    with Device.open(path) as device:
        ours = read_superblock(device)
        raised = with_era(ours, 5)
        buffer = block(superblocks.pack(raised))
        device.pwritev([buffer], second_copy_offset(ours.device_bytes))  # power is cut before the one at the start is written
        assert read_superblock(device) == raised and read_superblock(device).era == 5
        assert read_superblock(device, repair=True) == raised == superblocks.first_copy(device)
        monkeypatch.setattr(superblocks, "INCOMPAT_KNOWN", 0)
        with pytest.raises(FormatTooNew, match="upgrade this node"):
            read_superblock(device)


def test_an_era_never_becomes_smaller(tmp_path: Path) -> None:
    with ExitStack() as undo:
        on = undo.enter_context(host(tmp_path))
        made = Rig(on, tmp_path)
        made.propose(c.RaiseLevel(ERAS))
        made.propose(c.SetDeviceEra(SECOND, 7))
        for era in (6, 0, -1, 1 << 63):
            with pytest.raises(FsError, match="era"):
                made.propose(c.SetDeviceEra(SECOND, era))
        made.propose(c.AddDevice(SECOND, 72 * MIB, MIB, 70, MIB))
        assert [info.era for info in made.call(m.GetDevices()).devices] == [0, 7]
