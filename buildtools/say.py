# ruff: noqa: T201
"""What the build prints: steps, one-line findings, sizes and times; and the running of commands whose output matters only on failure."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
_COLOURS = sys.stdout.isatty() and os.environ.get("NO_COLOR") is None and os.environ.get("TERM") != "dumb"


class BuildError(Exception):
    """Ends the build with one clear message and exit code 1; the message says what to do."""


def _paint(code: str, text: str) -> str:
    return f"\x1b[{code}m{text}\x1b[0m" if _COLOURS else text


def step(text: str) -> None:
    print(_paint("1", f"== {text}"), flush=True)


def line(text: str = "") -> None:
    print(text, flush=True)


def good(text: str) -> None:
    print(f"  {_paint('32', 'ok')}   {text}", flush=True)


def warn(text: str) -> None:
    print(f"  {_paint('33', 'note')} {text}", flush=True)


def bad(text: str) -> None:
    print(f"  {_paint('31', 'FAIL')} {text}", file=sys.stderr, flush=True)


def size(count: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if count < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


def parse_size(text: str) -> int:
    """8G, 512M, 8GiB, 1048576."""
    bare = text.strip().upper().removesuffix("IB").removesuffix("B")
    factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}.get(bare[-1:], 0)
    digits = bare[:-1] if factor else bare
    if not digits.isdigit() or int(digits) == 0:
        raise BuildError(f"size {text!r} is not understood: write 8G or 512M")
    return int(digits) * (factor or 1)


def run(argv: Sequence[str | os.PathLike[str]], *, what: str = "", timeout_s: float = 600, **kwargs: object) -> str:
    """Run a command to its end and return its standard output; a failure is a BuildError that shows what it printed."""
    words = [os.fspath(word) for word in argv]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL, **kwargs)  # type: ignore[call-overload]
    except FileNotFoundError:
        raise BuildError(f"{words[0]} is not there{': ' + what if what else ''}") from None
    except subprocess.TimeoutExpired:
        raise BuildError(f"{what or ' '.join(words)}: no end within {timeout_s:.0f} s") from None
    if done.returncode != 0:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-15:])
        raise BuildError(f"{what or ' '.join(words)} failed with exit code {done.returncode}:\n{tail}")
    return str(done.stdout)
