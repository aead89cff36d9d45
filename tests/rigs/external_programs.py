"""What the tests with other people's programs share: skipping where one is missing, running one with its output, kills beside it."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from buildtools.nodes import Node

KILL_EVERY_S = 0.6  # long enough for a successor to serve
ENDS_S = 180.0  # a kill is under way, and a successor is waited for


def need(*programs: str) -> None:
    """Skip where one of them is not installed; `build.py test` tries to install them (buildtools/prepare.py)."""
    absent = [name for name in programs if shutil.which(name) is None]
    if absent:
        pytest.skip(f"not installed: {', '.join(absent)}")


def run(*argv: str | os.PathLike[str], timeout_s: float = 120, **options: Any) -> str:
    """A program that must succeed; its standard output.  What it said is in the failure."""
    done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False, stdin=subprocess.DEVNULL, **options)
    assert done.returncode == 0, f"{argv} ended with {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@contextlib.contextmanager
def killing_workers(node: Node) -> Iterator[list[int]]:
    """SIGKILLs of the mount's worker until the block ends, each proven by a successor; yields the pids that were hit."""
    hit: list[int] = []
    wrong: list[BaseException] = []
    over = threading.Event()

    def kill() -> None:
        try:
            while True:
                hit.append(node.kill("worker")["worker"])
                node.replaced("worker", hit[-1])
                os.path.lexists(node.mountpoint / f"asked after death {len(hit)}")  # on a busy machine none would ever serve else
                if over.wait(KILL_EVERY_S):
                    return
        except BaseException as err:
            wrong.append(err)

    thread = threading.Thread(target=kill, daemon=True)
    thread.start()
    try:
        yield hit
    finally:
        over.set()
        thread.join(ENDS_S)
    assert not wrong and not thread.is_alive(), wrong
    assert hit and len(set(hit)) == len(hit), "no kill was proven"


def postgres(name: str) -> str:
    """The path of a program of PostgreSQL, which Debian keeps out of PATH."""
    found = shutil.which(name) or next(iter(sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), reverse=True)), None)
    if found is None:
        pytest.skip(f"not installed: {name} of PostgreSQL")
    return found


def picture(root: Path) -> dict[str, Any]:
    """All that a faithful copy keeps of the files below a directory."""
    found: dict[str, Any] = {}
    first: dict[int, str] = {}
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(folders + files):
            path = os.path.join(folder, name)
            info = os.lstat(path)
            content = None
            if stat.S_ISREG(info.st_mode):
                content = info.st_size, hashlib.blake2b(Path(path).read_bytes()).hexdigest()
            elif stat.S_ISLNK(info.st_mode):
                content = os.readlink(path)
            keys = sorted(os.listxattr(path, follow_symlinks=False))
            extended = {key: os.getxattr(path, key, follow_symlinks=False) for key in keys}
            relative = os.path.relpath(path, root)
            same = first.setdefault(info.st_ino, relative) if not stat.S_ISDIR(info.st_mode) else relative
            device = info.st_rdev if stat.S_ISCHR(info.st_mode) or stat.S_ISBLK(info.st_mode) else 0
            owner = (info.st_uid, info.st_gid)
            found[relative] = oct(info.st_mode), info.st_nlink, owner, device, info.st_mtime_ns, content, extended, same
    return found
