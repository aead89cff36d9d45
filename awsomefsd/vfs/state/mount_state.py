"""The state that all operations of one mount share: caches, open files, dirty data, and the way to the metadata service."""

from __future__ import annotations

import contextlib
import errno
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from msgspec.structs import replace

from awsomefsd.base.errors import Error, FsError
from awsomefsd.base.types import Attr, is_behind_recovery
from awsomefsd.base.wait import Prompt, Resume, Signal, Steps, Task, Wait, was_repeated
from awsomefsd.io.file.dirty_log import DirtyLog
from awsomefsd.io.file.file_data import FileState, FileTable
from awsomefsd.io.file.flusher import Flusher, record_space
from awsomefsd.io.file.reservation import Reservation, Uniques
from awsomefsd.io.segment.locations import Locations
from awsomefsd.meta.api.commands import SetLock
from awsomefsd.meta.api.messages import Found, GetAttr
from awsomefsd.meta.client.leases import Leases
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.vfs.api.context import CachePolicy
from awsomefsd.vfs.state.atimes import Atimes
from awsomefsd.vfs.state.delegated_names import DelegatedNames
from awsomefsd.vfs.state.freshness import Modes
from awsomefsd.vfs.state.kernel_cache import KernelCache
from awsomefsd.vfs.state.names import NameCache
from awsomefsd.vfs.state.open_files import OpenTable
from awsomefsd.vfs.state.page_cache import WholePages
from awsomefsd.vfs.state.replayed_answers import as_now
from awsomefsd.vfs.state.rewrites import Rewrites
from awsomefsd.vfs.state.shared_names import SharedNames


def recovered() -> FsError:
    """Returns the error of what was under way while the cluster was recovered from a copy (decision 456)."""
    return FsError(errno.EIO, "the cluster was recovered from a copy of its metadata while this was under way")


class SessionView(Protocol):
    """The time for which this worker may serve what it remembers."""

    fails: bool  # what would wait for it ends with ETIMEDOUT
    over: FsError | None  # why there will never be one again

    def left_ns(self) -> int: ...
    def stamp(self) -> int:
        """The same number means: what was remembered then is still good; 0: nothing may be served now."""

    def renewed(self) -> Wait:
        """Ends when there is a valid lease again."""

    def lost(self) -> None:
        """It has run out."""


class Proposal(Prompt):
    """A Wait for one change, under whatever session this mount has: where one has ended meanwhile, the same request id goes out again.

    One through an open file (`fh`) is for that handle's session: its lock may have ended with it, and others may have the file by now.  So
    each proposal names the session in which the handle was found to be good.

    Behind a recovery of the cluster from a copy it is not repeated either, but ends with EIO: what it follows from may not be there.

    Only data commits are not repeated so (the flusher decides, once the new session has said whether others were here).
    What is made with a lease is held before the answer is handed on; a lease of an earlier session than the present one is nobody's.
    The answer to a repeated request may be an old one: it is brought up to now (replayed_answers.py).
    """

    __slots__ = ("_asked", "_attempted", "_command", "_fh", "_mount", "_repeated", "_touches", "_unique")

    def __init__(self, mount: MountState, command: Any, unique: int, touches: list[int], fh: int | None) -> None:
        self._mount = mount
        self._command = command
        self._unique = unique
        self._touches = touches
        self._fh = fh
        self._repeated = mount.session.recovering
        self._asked: Wait | None = None
        self._attempted: tuple[tuple[int, int], Prompt] | None = None  # with the session that it was for

    def attempt(self, resume: Resume) -> bool:
        """What this mount decides by itself needs nothing that is done about answers here: no lease is made, and no session named."""
        if self._touches or self._repeated or self._fh is not None:
            return False
        metadata = self._mount.metadata
        token = metadata.session_token()
        asked = metadata.propose(self._command, self._unique, token)
        if not isinstance(asked, Prompt):
            return False
        self._attempted = token, asked
        return asked.attempt(resume)

    def start(self, resume: Resume) -> None:
        if self._repeated and self._mount.session.is_behind_recovery:
            resume(None, recovered())
            return
        leases, touches = self._mount.caches.leases, self._touches
        if leases is None or not touches:
            self._start(resume)
            return

        def decided(value: Any, error: BaseException | None) -> None:
            leases.end_change(touches)
            if self._asked is None or not was_repeated(self._asked):
                resume(value, error)
                return
            with leases.doubting(touches):
                resume(value, error)

        self._mount.caches.begin_change(touches)
        self._start(decided)

    def _start(self, resume: Resume) -> None:
        def again(_value: Any, error: BaseException | None) -> None:
            if error is None:
                self._start(resume)
            else:
                resume(None, error)

        def answered(value: Any, error: BaseException | None) -> None:
            if isinstance(error, FsError) and error.errno == errno.ESTALE:
                self._mount.session.session_after(token).start(again)
                return
            if isinstance(value, Found) and value.leased is not None:
                value = self._held(token[0], value)
            if self._repeated and error is None:
                Task(as_now(self._mount.metadata.ask, self._mount.volume, value), resume).start()
            else:
                resume(value, error)

        token, renewed = self._mount.metadata.session_token(), self._mount.session.lease.renewed()
        if self._fh is not None:
            if self._mount.session.lease.left_ns() <= 0:  # a session that was just opened: what of the old one is lost is not decided yet
                renewed.start(again)
                return
            try:
                self._mount.session.check_handle(self._fh)
            except FsError as err:
                resume(None, err)
                return
        attempted, self._attempted = self._attempted, None
        if attempted is not None:
            token, self._asked = attempted
        else:
            self._asked = self._mount.metadata.propose(self._command, self._unique, token)
        self._asked.start(answered)

    def _held(self, session: int, found: Found) -> Found:
        """Returns it with its lease only if that is held from now on."""
        leases = self._mount.caches.leases
        held = leases is not None and not self._mount.session.recovering and leases.made(session, found)
        return found if held else replace(found, leased=None)


