"""All tests, three processes side by side: most of them wait for disks, elections and timeouts, so two cores are idle half of the time.

A part is a folder (or a few) and a process of pytest.  Each of the lanes takes the next part as soon as it has ended one, so they end
together, whatever a part costs on this machine.  Progress is shown as it comes.  What a part has to say at its end (failures, the slowest,
what was skipped and why) is printed in one piece when it ends, so that two reports never mix and a run that is ended from outside has
told what failed until then.  All parts get one seed, drawn anew for each run.  A signal that ends this ends all, and their fixtures clean
up.

Each part has a mount namespace of its own.  A test that makes another one (a pod, a container) copies every mount that it sees, and whoever
unmounts his own meanwhile is told that it lives on elsewhere: true, and no business of the test that happens to run in another part.
A mount of ours that a killed run has left on this host is taken off the part's table: the host's doctor rightly names it, and a test of the
doctor is not about it.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

from buildtools import ready
from buildtools.say import CHECKOUT, bad, good, line, step

LANES = 3
# The order in which they begin: what takes long first, so that none is left alone at the end; what computes beside what waits.
# Folders of tests/ that are not named here come last, each as a part of its own.
ORDER = (
    ("cluster",), ("unit/meta", "unit/test_retries.py"), ("crash",), ("shared",), ("posix",), ("csi",), ("unit",), ("crash/model",),
    ("sim",), ("packaging",), ("faults",), ("model",),
)  # fmt: skip
OPTIONS = ("--durations=20", "-ra", "-m", "not soak")
NONE_CHOSEN = 5  # pytest's exit code where a folder has only tests of the soak
_WITHOUT_OUR_MOUNTS = ("sh", "-c", 'umount --all --lazy --types fuse.awsomefs; exec "$@"', "sh")
_FAILED = re.compile(r"(FAILED|ERROR) \S+\.py")


@dataclass
class Part:
    words: list[str]  # arguments of pytest
    report: list[str] = field(default_factory=list)  # what it said at its end
    code: int | None = None  # None: has not ended
    seconds: float = 0.0

    @property
    def name(self) -> str:
        return " ".join(Path(word).name if Path(word).is_absolute() else word for word in self.words if not word.startswith("--"))


def parts() -> list[Part]:
    """All tests, none twice: what a part names is left out of those that hold its folder."""
    tests = CHECKOUT / "tests"
    named = {name for names in ORDER for name in names}
    others = sorted(path.name for path in tests.iterdir() if path.is_dir() and any(path.rglob("test_*.py")) and path.name not in named)
    made = []
    for names in (*ORDER, *((name,) for name in others)):
        there = [name for name in names if (tests / name).exists()]
        inner = [name for name in sorted(named) if any(name.startswith(f"{outer}/") for outer in there) and name not in there]
        if there:
            made.append(Part([*(f"tests/{name}" for name in there), *(f"--ignore=tests/{name}" for name in inner)]))
    return made


def apart() -> list[str]:
    """What a command is put behind to run in a mount namespace of its own, without mounts of ours; nothing where that cannot be had."""
    unshare = shutil.which("unshare")
    words = [unshare or "", "--mount", "--propagation", "private"]
    works = unshare is not None and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
    return [*words, *_WITHOUT_OUR_MOUNTS] if works else []


class _Run:
    """The lanes; their threads share what is left to do, and who runs."""

    def __init__(self, all_parts: list[Part], command: list[str], environ: dict[str, str]) -> None:
        self._left = deque(all_parts)
        self._command, self._environ = command, environ
        self._running: set[subprocess.Popen[str]] = set()
        self._lock = threading.Lock()  # over all of these, and over what is printed in one piece
        self._ended: int | None = None  # the signal that ended the run

    def lane(self) -> None:
        while True:
            with self._lock:
                if self._ended is not None or not self._left:
                    return
                part = self._left.popleft()
                process = subprocess.Popen(
                    [*self._command, *part.words], env=self._environ, cwd=CHECKOUT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                    text=True, errors="replace", start_new_session=True,  # a Ctrl-C reaches it once, through us
                )  # fmt: skip
                self._running.add(process)
            began = time.monotonic()
            self._follow(process, part)
            code = process.wait()
            part.code, part.seconds = 0 if code == NONE_CHOSEN else code, time.monotonic() - began
            with self._lock:
                self._running.discard(process)
                self._tell(part)

    def _follow(self, process: subprocess.Popen[str], part: Part) -> None:
        assert process.stdout is not None
        titles = 0
        for text in process.stdout:
            titles += text.startswith("====")
            if titles > 1:  # the first one says that the session starts
                part.report.append(text)
            else:
                sys.stdout.write(text)
                sys.stdout.flush()

    def _tell(self, part: Part) -> None:
        sys.stdout.write(f"\n==== {part.name}: ended with {part.code} after {part.seconds:.0f} s\n{''.join(part.report)}")
        sys.stdout.flush()

    def end(self, number: int, _frame: object) -> None:
        self._ended = number  # no lock: this runs in the main thread, which may hold it; lanes look at it before each part
        for process in list(self._running):
            process.send_signal(number)


def drawn_seed() -> str:
    """A new seed for each run, so that a repeated run tries something new; AWSOMEFSD_SEED, which `--seed` sets, replays one."""
    return os.environ.get("AWSOMEFSD_SEED") or str(random.SystemRandom().randrange(1 << 20))


def run(python: Path | str) -> int:
    compiled = ready.for_tests()
    seed = drawn_seed()
    line(f"  seed {seed}: python3 build.py test --seed {seed} replays the random tests of this run")
    environ = dict(os.environ) | {"PYTHONPATH": str(CHECKOUT), "AWSOMEFSD_SEED": seed, "PYTHONUNBUFFERED": "1"}
    all_parts = parts()
    running = _Run(all_parts, [*apart(), str(python), "-m", "pytest", *OPTIONS], environ)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, running.end)
    lanes = [threading.Thread(target=running.lane) for _ in range(LANES)]
    for lane in lanes:
        lane.start()
    for lane in lanes:
        lane.join()
    _sum_up(all_parts, compiled, seed)
    return max((1 if part.code is None else part.code for part in all_parts), key=abs)


def _sum_up(all_parts: list[Part], compiled: str, seed: str) -> None:
    """Last of all, so that nobody has to look for it."""
    step("What was skipped, and why")
    for text in _lines(all_parts, re.compile("SKIPPED")) or ["nothing"]:
        line(f"  {text}")
    line(f"  the compiled program: {compiled}")
    line(f"  seed of the random tests: {seed} (python3 build.py test --seed {seed} replays them)")
    for part in all_parts:
        last = (part.report or ["no report"])[-1].strip("= \n")
        (bad if part.code != 0 else good)(f"{part.name}: {last}" if part.code is not None else f"{part.name}: was not run to its end")
    failed = _lines(all_parts, _FAILED)
    if failed:
        step("What failed, and by what")
        for text in failed:
            line(f"  {text}")


def _lines(all_parts: list[Part], wanted: re.Pattern[str]) -> list[str]:
    return [text.rstrip() for part in all_parts for text in part.report if wanted.match(text)]
