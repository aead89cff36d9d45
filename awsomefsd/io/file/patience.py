"""Writes to a pool wait while too few mirrors can be reached: for ever, or as long as a session lives without its leader.

The bytes are kept in either case, and written when mirrors are back; with `on-lease-loss=error` a program is told ETIMEDOUT meanwhile.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from awsomefsd.base.errors import Error, FsError, Unavailable
from awsomefsd.base.limits import NS_PER_MS


class Patience:
    """Any thread.  `limit_ms`: after which whoever waits is told; None: never."""

    def __init__(self, limit_ms: int | None, monotonic_ns: Callable[[], int] = time.monotonic_ns) -> None:
        self._limit_ms, self._monotonic_ns = limit_ms, monotonic_ns
        self._since_ns: int | None = None  # the first failure of those that go on

    def told(self, error: BaseException) -> Error | None:
        """Takes up that something could not be written; returns what programs are told of it.  None: they wait, and it is tried again."""
        if not isinstance(error, OSError | Unavailable):  # not for want of mirrors
            return error if isinstance(error, Error) else FsError(errno.EIO, str(error))
        now_ns, since_ns = self._monotonic_ns(), self._since_ns
        if since_ns is None:
            since_ns = self._since_ns = now_ns
        if self._limit_ms is None or now_ns - since_ns < self._limit_ms * NS_PER_MS:
            return None
        return FsError(errno.ETIMEDOUT, f"too few mirrors can be reached: {error}")

    def written(self) -> None:
        """Takes up that something was written."""
        self._since_ns = None
