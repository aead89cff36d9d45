"""The state machine: each step is one operation by one user, done in every tree; results and trees must be the same after each.

The first side is the reference.  Compared after each step: the result (value or errno), and of every file its attributes, its other names,
and which of its times have changed with this step; at the end contents and extended attributes too.  Atimes are left out: both mounts
are noatime.  A failing example is printed as a list for test_differential_cases.py.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from tests.differential import strategies
from tests.differential.sides import USERS

Step = tuple[Any, ...]  # (user, kind, *arguments), or ("kill", milliseconds into the next step, -1: before it)
Tree = dict[str, tuple[Any, ...]]
BUSY_S = 60
KILL_AT = 20  # steps: by then each example with kills has had one
AGAIN_EVERY = 25  # examples
OFTEN = ("open", "open", "write", "pwrite", "pread", "mkdir", "rename", "unlink", "stat")  # besides once each
REFUSED = ("EACCES", "EPERM")
SHOWN_CHARS = 600


class Side(Protocol):
    name: str

    def start(self, user: str, kind: str, arguments: tuple[Any, ...]) -> None: ...
    def result(self, user: str) -> Any: ...
    def tree(self, full: bool) -> Tree: ...
    def begin(self, name: str, mode: int) -> None: ...
    def finish(self) -> None: ...


@dataclass
class Bench:
    """What all examples of a run share."""

    sides: Sequence[Side]
    kinds: tuple[str, ...]
    kill: Callable[[int], None] | None = None  # of the worker, so many milliseconds into an operation; None: no kills
    users: tuple[str, ...] = tuple(USERS)
    plain: bool = False  # only paths and files that need no kernel
    mount_again: Callable[[], None] | None = None  # of all sides, at the end of some examples
    every: int = 1  # trees are compared around each so many steps; where looking at a tree is dear
    number: itertools.count[int] = field(default_factory=itertools.count)
    steps: int = 0
    examples: int = 0
    kills: int = 0
    mounts: int = 0


def times_changed(before: Tree, after: Tree) -> dict[str, str]:
    """Of each file that was there before: which of mtime and ctime are other ones now; "=" if both are, and the same."""
    old = {ino: times for _, ino, times in before.values()}
    found = {}
    for path, (_, ino, times) in after.items():
        if ino in old:
            changed = [letter for letter, place in (("m", 1), ("c", 2)) if times[place] != old[ino][place]]
            found[path] = "".join(changed) + ("=" if len(changed) == 2 and times[1] == times[2] else "")
    return found


def shape(tree: Tree) -> dict[str, tuple[Any, ...]]:
    """What is compared: attributes, and the first of a file's names."""
    first: dict[int, str] = {}
    for path in sorted(tree):
        first.setdefault(tree[path][1], path)
    return {path: (shown, first[ino]) for path, (shown, ino, _) in tree.items()}


def differences(name: str, expected: dict[str, Any], got: dict[str, Any]) -> list[str]:
    return [
        f"  {path!r}: reference {expected.get(path)}, {name} {got.get(path)}"
        for path in sorted(expected.keys() | got.keys())
        if expected.get(path) != got.get(path)
    ]


