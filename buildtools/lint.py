"""build.py lint: ruff, mypy, import contracts, lengths, dead code, versioned rows, imports of tests.

All are run, whatever fails; one line each, and what they said.
"""

from __future__ import annotations

import ast
import subprocess
from pathlib import Path

from buildtools import prepare, versioned_rows
from buildtools.say import CHECKOUT, bad, good, line

FUNCTION_LINES_MAX = 50
FILE_LINES_LOOK = 500  # a reason to look: the run names the file, and does not fail
FILE_LINES_MAX = 700
SOURCES = ["build.py", "buildtools", "awsomefsd"]
PROTOCOL_TABLES = ("awsomefsd/fuse/abi.py",)
CALLED_BY_DECORATOR = "@click.*,@*.command,@*.command(*),@pytest.*,@invariant"
GENERATED = ("_pb2.py", "_pb2_grpc.py")


def _files() -> list[Path]:
    paths = [CHECKOUT / "build.py"]
    for folder in SOURCES[1:]:
        paths += sorted((CHECKOUT / folder).rglob("*.py"))
    return [path for path in paths if not path.name.endswith(GENERATED)]


def too_long(path: Path) -> list[str]:
    """Files and functions of `path` over the bounds; a docstring counts as lines like any others."""
    text = path.read_text(encoding="utf-8")
    name = path.relative_to(CHECKOUT)
    rows = []
    if text.count("\n") > FILE_LINES_MAX:
        rows.append(f"{name}: {text.count(chr(10))} lines, bound {FILE_LINES_MAX}")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno is not None:
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                rows.append(f"{name}:{node.lineno} {node.name}: {lines} lines, bound {FUNCTION_LINES_MAX}")
    return rows


def long_files(paths: list[Path]) -> list[str]:
    """Files that are within the bound, and long enough that somebody should ask whether they are still one subject."""
    counts = {path: path.read_text(encoding="utf-8").count("\n") for path in paths}
    return [f"{path.relative_to(CHECKOUT)}: {lines} lines" for path, lines in counts.items() if FILE_LINES_LOOK < lines <= FILE_LINES_MAX]


def without_docstring(path: Path) -> list[str]:
    """Every file opens with its theory."""
    if ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))):
        return []
    return [f"{path.relative_to(CHECKOUT)}: no docstring at its top"]


def old_python(path: Path) -> list[str]:
    """build.py parses on Python 3.9, so that it can say what is missing there."""
    try:
        ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 9))
    except SyntaxError as err:
        return [f"{path.name}:{err.lineno} does not parse on Python 3.9: {err.msg}"]
    return []


def _tool(*words: str) -> list[str]:
    done = subprocess.run(words, capture_output=True, text=True, cwd=CHECKOUT, check=False)
    return [] if done.returncode == 0 else (done.stdout + done.stderr).strip().splitlines() or [f"exit code {done.returncode}"]


def dead_code(vulture: str) -> list[str]:
    """What nobody uses, except the constants of a protocol's table: a table with holes would be the worse documentation."""
    by_name = "draw_*,do_*,handle_*,get_request,service_actions,intercept_service"
    called = ["--ignore-decorators", CALLED_BY_DECORATOR, "--ignore-names", by_name]
    rows = _tool(vulture, *SOURCES, "tests", ".ci", "--exclude", "*_pb2.py,*_pb2_grpc.py", *called)
    return [row for row in rows if not (row.startswith(PROTOCOL_TABLES) and "unused variable" in row)]


def not_collected(python: str) -> list[str]:
    """Says which tests cannot be imported: mypy does not look at them, and one of them ends the half of the tests that it is in."""
    rows = _tool(python, "-m", "pytest", "--collect-only", "-qq", "-p", "no:cacheprovider", "tests")
    return [row for row in rows if "Error" in row or row.startswith("ERROR")]


def main() -> int:
    folder = str(prepare.VENV / "bin")
    files = _files()
    checks = {
        "ruff": lambda: _tool(f"{folder}/ruff", "check", "."),
        "mypy": lambda: _tool(f"{folder}/mypy"),
        "import contracts": lambda: _tool(f"{folder}/lint-imports"),
        "lengths": lambda: [row for path in files for row in too_long(path)],
        "docstrings": lambda: [row for path in files for row in without_docstring(path)],
        "build.py on 3.9": lambda: old_python(CHECKOUT / "build.py"),
        "dead code": lambda: dead_code(f"{folder}/vulture"),
        "versioned rows": versioned_rows.breaches,
        "imports of tests": lambda: not_collected(f"{folder}/python"),
    }
    failed = []
    for name, check in checks.items():
        rows = check()
        if not rows:
            good(name)
            continue
        failed.append(name)
        bad(name)
        for row in rows[:60]:
            line(f"       {row}")
        if len(rows) > 60:
            line(f"       and {len(rows) - 60} more")
    for text in long_files(files):
        line(f"  look {text}")
    line("lint: clean" if not failed else f"lint: {', '.join(failed)} failed")
    return 1 if failed else 0
