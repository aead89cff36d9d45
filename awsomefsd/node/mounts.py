"""The mounts that this node is meant to have (state_dir/mounts.json); it brings what the keeper has into line with them.

A mount is written to mounts.json before the keeper is asked, and taken out after the keeper has unmounted it.  So a daemon that is
killed in between finds either a desired mount that the keeper does not know (nothing is mounted there: it is dropped, its caller never got
an answer) or a mount that is already in both.  What the keeper has and the file has not (a lost file) is taken up again.

A mount whose processes all died (keeper and worker at once) leaves a dead mount in the kernel: every call on it fails with ENOTCONN.  Then,
and only then, it is mounted again, under a new mount id: request ids are (mount id, unique), and a new connection counts unique from the
start.  A keeper that has just been restarted and does not know its mounts yet is no proof of that, and the probe tells the two apart.
Desired mounts of an earlier boot are dropped: mounts that shall survive a reboot are in fstab.

A volume is served by one worker, over one connection; each of its directories is a desired mount.  The first one makes the connection and
gives it its id, the others are attached to it (`connection`), with flags of their own.  A connection outlives its first directory, and all
of them while a container or a bind mount keeps a copy: a mount of the volume is attached to it then as well, whatever the patience of
whoever holds it.

The keeper outlives the identity of this node, and so do its mounts.  What was mounted as another node answers EIO for ever: it is shown as
refused until it is unmounted.  It is never brought back, and nothing is attached to it.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any, Protocol

from awsomefsd.base import durable, program
from awsomefsd.base.errors import AlreadyExists, ConfigError, Corrupt, Error, FormatTooNew, FsError, NotFound, Refused, Unavailable
from awsomefsd.base.limits import UMOUNT_FLUSH_MS_MAX
from awsomefsd.base.log import bound
from awsomefsd.base.types import SnapshotInfo, VolumeInfo
from awsomefsd.config import mount_options
from awsomefsd.config.mount_options import MountOptions
from awsomefsd.keeper import mount_syscalls
from awsomefsd.keeper.client import ANSWER_S_MAX, LOOK_S_MAX
from awsomefsd.node.last_words import reason_in
from awsomefsd.worker.config import WorkerConfig, asked_options
from awsomefsd.worker.memory import worker_memfds

logger = logging.getLogger(__name__)
PROBE_S = 2.0
UNMOUNTED_LOOK_S = 0.05
MOUNTS_VERSION = 1  # of mounts.json
BUSY_S_MAX = UMOUNT_FLUSH_MS_MAX / 1_000  # that an operation waits for another one on the same volume or directory
# States beside the keeper's own ("serving", "starting", "waiting" for a worker, "unmounting", "detached").
SERVING, DETACHED, DEAD, MOUNTING, UNWATCHED = "serving", "detached", "dead", "mounting", "unwatched"
REFUSED = "refused"  # it answers EIO, because its node was removed from the cluster
NO_VOLUME = 0  # of a mount that this machine has from before it left a cluster: its volume is none of this cluster's


class MountKeeper(Protocol):
    """The keeper's methods that mounts use (keeper/client.py).

    Each blocks; raises Unavailable if no keeper answers, FsError if it refuses.
    """

    def mount(
        self,
        mount: str,
        dir: str,
        source: str,
        *,
        options: Sequence[str],
        fuse_options: str,
        readahead_kib: int,
        memfds: Mapping[str, int],
        config: Mapping[str, Any],
        argv: Sequence[str],
        env: Mapping[str, str],
    ) -> dict[str, Any]: ...
    def attach(self, mount: str, dir: str, *, options: Sequence[str]) -> dict[str, Any]: ...
    def remount(self, mount: str, dir: str, *, options: Sequence[str], config: Mapping[str, Any], readahead_kib: int) -> None: ...
    def umount(self, target: str, *, dir: str, force: bool) -> dict[str, Any]: ...
    def flush(self, target: str) -> dict[str, Any]: ...
    def list(self, timeout_s: float = ANSWER_S_MAX) -> list[dict[str, Any]]: ...
    def warm(self, argv: Sequence[str], env: Mapping[str, str]) -> bool: ...


@dataclass(frozen=True, slots=True)
class DesiredMount:
    """A mount this node is meant to have."""

    mount: int
    volume: int
    volume_name: str
    directory: str
    options: tuple[str, ...]
    connection: int = 0  # the mount to whose connection this one is attached; 0: it has its own
    snapshot: int = 0  # of the volume, and `volume_name` says so; 0: the volume itself
    snapshot_uuid: str = ""

    @property
    def served_as(self) -> int:
        """The id under which the keeper serves it."""
        return self.connection or self.mount


@dataclass(frozen=True, slots=True)
class MountView:
    """A mount as it is now, for status."""

    mount: int
    volume_name: str
    directory: str
    options: tuple[str, ...]
    state: str
    worker_pid: int = 0
    workers: int = 0
    last_error: str = ""
    version: str = ""  # of the worker's program
    served_as: int = 0  # the id under which its worker reports


@dataclass(frozen=True, slots=True)
class Unmounted:
    """The end of a mount.  `flushed` false: acknowledged writes may be lost; `detached`: a bind mount or another namespace still has it."""

    directory: str
    flushed: bool
    detached: bool


MakeWorkerConfig = Callable[[DesiredMount, MountOptions], WorkerConfig]
FindVolume = Callable[[str], VolumeInfo]
FindSnapshot = Callable[[str, str], tuple[VolumeInfo, SnapshotInfo]]
WorkerProgram = Callable[[], tuple[list[str], dict[str, str]]]


def own_worker() -> tuple[list[str], dict[str, str]]:
    """Returns how the keeper starts a worker of this very program: argv, and the environment to add (empty)."""
    return program.command("worker"), {}


class Mounts:
    """The mounts of this node.  Thread-safe.  Methods that ask the keeper block and raise Unavailable if it does not answer.

    Operations on one volume or directory wait for each other; those on different ones run side by side.
    """

    def __init__(
        self,
        state_dir: Path,
        boot_id: str,
        keeper: MountKeeper,
        find_volume: FindVolume,
        worker_config: MakeWorkerConfig,
        readahead_kib: int,
        end_session: Callable[[int], None] = lambda mount: None,
        worker_program: WorkerProgram = own_worker,
        removed: Callable[[], str] = str,
        *,
        node: str,
        find_snapshot: FindSnapshot | None = None,
    ) -> None:
        """`removed` returns why this node is not in its cluster any more, "" while it is; `node` is its id."""
        self._path = state_dir / "mounts.json"
        self._boot_id = boot_id
        self._keeper = keeper
        self._find_volume = find_volume
        self._find_snapshot = find_snapshot
        self._worker_config = worker_config
        self._readahead_kib = readahead_kib
        self._end_session = end_session
        self._worker_program = worker_program
        self._removed = removed
        self._node = node
        self._lock = threading.Lock()
        self._freed = threading.Condition(self._lock)
        self._busy: set[str] = set()
        self._errors: dict[int, str] = {}
        self._desired = {wanted.mount: wanted for wanted in _load(self._path, boot_id)}
        self._reviving = set(_load_reviving(self._path)) & set(self._desired)  # whose dead mount may be gone already

    # --- what people ask --------------------------------------------------------------------------------------------------

    def mount(self, volume_name: str, directory: str, options: list[str]) -> MountView:
        """Mounts a volume, or read-only its snapshot VOLUME@NAME; returns when it serves.

        Raises ConfigError, NotFound, AlreadyExists, Refused, FsError, or Unavailable, which leaves it to `reconcile`.
        """
        parsed = mount_options.parse(options, self._readahead_kib, os.geteuid() == 0)
        directory = _real_path(directory)
        with self._exclusive(f"volume {volume_name}", f"directory {directory}"):
            volume, snapshot = self._found(volume_name)
            wanted = DesiredMount(_new_id(), volume.volume, volume.name, directory, tuple(options))
            if snapshot is not None:
                parsed, wanted = self._of_snapshot(wanted, snapshot)
            self._await_unmounted(wanted)
            _check_mount_point(directory)
            self._refuse_second(directory)
            try:
                pid = self._attach_or_start(wanted, parsed)
            except Unavailable:
                raise  # it may be mounted all the same; reconcile finds out
            except FsError as err:
                self._drop(wanted.mount)
                raise FsError(err.errno, reason_in(str(err))) from err
            except Error:
                self._drop(wanted.mount)
                raise
        bound(logger, mount=wanted.mount).info("mounted", extra={"volume": volume_name, "dir": directory})
        return MountView(wanted.mount, wanted.volume_name, directory, wanted.options, SERVING, pid, 1, served_as=wanted.served_as)

    def _found(self, name: str) -> tuple[VolumeInfo, SnapshotInfo | None]:
        """Returns what is called VOLUME, or VOLUME@NAME.  Raises NotFound, Refused."""
        volume, at, snapshot = name.partition("@")
        found = self._find_volume(volume)
        if not at or self._find_snapshot is None:
            return found, None
        return found, self._find_snapshot(volume, snapshot)[1]

    def _of_snapshot(self, wanted: DesiredMount, info: SnapshotInfo) -> tuple[MountOptions, DesiredMount]:
        """Returns the mount of a volume as that of a snapshot of it, which is read-only, and its options.  Raises ConfigError."""
        name = f"{wanted.volume_name}@{info.name}"
        options = (*(word for word in wanted.options if word not in ("ro", "rw")), "ro")
        parsed = mount_options.parse(list(options), self._readahead_kib, os.geteuid() == 0)
        if parsed.shared:
            raise ConfigError(f"{name} is mounted beside any other mount, on any node; leave the option shared out")
        return parsed, replace(wanted, volume_name=name, options=options, snapshot=info.snapshot, snapshot_uuid=info.uuid)

    def remount(self, volume_name: str, directory: str, words: list[str]) -> MountView:
        """Changes the options of a mount; returns when they hold, with `ro` when everything written is durable as well.

        Raises ConfigError for options that are bad or cannot change, NotFound, Refused, FsError (EBUSY: open for writing), Unavailable.
        """
        view = self.find(_real_path(directory))
        if view.volume_name != volume_name:
            raise NotFound(f"{directory} has volume {view.volume_name} mounted, not {volume_name}")
        with self._exclusive(f"volume {volume_name}", f"directory {view.directory}"):
            wanted = self._desired.get(view.mount)
            if wanted is None:
                raise NotFound(f"{directory} has just been unmounted; mount it again")
            options = mount_options.remounted(wanted.options, words, owner=(os.geteuid(), os.getegid()))
            parsed = mount_options.parse(options, self._readahead_kib, os.geteuid() == 0)
            if wanted.snapshot and not parsed.read_only:
                raise ConfigError(f"{volume_name} is a snapshot, and never writable; leave the option rw out")
            self._check_others_agree(wanted, parsed)
            row = next((row for row in self._keeper.list() if _id_of(row) == wanted.served_as), None)
            if row is None:
                raise Unavailable(f"{directory} is not served at the moment; try again")
            config = {**row["config"], "options": options, "read_only": parsed.read_only, "atime": parsed.atime_policy}
            readahead_kib = parsed.readahead_kib if any(word.startswith("readahead=") for word in words) else 0
            self._keeper.remount(
                f"{wanted.served_as:x}", wanted.directory, options=parsed.flags, config=config, readahead_kib=readahead_kib
            )
            self._keep(replace(wanted, options=tuple(options)))
        bound(logger, mount=wanted.mount).info("remounted", extra={"dir": view.directory, "options": ",".join(options)})
        return replace(view, options=tuple(options))

    def _check_others_agree(self, wanted: DesiredMount, options: MountOptions) -> None:
        with self._lock:
            others = [one for one in self._desired.values() if one.served_as == wanted.served_as and one.mount != wanted.mount]
        for other in others:
            differing = mount_options.differing(mount_options.parse(list(other.options), self._readahead_kib, os.geteuid() == 0), options)
            if differing:
                raise Refused(
                    f"{other.directory} has the volume mounted too, and {', '.join(differing)} would differ; unmount it there first"
                )

    def umount(self, target: str, *, force: bool) -> Unmounted:
        """Flushes and unmounts; `force` aborts the connection after a short flush.  Raises NotFound, Refused, FsError, Unavailable."""
        view = self._one(target)
        with self._exclusive(f"volume {view.volume_name}", f"directory {view.directory}"):
            wanted = self._desired.get(view.mount)
            if wanted is None:
                raise NotFound(f"{view.directory} has just been unmounted")
            others = [one for one in list(self._desired.values()) if one.served_as == wanted.served_as and one is not wanted]
            if wanted.served_as not in {_id_of(row) for row in self._keeper.list()}:
                ended = is_dead(view.directory)  # else its worker has not come back to a new keeper yet
                _detach(view.directory)
                done = Unmounted(view.directory, flushed=False, detached=False)
            else:
                answer = self._keeper.umount(f"{wanted.served_as:x}", dir=view.directory, force=force)
                held = bool(answer.get("detached")) and all(_was_unmounted(one.directory) for one in others)
                done = Unmounted(view.directory, bool(answer.get("flushed")), held)
                ended = bool(answer.get("ended"))
            self._drop(view.mount)
            if ended and not others and wanted.volume != NO_VOLUME:  # else the next mount waits until it expires
                with suppress(Unavailable):
                    self._end_session(wanted.served_as)
        fields = {"dir": view.directory, "force": force, "flushed": done.flushed, "detached": done.detached}
        bound(logger, mount=view.mount).info("unmounted", extra=fields)
        return done

    def warm(self) -> bool:
        """Lets the keeper load the workers' program before one is needed; returns whether it has."""
        return self._keeper.warm(*self._worker_program())

    def flush(self, target: str) -> str:
        """Makes everything written to the mount until now durable; returns its directory.  Raises NotFound, FsError, Unavailable."""
        view = self.find(target)
        self._keeper.flush(f"{self._desired[view.mount].served_as:x}")
        return view.directory

    def _one(self, target: str) -> MountView:
        """Returns the mount that is meant, as `find`.  Raises Refused for a volume with several directories."""
        found = self.find(target)
        if target == found.volume_name:
            directories = [view.directory for view in self.views() if view.volume_name == target]
            if len(directories) > 1:
                raise Refused(f"volume {target} is mounted at {' and '.join(sorted(directories))}; give one of these directories")
        return found

    def find(self, target: str) -> MountView:
        """Returns the mount at a directory, of a volume, or with an id in hexadecimal.  Raises NotFound, which lists the mounts.

        Of a volume that is meant by its name those come first that are served: another one may be of a cluster that this machine has left.
        """
        path = os.path.normpath(target) if target.startswith("/") else ""
        views = sorted(self.views(), key=lambda view: view.state == REFUSED)
        for view in views:
            if target in (view.directory, view.volume_name, f"{view.mount:x}") or (path and path == view.directory):
                return view
        known = ", ".join(view.directory for view in views) or "none"
        raise NotFound(f"{target} is not a mount of this node (mounts: {known}); give a directory, a volume or a mount id")

    def of_volume(self, volume: int) -> MountView | None:
        """Returns the mount of a volume on this node, or None."""
        with self._lock:
            wanted = next((one for one in self._desired.values() if one.volume == volume and not one.snapshot), None)
        return None if wanted is None else next((view for view in self.views() if view.mount == wanted.mount), None)

    def shown(self) -> list[MountView]:
        """Returns `views` for somebody who only looks: a keeper that is silent is soon taken for away."""
        return self.views(patience_s=LOOK_S_MAX)

    def views(self, *, watched: bool = True, patience_s: float = ANSWER_S_MAX) -> list[MountView]:
        """Returns all mounts, also when the keeper is away or silent for `patience_s` (their state is then "unwatched").

        `watched`: False if that is known; it is not asked then.
        """
        with self._lock:
            desired = list(self._desired.values())
        busy = self._busy_of(desired)  # one that completes then is in the keeper's list
        listed = None
        if watched:
            with suppress(Unavailable):
                listed = {_id_of(row): row for row in self._keeper.list(patience_s)}
        busy |= self._busy_of(desired)  # one that is being unmounted may have left the list
        with self._lock:
            kept = [wanted for wanted in desired if wanted.mount in self._desired]
        return [self._view(wanted, listed, busy=wanted.mount in busy) for wanted in kept]

    def _busy_of(self, desired: list[DesiredMount]) -> set[int]:
        return {wanted.mount for wanted in desired if self._is_busy(wanted)}

    def _view(self, wanted: DesiredMount, listed: dict[int, dict[str, Any]] | None, *, busy: bool) -> MountView:
        row = (listed or {}).get(wanted.served_as)
        if row is not None:
            state = str(row["state"])
            if state == DETACHED and not _was_unmounted(wanted.directory):
                state = SERVING  # it was unmounted from another directory
        elif busy:
            state = MOUNTING
        else:
            state = UNWATCHED if listed is None else DEAD
        row = row or {}
        why = self._removed() if state == SERVING else ""
        if wanted.volume == NO_VOLUME or self._is_of_before(row):
            why = f"this machine has left the node or cluster that it was mounted from; run `awsomefsd umount {wanted.directory}`"
        if why:
            state = REFUSED
        return MountView(
            wanted.mount,
            wanted.volume_name,
            wanted.directory,
            wanted.options,
            state,
            worker_pid=int(row.get("pid") or 0),
            workers=int(row.get("workers") or 0),
            last_error=why or str(row.get("last_error") or self._errors.get(wanted.mount, "")),
            version=str(row.get("version") or ""),
            served_as=wanted.served_as,
        )

    # --- bringing the node into line ----------------------------------------------------------------------------------------

    @property
    def unsettled(self) -> bool:
        """A dead mount is being brought back."""
        return bool(self._reviving)

    def reconcile(self) -> list[DesiredMount]:
        """Compares the desired mounts, the keeper and the kernel; returns the mounts whose processes died.

        Takes up what only the keeper knows, and drops what others have unmounted.  Each mount returned is for `revive`, which may take as
        long as the old session lives.
        """
        listed = {_id_of(row): row for row in self._keeper.list()}
        with self._lock:
            desired = list(self._desired.values())
        for wanted in desired:
            if wanted.mount in self._reviving and listed.get(wanted.served_as, {}).get("state") == SERVING:
                self._revived(wanted.mount)
        known = {wanted.served_as for wanted in desired}
        for wanted in desired:
            if wanted.volume != NO_VOLUME and self._is_of_before(listed.get(wanted.served_as, {})):
                self._keep(replace(wanted, volume=NO_VOLUME))
        for mount, row in listed.items():
            directory = str(row["dir"])
            serves = row.get("state") in (SERVING, "starting", "waiting") and not _was_unmounted(directory)
            if mount not in known and serves and not self._is_taken(directory):
                self._adopt(mount, row)
        dead = []
        missing = [wanted for wanted in desired if wanted.served_as not in listed or wanted.connection]
        for wanted in missing:
            if self._is_busy(wanted):
                continue
            entry = mount_syscalls.topmost(wanted.directory)
            if entry is None and wanted.mount in self._reviving:
                dead.append(wanted)
            elif entry is None or entry.fstype != mount_syscalls.FSTYPE:
                bound(logger, mount=wanted.mount).info("unmounted by others", extra={"dir": wanted.directory})
                self._drop(wanted.mount)
            elif wanted.volume != NO_VOLUME and wanted.served_as not in listed and is_dead(wanted.directory):
                dead.append(wanted)
        return dead

    def revive(self, wanted: DesiredMount) -> None:
        """Mounts a dead mount again under a new id.

        Raises no Error: a failure is kept for `status`, and `reconcile` returns the mount again.
        """
        try:
            with self._exclusive(f"volume {wanted.volume_name}", f"directory {wanted.directory}"):
                if wanted.mount not in self._desired:  # it was unmounted meanwhile
                    return
                self._end_session(wanted.served_as)  # ENOTCONN: every descriptor is closed, so no process of this mount is left
                again = replace(wanted, mount=_new_id(), connection=0)
                options = mount_options.parse(list(wanted.options), self._readahead_kib, os.geteuid() == 0)
                try:
                    self._attach_or_start(again, options, instead_of=wanted.mount)
                except Error as err:
                    self._errors[again.mount] = reason_in(str(err))
                    raise
                self._revived(again.mount)
            bound(logger, mount=again.mount).warning("mounted again: keeper and worker had died", extra={"dir": wanted.directory})
        except Error as err:
            logger.warning("mount cannot be brought back yet", extra={"dir": wanted.directory, "reason": str(err)})

    def _adopt(self, mount: int, row: dict[str, Any]) -> None:
        source = str(row["source"])
        volume = NO_VOLUME if self._is_of_before(row) else self._find_volume(source.partition("@")[0]).volume
        _, snapshot, uuid = _served(row)
        asked = asked_options(row.get("config"))
        options = row.get("options", ()) if asked is None else asked  # an older build kept only the kernel's options
        self._keep(DesiredMount(mount, volume, source, str(row["dir"]), tuple(map(str, options)), 0, snapshot, uuid))
        bound(logger, mount=mount).warning("mount taken up from the keeper", extra={"dir": row["dir"]})

    # --- details ------------------------------------------------------------------------------------------------------------

    def _start(self, wanted: DesiredMount, options: MountOptions) -> int:
        """Asks the keeper to mount; returns the pid of the worker."""
        argv, env = self._worker_program()
        reply = self._keeper.mount(
            f"{wanted.mount:x}",
            wanted.directory,
            wanted.volume_name,
            options=options.flags,
            fuse_options=options.fuse_options,
            readahead_kib=options.readahead_kib,
            memfds=worker_memfds(),
            config=self._worker_config(wanted, options).to_wire(),
            argv=argv,
            env=env,
        )
        self._errors.pop(wanted.mount, None)
        return int(reply.get("pid") or 0)

    def _attach_or_start(self, wanted: DesiredMount, options: MountOptions, instead_of: int = 0) -> int:
        """Remembers a new mount (in the place of a dead one) and asks the keeper for it; returns the pid of the worker."""
        deadline = time.monotonic() + UMOUNT_FLUSH_MS_MAX / 1_000
        while (row := self._connection(wanted)) is not None:
            _check_agrees(wanted, options, row)
            attached = replace(wanted, connection=_id_of(row))
            self._keep(attached, instead_of, reviving=instead_of > 0)
            try:
                reply = self._keeper.attach(f"{attached.connection:x}", wanted.directory, options=options.flags)
                return int(reply.get("pid") or 0)
            except FsError as err:
                if err.errno not in (errno.ENOTCONN, errno.ENOENT) or time.monotonic() > deadline:
                    raise
            time.sleep(UNMOUNTED_LOOK_S)  # nobody has it mounted any more: its worker flushes, and ends
        self._keep(wanted, instead_of, reviving=instead_of > 0)
        return self._start(wanted, options)

    def _connection(self, wanted: DesiredMount) -> dict[str, Any] | None:
        """The keeper's row of what serves a volume, or a snapshot of it, here.  Raises Unavailable."""
        same = wanted.volume, wanted.snapshot, wanted.snapshot_uuid
        return next((row for row in self._keeper.list() if _served(row) == same and not self._is_of_before(row)), None)

    def _is_of_before(self, row: Mapping[str, Any]) -> bool:
        """Returns True for the keeper's row of a mount that was made when this machine was another node."""
        config = row.get("config")
        return isinstance(config, dict) and config.get("node", self._node) != self._node

    def _await_unmounted(self, new: DesiredMount) -> None:
        """Waits for the worker of a mount that umount(2) alone has ended, which still flushes, instead of refusing.

        umount(8) does not call our helper where it finds the type by statfs(2), so this node does not hear of it.
        """
        with self._lock:
            same = new.volume, new.snapshot
            left = [one for one in self._desired.values() if one.directory == new.directory or (one.volume, one.snapshot) == same]
        for wanted in left:
            deadline = time.monotonic() + UMOUNT_FLUSH_MS_MAX / 1_000
            while _was_unmounted(wanted.directory) and time.monotonic() < deadline:
                row = next((row for row in self._keeper.list() if _id_of(row) == wanted.served_as), None)
                if row is None:
                    self._drop(wanted.mount)
                    break
                if mount_syscalls.superblock_lives(str(row.get("device", ""))):
                    self._drop(wanted.mount)  # a bind mount, another directory or another namespace has it
                    break
                time.sleep(UNMOUNTED_LOOK_S)

    def _refuse_second(self, directory: str) -> None:
        with self._lock:
            desired = list(self._desired.values())
        for wanted in desired:
            if wanted.directory == directory:
                raise AlreadyExists(
                    f"{directory} has volume {wanted.volume_name} mounted already; unmount it first, or choose another directory"
                )

    def _keep(self, wanted: DesiredMount, instead_of: int = 0, *, reviving: bool = False) -> None:
        with self._lock:
            self._desired.pop(instead_of, None)
            self._reviving.discard(instead_of)
            self._desired[wanted.mount] = wanted
            if reviving:
                self._reviving.add(wanted.mount)
            self._save()

    def _revived(self, mount: int) -> None:
        with self._lock:
            self._reviving.discard(mount)
            self._save()

    def _drop(self, mount: int) -> None:
        with self._lock:
            self._desired.pop(mount, None)
            self._errors.pop(mount, None)
            self._reviving.discard(mount)
            self._save()

    def _save(self) -> None:
        rows = {
            f"{one.mount:x}": {
                "volume": one.volume, "name": one.volume_name, "directory": one.directory, "options": list(one.options),
                "connection": f"{one.connection:x}",
                **({"snapshot": one.snapshot, "snapshot_uuid": one.snapshot_uuid} if one.snapshot else {}),
            }
            for one in self._desired.values()
        }  # fmt: skip
        reviving = sorted(f"{mount:x}" for mount in self._reviving)
        durable.write_json(self._path, {"version": MOUNTS_VERSION, "boot_id": self._boot_id, "mounts": rows, "reviving": reviving})

    @contextmanager
    def _exclusive(self, *names: str) -> Iterator[None]:
        with self._freed:
            if not self._freed.wait_for(lambda: not self._busy.intersection(names), BUSY_S_MAX):
                taken = self._busy.intersection(names)
                raise Refused(f"{taken.pop()} is being mounted or unmounted now; try again when that has ended")
            self._busy.update(names)
        try:
            yield
        finally:
            with self._freed:
                self._busy.difference_update(names)
                self._freed.notify_all()

    def _is_taken(self, directory: str) -> bool:
        with self._lock:
            return f"directory {directory}" in self._busy

    def _is_busy(self, wanted: DesiredMount) -> bool:
        with self._lock:
            return f"volume {wanted.volume_name}" in self._busy or f"directory {wanted.directory}" in self._busy


