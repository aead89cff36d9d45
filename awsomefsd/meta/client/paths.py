"""Finds the path of an inode, for messages to people: asked page by page, so that nobody waits long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import Error
from awsomefsd.base.types import ROOT_INO
from awsomefsd.meta.api.messages.scrub import GetNames, NamePage

PAGE_ROWS = 1_024
DEPTH_MAX = 256


def path_of(call: Callable[[Any], Any], volume: int, ino: int, pages_max: int = 4_096) -> str:
    """Returns one path of an inode from the root of its volume; "inode N" where it has none, or it was not found soon enough."""
    parts: list[str] = []
    at, pages = ino, 0
    try:
        while at != ROOT_INO and len(parts) < DEPTH_MAX:
            after, found = b"", None
            while found is None:
                page = call(GetNames(volume, at, after, PAGE_ROWS))
                pages += 1
                if not isinstance(page, NamePage) or pages > pages_max:
                    return f"inode {ino}"
                found, after = next(iter(page.names), None), page.after
                if found is None and not after:
                    return f"inode {ino}"
            at = found[0]
            parts.append(found[1].decode(errors="backslashreplace"))
    except Error:
        return f"inode {ino}"
    return "/" + "/".join(reversed(parts))
