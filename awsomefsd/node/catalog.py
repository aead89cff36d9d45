"""The volumes and devices of the cluster by name, through the metadata service; its errors say what to do about them.

The machine answers with an errno; this module turns it into words, because the names are known here.
"""

from __future__ import annotations

import errno
import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from awsomefsd.base import levels
from awsomefsd.base.errors import AlreadyExists, ConfigError, Error, FsError, NotFound, Refused, WouldLoseData
from awsomefsd.base.limits import VOLUME_NAME_BYTES_MAX, VOLUMES_MAX
from awsomefsd.base.rule_levels import DELEGATION, SNAPSHOTS
from awsomefsd.base.types import HOST_UNIQUE, NAMES_WORDS, DeviceInfo, VolumeInfo, is_pool
from awsomefsd.meta.api import messages
from awsomefsd.meta.api.commands import (
    UNDECIDED,
    AddDevice,
    AddPoolDevice,
    AnyCommand,
    ClearQuarantine,
    CreateVolume,
    DeleteVolume,
    EndClaims,
    EndSession,
    SetNames,
    SetVolume,
)
from awsomefsd.meta.api.messages.csi import GetClaims
from awsomefsd.meta.api.messages.nodes import ListNodes
from awsomefsd.meta.api.messages.snapshots import ListSnapshots
from awsomefsd.meta.api.report_pages import all_reports

Call = Callable[[Any], Any]  # a body of meta.messages in, its reply out; raises domain errors


def check_name(name: str, kind: str) -> str:
    """Returns `name` if it may be the name of a volume or device.  Raises ConfigError, in words with `kind`, if not.

    A name goes into fstab, file names and the command line: letters, digits, '.', '_' and '-', not first '.' or '-'.
    """
    if not 0 < len(name.encode()) <= VOLUME_NAME_BYTES_MAX:
        raise ConfigError(f"a {kind} name has 1 to {VOLUME_NAME_BYTES_MAX} bytes; {name!r} has {len(name.encode())}; choose another")
    if name[0] in ".-" or not all(char.isascii() and (char.isalnum() or char in "._-") for char in name):
        raise ConfigError(f"{name!r} is no {kind} name: letters, digits, '.', '_' and '-' only, and a letter, digit or '_' first")
    return name


