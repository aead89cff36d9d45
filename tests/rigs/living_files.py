"""Files of processes that run, which rename and remove them meanwhile."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def contents(top: Path, *without: str) -> Iterator[tuple[Path, bytes]]:
    """The regular files below a directory, but for those of the names `without`, and what is in them."""
    for place, _, names in os.walk(top):
        for path in [Path(place) / name for name in names if name not in without]:
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path, path.read_bytes()
