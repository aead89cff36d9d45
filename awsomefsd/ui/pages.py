"""The pages: messages of the admin API in, HTML out.  Pure.

A page is the content of <main>; frame.py puts it into a document.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from awsomefsd.base.sizes import format_bytes
from awsomefsd.node.health.codes import CODES
from awsomefsd.ui import elements as e
from awsomefsd.ui.actions import Offer
from awsomefsd.ui.history import CHARTS
from awsomefsd.ui.markup import Child, Markup, join, tag


def overview(status: Any) -> Markup:
    """Returns the cluster and this node on one page (pb.Status)."""
    if not status.node:
        return without_identity(status)
    state = e.mark("warning", "Needs attention") if status.reasons else e.mark("ok", "Healthy")
    counts = [(len(getattr(status, f"{what}s")), what) for what in ("device", "volume", "mount", "conflict")]
    shown = [tag("li", tag("a", tag("b", count), f" {what}{'' if count == 1 else 's'}", href=f"/{what}s")) for count, what in counts]
    return join(
        [
            tag("h1", "Overview"),
            tag("p", state, class_="state"),
            e.findings(status.health),
            tag("ul", *shown, class_="counts"),
            tag("div", e.chart("requests", CHARTS["requests"].title), e.chart("sync", CHARTS["sync"].title), class_="charts"),
            tag("h2", "Cluster"),
            e.fields(_cluster(status)),
            tag("h2", "This node"),
            e.fields(_node(status)),
            _members(status.metadata),
        ]
    )


def without_identity(status: Any) -> Markup:
    """Returns the page of a daemon that belongs to no cluster yet."""
    return join([tag("h1", "Overview"), tag("p", e.mark("warning", "In no cluster"), class_="state"), e.findings(status.health)])


def _cluster(status: Any) -> list[tuple[str, Child]]:
    metadata = status.metadata
    if metadata.leader:
        led = f"{metadata.leader_name or metadata.leader} in term {metadata.term}"
    else:
        led = f"nobody for {e.duration(metadata.without_leader_s)}; the last known: {metadata.last_leader_name or 'none'}"
    voters = f"{metadata.voters_heard} of {metadata.voters} heard" if metadata.voters_heard else f"{metadata.voters}"
    shown: list[tuple[str, Child]] = [
        ("Cluster", tag("code", status.cluster)),
        ("Leader of the metadata", led),
        ("Voters", voters),
        ("Voters that may fail", metadata.failures_survived if metadata.failures_survived >= 0 else "not known"),
        ("Level", metadata.level),
    ]
    return [*shown, ("Trouble", metadata.trouble)] if metadata.trouble else shown


def _node(status: Any) -> list[tuple[str, Child]]:
    memory = f"{format_bytes(status.memory_bytes)} of {format_bytes(status.memory_bytes_max)}"
    return [
        ("Node", tag("code", status.node)),
        ("Site", status.site),
        ("Version", status.version),
        ("Daemon", f"pid {status.pid}, up {e.duration(status.uptime_s)}"),
        ("Memory of the daemon", memory),
        ("Keeper", f"pid {status.keeper_pid}, version {status.keeper_version}" if status.keeper else e.mark("error", "does not answer")),
    ]


def _members(metadata: Any) -> Markup | None:
    if not metadata.members:
        return None
    rows = [
        [
            one.name or one.node,
            "leader" if one.leader else one.member,
            "-" if one.leader else one.lag if one.lag >= 0 else "not known",
            "-" if one.leader else f"{one.silent_ms / 1_000:.1f} s ago" if one.heard else e.mark("warning", "not heard"),
        ]
        for one in metadata.members
    ]
    return e.table("Members of the metadata", ["Node", "Role", "Entries behind", "Heard"], rows, right=["Entries behind"], heading=True)


def _with_actions(columns: list[str], rows: list[list[Child]], offered: list[Child]) -> list[str]:
    """Gives each row what is offered for it; returns the columns then.  Nothing is added where nothing is offered."""
    if not any(one is not None for one in offered):
        return columns
    for row, one in zip(rows, offered, strict=True):
        row.append(one)
    return [*columns, "Action"]


def _tools(*offered: Child) -> Markup | None:
    found = [one for one in offered if one is not None]
    return tag("div", *found, class_="actions") if found else None


def nodes(found: Iterable[Any], offer: Offer) -> Markup:
    """Returns the nodes of the cluster (pb.Node)."""
    found = list(found)
    rows: list[list[Child]] = [
        [
            row.name,
            _readiness(row),
            row.role,
            "leader" if row.leader else row.member or "-",
            row.labels.get("zone", "-"),
            f"{row.heard_ms_ago / 1_000:.1f} s ago" if row.heard_ms_ago >= 0 else "-",
            row.version or "-",
            row.level,
            row.control or "-",
            e.instant(row.joined_ms),
            tag("code", row.node),
        ]
        for row in found
    ]
    columns = ["Name", "Status", "Role", "Metadata", "Zone", "Heard", "Version", "Level", "Address", "Joined", "Node"]
    columns = _with_actions(
        columns, rows, [offer("cordon" if row.state == "active" else "uncordon", row.name or row.node) for row in found]
    )
    return join([tag("h1", "Nodes"), e.table("Nodes of the cluster", columns, rows, right=["Level"], empty="no nodes")])


def _readiness(row: Any) -> Markup:
    words = row.readiness + (f", {row.state}" if row.state != "active" else "")
    return e.mark({"ready": "ok", "not-ready": "error"}.get(row.readiness, "plain") if row.state == "active" else "warning", words)


def devices(found: Iterable[Any], names: Mapping[str, str], offer: Offer) -> Markup:
    """Returns the devices of the cluster as this node sees them (pb.Device); `names`: of nodes by UUID, as far as known."""
    found = list(found)
    rows: list[list[Child]] = [
        [
            one.device,
            tag("code", one.path) if one.path else "-",
            format_bytes(one.bytes),
            _share((one.segments - one.segments_free) * one.segment_bytes, one.segments * one.segment_bytes),
            f"{one.segments_free} of {one.segments}",
            "shared" if one.shared else names.get(one.home, one.home) or "-",
            e.mark("ok" if one.state == "ok" and not one.draining else "warning", f"{one.state}, draining" if one.draining else one.state),
            tag("code", one.uuid),
        ]
        for one in found
    ]
    columns = ["Device", "Path here", "Size", "Used", "Free segments", "Node", "State", "UUID"]
    columns = _with_actions(columns, rows, [offer("undrain-device" if one.draining else "drain-device", str(one.device)) for one in found])
    shown = e.table("Devices of the cluster", columns, rows, right=["Device", "Size", "Free segments"], empty="no devices")
    return join([tag("h1", "Devices"), shown, _tools(offer("scan"), offer("collect"))])


def _share(used: int, of: int) -> Markup:
    """Returns used bytes with a bar, as far as there is a whole."""
    share = {"min": 0, "max": of, "high": of * 9 // 10, "optimum": 0, "value": min(used, of)}
    bar = tag("meter", f"{100 * used // of} %", aria_label="used", **share) if of > 0 else None
    return join([format_bytes(used), " ", bar])


def volumes(found: Iterable[Any]) -> Markup:
    """Returns the volumes of the cluster (pb.Volume)."""
    rows = [
        [
            one.name,
            _share(one.used_bytes, one.quota_bytes),
            format_bytes(one.quota_bytes) if one.quota_bytes else "none",
            one.used_inodes,
            one.quota_inodes or "none",
            one.names or "-",
            one.mounted or "-",
            tag("code", one.uuid),
        ]
        for one in found
    ]
    columns = ["Volume", "Used", "Quota", "Files", "File quota", "Names", "Mounted here", "UUID"]
    right = ["Quota", "Files", "File quota"]
    return join([tag("h1", "Volumes"), e.table("Volumes of the cluster", columns, rows, right=right, empty="no volumes")])


def mounts(found: Iterable[Any], offer: Offer) -> Markup:
    """Returns the mounts of this node (pb.MountPoint)."""
    found = list(found)
    rows: list[list[Child]] = [
        [
            tag("code", one.directory),
            one.volume,
            e.mark({"serving": "ok", "dead": "error"}.get(one.state, "warning"), one.state),
            f"pid {one.worker_pid}" if one.worker_pid else "-",
            one.worker_version or "-",
            max(one.workers - 1, 0),
            ",".join(one.options) or "-",
            one.last_error or "-",
            one.power_cut or "-",
        ]
        for one in found
    ]
    columns = ["Directory", "Volume", "State", "Worker", "Version", "Restarts", "Options", "Last error", "Power cut"]
    columns = _with_actions(columns, rows, [offer("flush", one.directory) for one in found])
    return join([tag("h1", "Mounts"), e.table("Mounts of this node", columns, rows, right=["Restarts"], empty="no mounts")])


def health(status: Any, offer: Offer) -> Markup:
    """Returns what was found, and all codes with what mends each."""
    rows = [
        [
            tag("code", code.name),
            e.mark(code.severity, code.severity),
            code.says,
            e.code_words(code.fix),
            "doctor" if code.doctor else "status",
        ]
        for code in CODES.values()
    ]
    return join(
        [
            tag("h1", "Health"),
            e.findings(status.health),
            _tools(offer("scrub"), offer("stop-scrub")),
            e.table("All health codes", ["Code", "Severity", "Meaning", "Fix", "Found by"], rows, heading=True),
        ]
    )


def charts() -> Markup:
    """Returns the places of all charts."""
    return join([tag("h1", "Charts"), tag("div", *(e.chart(one.name, one.title) for one in CHARTS.values()), class_="charts")])


def conflicts(found: Iterable[Any]) -> Markup:
    """Returns the files of this node's conflict area (pb.Conflict)."""
    rows = [[tag("code", one.path), format_bytes(one.bytes)] for one in found]
    said = (
        "Files that were kept aside on this node, because their data could not be committed any more. Copy what you need, and delete them."
    )
    shown = e.table("Files kept aside", ["Path on this node", "Size"], rows, right=["Size"], empty="no conflicts")
    return join([tag("h1", "Conflicts"), tag("p", said), shown])


def events(found: list[dict[str, Any]], whole: bool) -> Markup:
    """Returns who did what to the cluster, the newest first.  `whole`: the log was read to its end."""
    rows = [[one["index"], e.instant(one["time_ns"] // 1_000_000), one["kind"], one["who"], one["what"]] for one in found]
    columns = ["Index", "Time", "Kind", "Who", "What"]
    going = None if whole else tag("p", e.mark("info", "The log is still being read; the newest events come with the next look."))
    return join(
        [tag("h1", "Events"), going, e.table("Who did what", columns, rows, right=["Index"], empty="no events in the newest entries")]
    )
