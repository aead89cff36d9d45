"""`python -m tests.sim.run --seed N --minutes 3 [--trace]`: one seed again; `--seeds A-B`: many, on all processors."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial

from tests.sim.broken import VARIANTS, broken
from tests.sim.episodes.named import EPISODES
from tests.sim.simulation import Plan, Simulation

SHOWN_LINES = 40
CPU_S_MAX = 20.0
CPU_S_A_MINUTE_MAX = 10.0  # 0.3 to 1 is usual


@dataclass
class Outcome:
    """Of one seed; `error` is empty if all held."""

    seed: int
    error: str
    digest: int
    counts: dict[str, int]
    cpu_s: float
    tail: list[str]


def one(
    seed: int, minutes: float = 3.0, trace: bool = False, variant: str = "", focus: str = "", grows: bool = False, upgrades: bool = False
) -> Outcome:
    with broken(variant) if variant else contextlib.nullcontext():
        return _one(Plan(seed, minutes, focus=focus, grows=grows, upgrades=upgrades), trace)


def _one(plan: Plan, trace: bool) -> Outcome:
    start = time.process_time()
    simulation = Simulation(plan, trace=print if trace else None)
    error = ""
    try:
        with bounded(plan.minutes):
            simulation.run()
    except Exception as err:
        error = f"{type(err).__name__}: {err}\n{traceback.format_exc()}"
    world = simulation.world
    world.counts.setdefault("simulated seconds", world.now_ns // 10**9)
    world.count("events", world.events)
    return Outcome(plan.seed, error, world.digest, world.counts, time.process_time() - start, list(world.tail) if error else [])


@contextlib.contextmanager
def bounded(minutes: float) -> Iterator[None]:
    """A seed that does not end is a failure, also if it is one turn of a node that does not."""

    def too_long(_number: int, _frame: object) -> None:
        raise TimeoutError(f"the seed has taken {CPU_S_MAX + minutes * CPU_S_A_MINUTE_MAX:g} s of CPU")

    before = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, CPU_S_MAX + minutes * CPU_S_A_MINUTE_MAX)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def command(seed: int, minutes: float, focus: str = "") -> str:
    words = f"{os.path.relpath(sys.executable)} -m tests.sim.run --seed {seed} --minutes {minutes:g} --trace"
    return f'{words} --focus "{focus}"' if focus else words


def report(outcome: Outcome, minutes: float, focus: str = "") -> str:
    tail = "\n".join(outcome.tail[-SHOWN_LINES:])
    return f"{tail}\nseed {outcome.seed} failed: {outcome.error}\nreplay: {command(outcome.seed, minutes, focus)}"


def many(seeds: range, minutes: float, processes: int = 0, focus: str = "", grows: bool = False, upgrades: bool = False) -> list[Outcome]:
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        return list(pool.map(partial(one, minutes=minutes, focus=focus, grows=grows, upgrades=upgrades), seeds, chunksize=4))


def first_found(variant: str, seeds: Iterable[int], minutes: float = 3.0, focus: str = "") -> tuple[int, str, int]:
    """The first of these seeds that finds the variant, what it says, and how many were run; seed 0 if none does."""
    count = 0
    for seed in seeds:
        count += 1
        outcome = one(seed, minutes, variant=variant, focus=focus)
        if outcome.error:
            return seed, outcome.error.splitlines()[0], count
    return 0, "", count


def summary(outcomes: list[Outcome]) -> list[str]:
    total: dict[str, int] = {}
    for outcome in outcomes:
        for what, count in outcome.counts.items():
            total[what] = total.get(what, 0) + count
    hours = total.get("simulated seconds", 0) / 3600
    lines = [f"{len(outcomes)} seeds, {hours:.2f} simulated hours, {sum(outcome.cpu_s for outcome in outcomes):.0f} s of CPU"]
    return [*lines, ", ".join(f"{what} {count}" for what, count in sorted(total.items()))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--seeds", help="A-B, both included")
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--trace", action="store_true", help="print everything that happens")
    parser.add_argument("--broken", default="", help="with this broken variant of production code: " + "; ".join(VARIANTS))
    parser.add_argument("--focus", default="", choices=["", *EPISODES], help="one kind of episode, again and again, and no other faults")
    parser.add_argument("--grows", action="store_true", help="begin with one voter; the policy takes in the others")
    parser.add_argument("--upgrades", action="store_true", help="begin with an older build; the nodes are upgraded one by one")
    parser.add_argument("--processes", type=int, default=0)
    chosen = parser.parse_args()
    if chosen.seed is not None:
        outcomes = [one(chosen.seed, chosen.minutes, chosen.trace, chosen.broken, chosen.focus, chosen.grows, chosen.upgrades)]
    else:
        first, last = map(int, (chosen.seeds or "1-20").split("-"))
        if chosen.broken:
            print(*first_found(chosen.broken, range(first, last + 1), chosen.minutes, chosen.focus))
            return 0
        outcomes = many(range(first, last + 1), chosen.minutes, chosen.processes, chosen.focus, chosen.grows, chosen.upgrades)
    failed = [outcome for outcome in outcomes if outcome.error]
    for outcome in failed[:3]:
        print(report(outcome, chosen.minutes, chosen.focus))
    print("\n".join(summary(outcomes)))
    print("digest", " ".join(f"{outcome.digest:08x}" for outcome in outcomes[:4]), "failed seeds:", [outcome.seed for outcome in failed])
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
