"""The requests that the keeper carries out: mount, umount, flush, list; each a sequence of the loop.

The order of a mount: the directory is checked and mounted first (in a chore), then the worker is started; the caller gets "ok" only
when the worker is ready.  Crash window: a keeper that dies between the two leaves a dead mount, which the next mount
of that directory detaches.  The order of a umount: flush, umount2, then wait for the worker's bye; bytes written between the
flush and umount2 are flushed by the worker when the kernel answers it ENODEV.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import UMOUNT_FLUSH_MS_MAX
from awsomefsd.keeper import fusermount, mount_syscalls
from awsomefsd.keeper.loop import Loop, Sequence_
from awsomefsd.keeper.mount import Mount, Surroundings, WorkerFailed, checked_spec
from awsomefsd.keeper.mount_record import RECORD, MountRecord, create_memfd, create_record
from awsomefsd.keeper.mount_syscalls import MNT_DETACH, UMOUNT_NOFOLLOW
from awsomefsd.keeper.wire import DESCRIPTORS_MAX, Message, close_all, say

log = logging.getLogger("awsomefsd.keeper")

READY_MS_MAX = 30_000  # from the start of a first worker to its ready
PATH_CALL_MS_MAX = 10_000  # of one mount(2) or umount2(2)
USERS_MS_MAX = 5_000  # to find out who keeps a mount busy
FORCE_FLUSH_MS_MAX = 5_000  # what umount --force still waits for
BYE_MS_MAX = UMOUNT_FLUSH_MS_MAX  # from umount2 to the bye
MEMFD_BYTES_MAX = 1 << 34


class KeptMounts:
    """The mounts of one keeper, by id, and the sequences that make and end them.

    The loop's thread uses it.  A sequence returns the fields of its answer, and raises OSError or ProtocolError for a refusal.
    """

    def __init__(self, loop: Loop, make_surroundings: Callable[[Callable[[Mount], None]], Surroundings]) -> None:
        self._loop = loop
        self._surroundings = make_surroundings(self._dropped)
        self.by_id: dict[str, Mount] = {}

    def _dropped(self, mount: Mount) -> None:
        if self.by_id.get(mount.id) is mount:
            del self.by_id[mount.id]

    def new(self, spec: Message, fds: dict[str, int]) -> Mount:
        """Returns a new mount with these descriptors, which it owns; its id is taken from now on."""
        mount = self.by_id[spec["mount"]] = Mount(self._surroundings, spec, fds)
        return mount

    def restore(self, names: list[str], fds: list[int]) -> None:
        """Takes up a mount that a holder brings, if it is not known and has not ended.  The descriptors are ours from now on.

        One that has never been served is undone: whoever asked for it got no answer.  Raises ProtocolError if they are not those of a
        mount, and OSError; they are closed then.
        """
        try:
            if names[:1] != ["fuse"] or len(names) != len(fds) or RECORD not in names:
                raise ProtocolError("descriptors do not match their names")
            held = dict(zip(names, fds, strict=True))
            record = MountRecord(held[RECORD])
            state = record.read()
            if state is None or record.ended() is not None or state["spec"]["mount"] in self.by_id:
                close_all(fds)
                return
            brought = state["spec"]
            spec = checked_spec(brought) | {key: str(brought[key]) for key in ("device", "asked_dir")}
        except BaseException:
            close_all(fds)
            raise
        mount = self.new(spec, held)
        say(log, logging.INFO, "mount restored", mount=mount.id, dir=mount.dir, count=state["workers"])
        if not mount.restore(state):
            self._loop.start(self._undo(mount))

    def take_over(self, state: Message) -> None:
        """Adds the mount that the program before the exec handed over."""
        mount = Mount.taken_over(self._surroundings, state)
        self.by_id[mount.id] = mount

    def find(self, request: Message) -> Mount:
        """Returns the mount that a request names by id or by directory.  Raises OSError(ENOENT) if there is none."""
        wanted = request.get("mount") or request.get("dir")
        for mount in self.by_id.values():
            if wanted == mount.id or (wanted in (mount.dir, mount.spec.get("asked_dir")) and not mount.detached):
                return mount
        raise OSError(errno.ENOENT, f"{wanted} is not a mount of this keeper")

    # --- mount -------------------------------------------------------------------------------------------------------------

    def mount(self, request: Message) -> Sequence_:
        """Mounts, starts the first worker and waits until it is ready: {"pid", "dir", "device"}; a failure undoes the mount."""
        spec = checked_spec(request)
        mount_syscalls.flags_of(spec["options"])
        sizes = _checked_sizes(request.get("memfds", {}))
        limit_ms = int(request.get("timeout_ms", READY_MS_MAX))
        known = self.by_id.get(spec["mount"])
        if known is None:
            known = yield from self._mount_new(spec, sizes)
        elif spec["dir"] not in (known.dir, known.spec["asked_dir"]) or spec["source"] != known.spec["source"]:
            raise OSError(errno.EEXIST, f"mount id {known.id} is taken by {known.dir}")
        # A repeated request (the first answer was lost) gets the same mount and the same answer.
        try:
            yield self._loop.within(known.ready, limit_ms, f"the start of the worker of {known.dir}")
        except (WorkerFailed, TimeoutError) as error:
            words = f"{error}; the worker wrote: {known.last_lines()}" if isinstance(error, TimeoutError) else str(error)
            yield from self._undo(known)
            raise OSError(errno.ETIMEDOUT if isinstance(error, TimeoutError) else errno.EIO, words) from None
        return {"pid": known.worker.pid if known.worker else None, "dir": known.dir, "device": known.device}

    def _mount_new(self, spec: Message, sizes: dict[str, int]) -> Sequence_:
        for other in self.by_id.values():
            if spec["dir"] in (other.dir, other.spec["asked_dir"]) and not other.detached:
                raise OSError(errno.EBUSY, f"{other.dir} is a mount of {other.spec['source']} already")
        fds, theirs = _open_descriptors(sizes)
        spec |= {"asked_dir": spec["dir"], "device": "0:0"}
        mount = self.new(spec, fds)  # from here on the id is taken
        try:
            what = f"mount of {spec['dir']}"
            fd = fds["fuse"] if theirs is None else theirs.fileno()
            place = yield self._loop.chore(lambda: _mount_there(fd, spec), PATH_CALL_MS_MAX, what, [fd])
            if theirs is not None:
                fds["fuse"] = _taken(fds["fuse"])
        except OSError:
            mount.drop(True)
            raise
        finally:
            if theirs is not None:
                theirs.close()
        spec |= {"dir": place["dir"], "device": place["device"]}
        say(log, logging.INFO, "mounted", mount=mount.id, dir=mount.dir, device=mount.device, stale=place["stale"] or None)
        mount.start_worker()
        return mount

    def attach(self, request: Message) -> Sequence_:
        """Mounts a connection that is served on one more directory, with its own flags: {"pid", "dir", "device"}.

        The kernel makes a mount of the filesystem that the descriptor belongs to, as long as anybody has that mounted in any namespace: so
        it works too when the last directory here was unmounted.  Raises OSError: ENOTCONN when nobody has, and the connection has ended;
        EBUSY as `mount`; EINVAL from kernels before 5.15.
        """
        mount = self.find({"mount": request.get("mount")})
        spec = checked_spec({**mount.spec, "dir": request.get("dir"), "options": request.get("options", [])})
        mount_syscalls.flags_of(spec["options"])
        if fusermount.needed():
            raise OSError(errno.EPERM, f"{mount.spec['source']} is mounted at {mount.dir}; only root mounts it on further directories")
        spec |= {"asked_dir": spec["dir"]}
        fd = mount.fds["fuse"]
        place = yield self._loop.chore(lambda: _mount_there(fd, spec), PATH_CALL_MS_MAX, f"mount of {spec['dir']}", [fd])
        say(log, logging.INFO, "mounted further", mount=mount.id, dir=place["dir"], device=place["device"], stale=place["stale"] or None)
        if mount.detached:
            mount.attached_again(str(spec["asked_dir"]), str(place["dir"]))
        return {"pid": mount.worker.pid if mount.worker else None, "dir": place["dir"], "device": place["device"]}

    def remount(self, request: Message) -> Sequence_:
        """Gives one directory of a mount other options, and keeps them for the next keeper and worker: {}.

        One that becomes read-only is durable when this returns.  `readahead_kib` 0 leaves the read-ahead.  Raises OSError: ENOENT where the
        mount is not at that directory, EBUSY while files there are open for writing, EPERM without root, and as `flush`.
        """
        mount = self.find({"mount": request.get("mount")})
        dir = request.get("dir")
        changed = {key: request[key] for key in ("options", "config", "readahead_kib") if request.get(key)}
        spec = checked_spec({**mount.spec, "dir": dir, "options": [], **changed})
        mount_syscalls.flags_of(spec["options"])
        if fusermount.needed():
            raise OSError(errno.EPERM, f"{dir}: only root changes the options of a mount; unmount it and mount it again")
        what = f"remount of {dir}"
        yield self._loop.chore(lambda: _remount_there(spec["dir"], mount.device, spec["options"]), PATH_CALL_MS_MAX, what)
        say(log, logging.INFO, "remounted", mount=mount.id, dir=dir, options=",".join(spec["options"]))
        mount.remounted(spec)
        if mount_syscalls.is_read_only(spec["options"]):
            yield self._loop.within(mount.flush(request["request_id"], tell=True), UMOUNT_FLUSH_MS_MAX, f"the flush of {dir}")
        return {}

    def _undo(self, mount: Mount) -> Sequence_:
        """Ends and unmounts a mount whose first worker did not become ready."""
        mount.end()
        try:
            yield self._loop.chore(lambda: _umount_ours(mount.dir, mount.device, MNT_DETACH), PATH_CALL_MS_MAX, f"umount of {mount.dir}")
        except OSError as error:
            say(log, logging.WARNING, "failed mount not undone", mount=mount.id, why=error)
        mount.drop(True)

    # --- umount ------------------------------------------------------------------------------------------------------------

    def umount(self, request: Message) -> Sequence_:
        """Flushes and unmounts, by force if asked for: {"flushed", "detached"}.  A mount that is busy stays.

        `mount` and `dir` together name one of several directories of a mount.
        """
        mount = self.find(request)
        dir = str(request.get("dir") or mount.dir) if request.get("mount") else mount.dir
        if request.get("force"):
            return (yield from self._umount_by_force(mount, dir, int(request.get("flush_ms", FORCE_FLUSH_MS_MAX))))
        with mount.unmounting():
            return (yield from self._umount_in_order(mount, dir, request))

    def _umount_in_order(self, mount: Mount, dir: str, request: Message) -> Sequence_:
        yield self._loop.within(mount.flush(request["request_id"]), UMOUNT_FLUSH_MS_MAX, f"the flush of {dir}")
        try:
            yield self._loop.chore(lambda: _umount_ours(dir, mount.device, 0), PATH_CALL_MS_MAX, f"umount of {dir}")
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            users = yield from self._users(dir)
            raise OSError(errno.EBUSY, f"{dir} is busy{users}") from None
        # The worker may have said bye before the child that unmounted was waited for.  Then the mount is dropped, its descriptors are
        # closed, and its device number may be another mount's.
        if not mount.gone.done and mount_syscalls.superblock_lives(mount.device):
            # Further directories, bind mounts or other namespaces have it still; the worker serves on until the last of them has gone.
            if dir == mount.dir:
                mount.detach()
            return {"flushed": True, "detached": True}
        clean = yield self._loop.within(mount.gone, BYE_MS_MAX, f"{dir} is unmounted; the last flush of its worker")
        if not clean:
            raise OSError(errno.EIO, f"{dir} is unmounted, but its worker could not make everything durable")
        return {"flushed": True, "detached": False}

    def _users(self, dir: str) -> Sequence_:
        try:
            users = yield self._loop.chore(lambda: mount_syscalls.users_of(dir), USERS_MS_MAX, "the search for users")
        except OSError:  # a machine with very many processes, or a busy one
            users = []
        return f": used by {', '.join(users)}" if users else f": `fuser -vm {dir}` shows who uses it"

    def _umount_by_force(self, mount: Mount, dir: str, patience_ms: int) -> Sequence_:
        """Flushes for `patience_ms`, then aborts, detaches and kills.  Returns whether everything acknowledged is durable.

        `ended`: the worker is gone, and has not ended its session.
        """
        flushed = True
        try:
            yield self._loop.within(mount.flush(os.urandom(8).hex()), patience_ms, "the flush")
        except OSError as error:
            say(log, logging.ERROR, "forced umount without a flush", mount=mount.id, why=error)
            flushed = False
        minor = int(mount.device.partition(":")[2])
        for what, work in (
            ("abort", lambda: mount_syscalls.abort_connection(minor)),
            ("detach", lambda: _umount_ours(dir, mount.device, MNT_DETACH)),
        ):
            try:
                yield self._loop.chore(work, PATH_CALL_MS_MAX, f"{what} of {dir}")
            except OSError as error:
                say(log, logging.WARNING, "forced umount", mount=mount.id, step=what, why=error)
        for kill in (False, True):
            if kill:
                mount.end()
            try:
                clean = yield self._loop.within(mount.gone, patience_ms, "the end of the worker")
                return {"flushed": flushed and clean, "detached": False, "ended": not clean}
            except TimeoutError:
                continue
        mount.drop(False)
        return {"flushed": False, "detached": False}

    # --- others ------------------------------------------------------------------------------------------------------------

    def flush(self, request: Message) -> Sequence_:
        """Makes everything durable that was written to a mount: {}."""
        mount = self.find(request)
        yield self._loop.within(mount.flush(request["request_id"], tell=True), UMOUNT_FLUSH_MS_MAX, f"the flush of {mount.dir}")
        return {}

    def replace(self, request: Message) -> Sequence_:
        """Replaces a mount's worker by one of another program: {"pid", "version"}."""
        mount = self.find(request)
        spec = checked_spec({**mount.spec, **{key: request[key] for key in ("argv", "env") if key in request}})
        return (yield from mount.replace(spec["argv"], spec["env"]))

    def umount_all(self, request: Message) -> Sequence_:
        """Unmounts every mount; raises the first error after it has tried all, with the words of each."""
        failed = []
        for mount in list(self.by_id.values()):
            try:
                request_id = f"{request['request_id']}-{mount.id}"
                yield from self.umount({"mount": mount.id, "request_id": request_id, "force": request.get("force")})
            except OSError as error:
                failed.append(error)
        if failed:
            raise OSError(failed[0].errno, "; ".join(str(error.strerror or error) for error in failed))


