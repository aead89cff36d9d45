"""The mounts this node is meant to have (state_dir/mounts.json), and bringing what the keeper has into line with them.

A mount is written to mounts.json before the keeper is asked, and taken out after the keeper has unmounted it.  So a daemon that is
killed in between finds either a wish that the keeper does not know (nothing is mounted there: the wish is dropped, its caller never got
an answer) or a mount that is already in both.  What the keeper has and the file has not (a lost file) is taken up again.

A wish whose processes all died (keeper and worker at once) leaves a dead mount in the kernel: every call on it fails with ENOTCONN.  Then,
and only then, it is mounted again, under a new mount id: request ids are (mount id, unique), and a new connection counts unique from the
start.  A keeper that has just been restarted and does not know its mounts yet is no proof of that, and the probe tells the two apart.
Wishes of an earlier boot are dropped: mounts that shall survive a reboot are in fstab.
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
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from awsomefsd import durable, mount_options, program
from awsomefsd.errors import AlreadyExists, Corrupt, Error, FsError, NotFound, Refused, Unavailable
from awsomefsd.fuse import mount_syscall
from awsomefsd.fuse.layout import worker_memfds
from awsomefsd.limits import UMOUNT_FLUSH_MS_MAX
from awsomefsd.log import bound
from awsomefsd.mount_options import MountOptions
from awsomefsd.types import VolumeInfo

logger = logging.getLogger(__name__)
PROBE_S = 2.0
UNMOUNTED_LOOK_S = 0.05
# States beside the keeper's own ("serving", "starting", "waiting" for a worker, "unmounting", "detached").
SERVING, DEAD, MOUNTING, UNWATCHED = "serving", "dead", "mounting", "unwatched"
REFUSED = "refused"  # it answers EIO, because its node was removed from the cluster


class Keeper(Protocol):
    """The keeper as it is asked here (fuse/keeper_client.py); raises Unavailable if nobody answers, FsError if it refuses."""

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
    def umount(self, target: str, *, force: bool) -> dict[str, Any]: ...
    def flush(self, target: str) -> dict[str, Any]: ...
    def list(self) -> list[dict[str, Any]]: ...
    def warm(self, argv: Sequence[str], env: Mapping[str, str]) -> bool: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """A mount this node is meant to have."""

    mount: int
    volume: int
    volume_name: str
    directory: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MountView:
    """A mount as it is now, for people."""

    mount: int
    volume_name: str
    directory: str
    options: tuple[str, ...]
    state: str
    worker_pid: int = 0
    workers: int = 0
    last_error: str = ""
    version: str = ""  # of the worker's program


@dataclass(frozen=True, slots=True)
class Unmounted:
    """`flushed` is false where acknowledged writes may be lost; `detached`: bind mounts or other namespaces still have it."""

    directory: str
    flushed: bool
    detached: bool


WorkerConfig = Callable[[Wish, MountOptions], dict[str, Any]]
FindVolume = Callable[[str], VolumeInfo]
WorkerProgram = Callable[[], tuple[list[str], dict[str, str]]]


def own_worker() -> tuple[list[str], dict[str, str]]:
    """Workers of this very program: argv, and nothing for the environment."""
    return program.command("worker"), {}


class Mounts:
    """Thread-safe.  Operations on one volume or directory exclude each other; those on different ones go on side by side."""

    def __init__(
        self,
        state_dir: Path,
        boot_id: str,
        keeper: Keeper,
        find_volume: FindVolume,
        worker_config: WorkerConfig,
        readahead_kib: int,
        end_session: Callable[[int], None] = lambda mount: None,
        worker_program: WorkerProgram = own_worker,
    ) -> None:
        self._path = state_dir / "mounts.json"
        self._boot_id = boot_id
        self._keeper = keeper
        self._find_volume = find_volume
        self._worker_config = worker_config
        self._readahead_kib = readahead_kib
        self._end_session = end_session
        self._worker_program = worker_program
        self.removed: Callable[[], str] = str  # why this node is in its cluster no longer
        self._lock = threading.Lock()
        self._busy: set[str] = set()
        self._errors: dict[int, str] = {}
        self._wishes = {wish.mount: wish for wish in _load(self._path, boot_id)}
        self._reviving = set(_load_reviving(self._path)) & set(self._wishes)  # whose dead mount may be gone already

    # --- what people ask --------------------------------------------------------------------------------------------------

    def mount(self, volume_name: str, directory: str, options: list[str]) -> MountView:
        """Mount a volume; returns when it serves.  Raises a domain error that says what is in the way."""
        parsed = mount_options.parse(options, self._readahead_kib, os.geteuid() == 0)
        directory = _mount_point(directory)
        with self._exclusive(f"volume {volume_name}", f"directory {directory}"):
            volume = self._find_volume(volume_name)
            self._await_unmounted(volume, directory)
            self._refuse_second(volume, directory)
            wish = Wish(secrets.randbelow((1 << 63) - 1) + 1, volume.volume, volume.name, directory, tuple(options))
            self._keep(wish)
            try:
                pid = self._start(wish, parsed)
            except Unavailable:
                raise  # it may be mounted all the same; reconcile finds out
            except FsError as err:
                self._drop(wish.mount)
                raise FsError(err.errno, without_traceback(str(err))) from err
            except Error:
                self._drop(wish.mount)
                raise
        bound(logger, mount=wish.mount).info("mounted", extra={"volume": volume_name, "dir": directory})
        return MountView(wish.mount, wish.volume_name, directory, wish.options, SERVING, pid, 1)

    def umount(self, target: str, *, force: bool) -> Unmounted:
        """Flush and unmount.  With `force` the connection is aborted after a short flush."""
        view = self.find(target)
        with self._exclusive(f"volume {view.volume_name}", f"directory {view.directory}"):
            if view.state == DEAD:
                _detach(view.directory)
                done = Unmounted(view.directory, flushed=False, detached=False)
            else:
                answer = self._keeper.umount(f"{view.mount:x}", force=force)
                done = Unmounted(view.directory, bool(answer.get("flushed")), bool(answer.get("detached")))
            self._drop(view.mount)
        fields = {"dir": view.directory, "force": force, "flushed": done.flushed, "detached": done.detached}
        bound(logger, mount=view.mount).info("unmounted", extra=fields)
        return done

    def warm(self) -> bool:
        """Have the keeper load the workers' program before one is needed; whether it has.  Raises what the keeper raises."""
        return self._keeper.warm(*self._worker_program())

    def flush(self, target: str) -> str:
        """Everything written to the mount until now is durable when this returns."""
        view = self.find(target)
        self._keeper.flush(f"{view.mount:x}")
        return view.directory

    def find(self, target: str) -> MountView:
        """The mount at a directory, of a volume, or with an id in hexadecimal."""
        path = os.path.normpath(target) if target.startswith("/") else ""
        views = self.views()
        for view in views:
            if target in (view.directory, view.volume_name, f"{view.mount:x}") or (path and path == view.directory):
                return view
        known = ", ".join(view.directory for view in views) or "none"
        raise NotFound(f"{target} is no mount of this node (mounts: {known}); give a directory, a volume or a mount id")

    def of_volume(self, volume: int) -> MountView | None:
        """The mount of a volume on this node, if there is one."""
        with self._lock:
            wish = next((wish for wish in self._wishes.values() if wish.volume == volume), None)
        return None if wish is None else next((view for view in self.views() if view.mount == wish.mount), None)

    def views(self) -> list[MountView]:
        """All mounts, also when the keeper is away (their state is then "unwatched")."""
        try:
            listed = {_id_of(row): row for row in self._keeper.list()}
        except Unavailable:
            listed = None
        with self._lock:
            wishes = dict(self._wishes)
        return [self._view(wish, listed) for wish in wishes.values()]

    def _view(self, wish: Wish, listed: dict[int, dict[str, Any]] | None) -> MountView:
        row = (listed or {}).get(wish.mount)
        if row is not None:
            state = str(row["state"])
        elif self._is_busy(wish):
            state = MOUNTING
        else:
            state = UNWATCHED if listed is None else DEAD
        row = row or {}
        why = self.removed() if state == SERVING else ""
        if why:
            state = REFUSED
        return MountView(
            wish.mount,
            wish.volume_name,
            wish.directory,
            wish.options,
            state,
            worker_pid=int(row.get("pid") or 0),
            workers=int(row.get("workers") or 0),
            last_error=why or str(row.get("last_error") or self._errors.get(wish.mount, "")),
            version=str(row.get("version") or ""),
        )

    # --- bringing the node into line ----------------------------------------------------------------------------------------

    def reconcile(self) -> list[Wish]:
        """Compare wishes, keeper and kernel.  Takes up what only the keeper knows, drops what was unmounted behind our back, and returns
        the wishes whose processes died: each is for `revive`, which may take as long as the old session lives."""
        listed = {_id_of(row): row for row in self._keeper.list()}
        for mount in [mount for mount in self._reviving if listed.get(mount, {}).get("state") == SERVING]:
            self._revived(mount)
        for mount, row in listed.items():
            if mount not in self._wishes and row.get("state") in (SERVING, "starting", "waiting") and not self._is_taken(str(row["dir"])):
                self._adopt(mount, row)
        dead = []
        with self._lock:
            missing = [wish for wish in self._wishes.values() if wish.mount not in listed]
        for wish in missing:
            if self._is_busy(wish):
                continue
            entry = mount_syscall.topmost(wish.directory)
            if entry is None and wish.mount in self._reviving:
                dead.append(wish)
            elif entry is None or entry.fstype != mount_syscall.FSTYPE:
                bound(logger, mount=wish.mount).info("unmounted by others", extra={"dir": wish.directory})
                self._drop(wish.mount)
            elif is_dead(wish.directory):
                dead.append(wish)
        return dead

    def revive(self, wish: Wish) -> None:
        """Mount again what died.  A failure is kept for `status`, and reconcile comes back to it."""
        try:
            with self._exclusive(f"volume {wish.volume_name}", f"directory {wish.directory}"):
                self._end_session(wish.mount)  # ENOTCONN: every descriptor is closed, so no process of this mount is left
                again = Wish(secrets.randbelow((1 << 63) - 1) + 1, wish.volume, wish.volume_name, wish.directory, wish.options)
                self._keep(again, instead_of=wish.mount, reviving=True)
                try:
                    self._start(again, mount_options.parse(list(wish.options), self._readahead_kib, os.geteuid() == 0))
                except Error as err:
                    self._errors[again.mount] = without_traceback(str(err))
                    raise
                self._revived(again.mount)
            bound(logger, mount=again.mount).warning("mounted again: keeper and worker had died", extra={"dir": wish.directory})
        except Error as err:
            logger.warning("mount cannot be brought back yet", extra={"dir": wish.directory, "reason": str(err)})

    def _adopt(self, mount: int, row: dict[str, Any]) -> None:
        volume = self._find_volume(str(row["source"]))
        config = row.get("config")
        asked = config.get("options") if isinstance(config, dict) else None
        options = row.get("options", ()) if asked is None else asked  # a mount of an older build: what the kernel was told is all there is
        self._keep(Wish(mount, volume.volume, volume.name, str(row["dir"]), tuple(map(str, options))))
        bound(logger, mount=mount).warning("mount taken up from the keeper", extra={"dir": row["dir"]})

    # --- details ------------------------------------------------------------------------------------------------------------

    def _start(self, wish: Wish, options: MountOptions) -> int:
        """Ask the keeper; returns the pid of the worker."""
        argv, env = self._worker_program()
        reply = self._keeper.mount(
            f"{wish.mount:x}",
            wish.directory,
            wish.volume_name,
            options=options.flags,
            fuse_options=options.fuse_options,
            readahead_kib=options.readahead_kib,
            memfds=worker_memfds(),
            config=self._worker_config(wish, options),
            argv=argv,
            env=env,
        )
        self._errors.pop(wish.mount, None)
        return int(reply.get("pid") or 0)

    def _await_unmounted(self, volume: VolumeInfo, directory: str) -> None:
        """A mount that umount(2) alone has ended is still being flushed by its worker: wait for that instead of refusing.

        umount(8) comes past our helper where it finds the type by statfs(2), and tells nobody.
        """
        with self._lock:
            left = [wish for wish in self._wishes.values() if wish.directory == directory or wish.volume == volume.volume]
        for wish in left:
            deadline = time.monotonic() + UMOUNT_FLUSH_MS_MAX / 1_000
            while _was_unmounted(wish.directory) and time.monotonic() < deadline:
                row = next((row for row in self._keeper.list() if _id_of(row) == wish.mount), None)
                if row is None:
                    self._drop(wish.mount)
                    break
                if mount_syscall.superblock_lives(str(row.get("device", ""))):
                    break  # a bind mount or another namespace has it
                time.sleep(UNMOUNTED_LOOK_S)

    def _refuse_second(self, volume: VolumeInfo, directory: str) -> None:
        with self._lock:
            wishes = list(self._wishes.values())
        for wish in wishes:
            if wish.directory == directory:
                raise AlreadyExists(
                    f"{directory} has volume {wish.volume_name} mounted already; umount it first or choose another directory"
                )
            if wish.volume == volume.volume:
                raise AlreadyExists(
                    f"volume {volume.name} is mounted at {wish.directory} already, and a volume is mounted once on a node; "
                    f"to see it elsewhere: mount --bind {wish.directory} {directory}"
                )

    def _keep(self, wish: Wish, instead_of: int = 0, *, reviving: bool = False) -> None:
        with self._lock:
            self._wishes.pop(instead_of, None)
            self._reviving.discard(instead_of)
            self._wishes[wish.mount] = wish
            if reviving:
                self._reviving.add(wish.mount)
            self._save()

    def _revived(self, mount: int) -> None:
        with self._lock:
            self._reviving.discard(mount)
            self._save()

    def _drop(self, mount: int) -> None:
        with self._lock:
            self._wishes.pop(mount, None)
            self._errors.pop(mount, None)
            self._reviving.discard(mount)
            self._save()

    def _save(self) -> None:
        rows = {
            f"{wish.mount:x}": {"volume": wish.volume, "name": wish.volume_name, "directory": wish.directory, "options": list(wish.options)}
            for wish in self._wishes.values()
        }
        reviving = sorted(f"{mount:x}" for mount in self._reviving)
        durable.write_json(self._path, {"version": 1, "boot_id": self._boot_id, "mounts": rows, "reviving": reviving})

    @contextmanager
    def _exclusive(self, *names: str) -> Iterator[None]:
        with self._lock:
            taken = self._busy.intersection(names)
            if taken:
                raise Refused(f"{taken.pop()} is being mounted or unmounted right now; try again when that has ended")
            self._busy.update(names)
        try:
            yield
        finally:
            with self._lock:
                self._busy.difference_update(names)

    def _is_taken(self, directory: str) -> bool:
        with self._lock:
            return f"directory {directory}" in self._busy

    def _is_busy(self, wish: Wish) -> bool:
        with self._lock:
            return f"volume {wish.volume_name}" in self._busy or f"directory {wish.directory}" in self._busy


