"""What is fuzzed: a decoder, good inputs to begin with, and which errors it may answer with (everything else is a find)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Target(NamedTuple):
    """`make` builds what decodes, once a process; it is called with each input, of one byte at least."""

    name: str
    seeds: Callable[[], list[bytes]]
    make: Callable[[], Callable[[bytes], None]]
