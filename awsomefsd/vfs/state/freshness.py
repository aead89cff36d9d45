"""The freshness that answers about an inode must have: what the inode says (an extended attribute), else what the mount was asked for.

Attributes bring it along.  For names of a directory it has to be known when a LOOKUP is answered, which says nothing of the directory: so
it is remembered of directories, as old as their attributes may be, and asked for before a name is told where it is not known.  Who does
not know is strict.
"""

from __future__ import annotations

import stat
import time

from awsomefsd.base.consistency import CLOSE_TO_OPEN, STRICT, is_bounded, is_loose
from awsomefsd.base.limits import CLOSE_TO_OPEN_ATTR_MS, DIRECTORY_MODES_MAX, NS_PER_MS
from awsomefsd.base.types import Attr


def lasting_ns(mode: int) -> int:
    """The time (ns) for which the kernel may use what is true now.  An eighth of the bound is for an answer's way to the kernel."""
    return mode * NS_PER_MS * 7 // 8 if is_bounded(mode) else CLOSE_TO_OPEN_ATTR_MS * NS_PER_MS


class Modes:
    """Single dict operations, as in Names."""

    def __init__(self, default: int = STRICT) -> None:
        self.default = default
        self.asks_leases = not is_bounded(default)  # else nobody's change ever waits for what this mount only reads
        self._directories: dict[int, tuple[int, float]] = {}  # inode → mode, until when (monotonic) that holds

    def of(self, attr: Attr) -> int:
        return attr.consistency or self.default

    def is_loose_file(self, attr: Attr) -> bool:
        return is_loose(self.of(attr)) and stat.S_ISREG(attr.mode)

    def attr_ns(self, attr: Attr) -> int:
        """The time (ns) for which GETATTR's answer may be used; 0: as a strict one."""
        mode = self.of(attr)
        return lasting_ns(mode) if is_bounded(mode) or (mode == CLOSE_TO_OPEN and stat.S_ISREG(attr.mode)) else 0

    def note(self, attr: Attr) -> None:
        """Attributes that are true now."""
        if (self.asks_leases and not attr.consistency and not self._directories) or not stat.S_ISDIR(attr.mode):
            return
        mode = self.of(attr)
        if not is_bounded(mode) and self.asks_leases:
            self._directories.pop(attr.ino, None)
            return
        bound_ms = mode if is_bounded(mode) else self.default
        self._directories[attr.ino] = (mode, time.monotonic() + bound_ms / 1_000)
        if len(self._directories) > DIRECTORY_MODES_MAX:
            for ino in list(self._directories)[: DIRECTORY_MODES_MAX // 16]:
                self._directories.pop(ino, None)

    def unknown(self, directory: int) -> bool:
        """Says whether its attributes have to be asked for before its names are told."""
        return not self.asks_leases and self._known(directory) is None

    def name_ns(self, directory: int) -> int:
        """The time (ns) for which a name of it may be used; 0: as a strict one."""
        mode = self._known(directory)
        return lasting_ns(mode) if mode is not None and is_bounded(mode) else 0

    def _known(self, directory: int) -> int | None:
        known = self._directories.get(directory)
        return known[0] if known is not None and time.monotonic() < known[1] else None
