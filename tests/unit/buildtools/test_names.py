"""No two public classes of awsomefsd have one name, and no module calls itself a part of another."""

from __future__ import annotations

import ast
import collections
import functools
import re
from pathlib import Path

from buildtools.say import CHECKOUT

PACKAGE = CHECKOUT / "awsomefsd"
# Names that more than one public class has, and how many have it.  This list only gets shorter: give a new class a name of its own.
SHARED_NAMES: dict[str, int] = {}
_PART = re.compile(r"\bpart of `?[a-z_/]+\.py")


@functools.cache
def _modules() -> list[tuple[Path, ast.Module]]:
    """Hand-written modules; what protoc makes in pb/ is left out."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if "pb" not in path.relative_to(PACKAGE).parts]
    return [(path.relative_to(PACKAGE), ast.parse(path.read_text())) for path in paths]


def _classes() -> dict[str, list[str]]:
    """Public classes of modules by name: where each is defined."""
    found: dict[str, list[str]] = collections.defaultdict(list)
    for path, module in _modules():
        for node in module.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(f"{path}:{node.lineno}")
    return found


def test_public_classes_have_names_of_their_own() -> None:
    twice = {name: places for name, places in _classes().items() if len(places) > SHARED_NAMES.get(name, 1)}
    assert twice == {}, "rename all but one of each"


def test_the_list_of_shared_names_only_shrinks() -> None:
    classes = _classes()
    stale = {name: len(classes.get(name, ())) for name, count in SHARED_NAMES.items() if len(classes.get(name, ())) < count}
    assert stale == {}, "lower these counts in SHARED_NAMES; take out those that are 1 or 0"


def test_no_docstring_calls_its_module_a_part_of_another() -> None:
    found = []
    for path, module in _modules():
        for node in ast.walk(module):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                words = " ".join((ast.get_docstring(node) or "").split())
                if _PART.search(words):
                    found.append(f"{path}:{getattr(node, 'lineno', 1)}: {_PART.search(words)}")
    assert found == [], "say what is in the module instead"
