"""How one of our processes starts another: this interpreter, this package, the subcommand first.

The subcommand comes before any option, so that a process can be told from its command line whatever the directories are called.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def command(subcommand: str, *words: str) -> list[str]:
    return [sys.executable, "-m", "awsomefsd", subcommand, *words]


def environment() -> dict[str, str]:
    """Our own environment, in which `command` finds this very package from any directory (a checkout is not installed)."""
    places = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}
