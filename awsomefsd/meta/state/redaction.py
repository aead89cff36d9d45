"""Secrets are taken out of every stream, dump and log: private keys of authorities, the values that tokens are checked against,
and credentials and keys of stores.  Pure.

The replicated log carries them, since every voter must be able to lead; a reader of the log as a stream of changes gets entries in which
these fields are empty.  Entries are decoded only if they hold the bytes that such a command begins with.

A copy of a store that leaves this node (a checkpoint) is a file of pages, so its secrets are overwritten with zero bytes of the same
length while it is written (`Eraser`), and the rows are emptied when a node is made from it (`empty_erased`).  The hash of a join token
stays: nobody can join with it.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from awsomefsd.base.codec import encode
from awsomefsd.meta.api.commands import AddStore, AnyCommand, PutCa, PutToken, RepairRows, SetStore, entry_decode
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.row_codecs import SECRET_KINDS
from awsomefsd.meta.state.txn import Txn

_TAGS = [encode(kind.__struct_config__.tag) for kind in (RepairRows, PutToken, PutCa, AddStore, SetStore)]
_PERHAPS = re.compile(b"[\x90-\x9f](?:" + b"|".join(map(re.escape, _TAGS)) + b")").search  # an array of fields, and the tag


def hidden(raw: bytes) -> bytes:
    """Returns the encoded entry without its secrets; the same bytes if it has none."""
    if _PERHAPS(raw) is None:
        return raw
    try:
        entry = entry_decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return raw  # the reader finds that too; no entry of ours that cannot be decoded has secrets
    command = without_secrets(entry.command)
    return raw if command is entry.command else encode(replace(entry, command=command))


def without_secrets(command: AnyCommand) -> AnyCommand:
    """Returns the command without its secrets; the same object if it has none."""
    if isinstance(command, PutCa):
        return replace(command, key="")
    if isinstance(command, PutToken):
        return replace(command, verifier=b"")
    if isinstance(command, AddStore):
        return replace(command, secret=b"")
    if isinstance(command, SetStore):
        return replace(command, secret=None if command.secret is None else b"")
    if isinstance(command, RepairRows):
        return replace(command, puts=[(key, b"" if _secret(key) else value) for key, value in command.puts])
    return command


def _secret(key: bytes) -> bool:
    return len(key) >= keys.PREFIX_BYTES and keys.kind_of(key)[2] in SECRET_KINDS and keys.kind_of(key)[1] == 0


# --- copies of a store --------------------------------------------------------------------------------------------------------------
def erasures(txn: Txn) -> dict[bytes, bytes]:
    """Returns what stands in a file of this store's pages and must not leave the node, and what takes its place, of the same length.

    A row is replaced as a whole, with a checksum that is right again.  The secret by itself may lie where no row is any more.
    """
    found: dict[bytes, bytes] = {}
    for _, raw in txn.scan(*keys.kind_range(0, keys.CA)):
        authority = rows.CA.loads(raw)
        if secret := authority.key.encode():
            authority.key = "\0" * len(secret)
            found |= {raw: rows.CA.dumps(authority), secret: bytes(len(secret))}
    for _, raw in txn.scan(*keys.kind_range(0, keys.TOKEN)):
        token = rows.TOKEN.loads(raw)
        if token.kind == "founding" and (secret := token.verifier):
            token.verifier = bytes(len(secret))
            found |= {raw: rows.TOKEN.dumps(token), secret: bytes(len(secret))}
    for _, raw in txn.scan(*keys.kind_range(0, keys.STORE_SECRET)):
        kept = rows.STORE_SECRET.loads(raw)
        if secret := kept.secret:
            kept.secret = bytes(len(secret))
            found |= {raw: rows.STORE_SECRET.dumps(kept), secret: bytes(len(secret))}
    assert all(len(old) == len(new) for old, new in found.items()), "a row without its secret has another length"
    return found


class Eraser:
    """Erases secrets from the bytes of a file that come piece by piece.  `feed` returns bytes as soon as nothing in them can begin one."""

    def __init__(self, erased: dict[bytes, bytes]) -> None:
        self._erased = erased
        self._keep = max(map(len, erased), default=1) - 1
        self._held = b""

    def feed(self, piece: bytes) -> bytes:
        return self._take(piece, self._keep)

    def rest(self) -> bytes:
        """Returns the end of the file."""
        return self._take(b"", 0)

    def _take(self, piece: bytes, keep: int) -> bytes:
        """Returns what begins before the last `keep` bytes.  A row is found before the secret inside it, since it begins earlier."""
        held = self._held + piece
        cut = max(len(held) - keep, 0)
        taken, at = [], 0
        while found := [(start, old) for old in self._erased if 0 <= (start := held.find(old, at)) < cut]:
            start, old = min(found)
            taken += [held[at:start], self._erased[old]]
            at = start + len(old)
        end = max(cut, at)
        self._held = held[end:]
        return b"".join([*taken, held[at:end]])


def empty_erased(txn: Txn) -> None:
    """Empties the fields of a store that an Eraser has overwritten: from then on they say that the secret is not there."""
    for key, raw in list(txn.scan(*keys.kind_range(0, keys.CA))):
        authority = rows.CA.loads(raw)
        if authority.key and not authority.key.strip("\0"):
            authority.key = ""
            txn.put(key, rows.CA.dumps(authority))
    for key, raw in list(txn.scan(*keys.kind_range(0, keys.TOKEN))):
        token = rows.TOKEN.loads(raw)
        if token.verifier and not any(token.verifier):
            token.verifier = b""
            txn.put(key, rows.TOKEN.dumps(token))
    for key, raw in list(txn.scan(*keys.kind_range(0, keys.STORE_SECRET))):
        kept = rows.STORE_SECRET.loads(raw)
        if kept.secret and not any(kept.secret):
            kept.secret = b""
            txn.put(key, rows.STORE_SECRET.dumps(kept))
