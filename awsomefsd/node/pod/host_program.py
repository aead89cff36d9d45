"""The copies of this program on the host, from which keeper and workers run: they outlive the pod and the files of its image.

STATE_DIR/bin/VERSION-HASH/ is made under another name and renamed, so it is there whole or not at all.  HASH is of every name, mode and
byte in it, and is checked at each start (a power cut after the rename may leave files without content: such a copy is made again).  A copy
that no process runs from any more is removed.  Compiled, a copy is the directory of the executable; interpreted, it is the package alone:
the interpreter and what it imports must then be the same inside and outside, which is so in tests and in no image.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import xxhash

from awsomefsd import __version__
from awsomefsd.base import program

IGNORED = ("__pycache__",)  # an interpreter writes there
_HEX_DIGITS = 16


class ProgramCopy(NamedTuple):
    """A copy of the program, and how to start it."""

    home: Path
    start: list[str]
    env: dict[str, str]

    def command(self, *words: str) -> list[str]:
        return [*self.start, *words]


def install(directory: Path) -> ProgramCopy:
    """Returns the copy of the program that runs here, and makes it if it is not there.  Raises OSError with the reason if it cannot."""
    source = Path(program.HOME)
    parts = [source] if program.COMPILED else [source / "awsomefsd"]
    named = f"{__version__}-{digest(parts)}"
    home = directory / named
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    for left in directory.glob(".new-*"):
        shutil.rmtree(left, ignore_errors=True)
    if not home.exists() or digest(_parts_of(home)) != named.rpartition("-")[2]:
        _make(parts, home)
    return _copy(home)


def _parts_of(home: Path) -> list[Path]:
    return [home] if program.COMPILED else [home / "awsomefsd"]


def _copy(home: Path) -> ProgramCopy:
    command = program.command("")[:-1]
    if program.COMPILED:
        return ProgramCopy(home, [str(home / Path(command[0]).name)], {})
    return ProgramCopy(home, command, {"PYTHONPATH": str(home)})


def digest(parts: Iterable[Path]) -> str:
    """Returns a digest of names, executable bits and contents below directories; a missing directory counts as empty."""
    hashed = xxhash.xxh3_128()
    for part in parts:
        for name, path in _files(part):
            hashed.update(f"{name}\0{os.lstat(path).st_mode & 0o100}\0".encode())
            if path.is_symlink():
                hashed.update(os.readlink(path).encode())
            else:
                with path.open("rb") as file:
                    while piece := file.read(1 << 20):
                        hashed.update(piece)
            hashed.update(b"\0")
    return hashed.hexdigest()[:_HEX_DIGITS]


def _files(directory: Path) -> Iterator[tuple[str, Path]]:
    for folder, folders, names in os.walk(directory):
        folders[:] = sorted(name for name in folders if name not in IGNORED)
        for name in sorted(names):
            path = Path(folder, name)
            yield str(path.relative_to(directory)), path


def _make(parts: list[Path], home: Path) -> None:
    new = home.with_name(f".new-{secrets.token_hex(4)}")
    try:
        for part in parts:
            place = new if program.COMPILED else new / part.name
            shutil.copytree(part, place, symlinks=True, ignore=shutil.ignore_patterns(*IGNORED))
        if home.exists():  # damaged; a process that still runs from it keeps its files open
            os.rename(home, home.with_name(f".new-{secrets.token_hex(4)}"))
        os.rename(new, home)
    except (OSError, shutil.Error) as error:
        shutil.rmtree(new, ignore_errors=True)
        raise OSError(f"no copy of the program in {home}: {error}") from error


def remove_unused(directory: Path, keep: Path) -> list[str]:
    """Removes the copies other than `keep` that no process runs from; returns their names."""
    removed = []
    for home in directory.iterdir():
        if home != keep and not home.name.startswith(".") and not in_use(home):
            shutil.rmtree(home, ignore_errors=True)
            removed.append(home.name)
    return removed


def in_use(home: Path) -> bool:
    """Returns True if a process runs from there: its executable, its arguments or its environment name the directory."""
    mark = os.fsencode(home)
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{entry}/exe").startswith(f"{home}/"):
                return True
            words = [word for name in ("cmdline", "environ") for word in Path(f"/proc/{entry}/{name}").read_bytes().split(b"\0")]
            if any(word.startswith(mark + b"/") or word in (mark, b"PYTHONPATH=" + mark) for word in words):
                return True
    return False
