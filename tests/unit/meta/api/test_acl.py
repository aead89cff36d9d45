"""POSIX ACLs: the pure rules."""

from __future__ import annotations

import errno
import random
import struct
from contextlib import suppress

import pytest

from awsomefsd.base.errors import FsError
from awsomefsd.meta.api import acl

NOBODY = 0xFFFFFFFF
NAMED = [(acl.USER_OBJ, 7, NOBODY), (acl.USER, 5, 1000), (acl.GROUP_OBJ, 4, NOBODY), (acl.MASK, 7, NOBODY), (acl.OTHER, 1, NOBODY)]
MINIMAL = [(acl.USER_OBJ, 6, NOBODY), (acl.GROUP_OBJ, 4, NOBODY), (acl.OTHER, 2, NOBODY)]


@pytest.mark.parametrize(
    "value",
    [
        b"", b"\2\0\0", struct.pack("<I", 2) + b"x", acl.pack(NAMED[:-1]), acl.pack(NAMED[1:]), acl.pack([*NAMED, NAMED[-1]]),
        acl.pack([NAMED[0], *NAMED]), acl.pack([*NAMED[:3], NAMED[4]]), acl.pack([NAMED[1], NAMED[0], *NAMED[2:]]),
        acl.pack([(acl.USER_OBJ, 8, NOBODY), *MINIMAL[1:]]), acl.pack([*MINIMAL, (0x40, 1, NOBODY)]),
    ],
)  # fmt: skip
def test_what_is_no_acl(value: bytes) -> None:
    with pytest.raises(FsError) as caught:
        acl.parse(value)
    assert caught.value.errno == errno.EINVAL


def test_any_bytes_are_an_acl_or_an_error(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(3_000):
        value = bytearray(acl.pack(dice.choice((NAMED, MINIMAL))))
        for _ in range(dice.randrange(3)):
            value[dice.randrange(len(value))] = dice.randrange(256)
        value = value[: dice.choice((len(value), dice.randrange(len(value))))]
        with suppress(FsError):
            assert acl.pack(acl.parse(bytes(value))) == value


def test_modes() -> None:
    assert acl.mode_bits(NAMED) == 0o771 and acl.mode_bits(MINIMAL) == 0o642
    assert acl.with_mode(NAMED, 0o640)[0][1] == 6 and acl.mode_bits(acl.with_mode(NAMED, 0o640)) == 0o640
    assert acl.with_mode(NAMED, 0o640)[2] == NAMED[2], "with a mask, the group's own entry stays"
    entries, mode = acl.inherited(NAMED, 0o100666)
    assert mode == 0o100660 and [entry[1] for entry in entries] == [6, 5, 4, 6, 0]
    assert acl.inherited(MINIMAL, 0o40777) == (MINIMAL, 0o40642)
