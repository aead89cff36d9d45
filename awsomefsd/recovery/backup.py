"""A backup of the metadata: one file that names its cluster and its last entry, and proves that it is whole.

    magic "AFSMETA1", then frames: length u32 LE | crc32c u32 LE | body
    first the header (msgpack of BackupHeader), then pieces of the state store (zlib), then one of length 0, and the SHA-256 of all before

The state is a compacted copy of the store as of one commit, so it is consistent, and mounts go on meanwhile.  A commit comes up to a second
after its entries, and on a node that follows after the leader's; the copy is made again until it holds everything that was acknowledged
before the backup was asked for.  So any node that carries the metadata makes one by itself; to send the leader's through others was
rejected: a second way for the same bytes, and work for the node that has most of it.

It holds what the state holds, the cluster's CA key among it: keep it like a private key.  `dump` (dump.py) leaves such rows out.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
from crc32c import crc32c
from msgspec import Struct

from awsomefsd.base import durable
from awsomefsd.base.clock import wall_ns
from awsomefsd.base.errors import Corrupt, FormatTooNew, Overloaded, Unavailable
from awsomefsd.base.identity import Node, make_directory
from awsomefsd.base.limits import BACKUP_PIECE_BYTES, BACKUP_WAIT_S
from awsomefsd.meta.api.messages import Follow, GetVolumes
from awsomefsd.meta.machine.machine import Machine
from awsomefsd.meta.replica.store import Store

MAGIC = b"AFSMETA1"
FORMAT_VERSION = 1
_FRAME = struct.Struct("<II")
_POLL_S = 0.1
_BEHIND_ALL = 1 << 62  # no entry has this index: an answer without entries, at once


class BackupHeader(Struct):
    """The head of a backup: its cluster, node and last entry.  `term` is the newest the node knew; a new journal begins above it."""

    version: int
    cluster: str
    node: str
    site: int
    index: int
    term: int
    time_ns: int
    store_bytes: int


def _frame(body: bytes) -> bytes:
    return _FRAME.pack(len(body), crc32c(body)) + body


def pieces(header: BackupHeader, store: BinaryIO) -> Iterator[bytes]:
    """Yields the bytes of the file, in pieces of some hundred KiB."""
    digest = hashlib.sha256()

    def counted(piece: bytes) -> bytes:
        digest.update(piece)
        return piece

    yield counted(MAGIC + _frame(msgspec.msgpack.encode(header)))
    while raw := store.read(BACKUP_PIECE_BYTES):
        yield counted(_frame(zlib.compress(raw, 1)))
    yield counted(_FRAME.pack(0, 0))
    yield digest.digest()


class _Checked:
    """Reads frames of a backup and keeps the digest of what was read."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._digest = hashlib.sha256()

    def exactly(self, size: int) -> bytes:
        data = self._file.read(size)
        if len(data) != size:
            raise Corrupt(f"{self._path} ends early: the backup is incomplete; use another one")
        self._digest.update(data)
        return data

    def frame(self) -> bytes:
        """Returns the body of the next frame; b"" for the last one.  Raises Corrupt."""
        length, checksum = _FRAME.unpack(self.exactly(_FRAME.size))
        if length > 2 * BACKUP_PIECE_BYTES:
            raise Corrupt(f"{self._path} is damaged: a piece of {length} bytes")
        body = self.exactly(length)
        if crc32c(body) != checksum:
            raise Corrupt(f"{self._path} is damaged: a wrong checksum")
        return body

    def end(self) -> None:
        wanted = self._digest.digest()
        if self._file.read() != wanted:
            raise Corrupt(f"{self._path} is damaged at its end, or other data follows it")


