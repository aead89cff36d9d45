"""The position of a reader of the change stream is one small file beside the reader's output.

Why not only in the log (AdvanceReader)?  The reader's own position must become durable with its output, on its disk, for every page; an
entry for each page would make reading write.  So there are two positions: this file says where to go on, and the registered cursor in the
log, moved now and then and always behind the file, says what may be dropped.  The file is replaced by rename, so it is the old or the new
one after a crash; old means that entries are seen twice, never skipped.
"""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from awsomefsd.base import durable
from awsomefsd.base.codec import Sealed
from awsomefsd.base.errors import Refused


class Cursor(Struct, array_like=True, gc=False):
    """The stream's cluster, the reader's name, and the index of the last entry that is done."""

    cluster_uuid: str
    reader: str
    index: int


CURSOR = Sealed(Cursor)


class CursorFile:
    """The file of one reader.  Calls block on the disk."""

    def __init__(self, path: Path, cluster_uuid: str, reader: str) -> None:
        self._path = path
        self._cluster_uuid = cluster_uuid
        self._reader = reader

    def load(self) -> int | None:
        """Returns the index of the last entry that is done; None without a file.

        Raises Corrupt for a damaged file, Refused for the file of another stream or reader, and OSError.
        """
        try:
            raw = self._path.read_bytes()
        except FileNotFoundError:
            return None
        cursor = CURSOR.loads(raw)
        if (cursor.cluster_uuid, cursor.reader) != (self._cluster_uuid, self._reader):
            raise Refused(f"{self._path}: cursor of reader {cursor.reader!r} in cluster {cursor.cluster_uuid}, not of this one")
        index: int = cursor.index
        return index

    def save(self, index: int) -> None:
        """Replaces the position; it is durable when this returns.  Raises OSError."""
        durable.write_file(self._path, CURSOR.dumps(Cursor(self._cluster_uuid, self._reader, index)))
