"""Sizes are parsed as people write them (8G, 512MiB, 1.5T) and formatted for them.  Units are binary with and without i: 8G is 8 GiB."""

from __future__ import annotations

import re
from fractions import Fraction

_UNITS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}
_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgtp]?)(i?b)?\s*$", re.IGNORECASE)
BYTES_MAX = (1 << 63) - 1


def parse_bytes(text: str) -> int:
    """Returns the bytes of a size.  Raises ValueError, whose message says how to write one."""
    match = _SIZE.match(text)
    if match is None or (match[3] and match[3].lower() == "ib" and not match[2]):
        raise ValueError(f"{text!r} is not a size; write it like 4096, 512MiB, 8G or 1.5T")
    size = Fraction(match[1]) * 1024 ** _UNITS[match[2].lower()]
    if size.denominator != 1 or size > BYTES_MAX:
        raise ValueError(f"{text!r} is not a whole number of bytes below 8 EiB")
    return int(size)


def format_bytes(count: int) -> str:
    """Returns a count of bytes as rounded text with a unit, exact below 1 KiB: 1000 B, 4.0 KiB, 512 MiB."""
    if abs(count) < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB"):
        size /= 1024
        if abs(size) < 999.5 or unit == "EiB":
            break
    return f"{size:.1f} {unit}" if abs(size) < 10 else f"{size:.0f} {unit}"
