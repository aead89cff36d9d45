"""Names: lookup, create and its kin, link, unlink, rename, readdir."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterable
from functools import partial

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import DIRECTORY_LISTED_ENTRIES_MAX, LISTINGS_MAX, NAME_BYTES_MAX, READDIR_ENTRIES_MAX, SYMLINK_BYTES_MAX
from awsomefsd.base.types import FIRST_COOKIE, ROOT_INO, TRUNCATE_BIT, Attr, Dirent
from awsomefsd.base.wait import Signal, Steps
from awsomefsd.meta.api.commands import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, Create, Link, Rename, Rmdir, Tmpfile, Unlink
from awsomefsd.meta.api.messages import Blob, Entries, Found, GetAttr, GetParent, Lookup, ReadDir, ReadLink, Removed, Renamed
from awsomefsd.meta.client.leases import EVERY_INODE
from awsomefsd.vfs.api.context import Context, Opened
from awsomefsd.vfs.ops.data import DataOps
from awsomefsd.vfs.ops.negative_lookups import ListAhead
from awsomefsd.vfs.ops.orphans import Orphans
from awsomefsd.vfs.state.mount_state import MountState
from awsomefsd.vfs.state.names import ABSENT, Directory

TARGET = b"/target"  # among the memos of vfs/state/names.py; no xattr is named so
DOT_COOKIE, DOTDOT_COOKIE = 1, 2  # below FIRST_COOKIE


class Listing:
    """An open directory's position: the page that is being handed out, and the directory as it was when the listing began."""

    __slots__ = ("after", "all", "directory", "end", "page", "plus", "stamp")

    def __init__(self, directory: Directory | None) -> None:
        self.directory = directory  # None: began in the middle, so its end does not make the directory complete
        self.page: list[Dirent] = []
        self.after = 0  # the page holds the entries that follow this cookie
        self.end = False
        self.plus = False
        self.all: list[Dirent] = []  # what came before the page, as long as it is all and of one stamp
        self.stamp = 0  # of the directory's lease when the page came


