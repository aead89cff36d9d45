"""Nothing that was acknowledged is lost, done twice or read stale, whatever happens to the leader: real nodes, judged histories.

Two minutes of faults: a kill of the leader every ten seconds, and each time another kind of fault in between.
Before the first fault and after each one every client does BETWEEN operations, however long that takes, so each fault hits clients at work;
the rate is a figure, which depends on the machine.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pytest

from buildtools.cluster import Cluster
from buildtools.leader import figures as figures_of
from buildtools.nodes import Node, await_true
from tests.cluster.metadata_clients import FileClient, LockClient, Objects, ReadingClient, Recorder, model_of
from tests.cluster.mount_load import MountLoad, mount_each
from tests.cluster.nemesis import MAY_END_TERM, Fault, Nemesis, stalls
from tests.rigs.linearizability import OPEN, Operation, Verdict, check_all
from tests.rigs.network_namespaces import found_by_token

BETWEEN = 20
FILE_CLIENTS, READING_CLIENTS, LOCK_CLIENTS = 8, 3, 3
GAP_S = 5.0  # from one fault to the next: every other one is a kill
BETWEEN_KILLS = ["pause", "cut", "stop", "deaf", "wipe follower", "mumble", "wipe leader", "loss", "skew", "slow"]
MINUTES = 2


class Run(NamedTuple):
    history: list[Operation]
    faults: list[Fault]
    seconds: float
    wrong: list[str]
    on_mounts: Sequence[tuple[float, float, str]] = ()  # slow operations of programs

    @property
    def rate(self) -> float:
        return sum(row.result is not None or row.call[0] in ("write", "unlock") for row in self.history) / self.seconds


def work_through(cluster: Cluster, objects: Objects, seed: int, kinds: Sequence[str], mounts: Sequence[Node]) -> Run:
    """Clients work while these faults come, GAP_S between the beginnings (or when the one before is over)."""
    clients: list[Recorder] = [FileClient(cluster, objects, seed + number) for number in range(FILE_CLIENTS)]
    clients += [ReadingClient(cluster, objects, seed + 500 + number) for number in range(READING_CLIENTS)]
    clients += [LockClient(cluster, objects, seed + 1_000 + number) for number in range(LOCK_CLIENTS)]
    mount_load = MountLoad(mounts, seed)

    def check() -> None:
        wrong = [text for client in clients for text in client.wrong] + mount_load.wrong()
        assert not wrong, wrong

    nemesis = Nemesis(cluster, seed, lambda: [len(client.history) for client in clients] + mount_load.operations(), check)
    began = time.monotonic()
    for client in clients:
        client.start()
    try:
        nemesis.await_progress(BETWEEN)
        for kind in kinds:
            due = time.monotonic() + GAP_S
            nemesis.inflict(kind)
            nemesis.await_progress(BETWEEN)
            time.sleep(max(0.0, due - time.monotonic()))
        seconds = time.monotonic() - began
        slow, wrong = mount_load.finish()
    finally:
        mount_load.abandon()
        for client in clients:
            client.ending.set()
        for client in clients:
            client.finish(60)
    history = [row for client in clients for row in client.history]
    return Run(history, nemesis.faults, seconds, [text for client in clients for text in client.wrong] + wrong, slow)


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
    direct = stalls(run.faults, [(row.called, row.returned) for row in run.history if row.returned != OPEN])
    mounted = stalls(run.faults, [(began, began + took) for began, took, _ in run.on_mounts])
    for kind, longest in sorted(direct.items()):
        middle = sorted(longest)[len(longest) // 2]
        beside = f", of a program on a mount {max(mounted[kind]):.2f} s" if run.on_mounts else ""
        figures.append(f"    {kind:14s} {len(longest):3d} x: longest stall of a client {max(longest):.2f} s, median {middle:.2f} s{beside}")


def faults(minutes: int) -> list[str]:
    """Of a run that lasts so long, or longer where a fault takes more than its time."""
    kills = minutes * 60 // int(2 * GAP_S)
    return [kind for number in range(kills) for kind in ("kill", BETWEEN_KILLS[number % len(BETWEEN_KILLS)])]


def chaos(cluster: Cluster, figures: list[str], seed: int, kinds: Sequence[str]) -> None:
    found_by_token(cluster)
    cluster.launch()
    await_true("one cluster", cluster.whole, 120, 0.05)
    mount_each(cluster)
    run = work_through(cluster, Objects(cluster), seed, kinds, cluster.nodes)
    judge(run)
    may = [fault for fault in run.faults if fault.kind in MAY_END_TERM]
    assert not may or any(fault.newer_term for fault in may), "no pause and no cut has deposed a leader"
    level(cluster)
    tell(run, cluster, figures)


@pytest.mark.timeout(3_600)
def test_every_kind_of_fault(make_cluster, figures: list[str], seed: int) -> None:
    chaos(make_cluster(3, faults=True), figures, seed, faults(MINUTES))
