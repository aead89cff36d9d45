"""What the programs in the virtual machine do, and what a power cut may leave of it.  Guest and host compute the same steps from one seed.

Each of several programs works in a directory of its own and makes one step after the other.  A step ends with the fsync of what it
changed, its directory included; only then is it marked as done.  After a cut, of each program all steps that were marked as done are there,
at most one more is under way, and of that one this module says what may be seen.  Names that begin with "loose" are written and never
synced.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from random import Random

PAGE, PAGES = 4096, 24
SIZES = (1, 500, 4096, 9_000, 30_000, 120_000)
KINDS = ("new", "new", "replace", "replace", "append", "append", "pages", "unlink", "truncate")


@dataclass(frozen=True)
class Step:
    """`data` goes into `name`; of "pages", (page, bytes) pairs."""

    kind: str
    name: str
    data: bytes = b""
    pages: tuple[tuple[int, bytes], ...] = ()
    loose: bytes = b""


Files = dict[str, bytes]


def begin(directory: str) -> None:
    """What is there before the first step."""
    os.mkdir(directory)
    for name, data in first().items():
        with open(os.path.join(directory, name), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


def first() -> Files:
    return {"pages": bytes(PAGE * PAGES), "journal": b""}


def steps_of(seed: int, program: int, count: int) -> list[Step]:
    choose = Random(f"{seed}:{program}")
    files = first()
    steps = []
    for number in range(count):
        step = _step(choose, number, files)
        files = after(step, files)
        steps.append(step)
    return steps


def _step(choose: Random, number: int, files: Files) -> Step:
    kind = choose.choice(KINDS)
    plain = sorted(name for name in files if name.startswith("file"))
    loose = choose.randbytes(choose.choice((0, 0, 3000, 50_000)))
    data = choose.randbytes(choose.choice(SIZES))
    if kind == "append":
        return Step(kind, "journal", data[:3000], loose=loose)
    if kind == "pages":
        numbers = choose.sample(range(PAGES), choose.randrange(1, 5))
        return Step(kind, "pages", pages=tuple((page, choose.randbytes(PAGE)) for page in numbers), loose=loose)
    if kind == "replace":
        return Step(kind, f"file-slot-{choose.randrange(6)}", data, loose=loose)
    if kind in ("unlink", "truncate") and plain:
        return Step(kind, choose.choice(plain), loose=loose)
    return Step("new", f"file-{number}", data, loose=loose)


def after(step: Step, files: Files) -> Files:
    new = dict(files)
    old = files.get(step.name, b"")
    if step.kind == "unlink":
        del new[step.name]
    elif step.kind == "truncate":
        new[step.name] = old[: len(old) // 2]
    elif step.kind == "append":
        new[step.name] = old + step.data
    elif step.kind == "pages":
        new[step.name] = _with_pages(old, step)
    else:
        new[step.name] = step.data
    return new


def _with_pages(old: bytes, step: Step) -> bytes:
    content = bytearray(old)
    for page, data in step.pages:
        content[page * PAGE : (page + 1) * PAGE] = data
    return bytes(content)


# --- in the virtual machine -----------------------------------------------------------------------------------------------
def do(step: Step, directory: str, number: int) -> None:
    path = os.path.join(directory, step.name)
    if step.loose:
        with open(os.path.join(directory, f"loose-{number % 5}"), "wb") as loose:
            loose.write(step.loose)
    if step.kind == "unlink":
        os.unlink(path)
    elif step.kind == "replace":
        _synced(path + ".tmp", os.O_CREAT | os.O_TRUNC, [(0, step.data)])
        os.rename(path + ".tmp", path)
    elif step.kind == "new":
        _synced(path, os.O_CREAT | os.O_EXCL, [(0, step.data)])
    elif step.kind == "append":
        _synced(path, os.O_APPEND, [(0, step.data)])
    elif step.kind == "pages":
        _synced(path, 0, [(page * PAGE, data) for page, data in step.pages])
    else:
        os.truncate(path, os.stat(path).st_size // 2)
        _synced(path, 0, [])
    if step.kind in ("unlink", "replace", "new"):
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(folder)
        os.close(folder)


def _synced(path: str, flags: int, pieces: list[tuple[int, bytes]]) -> None:
    fd = os.open(path, os.O_RDWR | flags, 0o644)
    try:
        for offset, data in pieces:
            if flags & os.O_APPEND:
                os.write(fd, data)
            else:
                os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


# --- after the cut --------------------------------------------------------------------------------------------------------
def wrong(found: Files, files: Files, under_way: Step | None) -> list[str]:
    """What of a program's directory is not as it may be: `files` are those of its steps that are done."""
    seen = {name: data for name, data in found.items() if not name.startswith("loose") and not name.endswith(".tmp")}
    said = []
    for name in sorted({*seen, *files}):
        if under_way is not None and name == under_way.name:
            if not _may_be(seen.get(name), files.get(name), under_way):
                said.append(f"{name}: not what a {under_way.kind} under way may leave ({_size(seen.get(name))})")
        elif seen.get(name) != files.get(name):
            said.append(f"{name}: {_size(seen.get(name))}, fsynced were {_size(files.get(name))}")
    return said


def _may_be(data: bytes | None, old: bytes | None, step: Step) -> bool:
    if data == old:
        return True
    if step.kind == "unlink" or data is None:
        return data is None and step.kind == "unlink"
    if step.kind == "new":
        return step.data.startswith(data)
    if old is None or step.kind == "replace":
        return data == step.data
    if step.kind == "truncate":
        return data == old[: len(old) // 2]
    if step.kind == "append":
        return data.startswith(old) and step.data.startswith(data[len(old) :])
    new = _with_pages(old, step)
    places = range(0, len(old), PAGE)
    return len(data) == len(old) and all(data[at : at + PAGE] in (old[at : at + PAGE], new[at : at + PAGE]) for at in places)


def _size(data: bytes | None) -> str:
    return "no file" if data is None else f"{len(data)} bytes"
