"""`python -m tests.sim.names.run --seed N [--trace]`: mounts that decide names, one seed again; `--seeds A-B`: many, on all processors."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial

from tests.sim.names.broken import VARIANTS, broken
from tests.sim.names.simulation import NamesSimulation
from tests.sim.run import Outcome, bounded, summary
from tests.sim.simulation import Plan

MINUTES = 0.4
MOUNTS = 3
SHOWN_LINES = 40


def one(seed: int, minutes: float = MINUTES, trace: bool = False, variant: str = "") -> Outcome:
    start, error = time.process_time(), ""
    with broken(variant) if variant else contextlib.nullcontext():
        simulation = NamesSimulation(Plan(seed, minutes, mounts=MOUNTS), trace=print if trace else None)
        try:
            with bounded(minutes):
                simulation.run()
        except Exception as err:
            error = f"{type(err).__name__}: {err}\n{traceback.format_exc()}"
    world = simulation.world
    world.count("events", world.events)
    return Outcome(seed, error, world.digest, world.counts, time.process_time() - start, list(world.tail) if error else [])


def many(seeds: Iterable[int], minutes: float = MINUTES, processes: int = 0) -> list[Outcome]:
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        return list(pool.map(partial(one, minutes=minutes), seeds, chunksize=4))


def first_found(variant: str, seeds: Iterable[int], minutes: float = MINUTES) -> tuple[int, str]:
    """Returns the first seed that finds it, and what it said; (0, "") if none does."""
    for seed in seeds:
        outcome = one(seed, minutes, variant=variant)
        if outcome.error:
            return seed, outcome.error
    return 0, ""


def report(outcome: Outcome, minutes: float = MINUTES) -> str:
    tail = "\n".join(outcome.tail[-SHOWN_LINES:])
    replay = f"{os.path.relpath(sys.executable)} -m tests.sim.names.run --seed {outcome.seed} --minutes {minutes:g} --trace"
    return f"{tail}\nseed {outcome.seed} failed: {outcome.error}\nreplay: {replay}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", default="1-20", help="A-B, both included")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--broken", default="", help="with this broken variant of production code: " + "; ".join(VARIANTS))
    parser.add_argument("--processes", type=int, default=0)
    chosen = parser.parse_args()
    first, last = (chosen.seed, chosen.seed) if chosen.seed is not None else map(int, chosen.seeds.split("-"))
    if chosen.broken:
        print(*first_found(chosen.broken, range(first, last + 1), chosen.minutes))
        return 0
    if chosen.seed is not None:
        outcomes = [one(chosen.seed, chosen.minutes, chosen.trace)]
    else:
        outcomes = many(range(first, last + 1), chosen.minutes, chosen.processes)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed[:3]:
        print(report(outcome, chosen.minutes))
    print("\n".join(summary(outcomes)))
    print("digest", " ".join(f"{outcome.digest:08x}" for outcome in outcomes[:4]), "failed seeds:", [outcome.seed for outcome in failed])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
