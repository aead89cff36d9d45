"""The fence around the rows that snapshots keep: only meta/state/history.py and chapters.py read and write them.

A rule that changed such a row past the door would change what a snapshot has promised to keep, and no test of that rule would show it.
So the fence reads the source of awsomefsd/ and finds who names a key, a kind or a codec of those rows: without one of the three nobody
gets at them.  Two lists say who may: ROOMS look at all rows as rows, each for its own reason; NAMES are functions that say where a row is
and neither read nor change it, and those of State, which is the door to inodes because it caches them.  A place that is listed and does not
do it any more fails as one does that is not listed, so the lists say what is so.

The fence does not see a key that somebody put together from bytes, nor an inode that a rule changes in place and does not save.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from buildtools.say import CHECKOUT

PACKAGE = CHECKOUT / "awsomefsd"
DOOR = "meta/state/history.py"
DOORS = (DOOR, "meta/state/chapters.py")  # the second is for the first alone: what is kept, and what a snapshot sees

_KINDS = frozenset({"INODE", "DENTRY", "COOKIE", "EXTENT", "INLINE", "XATTR", "SHELF"})
_KEYS = frozenset({
    "inode", "dentry", "cookie", "cookies_after", "extent", "extents_range", "inline", "xattr", "xattrs_range", "volume_range",
    "VERSIONED", "HISTORY", "HISTORY_KINDS", "KEPT", "history", "history_of", "kept", "kept_of", "kept_range", "shelf", "shelf_of",
})  # fmt: skip
FENCED = {
    "awsomefsd.meta.state.keys": _KINDS | _KEYS,
    "awsomefsd.meta.state.rows": _KINDS,
    "awsomefsd.meta.state.row_codecs": frozenset({"CODEC_OF"}),
}
_ANY = frozenset().union(*FENCED.values())

ROOMS = {
    "meta/check/": "fsck and its repairs look at all rows as they are",
    "meta/state/row_codecs.py": "the table of all codecs",
    "recovery/dump.py": "a dump is of all rows as they are",
    "recovery/fsck.py": "it counts the files of a store that no rule changes meanwhile",
    "vfs/state/overlay_state.py": "a mount keeps the head's rows as it was given them, and gives none to a snapshot",
    "vfs/state/held_names.py": "a mount keeps the head's rows as it was given them, and gives none to a snapshot",
}

NAMES = frozenset({
    "meta/state/rows_cache.py:State.inode", "meta/state/rows_cache.py:State.save_inode", "meta/state/rows_cache.py:State.drop_inode",
    "meta/state/rows_cache.py:State.save_same_inode", "meta/state/rows_cache.py:State._store",
    "meta/state/rows_cache.py:State.evict_volume",  # it forgets what is cached
    "meta/machine/held.py:<module>", "meta/machine/held.py:_name", "meta/machine/held.py:_xattr_keys",  # what a mount asks for
    "meta/machine/row_queries.py:<module>", "meta/machine/row_queries.py:_Answer.add",  # what it may ask for: stored rows of the head
    "meta/state/governed.py:<module>", "meta/state/governed.py:fields",  # what of such a row a holder decides
})  # fmt: skip


def accesses(source: str) -> Iterator[tuple[str, str]]:
    """Yields (place, what) for each name of FENCED that a module uses; the place is a function with its classes, or <module>."""
    tree = ast.parse(source)
    modules = _modules(tree)
    for place, node in _walk(tree, ""):
        if isinstance(node, ast.Attribute):
            if node.attr in _ANY and node.attr in modules.get(ast.unparse(node.value), ()):
                yield place, f"{ast.unparse(node.value)}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            wanted = FENCED.get(node.module or "", frozenset())
            yield from ((place, name.name) for name in node.names if name.name in wanted or (wanted and name.name == "*"))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("getattr", "vars"):
            yield from ((place, ast.unparse(node)) for of in node.args[:1] if ast.unparse(of) in modules)


def _modules(tree: ast.AST) -> dict[str, frozenset[str]]:
    """Returns under which names the tree knows the fenced modules, and what of each is fenced."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                if fenced := FENCED.get(f"{node.module}.{name.name}"):
                    known[name.asname or name.name] = fenced
        elif isinstance(node, ast.Import):
            known.update({name.asname or name.name: FENCED[name.name] for name in node.names if name.name in FENCED})
    return known


def _walk(node: ast.AST, place: str) -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        inside = place
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inside = f"{place}.{child.name}".lstrip(".")
        yield place or "<module>", child
        yield from _walk(child, inside)


def _room_of(name: str) -> str:
    return next((room for room in (*DOORS, *ROOMS) if name == room or (room.endswith("/") and name.startswith(room))), "")


def breaches(package: Path = PACKAGE) -> list[str]:
    """Returns in words who gets at versioned rows past the door, and which lines of the lists are out of date."""
    found: list[str] = []
    seen: set[str] = set()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        used = list(accesses(path.read_text(encoding="utf-8")))
        if room := _room_of(name):
            seen |= {room} if used else set()
            continue
        for place, what in used:
            site = f"{name}:{place}"
            if site not in NAMES and site not in seen:
                found.append(f"{site} uses {what}: versioned rows are read and changed through {DOOR}")
            seen.add(site)
    stale = sorted((NAMES | ROOMS.keys()) - seen)
    return found + [f"{site} does not touch versioned rows any more: take it out of the list" for site in stale]
