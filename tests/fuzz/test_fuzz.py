"""Every decoder against inputs that nobody meant: some ten thousand each; in the soak a million in all, or five minutes a decoder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
NAMES = ["superblock", "frame", "journal", "values", "shared memory", "commands", "frames", "FUSE requests", "settings"]
RUNS = int(os.environ.get("AWSOMEFSD_FUZZ_RUNS_EACH", "10000"))  # of each decoder in the normal run: a count, however slow the machine is
SOAK_RUNS = int(os.environ.get("AWSOMEFSD_FUZZ_RUNS", "1000000"))
SECONDS_MAX = 600  # of such a run, by then it is hopeless
SOAK_SECONDS = int(os.environ.get("AWSOMEFSD_FUZZ_SECONDS", "300"))  # for one decoder in the soak, however slow it is
MARGIN_S = 180
LINES_MAX = 40
LINE_CHARS_MAX = 400  # of a line that is not the find


def fuzz(name: str, seed: int, *options: str) -> tuple[int, str]:
    """(executions, what was found)."""
    with tempfile.TemporaryDirectory(prefix="afs-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as scratch:
        argv = [sys.executable, "-m", "tests.fuzz.engine", name, "--seed", str(seed), *options]
        done = subprocess.run(
            argv, cwd=ROOT, env=dict(os.environ) | {"TMPDIR": scratch, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
            errors="replace", check=False, timeout=max(SECONDS_MAX, SOAK_SECONDS) + MARGIN_S,
        )  # fmt: skip
    ran = re.search(r"^Done (\d+) runs", done.stderr, re.MULTILINE)
    if done.returncode == 0 and ran:
        return int(ran[1]), ""
    replay = f"replay: python -m tests.fuzz.engine {name!r} --input …"
    return 0, f"{name}: status {done.returncode}, seed {seed}; {replay}\n" + excerpt(done.stderr)


def excerpt(stderr: str) -> str:
    """What a find can be replayed and understood by: its inputs whole, the first exception, and the end."""
    lines = [line for line in stderr.splitlines() if not line.startswith(("INFO", "#", "WARNING", "\tNEW_FUNC"))]
    first = next((at for at, line in enumerate(lines) if line.startswith("found:")), None)
    if first is None:  # the process was ended: libFuzzer itself says by which input
        return "\n".join(lines[-LINES_MAX:])
    told, rest = lines[first + 1 :][:LINES_MAX], lines[first + 1 :][LINES_MAX:][-LINES_MAX:]
    return "\n".join([lines[first], *(line[:LINE_CHARS_MAX] for line in [*told, *rest])])


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> dict[str, Future[tuple[int, str]]]:
    """All that were asked for have begun: as many at a time as there are processors."""
    from tests.conftest import SEED

    pool = ThreadPoolExecutor(os.cpu_count() or 2)
    asked = [item.callspec.params["name"] for item in request.session.items if getattr(item, "originalname", "") == "test_decoder"]
    return {name: pool.submit(fuzz, name, SEED, "--runs", str(RUNS), "--seconds", str(SECONDS_MAX)) for name in NAMES if name in asked}


@pytest.mark.timeout(2 * SECONDS_MAX + MARGIN_S)
@pytest.mark.parametrize("name", NAMES)
def test_decoder(name: str, running: dict[str, Future[tuple[int, str]]], figures: list[str]) -> None:
    runs, found = running[name].result()
    assert not found, found
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
    from tests.fuzz.engine import targets

    assert sorted(targets()) == sorted(NAMES)


@pytest.mark.soak
@pytest.mark.timeout(len(NAMES) * (SOAK_SECONDS + MARGIN_S))
def test_a_million(seed: int, figures: list[str]) -> None:
    """An equal share for each decoder; the slow ones are ended by time."""
    share = SOAK_RUNS // len(NAMES)
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        done = pool.map(lambda name: fuzz(name, seed, "--runs", str(share), "--seconds", str(SOAK_SECONDS)), NAMES)
        results = dict(zip(NAMES, done, strict=True))
    for name, (runs, found) in results.items():
        figures.append(f"fuzz {name}: {runs} inputs")
        assert not found, found
    figures.append(f"fuzz: {sum(runs for runs, _ in results.values())} inputs in all")
