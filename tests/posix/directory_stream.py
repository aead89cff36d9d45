"""readdir(3), telldir and seekdir, which Python does not have."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from tests.posix.beside_ext4 import LIBC

LIBC.opendir.restype = ctypes.c_void_p
LIBC.readdir64.restype = ctypes.c_void_p
LIBC.telldir.restype = ctypes.c_long


class Walk:
    def __init__(self, path: Path) -> None:
        self.stream = ctypes.c_void_p(LIBC.opendir(os.fsencode(path)))
        assert self.stream.value

    def next(self) -> str:
        place = LIBC.readdir64(self.stream)
        return ctypes.string_at(place + 19).decode() if place else ""

    def rest(self) -> list[str]:
        return list(iter(self.next, ""))

    def tell(self) -> int:
        return int(LIBC.telldir(self.stream))

    def seek(self, cookie: int) -> None:
        LIBC.seekdir(self.stream, ctypes.c_long(cookie))

    def close(self) -> None:
        LIBC.closedir(self.stream)

    def rewind(self) -> None:
        LIBC.rewinddir(self.stream)
