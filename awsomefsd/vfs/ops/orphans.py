"""Inodes without names that are open no more: they are given up, and nobody waits for that.

On a volume that several nodes share, a file that loses its last name on one node may be open on another.  Nobody knows, so the machine
keeps it for every such session, and each gives up what it does not have open: at once where it removed the name itself, else when it asks
(`release_unopened`).  An open asks for the attributes, and answers arrive in the order of the log: one that was answered before the removal
is in the table of open files before the answer that tells of the removal is looked at.
"""

from __future__ import annotations

import errno
import threading
from functools import partial
from itertools import islice
from typing import Any, Protocol

from awsomefsd.base.errors import FsError
from awsomefsd.base.limits import ORPHANS_PER_ENTRY_MAX, ORPHANS_PER_LOOK_MAX
from awsomefsd.base.wait import Steps
from awsomefsd.meta.api.commands import ReleaseOrphan
from awsomefsd.meta.api.messages import GetAttr, GetOrphans, Inodes
from awsomefsd.vfs.state.mount_state import MountState


class Orphans(Protocol):
    """Any thread may call these; they do not block."""

    def release(self, ino: int) -> None:
        """Last close of an inode without names: its data is not needed any more."""

    def tell(self, ino: int) -> None:
        """The machine is told that this session does not need the inode."""


class WholeOrphans:
    """Orphans of a volume that this mount has for itself."""

    def __init__(self, mount: MountState) -> None:
        self._mount = mount

    def release(self, ino: int) -> None:
        mount = self._mount
        mount.buffered.release_space(mount.buffered.files.drop(ino))
        mount.session.opens.orphaned(ino)
        self.tell(ino)

    def tell(self, ino: int) -> None:
        mount = self._mount
        unique = mount.uniques.next_background_unique()
        mount.metadata.propose(ReleaseOrphan(mount.volume, [ino]), unique).start(partial(_told, mount, unique, [ino]))


class SharedOrphans:
    """Orphans of a volume that several nodes share."""

    def __init__(self, mount: MountState) -> None:
        self._mount = mount
        self._orphans: dict[int, None] = {}  # to be given up
        self._taking = threading.Lock()
        self._left_behind: dict[int, None] = {}  # closed here, and of which data is buffered

    def release(self, ino: int) -> None:
        """Another node may have it open, and has to see what was written here: that stays buffered until the inode is gone."""
        mount = self._mount
        state = mount.buffered.files.get(ino)
        if state is None or not state.dirty:
            mount.buffered.release_space(mount.buffered.files.drop(ino))
        else:
            self._left_behind[ino] = None
        mount.session.opens.orphaned(ino)
        self.tell(ino)

    def tell(self, ino: int) -> None:
        """Tells it with others, and soon: each entry costs a journal sync of a majority."""
        with self._taking:
            self._orphans[ino] = None
            many = len(self._orphans) >= ORPHANS_PER_ENTRY_MAX
        if many:
            self.tell_gathered()

    def release_unopened(self, session: int) -> Steps:
        """Give up what is kept for this session and is not open here."""
        mount = self._mount
        reply: Inodes = yield mount.metadata.ask(GetOrphans(session))
        for ino in reply.inos:
            if not mount.session.opens.count(ino) and ino not in mount.session.linking:
                self.tell(ino)
        self.tell_gathered()
        yield from self._drop_left_behind()

    def _drop_left_behind(self) -> Steps:
        """Drops what is buffered of inodes that are gone."""
        mount = self._mount
        for ino in list(islice(self._left_behind, ORPHANS_PER_LOOK_MAX)):
            self._left_behind.pop(ino, None)
            state = mount.buffered.files.get(ino)
            if state is None or not state.dirty:
                continue
            try:
                yield mount.metadata.ask(GetAttr(mount.volume, ino))
                self._left_behind[ino] = None
            except FsError as err:
                if err.errno == errno.ENOENT:
                    mount.caches.names.drop(ino)  # before its data: they would show a size without it
                    mount.buffered.release_space(mount.buffered.files.drop(ino))

    def tell_gathered(self) -> None:
        """Tells of those that were gathered; not of what was given a name and opened meanwhile, it may have lost that again."""
        mount = self._mount
        inos = self._take()
        while inos:
            unique = mount.uniques.next_background_unique()
            mount.metadata.propose(ReleaseOrphan(mount.volume, inos), unique).start(partial(_told, mount, unique, inos))
            inos = self._take()

    def _take(self) -> list[int]:
        mount = self._mount
        with self._taking:
            taken = list(islice(self._orphans, ORPHANS_PER_ENTRY_MAX))
            for ino in taken:
                del self._orphans[ino]
        found = [ino for ino in taken if not mount.session.opens.count(ino) and ino not in mount.session.linking]
        for ino in set(taken).difference(found):
            mount.session.opens.orphan_ended(ino)
        return found if found or not taken else self._take()


def _told(mount: MountState, unique: int, inos: list[int], _value: Any, error: BaseException | None) -> None:
    mount.metadata.ack(unique)
    if error is None or isinstance(error, FsError):  # ESTALE: they ended with their session
        for ino in inos:
            mount.session.opens.orphan_ended(ino)
