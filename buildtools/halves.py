"""All tests, in two processes side by side: most of them wait for disks, elections and timeouts, so two cores are idle half of the time.

Progress is shown as it comes.  What a half has to say at its end (failures, the slowest, what was skipped and why) is kept and printed in
one piece, so that two reports never mix.  Both halves get one seed, drawn anew for each run.  A signal that ends this ends both, and their
fixtures clean up.

Each half has a mount namespace of its own.  A test that makes another one (a pod, a container) copies every mount that it sees, and whoever
unmounts his own meanwhile is told that it lives on elsewhere: true, and no business of the test that happens to run in the other half.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

from buildtools import ready
from buildtools.say import CHECKOUT, bad, good, line, step

# What computes, what mounts on one node, and as much of the rest as takes the same time; everything else in tests/ is the other half.
FIRST = ("unit", "model", "sim", "posix", "integrity", "packaging", "differential", "crash/model", "fuzz")
OPTIONS = ("--durations=20", "-ra", "-m", "not soak")


def halves() -> list[list[str]]:
    """Arguments of pytest for each half."""
    first = [f"tests/{name}" for name in FIRST if (CHECKOUT / "tests" / name).is_dir()]
    others = [path for path in sorted((CHECKOUT / "tests").iterdir()) if path.is_dir() and any(path.rglob("test_*.py"))]
    rest = [f"tests/{path.name}" for path in others if path.name not in FIRST]
    return [first, [*rest, *(f"--ignore={name}" for name in first)]]


def apart() -> list[str]:
    """What a command is put behind to run in a mount namespace of its own; nothing where that cannot be had."""
    unshare = shutil.which("unshare")
    words = [unshare or "", "--mount", "--propagation", "private"]
    works = unshare is not None and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return words if works else []


class _Half:
    def __init__(self, argv: list[str], environ: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            argv, env=environ, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            start_new_session=True,  # a Ctrl-C reaches it once, through us
        )  # fmt: skip
        self.report: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        titles = 0
        for text in self.process.stdout:
            titles += text.startswith("====")
            if titles > 1:  # the first one says that the session starts
                self.report.append(text)
            else:
                sys.stdout.write(text)
                sys.stdout.flush()

    def wait(self) -> int:
        code = self.process.wait()
        self._thread.join()
        return code


def drawn_seed() -> str:
    """A new seed for each run, so that a repeated run tries something new; AWSOMEFSD_SEED, which `--seed` sets, replays one."""
    return os.environ.get("AWSOMEFSD_SEED") or str(random.SystemRandom().randrange(1 << 20))


def run(python: Path | str) -> int:
    compiled = ready.for_tests()
    seed = drawn_seed()
    line(f"  seed {seed}: python3 build.py test --seed {seed} replays the random tests of this run")
    environ = dict(os.environ) | {"PYTHONPATH": str(CHECKOUT), "AWSOMEFSD_SEED": seed, "PYTHONUNBUFFERED": "1"}
    started = [_Half([*apart(), str(python), "-m", "pytest", *OPTIONS, *words], environ) for words in halves()]

    def end(number: int, _frame: object) -> None:
        for half in started:
            half.process.send_signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)
    codes = [half.wait() for half in started]
    for half in started:
        sys.stdout.write("".join(half.report))
    _sum_up(started, codes, compiled, seed)
    return max(codes, key=abs)


def _sum_up(started: list[_Half], codes: list[int], compiled: str, seed: str) -> None:
    """Last of all, so that nobody has to look for it."""
    step("What was skipped, and why")
    skipped = [text.rstrip() for half in started for text in half.report if text.startswith("SKIPPED")]
    for text in skipped or ["nothing"]:
        line(f"  {text}")
    line(f"  the compiled program: {compiled}")
    line(f"  seed of the random tests: {seed} (python3 build.py test --seed {seed} replays them)")
    for half, code in zip(started, codes, strict=True):
        (bad if code else good)((half.report or ["no report"])[-1].strip("= \n"))