def touched(command: Any, named: Iterable[int] = ()) -> list[int]:
    """The inodes that a command changes, of what a read lease covers; 0 (EVERY_INODE) where one has a name and no number yet."""
    if isinstance(command, SetLock):
        return []
    inos = [getattr(command, name, 0) for name in ("parent", "new_parent", "ino", "new_ino")]
    return [*dict.fromkeys(filter(None, inos)), *dict.fromkeys(named)]


DropPages = Callable[[int, int, int, "Callable[[], None] | None"], None]  # inode, range (length 0: to the end), what is called then


def with_buffered(attr: Attr, state: FileState | None) -> Attr | None:
    """Returns committed attributes with the size and times of what is buffered beside them; None: nothing is."""
    if state is None or not state.dirty:
        return None
    with state.lock:
        dirty, mtime_ns, size, dirty_bytes = bool(state.dirty), state.mtime_ns, state.size, state.dirty_bytes
    if not dirty:
        return None
    ctime_ns = attr.ctime_ns
    if mtime_ns is None:
        mtime_ns = attr.mtime_ns
    else:
        ctime_ns = max(ctime_ns, mtime_ns)
    return Attr(
        attr.ino, attr.mode, attr.nlink, attr.uid, attr.gid, attr.rdev, max(size, attr.size),
        max(attr.stored_bytes, min(attr.stored_bytes + dirty_bytes, size)),
        attr.atime_ns, mtime_ns, ctime_ns, attr.btime_ns, attr.inline, attr.xattrs, attr.consistency,
    )  # fmt: skip


