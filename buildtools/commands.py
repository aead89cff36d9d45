"""The commands of build.py: each prepares what it needs, then runs the program that does it under the venv's interpreter."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from buildtools import cluster, kind, lint, parts, prepare
from buildtools.cluster import Cluster
from buildtools.nodes import Node
from buildtools.say import CHECKOUT, BuildError, bad, good, line, parse_size, size, step

COPY_BYTES_MAX = 300 << 20
DISK_BYTES_MIN = 2 << 30  # the tree twice, and what kills leave half full
KUBERNETES = "--kubernetes"  # of soak
SECONDS_FIRST, SECONDS_AGAIN = 270, 180


def _program(*words: str | os.PathLike[str], behind: Sequence[str] = ()) -> NoReturn:
    """Become a program of the checkout under the venv's interpreter: signals, terminal and exit code are its own."""
    os.chdir(CHECKOUT)
    sys.stdout.flush()
    argv = [*behind, prepare.PYTHON, *(os.fspath(word) for word in words)]
    os.execve(argv[0], argv, dict(os.environ) | {"PYTHONPATH": str(CHECKOUT)})


def up(directory: Path, size_text: str) -> int:
    size_bytes = parse_size(size_text)
    if size_bytes < DISK_BYTES_MIN:
        raise BuildError(f"--size {size_text} is too small for what `up` writes: at least {size(DISK_BYTES_MIN)}, as in --size 2G")
    place = Cluster(directory)
    place.check_place()
    place.take()
    step("What this will do")
    ready = prepare.venv_is_current()
    line(f"  about {SECONDS_AGAIN if ready else SECONDS_FIRST} s; up to {size(COPY_BYTES_MAX * 4)} of disk below {directory}")
    line(f"  (the device is a sparse file of {size(size_bytes)}) and {'nothing more' if ready else '100 MiB in .venv of the checkout'}")
    step("Checks")
    blockers = prepare.check_host()
    if blockers:
        for text in blockers:
            bad(text)
        return 1
    prepare.check_disk(directory, COPY_BYTES_MAX * 4)
    prepare.packages()
    prepare.venv(extras=(CHECKOUT / ".venv" / prepare.STAMP).exists() and prepare.has_test_extras())
    _program("-m", "buildtools.demo", "--dir", directory, "--size", str(size_bytes))


def down(directory: Path) -> int:
    if not directory.exists():
        good(f"{directory} is not there: nothing to do")
        return 0
    if (directory / cluster.MARKER).exists():
        place = Cluster(directory)
        place.take()
        place.destroy()
    else:
        Node(directory).destroy()
    good(f"{directory}: unmounted, stopped and removed")
    return 0


def _prepare_for_tests(soak: bool = False) -> None:
    if os.geteuid() == 0:
        prepare.packages(tests=True, soak=soak)
    prepare.venv(extras=True)


def take_seed(arguments: list[str]) -> list[str]:
    """The arguments without `--seed N`, which becomes AWSOMEFSD_SEED.  Raises BuildError for what is no number."""
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name != "--seed":
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        if not value.isdecimal():
            raise BuildError(f"--seed {value}: give the number that a run has printed, as in --seed 4711")
        os.environ["AWSOMEFSD_SEED"] = value
    return rest


def test(arguments: list[str]) -> NoReturn:
    arguments = take_seed(arguments)
    _prepare_for_tests()
    if not arguments:
        sys.exit(parts.run(prepare.PYTHON))
    _program("-m", "pytest", "--durations=20", "-ra", "-m", "not soak", *arguments)


def soak(arguments: list[str]) -> NoReturn:
    if KUBERNETES in arguments:
        prepare.packages()
        prepare.venv(extras=(CHECKOUT / ".venv" / prepare.STAMP).exists() and prepare.has_test_extras())
        _program("-m", "buildtools.kubernetes.trial", *(word for word in arguments if word != KUBERNETES))
    arguments = take_seed(arguments)
    _prepare_for_tests(soak=True)
    _program("-m", "pytest", "--durations=20", "-ra", "-m", "soak", "--timeout=14400", *arguments)


def run(chosen: argparse.Namespace, arguments: list[str]) -> int:
    if chosen.command == "up":
        return up(Path(chosen.dir).absolute(), chosen.size)
    if chosen.command == "down":
        return down(Path(chosen.dir).absolute())
    if chosen.command == "test":
        test(arguments)
    if chosen.command == "soak":
        soak(arguments)
    if chosen.command == "lint":
        prepare.venv(extras=True)
        return lint.main()
    if chosen.command == "dev-env":
        place = Path(chosen.dir).absolute()
        return kind.remove(place) if chosen.remove else kind.dev_env(place, parse_size(chosen.size))
    if chosen.command == "deploy":
        return kind.deploy()
    if chosen.command in ("binary", "packages", "image", "audit", "release"):
        prepare.venv(extras=(CHECKOUT / ".venv" / prepare.STAMP).exists() and prepare.has_test_extras())
        _program("-m", "buildtools.making", chosen.command, "--jobs", str(chosen.jobs), "--key", chosen.key)
    if (chosen.peers or chosen.record) and (chosen.shared or chosen.voters):
        raise BuildError("--peers and --record are of the measurement on one node: leave --shared and --voters out")
    _prepare_for_tests()
    words = ["--quick"] if chosen.quick else []
    words += ["--json", os.path.abspath(chosen.json)] if chosen.json else []
    words += ["--peers"] * chosen.peers + ["--record"] * chosen.record
    if chosen.shared or chosen.peers:
        prepare.others()
    which = "voters" if chosen.voters else "shared" if chosen.shared else "bench"
    _program("-m", f"tests.bench.{which}", *words, behind=parts.apart())  # nobody who copies mounts meanwhile keeps ours alive
