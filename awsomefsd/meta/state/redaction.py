"""Secrets are taken out of every stream, dump and log: private keys of authorities, and the values that tokens are checked against.  Pure.

The replicated log carries them, since every voter must be able to lead; a reader of the log as a stream of changes gets entries in which
these fields are empty.  Entries are decoded only if they hold a byte pair that such a command begins with.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from awsomefsd.base.codec import encode
from awsomefsd.meta.api.commands import AnyCommand, PutCa, PutToken, RepairRows, entry_decode
from awsomefsd.meta.state import keys
from awsomefsd.meta.state.row_codecs import SECRET_KINDS

_TAGS = bytes(kind.__struct_config__.tag for kind in (RepairRows, PutToken, PutCa))  # type: ignore[misc]
_PERHAPS = re.compile(b"[\x90-\x9f][" + re.escape(_TAGS) + b"]").search  # an array of fields, and the tag


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
    if isinstance(command, RepairRows):
        return replace(command, puts=[(key, b"" if _secret(key) else value) for key, value in command.puts])
    return command


def _secret(key: bytes) -> bool:
    return len(key) >= keys.PREFIX_BYTES and keys.kind_of(key)[2] in SECRET_KINDS and keys.kind_of(key)[1] == 0
