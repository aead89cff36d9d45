"""Checks of the host: kernel, FUSE, limits, memory, clock, and the directories and files of this node.

Each is a generator of findings, and raises nothing for what it finds.  `proc` and `groups` are where the kernel's files are: tests have
their own.
"""

from __future__ import annotations

import os
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from shlex import quote

from awsomefsd.base.limits import MIB, WORKER_MEMORY_BYTES
from awsomefsd.base.sizes import format_bytes
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.config.settings import Settings
from awsomefsd.keeper import mount_syscalls
from awsomefsd.node import self_check
from awsomefsd.node.health.codes import HealthFinding

_CHECK_CODES = {"kernel": "KERNEL_OLD", "FUSE": "FUSE_MISSING"}
_ONCE_CODES = {"descriptors": "FILES_LIMIT", "clock": "CLOCK_UNSYNCED"}
NETWORK_KINDS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "afs", "coda", "9p", "ceph", "glusterfs", "lustre", "beegfs", "orangefs", "pvfs2"}
)
DISK_FREE_PERCENT, DISK_FREE_BYTES = 5, 10 << 30  # nearly full: less than both
DISK_FREE_BYTES_MIN = 128 * MIB  # … or less than this
INODES_FREE_MIN = 1_000
FSYNC_S_MAX = 0.1
_FSYNCS = 5
_LINKS_MAX = 40
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_LOCK_OUT = stat.S_IWGRP | stat.S_IWOTH


def fitness(*, before_install: bool) -> Iterator[HealthFinding]:
    """Yields what does not work on this host; before an install also what is advised: an open-files limit, and a clock that is set."""
    for one in self_check.run():
        if one.state == self_check.BAD:
            yield HealthFinding(_CHECK_CODES.get(one.name, "HOST_UNFIT"), f"{one.name}: {one.detail}")
        elif one.state == self_check.OFF and before_install and one.name in _ONCE_CODES:
            yield HealthFinding(_ONCE_CODES[one.name], one.detail)


