"""What goes wrong, and the proof that it did: faults of the leader, of its network, of voters, one after the other, while clients work.

"Nemesis" is the word of Jepsen for what makes the faults.

A fault is over when the cluster is whole again (one leader, every voter heard) and every client has got on since.  Each proves itself: a
kill by the new process and a newer term, a pause by stopped processes, a cut, loss and a slow network by packets that were dropped.  A
pause and a cut last 5 s at most, or sessions of mounts would end.  A slow machine may need longer for an election, so only one of them in
a run has to depose; but where the others had a leader meanwhile, the term is a newer one.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from buildtools import procs
from buildtools.cluster import Cluster
from buildtools.leader import leading_term
from buildtools.nodes import Node, await_true
from buildtools.say import BuildError

WHOLE_S = 120.0
SLOW_BYTES_S, SLOW_BYTES_S_MIN = 60_000, 500
DAY_S = 86_400
FAULT_S_MAX = 5.0
ENDS_TERM = frozenset({"kill", "stop", "wipe leader", "skew"})
MAY_END_TERM = frozenset({"pause", "cut", "deaf", "mumble"})
HOLD_S = 2.0  # a cut or a pause lasts on after the others have a new leader


class Fault(NamedTuple):
    kind: str
    began: float
    led_again: float  # somebody leads, and was not there before or has gone on
    whole: float
    newer_term: bool  # the leader that came after it leads in a newer term than the one before


class Nemesis:
    """`operations()`: what each client has done, to wait for progress; `check()` raises when one of them has seen something wrong."""

    def __init__(
        self, cluster: Cluster, seed: int, operations: Callable[[], Sequence[int]], check: Callable[[], None], hold_s: float = HOLD_S
    ) -> None:
        self.cluster, self.network = cluster, cluster.network
        self.dice = random.Random(seed)
        self.faults: list[Fault] = []
        self._operations = operations
        self._check = check
        self._hold_s = hold_s
        self.kinds: dict[str, Callable[[Node], object]] = {
            "kill": self.kill,
            "stop": self.stop,
            "pause": self.pause,
            "cut": lambda node: self._cut(node),
            "deaf": lambda node: self._cut(node, speaks=True),
            "mumble": lambda node: self._cut(node, hears=True),
            "wipe leader": self.wipe,
            "wipe follower": lambda node: self.wipe(self.dice.choice(self.others(node))),
            "loss": self.loss,
            "slow": self.slow,
            "skew": self.skew,
        }

    def others(self, node: Node) -> list[Node]:
        return [other for other in self.cluster.nodes if other is not node]

    def inflict(self, kind: str) -> Fault:
        """One fault on who leads now, from beginning to end."""
        leader = self.cluster.await_leader()
        term = leading_term(leader.run / "meta.sock")
        began = time.monotonic()
        self._led_again, self._others_led = 0.0, False
        try:
            self.kinds[kind](leader)
        finally:
            self.network.heal()
            for node in self.cluster.nodes:
                self.cluster.resume(node)
        self.cluster.await_leader()
        led_again = self._led_again or time.monotonic()
        self.await_whole()
        self.await_progress(3)
        newer = leading_term(self.cluster.await_leader().run / "meta.sock") > term
        assert newer or kind not in ENDS_TERM, f"{kind}: the leader's process ended, and nobody leads in a newer term than {term}"
        assert newer or not self._others_led, f"{kind}: another node led meanwhile, and nobody leads in a newer term than {term}"
        self.faults.append(Fault(kind, began, led_again, time.monotonic(), newer))
        return self.faults[-1]

    def await_progress(self, more: int) -> None:
        before = list(self._operations())

        def progressed() -> bool:
            self._check()
            return all(now >= then + more for now, then in zip(self._operations(), before, strict=True))

        await_true(f"{more} more operations of every client after {before}", progressed, WHOLE_S, 0.05)

    def await_whole(self) -> None:
        await_true(f"{len(self.cluster.nodes)} voters that are heard", self.cluster.whole, WHOLE_S, 0.05)

    # --- the faults -------------------------------------------------------------------------------------------------------
    def kill(self, node: Node) -> None:
        hit = node.kill("daemon")
        node.replaced("daemon", hit["daemon"], WHOLE_S)

    def stop(self, node: Node) -> None:
        """SIGTERM, as an upgrade would; the supervisor starts it again."""
        pid = node.pid("daemon")
        assert procs.kill(str(node.directory), {pid: "daemon"}, signal.SIGTERM) == [pid]
        node.replaced("daemon", pid, WHOLE_S)

    def pause(self, node: Node) -> None:
        assert self.cluster.pause(node)
        self._deposed(node)
        self.cluster.resume(node)

    def _cut(self, node: Node, **direction: bool) -> None:
        self.network.isolate(self.cluster.machine(node), **direction)
        self._deposed(node)
        assert sum(self.network.dropped(self.cluster.machine(each)) for each in self.cluster.nodes) > 0, "nothing was cut"
        self.network.heal()

    def _deposed(self, node: Node) -> None:
        """The others have a leader of their own; and it lasts, but not so long on a slow machine that sessions of mounts would end."""
        began = time.monotonic()
        with contextlib.suppress(BuildError):
            self.cluster.await_leader(self.others(node), FAULT_S_MAX)
            self._led_again, self._others_led = time.monotonic(), True
        time.sleep(max(0.0, min(self._hold_s, began + FAULT_S_MAX - time.monotonic())))  # the fault's length, not a wait for an event

    def wipe(self, node: Node) -> None:
        """The daemon dies and its journal and rows are gone; the supervisor is held meanwhile."""
        directory = str(node.directory)
        with held(directory, "supervisor"):
            hit = node.kill("daemon")
            await_true("its end", lambda: not procs.alive(hit["daemon"]), 60)
            shutil.rmtree(node.state / "meta")
        node.replaced("daemon", hit["daemon"], WHOLE_S)

    def loss(self, node: Node) -> None:
        for each in self.cluster.nodes:
            self.network.lose(self.cluster.machine(each), 0.2)
        time.sleep(self._hold_s)
        assert sum(self.network.dropped(self.cluster.machine(each)) for each in self.cluster.nodes) > 0, "nothing was lost"

    def slow(self, node: Node) -> None:
        """What arrives at the others above a rate is lost: enough for heartbeats, or less where nothing would be lost then."""
        rate = SLOW_BYTES_S
        while True:
            for each in self.others(node):
                self.network.slow(self.cluster.machine(each), rate)
            time.sleep(self._hold_s)
            if sum(self.network.dropped(self.cluster.machine(each)) for each in self.others(node)) > 0:
                return
            rate //= 2
            assert rate >= SLOW_BYTES_S_MIN, "nothing was slow"

    def skew(self, node: Node) -> None:
        """The leader's clock is a day ahead, then another one leads and time must not go back."""
        node.inject(f"clock=+{DAY_S}")
        try:
            self.await_progress(3)
            self.kill(node)
            self.cluster.await_leader()
        finally:
            node.inject("")


@contextlib.contextmanager
def held(directory: str, role: str) -> Iterator[None]:
    """Processes of this role stand still."""
    wanted = dict.fromkeys(procs.pids(directory, role), role)
    procs.kill(directory, wanted, signal.SIGSTOP)
    try:
        yield
    finally:
        procs.kill(directory, wanted, signal.SIGCONT)


def stalls(faults: Sequence[Fault], spans: Sequence[tuple[float, float]]) -> dict[str, list[float]]:
    """For each kind of fault the longest operation (beginning, end) that was under way while it lasted, of each time it happened."""
    found: dict[str, list[float]] = {}
    for fault in faults:
        hit = [ended - began for began, ended in spans if began < fault.whole and ended > fault.began]
        found.setdefault(fault.kind, []).append(max(hit, default=0.0))
    return found