def read_backup(path: Path, target: Path | None = None) -> BackupHeader:
    """Checks all of a backup and returns its header; with `target`, writes the store's file there, synced.  Blocks.

    Raises Corrupt, FormatTooNew, OSError.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise Corrupt(f"{path} is not a backup of awsomefsd's metadata")
        file.seek(0)
        checked = _Checked(file, path)
        checked.exactly(len(MAGIC))
        header = _header(checked.frame(), path)
        size = 0
        with os.fdopen(durable.create(target), "wb") if target is not None else open(os.devnull, "wb") as out:
            while body := checked.frame():
                size += out.write(_inflate(body, path))
            out.flush()
            if target is not None:
                os.fsync(out.fileno())
        checked.end()
    if size != header.store_bytes:
        raise Corrupt(f"{path} holds {size} bytes of state where its header says {header.store_bytes}")
    return header


def _header(body: bytes, path: Path) -> BackupHeader:
    try:
        header = msgspec.msgpack.decode(body, type=BackupHeader)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise Corrupt(f"{path} is damaged: {err}") from err
    if header.version > FORMAT_VERSION:
        raise FormatTooNew(f"{path} has format {header.version}, this build knows {FORMAT_VERSION}; restore it with a newer awsomefsd")
    return header


def _inflate(body: bytes, path: Path) -> bytes:
    try:
        engine = zlib.decompressobj()
        raw = engine.decompress(body, BACKUP_PIECE_BYTES)
    except zlib.error as err:
        raise Corrupt(f"{path} is damaged: {err}") from err
    if not engine.eof:
        raise Corrupt(f"{path} is damaged: a piece that does not end")
    return raw


class Backups:
    """The backups of a running node, one at a time.

    `figures` returns those of this node's service; `ask` asks the leader; `copy_store` makes a copy of the last commit of this node's
    state, or raises Unavailable.
    """

    def __init__(
        self,
        directory: Path,
        identity: Node,
        figures: Callable[[], dict[str, Any]],
        ask: Callable[[Any], Any],
        copy_store: Callable[[Path], None],
    ) -> None:
        self._directory = directory
        self._identity = identity
        self._figures = figures
        self._ask = ask
        self._copy_store = copy_store
        self._lock = threading.Lock()
        shutil.rmtree(directory, ignore_errors=True)  # of a daemon that was killed

    def pieces(self) -> Iterator[bytes]:
        """Makes a backup and yields its bytes.  Any thread; blocks, BACKUP_WAIT_S at most for the state to catch up with the leader's.

        Raises Overloaded while another one is made, Unavailable if this node has no state or the state stands still.
        """
        if not self._lock.acquire(blocking=False):
            raise Overloaded("another backup is being made on this node; wait for it")
        try:
            make_directory(self._directory, 0o700)
            header = self._copy()
            with (self._directory / "data.mdb").open("rb") as store:
                yield from pieces(header, store)
        finally:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._lock.release()

    def _copy(self) -> BackupHeader:
        wanted = newest(self._ask)
        end = time.monotonic() + BACKUP_WAIT_S
        while True:
            self._copy_store(self._directory / "data.mdb")
            index, site = applied_of(self._directory)
            if index >= wanted:
                break
            if time.monotonic() > end:
                raise Unavailable(
                    f"this node's state stands at entry {index}, but entry {wanted} was acknowledged; try again, "
                    "or run the command on the leader"
                )
            time.sleep(_POLL_S)
        term = int(self._figures()["term"])  # asked last: no entry of the copy is of a later one
        size = (self._directory / "data.mdb").stat().st_size
        return BackupHeader(FORMAT_VERSION, self._identity.cluster, self._identity.node, site, index, term, wall_ns(), size)


def newest(ask: Callable[[Any], Any]) -> int:
    """Returns the index of the last entry that the leader has applied.

    The question before it is answered only by a leader that a majority follows.
    """
    ask(GetVolumes())
    return int(ask(Follow(_BEHIND_ALL, 1, 0)).last)


def applied_of(directory: Path) -> tuple[int, int]:
    """Returns the index of the entry that a store ends with, and its site."""
    store = Store.open(directory, readonly=True)
    try:
        machine = Machine(store)
        return machine.applied_index, machine.site
    finally:
        store.close()
