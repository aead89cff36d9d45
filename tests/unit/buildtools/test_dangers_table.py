"""docs/TESTING.md says of each thing that could go wrong where mounts decide names what shows that it does not; what it names is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from functools import cache

from buildtools.say import CHECKOUT

HEADING = "## What could go wrong where mounts decide names"
NUMBERS = range(1, 69)
NOT_BUILT = "not built"
_NAMED = re.compile(r"([\w/]+\.py)(?:::(test_\w+)(?:\[([^\]]+)\])?|: ([^`]+))?")
_DICTS = ("VARIANTS", "MUTANTS", "FOUND")

Row = tuple[str, str, str]  # number or "", danger, what shows it


def rows_of(page: str) -> list[Row]:
    section = page.partition(HEADING)[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")]
    return [(number, danger, shown) for number, danger, shown in cells if number not in ("#", "---")]


@cache
def _tree(path: str) -> ast.Module | None:
    file = CHECKOUT / "tests" / path
    return ast.parse(file.read_text()) if file.is_file() else None


def _functions(tree: ast.Module) -> set[str]:
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def _variants(tree: ast.Module) -> set[str]:
    """The keys of the tables of broken variants and mutants."""
    found = set()
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        named = any(isinstance(target, ast.Name) and target.id in _DICTS for target in targets)
        if named and isinstance(node.value, ast.Dict):  # type: ignore[union-attr]
            found |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}  # type: ignore[union-attr]
    return found


def _words(tree: ast.Module) -> set[str]:
    """What a parameter may be called: a function, or a text of the module."""
    return _functions(tree) | {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def why_missing(named: str) -> str:
    """Returns what is wrong with one name between backquotes; "" if it is there."""
    match = _NAMED.fullmatch(named)
    tree = _tree(match[1]) if match else None
    if match is None or tree is None:
        return f"{named}: no such file below tests/"
    _, test, parameter, variant = match.groups()
    if variant:
        return "" if variant in _variants(tree) else f"{named}: no such variant"
    if test is None:
        return f"{named}: it names no test"
    if test not in _functions(tree):
        return f"{named}: no such test"
    return "" if parameter is None or parameter in _words(tree) else f"{named}: no such parameter"


def wrong_in(table: Iterable[Row]) -> list[str]:
    wrong: list[str] = []
    for number, danger, shown in table:
        if shown.startswith(NOT_BUILT) and number:
            continue
        named = re.findall(r"`([^`]+)`", shown)
        if not named or not danger:
            wrong.append(f"{number} {danger}: nothing shows it")
        wrong += filter(None, map(why_missing, named))
    return wrong


def test_every_danger_has_its_row_and_every_row_what_shows_it() -> None:
    table = rows_of((CHECKOUT / "docs" / "TESTING.md").read_text())
    assert [number for number, _, _ in table if number] == [str(number) for number in NUMBERS]
    assert wrong_in(table) == []


def test_what_is_not_there_is_noticed() -> None:
    here = "unit/buildtools/test_dangers_table.py"
    assert wrong_in([("1", "a", ""), ("2", "b", "words"), ("", "c", NOT_BUILT)]) == [
        "1 a: nothing shows it", "2 b: nothing shows it", " c: nothing shows it",
    ]  # fmt: skip
    assert wrong_in([("3", "d", NOT_BUILT), ("4", "e", f"`{here}::test_what_is_not_there_is_noticed`")]) == []
    for named in ("unit/none.py::test_x", here, f"{here}::test_none", f"{here}::test_what_is_not_there_is_noticed[none at " + "all]"):
        assert why_missing(named)
    assert why_missing("sim/names/broken.py: no such variant") and not why_missing("sim/names/broken.py: fsync asks nobody")
    assert not why_missing("crash/model/test_crash_model.py::test_the_model_sees_a[rename_that_does_not_flush]")
    assert rows_of(f"{HEADING}, x\n\n| # | danger | shown by |\n| --- | --- | --- |\n| 1 | a | b |\n\n## Next\n| 2 | c | d |\n") == [
        ("1", "a", "b")
    ]
