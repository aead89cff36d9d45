"""The consistency of a mount says how fresh its reads are: here are its words, and their number in rows, attributes and messages.  Pure.

The same words are a mount option (`consistency=`), the value of the extended attribute XATTR, and a StorageClass parameter: one key says
one thing.  `bounded=5` as an option of its own could contradict the other.

It is a number because each Attr carries it: UNSAID, STRICT, CLOSE_TO_OPEN, or the bound in milliseconds.
"""

from __future__ import annotations

XATTR = b"user.awsomefs.consistency"
UNSAID, STRICT, CLOSE_TO_OPEN = 0, 1, 2
BOUNDED_MS_MIN, BOUNDED_MS_MAX = 100, 3_600_000
WORDS = "strict, close-to-open or bounded=SECONDS"  # also in a reply that voters keep (meta/machine/xattrs.py): all builds say the same


def parse(text: str) -> int:
    """Returns the number of a mode in words: STRICT, CLOSE_TO_OPEN, or milliseconds.  Raises ValueError, which says the right words."""
    if text == "strict":
        return STRICT
    if text == "close-to-open":
        return CLOSE_TO_OPEN
    word, equals, number = text.partition("=")
    if word == "bounded" and equals:
        return _bounded(number)
    hint = " (with a number of seconds: bounded=5)" if word == "bounded" else ""
    raise ValueError(f"{text!r} is not a consistency level; write {WORDS}{hint}")


def _bounded(number: str) -> int:
    whole, _, part = number.partition(".")
    if not (number.isascii() and whole.isdigit() and (part.isdigit() or "." not in number)) or len(number) > 12 or len(part) > 3:
        raise ValueError(f"bounded={number}: give seconds, such as 5 or 0.5")
    ms = int(whole) * 1_000 + int(part.ljust(3, "0"))
    if not BOUNDED_MS_MIN <= ms <= BOUNDED_MS_MAX:
        raise ValueError(f"bounded={number}: give {BOUNDED_MS_MIN / 1_000} to {BOUNDED_MS_MAX // 1_000} seconds")
    return ms


def of_value(value: bytes | None) -> int:
    """Returns the number that an attribute's value stands for; UNSAID for no value and for one that is no mode."""
    if value is None:
        return UNSAID
    try:
        return parse(value.decode("ascii"))
    except ValueError:
        return UNSAID


def is_loose(mode: int) -> bool:
    """Returns True for every mode that may return old data (all but STRICT and UNSAID)."""
    return mode > STRICT


def is_bounded(mode: int) -> bool:
    return mode >= BOUNDED_MS_MIN
