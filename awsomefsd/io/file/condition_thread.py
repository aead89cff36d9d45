"""A thread that waits on a condition for work, and ends when it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable


class ConditionThread:
    """`run` waits on `changed` for work, and returns once it sees `stopping`, which `changed` guards."""

    def __init__(self, name: str, run: Callable[[], None]) -> None:
        self.changed = threading.Condition()
        self.stopping = False
        self._thread = threading.Thread(target=run, name=name, daemon=True)

    def start(self) -> None:
        """Begins to run; once."""
        self._thread.start()

    def stop(self) -> None:
        """Wakes the thread and waits for its end.  Not called by the thread itself."""
        with self.changed:
            self.stopping = True
            self.changed.notify()
        self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive()
