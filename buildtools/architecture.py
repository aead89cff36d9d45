"""The tree in docs/ARCHITECTURE.md: each folder of the package with the first sentences of its `__init__`.

``python3 -m buildtools.architecture`` writes it between the two markers of the page; a test compares both.
"""

from __future__ import annotations

import ast
import sys
import textwrap
from pathlib import Path

from buildtools.say import CHECKOUT

PACKAGE = CHECKOUT / "awsomefsd"
PAGE = CHECKOUT / "docs" / "ARCHITECTURE.md"
BEGIN, END = "<!-- made by buildtools.architecture: begin -->\n", "<!-- made by buildtools.architecture: end -->\n"
_COLUMN, _WIDTH = 22, 138


def says(folder: Path) -> str:
    """The first paragraph of a package's docstring, on one line."""
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split())


def modules(folder: Path) -> int:
    """How many modules people read in a folder: generated code and `__init__` do not count."""
    return sum(1 for path in folder.glob("*.py") if path.name != "__init__.py" and "_pb2" not in path.name)


def tree() -> str:
    """The folders in the order of the alphabet, two spaces for each level, wrapped."""
    rows = ["awsomefsd/"]
    for path in sorted(PACKAGE.rglob("__init__.py")):
        folder = path.parent
        depth = len(folder.relative_to(PACKAGE).parts)
        if depth:
            head = f"{'  ' * depth}{folder.name}/".ljust(_COLUMN)
            rows += textwrap.wrap(says(folder), _WIDTH, initial_indent=head, subsequent_indent=" " * _COLUMN)
    return "\n".join(["```text", *rows, "```", ""])


def page(text: str) -> str:
    """The page with the tree of today between its markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin and end, f"{PAGE.name} has lost its markers"
    return before + begin + tree() + end + after


def main() -> int:
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
