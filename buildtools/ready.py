"""Is there a compiled program of these very sources, and if not: may `build.py test` make one?

A build takes about 12 minutes of CPU the first time, which the time for all tests does not have; from the caches of an earlier build in the
same checkout it takes about two.  So `build.py test` builds only what these caches make cheap, within AWSOMEFSD_TEST_BUILD_S seconds
(0: never), and its last lines say which program the tests ran, or that there was none and what makes one.  A fresh checkout has no
caches: there it is always said and never built, unless the variable allows as long as a first build takes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from buildtools import binary
from buildtools.say import CHECKOUT, BuildError, step

VARIABLE = "AWSOMEFSD_TEST_BUILD_S"
ALLOWED_S = 300.0
FIRST_S, AGAIN_S = 1_800.0, 150.0  # on two cores that do little else


def _expected_s() -> float:
    caches = (CHECKOUT / "build" / "ccache", binary.VENV / "stamp")
    return AGAIN_S if all(path.exists() for path in caches) else FIRST_S


def _allowed_s() -> float:
    text = os.environ.get(VARIABLE, str(ALLOWED_S))
    try:
        return float(text)
    except ValueError:
        raise BuildError(f"{VARIABLE}={text}: seconds are wanted") from None


def _make(seconds: float) -> str:
    """"" or why there is still none."""
    step(f"The compiled program, because what goes into it has changed (at most {seconds:.0f} s)")
    code = _run_all(["nice", "-n", "5", sys.executable, "-m", "buildtools.making", "binary"], seconds)
    if code is None:
        return f"it took longer than {seconds:.0f} s"
    return f"its build ended with {code}, see above" if code else ""


def _run_all(argv: list[str], seconds: float) -> int | None:
    """The exit code; None if it took longer.  Compilers that it started end with it, however it ends."""
    process = subprocess.Popen(argv, cwd=CHECKOUT, env={**os.environ, "PYTHONPATH": str(CHECKOUT)}, start_new_session=True)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def for_tests() -> str:
    """What is said at the end of all tests about the compiled program; makes it where that is cheap."""
    if named := os.environ.get("AWSOMEFSD_BINARY"):
        return f"AWSOMEFSD_BINARY: all nodes of the tests ran {named}"
    found = binary.current()
    if found is None:
        why = _why_not(_allowed_s())
        if why:
            return f"not built, and none of the tests above is about it: {why}; python3 build.py binary makes it (docs/PACKAGING.md)"
        found = binary.current()
    return f"tests/posix and tests/packaging ran {_short(found)}" if found else "not built: the sources changed during the build"


def _why_not(allowed_s: float) -> str:
    try:
        binary.check_tools()
    except BuildError as err:
        return str(err)
    if (expected := _expected_s()) > allowed_s:
        there = "is of other sources" if (binary.directory() / "awsomefsd").exists() else "is not there"
        return f"dist/ {there}, a build takes about {expected / 60:.0f} minutes here and {VARIABLE} allows {allowed_s:.0f} s"
    return _make(allowed_s)


def _short(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))
