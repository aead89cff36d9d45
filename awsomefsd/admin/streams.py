"""The change stream for followers of the admin API: from an index, or as a named reader that goes on where it stood.

A named reader's position is a cursor file of its own (repl/cursor.py) in state_dir/readers; the log keeps what it has not passed.  Its
position moves when its client has asked for more than the page: gRPC pulls the next message once the last is on its way, so a client
that dies may see a page again and never misses one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from awsomefsd.base.errors import FsError, NotFound
from awsomefsd.base.identity import make_directory
from awsomefsd.meta.api.commands import Entry
from awsomefsd.meta.api.messages import Changes, Follow
from awsomefsd.meta.server import change_stream
from awsomefsd.node.catalog import check_name
from awsomefsd.repl.cursor import CursorFile
from awsomefsd.repl.reader import ChangeReader

PAGE_ENTRIES = 256
WAIT_MS = 1_000  # how late a follower notices that its client went away


class _Asker:
    """A repl.reader.Asker over the daemon's own connection to the metadata service."""

    def __init__(self, call: Callable[[Any], Any]) -> None:
        self._call = call

    def call(self, body: Any, timeout_s: float | None) -> Any:
        return self._call(body)


class _Unnamed:
    """Reads like a ChangeReader, but its position is not kept."""

    def __init__(self, page: Callable[[int, int], Changes], start: int) -> None:
        self._page = page
        self._cursor = start

    def read(self, wait_ms: int) -> list[Entry]:
        entries = change_stream.changes(self._page(self._cursor, wait_ms), self._cursor)
        self._cursor = entries[-1].index if entries else self._cursor
        return entries

    def done(self, index: int) -> None:
        """Keeps nothing."""


class Streams:
    """The change stream of this daemon.  Thread-safe: every follower has a reader of its own."""

    def __init__(self, directory: Path, cluster_uuid: str, call: Callable[[Any], Any]) -> None:
        self._directory = directory
        self._cluster_uuid = cluster_uuid
        self._call = call

    def follow(self, after: int, reader: str, *, for_ever: bool, going: Callable[[], bool]) -> Iterator[Entry]:
        """Yields the entries after index `after` (0: from the oldest that is kept) while `going()`.

        It ends at the newest entry of now unless `for_ever`.  A `reader` with a name goes on where it stood.  Blocks up to WAIT_MS for each
        page.  Raises StreamGap, and as ChangeReader.
        """
        now = self._page(after, 0)
        source = self._named(reader, after or now.first_kept - 1) if reader else _Unnamed(self._page, after or now.first_kept - 1)
        while going():
            entries = source.read(WAIT_MS if for_ever else 0)
            if not for_ever:
                entries = [entry for entry in entries if entry.index <= now.last]
            for entry in entries:
                yield entry
                if not going():
                    return
            if entries:
                source.done(entries[-1].index)
            elif not for_ever:
                return

    def remove(self, reader: str) -> None:
        """Removes a named reader and its cursor file.  Raises NotFound, ConfigError for a bad name, and as the metadata call."""
        try:
            self._reader(reader).remove()
        except FsError as err:
            raise NotFound(f"there is no reader {reader!r} of the change stream") if err.errno == errno.ENOENT else err from err
        self._path(reader).unlink(missing_ok=True)

    def _named(self, name: str, start: int) -> ChangeReader:
        reader = self._reader(name)
        reader.open(start)
        return reader

    def _reader(self, name: str) -> ChangeReader:
        check_name(name, "reader")
        make_directory(self._directory, 0o700)
        return ChangeReader(_Asker(self._call), name, CursorFile(self._path(name), self._cluster_uuid, name))

    def _path(self, name: str) -> Path:
        return self._directory / f"{name}.cursor"

    def _page(self, after: int, wait_ms: int) -> Changes:
        reply = self._call(Follow(after, PAGE_ENTRIES, wait_ms))
        assert isinstance(reply, Changes)
        return reply