class Run:
    """One example."""

    def __init__(self, bench: Bench, mode: int) -> None:
        self.bench = bench
        self.mode = mode
        self.history: list[Step] = []
        self.pending: int | None = None
        self.failed = False
        name = f"e{next(bench.number)}"
        for side in bench.sides:
            side.begin(name, mode)
        self.trees = [side.tree(False) for side in bench.sides]
        bench.examples += 1

    def fail(self, *lines: str) -> None:
        self.failed = True
        rows = "".join(f"    {step!r},\n" for step in self.history)
        raise AssertionError("\n".join(lines)[: 8 * SHOWN_CHARS] + f"\nas a case: mode {self.mode:#o}, steps\n{rows}")

    def step(self, user: str, kind: str, *arguments: Any) -> None:
        if self.bench.kill is not None and len(self.history) == KILL_AT and not any(step[0] == "kill" for step in self.history):
            self.kill(self.bench.examples % 12 - 1)  # hypothesis leaves out some rules in many examples, these too
        self.history.append((user, kind, *arguments))
        reference, *others = self.bench.sides
        reference.start(user, kind, arguments)
        expected = reference.result(user)
        for side in others:
            if side.name == "vfs" and expected in REFUSED:
                continue  # the kernel's affair
            got = self.on(side, user, kind, arguments)
            until = time.monotonic() + BUSY_S
            while kind == "remount" and got == "EBUSY" != expected and time.monotonic() < until:
                side.start(user, kind, arguments)
                got = side.result(user)  # the kernel holds a file without names until its close was answered
            if got != expected:
                self.fail(f"{kind}: reference {str(expected)[:SHOWN_CHARS]}, {side.name} {str(got)[:SHOWN_CHARS]}")
        self.pending = None
        self.bench.steps += 1
        place = len(self.history) % self.bench.every
        if place in (0, self.bench.every - 1):
            self.compare(full=False, timed=place == 0)

    def on(self, side: Side, user: str, kind: str, arguments: tuple[Any, ...]) -> Any:
        """The operation on one side, with a kill before or in it if one is due."""
        kill = self.bench.kill if self.pending is not None and side.name == "mount" else None
        if kill is not None and self.pending == -1:
            kill(0)
        side.start(user, kind, arguments)
        if kill is not None and self.pending != -1:
            kill(self.pending or 0)
        self.bench.kills += kill is not None
        return side.result(user)

    def kill(self, milliseconds: int) -> None:
        """With the next step."""
        self.history.append(("kill", milliseconds))
        self.pending = milliseconds

    def compare(self, full: bool, timed: bool = True) -> None:
        """`timed`: one step lies between the trees of before and these, so its times can be told."""
        trees = [side.tree(full) for side in self.bench.sides]
        changed = [times_changed(before, after) for before, after in zip(self.trees, trees, strict=True)]
        for side, tree, times in zip(self.bench.sides[1:], trees[1:], changed[1:], strict=True):
            rows = differences(side.name, shape(trees[0]), shape(tree))
            rows += [] if full or not timed else differences(f"{side.name} (mtime, ctime changed)", changed[0], times)
            if rows:
                self.fail("trees differ", *rows[:6])
        self.trees = trees

    def judge(self) -> None:
        """At the end: contents too, and now and then what is there after an unmount and a mount."""
        self.compare(full=True)
        if self.bench.mount_again is not None and self.bench.examples % AGAIN_EVERY == 0:
            self.bench.mount_again()
            self.bench.mounts += 1
            self.compare(full=True)

    def end(self) -> None:
        for side in self.bench.sides:
            side.finish()


MODES = (0o777, 0o1777, 0o2777, 0o755)


class Machine(RuleBasedStateMachine):
    bench: Bench

    def __init__(self) -> None:
        super().__init__()
        self.run: Run | None = None

    @initialize(mode=st.sampled_from(MODES))
    def begin(self, mode: int) -> None:
        self.run = Run(self.bench, mode)

    def teardown(self) -> None:
        if self.run is not None:
            try:
                if not self.run.failed:
                    self.run.judge()
            finally:
                self.run.end()


def _rule(bench: Bench, kind: str) -> Any:
    def step(self: Machine, user: str, arguments: tuple[Any, ...]) -> None:
        assert self.run is not None
        self.run.step(user, kind, *arguments)

    step.__name__ = f"do_{kind}"
    return rule(user=st.sampled_from(bench.users), arguments=strategies.arguments(kind, bench.plain))(step)


def _kill_rule() -> Any:
    def kill(self: Machine, milliseconds: int) -> None:
        assert self.run is not None
        self.run.kill(milliseconds)

    return rule(milliseconds=st.integers(-1, 10))(kill)


def machine(bench: Bench) -> type[Machine]:
    """The class for one run: a rule for each kind of operation."""
    rules = {f"do_{kind}": _rule(bench, kind) for kind in bench.kinds}
    rules |= {f"often_{number}": _rule(bench, kind) for number, kind in enumerate(OFTEN) if kind in bench.kinds}
    if bench.kill is not None:
        rules |= {f"kill_{number}": _kill_rule() for number in range(4)}
    return type("Trees", (Machine,), {"bench": bench, **rules})


def explore(bench: Bench, seed: int, examples: int, steps: int) -> None:
    """Without shrinking where workers are killed: what happens there depends on the moment, so a second run proves nothing."""
    phases = [hypothesis.Phase.generate] + ([hypothesis.Phase.shrink] if bench.kill is None else [])
    settings = hypothesis.settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, database=None, print_blob=False,
        verbosity=hypothesis.Verbosity.quiet, phases=phases,
        report_multiple_bugs=False, suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(hypothesis.seed(seed)(machine(bench)), settings=settings)


def replay(bench: Bench, mode: int, steps: Sequence[Step]) -> None:
    """The steps of a case, one after the other (test_differential_cases.py)."""
    run = Run(bench, mode)
    try:
        for step in steps:
            run.kill(step[1]) if step[0] == "kill" else run.step(*step)
        run.compare(full=True)
    finally:
        run.end()
