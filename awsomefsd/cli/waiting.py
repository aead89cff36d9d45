"""A command that takes long says so: from its third second on, by one line on the terminal that goes away at the end."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType

from awsomefsd.base.log import printable
from awsomefsd.cli.output import counted

SILENT_S = 2.0
PAUSE_S = 1.0
_CLEAR = "\r\x1b[K"


class LongWork:
    """Shows `text` and the seconds on standard error after SILENT_S, if that is a terminal; leaves nothing there.  A context manager.

    `text` may be changed while it is shown.  A thread of its own writes it: the caller may be in a system call that takes long.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show, name="progress", daemon=True)

    def __enter__(self) -> LongWork:
        if sys.stderr.isatty():
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _show(self) -> None:
        began = time.monotonic()
        if self._ended.wait(SILENT_S):
            return
        while True:
            sys.stderr.write(f"{_CLEAR}{printable(self.text)[:60]}, {counted(int(time.monotonic() - began), 'second')}")
            sys.stderr.flush()
            if self._ended.wait(PAUSE_S):
                break
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()
