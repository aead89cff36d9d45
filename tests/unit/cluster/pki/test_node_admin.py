"""What stands in the way of draining and removing a node; tokens as an administrator makes them; the steps of a rotation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from awsomefsd.base.errors import ConfigError, FsError, NotFound, Refused, Unavailable, WouldLoseData
from awsomefsd.base.identity import Node
from awsomefsd.base.levels import LEVEL
from awsomefsd.base.types import SegmentInfo
from awsomefsd.cluster.control.service import ControlService
from awsomefsd.cluster.pki import ca, rotation, token
from awsomefsd.cluster.pki.node_admin import NodeAdmin
from awsomefsd.config.settings import Settings
from awsomefsd.meta.api import commands as c
from awsomefsd.meta.api import messages as m
from awsomefsd.meta.api.messages.nodes import CaInfo, ListNodes, NodeInfo, Nodes
from awsomefsd.meta.raft.membership import Member, Membership
from tests.rigs.machine_driver import START_NS, Drive

CLUSTER = "00000000-0000-4000-8000-000000000001"
NOW_MS = START_NS // 1_000_000
DAY_MS = 86_400_000


class Rig:
    """A machine behind NodeAdmin; `known` is what the leader adds to the rows."""

    def __init__(self, count: int = 3) -> None:
        self.drive = Drive()
        self.known: dict[str, dict[str, Any]] = {}
        for number in range(1, count + 1):
            key, address = bytes(31) + bytes((number,)), f"10.0.0.{number}:7440"
            self.drive.ok(c.AddNode(f"node-{number}", f"n{number}", "node", key, "", address, level=LEVEL))
            self.known[f"node-{number}"] = {"member": "voter", "heard_ms_ago": 100, "leader": number == 1, "lag": 0}
        self.drive.ok(c.PutCa("ab" * 32, "PEM", "KEY", "active"))
        self.admin = NodeAdmin(CLUSTER, self.call, lambda: NOW_MS)

    def call(self, body: Any) -> Any:
        if isinstance(body, m.Propose):
            reply = self.drive.apply(body.command)
        else:
            self.drive.machine.flush()
            reply = self.drive.ask(body)
        if isinstance(reply, m.Failed):
            raise FsError(reply.errno, reply.detail)
        if isinstance(reply, Nodes):
            for row in reply.nodes:
                for name, value in self.known.get(row.node, {}).items():
                    setattr(row, name, value)
        return reply

    def states(self) -> dict[str, str]:
        return {row.name: row.state for row in self.call(ListNodes(True)).nodes}


class Pools:
    """NodePools that say what they are told to: `refused` why a drain is refused, `left` what is in the way."""

    def __init__(self) -> None:
        self.refused = self.left = ""
        self.done: list[tuple[Any, ...]] = []

    def drain(self, node: str) -> None:
        if self.refused:
            raise Refused(self.refused)
        self.done.append(("drain", node))

    def use_again(self, node: str) -> None:
        self.done.append(("use again", node))

    def in_the_way(self, node: str) -> str:
        return self.left

    def remove(self, node: str) -> None:
        self.done.append(("remove", node))

    def maintain(self, node: str, for_ms: int) -> int:
        if self.refused:
            raise Refused(self.refused)
        self.done.append(("maintain", node, for_ms))
        return for_ms and NOW_MS + for_ms


def test_a_node_with_devices_of_pools_is_emptied_before_it_goes() -> None:
    rig, pools = Rig(), Pools()
    admin = NodeAdmin(CLUSTER, rig.call, lambda: NOW_MS, pools=pools)
    admin.cordon("n3")
    admin.uncordon("n3")
    assert pools.done == [], "a node that was cordoned has drained nothing"
    pools.refused = "no room"
    with pytest.raises(WouldLoseData, match="n3 takes nothing new, and cannot be emptied: no room"):
        admin.drain("n3")
    pools.refused, pools.left = "", "its devices hold something"
    for act in (admin.drain, lambda name: admin.remove(name, force=False)):
        with pytest.raises(WouldLoseData, match="its devices hold something"):
            act("n3")
    assert admin.uncordon("n3").state == "active"
    pools.left = ""
    assert admin.drain("n3").state == "draining"
    admin.remove("n3", force=False)
    assert pools.done == [("drain", "node-3"), ("use again", "node-3"), ("drain", "node-3"), ("remove", "node-3")]
    assert rig.states()["n3"] == "removed"


def test_a_maintenance_is_announced_for_the_devices_of_a_node() -> None:
    rig, pools = Rig(), Pools()
    admin = NodeAdmin(CLUSTER, rig.call, lambda: NOW_MS, pools=pools)
    row, until_ms = admin.maintain("n2", 60_000)
    assert (row.node, until_ms, pools.done) == ("node-2", NOW_MS + 60_000, [("maintain", "node-2", 60_000)])
    pools.refused = "it has no device in a pool"
    with pytest.raises(Refused, match="node n2: it has no device"):
        admin.maintain("n2", 60_000)
    with pytest.raises(Refused, match="not complete in this build"):
        rig.admin.maintain("n2", 60_000)


def test_cordon_and_back_by_name_or_uuid() -> None:
    rig = Rig()
    assert rig.admin.cordon("n2").state == "cordoned" and rig.states()["n2"] == "cordoned"
    assert rig.admin.uncordon("node-2").state == "active"
    assert rig.admin.drain("n3").state == "draining"
    with pytest.raises(NotFound, match="node ls"):
        rig.admin.cordon("n9")
    with pytest.raises(Refused, match="matches 3 nodes"):
        rig.admin.cordon("node-")


def test_mounts_and_data_keep_a_node() -> None:
    rig = Rig()
    volume = rig.drive.make_volume("data")
    opened = rig.drive.open(node="node-3")
    for act in (rig.admin.drain, lambda name: rig.admin.remove(name, force=False)):
        with pytest.raises(WouldLoseData, match="mounted data"):
            act("n3")
    with pytest.raises(WouldLoseData, match=r"awsomefsd node remove node-3 --force$"):  # its number: a name may be another's too
        rig.admin.remove("n3", force=False)
    assert rig.states()["n3"] == "draining", "it takes nothing new all the same"
    rig.admin.remove("n3", force=True)
    assert rig.states()["n3"] == "removed"
    [session] = rig.drive.ask(m.GetSessions()).sessions or [None]
    assert session is None or session.ended, "and its session has ended"
    assert opened.session and volume


def test_devices_that_only_it_has_keep_a_node(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    rig.drive.ok(c.AddDevice("local", (4 << 20) * 80, 4 << 20, 64, 1 << 20, False, "node-2"))
    rig.drive.make_volume("data")
    plain = rig.call

    def call(body: Any) -> Any:
        reply = plain(body)
        if type(body).__name__ == "GetLiveSegments":
            device = next(one.device for one in plain(m.GetDevices()).devices if one.home == "node-2")
            reply.segments = [SegmentInfo(70, 1, device, 0, 4 << 20, 2, 4096, live_bytes=3 << 20)]
            reply.after = 0
        return reply

    admin = NodeAdmin(CLUSTER, call, lambda: NOW_MS)
    with pytest.raises(WouldLoseData, match="its devices hold 1 segment with 3 MiB"):
        admin.drain("n2")
    assert admin.drain("n3").state == "draining", "another node's devices are none of its"


def test_nothing_removes_the_majority() -> None:
    rig = Rig()
    rig.known["node-3"]["heard_ms_ago"] = 60_000
    with pytest.raises(WouldLoseData, match="no majority"):
        rig.admin.remove("n2", force=True)
    rig.admin.remove("n3", force=False)  # the one that is away may go
    rig.known["node-2"]["member"] = ""
    with pytest.raises(WouldLoseData, match="only one that carries the metadata"):
        rig.admin.remove("n1", force=True)
    rig.admin.remove("n2", force=False)
    with pytest.raises(WouldLoseData, match="the last one"):
        rig.admin.remove("n1", force=True)
    assert rig.states() == {"n1": "active", "n2": "removed", "n3": "removed"}


def test_a_removal_waits_for_the_vote_of_the_one_before() -> None:
    rig = Rig(4)
    voters = [Member(f"node-{number}", "aa", True) for number in (1, 2, 3)]
    rig.drive.ok(c.ChangeMembership(Membership(voters)))
    waits: list[float] = []
    clock = iter(range(10_000))

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            rig.drive.ok(c.ChangeMembership(Membership(voters[:1])))

    rig.admin = NodeAdmin(CLUSTER, rig.call, lambda: NOW_MS, lambda: float(next(clock)), sleep)
    rig.admin.remove("n2", force=False)
    assert rig.admin.remove("n3", force=False).state == "removed" and len(waits) == 3
    rig.known["node-4"]["member"] = "voter"
    with pytest.raises(WouldLoseData, match="no majority"):
        rig.admin.remove("n1", force=False)


def test_a_leader_that_was_just_elected_gives_the_others_time_to_be_heard() -> None:
    rig, waits = Rig(), []

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            rig.known["node-2"]["heard_ms_ago"] = 10

    rig.admin = NodeAdmin(CLUSTER, rig.call, lambda: NOW_MS, lambda: float(len(waits)), sleep)
    for name in ("node-2", "node-3"):
        rig.known[name]["heard_ms_ago"] = -1
    assert rig.admin.remove("n3", force=False).state == "removed" and len(waits) >= 3
    rig.known["node-2"]["heard_ms_ago"] = -1
    before = len(waits)
    with pytest.raises(WouldLoseData, match="no majority"):
        rig.admin.remove("n1", force=False)
    assert before + 6 <= len(waits) <= before + 8, "who is dead is not waited for longer"


def test_a_removal_waits_for_a_lease_that_lasts_longer_than_an_answer_is_waited_for() -> None:
    """The leader lets nobody end the session before; the lease of a mount that was just renewed lasts as long as the question."""
    rig = Rig()
    rig.drive.make_volume("data")
    opened = rig.drive.open(node="node-3")
    asked: list[int] = []

    def call(body: Any) -> Any:
        if isinstance(body, m.Propose) and isinstance(body.command, c.EndSession):
            asked.append(body.command.session)
            rig.drive.ok(c.EndSession(opened.session, opened.epoch, False, expired=True))
            raise Unavailable("the metadata gave no answer within 10 s")
        return rig.call(body)

    clock = iter(range(10_000))
    admin = NodeAdmin(CLUSTER, call, lambda: NOW_MS, lambda: float(next(clock)), lambda _seconds: None)
    assert admin.remove("n3", force=True).state == "removed" and asked == [opened.session]


def test_tokens_name_the_nodes_that_can_be_joined_at() -> None:
    rig = Rig()
    info, text = rig.admin.create_token("client", 3_600, 2, ())
    made = token.parse(text)
    assert made.endpoints == ("10.0.0.1:7440", "10.0.0.2:7440", "10.0.0.3:7440") and made.pin.hex() == "ab" * 32
    assert (made.id, made.role, made.expires_ms, info.uses_left) == (info.id, "client", NOW_MS + 3_600_000, 2)
    assert token.parse(rig.admin.create_token("node", 60, -1, ("host.example:1",))[1]).endpoints == ("host.example:1",)
    with pytest.raises(ConfigError, match="endpoint"):
        rig.admin.create_token("node", 60, -1, ("nonsense",))
    new, _ = rig.admin.rotate_token(info.id, 60, ())
    assert (new.role, new.uses_left) == ("client", 2) and {row.id for row in rig.admin.tokens() if row.revoked} == {info.id}
    for act in (rig.admin.revoke_token, lambda name: rig.admin.rotate_token(name, 60, ())):
        with pytest.raises(NotFound, match="token list"):
            act("nothing")


# --- rotation -----------------------------------------------------------------------------------------------------------------
def row(name: str, *, bundle: str = "B", issuer: str = "old", heard_ms_ago: int = 5, state: str = "active") -> NodeInfo:
    return NodeInfo(name, name, "node", state, "", "", {}, 0, "", 0, False, 0, b"", heard_ms_ago=heard_ms_ago, bundle=bundle, issuer=issuer)


def test_a_rotation_waits_for_every_node_and_no_longer_than_a_certificate_lives() -> None:
    old, new = CaInfo("old", "", "active", NOW_MS - DAY_MS), CaInfo("new", "", "trusted", NOW_MS)
    life = 30 * DAY_MS

    def step(cas: list[CaInfo], nodes: list[NodeInfo], now_ms: int = NOW_MS + 1_000) -> Any:
        return rotation.next_step(cas, nodes, "B", now_ms, life)

    assert step([old], [row("a")]) is None
    assert step([old, new], [row("a"), row("b", bundle="A")]) is None
    assert step([old, new], [row("a"), row("b", bundle="A", state="removed")]) == c.PutCa("new", "", "", "active")
    assert step([old, new], [row("a"), row("b", bundle="")], NOW_MS + life + 1) == c.PutCa("new", "", "", "active")
    old.state, new.state = "trusted", "active"
    assert step([old, new], [row("a", issuer="new"), row("b")]) is None
    assert step([old, new], [row("a", issuer="new"), row("b", issuer="new", heard_ms_ago=-1)]) is None
    assert step([old, new], [row("a", issuer="new"), row("b", issuer="new")]) == c.DropCa("old")
    assert step([old, new], [row("a", issuer="new"), row("b")], NOW_MS + 2 * life + 1) == c.DropCa("old")
    assert step([new], [row("a", issuer="new")]) is None


def test_a_client_that_is_cordoned_takes_no_mounts(tmp_path: Path) -> None:
    """It may not ask for its row; the leader's orders tell it."""
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")

    def call(body: Any) -> Any:
        raise FsError(1, f"{type(body).__name__} is for nodes")

    state = ""
    part = ControlService(settings, Node(CLUSTER, "node-1", 0, role="client"), lambda body, timeout_s: None, call, lambda: state)
    part.check_open()
    for state in ("cordoned", "draining"):
        with pytest.raises(Refused, match=state):
            part.check_open()
    state = "active"
    part.check_open()


