"""Small files that are either the old or the new one after a crash: node.json, devices.json, mounts.json.

The new content is written to a second file and fsynced, the file is renamed over the old one, and then the directory is fsynced.  A crash
before the rename leaves the old file and a `.new` one that the next write replaces; a crash after it leaves the new one.  Rewriting in
place was rejected: a torn JSON file that names the devices would cost more than three system calls.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from awsomefsd.base.errors import Corrupt

_WRITERS = tuple(threading.Lock() for _ in range(64))  # by path


def sync_directory(directory: Path) -> None:
    """Makes the names in a directory durable.  Blocks; raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def create(path: Path, mode: int = 0o600) -> int:
    """Returns the descriptor of a new file, open for writing; a file or link of that name, of whomever, is removed before.

    So nobody else owns what is written, and no link leads elsewhere, also in a directory that others may write to.  Raises OSError
    (FileExistsError if somebody makes the name again at that moment).
    """
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)


def write_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Replaces `path`; when this returns, the content survives a power cut.  Blocks for two fsyncs; raises OSError.

    Threads of one process that write one path wait for each other.  Two processes must not: both use the same `.new` file, and one would
    rename what the other has not written to its end.
    """
    with _WRITERS[hash(path) % len(_WRITERS)]:
        _replace(path, content, mode)
        sync_directory(path.parent)


def _replace(path: Path, content: bytes, mode: int) -> None:
    new = path.with_name(path.name + ".new")
    fd = create(new, mode)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(new, path)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """Replaces `path` by `value` as JSON, as `write_file`."""
    write_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode(), mode)


def read_json(path: Path, default: Any = None) -> Any:
    """Returns the object (a dict) in `path`, or `default` if there is no such file.  Raises Corrupt for anything else, and OSError."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return default
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as err:
        raise Corrupt(f"{path} is not valid JSON ({err}); restore it from a backup") from err
    if not isinstance(value, dict):
        raise Corrupt(f"{path} does not hold a JSON object; restore it from a backup")
    return value
