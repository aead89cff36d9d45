"""A reader of the change stream: entries in order from its cursor, over restarts of either side.

    register (the log keeps what follows) → pages of entries → the reader's work, durable → `done` → now and then the log may drop

Entries arrive at least once: after a crash those since the last `done` come again.  The code that applies them must skip by their index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from awsomefsd.base.errors import Corrupt
from awsomefsd.base.types import HOST_UNIQUE
from awsomefsd.meta.api.commands import AdvanceReader, AnyCommand, Entry, RegisterReader, RemoveReader
from awsomefsd.meta.api.messages import Body, Changes, Follow, Propose, Reply
from awsomefsd.meta.server import change_stream
from awsomefsd.repl.cursor import CursorFile

RELEASE_ENTRIES = 1_000  # the registered cursor moves after so many
PAGE_ENTRIES = change_stream.CHANGES_PER_REPLY_MAX
_TIMEOUT_S = 60.0


class Asker(Protocol):
    """The call of MetaClient that a reader needs."""

    def call(self, body: Body, timeout_s: float | None) -> Reply:
        """Returns the reply to a request; waits up to `timeout_s`.  Raises as MetaClient.call."""


class ChangeReader:
    """A reader of the change stream.  One thread uses it; calls wait for the metadata, and raise as MetaClient.call."""

    def __init__(self, client: Asker, name: str, cursors: CursorFile, *, release_entries: int = RELEASE_ENTRIES) -> None:
        self._client = client
        self._name = name
        self._cursors = cursors
        self._release_entries = release_entries
        self.cursor = 0  # of the next page
        self._released = 0

    def open(self, start: int = 0) -> None:
        """Registers, and goes on at the position in the cursor file; a new reader begins after `start`.  Raises as CursorFile.load."""
        saved = self._cursors.load()
        self.cursor = self._released = start if saved is None else saved
        self._propose(RegisterReader(self._name, self.cursor))

    def read(self, wait_ms: int = 1_000, count: int = PAGE_ENTRIES) -> list[Entry]:
        """Returns the next entries, in order; [] if there is none within `wait_ms`.

        Raises StreamGap when entries after the cursor are gone, Corrupt for an answer that is none.
        """
        reply = self._client.call(Follow(self.cursor, count, wait_ms), _TIMEOUT_S + wait_ms / 1000)
        if not isinstance(reply, Changes):
            raise Corrupt(f"change stream: {type(reply).__name__} is not an answer to Follow")
        entries = change_stream.changes(reply, self.cursor)
        if entries:
            self.cursor = entries[-1].index
        return entries

    def follow(self) -> Iterator[Entry]:
        """Yields all entries, for ever; blocks between them.  Raises as `read`."""
        while True:
            yield from self.read()

    def done(self, index: int) -> None:
        """Saves that everything up to `index` is handled durably, and now and then lets the log drop it.  Raises OSError too."""
        self._cursors.save(index)
        if index - self._released >= self._release_entries:
            self.release(index)

    def release(self, index: int) -> None:
        """Lets the log drop entries up to `index`, which must be `done`."""
        self._propose(AdvanceReader(self._name, index))
        self._released = index

    def remove(self) -> None:
        """Unregisters this reader for good: the log keeps nothing for it any more."""
        self._propose(RemoveReader(self._name))

    def _propose(self, command: AnyCommand) -> None:
        self._client.call(Propose(HOST_UNIQUE, 0, 0, [], command), _TIMEOUT_S)
