"""The reason why a worker did not serve, in words for people: of what it wrote last, without the traceback and the log line around it."""

from __future__ import annotations

import re

_TRACE = "Traceback (most recent call last):"
_OURS = "awsomefsd.base.errors."
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_HELD = re.compile(r"volume \S+ is (?:mounted by session \d+ on node \S+|shared by \d+ sessions)")  # of meta/machine/sessions.py


def reason_in(words: str) -> str:
    """Returns a worker's last words as one line: the exception without its traceback, which is in the worker's log.

    An error of ours says what to do by itself, so it stands alone.  The traceback may be the field of a log line (text or JSON), or bare.
    """
    before, trace, after = words.rpartition(_TRACE)
    if not trace:
        return words
    if before.endswith('"'):
        after = _ESCAPED.sub(_unescape, re.match(r'(?:[^"\\]|\\.)*', after, re.DOTALL)[0])  # type: ignore[index]  # it matches ""
    lines = after.strip().splitlines()
    last = lines[-1].strip() if lines else "it was cut off"
    if last.startswith(_OURS):
        text = last.partition(": ")[2]
        return text + ("; unmount it there, or mount it with -O shared on every node" if _HELD.fullmatch(text) else "")
    start = re.split(r"ts=|\{\"ts\"", before)[0]
    return f"{start.strip().rstrip(':')}: {last} (the worker's log has the details)"


def _unescape(found: re.Match[str]) -> str:
    return {"n": "\n", "r": "\r", "t": "\t"}.get(found[1], found[1])
