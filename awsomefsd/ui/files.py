"""The files of the page: style, script, icon.  They are read once; a request names one of them, and no path of this machine.

The compiled program has them in the directory `ui` beside it (buildtools/binary.py): a directory of the package's name has no place there.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from awsomefsd.base import program

_KINDS = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}
NAMES = ("style.css", "page.js", "login.js", "icon.svg")


@cache
def files() -> dict[str, tuple[str, bytes]]:
    """Returns the path of each file on the page → (media type, content).  Raises OSError where this build lacks one."""
    directory = Path(program.HOME) / "ui" if program.COMPILED else Path(__file__).parent / "static"
    return {f"/static/{name}": (_KINDS[Path(name).suffix], (directory / name).read_bytes()) for name in NAMES}
