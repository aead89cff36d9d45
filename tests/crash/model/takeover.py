"""The worker dies at one of the calls it makes to the device or the service; its memory is kept, and a successor takes over.

Unlike after a power cut everything is there: what write(2) acknowledged, dirty or not, and the call that was under way is executed again
and ends as if nothing had been.  So the workload goes on after the death, and ends with the names and bytes of a run without one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from awsomefsd.base.errors import FsError
from awsomefsd.base.wait import Wait
from tests.crash.model.calls import Calls
from tests.crash.model.oracle import Oracle, contents_of, tree_of
from tests.crash.model.recording import Image, Recording
from tests.crash.model.run import CrashRig, booted
from tests.crash.model.workloads import Workload
from tests.rigs.mount_without_kernel import LIMIT_S, Started

POLL_S = 0.001


class Died(BaseException):
    """In the place of a SIGKILL: no production code may catch it."""


class Unanswered:
    """A request that went out; whoever waits for it dies when the answer is there."""

    def __init__(self, death: Death, real: Wait) -> None:
        self._death, self._real = death, real
        self._resume: Callable[[Any, Any], None] | None = None

    def start(self, resume: Callable[[Any, Any], None]) -> None:
        self._resume = resume
        self._real.start(lambda _value, _error: self._death.died.set())

    def end(self) -> None:
        """The thread that waits can be joined; the worker is dead already."""
        if self._resume is not None:
            self._resume(None, FsError(5, "dead"))


class Death:
    """Counts a worker's calls; at number `at` the worker dies, before the call or (`answered`, requests only) after it."""

    def __init__(self, rig: CrashRig, at: int, answered: bool) -> None:
        self.at, self.answered = at, answered
        self.calls = 0
        self.died = threading.Event()
        self.waits: list[Unanswered] = []
        self._lock = threading.Lock()
        self._device = rig.device
        rig.device.on_write = rig.device.on_flush = self.step
        client = rig.worker.client
        self._propose = client.propose
        client.propose = self.propose  # type: ignore[method-assign]

    def step(self) -> None:
        if self._counted():
            self.died.set()
            raise Died

    def _counted(self) -> bool:
        with self._lock:
            if self.died.is_set():
                raise Died
            self.calls += 1
            return self.calls == self.at

    def propose(self, command: Any, unique: int, *under: Any) -> Any:
        if not self._counted():
            return self._propose(command, unique, *under)
        if self.answered:
            self.waits.append(Unanswered(self, self._propose(command, unique, *under)))
            return self.waits[-1]
        self.died.set()
        raise Died

    def end(self) -> None:
        self._device.on_write = self._device.on_flush = lambda: None
        for wait in self.waits:
            wait.end()


class MortalRig(CrashRig):
    """Its calls outlive the death of a worker, as a kernel's do."""

    death: Death | None = None
    deaths = 0

    def doom(self, at: int, answered: bool) -> None:
        self.death = Death(self, at, answered)

    def call(self, method: str, *args: Any, unique: int | None = None, open_flags: int = 0) -> Any:
        ctx = self.ctx(unique, open_flags=open_flags)
        begun: Started | None = None
        try:
            begun = Started(getattr(self.vfs, method)(ctx, *args))
            self._await(begun.ended)
            return begun.result()
        except Died:
            return self._again(method, args, ctx.unique, open_flags)
        finally:
            self.vfs.replied(ctx.unique)

    def flush(self) -> None:
        try:
            done = Started(_all(self))
            self._await(done.ended)
            done.result()
        except Died:
            self._take_over()
            super().flush()

    def _await(self, ended: threading.Event) -> None:
        death = self.death
        waited = 0.0
        while not ended.wait(POLL_S):
            waited += POLL_S
            if death is not None and death.died.is_set():
                raise Died
            assert waited < LIMIT_S, "the operation does not end"
        if death is not None and death.died.is_set():
            raise Died

    def _take_over(self, *repeat: Any) -> Any:
        self.deaths += 1
        death, self.death = self.death, None
        assert death is not None
        self.worker.data.flusher._thread.stopping = True
        death.end()
        return self.restart(*repeat)

    def _again(self, method: str, args: tuple[Any, ...], unique: int, open_flags: int) -> Any:
        (result,) = self._take_over(lambda vfs: getattr(vfs, method)(self.ctx(unique, open_flags=open_flags), *args))
        if isinstance(result, Exception):
            raise result
        return result


def _all(rig: MortalRig) -> Any:
    yield rig.worker.data.flusher.flush_all()


def timeless(tree: Any) -> Any:
    return {path: row._replace(times=None) for path, row in tree.items()}


class Takeovers:
    def __init__(self, directory: Path, base: Image, seed: int) -> None:
        self.directory, self.base, self.seed = directory, base, seed
        self.workloads = self.points = self.deaths = 0

    def run(self, workload: Workload, tries: int) -> None:
        dice = Random(f"{self.seed} {workload}")
        calls, wanted = self._once(workload, 0, False)
        self.workloads += 1
        for at in sorted(dice.sample(range(1, calls + 1), min(tries, calls))):
            answered = dice.random() < 0.5
            self.points += 1
            _, found = self._once(workload, at, answered)
            where = f"seed {self.seed}, workload {workload}, death at call {at} of {calls}, answered {answered}"
            assert found == wanted, f"{where}: {found} instead of {wanted}"

    def _once(self, workload: Workload, at: int, answered: bool) -> tuple[int, Any]:
        """(calls made, names and bytes at the end, before and after another boot)."""
        oracle, recording = Oracle(), Recording()
        recording.stop()
        with booted(self.directory, self.base, made_by=MortalRig) as rig:
            assert isinstance(rig, MortalRig)
            rig.start()
            tree = tree_of(rig)
            oracle.begin(tree, contents_of(rig, tree))
            rig.doom(at, answered)
            death = rig.death
            assert death is not None
            Calls(rig, oracle, recording).run([*workload, ("flush",)])
            self.deaths += rig.deaths
            tree = tree_of(rig)
            contents = contents_of(rig, tree)
            where = f"{workload}, death at call {at}"
            assert contents == {ino: oracle.now(ino) for ino in contents}, f"{where}: bytes that were written are gone"
            faults = rig.faults()
            assert not faults, f"{where}: {faults}"
            return death.calls, (timeless(tree), contents)
