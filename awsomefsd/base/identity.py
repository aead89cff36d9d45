"""The identity of this node is state_dir/node.json, written once and never changed after; here is also the lock on the state directory.

The lock is an flock on state_dir/lock, held by the daemon for its life and by `fsck` for its run, so that two processes never write one
journal.  The kernel drops it with the process, however it ends; a pid file was rejected because it outlives a SIGKILL.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from awsomefsd.base import durable
from awsomefsd.base.errors import AlreadyExists, Corrupt, FormatTooNew, NotFound, Refused

FORMAT_VERSION = 1
LOOK_AGAIN_S = 0.01
OTHERS_END_S = 10.0  # a process that made this machine a node, or took it out, holds the state directory a moment longer
SUPERVISOR_LOCK = "supervisor.lock"  # in the run directory and the state directory, held by `awsomefsd supervise`
POOL_DEVICES = "pool-devices"  # in the state directory, while devices of pools are this node's: its segment server is to run
CONFLICTS = "conflicts"  # in the state directory: data that could not be committed (vfs/session/conflicts.py)
OWN_NAMES = (
    "backup", "bin", "damage", "devices.json", "endpoints.json", "founding", "meta", "meta.recovering", "meta.restoring", "mounts.json",
    "pki", POOL_DEVICES, "readers", "recovering", "scrub", "scrub.json", "workers",
)  # fmt: skip
"""What this program makes in the state directory, beside node.json, `lock` and `log`, and goes with the node."""


@dataclass(frozen=True, slots=True)
class Node:
    """The identity of this node.  `format` is the version of the whole state directory.

    `role`: "node", or "client", which carries no metadata.  `founder`: it made the cluster; another one joined it, and begins no log.
    """

    cluster: str
    node: str
    site: int
    format: int = FORMAT_VERSION
    role: str = "node"
    founder: bool = True


def identity_path(state_dir: Path) -> Path:
    return state_dir / "node.json"


def init(state_dir: Path, site: int = 0, cluster: str = "", node: str = "", prepare: Callable[[Node], object] | None = None) -> Node:
    """Writes this node's identity, by default that of a new cluster of one node, and returns it.

    `prepare` makes what has to be there first (the certificate): node.json comes last, because a daemon starts when it sees the file.
    Raises AlreadyExists if there is an identity (it is never replaced), Refused if the directory cannot be made or is in use.
    """
    path = identity_path(state_dir)
    make_directory(state_dir, 0o700)
    with lock_to_enter(state_dir, "this command"):
        if path.exists():
            existing = load(state_dir)
            raise AlreadyExists(
                f"{state_dir} already belongs to node {existing.node} of cluster {existing.cluster}; "
                "start it with `awsomefsd run`, or choose another --state-dir"
            )
        made = Node(cluster=cluster or str(uuid.uuid4()), node=node or str(uuid.uuid4()), site=site)
        if prepare is not None:
            prepare(made)
        write(state_dir, made)
    return made


def write(state_dir: Path, node: Node) -> None:
    """Writes node.json, the commit point of a join: a daemon starts when it sees the file.  Durable on return; raises OSError."""
    durable.write_json(identity_path(state_dir), asdict(node))


def purge(state_dir: Path, *, conflicts: bool = False) -> list[str]:
    """Deletes the state of a node that has left; node.json first, so that the rest is never taken for a node.

    Only what this program makes goes; with `conflicts` also the data that could not be committed.  Returns the names that stay.  Raises
    Refused while another process holds the state directory, and OSError.
    """
    with StateLock(state_dir):
        identity_path(state_dir).unlink(missing_ok=True)
        durable.sync_directory(state_dir)
        for name in (*OWN_NAMES, *(f"{name}.new" for name in (*OWN_NAMES, "node.json")), *([CONFLICTS] if conflicts else [])):
            entry = state_dir / name
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink(missing_ok=True)
        durable.sync_directory(state_dir)
    return kept_by_purge(state_dir, conflicts=conflicts)


def kept_by_purge(state_dir: Path, *, conflicts: bool = False) -> list[str]:
    """Returns the names in the state directory that `purge` does not delete, sorted.  Raises OSError."""
    locks = {StateLock.name, WaitingLock.name, SUPERVISOR_LOCK}
    own = {*OWN_NAMES, *(f"{name}.new" for name in (*OWN_NAMES, "node.json")), "node.json", *locks}
    return sorted(entry.name for entry in state_dir.iterdir() if entry.name not in own and not (conflicts and entry.name == CONFLICTS))


def has_conflicts(state_dir: Path) -> bool:
    """Returns True if there is data of this node that could not be committed, and lies nowhere else."""
    return any(files for _, _, files in os.walk(state_dir / CONFLICTS))


def load(state_dir: Path) -> Node:
    """Returns this node's identity.  Raises NotFound before `init`, Corrupt or FormatTooNew for a file that this build cannot read."""
    path = identity_path(state_dir)
    value = durable.read_json(path)
    if value is None:
        raise NotFound(f"{state_dir} has no node identity; make one with `awsomefsd init` (or check --state-dir)")
    if isinstance(value.get("format"), int) and value["format"] > FORMAT_VERSION:
        raise FormatTooNew(f"{path} has format {value['format']}, this build knows {FORMAT_VERSION}; upgrade awsomefsd on this node")
    try:
        known = str(uuid.UUID(value["cluster"])), str(uuid.UUID(value["node"]))
        node = Node(*known, value["site"], value["format"], value.get("role", "node"), value.get("founder", True))
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        raise Corrupt(f"{path} is damaged ({type(err).__name__}: {err}); restore it from a backup") from err
    if node.role not in ("node", "client"):
        raise Corrupt(f"{path} is damaged (role {node.role!r}); restore it from a backup")
    if not (isinstance(node.site, int) and isinstance(node.format, int)):
        raise Corrupt(f"{path} is damaged (site and format are numbers); restore it from a backup")
    return node


