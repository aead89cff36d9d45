"""fsck reads rows that it cannot trust: one that does not decode is a fault, and is then treated as absent."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from awsomefsd.base.codec import Sealed
from awsomefsd.base.errors import Corrupt, FormatTooNew
from awsomefsd.meta.state import keys
from awsomefsd.meta.state.row_codecs import OWN_KEY
from awsomefsd.meta.state.txn import Txn


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that was found.  `kind` is one of KINDS, `where` names the object, `detail` says what was found and what was expected."""

    kind: str
    where: str
    detail: str


_KINDS = """
    undecodable unknown-key misplaced-row unknown-volume
    root-missing dentry-without-inode inode-without-dentry wrong-kind wrong-nlink wrong-directory-nlink directory-with-two-names
    directory-unreachable wrong-parent wrong-entries dentry-without-cookie cookie-without-dentry cookie-mismatch cookie-counter ino-counter
    symlink-size xattr-count xattr-without-inode acl-invalid acl-mode
    orphan-without-inode orphan-with-name orphan-of-ended-session orphan-index
    lock-without-inode lock-of-ended-session lock-conflict lock-index write-lease
    inline-without-inode inline-with-extents inline-bytes
    extent-without-inode extents-overlap extent-past-size extent-in-free-segment extent-foreign-incarnation extent-past-committed
    extent-count stored-bytes extent-without-reverse shared-bytes allocated-bytes reverse-without-extent trim-count
    used-bytes used-inodes volume-granted op-log volume-reserved volume-holder volume-name volume-count
    session-count session-counter session-segments cluster-reserved lease-of-ended-session held-index ended-session-idle
    segment-live-bytes segment-dead segment-device segment-bytes free-list device-counters cluster-bytes segment-counter device-missing
    begun-index metadata-segment checkpoint-segments csi-volume csi-name claim
    bay-index bay-counters bay-segment bay-copies pool-row need store store-name store-secret
    reap-count reap-stale reap-missing reader-count stale-tombstone
    kept-unseen kept-marker shelf-count newest-snapshot snapshot-name
"""
KINDS = frozenset(_KINDS.split())


class Examination:
    """A transaction under examination and the faults found in it."""

    def __init__(self, txn: Txn) -> None:
        self.txn = txn
        self.faults: list[Fault] = []

    def fault(self, kind: str, where: str, detail: str) -> None:
        assert kind in KINDS, kind
        self.faults.append(Fault(kind, where, detail))

    def equal(self, kind: str, where: str, stored: int, counted: int) -> None:
        if stored != counted:
            self.fault(kind, where, f"stored {stored}, counted {counted}")

    def decode(self, key: bytes, raw: bytes, codec: Sealed) -> Any:
        """Returns the row; or None, and adds a fault."""
        try:
            return codec.loads(raw)
        except (Corrupt, FormatTooNew, UnicodeDecodeError) as err:
            self.fault("undecodable", f"{codec.what} {key.hex()}", str(err))
            return None

    def rows(self, span: keys.Range, codec: Sealed) -> Iterator[tuple[bytes, Any]]:
        """Yields (key, row) of those that decode.  One that stands in the place of another is a fault, and is yielded all the same."""
        own_key = OWN_KEY.get(keys.kind_of(span[0])[2])
        for key, raw in self.txn.scan(*span):
            row = self.decode(key, raw, codec)
            if row is None:
                continue
            if own_key is not None and own_key(row) != key:
                self.fault("misplaced-row", f"{codec.what} {key.hex()}", f"it is the row of {own_key(row).hex()}")
            yield key, row

    def get(self, key: bytes, codec: Sealed) -> Any:
        """Returns a row that is read a second time; None if it does not decode, which the scan of its kind has reported."""
        raw = self.txn.get(key)
        try:
            return None if raw is None else codec.loads(raw)
        except (Corrupt, FormatTooNew, UnicodeDecodeError):
            return None