class Caches:
    """What this mount remembers of names and attributes, under which leases, and what the kernel was told of it.

    Thread-safe as its parts are.  Nothing here blocks.
    """

    def __init__(
        self,
        names: NameCache,
        atimes: Atimes,
        modes: Modes,
        pages: WholePages,
        leases: Leases | None = None,
        kernel: KernelCache | None = None,
    ) -> None:
        assert kernel is None or leases is not None, "the kernel keeps pages and names of a shared mount under leases only"
        self.names = names
        self.atimes = atimes
        self.modes = modes
        self.pages = pages  # of a mount that has its volume alone
        self.leases = leases  # of a shared mount that caches
        self.kernel = kernel
        self.forget_attributes: Callable[[int], None] = lambda ino: None  # makes the kernel forget them at once, without a wait
        self._forget_told: Callable[[list[int], bool], None] = lambda inos, pages: None
        self.can_forget_names: Callable[[], bool] = bool  # the kernel can be made to forget them at once
        self.filled: set[int] = set()  # open inodes of which the kernel may keep pages (vfs/ops/direct_writes.py)
        if kernel is not None:
            kernel.filled = self.filled
        self.drop_pages: DropPages = lambda ino, offset, length, then: None if then is None else then()

    def tells(self, forget_told: Callable[[list[int], bool], None], can_forget_names: Callable[[], bool] = bool) -> None:
        """`forget_told(inodes, pages)` makes the kernel forget all names, and these attributes, before it returns; pages later."""
        self._forget_told = forget_told
        self.can_forget_names = can_forget_names

    def told_too_late(self, inos: list[int], *, pages: bool) -> None:
        """The kernel was told something that may not be true any more, or for longer than it is promised.

        Not of files that it reads through pages which need not be strict: the kernel would ignore attributes that are on their way.
        """
        kernel = self.kernel
        self._forget_told([ino for ino in inos if kernel is None or not kernel.reads_loosely(ino)], pages)

    def bytes_changed(self, before: Attr | None, after: Attr) -> None:
        """Lets the kernel know of set-ID bits that went with a change of the bytes, before it gets the answer.  `before`: None if unknown.

        The answers to WRITE, FALLOCATE, COPY_FILE_RANGE and OPEN have no attributes.  The kernel doubts size and times after them, but not
        the mode: it would run the program with its setuid bit for as long as the mode was told for.  With leases `begin_change` has
        taken back what was told.
        """
        if before is None or before.mode != after.mode:
            self.forget_attributes(after.ino)

    def begin_change(self, inos: list[int]) -> None:
        """Shows nothing of these from memory until the outcome is known (leases.end_change)."""
        assert self.leases is not None
        self.leases.begin_change(inos)
        if self.kernel is not None:
            self.kernel.change(inos)

    def note_buffered(self, ino: int) -> None:
        """Data was buffered: what was told of the file before, or is on its way, does not have it."""
        if self.leases is not None:
            self.leases.touch(ino)
        if self.kernel is not None:
            self.kernel.change([ino])

    def committed(self, attr: Attr, repeated: bool) -> None:
        """Takes up a commit, where answers are taken up: what was buffered is everybody's, and the layout another.

        `repeated`: the attributes may be old, and are not kept.  The lease was not: a recall waits until the records are clean.
        """
        if self.leases is None:
            self.names.put(attr)
            return
        self.leases.touch(attr.ino)
        with self.leases.doubting([]) if repeated else contextlib.nullcontext():
            self.names.put(attr)

    def cover(self, ino: int, *, unless_written: bool = False) -> None:
        """Asks for a read lease on what is asked about next, so that the answer may be kept: no round trip more."""
        if self.leases is not None and self.modes.asks_leases:
            self.leases.cover(ino, unless_written=unless_written)


class Buffered:
    """The bytes of files that write(2) has acknowledged and no commit has made visible yet, and the space that was promised to them."""

    def __init__(self, dirty: DirtyLog, files: FileTable, flusher: Flusher, reservation: Reservation, locations: Locations) -> None:
        self.dirty = dirty
        self.files = files
        self.flusher = flusher
        self.reservation = reservation
        self.locations = locations

    def release_space(self, lengths: list[int]) -> None:
        """Records of these lengths will not be written: their reservation is free again."""
        if lengths:
            self.reservation.give_back(sum(record_space(length) for length in lengths))


class SessionState:
    """What belongs to the session of this mount: its lease, its open files, and the names that are being made and removed under it."""

    def __init__(self, lease: SessionView, metadata: Metadata, opens: OpenTable) -> None:
        self.lease = lease
        self.opens = opens
        self.rewrites = Rewrites(opens)
        self.removing: dict[int, Signal] = {}  # inodes whose last name is being removed: an open waits for the outcome
        self.linking: set[int] = set()  # inodes that get their first name: their last close ends nothing before that is decided
        self.is_behind_recovery = False  # of the cluster: what a dead predecessor had begun is not executed again
        self.recovering = False  # requests of a dead predecessor are being executed again; only `repeating` changes it
        self.failed_handles: set[int] = set()  # fh that answer EIO until closed: what they held was lost with a session
        self.data_lost: set[int] = set()  # inodes of which data was put aside, and that nobody has opened to write since
        self.late_errors: dict[int, Error] = {}  # by fh: a failed flush of which another one was told first
        self._metadata = metadata

    @contextlib.contextmanager
    def repeating(self) -> Iterator[None]:
        """The scope in which requests of a dead predecessor are executed again.  An error in it ends the worker, so nothing is undone."""
        self.recovering = True
        yield
        self.recovering = False

    def lose_handles(self, inos: set[int]) -> None:
        """Handles of these files have failed, here and for every successor: what was buffered of the files is gone for them."""
        self.failed_handles |= self.opens.lose(inos)

    def tell_data_lost(self, ino: int) -> None:
        """Raises FsError(EIO), once, if what was written to a file was put aside: it would take the place of another as it was before."""
        if ino in self.data_lost:
            self.data_lost.discard(ino)
            raise FsError(errno.EIO, f"data of inode {ino} became a conflict; see `awsomefsd status`")

    def flush_failed(self, ino: int, error: Error) -> None:
        """Somebody is being told of it: each handle that is open now is told too, once, by its own fsync (as errseq_t of Linux)."""
        for file in self.opens:
            if file.ino == ino:
                self.late_errors[file.fh] = error
                if self.opens.get(file.fh) is None:  # closed meanwhile
                    self.late_errors.pop(file.fh, None)

    def take_over_handles(self, epoch: int) -> None:
        """Lets new handles belong to the session with this epoch; those of another one, which a predecessor opened, have failed."""
        self.failed_handles |= self.opens.take_over(epoch)
        self.rewrites.take_over()

    def session_after(self, token: tuple[int, int]) -> Wait:
        """A Wait after a refusal (ESTALE): ends when the mount is served under another session, which may be so already.

        With FsError(EIO) if the cluster was recovered from a copy in between.
        """
        renewed, now = self.lease.renewed(), self._metadata.session_token()
        if self.lease.left_ns() > 0 and now != token:
            renewed = Signal()
            renewed.fire(None, recovered() if is_behind_recovery(now[0], token[0]) else None)
        return renewed

    def check_handle(self, fh: int | None) -> None:
        """Raises FsError(EIO) for a handle that lost its session."""
        if fh is not None and fh in self.failed_handles:
            raise FsError(errno.EIO, "this open file lost its session; close and open it again")


