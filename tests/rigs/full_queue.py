"""A unix socket whose listener takes nobody, and whose queue is full, as behind a process that was stopped long ago."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from awsomefsd.base.sockets import connect_unix, listen_unix


@contextmanager
def full_queue(path: Path) -> Iterator[None]:
    with listen_unix(path, 0o600) as listener, ExitStack() as waiting:
        listener.listen(1)
        try:
            while True:
                waiting.enter_context(connect_unix(path, 1))
        except BlockingIOError:
            yield
