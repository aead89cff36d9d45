"""A command of a node on a terminal of its own: what it shows there, as people see it."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Callable

from buildtools.nodes import Node

COLUMNS = 80
_STYLE = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


def shown(node: Node, *words: str, columns: int = COLUMNS, until: Callable[[str], bool] | None = None, timeout_s: float = 60) -> str:
    """Returns what a command shows on a terminal; with `until`, what it has shown when that is true, and the command is interrupted."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        env = {key: value for key, value in node.environment().items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
        child = subprocess.Popen(
            [*node.command, *words], stdin=theirs, stdout=theirs, stderr=theirs, env=env | {"TERM": "xterm"}, start_new_session=True
        )
    finally:
        os.close(theirs)
    told = b""
    try:
        while True:
            try:
                piece = os.read(ours, 65_536)
            except OSError:  # EIO: the last holder of the other end has ended
                break
            told += piece
            if not piece:
                break
            if until is not None and until(_plain(told)):
                child.terminate()
                break
        child.wait(timeout_s)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    return _plain(told)


def _plain(told: bytes) -> str:
    return _STYLE.sub("", told.decode(errors="replace")).replace("\r\n", "\n")


def too_wide(text: str, columns: int = COLUMNS) -> list[str]:
    """Returns the lines that are wider than the terminal, but for those whose last word alone is too long: words are not broken."""
    return [line for line in text.split("\n") if len(line) > columns and len(line.split()[-1]) <= columns - 24]
