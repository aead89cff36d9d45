"""Waits that begin with something of our own before a request is sent."""

from __future__ import annotations

from collections.abc import Callable

from awsomefsd.base.wait import Resume, Wait, was_repeated


class Sending:
    """Sends a request when it is called, and knows then whether it was sent again (wait.was_repeated)."""

    __slots__ = ("_send", "_wait")

    def __init__(self, send: Callable[[], Wait]) -> None:
        self._send = send
        self._wait: Wait | None = None

    def __call__(self) -> Wait:
        self._wait = self._send()
        return self._wait

    @property
    def repeated(self) -> bool:
        return self._wait is not None and was_repeated(self._wait)


class Started:
    """A Wait that `begin(resume)` starts.  `sending`: of the request that it may send."""

    __slots__ = ("_begin", "_sending")

    def __init__(self, begin: Callable[[Resume], None], sending: Sending | None = None) -> None:
        self._begin = begin
        self._sending = sending

    @property
    def repeated(self) -> bool:
        return self._sending is not None and self._sending.repeated

    def start(self, resume: Resume) -> None:
        self._begin(resume)
