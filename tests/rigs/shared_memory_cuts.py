"""Every state that a kill can leave behind: record what an action stores into a buffer, and cut it at every point.

The action runs under an opcode trace; whenever an opcode of this project changed the buffer, the change is one entry of the tape.  A change
inside one aligned 8-byte word is one store.  Anything larger (a slice assignment, a memcpy) may stop anywhere and run in either direction:
it is cut at its words, at odd bytes, and from both ends.  This drives the production code itself, no wrapper buffer stands in between.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

CUTS_MAX = 12  # of one large change and direction


def record(mem: bytearray, action: Callable[[], Any]) -> list[bytes]:
    """States of `mem` before, between and after the stores of `action`."""
    states = [bytes(mem)]

    def note() -> None:
        if mem != states[-1]:
            states.append(bytes(mem))

    def trace(frame: FrameType, event: str, _arg: Any) -> Any:
        if "awsomefsd" not in frame.f_code.co_filename:
            return None
        frame.f_trace_opcodes = True
        note()
        return trace

    previous = sys.gettrace()
    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(previous)
    note()
    return states


def cuts(states: list[bytes]) -> Iterator[bytes]:
    """All the states, and between two of them what a torn copy leaves."""
    yield states[0]
    for old, new in itertools.pairwise(states):
        first, last = _bounds(old, new)
        if first // 8 != last // 8:
            yield from _torn(old, new, first, last + 1)
        yield new


def _torn(old: bytes, new: bytes, first: int, end: int) -> Iterator[bytes]:
    step = max((end - first) // CUTS_MAX, 1)
    points = {*range(first + 1, end, step), (first // 8 + 1) * 8, (end - 1) // 8 * 8, end - 1}
    for at in sorted(points):
        if first < at < end:
            yield old[:first] + new[first:at] + old[at:]
            yield old[:at] + new[at:end] + old[end:]


def _bounds(old: bytes, new: bytes) -> tuple[int, int]:
    """First and last byte that differ."""
    low, high = 0, len(old)
    while high - low > 1:
        middle = (low + high) // 2
        if old[low:middle] != new[low:middle]:
            high = middle
        else:
            low = middle
    first = low
    low, high = first, len(old)
    while high - low > 1:
        middle = (low + high) // 2
        if old[middle:high] != new[middle:high]:
            low = middle
        else:
            high = middle
    return first, low
