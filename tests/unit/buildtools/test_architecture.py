"""The map of the house is true: its tree is that of the package, and every file that a page names is there."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from buildtools import architecture
from buildtools.say import CHECKOUT

PAGES = sorted([*(CHECKOUT / "docs").glob("*.md"), CHECKOUT / "README.md"])
MODULES_MAX = 25
# a path of a file in backticks: with a folder, and a suffix that files of this tree have
NAMED = re.compile(r"`((?:[\w.-]+/)+[\w.-]+\.(?:py|md|sh|toml|yaml|proto))(?:::\w+)?`")
# a module in a comment or a docstring, with its folders or without
MODULE = re.compile(r"(?<![\w*/.{-])(?:[\w-]+/)*\w+\.py\b")


def test_the_tree_is_of_today() -> None:
    text = architecture.PAGE.read_text(encoding="utf-8")
    assert architecture.page(text) == text, "docs/ARCHITECTURE.md is old: python3 -m buildtools.architecture"


def test_every_folder_says_what_it_is_in_sentences() -> None:
    for path in architecture.PACKAGE.rglob("__init__.py"):
        text = architecture.says(path.parent)
        assert text.endswith(".") and (text[0].isupper() or text.startswith("awsomefsd")), path


def test_no_room_is_full_and_nothing_lies_at_the_root() -> None:
    """meta/machine has one file a subject, and sub-folders of it would import each other in a ring."""
    assert {path.name for path in architecture.PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py"}
    for path in architecture.PACKAGE.rglob("__init__.py"):
        folder = path.parent
        assert folder.name == "machine" or architecture.modules(folder) <= MODULES_MAX, folder


@pytest.mark.parametrize("page", PAGES, ids=[path.name for path in PAGES])
def test_files_that_a_page_names_are_there(page: Path) -> None:
    places = (CHECKOUT, CHECKOUT / "tests", architecture.PACKAGE, page.parent)
    named = {name for name in NAMED.findall(page.read_text(encoding="utf-8")) if not name.startswith(("/", "build/", "dist/"))}
    gone = sorted(name for name in named if not any((place / name).exists() for place in places))
    assert not gone, f"{page.name} names files that are not there"


def comments_and_docstrings(text: str) -> Iterator[str]:
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            yield token.string
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""


def gone_modules(text: str, paths: set[str]) -> set[str]:
    """The modules that comments and docstrings of `text` name and that are none of `paths`, which begin with a slash."""
    named = {name for words in comments_and_docstrings(text) for name in MODULE.findall(words)}
    return {name for name in named if not any(path.endswith(f"/{name}") for path in paths)}


def test_modules_that_comments_and_docstrings_name_are_there() -> None:
    folders = [CHECKOUT / name for name in ("awsomefsd", "tests", "buildtools", "packaging")]
    modules = sorted(path for folder in folders for path in folder.rglob("*.py"))
    paths = {"/build.py", *(f"/{path.relative_to(CHECKOUT)}" for path in modules)}
    gone = {f"{path.relative_to(CHECKOUT)} names {name}" for path in modules for name in gone_modules(path.read_text("utf-8"), paths)}
    assert not gone, sorted(gone)
    text = '"""See gone.py and api/here.py."""\n\nx = "string.py"  # room/here.py, worker/gone2.py\n'
    assert gone_modules(text, {"/a/room/here.py", "/b/api/here.py"}) == {"gone.py", "worker/gone2.py"}
