"""Operations on one thing exclude each other: a second one waits a while, then answers ABORTED, and the caller tries again.

Only the operations under way are kept; nothing of it matters after a restart.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from awsomefsd.csi.errors import CsiError

WAIT_S = 10.0


class VolumeLocks:
    """Locks by name.  Any thread may take them."""

    def __init__(self, wait_s: float = WAIT_S) -> None:
        self._wait_s = wait_s
        self._changed = threading.Condition()
        self._held: set[str] = set()

    @contextmanager
    def alone(self, *names: str) -> Iterator[None]:
        """Holds all the names inside the `with`, taken together; blocks up to `wait_s`, then raises CsiError ABORTED.

        Callers that take names one after the other do so in one order: volume before target.
        """
        deadline = time.monotonic() + self._wait_s
        with self._changed:
            while taken := self._held.intersection(names):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise CsiError("ABORTED", f"another operation on {sorted(taken)[0]} is running; try again")
            self._held.update(names)
        try:
            yield
        finally:
            with self._changed:
                self._held.difference_update(names)
                self._changed.notify_all()