def _checked_sizes(sizes: Any) -> dict[str, int]:
    ok = isinstance(sizes, dict) and len(sizes) < DESCRIPTORS_MAX - 1 and not {"fuse", RECORD} & set(sizes)
    if not ok or not all(isinstance(size, int) and 0 <= size <= MEMFD_BYTES_MAX for size in sizes.values()):
        raise ProtocolError("mount: memfds is an object of names and sizes in bytes")
    return dict(sizes)


def _open_descriptors(sizes: dict[str, int]) -> tuple[dict[str, int], socket.socket | None]:
    """Returns the descriptors of a mount; without root "fuse" is a socket at first, and fusermount3 gets the other end of it."""
    fds: dict[str, int] = {}
    theirs: socket.socket | None = None
    try:
        if fusermount.needed():
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            fds["fuse"] = ours.detach()
        else:
            fds["fuse"] = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        for name, size in sizes.items():
            fds[name] = create_memfd(name)
            os.ftruncate(fds[name], size)
        fds[RECORD] = create_record()
    except OSError as error:
        close_all(list(fds.values()))
        raise OSError(error.errno, f"/dev/fuse and shared memory: {error.strerror}") from None
    return fds, theirs


def _taken(number: int) -> int:
    """Returns the FUSE descriptor out of the socket with this number, and closes the socket."""
    with socket.socket(fileno=os.dup(number)) as sock:
        fd = fusermount.received(sock)
    os.close(number)
    return fd


