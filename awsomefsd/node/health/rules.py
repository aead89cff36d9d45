"""The rules behind the codes of codes.py: the findings in a given state of node and cluster.  Pure.

A rule uses only what is known.  A new leader has heard from no node yet, so none counts as gone until it has led for as long as a node may
be silent.  Where no leader answers, there is no finding about other nodes.  A device at another node is no fault of this one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from awsomefsd.base.limits import DEVICE_ALONE_MS, VOTER_KEEP_ENTRIES
from awsomefsd.cluster.membership.view import Certificate, ClusterView, majority, silent_ms
from awsomefsd.io.device.identified import RECOVERED, WRONG
from awsomefsd.io.pool.server_state import ROLLED_BACK, DeviceState
from awsomefsd.node.devices.devices import ABSENT, OF_NODE, UNSERVED
from awsomefsd.node.devices.pool_view import PoolView
from awsomefsd.node.health import pool_rules
from awsomefsd.node.health.codes import HealthFinding

DEVICE_FULL_PERCENT = 95
QUARANTINE_PERCENT = 5
CHECKPOINT_LATE_MS = 600_000
CERTIFICATE_LEFT = 1 / 4  # of its life; it is renewed when a third is left
AUTHORITY_LEFT = 1 / 40  # three months of ten years
MAP_FULL_PERCENT = 90  # it grows from STORE_MAP_USE_MAX_PERCENT on
CLOCK_SKEW_MAX_MS = 2_000  # a report may wait for a second or so on a busy node
VOTER_LAG_MAX = VOTER_KEEP_ENTRIES // 4
MISSING = "not found on this node"
_DEVICE_CODES = (
    (ABSENT, "DEVICE_ABSENT"), (MISSING, "DEVICE_MISSING"), (WRONG, "DEVICE_WRONG"), (RECOVERED, "DEVICE_RECOVERED"),
    (f"{UNSERVED}: {ROLLED_BACK}", "DEVICE_ROLLED_BACK"),
)  # fmt: skip
_WELL = ("serving", "mounting", "detached", "unmounting")
_NAMES_SHOWN = 10


class MountFacts(NamedTuple):
    """One mount of this node, as the rules see it."""

    directory: str
    volume: str
    state: str
    last_error: str = ""


class DeviceView(NamedTuple):
    """One device of the cluster, as this node sees it."""

    uuid: str = ""
    path: str = ""
    state: str = "ok"
    segments: int = 0
    segments_free: int = 0
    shared: bool = False
    pool: bool = False


class NodeView(NamedTuple):
    """This node, as the rules see it.  Sizes are bytes; `conflicts` counts files of the conflict area."""

    keeper: bool
    run_dir: str = ""
    state_dir: str = ""
    memory_bytes: int = 0
    memory_bytes_max: int = 0
    conflicts: int = 0
    figures: Mapping[str, str] = MappingProxyType({})
    mounts: Sequence[MountFacts] = ()
    devices: Sequence[DeviceView] = ()


class Facts(NamedTuple):
    """Facts that are not in NodeView: they come from the leader, or from another part of this node."""

    scrub_open: int = 0  # found, not repaired, and not in `damaged`
    scrub_failed: str = ""
    scrub_behind_s: int = 0  # since when the last complete round began, if that is too long ago
    damaged: Sequence[tuple[str, str, int]] = ()  # (volume, path, file offset) of places with wrong bytes
    quarantined: int = 0  # segments
    quarantined_of: Sequence[str] = ()  # nodes, by name
    alone_ms: Mapping[str, int] = MappingProxyType({})  # shared devices that one node at most sees
    workers: Sequence[tuple[str, int, int]] = ()  # (directory, bytes, budget) of those that are over
    stopped: Sequence[tuple[str, int]] = ()  # (directory, pid of its worker) of mounts whose workers were stopped by a signal
    diverged: Sequence[str] = ()  # directories of mounts whose decisions about names were refused
    host: str = ""  # why keeper and workers outside of the daemon's pod are not as they should be
    segment_server: str = ""  # why other nodes do without this node's devices of pools
    served_devices: Sequence[str] = ()  # paths of these devices
    pool: PoolView | None = None  # None: there is none, or nobody could say
    served: Sequence[DeviceState] = ()  # by this node's segment server
    join_token: str = ""  # why a machine that comes later could not join with the token that is renewed for it


def find(node: NodeView, view: ClusterView, facts: Facts) -> list[HealthFinding]:
    """Returns all findings, those of this node first."""
    return [*of_node(node), *of_facts(node, facts), *of_cluster(view), *_of_pool(view, facts)]


def _of_pool(view: ClusterView, facts: Facts) -> Iterator[HealthFinding]:
    yield from pool_rules.of_served(facts.served)
    if facts.pool is not None:
        carriers = sum(row.role == "node" and row.state != "removed" for row in view.nodes)
        yield from pool_rules.of_pool(facts.pool, view.voters, carriers)


# --- this node -------------------------------------------------------------------------------------------------------------------
def of_node(node: NodeView) -> Iterator[HealthFinding]:
    """Yields the findings about this node itself: keeper, metadata, mounts, devices, memory."""
    if not node.keeper:
        yield HealthFinding("KEEPER_GONE", f"the keeper does not answer at {node.run_dir}/keeper.sock (running mounts continue)")
    yield from _of_metadata(node)
    yield from _of_mounts(node)
    yield from _of_devices(node)
    if damaged := int(node.figures.get("collect_corrupt_pieces", "0")):
        yield HealthFinding("CORRUPT_EXTENTS", f"collection found {damaged} extents with wrong bytes on a device")
    if node.conflicts:
        yield HealthFinding(
            "CONFLICT_FILES",
            f"{node.state_dir}/conflicts has {node.conflicts} file{'s' * (node.conflicts != 1)} with data that could not be committed",
        )
    if node.memory_bytes > node.memory_bytes_max:
        yield HealthFinding(
            "DAEMON_MEMORY",
            f"the daemon uses {node.memory_bytes} bytes of memory; its budget (memory.daemon) is {node.memory_bytes_max}",
        )


def _of_metadata(node: NodeView) -> Iterator[HealthFinding]:
    figures = node.figures
    if (times := figures.get("members_diverged", "0")) != "0":
        yield HealthFinding("STORE_DIVERGED", f"a voter's state differed from that of the others and was rebuilt, {times} times")
    if figures.get("journal_full", "0") != "0":
        yield HealthFinding(
            "JOURNAL_FULL", f"the journal in {node.state_dir}/meta has no space; this voter sends nothing until it has some"
        )
    if (used := float(figures.get("store_map_use_percent", "0"))) > MAP_FULL_PERCENT:
        size = figures.get("store_map_bytes", "?")
        yield HealthFinding("MAP_FULL", f"{used:.0f} % of the map of the state store ({size} bytes, {node.state_dir}/meta) are used")
    state = figures.get("checkpoint", "")
    if state.startswith("suspended"):
        lost = f"the device could not restore everything if {node.state_dir} were lost"
        yield HealthFinding("CHECKPOINT_SUSPENDED", f"checkpoints on the device are {state}; {lost}")
    elif state == "ok" and (late_ms := int(figures.get("checkpoint_lag_ms", "0"))) > CHECKPOINT_LATE_MS:
        yield HealthFinding(
            "CHECKPOINT_LATE",
            f"the copy of the metadata on the device is {late_ms // 1_000} s behind ({figures.get('checkpoint_lag_entries', '?')} entries)",
        )


def _of_mounts(node: NodeView) -> Iterator[HealthFinding]:
    for mount in node.mounts:
        if mount.state == "unwatched" or mount.state in _WELL:
            continue  # KEEPER_GONE is the finding
        why = f": {mount.last_error}" if mount.last_error else ""
        code = {"dead": "MOUNT_DEAD", "refused": "MOUNT_REFUSED"}.get(mount.state, "MOUNT_WAITS")
        yield HealthFinding(code, f"mount {mount.directory} of volume {mount.volume} is {mount.state}{why}")


def _of_devices(node: NodeView) -> Iterator[HealthFinding]:
    for device in node.devices:
        name = device.path or device.uuid
        if device.state.startswith(OF_NODE):
            continue  # the status of that node tells its state
        if device.pool and device.state.startswith(ABSENT):
            continue  # pool_rules.py tells of it, on every node
        if device.state != "ok":
            known = (code for start, code in _DEVICE_CODES if device.state.startswith(start))
            code = next(known, "DEVICE_UNUSABLE")
            fix = "attach it here, then `awsomefsd device scan`" if device.shared and code == "DEVICE_MISSING" else ""
            yield HealthFinding(code, f"device {name}: {device.state}", fix)
        elif device.segments and (device.segments - device.segments_free) * 100 >= device.segments * DEVICE_FULL_PERCENT:
            yield HealthFinding("DEVICE_FULL", f"device {name} has {device.segments_free} of {device.segments} segments left")


def of_facts(node: NodeView, facts: Facts) -> Iterator[HealthFinding]:
    """Yields the findings of Facts: workers, scrub, quarantine, and devices that one node alone sees."""
    for directory, used, budget in facts.workers:
        yield HealthFinding(
            "WORKER_MEMORY", f"the worker of {directory} uses {used} bytes of memory; its budget (memory.worker) is {budget}"
        )
    for directory, pid in facts.stopped:
        what = f"the mount {directory} answers nothing: its worker (pid {pid}) is stopped by a signal"
        yield HealthFinding("MOUNT_HUNG", what, f"run `kill -CONT {pid}`")
    for directory in facts.diverged:
        what = f"the mount {directory} and the cluster saw different names; see {node.state_dir}/conflicts"
        yield HealthFinding("NAMES_DIVERGED", what)
    if facts.host:
        yield HealthFinding("HOST_PROGRAM", f"keeper and workers outside of the daemon's pod: {facts.host}")
    if facts.segment_server:
        serves = f", which serves {', '.join(facts.served_devices)} to all nodes" if facts.served_devices else ""
        yield HealthFinding("SEGMENT_SERVER_GONE", f"the segment server{serves}: {facts.segment_server}")
    if facts.join_token:
        yield HealthFinding("JOIN_TOKEN", f"the join token for machines that come later: {facts.join_token}")
    yield from _of_damage(facts.damaged)
    if facts.scrub_open:
        yield HealthFinding("SCRUB_FINDINGS", f"scrub found {facts.scrub_open} faults that it could not repair")
    if facts.scrub_failed:
        yield HealthFinding("SCRUB_FAILED", f"scrub failed: {facts.scrub_failed}")
    if facts.scrub_behind_s:
        days = facts.scrub_behind_s // 86_400
        yield HealthFinding("SCRUB_BEHIND", f"what this node stores was last verified as a whole by a scrub that began {days} days ago")
    for device in node.devices:
        if facts.alone_ms.get(device.uuid, 0) >= DEVICE_ALONE_MS:
            yield HealthFinding("DEVICE_ALONE", f"at most one node sees the shared device {device.path or device.uuid}")
    if facts.quarantined:
        much = facts.quarantined * 100 >= sum(device.segments for device in node.devices) * QUARANTINE_PERCENT
        held = f"{facts.quarantined} segments are in quarantine because of mounts on {_listed(facts.quarantined_of)}"
        yield HealthFinding("QUARANTINE_GROWS" if much else "SEGMENTS_QUARANTINED", held)


def _of_damage(damaged: Sequence[tuple[str, str, int]]) -> Iterator[HealthFinding]:
    files: dict[tuple[str, str], list[int]] = {}
    for volume, path, offset in damaged:
        files.setdefault((volume, path), []).append(offset)
    for (volume, path), offsets in list(files.items())[:_NAMES_SHOWN]:
        more = f" and {len(offsets) - 1} more places" if len(offsets) > 1 else ""
        yield HealthFinding("DAMAGED_FILE", f"wrong bytes in file {path} of volume {volume} at offset {min(offsets)}{more}")
    if len(files) > _NAMES_SHOWN:
        yield HealthFinding("DAMAGED_FILE", f"wrong bytes in {len(files) - _NAMES_SHOWN} more files")


# --- the cluster -----------------------------------------------------------------------------------------------------------------
def of_cluster(view: ClusterView) -> Iterator[HealthFinding]:
    """Yields the findings about leader, voters and the other nodes."""
    if view.removed:
        yield HealthFinding("NODE_REMOVED", f"this node was removed from the cluster: {view.removed}")
    elif not view.asked:
        yield from _without_answer(view)
    else:
        yield from _of_voters(view)
        yield from _of_nodes(view)
        yield from _of_levels(view)
    yield from _of_certificates(view)
    if view.control_trouble:
        yield HealthFinding("CONTROL_PORT_CLOSED", view.control_trouble)


def _without_answer(view: ClusterView) -> Iterator[HealthFinding]:
    figures = view.figures
    why = f" ({view.trouble})" if view.trouble else ""
    if view.leader:
        yield HealthFinding("LEADER_UNREACHABLE", f"node {view.name(view.leader)} leads the metadata, and this node cannot reach it{why}")
    elif missing := str(figures.get("founding_waits_for", "")):
        names = missing.replace(" ", ", ")
        yield HealthFinding(
            "NOT_FOUNDED", f"the metadata cluster is not founded yet; all voters must run at the same time once; missing: {names}"
        )
    elif str(figures.get("members", "")) == "0":
        yield HealthFinding("NO_MEMBER", "this voter is not a member of a metadata cluster yet")
    else:
        since = f" for {view.without_leader_s:.0f} s (the last one: {view.name(view.last_leader) if view.last_leader else 'none'})"
        yield HealthFinding("NO_LEADER", f"this node knows no leader of the metadata{since}; changes and lookups wait{why}")
        voters, connected = int(figures.get("voters", 0)), int(figures.get("peers_connected", 0)) + 1
        if voters and connected < majority(voters):
            yield HealthFinding(
                "NO_QUORUM",
                f"this voter is connected to {connected - 1} of the {voters - 1} others; {majority(voters)} of {voters} voters are needed",
            )


def _of_voters(view: ClusterView) -> Iterator[HealthFinding]:
    for one in view.members:
        if one.member == "voter" and not one.heard:
            yield HealthFinding(
                "VOTER_GONE", f"the leader has received nothing from voter {one.name} for {max(one.silent_ms, 0) / 1_000:.0f} s"
            )
        elif one.heard and one.lag > VOTER_LAG_MAX:
            yield HealthFinding("VOTER_LAGS", f"{one.member} {one.name} is {one.lag} entries behind")
    carriers = max(view.voters, sum(row.role == "node" and row.state != "removed" for row in view.nodes))
    if view.failures_survived == 0 and carriers >= 2:
        few = "" if view.voters > 1 else f" (of {carriers} nodes; with three nodes, all three vote)"
        yield HealthFinding(
            "ONE_FAILURE_FROM_LOSS",
            f"the leader hears {view.voters_heard} of {view.voters} voters{few}; one more failure stops the metadata",
        )


def _of_nodes(view: ClusterView) -> Iterator[HealthFinding]:
    for row in view.nodes:
        if row.state == "removed":
            continue
        if gone_ms := silent_ms(row, view.led_ms):
            since = f"for {gone_ms / 1_000:.0f} s" if row.heard_ms_ago >= 0 else "since this leader was elected"
            code, kind = ("NODE_GONE", "node") if row.role == "node" else ("CLIENT_GONE", "client")
            yield HealthFinding(code, f"{kind} {row.name} has not reported {since}")
        elif abs(row.skew_ms) > CLOCK_SKEW_MAX_MS:
            ahead = "ahead of" if row.skew_ms > 0 else "behind"
            yield HealthFinding("CLOCK_SKEW", f"the clock of {row.name} is {abs(row.skew_ms) / 1_000:.1f} s {ahead} that of the leader")
        if row.state == "cordoned":
            yield HealthFinding(
                "NODE_CORDONED", f"node {row.name} is cordoned", f"run `awsomefsd node uncordon {row.name}` to let it take new work"
            )
        if row.state == "ending":
            yield HealthFinding(
                "NODE_DRAINING",
                f"node {row.name} was told to end the cluster, and nobody can join it",
                f"run `awsomefsd leave --purge` with --yes-destroy again, or `awsomefsd node uncordon {row.name}` to keep the cluster",
            )
        if row.state == "draining":
            yield HealthFinding("NODE_DRAINING", f"node {row.name} is being drained")


def _of_levels(view: ClusterView) -> Iterator[HealthFinding]:
    known = {row.name: max(row.level, 1) for row in view.nodes if row.state != "removed"}
    if not known or not view.level:
        return
    highest, lowest = max(known.values()), min(known.values())
    if lowest < highest:
        behind = sorted(name for name, level in known.items() if level < highest)
        yield HealthFinding("LEVEL_BEHIND", f"{_listed(behind)} do not know level {highest} yet; the cluster acts at level {view.level}")
    if lowest > view.level:
        yield HealthFinding("UPGRADE_READY", f"the cluster acts at level {view.level}; all nodes know level {lowest}")


def _of_certificates(view: ClusterView) -> Iterator[HealthFinding]:
    for code, what, held, share in (
        ("CERTIFICATE_EXPIRES", "this node's certificate", view.certificate, CERTIFICATE_LEFT),
        ("CA_EXPIRES", "the cluster's certificate authority", view.authority, AUTHORITY_LEFT),
    ):
        if held is not None and _ends_soon(held, view.now_s, share):
            left_h = (held.ends_s - view.now_s) / 3_600
            yield HealthFinding(code, f"{what} expires in {left_h:.0f} hours" if left_h > 0 else f"{what} expired {-left_h:.0f} hours ago")


def _ends_soon(held: Certificate, now_s: float, share: float) -> bool:
    return held.ends_s - now_s < (held.ends_s - held.begins_s) * share


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN]) or "nodes that are not known"
    return shown + (f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else "")
