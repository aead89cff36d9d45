"""One of our processes starts another as this very program, with the subcommand first.

The subcommand comes before any option, so that a process can be recognized by its command line whatever the directories are called.

Interpreted, the program is this interpreter with this package; compiled (packaging/binary), it is the executable itself.  Its path is taken
when the process starts: after an upgrade the same path names the new build, which is the one to start then, while /proc/self/exe
names the deleted file.  sys.executable and sys.argv[0] were rejected: the compiled form has no interpreter, and argv[0] is whatever the
caller wrote there.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

COMPILED = "__compiled__" in globals()
ROOT = Path(__file__).resolve().parents[2]
_PROGRAM = [os.readlink("/proc/self/exe").removesuffix(" (deleted)")] if COMPILED else [sys.executable, "-m", "awsomefsd"]
TOKEN, TOKEN_FILE, FD_PREFIX = "AWSOMEFSD_TOKEN", "AWSOMEFSD_TOKEN_FILE", "/proc/self/fd/"
HOME = os.path.dirname(_PROGRAM[0]) if COMPILED else str(ROOT)  # the directory that makes this program this build


def command(subcommand: str, *words: str) -> list[str]:
    """Returns the command line (argv) of this program with a subcommand and its words."""
    return [*_PROGRAM, subcommand, *words]


def again() -> list[str]:
    """Returns the command line that started this process."""
    return [*_PROGRAM, *sys.argv[1:]] if COMPILED else [sys.executable, *sys.orig_argv[1:]]


def environment() -> dict[str, str]:
    """Returns our own environment, in which `command` finds this very package from any directory (a checkout is not installed).

    Files that variables name are named by absolute paths: long-lived processes are started in another directory.
    """
    own = {name: os.path.abspath(value) if value and _names_file(name) else value for name, value in os.environ.items()}
    if COMPILED:
        return own
    places = [str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**own, "PYTHONPATH": os.pathsep.join(dict.fromkeys(places))}


def _names_file(variable: str) -> bool:
    return variable == "AWSOMEFSD_CONFIG" or (variable.startswith("AWSOMEFSD_") and variable.endswith("_FILE"))


def hide_token() -> None:
    """Replaces this process by itself (execve) with the token in a descriptor, and does not return; without a token it does nothing.

    The environment of a process shows in /proc/PID/environ for its life.  Raises OSError.
    """
    text = os.environ.get(TOKEN, "")
    if not text or TOKEN_FILE in os.environ:
        return
    fd = os.memfd_create("token", 0)  # stays open over exec
    os.write(fd, text.encode())
    kept = {name: value for name, value in environment().items() if name != TOKEN}
    argv = again()
    os.execve(argv[0], argv, kept | {TOKEN_FILE: f"{FD_PREFIX}{fd}"})


def token_descriptors(environ: dict[str, str]) -> list[int]:
    """Returns the descriptors that a child has to inherit to find the token where `environ` says."""
    place = environ.get(TOKEN_FILE, "")
    number = place.removeprefix(FD_PREFIX)
    return [int(number)] if place.startswith(FD_PREFIX) and number.isdecimal() else []