def boot_id() -> str:
    """Returns the id of this boot of the machine: every process of another boot id has ended for certain."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def make_directory(directory: Path, mode: int) -> None:
    """Makes a directory and its parents; one that exists keeps its mode.  Raises Refused, which says what to do."""
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    except OSError as err:
        raise Refused(
            f"cannot make {directory}: {err.strerror}; run as root, or choose other directories with --state-dir and --run-dir"
        ) from err


def lock_or_holder(path: Path) -> int | str:
    """Returns the descriptor of a file that this process has locked now, or the id of the process that has it.  Never waits.

    The lock goes with the process, however it ends.  Raises OSError if the file cannot be opened.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        return holder
    os.ftruncate(lock, 0)
    os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
    return lock


class StateLock:
    """The exclusive lock on a state directory; a context manager.

    The constructor takes the lock.  It waits for `patience_s` at most, by default not at all: it raises Refused if another process still
    holds the lock, or if the file cannot be opened.
    """

    name = "lock"

    def __init__(self, state_dir: Path, what: str = "this command", patience_s: float = 0.0) -> None:
        path = state_dir / self.name
        end = time.monotonic() + patience_s
        try:
            while isinstance(lock := lock_or_holder(path), str) and time.monotonic() < end:
                time.sleep(LOOK_AGAIN_S)  # flock(2) waits without a limit
        except OSError as err:
            raise Refused(f"cannot open {path}: {err.strerror}; run as root, or check --state-dir") from err
        if isinstance(lock, str):
            raise Refused(f"{state_dir} is in use by process {lock}; {what} needs it exclusively; stop the daemon first")
        self._fd = lock

    def release(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> StateLock:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.release()


def lock_to_enter(state_dir: Path, what: str) -> StateLock:
    """Takes the lock for making this machine a node.  Raises Refused.

    Where it is none, whoever has the lock is about to end: a node that leaves deletes node.json first and the rest after it (`purge`).
    """
    return StateLock(state_dir, what, 0.0 if identity_path(state_dir).exists() else OTHERS_END_S)


class WaitingLock(StateLock):
    """The lock of a daemon that waits until this machine is a node.

    It is another one than StateLock, because `init` and `join` make the machine a node meanwhile.
    """

    name = "waiting.lock"