def _new_id() -> int:
    return secrets.randbelow((1 << 63) - 1) + 1


def _load(path: Path, boot_id: str) -> list[DesiredMount]:
    value = durable.read_json(path, {})
    if value.get("boot_id") != boot_id:
        return []
    if (version := value.get("version", MOUNTS_VERSION)) != MOUNTS_VERSION:
        raise FormatTooNew(f"{path} has version {version}, this build knows {MOUNTS_VERSION}; upgrade awsomefsd on this node")
    try:
        return [
            DesiredMount(
                int(mount, 16),
                int(row["volume"]),
                str(row["name"]),
                str(row["directory"]),
                tuple(map(str, row["options"])),
                int(row.get("connection", "0"), 16),
                int(row.get("snapshot", 0)),
                str(row.get("snapshot_uuid", "")),
            )
            for mount, row in value["mounts"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise Corrupt(f"{path} is damaged ({type(err).__name__}: {err}); remove it; the keeper still has the running mounts") from err


def _was_unmounted(directory: str) -> bool:
    entry = mount_syscalls.topmost(directory)
    return entry is None or entry.fstype != mount_syscalls.FSTYPE


def _load_reviving(path: Path) -> list[int]:
    try:
        return [int(mount, 16) for mount in durable.read_json(path, {}).get("reviving", ())]
    except (TypeError, ValueError) as err:
        raise Corrupt(f"{path} is damaged ({type(err).__name__}: {err}); remove it; the keeper still has the running mounts") from err


def _id_of(row: dict[str, Any]) -> int:
    mount = row.get("mount", 0)
    return int(mount, 16) if isinstance(mount, str) else int(mount)


def _real_path(directory: str) -> str:
    """The real path of a directory.  A mount of ours that lies on it is not asked: it may be dead."""
    if not directory.startswith("/"):
        raise Refused(f"{directory!r} is not an absolute path; give one")
    parent, name = os.path.split(os.path.normpath(directory))
    path = os.path.join(os.path.realpath(parent), name)
    return os.path.realpath(path) if _was_unmounted(path) else path


def _check_mount_point(path: str) -> None:
    """Checks that something can be mounted there.  A dead mount of ours may lie on it: the keeper clears that away."""
    if path == "/":
        raise Refused("/ is the root directory: what is mounted on it is reached by nobody; mount on a directory below it")
    entry = mount_syscalls.topmost(path)
    if entry is not None and entry.fstype == mount_syscalls.FSTYPE:
        if is_dead(path):
            return
        raise AlreadyExists(f"{path} has {entry.source} mounted already; unmount it first")
    if not os.path.exists(path):
        raise NotFound(f"{path} does not exist; make it with `mkdir -p {quote(path)}`")
    if not os.path.isdir(path):
        raise FsError(errno.ENOTDIR, f"{path} is not a directory; mount on a directory")


def _served(row: dict[str, Any]) -> tuple[int, int, str]:
    """Returns volume, snapshot and its uuid; 0 and "" if it is the volume itself."""
    config = row["config"] if isinstance(row.get("config"), dict) else {}
    return int(config.get("volume", 0)), int(config.get("snapshot", 0)), str(config.get("snapshot_uuid", ""))


def _check_agrees(wanted: DesiredMount, options: MountOptions, row: dict[str, Any]) -> None:
    """Checks that a further mount has the options of the connection, but for the flags that each mount has for itself.  Raises Refused."""
    name, asked = wanted.volume_name, asked_options(row.get("config"))
    if asked is None:
        raise Refused(f"volume {name} is mounted at {row['dir']} by an older build; unmount it there first")
    served = mount_options.parse(list(asked), options.readahead_kib, os.geteuid() == 0)
    differing = mount_options.differing(served, options)
    if differing:
        held = ", ".join(mount_syscalls.holders_of(str(row.get("device", "")))) or "nobody that this node sees"
        raise Refused(
            f"volume {name} is served on this node with options {' '.join(asked) or 'none'}, and {', '.join(differing)} would differ; "
            f"give the same, or unmount it everywhere first and end what still uses an old mount of it (held by {held})"
        )


def is_dead(directory: str) -> bool:
    """Returns True if no process serves the mount at `directory`, nor can: its last /dev/fuse descriptor is closed.

    Blocks for PROBE_S at most.  Another process asks for the figures of the filesystem: a mount whose server hangs would never let this one
    go.
    """
    argv = program.command("probe", directory)
    try:
        done = subprocess.run(argv, timeout=PROBE_S, check=False, capture_output=True, env=program.environment())
    except subprocess.TimeoutExpired:
        return False  # a process holds the descriptor, answered or not
    return done.returncode in (errno.ENOTCONN, errno.ECONNABORTED)


def _detach(directory: str) -> None:
    try:
        mount_syscalls.umount(directory, mount_syscalls.MNT_DETACH | mount_syscalls.UMOUNT_NOFOLLOW)
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.EINVAL):  # not mounted any more, as it should be
            raise FsError(err.errno or errno.EIO, f"umount {directory}: {err.strerror}") from err
