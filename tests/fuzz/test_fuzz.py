"""Every decoder against inputs that nobody meant: some ten thousand each; in the soak a million in all."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = [
    "superblock", "frame", "bays", "journal", "values", "shared memory", "segment records", "objects", "commands", "frames",
    "FUSE requests", "settings",
]  # fmt: skip
RUNS = int(os.environ.get("AWSOMEFSD_FUZZ_RUNS_EACH", "10000"))  # of each decoder in the normal run: a count, however slow the machine is
SOAK_RUNS = int(os.environ.get("AWSOMEFSD_FUZZ_RUNS", "1000000"))
SECONDS_MAX = 600  # of such a run, by then it is hopeless
SOAK_SECONDS_MAX = 3_600  # of a decoder in the soak: by then it is hopeless
MARGIN_S = 180
MODULES_MAX = 185  # instrumented for one decoder: each costs a process up to half a second on a busy machine; some 160 are what decides names
LINES_MAX = 40
LINE_CHARS_MAX = 400  # of a line that is not the find


class Fuzzed(NamedTuple):
    """What a process did: executions, what it found, and how many modules it instrumented (0 without atheris)."""

    runs: int
    found: str
    modules: int = 0


def fuzz(name: str, seed: int, runs: int, seconds: int) -> Fuzzed:
    options = ["--runs", str(runs), "--seconds", str(seconds)]
    with tempfile.TemporaryDirectory(prefix="afs-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as scratch:
        argv = [sys.executable, "-m", "tests.fuzz.engine", name, "--seed", str(seed), *options]
        done = subprocess.run(
            argv, cwd=ROOT, env=dict(os.environ) | {"TMPDIR": scratch, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            errors="replace", check=False, timeout=seconds + MARGIN_S,
        )  # fmt: skip
    ran = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    if done.returncode == 0 and ran:
        return Fuzzed(int(ran[1]), "", done.stderr.count("INFO: Instrumenting "))
    replay = f"replay: python -m tests.fuzz.engine {name!r} --input …"
    return Fuzzed(0, f"{name}: status {done.returncode}, seed {seed}; {replay}\n" + excerpt(done.stderr))


def excerpt(stderr: str) -> str:
    """What a find can be replayed and understood by: its inputs whole, the first exception, and the end."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("INFO", "#", "WARNING", "\tNEW_FUNC"))]
    first = next((at for at, line in enumerate(lines) if line.startswith("found:")), None)
    if first is None:  # the process was ended: libFuzzer itself says by which input
        return "\n".join(lines[-LINES_MAX:])
    told, rest = lines[first + 1 :][:LINES_MAX], lines[first + 1 :][LINES_MAX:][-LINES_MAX:]
    return "\n".join([lines[first], *(line[:LINE_CHARS_MAX] for line in [*told, *rest])])


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> dict[str, Future[Fuzzed]]:
    """All that were asked for have begun: as many at a time as there are processors."""
    from tests.conftest import SEED

    pool = ThreadPoolExecutor(os.cpu_count() or 2)
    asked = [item.callspec.params["name"] for item in request.session.items if getattr(item, "originalname", "") == "test_decoder"]
    return {name: pool.submit(fuzz, name, SEED, RUNS, SECONDS_MAX) for name in NAMES if name in asked}


@pytest.mark.timeout(2 * SECONDS_MAX + MARGIN_S)
@pytest.mark.parametrize("name", NAMES)
def test_decoder(name: str, running: dict[str, Future[Fuzzed]], figures: list[str]) -> None:
    runs, found, modules = running[name].result()
    assert not found, found
    assert modules <= MODULES_MAX, f"{name}: {modules} modules were instrumented; see PARTS of the engine"
    assert runs >= RUNS, f"{name}: only {runs} inputs in {SECONDS_MAX} s; this run is void"
    figures.append(f"fuzz {name}: {runs} inputs, {engine()}")


def engine() -> str:
    try:
        import atheris  # noqa: F401
    except ImportError:
        return "random mutations (atheris is not installed)"
    return "guided by coverage"


def test_a_find_can_be_replayed_from_what_is_told() -> None:
    from tests.fuzz.engine import enough

    def make():
        seen = set()

        def decode(data: bytes) -> None:
            seen.add(data)
            if {b"3", b"77", b"99"} <= seen:
                raise KeyError("together")
            if data == b"single":
                raise ValueError

        return decode

    history = [str(at).encode() for at in range(100)]
    assert enough(make, history, KeyError) == [b"3", b"77", b"99"]
    assert enough(make, [*history[:20], b"single"], ValueError) == [b"single"]
    assert enough(make, history[:50], KeyError) == [b"49"], "no inputs are enough: memory that grew, say"
    noise = "\n".join(["#1 INITED", "noise"] * 200)
    found = f"found: --input {'ab' * 4096}\nTraceback (most recent call last):\nValueError: first"
    told = excerpt(f"{noise}\n{found}\n{noise}\nSUMMARY: {'x' * 999}")
    assert told.startswith(found) and "SUMMARY" in told
    assert len(told) < 20_000


def test_all_targets_are_run() -> None:
    from tests.fuzz import engine, formats, requests, settings

    has = {f"{part.__name__.rpartition('.')[2]}: {target.name}" for part in (formats, requests, settings) for target in part.TARGETS}
    assert has == {f"{part}: {name}" for name, (part, _) in engine.PARTS.items()}
    assert sorted(engine.PARTS) == sorted(NAMES)


@pytest.mark.soak
@pytest.mark.timeout(len(NAMES) * (SOAK_SECONDS_MAX + MARGIN_S))
def test_a_million(seed: int, figures: list[str]) -> None:
    """An equal share for each decoder, whatever time that takes: one that was ended by time would have had fewer than the name says."""
    share = -(-SOAK_RUNS // len(NAMES))
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        done = pool.map(lambda name: fuzz(name, seed, share, SOAK_SECONDS_MAX), NAMES)
        results = dict(zip(NAMES, done, strict=True))
    for name, (runs, found, _) in results.items():
        figures.append(f"fuzz {name}: {runs} inputs")
        assert not found, found
        assert runs >= share, f"{name}: only {runs} of {share} inputs; this run is void"
    figures.append(f"fuzz: {sum(one.runs for one in results.values())} inputs in all")
