"""Three daemons on this machine form one metadata cluster by configuration: they elect, replicate, and survive deaths and lost journals."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator

import pytest

from tests.rigs.voter_daemons import Cluster, awaited


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster()
    try:
        yield made
    finally:
        made.close()


def test_three_daemons_elect_replicate_and_outlive_deaths(cluster: Cluster) -> None:
    for daemon in cluster.all:
        daemon.start()
    cluster.create("one")
    cluster.level()
    first = cluster.leader()

    def shown() -> bool:
        text = first.cli("status").stdout
        return "role leader" in text and text.count("entries behind") == 2

    awaited("what the leader says of two others", shown)
    follower = next(daemon for daemon in cluster.all if daemon is not first)
    cluster.create("newest")
    assert not (done := follower.cli("meta", "backup", str(follower.directory / "backup"))).returncode, done.stderr
    dumped = follower.cli("meta", "dump", str(follower.directory / "backup"))
    assert '"newest"' in dumped.stdout, "what the leader acknowledged is in the backup of a node that follows"
    term = int(awaited("its term", lambda: first.figures().get("term")))
    first.end()
    cluster.create("two")
    second = cluster.leader()
    assert second is not first
    awaited("a newer term", lambda: int(second.figures().get("term", 0)) > term)
    cluster.await_volumes("one", "newest", "two")
    first.start()
    cluster.level()

    victim = next(daemon for daemon in cluster.all if daemon not in (cluster.leader(),))
    victim.end()
    shutil.rmtree(victim.state / "meta" / "journal")
    cluster.create("three")
    victim.start()
    awaited("three voters again", lambda: cluster.leader().figures().get("voters") == "3" and victim.figures().get("leader"))
    cluster.level()
    assert list((victim.state / "meta").glob("store.aside.*"))

    for daemon in cluster.all:
        daemon.end(signal.SIGTERM)
    for daemon in cluster.all:
        daemon.start()
    cluster.await_volumes("one", "newest", "two", "three")
