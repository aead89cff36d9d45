"""The bodies of the small records: greetings, orders, and what became of these.  Pure.

Each is a msgpack array.  A field that a later version adds comes at the end and has a default; a decoder ignores what it does not know.
"""

from __future__ import annotations

import uuid
from typing import TypeVar

import msgspec
from msgspec import Struct

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import SEGMENT_GREETING_BYTES_MAX, SEGMENT_REASON_BYTES_MAX
from awsomefsd.io.device.checksum import Bytes

VERSION = 1  # of what the records mean
WRONG_MAX = 64  # places that an answer names
WRONG_WORDS_MAX = 120  # characters of each
COPY_SOURCES_MAX = 16
_U32_MAX = (1 << 32) - 1  # of what the header of a record has for device and index


class BulkHello(Struct, frozen=True, array_like=True):
    """The dialler says its newest version, its node, and the session for which it will open bays (0, 0: for none)."""

    version: int
    node: str
    session: int = 0
    epoch: int = 0


class ServedDevice(Struct, frozen=True, array_like=True):
    """A device of the pool that a server has attached."""

    device: int
    bays: int
    segment_bytes: int


class BulkWelcome(Struct, frozen=True, array_like=True):
    """The server says the version that both speak, an id that it drew when it started, and its devices."""

    version: int
    server: bytes
    devices: list[ServedDevice] = []


class Wrong(Struct, frozen=True, array_like=True):
    """What Verify found at an offset of the segment."""

    offset: int
    what: str


class Verified(Struct, frozen=True, array_like=True):
    """The result of Verify: frames and bytes that are as they were written, the number of places that are not, the first of these."""

    frames: int
    bytes: int
    wrong_count: int = 0
    wrong: list[Wrong] = []


class CopySource(Struct, frozen=True, array_like=True):
    """A bay that has what is to be copied: the endpoint of its server ("UUID@HOST:PORT"), and its place there."""

    endpoint: str
    device: int
    index: int


class CopyOrder(Struct, frozen=True, array_like=True):
    """An order to copy: the index of the entry that planned it, where to take the bytes from, the best first; bytes a second, 0: all.

    The same order again joins the copy that is under way.
    """

    planned: int
    sources: list[CopySource]
    pace: int = 0


class Copied(Struct, frozen=True, array_like=True):
    """What became of a copy so far.  `done`: it is whole and durable, and `digest` (xxh3, 128 bits) is of all its bytes.

    `mended`: places that were wrong in one source and taken from another.  `wrong_count`, `wrong`: those that are wrong in every source.
    """

    done: bool
    digest: bytes = b""
    frames: int = 0
    mended: int = 0
    wrong_count: int = 0
    wrong: list[Wrong] = []


_T = TypeVar("_T", BulkHello, BulkWelcome, Verified, CopyOrder, Copied)
_encode = msgspec.msgpack.Encoder().encode
_DECODERS = {kind: msgspec.msgpack.Decoder(kind) for kind in (BulkHello, BulkWelcome, Verified, CopyOrder, Copied)}


def dumps(message: BulkHello | BulkWelcome | Verified | CopyOrder | Copied) -> bytes:
    raw = _encode(message)
    assert len(raw) <= SEGMENT_GREETING_BYTES_MAX
    return raw


def loads(raw: Bytes, kind: type[_T]) -> _T:
    """Returns the message in a body.  Raises ProtocolError for what is none."""
    try:
        found = _DECODERS[kind].decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"not a {kind.__name__}: {err}") from None
    assert isinstance(found, kind)
    if isinstance(found, BulkHello) and not (_is_node(found.node) and found.version > 0 and found.session >= 0 and found.epoch >= 0):
        raise ProtocolError("a Hello that names no node, version or session")
    if isinstance(found, CopyOrder) and not (0 < len(found.sources) <= COPY_SOURCES_MAX and found.planned > 0 and found.pace >= 0):
        raise ProtocolError(f"an order to copy from {len(found.sources)} bays, by entry {found.planned}")
    if isinstance(found, CopyOrder) and not all(0 < one.device <= _U32_MAX and 0 <= one.index <= _U32_MAX for one in found.sources):
        raise ProtocolError("an order to copy from a bay that no device can have")
    return found


def _is_node(text: str) -> bool:
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False


def reason(text: str) -> bytes:
    """Returns the body of an answer that says why a request failed."""
    return text.encode()[:SEGMENT_REASON_BYTES_MAX].decode(errors="ignore").encode()


def reason_of(body: bytes) -> str:
    """Returns the words in the body of a failed answer, whatever the bytes are."""
    return body.decode(errors="replace")
