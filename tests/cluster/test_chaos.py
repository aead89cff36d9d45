"""Nothing that was acknowledged is lost, done twice or read stale, whatever happens to the leader: real nodes, judged histories.

The normal run is shorter than it could be (the CI has two cores for everything): each kind of fault once or more; soak has the long ones.
Before the first fault and after each one every client does BETWEEN operations, however long that takes, so each fault hits clients at work;
the rate is a figure, which depends on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from buildtools.cluster import Cluster
from buildtools.leader import figures as figures_of
from buildtools.nodes import await_true
from tests.cluster.clients import FileClient, LockClient, Objects, ReadingClient, Recorder, model_of
from tests.cluster.nemesis import Fault, Nemesis, stalls
from tests.linear import Operation, Verdict, check_all
from tests.netns import found_static

BETWEEN = 20
FILE_CLIENTS, READING_CLIENTS, LOCK_CLIENTS = 8, 3, 3
GAP_S = 10.0  # from one kill to the next
FAULTS = ["kill", "pause", "kill", "cut", "stop", "deaf", "wipe follower", "mumble", "wipe leader", "loss", "skew", "slow", "kill"]


class Run(NamedTuple):
    history: list[Operation]
    faults: list[Fault]
    seconds: float
    wrong: list[str]

    @property
    def rate(self) -> float:
        return sum(row.result is not None or row.call[0] in ("write", "unlock") for row in self.history) / self.seconds


def work_through(cluster: Cluster, objects: Objects, seed: int, kinds: Sequence[str], gap_s: float, **keywords: Any) -> Run:
    """Clients work while these faults come, `gap_s` between the beginnings (or when the one before is over)."""
    clients: list[Recorder] = [FileClient(cluster, objects, seed + number) for number in range(FILE_CLIENTS)]
    clients += [ReadingClient(cluster, objects, seed + 500 + number) for number in range(READING_CLIENTS)]
    clients += [LockClient(cluster, objects, seed + 1_000 + number) for number in range(LOCK_CLIENTS)]
    nemesis = Nemesis(cluster, seed, lambda: [len(client.history) for client in clients], **keywords)
    began = time.monotonic()
    for client in clients:
        client.start()
    try:
        nemesis.await_progress(BETWEEN)
        for kind in kinds:
            due = time.monotonic() + gap_s
            nemesis.inflict(kind)
            nemesis.await_progress(BETWEEN)
            assert not any(client.wrong for client in clients), [client.wrong for client in clients]
            time.sleep(max(0.0, due - time.monotonic()))
    finally:
        for client in clients:
            client.ending.set()
        seconds = time.monotonic() - began
        for client in clients:
            client.finish(60)
    history = [row for client in clients for row in client.history]
    return Run(history, nemesis.faults, seconds, [text for client in clients for text in client.wrong])


def judge(run: Run) -> None:
    assert not run.wrong
    findings = check_all(model_of, run.history)
    broken = [found for found in findings if found.verdict is Verdict.BROKEN]
    assert not broken, "\n".join(f"{found.object}: {found.detail}" for found in broken)
    unknown = [found for found in findings if found.verdict is Verdict.UNKNOWN]
    assert not unknown, f"void: {unknown}"


def level(cluster: Cluster) -> None:
    """All nodes come to have applied the same."""

    def applied() -> set[Any]:
        return {figures_of(node.run / "meta.sock").get("applied", number) for number, node in enumerate(cluster.nodes)}

    await_true("the same everywhere", lambda: len(applied()) == 1, 60, 0.1)
    said = [figures_of(node.run / "meta.sock") for node in cluster.nodes]
    assert sum(int(one.get("members_diverged", 0)) for one in said) == 0, said


def tell(run: Run, cluster: Cluster, figures: list[str]) -> None:
    nodes, count = len(cluster.nodes), len(run.history)
    figures.append(f"chaos: {nodes} nodes, {count:,} operations judged in {run.seconds:.0f} s ({run.rate:.0f}/s), {len(run.faults)} faults")
    for kind, longest in sorted(stalls(run.faults, run.history).items()):
        middle = sorted(longest)[len(longest) // 2]
        figures.append(f"    {kind:14s} {len(longest):3d} x: longest stall of a client {max(longest):.2f} s, median {middle:.2f} s")


def started(make_cluster: Callable[..., Cluster], count: int) -> Cluster:
    cluster = make_cluster(count, faults=True)
    found_static(cluster)
    cluster.launch()
    cluster.await_leader()
    return cluster


def chaos(
    make_cluster: Callable[..., Cluster], figures: list[str], seed: int, count: int, kinds: Sequence[str], gap_s: float, **keywords: Any
) -> None:
    cluster = started(make_cluster, count)
    run = work_through(cluster, Objects(cluster), seed, kinds, gap_s, **keywords)
    judge(run)
    level(cluster)
    tell(run, cluster, figures)


@pytest.mark.timeout(900)
def test_every_kind_of_fault(make_cluster, figures: list[str], seed: int) -> None:
    chaos(make_cluster, figures, seed, 3, FAULTS, gap_s=5)


@pytest.mark.soak
def test_ten_minutes_with_a_kill_every_ten_seconds(make_cluster, figures: list[str], seed: int) -> None:
    between = [kind for kind in FAULTS if kind != "kill"]
    kinds = [kind for number in range(30) for kind in ("kill", between[number % len(between)])]
    chaos(make_cluster, figures, seed, 5, kinds, gap_s=GAP_S)


@pytest.mark.soak
def test_a_hundred_random_partitions(make_cluster, figures: list[str], seed: int) -> None:
    chaos(make_cluster, figures, seed, 5, ["partition"] * 100, gap_s=0)
