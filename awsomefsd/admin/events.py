"""Events are the entries of the change stream that say who did what to the cluster, here as sentences.

Names, data and leases of files are no events.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from awsomefsd.base.sizes import format_bytes
from awsomefsd.base.types import NAMES_WORDS, node_mount

if TYPE_CHECKING:
    from awsomefsd.admin.client import AdminClient

_SHORT_UUID = 8  # of what has no name any more


class EventNames:
    """The names of nodes, volumes and mounts, as far as this cluster still has them, and what the stream itself has told."""

    def __init__(self, client: AdminClient, timeout_s: float = 30.0) -> None:
        """Asks the daemon three times, each for `timeout_s` at most.  Raises as `client.call`."""
        self._nodes = {row.node: row.name for row in client.call("ListNodes", timeout_s=timeout_s, removed=True).nodes}
        self._volumes = {row.volume: row.name for row in client.call("ListVolumes", timeout_s=timeout_s).volumes}
        self._mounts = {node_mount(node): node for node in self._nodes}
        self._sessions = {row.session: row.node for row in client.call("ListQuarantine", timeout_s=timeout_s).sessions}

    def learn(self, command: str, fields: dict[str, Any]) -> None:
        """Takes up what an entry says of nodes and mounts that come after the beginning."""
        if command == "AddNode":
            self._nodes[fields["node"]] = fields["name"]
            self._mounts[node_mount(fields["node"])] = fields["node"]
        elif command in ("OpenSession", "OpenShared", "OpenSnapshot"):
            self._mounts[fields["mount"]] = fields["node"]

    def node(self, uuid: str) -> str:
        return self._nodes.get(uuid) or uuid[:_SHORT_UUID] or "?"

    def volume(self, number: int) -> str:
        return self._volumes.get(number) or f"number {number}"

    def who(self, mount: int) -> str:
        """Returns the node whose daemon or mount asked for an entry; "leader" for what the leader decided by itself."""
        return self.node(self._mounts[mount]) if mount in self._mounts else f"mount {mount:x}" if mount else "leader"

    def session(self, number: int) -> str:
        return f"session {number}" + (f" of node {self.node(self._sessions[number])}" if number in self._sessions else "")


def _set_volume(said: dict[str, Any], names: EventNames) -> str:
    changed = []
    if said["quota_bytes"] >= 0:
        changed.append(f"quota {format_bytes(said['quota_bytes']) if said['quota_bytes'] else 'none'}")
    if said["quota_inodes"] >= 0:
        changed.append(f"file quota {said['quota_inodes'] or 'none'}")
    if said["name"]:
        changed.append(f"new name {said['name']}")
    return f"volume {names.volume(said['volume'])}: {', '.join(changed) or 'nothing changed'}"


def _end_session(said: dict[str, Any], names: EventNames) -> str:
    session = names.session(said["session"])
    if said["expired"]:
        return f"{session} was silent for too long and is fenced; what it could still write to is in quarantine"
    return f"{session} ended" if said["clean"] else f"{session} was ended by force and is fenced"


def _mounted(said: dict[str, Any], names: EventNames) -> str:
    how = "mounted" if said["worker"] <= 1 else f"taken over by worker {said['worker']} of its mount"
    return f"volume {names.volume(said['volume'])} {how} on node {names.node(said['node'])}{' (shared)' if said['shared'] else ''}"


def _drain_of_pool(said: dict[str, Any], _names: EventNames) -> str:
    devices = sorted([*said["devices"], *said["lost"]])
    if len(devices) == 1:
        return f"device {devices[0]} is drained"
    return f"devices {', '.join(map(str, devices))} are drained"


def _is(yes: bool) -> str:
    return "is" if yes else "is not"


Sentence = Callable[[dict[str, Any], EventNames], str]
EVENTS: dict[str, tuple[str, Sentence]] = {
    "Init": ("cluster", lambda said, _: f"cluster {said['cluster_uuid']} begins"),
    "Recover": ("cluster", lambda said, names: f"node {names.node(said['node'])} recovered the cluster: {said['proof']}"),
    "RepairRows": ("cluster", lambda said, _: f"fsck repaired {len(said['puts'])} rows and removed {len(said['deletes'])}"),
    "RaiseLevel": ("cluster", lambda said, _: f"the cluster acts at level {said['target']}"),
    "ChangeMembership": ("voters", lambda said, _: "the voters of the metadata changed"),
    "SetCarries": ("voters", lambda said, names: f"node {names.node(said['node'])} {_is(said['carries'])} to carry the metadata"),
    "AddNode": ("join", lambda said, _: f"node {said['name']} ({said['node']}) joined as {said['role']}"),
    "DescribeNode": ("node", lambda said, _: f"node {said['name']} runs version {said['version'] or '?'}, and knows level {said['level']}"),
    "SetNodeState": ("node", lambda said, names: f"node {names.node(said['node'])} is {said['state']}"),
    "PutToken": ("token", lambda said, _: f"token {said['id']} for role {said['role']} was made"),
    "RevokeToken": ("token", lambda said, _: f"token {said['id']} was revoked"),
    "PutCa": ("ca", lambda said, _: f"authority {said['id']} is {said['state']}"),
    "DropCa": ("ca", lambda said, _: f"authority {said['id']} is not trusted any more"),
    "AddDevice": ("device", lambda said, _: f"device {said['uuid']} of {format_bytes(said['bytes'])} was added"),
    "GrowDevice": ("device", lambda said, _: f"device {said['device']} has {format_bytes(said['bytes'])} now"),
    "DrainDevice": ("device", lambda said, _: f"device {said['device']} {'is drained' if said['draining'] else 'is used again'}"),
    "DrainPoolDevices": ("device", _drain_of_pool),
    "RemoveDevice": ("device", lambda said, _: f"device {said['device']} is being removed"),
    "SetAbsent": ("device", lambda said, _: f"device {said['device']} is {'not seen by any node' if said['absent'] else 'seen again'}"),
    "SetDeviceEra": ("device", lambda said, _: f"device {said['uuid']} is of era {said['era']}"),
    "CreateVolume": ("volume", lambda said, _: f"volume {said['name']} was created"),
    "SetVolume": ("volume", _set_volume),
    "SetNames": ("volume", lambda said, names: f"names of volume {names.volume(said['volume'])} are {NAMES_WORDS[said['names']]}"),
    "DeleteVolume": ("volume", lambda said, names: f"volume {names.volume(said['volume'])} was deleted"),
    "OpenSession": ("mount", _mounted),
    "OpenShared": ("mount", _mounted),
    "EndSession": ("mount", _end_session),
    "ClearQuarantine": ("quarantine", lambda said, names: f"{names.session(said['session'])} left quarantine: {said['proof']}"),
    "MakeCsiVolume": ("csi", lambda said, _: f"volume {said['name']} ({said['id']}) was made for an orchestrator"),
    "SetCsiVolume": ("csi", lambda said, _: f"volume {said['id']} of an orchestrator was changed"),
    "DropCsiVolume": ("csi", lambda said, _: f"volume {said['id']} of an orchestrator was deleted"),
    "ClaimVolume": ("csi", lambda said, names: f"node {names.node(said['node'])} claims volume {names.volume(said['volume'])}"),
    "EndClaims": ("csi", lambda said, names: f"claims of node {names.node(said['node'])} ended: {said['proof']}"),
    "RegisterReader": ("reader", lambda said, _: f"reader {said['name']} of the change stream begins"),
    "RemoveReader": ("reader", lambda said, _: f"reader {said['name']} of the change stream was removed"),
}  # fmt: skip


def event_of(change: Any, names: EventNames) -> dict[str, Any] | None:
    """Returns an entry of the change stream (pb.Change) as an event: index, time_ns, kind, who, what, command; None if it is none."""
    if change.command not in EVENTS:
        return None
    said = json.loads(change.fields)
    names.learn(change.command, said)
    kind, sentence = EVENTS[change.command]
    return {
        "index": change.index,
        "time_ns": change.time_ns,
        "kind": kind,
        "who": names.who(change.mount),
        "what": sentence(said, names),
        "command": change.command,
    }