def removed(body: Any) -> Any:
    """Answers as the leader does to a node that was removed."""
    raise FsError(1, "node node-1 was removed from this cluster; join with a new identity (an empty state directory)")


def test_a_node_that_was_removed_may_purge_itself(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    part = ControlService(settings, Node(CLUSTER, "node-1", 0), lambda body, timeout_s: None, removed)

    def call_leader(body: Any) -> Any:
        raise refusal

    part.call_leader = call_leader  # type: ignore[method-assign]
    for refusal in (WouldLoseData("it has mounted v"), Refused("no"), Unavailable("nobody")):
        with pytest.raises(type(refusal)):
            part.leave(force=False, purge=True)
    refusal = Refused("node node-1 was removed from this cluster; join with a new identity (an empty state directory)")
    with pytest.raises(Refused):
        part.leave(force=False, purge=False)
    assert not part.purge.done
    conflicts = settings.state_dir / "conflicts"
    conflicts.mkdir(parents=True)
    (conflicts / "file").write_text("the only copy")
    with pytest.raises(WouldLoseData, match="conflicts"):
        part.leave(force=False, purge=True)
    assert not part.purge.done
    assert part.leave(force=True, purge=True) == [] and part.purge.done and part.purge_conflicts
    (conflicts / "file").unlink()
    (settings.state_dir / "notes").touch()
    assert part.leave(force=False, purge=True) == ["conflicts", "notes"] and not part.purge_conflicts


def test_a_removed_node_does_not_end_its_cluster(tmp_path: Path) -> None:
    """The command would say that the cluster has ended, which goes on."""
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    part = ControlService(settings, Node(CLUSTER, "node-1", 0), lambda body, timeout_s: None, removed)
    with pytest.raises(Refused, match=r"was removed.*goes on without it.*without --yes-destroy"):
        part.leave(force=True, purge=True, destroy=CLUSTER)
    assert not part.purge.done


def test_a_removed_node_to_which_only_the_control_port_answers_may_purge_itself(tmp_path: Path) -> None:
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    settings.state_dir.mkdir()
    mounted: list[str] = ["/mnt"]

    def nobody(body: Any) -> Any:
        raise Unavailable("no leader can be reached")

    part = ControlService(settings, Node(CLUSTER, "node-1", 0), lambda body, timeout_s: None, nobody, mounted=lambda: mounted)
    part.call_leader = _refused_as_removed  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        part.leave(force=True, purge=True)
    mounted.clear()
    assert part.leave(force=False, purge=True) == [] and part.purge.done


def _refused_as_removed(body: Any) -> Any:
    raise Refused("node node-1 was removed from this cluster; join with a new identity (an empty state directory)")


class Leaving:
    """A node that leaves: `done` has what happened to it, in this order; `fails` is the mount that cannot be ended."""

    def __init__(self, tmp_path: Path, rig: Rig) -> None:
        self.rig, self.done, self.mounts, self.fails = rig, list[str](), ["/mnt/a", "/mnt/b"], ""
        settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
        settings.state_dir.mkdir()
        node = Node(CLUSTER, "node-1", 0)
        mounts = {"mounted": lambda: list(self.mounts), "end_mount": self.end}
        self.part = ControlService(settings, node, lambda body, timeout_s: None, rig.call, **mounts)  # type: ignore[arg-type]
        self.part.call_leader = lambda body: self.done.append("left")  # type: ignore[method-assign]

    def end(self, directory: str) -> None:
        if directory == self.fails:
            raise Unavailable("no keeper")
        self.mounts.remove(directory)
        self.done.append(directory)


def test_a_purge_leaves_no_mount(tmp_path: Path) -> None:
    """It would answer EIO for ever, and the next node on this machine would have it."""
    leaving = Leaving(tmp_path, Rig())
    with pytest.raises(WouldLoseData, match="/mnt/a, /mnt/b; `awsomefsd umount`"):
        leaving.part.leave(force=False, purge=True)
    assert leaving.done == []
    leaving.fails = "/mnt/b"
    with pytest.raises(Unavailable):
        leaving.part.leave(force=True, purge=True)
    assert leaving.done == ["/mnt/a"] and not leaving.part.purge.done
    leaving.fails = ""
    assert leaving.part.leave(force=True, purge=True) == [] and not leaving.mounts and leaving.part.purge.done


def test_a_node_serves_no_mount_any_more_when_it_is_removed(tmp_path: Path) -> None:
    """What its programs have written may still be committed while it is a member; and whoever gets the volumes next meets no old worker."""
    leaving = Leaving(tmp_path, Rig())
    leaving.part.leave(force=True, purge=True)
    assert leaving.done == ["/mnt/a", "/mnt/b", "left"]


def test_a_leave_that_is_refused_ends_no_mount(tmp_path: Path) -> None:
    leaving = Leaving(tmp_path, Rig())
    for name in ("node-2", "node-3"):
        leaving.rig.known[name]["heard_ms_ago"] = 60_000
    with pytest.raises(WouldLoseData, match="no majority"):
        leaving.part.leave(force=True, purge=True)
    assert leaving.done == [] and leaving.rig.states()["n1"] == "active" and not leaving.part.purge.done


def test_a_leave_without_force_that_is_refused_ends_no_mount_that_was_made_meanwhile(tmp_path: Path) -> None:
    leaving = Leaving(tmp_path, Rig())
    seen: list[list[str]] = [[], ["/mnt/a"]]  # before it was made, and from then on

    def refuse(body: Any) -> Any:
        raise WouldLoseData("files lie only on devices of this node")

    leaving.part._mounted = lambda: seen.pop(0) if len(seen) > 1 else seen[0]
    leaving.part.call_leader = refuse  # type: ignore[method-assign]
    with pytest.raises(WouldLoseData, match="files lie only"):
        leaving.part.leave(force=False, purge=True)
    assert leaving.done == []


def test_the_last_node_ends_its_cluster_by_one_command_that_names_it(tmp_path: Path) -> None:
    leaving = Leaving(tmp_path, Rig(1))
    leaving.rig.drive.make_volume("data")
    advice = f"the cluster ends.*volumes are lost \\(data\\).*: awsomefsd leave --purge --yes-destroy {CLUSTER}$"
    for force, purge in ((False, False), (True, False), (False, True), (True, True)):
        with pytest.raises(WouldLoseData, match=advice):
            leaving.part.leave(force=force, purge=purge)
    with pytest.raises(WouldLoseData, match="is not the cluster"):
        leaving.part.leave(force=True, purge=True, destroy="data")
    with pytest.raises(ConfigError, match="--purge"):
        leaving.part.leave(force=True, purge=False, destroy=CLUSTER)
    with pytest.raises(WouldLoseData, match="/mnt/a, /mnt/b; `awsomefsd umount`"):
        leaving.part.leave(force=False, purge=True, destroy=CLUSTER)
    assert leaving.done == [] and leaving.rig.states() == {"n1": "active"}, "nothing of this changes anything"
    leaving.mounts.clear()
    assert leaving.part.leave(force=False, purge=True, destroy=CLUSTER) == [] and leaving.part.purge.done
    assert leaving.done == [], "there is no cluster to be removed from"


def test_a_cluster_that_another_node_joins_meanwhile_is_not_ended(tmp_path: Path) -> None:
    """It joins after the check, while the mounts of this one end."""
    leaving = Leaving(tmp_path, Rig(1))
    end, joins = leaving.end, [c.AddNode("node-2", "n2", "node", bytes(32), "", "10.0.0.2:7440", level=LEVEL)]

    def meanwhile(directory: str) -> None:
        end(directory)
        while joins:
            leaving.rig.drive.ok(joins.pop())

    leaving.part._end_mount = meanwhile
    with pytest.raises(Refused, match="other nodes: n2; remove them first"):
        leaving.part.leave(force=True, purge=True, destroy=CLUSTER)
    assert not leaving.part.purge.done and leaving.rig.states() == {"n1": "active", "n2": "active"}


@pytest.mark.parametrize("lost", [False, True])
def test_an_end_of_the_cluster_that_fails_is_taken_back(tmp_path: Path, lost: bool) -> None:
    leaving = Leaving(tmp_path, Rig(1))
    seen, fails = [[], ["/mnt/c"]], Unavailable("no keeper")  # before it was made, and from then on
    leaving.part._mounted = lambda: seen.pop(0) if len(seen) > 1 else seen[0]

    def end(directory: str) -> None:
        assert leaving.rig.states() == {"n1": "ending"}
        if lost:
            leaving.part.admin._call = removed
        raise fails

    leaving.part._end_mount = end
    undo = "; it is ending until `awsomefsd node uncordon n1`" if lost else ""
    with pytest.raises(Refused, match=f"^no keeper; the cluster goes on{undo}$"):
        leaving.part.leave(force=False, purge=True, destroy=CLUSTER)
    assert not leaving.part.purge.done and leaving.rig.states() == {"n1": "ending" if lost else "active"}


def test_a_cluster_of_the_level_before_is_upgraded_first(tmp_path: Path) -> None:
    leaving = Leaving(tmp_path, Rig(1))
    leaving.mounts.clear()
    leaving.rig.drive.machine.state.cluster.level = 2
    with pytest.raises(Refused, match="upgrade finalize"):
        leaving.part.leave(force=True, purge=True, destroy=CLUSTER)
    assert not leaving.part.purge.done


def _leader(tmp_path: Path, rig: Rig) -> ControlService:
    """The control service of the leader, which another node asks to leave."""
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    return ControlService(settings, Node(CLUSTER, "node-1", 0), lambda body, timeout_s: rig.call(body), rig.call)


def test_a_rotation_is_looked_for_where_it_may_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the leader, when something was applied since there was none, and as long as there is one."""
    rig, leads, index = Rig(), [True], [7]
    settings = Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")
    part = ControlService(
        settings, Node(CLUSTER, "node-1", 0), lambda body, timeout_s: rig.call(body), rig.call, leads=lambda: leads[0],
        applied=lambda: index[0],
    )  # fmt: skip
    assert part._rotation_may_go_on()
    part._look_at_rotation()
    assert not part._rotation_may_go_on()
    index[0] += 1
    assert part._rotation_may_go_on()
    leads[0] = False
    assert not part._rotation_may_go_on(), "another node sees to it"
    leads[0] = True

    part._look_at_rotation()
    assert not part._rotation_may_go_on()
    monkeypatch.setattr(ca, "bundle_hash", lambda pem: "B")  # the rig's are no certificates
    rig.drive.ok(c.PutCa("cd" * 32, "PEM2", "KEY2", "trusted"))
    index[0] += 1
    for _ in range(2):
        assert part._rotation_may_go_on(), "one is under way"
        part._look_at_rotation()

    def away(body: Any) -> Any:
        raise Unavailable("nobody leads")

    part.ask_here = away  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        part._look_at_rotation()
    assert part._rotation_may_go_on(), "it was not seen"


@pytest.mark.parametrize("former", ["active", "cordoned", "draining"])
def test_a_node_that_may_not_leave_is_what_it_was_before(tmp_path: Path, former: str) -> None:
    """Its own check may have met no leader, so that the leader is the first to refuse."""
    rig = Rig()
    rig.drive.ok(c.SetNodeState("node-2", former))
    volume = rig.drive.make_volume("data")
    rig.drive.ok(c.OpenSession(7, volume, "node-2", "boot", 1))
    stays = "" if former == "active" else f"; it is {former} until `awsomefsd node uncordon n2`"
    with pytest.raises(WouldLoseData, match=f"not empty: it has mounted data.*leave --force{stays}$"):
        _leader(tmp_path, rig)._removed("node-2", False)
    assert rig.states()["n2"] == former
    rig.known["node-3"]["heard_ms_ago"] = 60_000
    with pytest.raises(WouldLoseData, match="no majority"):
        _leader(tmp_path, rig)._removed("node-2", False)
    assert rig.states()["n2"] == former


def test_a_node_that_may_not_leave_says_how_to_undo_what_could_not_be_undone(tmp_path: Path) -> None:
    rig = Rig()
    rig.drive.ok(c.OpenSession(7, rig.drive.make_volume("data"), "node-2", "boot", 1))
    part, call = _leader(tmp_path, rig), rig.call

    def led(body: Any) -> Any:
        """The leader is lost after it has answered what is on the node."""
        if isinstance(body, m.Propose) and body.command.state != "draining":
            raise Unavailable("another one leads")
        return call(body)

    part.ask_here = led  # type: ignore[method-assign]
    with pytest.raises(WouldLoseData, match=r"it is draining until `awsomefsd node uncordon n2`$"):
        part._removed("node-2", False)
    assert rig.states()["n2"] == "draining"


def test_a_cluster_of_several_nodes_is_not_ended_from_one(tmp_path: Path) -> None:
    leaving = Leaving(tmp_path, Rig(2))
    with pytest.raises(Refused, match="other nodes: n2; remove them first"):
        leaving.part.leave(force=True, purge=True, destroy=CLUSTER)
    assert leaving.done == []
    leaving.rig.known["node-2"]["member"] = ""
    with pytest.raises(WouldLoseData, match=r"only one that carries the metadata.*\(n2\).*--yes-destroy"):
        leaving.part.leave(force=True, purge=True)
    assert leaving.done == []
