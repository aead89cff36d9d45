"""Mapped ids."""

from __future__ import annotations

import random
import struct

import pytest

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.id_map import OVERFLOW_ID, IdMap, map_acl, parse
from awsomefsd.config.mount_options import parse as parse_options


def test_both_directions(seed):
    ids = parse("map_uid", "0:100000:1000+5000:5000:1")
    assert (ids.inside(0), ids.inside(999), ids.inside(1000), ids.inside(5000)) == (100_000, 100_999, None, 5000)
    assert (ids.outside(100_999), ids.outside(5000), ids.outside(0), ids.has_outside(0)) == (999, 5000, OVERFLOW_ID, False)
    dice = random.Random(seed)
    for _ in range(500):
        number = dice.randrange(200_000)
        inside = ids.inside(number)
        assert inside is None or (ids.outside(inside) == number and ids.has_outside(inside))
    assert IdMap().inside(7) == IdMap().outside(7) == 7


BAD = ["", "0:1", "a:0:1", "0:0:0", "0:-1:5", "4294967295:0:1", "0:0:10+5:100:1", "0:0:10+20:9:1", "0:0:1:1", "0:0:1+"]


@pytest.mark.parametrize("text", BAD)
def test_bad_maps_are_named(text):
    with pytest.raises(ConfigError, match="map_gid="):
        parse_options([f"map_gid={text}"])


def test_options():
    options = parse_options(["root_squash", "map_uid=0:1000:1", "nodefault_permissions"])
    assert options.root_squash and options.map_uid.inside(0) == 1000 and not options.map_gid.ranges
    assert options.fuse_options == "allow_other"
    options = parse_options(["root_squash", "no_root_squash", "nodefault_permissions", "default_permissions"])
    assert not options.root_squash and options.fuse_options == "default_permissions,allow_other"


def test_acl_values():
    entries = [(1, 6, 0xFFFF_FFFF), (2, 7, 10), (4, 5, 0xFFFF_FFFF), (8, 4, 20), (0x10, 7, 0xFFFF_FFFF), (0x20, 0, 0xFFFF_FFFF)]
    value = struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
    mapped = map_acl(value, lambda uid: uid + 1000, lambda gid: gid + 2000)
    found = list(struct.iter_unpack("<HHI", mapped[4:]))
    assert found == [(tag, perm, {2: 1010, 8: 2020}.get(tag, number)) for tag, perm, number in entries]
    for other in (b"", b"\x02\0\0\0abc", struct.pack("<I", 3) + bytes(8)):
        assert map_acl(other, lambda _: 0, lambda _: 0) == other
