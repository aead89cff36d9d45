"""rename(2), its flags and link(2) of every pair of paths out of a list, as ext4 answers: what is refused, with which errno, and what is
left of the tree where it was done.

What succeeded is undone, or a new tree is made: every pair finds the same one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from tests.posix.beside_ext4 import ANNA, ROOT, Beside, User, ext4, rename2, tell

pytestmark = pytest.mark.root
Told = Iterator[tuple[Any, Any]]
NOREPLACE, EXCHANGE = 1, 2

PATHS = (
    ".", "..", "TOP", "TOP/.", "TOP/..", "/", "d", "d/", "d/.", "d/..", "d/sub", "d/sub/deep", "d/sub/deep/new", "d/new", "d/f", "empty",
    "empty/", "e2", "f", "f/", "f/x", "f2", "g", "l", "l/", "ld", "ld/", "ld/new", "loop", "loop/x", "dangling", "none", "none/", "none/x",
    "p", "", "locked/x", "n" * 256,
)  # fmt: skip
CALLS: dict[str, Callable[[str, str], Any]] = {
    "rename": os.rename,
    "noreplace": lambda old, new: rename2(old, new, NOREPLACE),
    "exchange": lambda old, new: rename2(old, new, EXCHANGE),
    "link": os.link,
}


def set_up() -> None:
    for path in ("d", "d/sub", "d/sub/deep", "empty", "e2", "locked"):
        os.mkdir(path)
    for path in ("f", "g", "d/f"):
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o644))
    os.link("f", "f2")
    for target, path in (("f", "l"), ("loop", "loop"), ("d", "ld"), ("nowhere", "dangling")):
        os.symlink(target, path)
    os.mkfifo("p")
    os.chmod("locked", 0)


def tree() -> list[tuple[str, int, int]]:
    found = []
    for folder, _, files in os.walk("."):
        for path in (folder, *(f"{folder}/{name}" for name in files)):
            info = os.lstat(path)
            found.append((path, info.st_mode, info.st_nlink))
    return sorted(found)


def undo(name: str, old: str, new: str) -> None:
    """Cheaper than a new tree, where it works: not if something was replaced."""
    with contextlib.suppress(OSError):
        if name == "link":
            os.unlink(new)
        elif name == "exchange":
            rename2(old, new, EXCHANGE)
        else:
            rename2(new, old, NOREPLACE)


def pairs(name: str, _root: str) -> Told:
    number, top = 0, os.path.abspath("..")
    call = CALLS[name]
    os.mkdir("0")
    os.chdir("0")
    set_up()
    fresh = tree()
    for old in PATHS:
        for new in PATHS:
            result = tell(call, old.replace("TOP", top), new.replace("TOP", top))
            yield (name, old[:20], new[:20]), result
            if result is not None:
                continue
            yield (name, old[:20], new[:20], "tree"), tree()
            undo(name, old, new)
            if tree() != fresh:
                number += 1
                os.chdir("..")
                os.mkdir(str(number))
                os.chdir(str(number))
                set_up()


@pytest.fixture(scope="module")
def beside(make_node, tmp_path_factory) -> Iterator[Beside]:
    node = make_node()
    with ext4(tmp_path_factory.mktemp("two-names")) as other:
        for root in (node.mountpoint, other):
            root.chmod(0o755)
        yield Beside(node.mountpoint, other)


@pytest.mark.parametrize(
    ("user", "name"), [*((ROOT, name) for name in CALLS), (ANNA, "rename"), (ANNA, "link")], ids=[*CALLS, "rename-anna", "link-anna"]
)
def test_every_pair_of_paths(beside: Beside, user: User, name: str) -> None:
    told = beside.same(partial(pairs, name), user)
    results = {str(result) for what, result in told if len(what) == 3}
    expected = {"link": ("EPERM", "EEXIST", "EXDEV"), "rename": ("EBUSY", "EINVAL", "ENOTEMPTY", "EISDIR", "ENOTDIR")}
    assert {"None", "ENOENT", "ELOOP", "ENAMETOOLONG", *expected.get(name, ("EBUSY", "EINVAL"))} <= results
    assert all(result == "None" or result in errno.errorcode.values() for result in results)
