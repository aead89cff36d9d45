"""Values are sealed for the disk and for the wire with a checksum, a schema byte and msgpack.

A sealed value is ``crc32c (u32 LE) | schema (u8) | msgpack body``.  The checksum covers schema and body.  LMDB has no page
checksums (252 of 300 random bit flips gave silently wrong data), so every stored value carries its own.
"""

from __future__ import annotations

import struct
from typing import Any, TypeVar

import msgspec
from crc32c import crc32c

from awsomefsd.base.errors import Corrupt, FormatTooNew

T = TypeVar("T")
Bytes = bytes | bytearray | memoryview

_SEAL = struct.Struct("<IB")
SEAL_BYTES = _SEAL.size
pack_seal = _SEAL.pack  # (checksum, schema): what stands before a body

encode = msgspec.msgpack.Encoder().encode


def seal(schema: int, body: Bytes) -> bytes:
    """Returns ``body`` sealed under a schema byte (0 to 255): SEAL_BYTES longer than ``body``."""
    tag = bytes((schema,))
    return _SEAL.pack(crc32c(body, crc32c(tag)), schema) + bytes(body)


def unseal(raw: Bytes, what: str, schema_max: int) -> tuple[int, memoryview]:
    """Checks a sealed value and returns (schema, body).

    The body is a view into ``raw``, not a copy.  Raises Corrupt for too few bytes or a wrong checksum, FormatTooNew for a schema above
    ``schema_max``.  ``what`` names the value in the message.
    """
    view = memoryview(raw)
    if len(view) < SEAL_BYTES:
        raise Corrupt(f"{what}: {len(view)} bytes is too short for a sealed value")
    checksum, schema = _SEAL.unpack_from(view)
    if crc32c(view[SEAL_BYTES:], crc32c(view[4:5])) != checksum:
        raise Corrupt(f"{what}: checksum mismatch")
    if schema > schema_max:
        raise FormatTooNew(f"{what}: schema {schema} is newer than this build knows ({schema_max}); upgrade this node")
    return schema, view[SEAL_BYTES:]


class Sealed:
    """The encoder and decoder of one Struct type as a sealed value."""

    __slots__ = ("_decode", "_seed", "schema", "type", "what")

    def __init__(self, type_: type[Any], schema: int = 1) -> None:
        self.type = type_
        self.schema = schema
        self.what = type_.__name__
        self._seed = crc32c(bytes((schema,)))  # of the checksum: the schema byte comes before the body
        self._decode = msgspec.msgpack.Decoder(type_).decode

    def dumps(self, value: Any) -> bytes:
        """Returns the value, encoded and sealed under this type's schema."""
        body = encode(value)
        return _SEAL.pack(crc32c(body, self._seed), self.schema) + body

    def loads(self, raw: Bytes) -> Any:
        """Returns the value of sealed bytes.  Raises Corrupt when checksum or shape is wrong, FormatTooNew for a newer schema."""
        body = memoryview(raw)[SEAL_BYTES:]
        if len(raw) < SEAL_BYTES or _SEAL.unpack_from(raw) != (crc32c(body, self._seed), self.schema):
            _, body = unseal(raw, self.what, self.schema)  # of an older schema, or it says what is wrong
        try:
            return self._decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise Corrupt(f"{self.what}: {err}") from err
