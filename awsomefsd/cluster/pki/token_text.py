"""The printed form that join and founding tokens share: "afs1-" and base32 of length u16 | kind u8 | body | 5 bytes of SHA-256.

Base32 in small letters has neither 0, 1 nor 8, so they cannot be mistaken; what is read as those is taken for o, l and b, and
case does not matter.  The length comes first, so that a string that was cut is told from one that was changed.  Base64 was rejected: a
fifth shorter, but it has look-alikes and characters at which a double click ends.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re

from awsomefsd.base.errors import Refused
from awsomefsd.base.limits import TOKEN_BYTES_MAX

PREFIX = "afs1-"
JOIN, FOUNDING = 1, 2
_CHECK_BYTES = 5
_SHAPE = re.compile(r"afs([0-9]{1,4})-(.*)", re.IGNORECASE | re.DOTALL)
_LOOK_ALIKES = str.maketrans("018", "olb")


class TokenError(Refused):
    """A string that is not a usable token; the message says what is wrong with it and never holds any of it."""


def encode(kind: int, body: bytes) -> str:
    raw = len(body).to_bytes(2, "big") + bytes((kind,)) + body
    raw += _check(raw)
    return PREFIX + base64.b32encode(raw).decode().rstrip("=").lower()


def decode(text: str) -> tuple[int, bytes]:
    """Returns (kind, body) of a token's text.  Raises TokenError."""
    text = text.strip()
    shape = _SHAPE.fullmatch(text)
    if shape is None or len(text) > TOKEN_BYTES_MAX:
        raise TokenError("this is not a token: a token is one word that begins with afs1-; copy it as awsomefsd token create printed it")
    if int(shape[1]) > 1:
        raise TokenError(f"the token is of version {shape[1]}, newer than this build knows; upgrade awsomefsd on this node")
    raw = _unpack(_plain(text)[len(PREFIX) :])
    if len(raw) < 3 or len(raw) < 3 + int.from_bytes(raw[:2], "big") + _CHECK_BYTES:
        raise TokenError("the token is truncated; copy all of it")
    kind, body, check = raw[2], raw[3:-_CHECK_BYTES], raw[-_CHECK_BYTES:]
    whole = len(body) == int.from_bytes(raw[:2], "big") and _check(raw[:-_CHECK_BYTES]) == check
    if not whole or encode(kind, body) != _plain(text):  # the last letter has bits that are in no byte
        raise TokenError("the token was altered when it was copied (its checksum is wrong); copy it again")
    return kind, body


def _plain(text: str) -> str:
    return PREFIX + text.partition("-")[2].lower().translate(_LOOK_ALIKES)


def _unpack(text: str) -> bytes:
    letters = text.upper()
    changed = TokenError("the token was altered when it was copied (it has characters that no token has); copy it again")
    if not re.fullmatch("[A-Z2-7]*", letters):
        raise changed
    whole = letters[:-1] if len(letters) % 8 in (1, 3, 6) else letters  # such a length is of a string that was cut
    try:
        return base64.b32decode(whole + "=" * (-len(whole) % 8))
    except binascii.Error as err:
        raise changed from err


def _check(raw: bytes) -> bytes:
    return hashlib.sha256(PREFIX.encode() + raw).digest()[:_CHECK_BYTES]
