"""From one voter to several and back: the same journal and state go on, and nothing that was acknowledged is lost at any place."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base import durable
from awsomefsd.base.errors import MembershipSuperseded, NotFound, Refused
from awsomefsd.base.failpoints import FailpointControl
from awsomefsd.base.rule_levels import ERAS
from awsomefsd.base.wait import block_on
from awsomefsd.io.device.device_table import DeviceTable
from awsomefsd.io.device.identified import RecoveredDevice, open_identified
from awsomefsd.io.device.signature import format_device
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.server.service import SUPERSEDED
from awsomefsd.recovery.force_single import Forced, force_single
from tests.rigs.growing_cluster import CLUSTER, NODES, Grower, GrowingRig, await_

PROOF = "nobody writes"
GROW_KILLS = ("service.grow.before", "service.grow.proposed", "service.grow.committed")
GROW = "import pathlib, sys; from tests.unit.meta.voter.test_membership_changes import grow_alone; grow_alone(pathlib.Path(sys.argv[1]))"


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[GrowingRig]:
    made = GrowingRig(tmp_path)
    try:
        yield made
    finally:
        made.close()


def volumes(rig: GrowingRig) -> list[str]:
    return [volume.name for volume in rig.ask(m.GetVolumes()).volumes]


def create(rig: GrowingRig, name: str) -> None:
    reply = rig.propose(c.CreateVolume(name, name))
    assert isinstance(reply, m.Made) or reply.errno == 17, reply  # EEXIST: an answer was lost with the leader


def test_one_becomes_three_without_a_stop(rig: GrowingRig) -> None:
    rig.found()
    create(rig, "before")
    assert rig.all[NODES[0]].service.alone and rig.members().index == 0
    assert isinstance(rig.all[NODES[0]].ask(m.ChangeMembers(0, add=NODES[1])), m.Failed), "alone, there is nothing to add to"
    rig.grow()
    assert rig.voters() == {NODES[0]}
    create(rig, "between")
    for node in NODES[1:3]:
        rig.all[node].start()
        rig.add(node)
    create(rig, "after")
    rig.level()
    assert rig.voters() == set(NODES[:3]) and volumes(rig) == ["before", "between", "after"]

    rig.all[NODES[0]].stop()
    create(rig, "without the first")
    rig.all[NODES[0]].start()
    rig.level()
    assert not rig.all[NODES[0]].service.alone
    assert volumes(rig) == ["before", "between", "after", "without the first"]


def test_a_wiped_voter_comes_back_as_another_member_by_order_only(rig: GrowingRig) -> None:
    rig.found()
    rig.grow()
    for node in NODES[1:3]:
        rig.all[node].start()
        rig.add(node)
    before = {member.node: member.incarnation for member in rig.members().members}
    victim = next(node for node in NODES[1:3] if not rig.all[node].leads())
    rig.all[victim].stop()
    shutil.rmtree(rig.all[victim].directory / "journal")
    create(rig, "meanwhile")
    rig.all[victim].start()
    await_("it asks to take part", lambda: victim in dict(rig.members().announced))
    assert {member.node: member.incarnation for member in rig.members().members} == before, "nobody takes it in by himself"
    rig.add(victim)
    after = {member.node: member.incarnation for member in rig.members().members}
    assert rig.voters() == set(NODES[:3]) and after[victim] != before[victim]
    rig.level()


def test_a_voter_is_taken_out_and_another_put_in_at_once(tmp_path: Path) -> None:
    rig = GrowingRig(tmp_path, 4)
    try:
        rig.found()
        rig.grow()
        for node in NODES[1:3]:
            rig.all[node].start()
            rig.add(node)
        gone = next(node for node in NODES[1:3] if not rig.all[node].leads())
        rig.all[gone].stop()
        rig.all[NODES[3]].start()
        rig.step(add=NODES[3])
        await_("near", lambda: any(member.node == NODES[3] and member.near for member in rig.members().members))
        rig.step(promote=[NODES[3]], remove=[gone])
        await_("done", lambda: rig.voters() == ({*NODES[:4]} - {gone}))
        create(rig, "after")
        stale = m.ChangeMembers(1, add=gone)
        assert isinstance(rig.leader().ask(stale), m.Failed), "a step from another membership is refused"
    finally:
        rig.close()


def handed_over(rig: GrowingRig) -> tuple[Grower, Grower]:
    """Who led until its clean stop, and who leads now, by one election without a timeout.  A busy machine may bring about another election
    just then; the try is void then, but not three in a row."""
    for _ in range(3):
        leader = rig.leader()
        term = leader.ask(m.GetStatus()).figures["term"]
        leader.service.hand_over()
        led_on = leader.leads()
        other = rig.leader()
        if not led_on and other is not leader and other.ask(m.GetStatus()).figures["term"] == term + 1:
            return leader, other
        leader.stop()
        leader.start()
        rig.level()
    raise AssertionError("three times it was not one election that the leader asked for")


def test_a_clean_stop_hands_the_leadership_over(rig: GrowingRig) -> None:
    rig.found()
    rig.grow()
    for node in NODES[1:3]:
        rig.all[node].start()
        rig.add(node)
    leader, other = handed_over(rig)
    third = next(one for one in rig.all.values() if one not in (leader, other))
    assert isinstance(other.ask(m.TransferLead(third.node)), m.Done)
    await_("the one that was named leads", third.leads)
    assert isinstance(third.ask(m.TransferLead(NODES[4])), m.Failed)


def grow_alone(directory: Path) -> None:
    """Run by a child, which dies on the way."""
    rig = GrowingRig(directory)
    rig.found()
    create(rig, "one")
    rig.grow()
    rig.close()


@pytest.mark.parametrize("name", GROW_KILLS)
def test_a_death_on_the_way_leaves_one_or_the_first_of_several(tmp_path: Path, name: str) -> None:
    control = FailpointControl(tmp_path / "failpoints")
    control.arm(name, 1)
    env = os.environ | {"AWSOMEFSD_FAILPOINTS_FILE": str(control.path), "PYTHONPATH": os.pathsep.join(sys.path)}
    directory = tmp_path / "nodes"
    directory.mkdir()
    died = subprocess.run([sys.executable, "-c", GROW, str(directory)], env=env, check=False, timeout=60)
    assert died.returncode == -signal.SIGKILL and control.fired(name) == 1
    rig = GrowingRig(directory)
    try:
        first = rig.all[NODES[0]]
        first.start()
        assert first.service.alone == (name == "service.grow.before"), "what the journal says counts"
        assert volumes(rig) == ["one"]
        rig.grow()
        rig.all[NODES[1]].start()
        rig.add(NODES[1])
        create(rig, "two")
        assert volumes(rig) == ["one", "two"] and rig.voters() == set(NODES[:2])
    finally:
        rig.close()


def test_an_empty_directory_founds_nothing_where_others_carry_the_metadata(rig: GrowingRig) -> None:
    rig.found()
    rig.grow()
    rig.all[NODES[1]].start()
    rig.add(NODES[1])
    rig.all[NODES[0]].stop()
    shutil.rmtree(rig.all[NODES[0]].directory)
    rig.all[NODES[0]].directory.mkdir()
    rig.founder = ""
    rig.all[NODES[0]].start()
    assert not rig.all[NODES[0]].service.alone
    reply = rig.all[NODES[0]].service.propose(c.Init(CLUSTER, 1), 60)
    assert isinstance(reply, m.NotLeader), "it waits to be taken in"


def test_the_last_of_three_goes_on_alone_and_the_others_stay_out(rig: GrowingRig, tmp_path: Path) -> None:
    rig.found()
    rig.grow()
    for node in NODES[1:3]:
        rig.all[node].start()
        rig.add(node)
    create(rig, "kept")
    rig.level()
    for one in rig.all.values():
        one.stop()
    state = tmp_path / "state"
    state.mkdir()
    rig.all[NODES[1]].directory.rename(state / "meta")
    durable.write_json(state / "node.json", {"cluster": CLUSTER, "node": NODES[1], "site": 1, "format": 1})
    with pytest.raises(Refused, match="confirm"):
        force_single(state, "127.0.0.1:1", confirmed=False, proof=PROOF)
    with pytest.raises(Refused, match="confirm-nobody-writes"):
        force_single(state, "127.0.0.1:1", confirmed=True, proof="")
    made = force_single(state, f"127.0.0.1:{rig.known[NODES[1]][1]}", confirmed=True, proof=PROOF)
    assert (made.generation, made.lost, made.faults) == (1, [NODES[0], NODES[2]], [])
    (state / "meta").rename(rig.all[NODES[1]].directory)

    rig.founder = ""
    rig.all[NODES[1]].start()
    assert volumes(rig) == ["kept"] and rig.voters() == {NODES[1]}
    create(rig, "after")
    for old in (NODES[0], NODES[2]):  # a majority of before: they could elect one of them
        service = rig.all[old].start_unsure()
        block_on(service.failed, 60)
        assert isinstance(service.error, MembershipSuperseded) and NODES[1] in str(service.error)
        rig.all[old].stop()
        with pytest.raises(MembershipSuperseded):
            rig.all[old].start()
        rig.all[old].service = None
    rig.all[NODES[0]].directory.rename(tmp_path / "aside")
    rig.all[NODES[0]].directory.mkdir()
    rig.all[NODES[0]].start()
    rig.add(NODES[0])
    assert rig.voters() == set(NODES[:2]) and volumes(rig) == ["kept", "after"]


def forced(rig: GrowingRig, node: str, tmp_path: Path, *devices: tuple[str, Path]) -> Forced:
    """The node goes on alone, started again; it sees `devices`."""
    state = tmp_path / "state"
    state.mkdir()
    for uuid, path in devices:
        DeviceTable(state).add(uuid, str(path))
    rig.all[node].directory.rename(state / "meta")
    durable.write_json(state / "node.json", {"cluster": CLUSTER, "node": node, "site": 1, "format": 1})
    made = force_single(state, f"127.0.0.1:{rig.known[node][1]}", confirmed=True, proof=PROOF)
    (state / "meta").rename(rig.all[node].directory)
    rig.founder = ""
    rig.all[node].start()
    return made


def test_devices_are_refused_to_an_old_majority_that_cannot_reach_the_forced_voter(rig: GrowingRig, tmp_path: Path) -> None:
    """It elects a leader among itself, and hands out segments that are in use: only the devices can tell it."""
    path = tmp_path / "disk"
    with path.open("wb") as file:
        file.truncate(64 << 20)
    made = format_device(str(path), CLUSTER)
    rig.found()
    rig.propose(c.RaiseLevel(ERAS))
    rig.grow()
    for node in NODES[1:3]:
        rig.all[node].start()
        rig.add(node)
    rig.propose(c.AddDevice(made.device_uuid, made.device_bytes, made.segment_bytes, made.segments, made.first_segment_offset, True))
    elsewhere = "dddddddd-0000-0000-0000-000000000000"
    rig.propose(c.AddDevice(elsewhere, 1 << 40, 1 << 26, 100, 1 << 20))
    rig.level()
    before = {info.uuid: info.era for info in rig.ask(m.GetDevices()).devices}
    for each in rig.all.values():
        each.stop()
    assert forced(rig, NODES[2], tmp_path, (made.device_uuid, path)).missing_devices == [elsewhere]
    after = {info.uuid: info.era for info in rig.ask(m.GetDevices()).devices}
    assert after[made.device_uuid] > before[made.device_uuid] == 0 and after[elsewhere] == before[elsewhere]
    with pytest.raises(RecoveredDevice, match="elsewhere"):
        open_identified(str(path), CLUSTER, made.device_uuid, before[made.device_uuid])
    open_identified(str(path), CLUSTER, made.device_uuid, after[made.device_uuid]).close()


def test_nothing_that_the_lost_majority_handed_out_is_handed_out_again(rig: GrowingRig, tmp_path: Path) -> None:
    """The survivor lacks the last acknowledged entries: a file, and the lease of a segment."""

    def propose(command: c.Command, opened: m.SessionOpened | None = None, unique: int = 0) -> Any:
        return rig.ask(m.Propose(unique, opened.session if opened else 0, opened.epoch if opened else 0, [], command))

    rig.found()
    rig.grow()
    for node in NODES[1:3]:
        rig.all[node].start()
        rig.add(node)
    propose(c.AddDevice("dddddddd-0000-0000-0000-000000000000", 1 << 40, 1 << 26, 100, 1 << 20, True))
    propose(c.CreateVolume("v", "e" * 36))
    one = propose(c.OpenSession(0x11, 1, "w1", "boot", 1))
    kept = propose(c.LeaseSegments(1, 0), one)
    rig.level()
    late = next(node for node in NODES if not rig.all[node].leads())
    rig.all[late].stop()
    lost_file = propose(c.Create(1, 1, b"f", 0o100644, 0, 0), one)
    lost_segments = propose(c.LeaseSegments(2, 0), one)
    lost_session = propose(c.OpenSession(0x12, 1, "w1", "another boot", 1))
    lost_term = rig.leader().ask(m.GetStatus()).figures["term"]
    for each in rig.all.values():
        each.stop()
    made = forced(rig, late, tmp_path)
    assert made.missing_devices == ["dddddddd-0000-0000-0000-000000000000"] and made.faults == []

    assert isinstance(rig.ask(m.Renew(one.session, one.epoch, 0)), m.Failed), "every session of before has ended"
    assert rig.ask(m.GetQuarantine()).sessions == [], "nobody writes, so nothing waits for a proof"
    refused = propose(c.Create(1, 1, b"g", 0o100644, 0, 0), one)
    assert isinstance(refused, m.Failed) and refused.errno == errno.ESTALE
    other = propose(c.OpenSession(0x22, 1, "w2", "boot", 1))
    assert other.session > lost_session.session and other.epoch > lost_session.epoch
    assert propose(c.Create(1, 1, b"g", 0o100644, 0, 0), other).attr.ino > lost_file.attr.ino
    segments = propose(c.LeaseSegments(3, 0), other).segments
    old = max(segment.incarnation for segment in (*kept.segments, *lost_segments.segments))
    assert min(segment.incarnation for segment in segments) > old
    assert rig.leader().ask(m.GetStatus()).figures["term"] > lost_term + 1_000


def test_one_that_was_left_behind_is_not_made_the_only_voter(tmp_path: Path) -> None:
    """Another was: the two would count as one generation, and each would go on with its own history."""
    durable.write_json(tmp_path / "node.json", {"cluster": CLUSTER, "node": NODES[0], "site": 1, "format": 1})
    for name in ("journal", "store"):
        (tmp_path / "meta" / name).mkdir(parents=True)
    (tmp_path / "meta" / SUPERSEDED).write_text("node 1 goes on alone")
    with pytest.raises(Refused, match="left behind: node 1 goes on alone"):
        force_single(tmp_path, "", confirmed=True, proof=PROOF)


def test_one_that_is_alone_anyway_is_not_recovered(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        force_single(tmp_path, "", confirmed=True, proof=PROOF)
    rig = GrowingRig(tmp_path)
    rig.found()
    rig.close()
    durable.write_json(tmp_path / "node.json", {"cluster": CLUSTER, "node": NODES[0], "site": 1, "format": 1})
    rig.all[NODES[0]].directory.rename(tmp_path / "meta")
    with pytest.raises(Refused, match="only voter"):
        force_single(tmp_path, "", confirmed=True, proof=PROOF)
    assert not (tmp_path / "meta" / "recovering").exists()
