"""A reader of the change stream: entries in order from its cursor, over restarts of either side.

    register (the log keeps what follows) → pages of entries → the reader's work, durable → `done` → now and then the log may drop

At least once: after a crash the entries since the last `done` come again.  Whoever applies them makes that harmless by their index.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from awsomefsd.errors import Corrupt
from awsomefsd.meta import stream
from awsomefsd.meta.commands import AdvanceReader, AnyCommand, Entry, RegisterReader, RemoveReader
from awsomefsd.meta.messages import Body, Changes, Follow, Propose, Reply
from awsomefsd.repl.cursor import CursorFile
from awsomefsd.types import HOST_UNIQUE

RELEASE_ENTRIES = 1_000  # the registered cursor moves after so many
PAGE_ENTRIES = stream.CHANGES_PER_REPLY_MAX
_TIMEOUT_S = 60.0


class Asker(Protocol):
    """meta.client.MetaClient of mount 0."""

    def call(self, body: Body, timeout_s: float | None) -> Reply: ...


class ChangeReader:
    """Used by one thread."""

    def __init__(self, client: Asker, name: str, cursors: CursorFile, *, release_entries: int = RELEASE_ENTRIES) -> None:
        self._client = client
        self._name = name
        self._cursors = cursors
        self._release_entries = release_entries
        self.cursor = 0  # of the next page
        self._released = 0

    def open(self, start: int = 0) -> None:
        """Register, and go on where the cursor file says; a new reader begins after `start`."""
        saved = self._cursors.load()
        self.cursor = self._released = start if saved is None else saved
        self._propose(RegisterReader(self._name, self.cursor))

    def read(self, wait_ms: int = 1_000, count: int = PAGE_ENTRIES) -> list[Entry]:
        """The next entries; [] if there is none within `wait_ms`.  Raises StreamGap when entries behind the cursor are gone."""
        reply = self._client.call(Follow(self.cursor, count, wait_ms), _TIMEOUT_S + wait_ms / 1000)
        if not isinstance(reply, Changes):
            raise Corrupt(f"change stream: {type(reply).__name__} is no answer to Follow")
        entries = stream.changes(reply, self.cursor)
        if entries:
            self.cursor = entries[-1].index
        return entries

    def follow(self) -> Iterator[Entry]:
        """All entries, for ever."""
        while True:
            yield from self.read()

    def done(self, index: int) -> None:
        """Everything up to `index` is dealt with, durably."""
        self._cursors.save(index)
        if index - self._released >= self._release_entries:
            self.release(index)

    def release(self, index: int) -> None:
        """The log may drop entries up to `index`, which must be `done`."""
        self._propose(AdvanceReader(self._name, index))
        self._released = index

    def remove(self) -> None:
        """This reader will not come back; the log keeps nothing for it."""
        self._propose(RemoveReader(self._name))

    def _propose(self, command: AnyCommand) -> None:
        self._client.call(Propose(HOST_UNIQUE, 0, 0, [], command), _TIMEOUT_S)
