"""Module docstrings begin with a sentence that has a subject; those that do not yet are counted, and their number may only fall."""

from __future__ import annotations

import ast
from pathlib import Path

import awsomefsd

PACKAGE = Path(awsomefsd.__file__).parent
GENERATED = "pb"

# A docstring that begins with one of these words begins with a clause or a part of a sentence, not with a subject.
HEADLESS = frozenset({
    "After", "As", "At", "Because", "Before", "Behind", "Beside", "By", "For", "From", "How", "If", "In", "Of", "On", "Once",
    "To", "What", "When", "Where", "Whether", "Which", "While", "Who", "Whom", "Whose", "Why", "With", "Without",
})  # fmt: skip
HEADLESS_MAX = 3


def first_line(source: str) -> str:
    docstring = ast.get_docstring(ast.parse(source))
    return (docstring or "").partition("\n")[0]


def is_headless(line: str) -> bool:
    return line.split(" ")[0].rstrip(",:") in HEADLESS


def test_the_words_that_begin_a_headless_line() -> None:
    assert is_headless("What fsck finds.") and is_headless("In a pod: the keeper runs on the host.")
    assert not is_headless("The rows are the values of the store.") and not is_headless("") and not is_headless("Inodes end.")


def test_headless_module_docstrings_do_not_grow_in_number() -> None:
    """Lower the bound when the number has fallen."""
    paths = sorted(path for path in PACKAGE.rglob("*.py") if GENERATED not in path.relative_to(PACKAGE).parts)
    found = [str(path.relative_to(PACKAGE)) for path in paths if is_headless(first_line(path.read_text()))]
    assert len(found) <= HEADLESS_MAX, "begin these docstrings with a subject: " + ", ".join(found)


def test_every_module_has_a_docstring() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if GENERATED not in path.relative_to(PACKAGE).parts]
    assert [str(path) for path in paths if not first_line(path.read_text())] == []
