"""One volume mounted on three nodes, programs on all of them in the same files, and every kind of fault: nothing stale, lost or torn.

Each kind of fault comes once, in an order of its seed, and then by chance until two minutes are over, or AWSOMEFSD_TEST_SOAK_S seconds.
AWSOMEFSD_TEST_SHARED_OPTIONS names the mount options, `shared` if it is not set; AWSOMEFSD_TEST_FAULTS the kinds of fault that come by
chance ("cut,stop worker").  How many operations a second were checked is a figure: it depends on the machine.  (The rate wanted is 100.)
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

import pytest

from buildtools.cluster import Cluster
from buildtools.nodes import Node, await_true
from tests.cluster import shared_client
from tests.cluster.shared_chaos import TTL_S, VOLUME, WAIT_S, Programs, SharedNemesis, mount, quarantine, rate, tree
from tests.cluster.shared_judge import ALLOWED, LOSING, Trouble, Written, of_appends, of_errors, of_histories
from tests.faults.rig import changes, newest_index, refused
from tests.rigs.network_namespaces import found_on_one_disk

OPTIONS = os.environ.get("AWSOMEFSD_TEST_SHARED_OPTIONS", "shared")
FAULTS = list(ALLOWED)
CHANCES = [one for one in os.environ.get("AWSOMEFSD_TEST_FAULTS", "").split(",") if one] or FAULTS
SECONDS = float(os.environ.get("AWSOMEFSD_TEST_SOAK_S", "120"))
RATE_WANTED = 100


@pytest.fixture(scope="module")
def cluster(make_cluster: Callable[..., Cluster]) -> Iterator[Cluster]:
    made = make_cluster(3, faults=True)
    found_on_one_disk(made)
    made.nodes[0].cli("volume", "create", VOLUME)
    for node in made.nodes:
        mount(node, OPTIONS)
    yield made
    for node in made.nodes:
        node.umount()
    made.stop()
    for node in made.nodes:
        node.cli("fsck", timeout_s=WAIT_S)


def chaos(cluster: Cluster, kinds: Iterator[str], seed: int, root: str, figures: list[str]) -> None:
    shared_client.prepare(cluster.nodes[0].mountpoint / root)
    programs = Programs(cluster, root, seed)
    nemesis = SharedNemesis(cluster, programs, seed, OPTIONS)
    began = time.monotonic()
    try:
        for node in cluster.nodes:
            programs.start(node)
        programs.await_progress()
        for kind in kinds:
            nemesis.inflict(kind)
            programs.await_progress()
        seconds = time.monotonic() - began
        written = programs.finish()
    finally:
        programs.abandon()
    tell(written, nemesis, seconds, figures)
    judge(cluster, root, written, nemesis.troubles)


def tell(written: Written, nemesis: SharedNemesis, seconds: float, figures: list[str]) -> None:
    checked = rate(written.rows, seconds)
    low = "" if checked >= RATE_WANTED else f", fewer than the {RATE_WANTED} wanted"
    unknown = sum(not row.known for row in written.rows)
    figures.append(
        f"chaos on shared mounts ({OPTIONS}): {len(written.rows):,} operations in {seconds:.0f} s, {checked:.0f} checked a second{low}; "
        f"{unknown} of unknown outcome, {len(written.errors)} errors, {len(nemesis.troubles)} faults, "
        f"{nemesis.late_writes} writes of zombies"
    )
    for what, seconds_each in sorted(nemesis.again_s.items()):
        took = ", ".join(f"{one:.1f}" for one in seconds_each)
        figures.append(f"    after {what}, its lock and its file were another node's in {took} s (TTL {TTL_S:.0f} s)")
    figures.append(f"    quarantines ended by proof: {proofs_of(nemesis.cluster)}")
    for kind in ALLOWED:
        mine = [one for one in nemesis.troubles if one.kind == kind]
        if mine:
            errors = Counter(
                f"{name} of {what.split()[0].rstrip('0123456789')}"
                for node, what, name, _, at in written.errors
                if any(one.node == node and one.began <= at <= one.whole for one in mine)
            )
            longest = max(one.whole - one.began for one in mine)
            figures.append(
                f"    {kind:22s} {len(mine):3d} x, over after {longest:.1f} s at most; errors there: "
                + (", ".join(f"{name} {count}" for name, count in errors.most_common(6)) or "none")
            )


def proofs_of(cluster: Cluster) -> str:
    """What the logs of workers and daemons say."""
    logs = "".join(path.read_text(errors="replace") for node in cluster.nodes for path in node.log.glob("*.log"))
    lines = [line for line in logs.splitlines() if "a quarantine ended by proof" in line]
    found = {what: sum(word in line for line in lines) for what, word in {"exited": "has exited", "booted": "has booted since"}.items()}
    return ", ".join(f"{count} {what}" for what, count in (found | {"drained": len(lines) - sum(found.values())}).items())


def judge(cluster: Cluster, root: str, written: Written, troubles: Sequence[Trouble]) -> None:
    assert not written.wrong, "\n".join(written.wrong[:20])
    trees = [tree(node.mountpoint / root) for node in cluster.nodes]
    for other in trees[1:]:
        assert other.keys() == trees[0].keys(), other.keys() ^ trees[0].keys()
        differing = {name: [each[name][:5] for each in trees] for name in other if other[name] != trees[0][name]}
        assert not differing, differing
    logs = {f"l{number}": trees[0][f"l{number}"][-1] for number in range(shared_client.LOGS)}
    wrong = of_appends(written.rows, logs) + of_histories(written.rows, troubles) + of_errors(written, troubles)
    assert not wrong, "\n".join(wrong[:20])
    tidy(cluster, troubles)


def tidy(cluster: Cluster, troubles: Sequence[Trouble]) -> None:
    """Nothing is left of what has ended."""
    first = cluster.nodes[0]
    await_true("the end of every quarantine", lambda: not quarantine(first), WAIT_S, 0.3)
    shown = len(tree(first.mountpoint)) + 1

    def used() -> int:
        return int(next(row for row in first.ask("volume", "ls") if row["name"] == VOLUME)["used_inodes"])

    linked = {row[0] for row in tree(first.mountpoint).values()}
    await_true(f"{len(linked)} files ({shown} names) and no other", lambda: used() in (len(linked), len(linked) + 1), WAIT_S, 0.3)
    for node in cluster.nodes:
        lost = any(one.node == cluster.machine(node) and one.kind in LOSING for one in troubles)
        assert lost or not list((node.state / "conflicts").glob("*")), f"conflicts on {node.directory.name} without a reason"


def test_two_nodes_rename_one_file_to_one_name(cluster: Cluster) -> None:
    """The kernel answers the second of two renames by itself, if the file came to its new name between the look-ups of the two names.

    vfs_rename() does nothing for two names of one file.  The judge allows exactly this.
    """
    one, two = cluster.nodes[:2]
    (two.mountpoint / "renames").mkdir(exist_ok=True)  # who makes a directory knows its names without asking
    (two.mountpoint / "renames" / "a").touch()
    start, held = newest_index(one), one.fault_hits("ask.Lookup.b hold")
    results: list[int] = []
    late = threading.Thread(target=lambda: results.append(refused(lambda: rename(one))))
    try:
        one.inject("ask.Lookup.b=hold")
        late.start()  # its kernel has the file behind the old name, and asks for the new one
        await_true("the question for the new name", lambda: one.fault_hits("ask.Lookup.b hold") > held, WAIT_S)
        rename(two)
    finally:
        one.inject("")
        late.join(WAIT_S)
    assert results == [0] and os.listdir(one.mountpoint / "renames") == ["b"]
    assert [row["command"] for row in changes(one, start)].count("Rename") == 1, "the leader was asked once"


def rename(node: Node) -> None:
    os.rename(node.mountpoint / "renames" / "a", node.mountpoint / "renames" / "b")


def by_chance(dice: random.Random, end: float) -> Iterator[str]:
    while time.monotonic() < end:
        yield dice.choice(CHANCES)


@pytest.mark.timeout(3_600 + 4 * SECONDS)
def test_every_kind_of_fault_under_programs_on_all_nodes(cluster: Cluster, figures: list[str], seed: int) -> None:
    dice, end = random.Random(seed), time.monotonic() + SECONDS
    each = dice.sample(FAULTS, len(FAULTS))
    chaos(cluster, chain(each, by_chance(dice, end)), seed, f"run-{seed}", figures)