def _load(path: Path, boot_id: str) -> list[Wish]:
    value = durable.read_json(path, {})
    if value.get("boot_id") != boot_id:
        return []
    try:
        return [
            Wish(int(mount, 16), int(row["volume"]), str(row["name"]), str(row["directory"]), tuple(map(str, row["options"])))
            for mount, row in value["mounts"].items()
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise Corrupt(f"{path} is damaged ({type(err).__name__}: {err}); remove it, running mounts are found again by the keeper") from err


def _was_unmounted(directory: str) -> bool:
    entry = mount_syscall.topmost(directory)
    return entry is None or entry.fstype != mount_syscall.FSTYPE


def _load_reviving(path: Path) -> list[int]:
    try:
        return [int(mount, 16) for mount in durable.read_json(path, {}).get("reviving", ())]
    except (TypeError, ValueError) as err:
        raise Corrupt(f"{path} is damaged ({type(err).__name__}: {err}); remove it, running mounts are found again by the keeper") from err


def _id_of(row: dict[str, Any]) -> int:
    mount = row.get("mount", 0)
    return int(mount, 16) if isinstance(mount, str) else int(mount)


def _mount_point(directory: str) -> str:
    """The real path of a directory that can be mounted on.  A dead mount of ours may lie on it: the keeper clears that away."""
    if not directory.startswith("/"):
        raise Refused(f"{directory!r} is no absolute path; give the directory from the root on")
    parent, name = os.path.split(os.path.normpath(directory))
    path = os.path.join(os.path.realpath(parent), name)
    entry = mount_syscall.topmost(path)
    if entry is not None and entry.fstype == mount_syscall.FSTYPE:
        if is_dead(path):
            return path
        raise AlreadyExists(f"{path} is a mount of {entry.source} already; umount it first")
    path = os.path.realpath(path)
    if not os.path.exists(path):
        raise NotFound(f"{path} does not exist; make it with `mkdir -p {path}`")
    if not os.path.isdir(path):
        raise FsError(errno.ENOTDIR, f"{path} is not a directory; mount on a directory")
    return path


def without_traceback(words: str) -> str:
    """What a worker wrote last, as one line for people: the exception without the way to it, which is in the worker's log."""
    before, trace, after = words.partition("Traceback (most recent call last):")
    if not trace:
        return words
    last = after.replace("\\n", "\n").strip().splitlines()[-1].strip().strip('"')
    start, _, _ = before.partition("ts=")
    return f"{start.strip().rstrip(':')}: {last} (the whole story is in the log of the worker)"


def is_dead(directory: str) -> bool:
    """Whether nobody serves the mount at `directory` any more, nor can: its last /dev/fuse descriptor is closed.

    A process of its own asks for the figures of the filesystem: a mount whose server hangs never gives back who asked.
    """
    argv = program.command("probe", directory)
    try:
        done = subprocess.run(argv, timeout=PROBE_S, check=False, capture_output=True, env=program.environment())
    except subprocess.TimeoutExpired:
        return False  # somebody holds the descriptor, answered or not
    return done.returncode in (errno.ENOTCONN, errno.ECONNABORTED)


def _detach(directory: str) -> None:
    try:
        mount_syscall.umount(directory, mount_syscall.MNT_DETACH | mount_syscall.UMOUNT_NOFOLLOW)
    except OSError as err:
        if err.errno not in (errno.ENOENT, errno.EINVAL):  # not mounted any more, as wished
            raise FsError(err.errno or errno.EIO, f"umount {directory}: {err.strerror}") from err
