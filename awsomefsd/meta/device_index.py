"""What the metadata thread and the writer of checkpoints tell each other: two numbers and a wish, each written by one side only.

`durable`: up to which entry a checkpoint on a device and its tail hold the log.  A freed segment is leased again only when that holds its
freeing: a node that is rebuilt from the device alone must not find foreign bytes in places that its state still names.  UNKNOWN until the
writer has looked (nothing that was freed is safe); OFF where there are no checkpoints (everything is).
`hold`: while `holding`, the journal keeps what comes after it, for the tail; not without bound, since a device that fails must not fill
the journal's disk: the next checkpoint then begins anew.
"""

from __future__ import annotations

import threading

from awsomefsd.limits import CHECKPOINT_HOLD_ENTRIES_MAX

OFF, UNKNOWN = -1, 0


class DeviceIndex:
    """Plain attributes: one that is read a moment late is only lower than it could be."""

    def __init__(self, durable: int = OFF) -> None:
        self.durable = durable
        self.hold = 0
        self.holding = False
        self.wanted = threading.Event()

    def safe_index(self, applied: int) -> int:
        """What was freed by later entries is not leased again.  Somebody wants segments, so the tail is written at once if it is behind."""
        durable = self.durable
        if durable == OFF:
            return applied
        if durable < applied:
            self.wanted.set()
        return durable

    def kept_from(self, applied: int) -> int:
        """The journal may drop entries up to this one."""
        if not self.holding or applied - self.hold > CHECKPOINT_HOLD_ENTRIES_MAX:
            return applied
        return self.hold
