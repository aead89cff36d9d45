"""The first handler of a recall: what is buffered of a file is committed, and nothing more is buffered of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.failpoints import hit
from awsomefsd.base.types import LEASE_NONE
from awsomefsd.io.file.file_data import FileState, FileTable
from awsomefsd.io.file.flusher import Flusher
from awsomefsd.meta.client.recalls import Done

Progress = Callable[[int, int], None]


class RecallFlush:
    """`progress(ino, batches)` tells the leader that the flush goes on: only a growing number moves the deadline of a recall."""

    def __init__(self, files: FileTable, flusher: Flusher, progress: Progress) -> None:
        self._files = files
        self._flusher = flusher
        self._progress = progress

    def handle(self, ino: int, mode: int, done: Done) -> None:
        """Nothing more is buffered; when what is has been committed and is clean, `done`.  Does not block."""
        state = self._files.get(ino)
        if state is None:
            done()
            return
        state.let_go()
        _Flush(self._files, self._flusher, self._progress, state, mode, done).start()


class _Flush:
    """One recall: wait until nothing of the file is dirty; meanwhile tell the leader of the progress of the whole flush."""

    def __init__(self, files: FileTable, flusher: Flusher, progress: Progress, state: FileState, mode: int, done: Done) -> None:
        self._files = files
        self._flusher = flusher
        self._tell = progress
        self._state = state
        self._mode = mode
        self._done = done
        self._ended = False

    def start(self) -> None:
        hit("recall.flush.before")
        if self._state.dirty:
            self._watch()
        self._flusher.drained(self._state.ino).start(self._drained)

    def _watch(self) -> None:
        self._flusher.room().start(self._progress)

    def _progress(self, _value: Any, _error: BaseException | None) -> None:
        if not self._ended:
            self._tell(self._state.ino, self._flusher.batches)
            self._watch()

    def _drained(self, _value: Any, _error: BaseException | None) -> None:
        self._ended = True
        hit("recall.flush.after")
        if self._mode == LEASE_NONE:
            self._files.forget(self._state)
        self._done()