# --- memory ------------------------------------------------------------------------------------------------------------------
def memory(settings: Settings, mounts: int, proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> Iterator[HealthFinding]:
    """Yields what is wrong with the budgets of the daemon and of `mounts` workers."""
    need = settings.memory.daemon + max(mounts, 1) * settings.memory.worker
    have, whose = memory_bound(proc, groups)
    if 0 < have < need:
        yield HealthFinding(
            "MEMORY_SHORT",
            f"memory.daemon = {format_bytes(settings.memory.daemon)} and {max(mounts, 1)} x memory.worker = "
            f"{format_bytes(settings.memory.worker)} are {format_bytes(need)}; {whose} has {format_bytes(have)}",
        )
    if settings.memory.worker < WORKER_MEMORY_BYTES:
        small, usual = format_bytes(settings.memory.worker), format_bytes(WORKER_MEMORY_BYTES)
        yield HealthFinding("MEMORY_BUDGET_SMALL", f"memory.worker = {small}; {usual} is the default")


def memory_bound(proc: Path, groups: Path) -> tuple[int, str]:
    """Returns the bytes that processes here can have, and whose bound that is; 0 if it is not known."""
    bounds: list[tuple[int, str]] = []
    with suppress(OSError, ValueError, StopIteration):
        rows = (proc / "meminfo").read_text().splitlines()
        bounds.append((next(int(row.split()[1]) for row in rows if row.startswith("MemTotal:")) << 10, "this host"))
    with suppress(OSError):
        own = next((row[3:] for row in (proc / "self/cgroup").read_text().splitlines() if row.startswith("0::")), "/")
        place = groups / own.lstrip("/")
        for directory in (place, *place.parents):
            with suppress(OSError, ValueError):
                bounds.append((int((directory / "memory.max").read_text()), f"the cgroup {directory}"))
            if directory == groups:
                break
    return min(bounds, default=(0, ""))


# --- directories -------------------------------------------------------------------------------------------------------------
def present(path: Path) -> Path:
    """Returns the path itself, or the nearest directory above it that exists."""
    return next((place for place in (path, *path.parents) if os.path.lexists(place)), Path("/"))


def state_directory(settings: Settings, table: str = "/proc/self/mountinfo") -> Iterator[HealthFinding]:
    """Yields what is wrong with the filesystem of the state directory; of a network filesystem nothing more is asked, it may hang."""
    state = settings.state_dir
    entry = mounted_at(state, table)
    if entry is not None and is_network(entry.fstype):
        yield HealthFinding("STATE_ON_NETWORK", f"state_dir = {state} is on {entry.source} at {entry.dir}, of type {entry.fstype}")
        return
    yield from _space(state)
    yield from _fsync(state)


def is_network(kind: str) -> bool:
    return kind in NETWORK_KINDS or kind.startswith("fuse.")


def mounted_at(path: Path, table: str = "/proc/self/mountinfo") -> mount_syscalls.MountEntry | None:
    """Returns the mount that a path lies in, by the mount table; of a network filesystem nothing is asked, not even for a link in it."""
    entries = mount_syscalls.mounts(table)
    done, left, links = "/", list(path.absolute().parts[1:]), 0
    while left:
        part = left.pop(0)
        place = os.path.dirname(done) if part == ".." else os.path.join(done, part)
        target = "" if on_network(_entry_of(place, entries)) or links == _LINKS_MAX else _link(place)
        if target:
            links += 1
            done, left = ("/" if target.startswith("/") else done), [*Path(target.lstrip("/")).parts, *left]
        else:
            done = place
    return _entry_of(done, entries)


def _entry_of(text: str, entries: Iterable[mount_syscalls.MountEntry]) -> mount_syscalls.MountEntry | None:
    found = None
    for entry in entries:
        inside = entry.dir == "/" or text == entry.dir or text.startswith(entry.dir.rstrip("/") + "/")
        if inside and (found is None or len(entry.dir) >= len(found.dir)):
            found = entry
    return found


def _link(place: str) -> str:
    try:
        return os.readlink(place)
    except OSError:
        return ""


def on_network(entry: mount_syscalls.MountEntry | None) -> bool:
    """Whether to ask there may hang.  The root directory does not, whatever it is on: this program came from there."""
    return entry is not None and entry.dir != "/" and is_network(entry.fstype)


def _space(state: Path) -> Iterator[HealthFinding]:
    place = present(state)
    try:
        disk = os.statvfs(place)
    except OSError as err:
        yield HealthFinding("PERMISSIONS", f"{place} cannot be looked at: {err.strerror}")
        return
    free, size = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    few = free < DISK_FREE_BYTES and free * 100 < size * DISK_FREE_PERCENT
    if size and (few or free < DISK_FREE_BYTES_MIN):
        yield HealthFinding("STATE_DISK_FULL", f"the filesystem of {place} has {format_bytes(free)} of {format_bytes(size)} free")
    elif disk.f_files and disk.f_favail < INODES_FREE_MIN:
        yield HealthFinding("STATE_DISK_FULL", f"the filesystem of {place} has {disk.f_favail} of {disk.f_files} inodes free")


def _fsync(state: Path) -> Iterator[HealthFinding]:
    """Measures with a file of its own.  The quickest counts: another program's load slows some of them, a slow disk all."""
    place = present(state)
    if not os.access(place, os.W_OK | os.X_OK):
        return  # `permissions` says so
    try:
        with tempfile.TemporaryFile(dir=place, buffering=0) as file:
            spent = [_timed(file.fileno(), number) for number in range(_FSYNCS)]
    except OSError:
        return  # no space is a finding already
    if min(spent) > FSYNC_S_MAX:
        yield HealthFinding("SLOW_FSYNC", f"the quickest of {_FSYNCS} fsync of 4 KiB in {place} took {min(spent) * 1_000:.0f} ms")


def _timed(fd: int, number: int) -> float:
    os.pwrite(fd, bytes([number]) * 4096, 0)
    began = time.monotonic()
    os.fdatasync(fd)
    return time.monotonic() - began


# --- owners and modes --------------------------------------------------------------------------------------------------------
def permissions(settings: Settings) -> Iterator[HealthFinding]:
    """Yields directories that this process cannot write, and files with secrets that others may read."""
    for key, directory in (("state_dir", settings.state_dir), ("run_dir", settings.run_dir)):
        if on_network(mounted_at(directory)):
            continue  # it may hang; `state_directory` says so
        place = present(directory)
        if not place.is_dir():
            yield HealthFinding("PERMISSIONS", f"{key} = {directory}: {place} is no directory", f"remove {place}, or choose another {key}")
        elif not os.access(place, os.W_OK | os.X_OK):
            what = f"{key} = {directory}: user {os.geteuid()} may not write in {place}"
            yield HealthFinding("PERMISSIONS", what, f"chown it: {_word(place)}")
        elif place == directory and place.stat().st_mode & _LOCK_OUT:
            what = f"{key} = {directory} has mode {stat.S_IMODE(place.stat().st_mode):04o}: others may write in it"
            yield HealthFinding("PERMISSIONS", what, f"chmod go-w {_word(directory)}")
    for path in secret_files(settings):
        yield from _secret(path)


def secret_files(settings: Settings) -> Iterable[Path]:
    """Returns the files of this node that hold secrets, and exist; none on a network filesystem, which may hang."""
    pki = PkiFiles(settings.state_dir)
    token = os.environ.get("AWSOMEFSD_TOKEN_FILE", "")
    named = [pki.key, pki.authority_key, *([settings.metadata.key] if settings.metadata.key else []), *([Path(token)] if token else [])]
    return [path for path in dict.fromkeys(named) if not on_network(mounted_at(path)) and os.path.lexists(path)]


def _word(path: Path) -> str:
    """Returns a path as one word of a command: people copy it."""
    return quote(str(path))


def _secret(path: Path) -> Iterator[HealthFinding]:
    try:
        found = path.stat()
    except OSError as err:
        yield HealthFinding("PERMISSIONS", f"{path} cannot be looked at: {err.strerror}")
        return
    if not os.access(path, os.R_OK):
        yield HealthFinding("PERMISSIONS", f"{path} cannot be read by user {os.geteuid()}", f"chown {os.geteuid()} {_word(path)}")
    elif found.st_mode & _OTHERS and found.st_gid in (0, os.getegid()) and not found.st_mode & stat.S_IRWXO:
        return  # a secret that an orchestrator mounts for a group
    elif found.st_mode & _OTHERS:
        what = f"{path} holds a secret and has mode {stat.S_IMODE(found.st_mode):04o}"
        yield HealthFinding("PERMISSIONS", what, f"chmod 600 {_word(path)}")
