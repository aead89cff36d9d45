"""fsck of one volume's names: the tree, both directions of names and cookies, link counts, attributes, orphans, locks."""

from __future__ import annotations

import stat
from collections import Counter

from awsomefsd.base import consistency
from awsomefsd.base.errors import FsError
from awsomefsd.base.types import FIRST_COOKIE, ROOT_INO
from awsomefsd.meta.api import acl
from awsomefsd.meta.machine import locks
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.findings import Examination


class Tree:
    """The check of one volume's names; `check` adds its faults to the examination."""

    def __init__(self, exam: Examination, volume: rows.VolumeRow, live_sessions: set[int], ending_sessions: set[int]) -> None:
        self.exam = exam
        self.volume = volume
        self.number = volume.volume
        self.pinning_sessions = live_sessions | ending_sessions  # those that Reap still ends may have locks and write leases too
        self.inodes: dict[int, rows.InodeRow] = {}
        self.names: Counter[int] = Counter()
        self.entries: Counter[int] = Counter()
        self.subdirectories: dict[int, list[int]] = {}

    def where(self, ino: int, name: bytes | None = None) -> str:
        at = f"volume {self.number} inode {ino}"
        return at if name is None else f"{at} name {name!r}"

    def check(self) -> dict[int, rows.InodeRow]:
        """Checks all names; returns all inodes of the volume, for the checks that follow."""
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.INODE), rows.INODE):
            self.inodes[keys.first_u64(key)] = row
        self._dentries()
        self._cookies()
        pinned = self._orphans()
        for ino, row in self.inodes.items():
            self._inode(ino, row, ino in pinned)
        self._reach()
        self._xattrs()
        self._locks()
        self._leases()
        self.exam.equal("used-inodes", f"volume {self.number}", self.volume.used_inodes, len(self.inodes))
        return self.inodes

    # --- names ----------------------------------------------------------------------------------------------------------
    def _dentries(self) -> None:
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.DENTRY), rows.DENTRY):
            parent, name = keys.first_u64(key), key[keys.NAME_AT :]
            where = self.where(parent, name)
            self.entries[parent] += 1
            self.names[row.ino] += 1
            child, directory = self.inodes.get(row.ino), self.inodes.get(parent)
            if child is None:
                self.exam.fault("dentry-without-inode", where, f"inode {row.ino} does not exist")
            elif stat.S_IFMT(child.mode) != row.kind:
                self.exam.fault("wrong-kind", where, f"dentry says {row.kind:o}, inode {row.ino} has mode {child.mode:o}")
            if row.kind == stat.S_IFDIR:
                self.subdirectories.setdefault(parent, []).append(row.ino)
                if child is not None and child.parent != parent:
                    self.exam.fault("wrong-parent", where, f"inode {row.ino} has parent {child.parent}")
            if directory is None or not stat.S_ISDIR(directory.mode):
                self.exam.fault("dentry-without-inode", where, f"its directory {parent} does not exist")
            elif not FIRST_COOKIE <= row.cookie < directory.next_cookie:
                self.exam.fault("cookie-counter", where, f"cookie {row.cookie}, the directory's next is {directory.next_cookie}")
            self._cookie_of(where, parent, name, row)

    def _cookie_of(self, where: str, parent: int, name: bytes, row: rows.DentryRow) -> None:
        cookie = self.exam.get(keys.cookie(self.number, parent, row.cookie), rows.COOKIE)
        if cookie is None:
            self.exam.fault("dentry-without-cookie", where, f"no cookie {row.cookie}")
        elif (cookie.name, cookie.ino, cookie.kind) != (name, row.ino, row.kind):
            self.exam.fault("cookie-mismatch", where, f"cookie {row.cookie} names {cookie.name!r}, inode {cookie.ino}")

    def _cookies(self) -> None:
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.COOKIE), rows.COOKIE):
            parent, number = keys.first_u64(key), keys.last_u64(key)
            dentry = self.exam.get(keys.dentry(self.number, parent, row.name), rows.DENTRY)
            if dentry is None or dentry.cookie != number:
                self.exam.fault("cookie-without-dentry", self.where(parent, row.name), f"cookie {number} is not its dentry's")

    # --- inodes ---------------------------------------------------------------------------------------------------------
    def _inode(self, ino: int, row: rows.InodeRow, pinned: bool) -> None:
        where, names = self.where(ino), self.names[ino]
        if ino >= self.volume.next_ino:
            self.exam.fault("ino-counter", where, f"the volume's next inode is {self.volume.next_ino}")
        if not names and not pinned and ino != ROOT_INO:
            self.exam.fault("inode-without-dentry", where, f"no name, no pin, nlink {row.nlink}")
        if stat.S_ISDIR(row.mode):
            self._directory(ino, row, where, names)
        elif row.nlink != names:
            self.exam.fault("wrong-nlink", where, f"nlink {row.nlink}, names {names}")
        if stat.S_ISLNK(row.mode) and row.size != len(row.target):
            self.exam.fault("symlink-size", where, f"size {row.size}, target of {len(row.target)} bytes")

    def _directory(self, ino: int, row: rows.InodeRow, where: str, names: int) -> None:
        self.exam.equal("wrong-entries", where, row.entries, self.entries[ino])
        linked = names > 0 or ino == ROOT_INO
        expected = 2 + len(self.subdirectories.get(ino, ())) if linked else 0
        if row.nlink != expected:
            self.exam.fault("wrong-directory-nlink", where, f"nlink {row.nlink}, expected {expected}")
        if names > 1 or (names and ino == ROOT_INO):
            self.exam.fault("directory-with-two-names", where, f"{names} names")

    def _reach(self) -> None:
        """Adds a fault for every directory with a name that does not hang, in the end, from the root: no loops, no islands."""
        if ROOT_INO not in self.inodes:
            self.exam.fault("root-missing", f"volume {self.number}", "inode 1 does not exist")
        reached = {ROOT_INO}
        todo = [ROOT_INO]
        while todo:
            for ino in self.subdirectories.get(todo.pop(), ()):
                if ino not in reached:
                    reached.add(ino)
                    todo.append(ino)
        for ino, row in self.inodes.items():
            if stat.S_ISDIR(row.mode) and ino not in reached and self.names[ino]:
                self.exam.fault("directory-unreachable", self.where(ino), f"not below the root (parent {row.parent})")

    def _xattrs(self) -> None:
        counts: Counter[int] = Counter()
        held: Counter[int] = Counter()
        said: dict[int, int] = {}
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.XATTR), rows.XATTR):
            ino = keys.first_u64(key)
            counts[ino] += 1
            held[ino] += len(key) - keys.NAME_AT + len(row.value)
            if key[keys.NAME_AT :] == consistency.XATTR:
                said[ino] = consistency.of_value(bytes(row.value))
            if ino not in self.inodes:
                self.exam.fault("xattr-without-inode", self.where(ino, key[keys.NAME_AT :]), "the inode does not exist")
            elif key[keys.NAME_AT :] in acl.NAMES:
                self._acl(ino, key[keys.NAME_AT :], bytes(row.value))
        for ino, inode in self.inodes.items():
            self.exam.equal("xattr-count", self.where(ino), inode.xattrs, counts[ino])
            self.exam.equal("xattr-count", self.where(ino) + " bytes", inode.xattr_bytes, held[ino])
            self.exam.equal("xattr-count", self.where(ino) + " consistency", inode.consistency, said.get(ino, consistency.UNSAID))

    def _acl(self, ino: int, name: bytes, value: bytes) -> None:
        inode = self.inodes[ino]
        try:
            entries = acl.parse(value)
        except FsError as err:
            self.exam.fault("acl-invalid", self.where(ino, name), str(err))
            return
        if name == acl.ACCESS and (acl.is_minimal(entries) or acl.mode_bits(entries) != inode.mode & 0o777):
            self.exam.fault("acl-mode", self.where(ino, name), f"mode {inode.mode:o}, ACL {entries}")
        if name == acl.DEFAULT and not stat.S_ISDIR(inode.mode):
            self.exam.fault("acl-invalid", self.where(ino, name), "a default ACL on an inode that is not a directory")

    # --- what sessions hold ---------------------------------------------------------------------------------------------
    def _orphans(self) -> set[int]:
        pinned: set[int] = set()
        for key, _ in self.exam.rows(keys.kind_range(self.number, keys.ORPHAN), rows.MARKER):
            ino, session = keys.first_u64(key), keys.last_u64(key)
            pinned.add(ino)
            where, row = self.where(ino), self.inodes.get(ino)
            if row is None:
                self.exam.fault("orphan-without-inode", where, f"pinned by session {session}")
            elif row.nlink:
                self.exam.fault("orphan-with-name", where, f"nlink {row.nlink}, pinned by session {session}")
            if session not in self.pinning_sessions:
                self.exam.fault("orphan-of-ended-session", where, f"session {session} has ended")
            if self.exam.txn.get(keys.pinner(session, self.number, ino)) is None:
                self.exam.fault("orphan-index", where, f"session {session} does not know of its pin")
        return pinned

    def _leases(self) -> None:
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.LEASE), rows.LEASE):
            ino = keys.first_u64(key)
            if ino not in self.inodes:
                self.exam.fault("write-lease", self.where(ino), "the inode does not exist")
            if row.session and row.session not in self.pinning_sessions:
                self.exam.fault("write-lease", self.where(ino), f"session {row.session} has ended")
            elif row.session and self.exam.txn.get(keys.leaser(row.session, self.number, ino)) is None:
                self.exam.fault("write-lease", self.where(ino), f"session {row.session} does not know of its lease")

    def _locks(self) -> None:
        for key, row in self.exam.rows(keys.kind_range(self.number, keys.LOCKS), rows.LOCKS):
            ino = keys.first_u64(key)
            where = self.where(ino)
            if ino not in self.inodes:
                self.exam.fault("lock-without-inode", where, f"{len(row.locks)} locks")
            for session in sorted({lock.session for lock in row.locks}):
                if session not in self.pinning_sessions:
                    self.exam.fault("lock-of-ended-session", where, f"session {session} has ended")
                if self.exam.txn.get(keys.locker(session, self.number, ino)) is None:
                    self.exam.fault("lock-index", where, f"session {session} does not know of its locks")
            for at, lock in enumerate(row.locks):
                other = locks.conflict(row.locks[:at], lock)
                if other is not None:
                    self.exam.fault("lock-conflict", where, f"{lock} and {other}")
