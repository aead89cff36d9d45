"""The transaction of a repair only notes changes, and its readers pass over rows that do not decode.

The state below stays as it is: the overlay has the rows as they would be, so a dry run is the same code as a repair, and the checks run on
its outcome before anything is written.  Every step reads rows, decides, and writes a whole row; a row that becomes what it is already is no
change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from msgspec import Struct

from awsomefsd.base.codec import Sealed
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.meta.machine.device_numbers import index_of
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.txn import Txn


class Action(Struct, frozen=True):
    """One repair of one object, in words.  `loss`: some of the user's data or names could not be saved."""

    where: str
    what: str
    loss: bool = False


class DeviceFacts(Struct, frozen=True):
    """A device of this cluster as its superblock describes it."""

    uuid: str
    bytes: int
    segment_bytes: int
    segments: int
    first_segment_offset: int


class FrameFacts(Struct, frozen=True):
    """The header of a frame as it was read from a device."""

    volume: int
    ino: int
    file_offset: int
    segment: int
    incarnation: int
    sequence: int
    logical_bytes: int
    header_bytes: int


def no_frame(_uuid: str, _byte_offset: int) -> FrameFacts | None:
    return None


class Hints(Struct):
    """The facts that a repair knows beside the rows."""

    time_ns: int
    devices: list[DeviceFacts] = []
    frame: Callable[[str, int], FrameFacts | None] = no_frame  # of a device, at an offset
    cluster_copy: bytes = b""  # the cluster row as it was noted beside the rows at the last commit


class Overlay:
    """Implements Txn over another one that stays as it is."""

    def __init__(self, below: Txn) -> None:
        self._below = below
        self.edits: dict[bytes, bytes | None] = {}

    def get(self, key: bytes) -> bytes | None:
        return self.edits[key] if key in self.edits else self._below.get(key)

    def put(self, key: bytes, value: bytes) -> None:
        self._note(key, value)

    def delete(self, key: bytes) -> bool:
        there = self.get(key) is not None
        self._note(key, None)
        return there

    def _note(self, key: bytes, value: bytes | None) -> None:
        if self._below.get(key) == value:
            self.edits.pop(key, None)
        else:
            self.edits[key] = value

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Yields the pairs as they are now; edits made meanwhile are not seen."""
        edits = sorted((key, value) for key, value in self.edits.items() if start <= key < end)
        at = 0
        for key, raw in self._below.scan(start, end):
            while at < len(edits) and edits[at][0] < key:
                if (value := edits[at][1]) is not None:
                    yield edits[at][0], value
                at += 1
            if at < len(edits) and edits[at][0] == key:
                if (value := edits[at][1]) is not None:
                    yield key, value
                at += 1
            else:
                yield key, raw
        for key, value in edits[at:]:
            if value is not None:
                yield key, value

    def last(self, start: bytes, end: bytes) -> tuple[bytes, bytes] | None:
        return max(self.scan(start, end), default=None)


class RepairTxn:
    """The rows of a repair: it reads and writes them over an overlay, and lists in `actions` what was done."""

    def __init__(self, txn: Txn, hints: Hints) -> None:
        self.overlay = Overlay(txn)
        self.hints = hints
        self.actions: list[Action] = []
        self.damaged_inodes: set[tuple[int, int]] = set()  # (volume, ino) whose row did not decode

    def note(self, where: str, what: str, *, loss: bool = False) -> None:
        self.actions.append(Action(where, what, loss))

    def decode(self, raw: bytes | None, codec: Sealed) -> Any:
        """Returns the row, or None if there is none or it does not decode."""
        try:
            return None if raw is None else codec.loads(raw)
        except (Corrupt, FormatTooNew, UnicodeDecodeError):
            return None

    def get(self, key: bytes, codec: Sealed) -> Any:
        return self.decode(self.overlay.get(key), codec)

    def scan(self, span: keys.Range, codec: Sealed) -> list[tuple[bytes, Any]]:
        """Returns (key, row) of the rows that decode; a list, because the caller changes rows meanwhile."""
        found = ((key, self.decode(raw, codec)) for key, raw in self.overlay.scan(*span))
        return [(key, row) for key, row in found if row is not None]

    def put(self, key: bytes, row: Any, codec: Sealed) -> bool:
        """Writes a row.  Returns True if that changes anything."""
        raw = codec.dumps(row)
        if self.overlay.get(key) == raw:
            return False
        self.overlay.put(key, raw)
        return True

    def correct(self, where: str, row: Any, **values: Any) -> bool:
        """Sets fields of a row and notes those that were different; the caller writes the row.  Returns True if any was."""
        changes = [f"{name} {getattr(row, name)} becomes {value}" for name, value in values.items() if getattr(row, name) != value]
        for name, value in values.items():
            setattr(row, name, value)
        if changes:
            self.note(where, ", ".join(changes))
        return bool(changes)

    def index(self, span: keys.Range, expected: dict[bytes, bytes], what: str) -> None:
        """Makes a range of rows that follow from others hold exactly `expected`."""
        found = dict(self.overlay.scan(*span))
        wrong = [key for key in found if key not in expected]
        missing = [key for key, value in expected.items() if found.get(key) != value]
        for key in wrong:
            self.overlay.delete(key)
        for key in missing:
            self.overlay.put(key, expected[key])
        if wrong or missing:
            self.note(what, f"{len(wrong)} removed, {len(missing)} written again")

    def cluster(self) -> rows.ClusterRow:
        row: rows.ClusterRow | None = self.get(keys.cluster(), rows.CLUSTER)
        return row or rows.ClusterRow()

    def save_cluster(self, row: rows.ClusterRow) -> None:
        self.put(keys.cluster(), row, rows.CLUSTER)

    def volumes(self) -> list[rows.VolumeRow]:
        return [row for _, row in self.scan(keys.kind_range(0, keys.VOLUME), rows.VOLUME)]

    def devices(self) -> list[rows.DeviceRow]:
        return [row for _, row in self.scan(keys.kind_range(0, keys.DEVICE), rows.DEVICE)]

    def device_of(self, segment: int) -> rows.DeviceRow | None:
        for device in self.devices():
            if index_of(device, segment) >= 0:
                return device
        return None

    def sessions(self) -> dict[int, rows.SessionRow]:
        return {row.session: row for _, row in self.scan(keys.kind_range(0, keys.SESSION), rows.SESSION)}

    def ending(self) -> set[int]:
        """Returns the ended sessions whose pins, locks and write leases Reap still ends."""
        found = (keys.reap_of(key) for key, _ in self.scan(keys.kind_range(0, keys.REAP), rows.REAP))
        return {ino for kind, _, ino, _ in found if kind == keys.REAP_SESSION}
