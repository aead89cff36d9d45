"""Health codes: every code is reached by a state that deserves it, a sound state has none, and the documentation has the same table."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.status import metadata_message, node_view, samples_of, tell
from awsomefsd.admin.uninitialized import WaitingService
from awsomefsd.base.limits import NODE_HEALTHY_MS, VOTER_LIVING_MS
from awsomefsd.cli import main as command_line
from awsomefsd.cluster.membership.view import Certificate, ClusterView, majority, of_members, of_nodes
from awsomefsd.config.settings import load
from awsomefsd.meta.api.messages.members import MemberInfo
from awsomefsd.meta.api.messages.nodes import NodeInfo
from awsomefsd.node.health.codes import CODES, INFO, SEVERITIES, HealthFinding, degraded
from awsomefsd.node.health.rules import CHECKPOINT_LATE_MS, VOTER_LAG_MAX, Facts, find, of_cluster, of_facts, of_node
from tests.unit.node.health.test_pool_rules import OF_POOLS

DAY_S = 86_400.0


def row(number: int, **fields: object) -> NodeInfo:
    name = f"n{number}"
    made = NodeInfo(
        f"uuid-{number}", name, "node", "active", "", "", {}, 0, "1", 2, True, 0, b"", heard_ms_ago=500, member="voter", lag=0,
        leader=number == 1, silent_ms=0 if number == 1 else 100,
    )  # fmt: skip
    return structs.replace(made, **fields)


def view(*nodes: NodeInfo, **fields: object) -> ClusterView:
    leader = next((one.node for one in nodes if one.leader), "")
    made = ClusterView(
        me="uuid-1", carries=True, asked=True, leader=leader, term=3, level=2, led_ms=60_000, nodes=nodes, members=of_nodes(nodes),
        names={one.node: one.name for one in nodes}, now_s=0.0, certificate=Certificate(-10 * DAY_S, 20 * DAY_S),
        authority=Certificate(-10 * DAY_S, 3_640 * DAY_S),
    )  # fmt: skip
    return replace(made, **fields)  # type: ignore[arg-type]


THREE = (row(1), row(2), row(3))
LONELY = {"asked": False, "leader": "", "members": (), "nodes": ()}


def status(**fields: object) -> pb.Status:
    made = pb.Status(keeper=True, memory_bytes=1, memory_bytes_max=2, state_dir="/s", run_dir="/r", **fields)
    made.devices.add(path="/dev/a", state="ok", segments=100, segments_free=50)
    made.devices.add(uuid="u", state="of node uuid-2", segments=100)
    made.mounts.add(directory="/m", volume="v", state="serving")
    return made


def device(state: str, free: int = 50) -> pb.Status:
    made = status()
    made.devices.add(path="/dev/b", uuid="b", state=state, segments=100, segments_free=free)
    return made


def mount(state: str) -> pb.Status:
    made = status()
    made.mounts.add(directory="/n", volume="w", state=state, last_error="why")
    return made


def with_conflict() -> pb.Status:
    made = status()
    made.conflicts.add(path="/s/conflicts/x", bytes=1)
    return made


OF_NODE = [
    ("KEEPER_GONE", pb.Status(run_dir="/r"), "/r/keeper.sock"),
    ("MOUNT_DEAD", mount("dead"), "/n of volume w is dead: why"),
    ("MOUNT_REFUSED", mount("refused"), "/n of volume w is refused: why"),
    ("MOUNT_WAITS", mount("starting"), "/n of volume w is starting: why"),
    ("DEVICE_ABSENT", device("absent: no node sees it"), "no node sees it"),
    ("DEVICE_MISSING", device("not found on this node; add it"), "/dev/b"),
    ("DEVICE_WRONG", device("wrong device: /dev/b is device X now"), "/dev/b is device X now"),
    ("DEVICE_RECOVERED", device("recovered: the cluster was rebuilt from /dev/b elsewhere"), "rebuilt from /dev/b"),
    ("DEVICE_ROLLED_BACK", device("not served by this node's segment server: rolled back: /dev/b has generation 3"), "generation 3"),
    ("DEVICE_UNUSABLE", device("Input/output error"), "Input/output error"),
    ("DEVICE_FULL", device("ok", 5), "5 of 100 segments"),
    ("MAP_FULL", status(figures={"store_map_use_percent": "92.4", "store_map_bytes": "4096"}), "92 % of the map of the state store (4096"),
    ("CORRUPT_EXTENTS", status(figures={"collect_corrupt_pieces": "2"}), "2 extents"),
    ("CONFLICT_FILES", with_conflict(), "/s/conflicts"),
    ("DAEMON_MEMORY", pb.Status(keeper=True, memory_bytes=3, memory_bytes_max=2), "memory.daemon"),
    ("STORE_DIVERGED", status(figures={"members_diverged": "1"}), "1 times"),
    ("JOURNAL_FULL", status(figures={"journal_full": "1"}), "/s/meta"),
    ("CHECKPOINT_SUSPENDED", status(figures={"checkpoint": "suspended: EIO"}), "suspended: EIO"),
    ("CHECKPOINT_LATE", status(figures={"checkpoint": "ok", "checkpoint_lag_ms": str(CHECKPOINT_LATE_MS + 1)}), "600 s"),
]
OF_FACTS = [
    ("WORKER_MEMORY", Facts(workers=[("/m", 9, 8)]), "/m uses 9"),
    ("MOUNT_HUNG", Facts(stopped=[("/m", 7)]), "the mount /m answers nothing: its worker (pid 7) is stopped"),
    ("NAMES_DIVERGED", Facts(diverged=["/m"]), "the mount /m and the cluster saw different names; see /s/conflicts"),
    ("HOST_PROGRAM", Facts(host="no space left"), "no space left"),
    ("SEGMENT_SERVER_GONE", Facts(segment_server="nothing answers", served_devices=["/dev/a", "/dev/b"]), "/dev/a, /dev/b"),
    ("JOIN_TOKEN", Facts(join_token="/t has none"), "machines that come later: /t has none"),
    ("DAMAGED_FILE", Facts(damaged=[("v", "/d/f", 8_192), ("v", "/d/f", 4_096)]), "file /d/f of volume v at offset 4096 and 1 more"),
    ("SCRUB_FINDINGS", Facts(scrub_open=4), "4 faults"),
    ("SCRUB_BEHIND", Facts(scrub_behind_s=60 * 86_400), "60 days ago"),
    ("SCRUB_FAILED", Facts(scrub_failed="no device"), "no device"),
    ("DEVICE_ALONE", Facts(alone_ms={"u": 60_000}), "one node sees the shared device u"),
    ("SEGMENTS_QUARANTINED", Facts(quarantined=9, quarantined_of=["n2"]), "9 segments are in quarantine because of mounts on n2"),
    ("QUARANTINE_GROWS", Facts(quarantined=10, quarantined_of=[f"n{number}" for number in range(12)]), "and 2 more"),
]
OF_CLUSTER = [
    ("NODE_REMOVED", view(**LONELY, removed="node x was removed from this cluster"), "was removed from"),
    ("NO_LEADER", view(**LONELY, without_leader_s=7, last_leader="uuid-2", names={"uuid-2": "n2"}), "for 7 s (the last one: n2)"),
    ("NO_LEADER", view(**LONELY, trouble="refused"), "(the last one: none); changes and lookups wait (refused)"),
    ("NO_QUORUM", view(**LONELY, figures={"voters": 5, "peers_connected": 1}), "1 of the 4 others; 3 of 5 voters are needed"),
    ("LEADER_UNREACHABLE", view(**{**LONELY, "leader": "uuid-2"}, names={"uuid-2": "n2"}), "n2 leads"),
    ("NOT_FOUNDED", view(**LONELY, figures={"founding_waits_for": "a b"}), "a, b"),
    ("NO_MEMBER", view(**LONELY, figures={"members": 0}), "not a member of a metadata cluster"),
    ("CLOCK_SKEW", view(*THREE[:2], row(3, skew_ms=-90_000)), "the clock of n3 is 90.0 s behind that of the leader"),
    ("VOTER_GONE", view(*THREE[:2], row(3, silent_ms=VOTER_LIVING_MS)), "nothing from voter n3 for 3 s"),
    ("VOTER_LAGS", view(*THREE[:2], row(3, lag=VOTER_LAG_MAX + 1)), "voter n3"),
    ("ONE_FAILURE_FROM_LOSS", view(*THREE[:2], row(3, silent_ms=VOTER_LIVING_MS)), "the leader hears 2 of 3 voters"),
    ("ONE_FAILURE_FROM_LOSS", view(row(1), row(2, member="")), "2 nodes; with three nodes, all three vote"),
    ("NODE_GONE", view(*THREE, row(4, member="", heard_ms_ago=NODE_HEALTHY_MS + 1)), "node n4 has not reported for 10 s"),
    ("NODE_GONE", view(*THREE, row(4, member="", heard_ms_ago=-1)), "n4 has not reported since this leader was elected"),
    ("CLIENT_GONE", view(*THREE, row(4, member="", role="client", heard_ms_ago=99_000)), "client n4"),
    ("NODE_CORDONED", view(*THREE[:2], row(3, state="cordoned")), "n3"),
    ("NODE_DRAINING", view(*THREE[:2], row(3, state="draining")), "n3"),
    ("NODE_DRAINING", view(row(1, state="ending")), "n1 was told to end the cluster"),
    ("LEVEL_BEHIND", view(*THREE[:2], row(3, level=1), level=1), "n3 do not know level 2"),
    ("UPGRADE_READY", view(*THREE, level=1), "acts at level 1; all nodes know level 2"),
    ("CERTIFICATE_EXPIRES", view(*THREE, certificate=Certificate(-23 * DAY_S, 7 * DAY_S)), "expires in 168 hours"),
    ("CERTIFICATE_EXPIRES", view(*THREE, certificate=Certificate(-31 * DAY_S, -DAY_S)), "expired 24 hours ago"),
    ("CA_EXPIRES", view(*THREE, authority=Certificate(-3_600 * DAY_S, 50 * DAY_S)), "authority expires in"),
    ("CONTROL_PORT_CLOSED", view(*THREE, control_trouble="in use"), "in use"),
]  # fmt: skip


@pytest.mark.parametrize(("code", "seen", "words"), OF_NODE, ids=[case[0] for case in OF_NODE])
def test_of_a_node(code: str, seen: pb.Status, words: str) -> None:
    [one] = of_node(node_view(seen))
    assert one.code == code and words in one.what, one


@pytest.mark.parametrize(("code", "seen", "words"), OF_FACTS, ids=[case[0] for case in OF_FACTS])
def test_of_facts(code: str, seen: Facts, words: str) -> None:
    [one] = of_facts(node_view(status()), seen)
    assert one.code == code and words in one.what, one


@pytest.mark.parametrize(("code", "seen", "words"), OF_CLUSTER, ids=[case[0] for case in OF_CLUSTER])
def test_of_a_cluster(code: str, seen: ClusterView, words: str) -> None:
    found = list(of_cluster(seen))
    assert any(one.code == code and words in one.what for one in found), found
    beside = {"NO_QUORUM": {"NO_LEADER"}, "VOTER_GONE": {"ONE_FAILURE_FROM_LOSS"}, "ONE_FAILURE_FROM_LOSS": {"VOTER_GONE"}}
    assert {one.code for one in found} <= {code, *beside.get(code, set())}, found


def test_every_code_is_reached() -> None:
    elsewhere = {"WAITING_FOR_CLUSTER", *OF_POOLS}  # the next test; test_pool_rules.py
    reached = {case[0] for case in (*OF_NODE, *OF_FACTS, *OF_CLUSTER)} | elsewhere
    assert reached == {code.name for code in CODES.values() if not code.doctor}, "those of the doctor: tests/unit/node/doctor"
    for code in CODES.values():
        assert re.fullmatch(r"[A-Z]+(_[A-Z]+)*", code.name) and code.severity in SEVERITIES and code.says and code.fix
        assert "|" not in code.says + code.fix and code.says[-1] != "." and code.fix[-1] != "."


def test_a_daemon_that_waits_has_a_code(tmp_path: Path) -> None:
    settings = load(environ={}, state_dir=tmp_path, run_dir=tmp_path)
    told = WaitingService(settings, lambda: ["waiting: for two more"]).GetStatus(pb.GetStatusRequest(), None)
    assert [(one.code, one.what) for one in told.health] == [("WAITING_FOR_CLUSTER", "waiting: for two more")]
    assert list(told.reasons) == ["waiting: for two more"]


def test_a_sound_state_has_nothing_to_say() -> None:
    """Nor has a new leader that has heard nobody yet, a single node, or one whose devices are all at other nodes."""
    assert find(node_view(status()), view(*THREE), Facts()) == []
    assert list(of_cluster(view(row(1)))) == []
    assert list(of_cluster(view(row(1), row(2, heard_ms_ago=-1), row(3, heard_ms_ago=-1), led_ms=NODE_HEALTHY_MS))) == []
    assert list(of_cluster(view(row(1), row(4, member="", role="client")))) == [], "a client is no second node"
    assert list(of_cluster(view(*THREE, row(4, member="", state="removed", heard_ms_ago=-1, level=1)))) == []
    assert list(of_node(node_view(status(figures={"checkpoint": "off: none", "checkpoint_lag_ms": "99999999"})))) == []


@pytest.mark.parametrize(("voters", "gone", "bears"), [(1, 0, 0), (3, 0, 1), (3, 1, 0), (5, 0, 2), (5, 1, 1), (5, 2, 0), (3, 2, 0)])
def test_how_many_failures_are_survived(voters: int, gone: int, bears: int) -> None:
    nodes = [row(number, silent_ms=9_000 if number > voters - gone else 10) for number in range(1, voters + 1)]
    seen = view(*nodes)
    assert (seen.voters, seen.voters_heard, seen.failures_survived) == (voters, voters - gone, bears)
    assert replace(seen, asked=False).failures_survived == -1
    learner = view(*nodes, row(9, member="learner"))
    assert learner.failures_survived == bears and learner.voters == voters, "a learner counts for nothing"
    assert majority(voters) * 2 > voters


def test_members_without_rows() -> None:
    told = [
        MemberInfo("a", "i", True, "", 0, 0, True),
        MemberInfo("b", "i", True, "", 3, 50, True),
        MemberInfo("c", "i", False, "", 9, 1, True),
    ]
    seen = of_members(told, "a")
    assert [(one.member, one.leader, one.heard, one.lag) for one in seen] == [
        ("voter", True, True, 0), ("voter", False, True, 3), ("learner", False, True, 9),
    ]  # fmt: skip


def test_only_what_needs_somebody_degrades() -> None:
    told = status(metadata=metadata_message(view(*THREE[:2], row(3, state="cordoned"))))
    tell(told, find(node_view(told), view(*THREE[:2], row(3, state="cordoned")), Facts()))
    assert [one.code for one in told.health] == ["NODE_CORDONED"] and not told.reasons and told.health[0].severity == INFO
    assert "node uncordon n3" in told.health[0].fix
    tell(told, [HealthFinding("DEVICE_FULL", "device x is full")])
    assert list(told.reasons) == [f"device x is full; {CODES['DEVICE_FULL'].fix}"]
    assert degraded([HealthFinding("DEVICE_FULL", "")]) and not degraded([HealthFinding("UPGRADE_READY", "")])


def test_metrics() -> None:
    told = status(metadata=metadata_message(view(*THREE)))
    tell(told, [HealthFinding("NODE_CORDONED", "x")])
    found = {(sample.name, dict(sample.labels).get("code", "")): sample.value for sample in samples_of(told)}
    assert {code for name, code in found if name == "awsomefsd_health"} == {one.name for one in CODES.values() if not one.doctor}
    assert [code for (name, code), value in found.items() if name == "awsomefsd_health" and value] == ["NODE_CORDONED"]
    cluster = ("leader_known", "term", "level", "voters", "voters_heard", "failures_survived")
    assert [found[f"awsomefsd_{name}", ""] for name in cluster] == [1, 3, 2, 3, 3, 1]
    assert found["awsomefsd_degraded_reasons", ""] == 0


def test_the_command_line_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    """Without a daemon."""
    assert command_line.run(["status", "--codes"]) == 0
    shown = capsys.readouterr().out
    assert all(code.name in shown and code.severity in shown for code in CODES.values())
    assert command_line.run(["status", "--codes", "-o", "json"]) == 0
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == list(CODES)
