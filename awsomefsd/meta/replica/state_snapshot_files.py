"""A voter's state as files: copies that are sent to others, a copy that is received, and the store that it becomes.

    store/            the store in use
    snapshots/NAME    copies to send; NAME ends with the hash of the file
    incoming          what has been received of a copy
    incoming.store/   the same, complete, being made this node's own
    store.ready/      the same, durable and whole: it *is* the store from the rename on, wherever a crash comes

Crash windows.  Before the rename of incoming.store to store.ready: the old store, and the rest is removed at the start.  After it:
`open_store` removes the old store and renames store.ready to store.  The journal follows: the store's identity says which entry it was
taken at, and a journal that does not have that entry is reset to it (open_voter.py), so that a crash between the two is only a later reset.

A copy is of the last commit, made on another thread; which entry that is, is read from the copy (note RAFT_NOTE), since a commit may come
between the wish and the copy.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from xxhash import xxh3_128

from awsomefsd.base.durable import sync_directory
from awsomefsd.base.errors import Corrupt
from awsomefsd.base.failpoints import hit
from awsomefsd.base.limits import MIB, STORE_MAP_BYTES_MIN
from awsomefsd.meta.raft.messages import StateSnapshot, StateSnapshotChunk
from awsomefsd.meta.replica.overlay_store import OverlayStore
from awsomefsd.meta.replica.state_store import StateStore
from awsomefsd.meta.replica.store import Store
from awsomefsd.meta.voter.ports import RAFT_NOTE, unpack_note

ASIDE_MAX = 3
_STORE, _READY, _STAGED, _INCOMING, _OUTGOING = "store", "store.ready", "incoming.store", "incoming", "snapshots"


def hash_of(path: Path) -> str:
    """Hash of a file's bytes, as hexadecimal text."""
    hasher = xxh3_128()
    with path.open("rb") as file:
        while piece := file.read(MIB):
            hasher.update(piece)
    return hasher.hexdigest()


