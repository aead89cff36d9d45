"""The texts of refusals are in the log's results: every voter keeps the reply to a request, and their states are compared byte by byte.

So a voter of another build that says it in other words counts as diverged, and is rebuilt.  A text that changes needs a level of the
cluster (base/levels.py), as any change of a rule does; a new refusal adds a line.  AWSOMEFSD_UPDATE_GOLDEN=1 writes the file again.
"""

from __future__ import annotations

import ast
import importlib
import os
from pathlib import Path
from typing import Any

from awsomefsd.meta import api, machine, state

GOLDEN = Path(__file__).parents[3] / "golden" / "refusals.txt"
NOT_IN_THE_LOG = ("queries.py", "scrub_queries.py")


def said(text: ast.expr, module: dict[str, Any]) -> str:
    """The text with its constants; {} for every value that only a request has."""
    if isinstance(text, ast.Constant):
        return str(text.value)
    if isinstance(text, ast.JoinedStr):
        return "".join(said(part, module) for part in text.values)
    try:
        value = text.value if isinstance(text, ast.FormattedValue) else text
        return str(eval(ast.unparse(value), {**module, "__builtins__": {}}))
    except NameError:
        return "{}"


def refusals(path: Path, package: str) -> set[str]:
    """The refusals of a module that are kept: those of FsError itself, not of the classes that say to ask again."""
    module = vars(importlib.import_module(f"{package}.{path.stem}"))
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    return {
        f"{said(call.args[1], module)}\n"
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id == "FsError" and len(call.args) > 1
    }


def test_voters_of_all_builds_refuse_in_the_same_words() -> None:
    folders = [(Path(package.__path__[0]), package.__name__) for package in (machine, state)]
    places = [(path, name) for folder, name in folders for path in folder.glob("*.py") if path.name not in ("__init__.py", *NOT_IN_THE_LOG)]
    places.append((Path(api.__path__[0]) / "acl.py", api.__name__))
    made = "".join(sorted(set().union(*(refusals(*place) for place in places))))
    if os.environ.get("AWSOMEFSD_UPDATE_GOLDEN") == "1":
        GOLDEN.write_text(made)
    assert made == GOLDEN.read_text(), "other words of a refusal are another state: see above"