def _mount_there(fd: int, spec: Message) -> Message:
    """Detaches dead mounts of ours, mounts, and returns the real directory.  Runs in the chore's child."""
    asked = spec["asked_dir"]
    parent, name = os.path.split(os.path.normpath(asked))
    # The last name is not followed before the dead mount on it is gone: even lstat of that one fails.
    dir = os.path.join(os.path.realpath(parent), name)
    stale = mount_syscalls.clear_stale(dir)
    if os.path.islink(dir):
        dir = os.path.realpath(dir)
        stale += mount_syscalls.clear_stale(dir)
    if not os.path.isdir(dir):
        number = errno.ENOTDIR if os.path.lexists(dir) else errno.ENOENT
        raise OSError(number, f"{dir}: {os.strerror(number)}")
    try:
        if fusermount.needed():
            fusermount.mount(fd, dir, spec["source"], spec["options"], spec["fuse_options"])
        else:
            mount_syscalls.mount_fuse(fd, dir, spec["source"], spec["options"], spec["fuse_options"])
            if mount_syscalls.is_read_only(spec["options"]):
                mount_syscalls.allow_writing(dir)
    except OSError as error:
        raise OSError(error.errno, f"mount of {dir}: {error.strerror}") from None
    entry = mount_syscalls.topmost(dir)
    if entry is None:
        raise OSError(errno.EIO, f"{dir} was unmounted right after it was mounted")
    return {"dir": dir, "device": entry.device, "stale": stale}


def _remount_there(dir: str, device: str, options: list[str]) -> None:
    """Changes the options of our mount at `dir`, and of nothing else.  Runs in the chore's child."""
    entry = mount_syscalls.topmost(dir)
    if entry is None or entry.device != device:
        over = "nothing of ours is mounted there" if entry is None else f"{entry.source} ({entry.fstype}) is mounted there"
        raise OSError(errno.ENOENT, f"{dir}: {over}")
    try:
        mount_syscalls.remount(dir, options)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise OSError(errno.EBUSY, f"{dir} is busy: files are open for writing") from None
        raise OSError(error.errno, f"remount of {dir}: {error.strerror}") from None


def _umount_ours(dir: str, device: str, flags: int) -> None:
    """Unmounts our mount, and nothing else, from `dir`; one that is gone already is fine.  Runs in the chore's child."""
    there = [entry for entry in mount_syscalls.mounts() if entry.dir == dir]
    if not any(entry.device == device for entry in there):
        return
    if there[-1].device != device:
        raise OSError(errno.EBUSY, f"{there[-1].source} ({there[-1].fstype}) is mounted over {dir}")
    mount_syscalls.umount(dir, flags | UMOUNT_NOFOLLOW)