class Catalog:
    """Volumes, devices and sessions in the metadata.  Thread-safe as far as `call` is.

    Every method blocks for the service, and raises Unavailable if it does not answer and FsError with its errno if it refuses.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def figures(self) -> dict[str, int | float | str]:
        """Returns the figures of this node's own metadata service by name, or of the leader's where this node has none."""
        return dict(self._call(messages.GetStatus()).figures)

    def level(self) -> int:
        """Returns the level at which the cluster acts.  Raises Unavailable without a leader.

        The leader says it: a voter of this node may be behind, and one that has just joined has nothing yet.
        """
        return int(self._call(messages.GetStatus(of_leader=True)).figures["level"])

    def reports(self) -> dict[int, dict[str, int]]:
        """Returns the last figures that the workers of this node reported, by mount id."""
        return all_reports(self._call)

    def ask(self, body: Any) -> Any:
        return self._call(body)

    def propose(self, command: AnyCommand) -> Any:
        """Commits one command as the daemon itself; returns its result.  Blocks; raises FsError with the rule's errno, Unavailable.

        A leader refuses commands that it does not know, but would leave out later fields of one that it knows; so the level of those is
        looked at here too.
        """
        if command.level_needed() > command.since and (level := self.level()) < command.level_needed():
            raise FsError(errno.EOPNOTSUPP, levels.too_low(command.level_needed(), level))
        return self._call(messages.Propose(HOST_UNIQUE, 0, 0, [], command))

    def end_session_of(self, mount: int) -> None:
        """Ends the session of a mount of this node; every process that served the mount must have exited, so none of its writes is under
        way.

        Without this a new mount of the volume would wait for the session's TTL.
        """
        for session in self._call(messages.GetSessions()).sessions:
            if session.mount != mount:
                continue
            with suppress(FsError):  # it may expire in between
                if not session.ended:
                    self.propose(EndSession(session.session, session.epoch, True))
                self.propose(ClearQuarantine(session.session, "all processes of the mount have exited"))

    # --- volumes ------------------------------------------------------------------------------------------------------------

    def volumes(self) -> list[VolumeInfo]:
        return list(self._call(messages.GetVolumes()).volumes)

    def delegated(self) -> frozenset[int]:
        """Returns the numbers of the volumes with delegated names.  Raises as `volumes`."""
        return frozenset(self._call(messages.GetVolumes()).delegated)

    def names(self) -> dict[str, str]:
        """Returns the word of NAMES_WORDS of each volume, by its name.  Raises as `volumes`."""
        found = self._call(messages.GetVolumes())
        return {one.name: NAMES_WORDS[one.volume in found.delegated] for one in found.volumes}

    def new_names(self) -> int:
        """Returns when names are durable in a volume that is made without a word about it, as an index of NAMES_WORDS; raises as `volumes`.

        Delegated, but in a cluster whose level does not know that: an upgrade does not change what volumes there are promise.
        """
        return NAMES_WORDS.index("delegated" if self.level() >= DELEGATION else "durable")

    def mountable(self, name: str, node: str) -> VolumeInfo:
        """Returns the volume of this name.  Raises NotFound, and Refused if its data is on the devices of a node other than `node`."""
        found = self.volume(name)
        if found.home not in ("", UNDECIDED, node) and not is_pool(found.home):
            named: dict[str, str] = {}
            with suppress(FsError):  # a client of the cluster may not ask for the names of nodes
                named = {row.node: row.name for row in self.ask(ListNodes()).nodes}
            where = f"{named[found.home]} ({found.home})" if found.home in named else found.home
            raise Refused(
                f"the data of volume {name!r} is on devices of node {where}; mount it there (devices that all nodes see are shared)"
            )
        return found

    def volume(self, name: str) -> VolumeInfo:
        """Returns the volume of this name.  Raises NotFound, which lists the existing volumes."""
        found = next((volume for volume in self.volumes() if volume.name == name), None)
        if found is None:
            names = ", ".join(sorted(volume.name for volume in self.volumes())[:20]) or "none"
            raise NotFound(f"there is no volume {name!r} (volumes: {names}); create it with `awsomefsd volume create {name}`")
        return found

    def create_volume(self, name: str, quota_bytes: int, quota_inodes: int, mode: int, uid: int, gid: int, names: str = "") -> VolumeInfo:
        """Creates a volume and returns it; the quotas are bytes and inodes, `names` "" is as of new volumes (`new_names`).

        Raises ConfigError for the name and for unknown words, AlreadyExists, Refused when there are VOLUMES_MAX volumes, and FsError.
        """
        check_name(name, "volume")
        try:
            decided = _index_of_names(names) if names else self.new_names()
            self.propose(CreateVolume(name, str(uuid.uuid4()), quota_bytes, quota_inodes, mode & 0o7777, uid, gid, decided))
        except FsError as err:
            if err.errno == errno.EEXIST:
                raise AlreadyExists(f"volume {name!r} exists already; choose another name") from err
            if err.errno in (errno.ENOSPC, errno.EMFILE):
                raise Refused(f"a cluster has at most {VOLUMES_MAX} volumes; delete one first") from err
            raise _worded(err, f"volume {name} cannot be created") from err
        return self.volume(name)

    def set_volume(self, name: str, quota_bytes: int, quota_inodes: int, new_name: str, names: str = "") -> VolumeInfo:
        """Changes quotas, name and durability of names of a volume and returns it; -1 and "" leave a value as it is.

        Raises NotFound, ConfigError for the new name and for unknown words, AlreadyExists, and FsError.
        """
        decided = _index_of_names(names) if names else None
        volume = self.volume(name)
        if new_name:
            check_name(new_name, "volume")
            if new_name != name and any(other.name == new_name for other in self.volumes()):
                raise AlreadyExists(f"volume {new_name!r} exists already; choose another name")  # before anything is changed
        try:
            if decided is not None:
                self.propose(SetNames(volume.volume, decided))
            self.propose(SetVolume(volume.volume, quota_bytes, quota_inodes, new_name))
        except FsError as err:
            if err.errno == errno.EEXIST:
                raise AlreadyExists(f"volume {new_name!r} exists already; choose another name") from err
            raise _worded(err, f"volume {name} cannot be changed") from err
        return self.volume(new_name or name)

    def delete_volume(self, name: str, *, destroy: bool, here: str = "") -> None:
        """Deletes a volume.  Raises NotFound, WouldLoseData if it has files and `destroy` is false, and Refused while it is mounted.

        `here`: the directories of this node at which it is mounted.  They and the nodes that have it mounted stand in the refusal.
        """
        volume = self.volume(name)
        try:
            self.propose(DeleteVolume(volume.volume, destroy))
        except FsError as err:
            if err.errno == errno.ENOTEMPTY:
                raise WouldLoseData(
                    f"volume {name} has {volume.used_inodes} files and directories; to destroy them: awsomefsd volume delete {name} --force"
                ) from err
            if err.errno == errno.EBUSY:
                raise Refused(self._who_mounted(volume, here)) from err
            raise _worded(err, f"volume {name} cannot be deleted") from err

    def _who_mounted(self, volume: VolumeInfo, here: str) -> str:
        """Returns the words of a refusal: the nodes with sessions on the volume, and where it is mounted on this one."""
        named: dict[str, str] = {}
        with suppress(FsError):  # a client may not list nodes, and is told their UUIDs
            named = {row.node: row.name for row in self.ask(ListNodes(removed=True)).nodes}
        sessions = [one for one in self._call(messages.GetSessions()).sessions if one.volume == volume.volume and not one.ended]
        if not sessions and self.level() >= SNAPSHOTS and self._call(ListSnapshots(volume.volume)).snapshots:
            return f"volume {volume.name} has snapshots; delete them first (`awsomefsd volume snapshot ls {volume.name}`)"
        if not sessions:
            return f"volume {volume.name} was mounted until a moment ago; try again"
        nodes = sorted({named.get(one.node) or one.node for one in sessions})
        places = f"; on this node at {here}" if here else "; not on this node"
        return (
            f"volume {volume.name} is mounted on {', '.join(nodes)}{places}; `awsomefsd umount` it on each of these nodes "
            "(`awsomefsd status` there shows its directories)"
        )

    def release_volume(self, name: str, node: str) -> list[str]:
        """Ends the claims of a node (its UUID or name) on a volume; returns their paths.

        Raises NotFound if the node claims nothing, and Refused while a session of the node has the volume mounted.
        """
        volume = self.volume(name)
        named = {row.node: row.name for row in self.ask(ListNodes(removed=True)).nodes}
        claims = self._call(GetClaims(volume.volume)).claims
        held = [one for one in claims if node in (one.node, named.get(one.node))]
        if not held:
            others = ", ".join(sorted({named.get(one.node) or one.node for one in claims})) or "none"
            raise NotFound(f"node {node} has no claim on volume {name} (nodes with claims: {others})")
        sessions = self._call(messages.GetSessions()).sessions
        if any(one.volume == volume.volume and one.node == held[0].node and not one.ended for one in sessions):
            raise Refused(f"node {node} has volume {name} mounted and reports to the leader; unmount it there, or stop that node first")
        for one in held:
            self.propose(EndClaims(one.node, one.volume, one.path, "released by an operator", epoch=one.epoch, attached=True))
        return [one.path for one in held]

    # --- devices ------------------------------------------------------------------------------------------------------------

    def devices(self) -> list[DeviceInfo]:
        return list(self._call(messages.GetDevices()).devices)

    def add_device(self, command: AddDevice | AddPoolDevice) -> DeviceInfo:
        """Adds a device to the cluster and returns its row.  Raises AlreadyExists, FsError."""
        try:
            self.propose(command)
        except FsError as err:
            if err.errno == errno.EEXIST:
                raise AlreadyExists(f"device {command.uuid} belongs to this cluster already; see `awsomefsd device ls`") from err
            raise _worded(err, "the device cannot be added") from err
        return next(device for device in self.devices() if device.uuid == command.uuid)

    # --- the change stream ----------------------------------------------------------------------------------------------------

    def follow(self, after: int, count: int, wait_ms: int) -> messages.Changes:
        """Returns up to `count` changes after the entry `after`; waits up to `wait_ms` for the first."""
        reply = self._call(messages.Follow(after, count, wait_ms))
        assert isinstance(reply, messages.Changes)
        return reply


def _index_of_names(names: str) -> int:
    if names not in NAMES_WORDS:
        raise ConfigError(f"names={names}: names of a volume are {' or '.join(NAMES_WORDS)}")
    return NAMES_WORDS.index(names)


def _worded(err: FsError, what: str) -> Error:
    return FsError(err.errno, f"{what}: {err}")
