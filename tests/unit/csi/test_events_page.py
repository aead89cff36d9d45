"""docs/KUBERNETES.md has a row for every refusal with FAILED_PRECONDITION that a user may meet in an event."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import awsomefsd

CSI = Path(awsomefsd.__file__).parent / "csi"
PAGE = CSI.parents[1] / "docs" / "KUBERNETES.md"
HEAD = "| the event has | means | what to do |\n"


def words_of(node: ast.AST) -> str:
    """The constant words of a message, as far as they are in the call itself."""
    return " ".join(one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str))


def refusals() -> Iterator[tuple[str, str]]:
    for path in sorted(CSI.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "precondition":
                yield f"{path.name}:{node.lineno}", words_of(node.args[0])


def rows() -> list[list[str]]:
    """The words in backticks of the first cell of each row."""
    table = PAGE.read_text().split(HEAD)[1].split("\n\n")[0].splitlines()[1:]
    return [re.findall(r"`([^`]+)`", row.split(" | ")[0]) for row in table]


def test_every_refusal_is_explained() -> None:
    known = [words for row in rows() for words in row]
    assert len(known) > 20
    lost = [f"{place}: {words}" for place, words in refusals() if not any(one in words for one in known)]
    assert not lost, f"give each a row in {PAGE.name}, in the table of FAILED_PRECONDITION:\n" + "\n".join(lost)