class MountState:
    """The state of one mount, by subject; built complete by worker/worker.py.  The operations of the vfs work on it."""

    def __init__(
        self,
        volume: int,
        metadata: Metadata,
        uniques: Uniques,
        caches: Caches,
        buffered: Buffered,
        session: SessionState,
        *,
        read_only: Callable[[], bool],
        shared: bool = False,
        delegated: DelegatedNames | None = None,
    ) -> None:
        self.volume = volume
        self.metadata = metadata
        self.uniques = uniques
        self.caches = caches
        self.buffered = buffered
        self.session = session
        self._read_only = read_only
        self.shared = shared  # other nodes change the volume too: nothing is remembered beyond one operation, but under a lease

        self._delegated = delegated
        self.put_aside: Callable[[], bool] = bool  # something of this mount was, by this worker or one before; set before requests come
        self.losses_untold: set[int] = set()  # inodes of which something was put aside: their next fsync tells it, through any handle

    def names_figures(self) -> dict[str, int]:
        return {} if self._delegated is None else self._delegated.figures()

    def names_let_go(self, ino: int) -> bool:
        """Returns whether nothing that was decided of an inode is left here; nothing is decided of it now."""
        return not isinstance(self._delegated, SharedNames) or self._delegated.is_clean(ino)

    def names_synced(self) -> Wait | None:
        """Returns a Wait for all changes of names up to now to be in the cluster's log; None if they are."""
        return None if self._delegated is None else self._delegated.synced()

    def await_names(self, names: Wait | None, ino: int) -> Steps:
        """Waits for what `names_synced` gave.  Raises FsError(EIO) if something of this inode was put aside and is untold."""
        if names is not None:
            yield names
        if ino in self.losses_untold:
            self.losses_untold.discard(ino)
            raise FsError(errno.EIO, "changes of names or data became conflicts; see `awsomefsd status`")

    @property
    def read_only(self) -> bool:
        """No directory of this mount is writable now.  The kernel refuses most of what this is asked for before it comes here."""
        return self._read_only()

    def propose(self, command: Any, unique: int, *named: int, fh: int | None = None) -> Wait:
        """A change asked for by the kernel request `unique` (a request makes one entry at most under its own id).

        `named`: inodes that it changes by their names, as far as they are known (0: one that is not).  `fh`: the handle through which it is
        made; EIO once that is lost.
        """
        touches = [] if self.caches.leases is None else touched(command, named)
        return Proposal(self, command, unique, touches, fh)

    @contextlib.contextmanager
    def background_unique(self) -> Iterator[int]:
        """The id of a request that no FUSE request stands behind; its kept result is given up when the block ends."""
        unique = self.uniques.next_background_unique()
        try:
            yield unique
        finally:
            self.metadata.ack(unique)

    @property
    def makes_leased(self) -> bool:
        """True if what is made now begins with a lease.  Not what a dead worker had asked for: nothing of those answers is remembered."""
        return self.caches.leases is not None and not self.session.recovering

    @property
    def leader_answers(self) -> bool:
        """True: questions are answered by the leader alone, in the order of the log."""
        return self._delegated is None

    def attr_op(self, ino: int) -> Steps:
        """The committed attributes, asked for if they are not remembered.  Raises FsError(ENOENT)."""
        attr = self.caches.names.attr(ino)
        return attr if attr is not None else (yield from self.asked_attr_op(ino))

    def asked_attr_op(self, ino: int) -> Steps:
        """The committed attributes as the leader has them.  Raises FsError(ENOENT).

        What follows up to the next wait is done before any later answer of the leader is looked at.
        """
        self.caches.cover(ino)
        reply: Found = yield self.metadata.ask(GetAttr(self.volume, ino))
        self.caches.names.put(reply.attr)
        return reply.attr

    def shown_op(self, ino: int) -> Steps:
        """The attributes for stat(2): what another mount buffers of the file counts, and stays buffered there.  Raises FsError(ENOENT).

        They are no base for anything else: the layout is that of what is committed.
        """
        attr = self.caches.names.attr(ino)
        if attr is None:
            self.caches.cover(ino, unless_written=True)
            reply: Found = yield self.metadata.ask(GetAttr(self.volume, ino, buffered=True))
            attr = reply.attr
            self.caches.names.put(attr)  # kept under a lease, and then nobody else has buffered anything
        return self.shown(attr)

    def shown_from_memory(self, ino: int) -> Attr | None:
        """Returns the attributes as stat(2) shall see them now, None where they have to be asked for.

        A lease that went meanwhile took what a commit had told.
        """
        attr = self.caches.names.attr(ino)
        if attr is None:
            return None
        shown = self.shown(attr)
        return shown if self.caches.leases is None or self.caches.names.attr(ino) is not None else None

    def shown(self, attr: Attr) -> Attr:
        """`attr` as stat(2) shall see it now: size and times of writes and reads that are not committed yet count.

        A commit puts the new attributes among the names before its records are clean: who finds nothing dirty looks there again, because
        `attr` may be from before the commit.  The records become clean, and `mtime_ns` None, under the state's lock.
        """
        atime_ns = self.caches.atimes.of(attr.ino)
        shown = with_buffered(attr, self.buffered.files.get(attr.ino))
        if shown is None:
            shown = self.caches.names.attr(attr.ino) or attr
        return shown if atime_ns is None else replace(shown, atime_ns=atime_ns)

    def cache_policy(self, attr: Attr, flags: int, fh: int, *, made: bool = False) -> CachePolicy:
        """Returns what the kernel may cache of a file for this open.  `made`: by this request, so the kernel has no pages of it."""
        if self.caches.kernel is not None and self.caches.modes.is_loose_file(attr):
            kept = self.caches.kernel.loose.opened(attr, fh, flags)
            return CachePolicy.DIRECT if kept is None else kept
        if self.shared:
            return CachePolicy.DIRECT
        if not self.caches.pages.opened(attr.ino, fh, made=made):
            return CachePolicy.DROP
        return CachePolicy.KEEP if made else self.caches.atimes.cache_policy(attr, flags)

    def pins(self, ino: int) -> bool:
        """Says whether an inode that loses its last name now has to stay for this mount.

        Where a repeated request, or another node, may have changed what the name means, it does: what is not open is given up once the
        answer says which it was.
        """
        return self.session.recovering or self.shared or (ino > 0 and self.session.opens.count(ino) > 0)

    def handle_closed(self, ino: int, fh: int) -> None:
        self.session.opens.close(fh)
        self.session.late_errors.pop(fh, None)
        if ino in self.caches.filled and not self.session.opens.count(ino):
            self.caches.filled.discard(ino)
            if self.session.opens.count(ino):
                self.caches.filled.add(ino)  # it was opened meanwhile, and perhaps read
        self.caches.pages.closed(fh)
        if self.caches.kernel is not None:
            self.caches.kernel.loose.closed(ino, fh)

    def file(self, attr: Attr) -> FileState:
        """Made from the newest attributes: the caller's may be older than a state that was forgotten since.

        EISDIR or EINVAL unless it is a regular file: a record of anything else could never be committed, and would be flushed for ever.
        """
        state = self.known_file(attr.ino)
        if state is None:
            if not stat.S_ISREG(attr.mode):
                raise FsError(errno.EISDIR if stat.S_ISDIR(attr.mode) else errno.EINVAL, f"inode {attr.ino} is not a regular file")
            if self.shared:
                return FileState(attr, None)
            state = self.buffered.files.state(self.caches.names.attr(attr.ino) or attr)
        return state

    def known_file(self, ino: int) -> FileState | None:
        """Returns what is known of a file's data now.  On a shared mount: while the lease is held under which it was learnt."""
        state = self.buffered.files.get(ino)
        if state is None or not self.shared:
            return state
        if self.caches.leases is None:
            return None
        return state if state.dirty or (state.grant and self.caches.leases.grant(ino) == state.grant) else None
