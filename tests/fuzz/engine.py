"""`python -m tests.fuzz.engine TARGET [--seconds N] [--runs N] [--seed N] [--input HEX]`: one decoder, fuzzed in a process of its own.

Coverage guides it where atheris is installed (its libFuzzer mutates what reached new code); without it, random mutations of the good
inputs.  Only what PARTS names for a target is instrumented, with what that imports: all of awsomefsd would cost each process minutes on a
busy machine before its first input.

Three things are finds: an error that is not documented, more than a second of CPU for one input, and memory that grows.  A find is printed
as a line "found: " with its inputs in hex, to be given back with --input, then its traceback.  One input is enough where a decoder has no
state; where it has, the inputs before it that are needed too are searched for SHRINK_S.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import logging
import random
import resource
import sys
import tempfile
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.target import Target

CPU_NS_MAX = 1_000_000_000
INPUT_BYTES_MAX = 4_096
GROWTH_BYTES_MAX = 100 << 20
WARM_RUNS = 20_000  # caches are full, and the fuzzer's own tables
PAGE = resource.getpagesize()
HISTORY = 10_000  # inputs that are remembered, in case a find needs them
SHRINK_S = 30.0


# of each target the module that has it, and the modules whose coverage guides it
PARTS: dict[str, tuple[str, list[str]]] = {
    "superblock": ("formats", ["io.device.superblock"]),
    "frame": ("formats", ["io.segment.frame", "io.segment.footer"]),
    "bays": ("formats", ["io.pool.bay_findings", "io.pool.bay_walk", "io.segment.frame"]),
    "journal": ("formats", ["meta.log.format", "meta.log.journal"]),
    "values": ("formats", ["base.codec", "meta.api.acl", "meta.state.rows"]),
    "shared memory": (
        "formats", ["fuse.control_area", "fuse.parked_requests", "fuse.slots", "io.file.dirty_log", "vfs.state.open_files"],
    ),
    "segment records": ("formats", ["io.transport.link", "io.transport.messages", "io.transport.records", "io.transport.seal"]),
    "objects": (
        "formats",
        ["tier.names", "tier.object_format", "tier.sealing", "tier.segment_object", "tier.store_secret", "io.segment.frame",
         "io.segment.footer"],
    ),
    "commands": ("requests", ["meta.api.bounds", "meta.machine.machine"]),
    "frames": ("requests", ["base.frames", "keeper.wire", "keeper.mount", "meta.api.bounds", "meta.voter.peer_messages"]),
    "FUSE requests": ("requests", ["fuse.handlers", "vfs.vfs"]),
    "settings": ("settings", ["config.settings", "config.mount_options", "base.id_map", "base.sizes"]),
}  # fmt: skip


def target_of(name: str) -> Target:
    found = importlib.import_module(f"tests.fuzz.{PARTS[name][0]}").TARGETS
    return next(target for target in found if target.name == name)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE


class Watched:
    """Calls the decoder and watches time and memory."""

    def __init__(self, make: Callable[[], Callable[[bytes], None]]) -> None:
        self._make = make
        self._decode = make()
        self._history: deque[bytes] = deque(maxlen=HISTORY)
        self.runs = 0
        self._warm = 0
        self.grown = 0

    def __call__(self, data: bytes) -> None:
        if not data:
            return
        self.runs += 1
        self._history.append(data)
        try:
            self._timed(data)
        except BaseException as err:
            tell(enough(self._make, list(self._history), type(err)), err)
            raise
        if self.runs % 4_096 == 0:
            try:
                self._look()
            except AssertionError as err:  # it is no input's fault alone
                tell([data], err)
                raise

    def _timed(self, data: bytes) -> None:
        before = time.thread_time_ns()
        self._decode(data)
        spent = time.thread_time_ns() - before
        assert spent < CPU_NS_MAX, f"{spent / 1e9:.1f} s of CPU for one input"

    def _look(self) -> None:
        now = _resident()
        if self.runs >= WARM_RUNS and not self._warm:
            self._warm = now
        if self._warm:
            self.grown = max(self.grown, now - self._warm)
            assert self.grown < GROWTH_BYTES_MAX, f"grew by {self.grown >> 20} MiB in {self.runs} inputs"


def tell(inputs: list[bytes], err: BaseException) -> None:
    words = " ".join(f"--input {data.hex()}" for data in inputs)
    print(f"found: {words}", *traceback.format_exception(err), sep="\n", file=sys.stderr, flush=True)


def enough(make: Callable[[], Callable[[bytes], None]], history: list[bytes], kind: type[BaseException]) -> list[bytes]:
    """The inputs of `history` that raise `kind` when they are all that a new decoder sees; the last one alone if that is not found out."""
    deadline = time.monotonic() + SHRINK_S

    def raises(inputs: list[bytes]) -> bool:
        with contextlib.suppress(Exception):
            decode = make()
            try:
                for data in inputs:
                    if time.monotonic() > deadline:
                        return False
                    decode(data)
            except kind:
                return True
        return False

    length = 1
    while length < len(history) and not raises(history[-length:]):
        length = min(length * 8, len(history))
    found = history[-length:]
    if length == 1 or not raises(found):
        return history[-1:]
    part = length // 2
    while part:
        for at in range(len(found) - 1 - part, -1, -part):
            shorter = found[:at] + found[at + part :]
            if raises(shorter):
                found = shorter
        part //= 2
    return found


def mutated(rng: random.Random, good: list[bytes]) -> bytes:
    data = bytearray(rng.choice(good))
    for _ in range(rng.randrange(1, 6)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del data[at : at + rng.randrange(1, 9)]
            case 2:
                data[at:at] = rng.randbytes(rng.randrange(1, 9))
            case 3:
                data[at : at + 8] = rng.choice((bytes(8), b"\xff" * 8, b"\x80" + bytes(7), rng.randbytes(8)))
            case _:
                other = rng.choice(good)
                data[at:] = other[rng.randrange(len(other)) :]
    return bytes(data[:INPUT_BYTES_MAX])


def without_guidance(watched: Watched, good: list[bytes], options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)
    end = time.monotonic() + options.seconds
    while watched.runs != options.runs and (watched.runs % 64 or time.monotonic() < end):
        watched(mutated(rng, good))


def guided(watched: Watched, good: list[bytes], options: argparse.Namespace) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    corpus = tempfile.mkdtemp(prefix="afs-corpus-")
    for number, data in enumerate(good):
        (Path(corpus) / f"{number}").write_bytes(data)
    # no limit of resident memory: the kernel counts the largest of whoever started us too, and Watched looks at growth
    arguments = [sys.argv[0], corpus, f"-seed={options.seed + 1}", f"-max_len={INPUT_BYTES_MAX}", "-timeout=240"]
    arguments += ["-rss_limit_mb=0", "-malloc_limit_mb=2048"]
    arguments += [f"-runs={options.runs}", f"-max_total_time={options.seconds}", f"-artifact_prefix={corpus}/"]
    atheris.Setup(arguments, watched)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("target")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--runs", type=int, default=-1, help="-1: no bound")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--input", action="append", help="one input in hex, instead of fuzzing; several are given in turn")
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        atheris = None
    if atheris is not None and options.input is None:
        with atheris.instrument_imports(include=["awsomefsd"], enable_loader_override=False):
            for module in PARTS[options.target][1]:
                importlib.import_module(f"awsomefsd.{module}")
    target = target_of(options.target)
    watched = Watched(target.make)
    if options.input is not None:
        for text in options.input:
            watched(bytes.fromhex(text))
        return
    logging.disable(logging.CRITICAL)  # refusals are what most inputs are for
    if atheris is not None:
        guided(watched, target.seeds(), options)
    without_guidance(watched, target.seeds(), options)
    print(f"Done {watched.runs} runs", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