class StateSnapshotFiles:
    """Implements StateFiles and ChunkFiles, on the metadata thread.

    `beside` starts work on another thread and returns a function that waits for it (disk.Disk.beside).
    """

    def __init__(
        self, directory: Path, beside: Callable[[Callable[[], None]], Callable[[], None]], map_bytes_min: int = STORE_MAP_BYTES_MIN
    ) -> None:
        self._directory = directory
        self._beside = beside
        self._map_bytes_min = map_bytes_min
        self._fd = -1  # of the copy that is received
        self._made: list[StateSnapshot | BaseException] = []
        self._copying: Callable[[], None] | None = None
        self._remove(_STAGED, _INCOMING, _OUTGOING)

    def _remove(self, *names: str) -> None:
        for name in names:
            path = self._directory / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    # --- the store --------------------------------------------------------------------------------------------------------
    def open_store(self) -> OverlayStore:
        """The store in use; ends an exchange that a crash interrupted.  Raises as Store.open."""
        ready = self._directory / _READY
        if ready.is_dir():
            hit("snapshot.replace.before")
            self._remove(_STORE)
            hit("snapshot.replace.removed")
            ready.rename(self._directory / _STORE)
            sync_directory(self._directory)
            hit("snapshot.replace.after")
        path = self._directory / _STORE
        path.mkdir(mode=0o700, exist_ok=True)
        return OverlayStore.open(path, map_bytes_min=self._map_bytes_min, digesting=True)

    # --- sending ------------------------------------------------------------------------------------------------------------
    def start_copy(self, store: StateStore) -> None:
        """Begin a copy of the last commit on another thread, one at a time; `copied` says when it is done."""
        if self._copying is not None:
            return
        self._made.clear()
        self._copying = self._beside(lambda: self._copy(store))

    def _copy(self, store: StateStore) -> None:
        directory = self._directory / _OUTGOING
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            scratch = directory / "scratch"
            scratch.mkdir(mode=0o700, exist_ok=True)
            hit("snapshot.copy.before")
            store.copy_to(scratch / "data.mdb")
            hit("snapshot.copy.after")
            copy = Store.open(scratch, readonly=True)
            try:
                note = unpack_note(copy.note(RAFT_NOTE))
            finally:
                copy.close()
            name = f"{note.term}-{note.index}-{hash_of(scratch / 'data.mdb')}"
            (scratch / "data.mdb").rename(directory / name)
            size = (directory / name).stat().st_size
            self._made.append(StateSnapshot(note.index, note.term, note.membership, note.membership_index, size, name))
        except BaseException as err:
            self._made.append(err)

    def copied(self) -> StateSnapshot | None:
        """The copy that `start_copy` began, once it is done, and once; otherwise None.  Raises what went wrong with it."""
        if self._copying is None or not self._made:
            return None
        self._copying()
        self._copying = None
        made = self._made.pop()
        if isinstance(made, BaseException):
            raise made
        return made

    def end_copy(self) -> None:
        """Wait for a copy under way; its result is forgotten."""
        if self._copying is not None:
            self._copying()
            self._copying = None
            self._made.clear()

    def read(self, name: str, offset: int, length: int) -> bytes | None:
        """None if there is no such copy (any more)."""
        try:
            with (self._directory / _OUTGOING / name).open("rb") as file:
                return os.pread(file.fileno(), length, offset)
        except FileNotFoundError:
            return None

    def drop(self, name: str) -> None:
        """Remove a copy; harmless if it is gone."""
        (self._directory / _OUTGOING / name).unlink(missing_ok=True)

    # --- receiving ----------------------------------------------------------------------------------------------------------
    def write(self, chunk: StateSnapshotChunk) -> None:
        """Write a received chunk into its place; offset 0 begins a new file.  Raises OSError."""
        if chunk.offset == 0:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = os.open(self._directory / _INCOMING, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        view, offset = memoryview(chunk.data), chunk.offset
        while view:
            written = os.pwrite(self._fd, view, offset)
            view, offset = view[written:], offset + written

    def stage(self, meta: StateSnapshot, cluster: str, node: str, incarnation: bytes) -> None:
        """Make the received file this node's store, from the next `open_store` on, crash or not.  Raises Corrupt, or as Store.open."""
        hit("snapshot.sync.before")
        os.fsync(self._fd)
        hit("snapshot.sync.after")
        os.close(self._fd)
        self._fd = -1
        incoming, staged = self._directory / _INCOMING, self._directory / _STAGED
        try:
            self._check(incoming, meta)
            self._remove(_STAGED)
            staged.mkdir(mode=0o700)
            incoming.rename(staged / "data.mdb")
            store = OverlayStore.open(staged, map_bytes_min=self._map_bytes_min, digesting=True)
            try:
                note = unpack_note(store.note(RAFT_NOTE))
                if (note.index, note.term) != (meta.index, meta.term):
                    raise Corrupt(f"state snapshot {meta.name}: is of entry {note.index}, not {meta.index}")
                store.adopt(cluster, node, incarnation, meta.index, meta.term)
            finally:
                store.close()
            (staged / "lock.mdb").unlink(missing_ok=True)
            sync_directory(staged)
        except BaseException:
            self._remove(_INCOMING, _STAGED)
            raise
        hit("snapshot.ready.before")
        staged.rename(self._directory / _READY)
        sync_directory(self._directory)
        hit("snapshot.ready.after")

    def _check(self, incoming: Path, meta: StateSnapshot) -> None:
        if incoming.stat().st_size != meta.size or not meta.name.endswith("-" + hash_of(incoming)):
            raise Corrupt(f"state snapshot {meta.name}: the bytes received are not the ones that were sent")

    def close(self) -> None:
        self.end_copy()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def set_aside(directory: Path, names: tuple[str, ...] = ("journal", _STORE)) -> None:
    """Move journal and store out of use, for people to look at; the next start makes new ones.  The newest ASIDE_MAX of each are kept.

    The journal goes first: a store without its journal is set aside at the start, so a crash in between ends in the same place.
    """
    shutil.rmtree(directory / _READY, ignore_errors=True)
    for name in names:
        path = directory / name
        if not path.exists():
            continue
        kept = sorted(int(old.suffix[1:]) for old in directory.glob(f"{name}.aside.[0-9]*"))
        for number in kept[: len(kept) + 1 - ASIDE_MAX]:
            shutil.rmtree(directory / f"{name}.aside.{number}")
        path.rename(directory / f"{name}.aside.{kept[-1] + 1 if kept else 1}")
        sync_directory(directory)
