"""The second step of a repair goes a volume at a time: names, link counts, attributes, pins, locks.

Rows are believed in this order: inodes (they have the attributes), dentries, cookies (each can be made from the other).  An inode that no
name leads to goes to `lost+found` in the root of the volume as `#INODE`; a file whose last name was removed on purpose (nlink 0) and that
no session has open any more is removed, as it would have been.  An inode that is gone is made again, readable by root alone, if names,
bytes or children of it are left.
"""

from __future__ import annotations

import stat
from collections import Counter

from msgspec.structs import replace

from awsomefsd.base import consistency
from awsomefsd.base.errors import FsError
from awsomefsd.base.types import FIRST_COOKIE, ROOT_INO, Lock
from awsomefsd.meta.api import acl
from awsomefsd.meta.check.repair_txn import RepairTxn
from awsomefsd.meta.machine import locks
from awsomefsd.meta.machine.inodes import DIRECTORY_BYTES_SHOWN
from awsomefsd.meta.state import keys, rows

LOST_FOUND = b"lost+found"
Name = tuple[int, bytes]


class NameRepair:
    """The repair of one volume's names."""

    def __init__(self, repairs: RepairTxn, volume: rows.VolumeRow) -> None:
        self.repairs = repairs
        self.volume = volume
        self.number = number = volume.volume
        self.inodes: dict[int, rows.InodeRow] = {
            keys.first_u64(key): row for key, row in repairs.scan(keys.kind_range(number, keys.INODE), rows.INODE)
        }
        self.dentries: dict[Name, rows.DentryRow] = {
            (keys.first_u64(key), key[keys.NAME_AT :]): row for key, row in repairs.scan(keys.kind_range(number, keys.DENTRY), rows.DENTRY)
        }
        sessions = repairs.sessions()
        self.live = {session for session, row in sessions.items() if not row.ended}
        self.pinning = self.live | repairs.ending()
        self.pinned: set[int] = set()
        self.reaping = {
            ino
            for kind, where, ino, _ in (keys.reap_of(key) for key, _ in repairs.overlay.scan(*keys.kind_range(0, keys.REAP)))
            if kind == keys.REAP_INODE and where == number
        }

    def where(self, ino: int, name: bytes | None = None) -> str:
        at = f"volume {self.number} inode {ino}"
        return at if name is None else f"{at} name {name.decode(errors='backslashreplace')}"

    def repair(self) -> None:
        self._counter()
        self._from_cookies()
        self._gone_inodes()
        self._dentries()
        self._pins()
        self._loops()
        self._nameless()
        self._cookies()
        self._xattrs()
        self._counts()
        self._locks()
        self._leases()
        for ino, row in self.inodes.items():
            self.repairs.put(keys.inode(self.number, ino), row, rows.INODE)
        self.repairs.put(keys.volume(self.number), self.volume, rows.VOLUME)

    def _counter(self) -> None:
        named = [row.ino for row in self.dentries.values()] + [parent for parent, _ in self.dentries]
        self.repairs.correct(
            f"volume {self.number}", self.volume, next_ino=max([self.volume.next_ino - 1, ROOT_INO, *self.inodes, *named]) + 1
        )

    # --- inodes and dentries that are gone ---------------------------------------------------------------------------------------
    def _from_cookies(self) -> None:
        """Makes dentries that are gone from the cookies that still name their inodes."""
        names = Counter(row.ino for row in self.dentries.values())
        for key, row in self.repairs.scan(keys.kind_range(self.number, keys.COOKIE), rows.COOKIE):
            parent, cookie = keys.first_u64(key), keys.last_u64(key)
            child, directory = self.inodes.get(row.ino), self.inodes.get(parent)
            if (parent, row.name) in self.dentries or child is None or directory is None or not stat.S_ISDIR(directory.mode):
                continue
            if (names[row.ino] if stat.S_ISDIR(child.mode) else names[row.ino] - child.nlink + 1) < 1 and child.nlink:
                self.dentries[parent, row.name] = rows.DentryRow(row.ino, row.kind, cookie, child.stamp, child.site, row.chapter)
                names[row.ino] += 1
                self.repairs.note(self.where(parent, row.name), "the name is taken from its cookie")

    def _gone_inodes(self) -> None:
        owned = {keys.first_u64(key) for key, _ in self.repairs.overlay.scan(*keys.kind_range(self.number, keys.EXTENT))}
        owned |= {keys.first_u64(key) for key, _ in self.repairs.overlay.scan(*keys.kind_range(self.number, keys.INLINE))}
        damaged = {ino for volume, ino in self.repairs.damaged_inodes if volume == self.number}
        kinds = {row.ino: row.kind for row in self.dentries.values()}
        parents = {parent for parent, _ in self.dentries}
        root = self.inodes.get(ROOT_INO)
        if root is None or not stat.S_ISDIR(root.mode):
            self._make(ROOT_INO, stat.S_IFDIR | 0o755, "the root directory is made again; its owner and mode are lost")
        for ino in sorted((owned | damaged | parents) - self.inodes.keys() - self.reaping):
            kind = stat.S_IFDIR if ino in parents else kinds.get(ino, stat.S_IFREG)
            if kind == stat.S_IFDIR:
                self._make(ino, kind | 0o700, "the directory is made again; its owner, mode and times are lost")
            elif kind == stat.S_IFREG:
                self._make(ino, kind | 0o600, "the file is made again; its owner, mode, times and what is behind its last bytes are lost")

    def _make(self, ino: int, mode: int, what: str) -> None:
        now = self.repairs.hints.time_ns
        cluster = self.repairs.cluster()
        made = rows.InodeRow(mode, 1, 0, 0, 0, 0, 0, now, now, now, now, cluster.last_stamp, cluster.site)
        if stat.S_ISDIR(mode):
            made.size, made.parent = DIRECTORY_BYTES_SHOWN, ROOT_INO
        else:
            self._data_of(ino, made)
        self.inodes[ino] = made
        self.repairs.note(self.where(ino), what, loss=True)

    def _data_of(self, ino: int, made: rows.InodeRow) -> None:
        for key, row in self.repairs.scan(keys.extents_range(self.number, ino), rows.EXTENT):
            made.extents += 1
            made.stored_bytes += row.length
            made.size = max(made.size, keys.last_u64(key) + row.length if row.segment or row.lost else 0)
        inline: rows.InlineRow | None = self.repairs.get(keys.inline(self.number, ino), rows.INLINE)
        if not made.extents:
            made.inline = True
            if inline is not None:
                made.size = made.stored_bytes = len(inline.data)
        made.trims = sum(1 for _ in self.repairs.overlay.scan(*keys.trims_range(self.number, ino)))

    def _remove(self, name: Name, what: str, *, loss: bool = False) -> None:
        del self.dentries[name]
        self.repairs.overlay.delete(keys.dentry(self.number, *name))
        self.repairs.note(self.where(*name), what, loss=loss)

    def _dentries(self) -> None:
        """Removes names without inode or directory and second names of directories; corrects wrong kinds."""
        held: dict[int, Name] = {}
        for (parent, name), row in sorted(self.dentries.items()):
            child = self.inodes.get(row.ino)
            if child is None:
                self._remove((parent, name), f"removed: inode {row.ino} does not exist, and no bytes of it either", loss=True)
                continue
            if not stat.S_ISDIR(self.inodes[parent].mode):
                self._remove((parent, name), f"removed: {parent} is no directory")
                continue
            if row.kind != stat.S_IFMT(child.mode):
                self.repairs.correct(self.where(parent, name), row, kind=stat.S_IFMT(child.mode))
            if not stat.S_ISDIR(child.mode):
                continue
            if row.ino == ROOT_INO:
                self._remove((parent, name), "removed: a name of the root directory")
            elif (other := held.get(row.ino)) is None:
                held[row.ino] = (parent, name)
            elif child.parent == parent and child.parent != other[0]:
                self._remove(other, "removed: a second name of a directory")
                held[row.ino] = (parent, name)
            else:
                self._remove((parent, name), "removed: a second name of a directory")

    def _pins(self) -> None:
        named = {row.ino for row in self.dentries.values()}
        for key, _ in self.repairs.overlay.scan(*keys.kind_range(self.number, keys.ORPHAN)):
            ino, session = keys.first_u64(key), keys.last_u64(key)
            if ino in self.inodes and ino not in named and ino != ROOT_INO and session in self.pinning:
                self.pinned.add(ino)
                continue
            self.repairs.overlay.delete(key)
            self.repairs.note(self.where(ino), f"the pin by session {session} ends")

    # --- the tree ----------------------------------------------------------------------------------------------------------------
    def _holders(self) -> dict[int, Name]:
        """Returns directory inode -> its one name."""
        return {row.ino: name for name, row in self.dentries.items() if row.kind == stat.S_IFDIR}

    def _loops(self) -> None:
        holders = self._holders()
        sound = {ROOT_INO}
        for start in sorted(holders):
            way: list[int] = []
            ino = start
            while ino not in sound and ino in holders and ino not in way:
                way.append(ino)
                ino = holders[ino][0]
            if ino in way:
                cut = min(way[way.index(ino) :])
                self._remove(holders.pop(cut), f"removed: directory {cut} contained itself")
            sound.update(way)

    def _nameless(self) -> None:
        named = {row.ino for row in self.dentries.values()}
        for ino, row in sorted(self.inodes.items()):
            if ino in named or ino == ROOT_INO or ino in self.pinned:
                continue
            if row.nlink == 0 and not stat.S_ISDIR(row.mode):
                self._end(ino, row)
            else:
                self._found(ino, row)

    def _end(self, ino: int, row: rows.InodeRow) -> None:
        """Removes an inode that had lost its last name and that no session has open, as unlink(2) would have done."""
        overlay = self.repairs.overlay
        for span in (keys.xattrs_range(self.number, ino), keys.trims_range(self.number, ino)):
            for key, _ in overlay.scan(*span):
                overlay.delete(key)
        for key in (keys.inline(self.number, ino), keys.locks(self.number, ino), keys.lease(self.number, ino)):
            overlay.delete(key)
        if any(True for _ in overlay.scan(*keys.extents_range(self.number, ino))):
            self.repairs.put(keys.reap(keys.REAP_INODE, self.number, ino, 0), rows.ReapRow(), rows.REAP)
            self.reaping.add(ino)
        del self.inodes[ino]
        overlay.delete(keys.inode(self.number, ino))
        self.repairs.note(self.where(ino), "removed: it had no name, and nobody had it open")

    def _found(self, ino: int, row: rows.InodeRow) -> None:
        directory = self._lost_found()
        self._add(directory, b"#%d" % ino, ino)
        row.parent = directory if stat.S_ISDIR(row.mode) else 0
        self.repairs.note(self.where(ino), f"had no name: it is lost+found/#{ino} of volume {self.volume.name} now")

    def _lost_found(self) -> int:
        names = (LOST_FOUND if not count else b"%s.%d" % (LOST_FOUND, count) for count in range(1 << 20))
        for name in names:
            row = self.dentries.get((ROOT_INO, name))
            if row is not None and row.kind == stat.S_IFDIR:
                return row.ino
            if row is None:
                break
        ino = self.volume.next_ino
        self.volume.next_ino += 1
        now, root = self.repairs.hints.time_ns, self.inodes[ROOT_INO]
        self.inodes[ino] = rows.InodeRow(
            stat.S_IFDIR | 0o700, 2, 0, 0, 0, DIRECTORY_BYTES_SHOWN, 0, now, now, now, now, root.stamp, root.site, parent=ROOT_INO
        )
        self._add(ROOT_INO, name, ino)
        return ino

    def _add(self, parent: int, name: bytes, ino: int) -> None:
        directory, row = self.inodes[parent], self.inodes[ino]
        cookie, directory.next_cookie = directory.next_cookie, directory.next_cookie + 1
        self.dentries[parent, name] = rows.DentryRow(ino, stat.S_IFMT(row.mode), cookie, row.stamp, row.site)

    def _cookies(self) -> None:
        used: dict[int, set[int]] = {}
        again: list[Name] = []
        for (parent, name), row in sorted(self.dentries.items()):
            taken = used.setdefault(parent, set())
            if row.cookie < FIRST_COOKIE or row.cookie in taken:
                again.append((parent, name))
            else:
                taken.add(row.cookie)
        for parent, taken in used.items():
            after = max([FIRST_COOKIE - 1, *taken]) + 1
            if self.inodes[parent].next_cookie < after:
                self.repairs.correct(self.where(parent), self.inodes[parent], next_cookie=after)
        for parent, name in again:
            directory = self.inodes[parent]
            self.repairs.correct(self.where(parent, name), self.dentries[parent, name], cookie=directory.next_cookie)
            directory.next_cookie += 1
        for key, row in self.dentries.items():
            self.repairs.put(keys.dentry(self.number, *key), row, rows.DENTRY)
        expected = {
            keys.cookie(self.number, parent, row.cookie): rows.COOKIE.dumps(rows.CookieRow(row.ino, row.kind, name, row.chapter))
            for (parent, name), row in self.dentries.items()
        }
        self.repairs.index(keys.kind_range(self.number, keys.COOKIE), expected, f"volume {self.number} cookies")

    # --- attributes --------------------------------------------------------------------------------------------------------------
    def _counts(self) -> None:
        names = Counter(row.ino for row in self.dentries.values())
        entries = Counter(parent for parent, _ in self.dentries)
        folders = Counter(parent for (parent, _), row in self.dentries.items() if row.kind == stat.S_IFDIR)
        holders = self._holders()
        for ino, row in self.inodes.items():
            where = self.where(ino)
            if stat.S_ISDIR(row.mode):
                linked = ino in holders or ino == ROOT_INO
                parent = holders[ino][0] if ino in holders else row.parent
                self.repairs.correct(where, row, entries=entries[ino], nlink=2 + folders[ino] if linked else 0, parent=parent)
            else:
                self.repairs.correct(where, row, nlink=names[ino])
                if stat.S_ISLNK(row.mode):
                    self.repairs.correct(where, row, size=len(row.target))
            if names[ino] and row.linkable:
                row.linkable = False
        self.repairs.correct(f"volume {self.number}", self.volume, used_inodes=len(self.inodes))

    def _xattrs(self) -> None:
        counts: Counter[int] = Counter()
        held: Counter[int] = Counter()
        said: dict[int, int] = {}
        for key, row in self.repairs.scan(keys.kind_range(self.number, keys.XATTR), rows.XATTR):
            ino, name = keys.first_u64(key), key[keys.NAME_AT :]
            value = bytes(row.value) if ino in self.inodes else None
            if value is not None and name in acl.NAMES:
                value = self._acl(ino, name, value)
            if value is None:
                self.repairs.overlay.delete(key)
                self.repairs.note(
                    self.where(ino, name),
                    "the attribute is removed: no inode, or an ACL that is invalid, out of place, or says no more than the mode",
                    loss=True,
                )
                continue
            self.repairs.put(key, rows.XattrRow(value), rows.XATTR)
            counts[ino] += 1
            held[ino] += len(name) + len(value)
            if name == consistency.XATTR:
                said[ino] = consistency.of_value(value)
        for ino, row in self.inodes.items():
            self.repairs.correct(self.where(ino), row, xattrs=counts[ino], xattr_bytes=held[ino], consistency=said.get(ino, 0))

    def _acl(self, ino: int, name: bytes, value: bytes) -> bytes | None:
        """Returns the ACL that agrees with the mode, or None if there should be none."""
        mode = self.inodes[ino].mode
        try:
            entries = acl.parse(value)
        except FsError:
            return None
        if name == acl.DEFAULT:
            return value if stat.S_ISDIR(mode) else None
        if acl.is_minimal(entries):
            return None
        if acl.mode_bits(entries) == mode & 0o777:
            return value
        self.repairs.note(self.where(ino, name), f"the ACL follows the mode {mode:o}")
        return acl.pack(acl.with_mode(entries, mode))

    # --- what sessions hold --------------------------------------------------------------------------------------------------------
    def _locks(self) -> None:
        for key, row in self.repairs.scan(keys.kind_range(self.number, keys.LOCKS), rows.LOCKS):
            ino = keys.first_u64(key)
            kept: list[Lock] = []
            for lock in row.locks if ino in self.inodes else []:
                if lock.session in self.pinning and locks.conflict(kept, lock) is None:
                    kept.append(lock)
            if kept == row.locks and kept:
                continue
            self.repairs.note(self.where(ino), f"{len(row.locks) - len(kept)} locks end")
            if kept:
                self.repairs.put(key, rows.LocksRow(kept), rows.LOCKS)
            else:
                self.repairs.overlay.delete(key)

    def _leases(self) -> None:
        for key, row in self.repairs.scan(keys.kind_range(self.number, keys.LEASE), rows.LEASE):
            ino = keys.first_u64(key)
            if ino not in self.inodes:
                self.repairs.overlay.delete(key)
                self.repairs.note(self.where(ino), "its write lease ends: it does not exist")
            elif row.session and row.session not in self.pinning:
                self.repairs.put(key, replace(row, session=0), rows.LEASE)
                self.repairs.note(self.where(ino), f"the write lease of session {row.session} ends")