class NamespaceOps:
    def __init__(self, mount: MountState, data: DataOps, orphans: Orphans) -> None:
        self._mount = mount
        self._data = data
        self._orphans = orphans
        self._listings: dict[int, Listing] = {}  # by handle, the longest unread first
        self._newest: dict[int, int] = {}  # by handle: the last cookie when its listing began; what came later is not listed
        self._listing = threading.Lock()
        self._ahead = ListAhead(mount.volume, mount.metadata, mount.caches.names)

    # --- lookup ----------------------------------------------------------------------------------------------------------

    def lookup(self, ctx: Context, parent: int, name: bytes) -> Attr | Steps:
        mount = self._mount
        if len(name) > NAME_BYTES_MAX:
            raise FsError(errno.ENAMETOOLONG)
        ino = mount.caches.names.find(parent, name)
        if ino is not None:
            if ino == ABSENT and name not in (b".", b".."):  # these are in no directory's names
                raise FsError(errno.ENOENT)
            shown = mount.shown_from_memory(ino)
            if shown is not None:
                return shown
        return self._lookup(parent, name)

    def _lookup(self, parent: int, name: bytes) -> Steps:
        mount = self._mount
        if name == b".":  # of any inode: so the kernel finds one again by its number, for a handle that outlived its cache
            attr: Attr = yield from mount.shown_op(parent)
            if not attr.nlink and not mount.session.opens.count(parent):
                raise FsError(errno.ENOENT)  # it is remembered until the kernel's FORGET comes
            return attr
        if name == b"..":
            reply: Found = yield mount.metadata.ask(GetParent(mount.volume, parent))
            return mount.shown(reply.attr)
        if mount.caches.modes.unknown(parent):
            yield from mount.attr_op(parent)
        mount.caches.cover(parent)
        try:
            reply = yield mount.metadata.ask(Lookup(mount.volume, parent, name, buffered=True))
        except FsError as err:
            if err.errno == errno.ENOENT:
                mount.caches.names.enter(parent, name, ABSENT)
                self._ahead.missed(parent, mount.caches.names.directory(parent))
            raise
        mount.caches.names.put(reply.attr)
        mount.caches.names.enter(parent, name, reply.attr.ino)
        return mount.shown(reply.attr)

    def forget(self, ino: int, nlookup: int) -> None:
        """The kernel has dropped the inode.  Caches here are bounded on their own; only what is gone for good is dropped with it."""
        attr = self._mount.caches.names.attr(ino)
        if attr is not None and attr.nlink == 0 and not self._mount.session.opens.count(ino):
            self._mount.caches.names.drop(ino)

    # --- making ----------------------------------------------------------------------------------------------------------

    def _writable(self) -> None:
        if self._mount.read_only:
            raise FsError(errno.EROFS)

    def _make(self, ctx: Context, command: Create) -> Steps:
        mount = self._mount
        reply: Found = yield mount.propose(command, ctx.unique)
        mount.caches.names.put(reply.attr)
        if reply.parent is not None:
            mount.caches.names.put(reply.parent)
        if reply.created and stat.S_ISDIR(reply.attr.mode) and (mount.caches.leases is None or reply.leased is not None):
            mount.caches.names.directory(reply.attr.ino, complete=True)
        mount.caches.names.enter(command.parent, command.name, reply.attr.ino)
        return reply

    def _made(self, ctx: Context, command: Create) -> Steps:
        reply = yield from self._make(ctx, command)
        return reply.attr

    def mknod(self, ctx: Context, parent: int, name: bytes, mode: int, rdev: int) -> Steps:
        self._writable()
        return self._made(ctx, Create(self._mount.volume, parent, name, mode, ctx.uid, ctx.gid, rdev, umask=ctx.umask))

    def mkdir(self, ctx: Context, parent: int, name: bytes, mode: int) -> Steps:
        self._writable()
        mode = stat.S_IFDIR | (mode & 0o7777)
        command = Create(self._mount.volume, parent, name, mode, ctx.uid, ctx.gid, umask=ctx.umask, lease=self._mount.makes_leased)
        return self._made(ctx, command)

    def symlink(self, ctx: Context, parent: int, name: bytes, target: bytes) -> Steps:
        self._writable()
        if len(target) > SYMLINK_BYTES_MAX:
            raise FsError(errno.ENAMETOOLONG)
        return self._made(ctx, Create(self._mount.volume, parent, name, stat.S_IFLNK | 0o777, ctx.uid, ctx.gid, 0, target))

    def create(self, ctx: Context, parent: int, name: bytes, mode: int, flags: int) -> Steps:
        self._writable()
        mode = stat.S_IFREG | (mode & 0o7777)
        self._mount.session.opens.check_room(ctx.unique)
        mount = self._mount
        may_be_there, leased = not flags & os.O_EXCL, mount.makes_leased
        command = Create(mount.volume, parent, name, mode, ctx.uid, ctx.gid, 0, b"", may_be_there, ctx.umask, leased)
        return self._create(ctx, command, flags)

    def _create(self, ctx: Context, command: Create, flags: int) -> Steps:
        reply = yield from self._make(ctx, command)
        attr: Attr = reply.attr
        if not reply.created and flags & os.O_TRUNC:
            # Under an id that a successor, which may have to repeat all of it, finds again: a second truncation would take what was
            # written since.
            attr = yield from self._data.truncate_to_zero(ctx, attr, ctx.unique | TRUNCATE_BIT)
        fh = self._mount.session.opens.open(attr.ino, flags, ctx.unique)
        shown = self._mount.shown(attr)
        return shown, Opened(fh, self._mount.cache_policy(shown, flags, fh, made=reply.created))

    def tmpfile(self, ctx: Context, parent: int, mode: int, flags: int) -> Steps:
        self._writable()
        self._mount.session.opens.check_room(ctx.unique)
        linkable = not flags & os.O_EXCL
        command = Tmpfile(self._mount.volume, parent, mode, ctx.uid, ctx.gid, ctx.umask, linkable, self._mount.makes_leased)
        return self._tmpfile(ctx, command, flags)

    def _tmpfile(self, ctx: Context, command: Tmpfile, flags: int) -> Steps:
        mount = self._mount
        epoch = mount.session.opens.epoch
        reply: Found = yield mount.propose(command, ctx.unique)
        if (mount.session.recovering or mount.session.opens.epoch != epoch) and (yield from self._gone(reply.attr.ino)):
            with mount.background_unique() as unique:  # made under a session that has ended, and the file with it
                reply = yield mount.propose(command, unique)
        mount.caches.names.put(reply.attr)
        fh = mount.session.opens.open(reply.attr.ino, flags, ctx.unique)
        return reply.attr, Opened(fh, mount.cache_policy(reply.attr, flags, fh, made=True))

    def link(self, ctx: Context, ino: int, new_parent: int, new_name: bytes) -> Steps:
        self._writable()
        return self._link(ctx, ino, new_parent, new_name)

    def _link(self, ctx: Context, ino: int, new_parent: int, new_name: bytes) -> Steps:
        mount = self._mount
        attr = mount.caches.names.attr(ino)
        # The kernel lets one link(2) of an inode come at a time.
        first = (attr is None or not attr.nlink) and ino not in mount.session.linking
        if first:
            mount.session.linking.add(ino)
        try:
            reply: Found = yield mount.propose(Link(mount.volume, ino, new_parent, new_name), ctx.unique)
            mount.caches.names.put(reply.attr)
        finally:
            if first:
                mount.session.linking.discard(ino)
                self._data.closed(mount.caches.names.attr(ino))  # perhaps it got no name, and its last close was meanwhile
        if reply.parent is not None:
            mount.caches.names.put(reply.parent)
        mount.caches.names.enter(new_parent, new_name, ino)
        return mount.shown(reply.attr)

    def readlink(self, ctx: Context, ino: int) -> Steps:
        mount = self._mount
        target = mount.caches.names.memo(ino, TARGET)
        if target is None:
            mount.caches.cover(ino)
            reply: Blob = yield mount.metadata.ask(ReadLink(mount.volume, ino))
            target = reply.data
            mount.caches.names.keep_memo(ino, TARGET, target)
        attr = yield from mount.attr_op(ino)
        mount.caches.atimes.accessed(mount.shown(attr))
        return target

    # --- removing --------------------------------------------------------------------------------------------------------

    def _ino_of(self, parent: int, name: bytes) -> Steps:
        ino = self._mount.caches.names.find(parent, name)
        if ino is None:
            attr = yield from self._lookup(parent, name)
            ino = attr.ino
        if ino == ABSENT:
            raise FsError(errno.ENOENT)
        return ino

    def unlink(self, ctx: Context, parent: int, name: bytes) -> Steps:
        self._writable()
        return self._remove(ctx, Unlink(self._mount.volume, parent, name))

    def rmdir(self, ctx: Context, parent: int, name: bytes) -> Steps:
        self._writable()
        return self._remove(ctx, Rmdir(self._mount.volume, parent, name))

    def _remove(self, ctx: Context, command: Unlink | Rmdir) -> Steps:
        mount = self._mount
        signal, ino = Signal(), 0
        try:
            if not mount.session.recovering:  # a repeated request may find the name gone: the service has its first answer
                ino = yield from self._ino_of(command.parent, command.name)
                yield from self._removals_of(ino)
            mount.session.removing[ino] = signal
            command.pinned = mount.pins(ino)
            epoch = mount.session.opens.epoch
            reply: Removed = yield mount.propose(command, ctx.unique, self._sure(command.parent, command.name, ino))
            self._was(ino, reply.attr)
            if mount.session.opens.epoch != epoch:
                yield from self._lost_with_session(reply.attr)
            mount.caches.names.put(reply.parent)
            mount.caches.names.enter(command.parent, command.name, ABSENT)
            self._removed(reply.attr, command.pinned)
        finally:
            self._removal_ended(ino, signal)

    def _gone(self, ino: int) -> Steps:
        try:
            yield self._mount.metadata.ask(GetAttr(self._mount.volume, ino))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return True
        return False

    def _lost_with_session(self, attr: Attr) -> Steps:
        """The session was replaced while the last name went.  If it went under the old one, its pin ended too: open handles are lost."""
        mount = self._mount
        if attr.nlink or not mount.session.opens.count(attr.ino) or not (yield from self._gone(attr.ino)):
            return
        failed = mount.session.failed_handles
        failed |= mount.session.opens.renew(mount.session.opens.epoch, lambda file: file.ino != attr.ino and file.fh not in failed)
        mount.buffered.release_space(mount.buffered.files.drop(attr.ino))

    def _sure(self, parent: int, name: bytes, ino: int) -> int:
        """The inode behind a name, 0 where another node may have given the name to another one since."""
        known = self._mount.caches.names.find(parent, name)
        return EVERY_INODE if known is None or known != ino else ino

    def _was(self, expected: int, attr: Attr | None) -> None:
        """What a name meant is known now."""
        if attr is not None and attr.ino != expected and self._mount.caches.kernel is not None:
            self._mount.caches.kernel.change([attr.ino])

    def _removals_of(self, ino: int) -> Steps:
        """One name of an inode is removed at a time: whether it is the last, and whether the inode is open, must still be so when it is."""
        while (other := self._mount.session.removing.get(ino)) is not None:
            yield other

    def _removal_ended(self, ino: int, signal: Signal) -> None:
        if self._mount.session.removing.get(ino) is signal:
            del self._mount.session.removing[ino]
        signal.fire()

    def _removed(self, attr: Attr, pinned: bool) -> None:
        mount = self._mount
        mount.caches.names.put(attr)
        if attr.nlink == 0 or (stat.S_ISDIR(attr.mode) and attr.nlink < 2):
            if not pinned:
                mount.caches.names.put(mount.shown(attr))  # for those who hold it without having it open (O_PATH)
                mount.buffered.release_space(mount.buffered.files.drop(attr.ino))
            elif not mount.session.opens.count(attr.ino):
                self._orphans.release(attr.ino)

    def rename(self, ctx: Context, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> Steps:
        self._writable()
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT):
            raise FsError(errno.EINVAL, f"rename flags {flags:#x}")
        return self._rename(ctx, Rename(self._mount.volume, parent, name, new_parent, new_name, flags, False, ctx.uid, ctx.gid))

    def _rename(self, ctx: Context, command: Rename) -> Steps:
        mount = self._mount
        signal, source, target = Signal(), 0, 0
        try:
            if not mount.session.recovering:
                source = yield from self._ino_of(command.parent, command.name)
                target = yield from self._target_of(command)
                if target:  # replacing: old or new content, never an empty file
                    yield mount.buffered.flusher.flush(source)
                    mount.session.tell_data_lost(source)
                    yield from self._removals_of(target)
                    mount.session.removing[target] = signal
            elif mount.session.data_lost:
                yield from self._tell_data_lost(command)
            command.pinned = mount.pins(target)
            epoch = mount.session.opens.epoch
            named = (self._sure(command.parent, command.name, source), self._sure(command.new_parent, command.new_name, target))
            reply: Renamed = yield mount.propose(command, ctx.unique, *named)
            self._was(source, reply.attr)
            self._was(target, reply.replaced)
            if mount.session.opens.epoch != epoch and reply.replaced is not None:
                yield from self._lost_with_session(reply.replaced)
            self._renamed(command, reply, nothing=source > 0 and source == target)
        finally:
            self._removal_ended(target, signal)

    def _tell_data_lost(self, command: Rename) -> Steps:
        """Of a rename that a predecessor had begun, and of which data may have been put aside since."""
        try:
            source = yield from self._ino_of(command.parent, command.name)
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return  # it is done
        self._mount.session.tell_data_lost(source)

    def _target_of(self, command: Rename) -> Steps:
        if command.flags & RENAME_NOREPLACE:
            return 0
        try:
            target = yield from self._ino_of(command.new_parent, command.new_name)
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            return 0
        return target

    def _renamed(self, command: Rename, reply: Renamed, *, nothing: bool) -> None:
        """`nothing`: both names lead to one inode, so rename(2) does nothing."""
        names = self._mount.caches.names
        for attr in (reply.attr, reply.parent, reply.new_parent):
            names.put(attr)
        names.enter(command.new_parent, command.new_name, reply.attr.ino)
        if command.flags & RENAME_EXCHANGE and reply.replaced is not None:
            names.put(reply.replaced)
            names.enter(command.parent, command.name, reply.replaced.ino)
            return
        if not nothing and (command.parent, command.name) != (command.new_parent, command.new_name):
            names.enter(command.parent, command.name, ABSENT if reply.whiteout is None else reply.whiteout.ino)
        if reply.whiteout is not None:
            names.put(reply.whiteout)
        if reply.replaced is not None:
            self._removed(reply.replaced, command.pinned)

    # --- directories -----------------------------------------------------------------------------------------------------

    def opendir(self, ctx: Context, ino: int, flags: int) -> Opened | Steps:
        if ino in self._mount.session.removing:
            return self._opendir(ctx, ino, flags)
        return Opened(self._mount.session.opens.open(ino, flags | os.O_DIRECTORY, ctx.unique))

    def _opendir(self, ctx: Context, ino: int, flags: int) -> Steps:
        yield self._mount.session.removing.get(ino) or fired()
        yield from self._mount.attr_op(ino)
        return Opened(self._mount.session.opens.open(ino, flags | os.O_DIRECTORY, ctx.unique))

    def releasedir(self, ctx: Context, ino: int, fh: int) -> Steps | None:
        with self._listing:
            self._listings.pop(fh, None)
            self._newest.pop(fh, None)
        return self._data.release(ctx, ino, fh, 0, 0, 0)

    def readdir(self, ctx: Context, ino: int, fh: int, offset: int, plus: bool) -> Iterable[Dirent] | Steps:
        """A rename gives a name a new cookie behind all others: a listing that went on to those would not end where each is renamed."""
        if offset < FIRST_COOKIE:
            self._newest.pop(fh, None)
        elif offset >= self._newest.get(fh, offset + 1):
            return []
        listing = self._listings.get(fh)
        if listing is not None and self._mount.shared and not self._stands(ino, listing):
            listing = None
        # offset 0 on an open handle is rewinddir(3), which sees the directory as it is now
        if offset and listing is not None and offset >= listing.after and listing.page and (plus <= listing.plus):
            rest = [entry for entry in listing.page if entry.cookie > offset]
            if rest or listing.end:
                self._read_by(ino, fh)
                return self._shown(ino, fh, rest, plus)
        known = self._mount.caches.names.listing(ino, offset)
        if known is not None:
            self._newest.setdefault(fh, known[-1].cookie if known else offset)
            return self._shown(ino, fh, known, plus)
        return self._readdir(ino, fh, offset, plus)

    def _readdir(self, ino: int, fh: int, offset: int, plus: bool) -> Steps:
        mount = self._mount
        own = yield from mount.attr_op(ino)
        if offset < FIRST_COOKIE:
            directory = mount.caches.names.directory(ino)
            listing = Listing(directory)
        else:
            listing = self._listings.get(fh) or Listing(None)
            if listing.page and listing.page[-1].cookie != offset:
                listing.directory = None  # seekdir: what is between was not seen in this listing
        self._keep(fh, listing)
        mount.caches.cover(ino)
        ask = ReadDir(mount.volume, ino, max(offset, FIRST_COOKIE - 1), READDIR_ENTRIES_MAX, plus)
        dots = yield from self._dots(own, offset, plus)
        reply: Entries = yield mount.metadata.ask(ask)  # the last wait: the answer is remembered before a later one is seen
        listing.after, listing.end, listing.plus = offset, reply.end, plus
        listing.page = dots + reply.entries
        if offset < FIRST_COOKIE:
            listing.directory = mount.caches.names.directory(ino)  # under a lease that came with the answer
        self._remember(ino, listing, reply)
        if mount.caches.leases is not None:
            self._list(ino, offset, listing, mount.caches.leases.stamp(ino))
        self._read_by(ino, fh)
        if reply.newest:  # else a service of an older build
            self._newest.setdefault(fh, reply.newest)
        return self._shown(ino, fh, listing.page, plus)

    def _keep(self, fh: int, listing: Listing) -> None:
        """A program may hold very many directories open: those beyond the bound go on as after seekdir."""
        with self._listing:
            self._listings.pop(fh, None)
            self._listings[fh] = listing
            if len(self._listings) > LISTINGS_MAX:
                del self._listings[next(iter(self._listings))]

    def _read_by(self, ino: int, fh: int) -> None:
        attr = self._mount.caches.names.attr(ino)
        if attr is not None:
            self._mount.caches.atimes.accessed(self._mount.shown(attr), fh)

    def _dots(self, own: Attr, offset: int, plus: bool) -> Steps:
        dots = []
        if offset < DOT_COOKIE:
            dots.append(Dirent(b".", own.ino, stat.S_IFDIR, DOT_COOKIE))
        if offset < DOTDOT_COOKIE:
            parent = own.ino
            if own.ino != ROOT_INO and own.nlink:
                reply: Found = yield self._mount.metadata.ask(GetParent(self._mount.volume, own.ino))
                parent = reply.attr.ino
            dots.append(Dirent(b"..", parent, stat.S_IFDIR, DOTDOT_COOKIE))
        return dots

    def _remember(self, ino: int, listing: Listing, reply: Entries) -> None:
        names = self._mount.caches.names
        for entry in reply.entries:
            names.enter(ino, entry.name, entry.ino)
            if entry.attr is not None:
                names.put(entry.attr)
        if reply.end and listing.directory is not None and names.directory(ino) is listing.directory:
            listing.directory.complete = True

    def _list(self, ino: int, offset: int, listing: Listing, stamp: int) -> None:
        """A directory that was read from its beginning to its end under one stamp is remembered with its cookies."""
        goes_on = not offset or (stamp == listing.stamp and bool(listing.all) and listing.all[-1].cookie == offset)
        before = listing.all if offset and goes_on else []
        listing.stamp, listing.all = stamp, []
        if not stamp or not goes_on or len(before) > DIRECTORY_LISTED_ENTRIES_MAX:
            return
        listing.all = before + [Dirent(entry.name, entry.ino, entry.kind, entry.cookie) for entry in listing.page]
        if listing.end:
            self._mount.caches.names.keep_listing(ino, stamp, listing.all)

    def _stands(self, ino: int, listing: Listing) -> bool:
        """Its page is what the directory holds now."""
        leases = self._mount.caches.leases
        return leases is not None and listing.stamp > 0 and leases.stamp(ino) == listing.stamp

    def _shown(self, ino: int, fh: int, entries: list[Dirent], plus: bool) -> Iterable[Dirent]:
        """Entries as they are now: the page may be older than a removal or a change of attributes since."""
        newest = self._newest.get(fh)
        if newest is not None and entries and entries[-1].cookie > newest:
            entries = [entry for entry in entries if entry.cookie <= newest]
        if not plus:
            return entries
        return map(partial(self._fresh, ino), entries)  # no generator: that would be taken for Steps

    def _fresh(self, parent: int, entry: Dirent) -> Dirent:
        attr = self._mount.caches.names.attr(entry.ino) if entry.cookie >= FIRST_COOKIE else None
        if attr is not None and self._mount.caches.names.find(parent, entry.name) != entry.ino:
            attr = None
        return Dirent(entry.name, entry.ino, entry.kind, entry.cookie, self._mount.shown(attr) if attr is not None else None)


def fired() -> Signal:
    signal = Signal()
    signal.fire()
    return signal
