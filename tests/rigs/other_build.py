"""Another build of the program, for tests of nodes that are not all of one: a copy of the package that says another version of itself, and
whose newest wire protocols are newer ones.  What such a build and this one say to each other is in the words of this one.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from awsomefsd.meta.api.messages import PROTOCOL_VERSION
from awsomefsd.meta.voter.peer_messages import PEER_PROTOCOL_VERSION

ROOT = Path(__file__).resolve().parents[2]
VERSION = "9.9.9"
NEWER = PROTOCOL_VERSION + 1


def make_other_build(directory: Path, version: str = VERSION, source: Path = ROOT) -> Path:
    """Makes it in `directory`, which is then its PYTHONPATH, of the package in `source`, with what is there of its bytecode."""
    package = directory / "awsomefsd"
    shutil.copytree(source / "awsomefsd", package)
    changes = {
        "__init__.py": f"__version__ = {version!r}",
        "meta/api/messages/connection.py": f"PROTOCOL_VERSION = {NEWER}",
        "meta/voter/peer_messages.py": f"PEER_PROTOCOL_VERSION = {PEER_PROTOCOL_VERSION + 1}",
    }
    for path, line in changes.items():
        text = (package / path).read_text()
        assert f"\n{line.split()[0]} = " in text
        (package / path).write_text(f"{text}\n{line}\n")
    return directory
