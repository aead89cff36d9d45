"""What no stream, dump or log may show: private keys of authorities, and what tokens are checked against.  Pure.

The replicated log carries them, since every voter must be able to lead; whoever reads the log as a stream of changes gets entries in which
these fields are empty.  Entries are looked at more closely only if they hold a byte pair that such a command begins with.
"""

from __future__ import annotations

import re

import msgspec
from msgspec.structs import replace

from awsomefsd.codec import encode
from awsomefsd.meta import keys
from awsomefsd.meta.commands import AnyCommand, PutCa, PutToken, RepairRows, entry_decode
from awsomefsd.meta.row_kinds import SECRET_KINDS

_TAGS = bytes(kind.__struct_config__.tag for kind in (RepairRows, PutToken, PutCa))  # type: ignore[misc]
_PERHAPS = re.compile(b"[\x90-\x9f][" + re.escape(_TAGS) + b"]").search  # an array of fields, and the tag


def hidden(raw: bytes) -> bytes:
    """The encoded entry without its secrets."""
    if _PERHAPS(raw) is None:
        return raw
    try:
        entry = entry_decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return raw  # the reader says so; nothing of ours has secrets in an entry that cannot be decoded
    command = without_secrets(entry.command)
    return raw if command is entry.command else encode(replace(entry, command=command))


def without_secrets(command: AnyCommand) -> AnyCommand:
    if isinstance(command, PutCa):
        return replace(command, key="")
    if isinstance(command, PutToken):
        return replace(command, verifier=b"")
    if isinstance(command, RepairRows):
        return replace(command, puts=[(key, b"" if _secret(key) else value) for key, value in command.puts])
    return command


def _secret(key: bytes) -> bool:
    return len(key) >= keys.PREFIX_BYTES and keys.kind_of(key)[2] in SECRET_KINDS and keys.kind_of(key)[1] == 0
