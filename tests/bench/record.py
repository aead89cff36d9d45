"""Runs of `build.py bench` that are kept: docs/figures/one-node-DATE-COMMIT.json, a file each.

A file has `format`, `commit` (with "+" if the checkout was changed), `date` (UTC), `rounds`, `machine`, `load` before and after, `targets`
in their order, and for each measure its `unit`, all `rates` by target, and `cpu_us` (medians by "target: process").  docs/PERFORMANCE.md
is made from them (one_node_page.py).
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from buildtools.say import CHECKOUT, BuildError

FOLDER = CHECKOUT / "docs" / "figures"
FORMAT = 1
DIGITS = 4  # of a figure that are kept; the machine does not repeat more
FIELDS = {"format", "commit", "date", "rounds", "machine", "load", "targets", "measures", "node"}

Run = dict[str, Any]


def digits(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def commit() -> str:
    """Of the checkout; BuildError if it is none of git's."""
    name = _git("rev-parse", "--short=8", "HEAD").strip()
    return name + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def _git(*words: str) -> str:
    try:
        return subprocess.run(["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as err:
        raise BuildError(f"figures are kept with their commit, and git does not name one: {err}") from err


def made(measures: Run, node: dict[str, float], targets: list[str], rounds: int, load: tuple[float, float]) -> Run:
    return {
        "format": FORMAT,
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "rounds": rounds,
        "machine": {"kernel": platform.release(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "load": [digits(value) for value in load],
        "targets": targets,
        "measures": measures,
        "node": {name: digits(value) for name, value in node.items()},
    }


def check(run: Run) -> None:
    """ValueError that says what is wrong with a file of figures."""
    if set(run) != FIELDS or run["format"] != FORMAT:
        raise ValueError(f"fields {sorted(run)} of format {run.get('format')}, not {sorted(FIELDS)} of {FORMAT}")
    time.strptime(run["date"], "%Y-%m-%d")
    for name, row in run["measures"].items():
        for target, rates in row["rates"].items():
            if target not in run["targets"] or not 1 <= len(rates) <= run["rounds"] or min(rates) <= 0:
                raise ValueError(f"{name}, {target}: {rates}")


def keep(run: Run) -> Path:
    check(run)
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"one-node-{run['date']}-{run['commit']}.json"
    path.write_text(json.dumps(run, indent=1) + "\n")
    return path


def kept() -> list[Run]:
    """Oldest first."""
    runs = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("one-node-*.json"))]
    for run in runs:
        check(run)
    return runs
