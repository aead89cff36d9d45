"""The node keeper with a cluster that answers what the test says, and the stand-in for the API server."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from awsomefsd.base.errors import Error, NotFound, Unavailable, WouldLoseData
from awsomefsd.cluster.pki import token
from awsomefsd.kubernetes.api_server import ApiServer, Conflict, Place
from awsomefsd.kubernetes.join_secret import Wanted
from awsomefsd.kubernetes.node_keeper import NodeKeeper, Orders
from tests.rigs.kubernetes_api import NAMESPACE, SECRET, KubernetesApi

CONTROL = "10.0.0.1:7440"
HOUR_S = 3_600


@dataclass
class FakeCluster:
    """The part of the admin API that the keeper asks."""

    now_s: int = 1_800_000_000
    rows: list[Any] = field(default_factory=list)
    tokens: dict[str, Any] = field(default_factory=dict)
    removals: list[str] = field(default_factory=list)
    refusal: Error | None = None

    def node(self, name: str, readiness: str = "ready", role: str = "node") -> Any:
        made = SimpleNamespace(node=f"uuid-{name}", name=name, readiness=readiness, role=role, joined_ms=1, control=CONTROL)
        self.rows.append(made)
        return made

    def call(self, rpc: str, /, timeout_s: float = 0.0, **fields: Any) -> Any:
        return getattr(self, rpc)(**fields)

    def ListNodes(self) -> Any:
        return SimpleNamespace(nodes=self.rows)

    def ListTokens(self) -> Any:
        return SimpleNamespace(tokens=list(self.tokens.values()))

    def ListCas(self) -> Any:
        return SimpleNamespace(cas=[SimpleNamespace(id="cd" * 32, state="trusted"), SimpleNamespace(id="ab" * 32, state="active")])

    def CreateToken(self, role: str, ttl_s: int, uses: int) -> Any:
        made = token.make(str(uuid.UUID(int=1)), "ab" * 32, (CONTROL,), role, (self.now_s + ttl_s) * 1_000)
        row = SimpleNamespace(
            id=made.id, role=role, expires_ms=made.expires_ms, uses_left=uses, revoked=False, text=token.print_token(made)
        )  # fmt: skip
        self.tokens[made.id] = row
        return row

    def RevokeToken(self, id: str) -> None:
        self.tokens[id].revoked = True

    def SetNode(self, node: str, action: str, force: bool) -> None:
        assert (action, force) == ("remove", False)
        if self.refusal is not None:
            raise self.refusal
        self.removals.append(node)
        self.rows = [row for row in self.rows if row.node != node]


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    with KubernetesApi(tmp_path / "account") as made:
        made.nodes = {"here", "a"}
        yield made


@pytest.fixture
def cluster() -> FakeCluster:
    made = FakeCluster()
    made.node("here")
    return made


def keeper(api: KubernetesApi, cluster: FakeCluster, remove_after_s: int = 100) -> NodeKeeper:
    orders = Orders(NAMESPACE, SECRET, Wanted("node", 24 * HOUR_S, 32), remove_after_s, "here")
    return NodeKeeper(orders, ApiServer(Place("127.0.0.1", api.port, api.account)), lambda: cluster.now_s * 1_000_000_000)


def good(cluster: FakeCluster) -> list[str]:
    return [row.id for row in cluster.tokens.values() if not row.revoked]


def test_a_token_is_kept_for_a_month(api: KubernetesApi, cluster: FakeCluster) -> None:
    """At every look the Secret holds one that is good for half a day at least; and no more are made than one each half day."""
    one = keeper(api, cluster, remove_after_s=0)
    for hour in range(0, 30 * 24, 9):
        cluster.now_s = 1_800_000_000 + hour * HOUR_S
        one.look(cluster)
        held = token.parse(api.value("token"))
        assert held.expires_ms // 1_000 - cluster.now_s >= 12 * HOUR_S and not cluster.tokens[held.id].revoked
    assert len(cluster.tokens) <= 30 * 24 // 12


def test_of_two_at_once_one_writes_and_the_other_takes_its_token_back(api: KubernetesApi, cluster: FakeCluster) -> None:
    first, second = keeper(api, cluster), keeper(api, cluster)

    def meanwhile() -> None:
        api.before_put = lambda: None
        second.look(cluster)

    api.before_put = meanwhile
    with pytest.raises(Conflict):
        first.look(cluster)
    assert good(cluster) == [token.parse(api.value("token")).id] and len(cluster.tokens) == 2
    first.look(cluster)
    assert len(cluster.tokens) == 2


def test_a_token_that_could_not_be_written_is_revoked(api: KubernetesApi, cluster: FakeCluster) -> None:
    api.before_put = lambda: setattr(api, "away", True)
    with pytest.raises(Unavailable):
        keeper(api, cluster).look(cluster)
    assert len(cluster.tokens) == 1 and good(cluster) == []


def test_a_secret_that_somebody_resets_gets_the_same_token_again(api: KubernetesApi, cluster: FakeCluster) -> None:
    one = keeper(api, cluster)
    for _ in range(20):
        one.look(cluster)
        api.put_value("token", "")
    assert len(cluster.tokens) == 1


def test_a_secret_that_is_missing_is_named(api: KubernetesApi, cluster: FakeCluster) -> None:
    api.secrets.clear()
    with pytest.raises(NotFound, match="the chart makes this Secret, empty: install it again"):
        keeper(api, cluster).look(cluster)
    assert cluster.tokens == {}


def test_a_node_is_removed_after_its_time_also_over_a_restart(api: KubernetesApi, cluster: FakeCluster) -> None:
    gone = cluster.node("a")
    keeper(api, cluster).look(cluster)
    api.nodes.discard("a")
    gone.readiness = "not-ready"
    for _ in range(10):
        keeper(api, cluster).look(cluster)  # each time another process
        assert cluster.removals == []
        cluster.now_s += 10
    keeper(api, cluster).look(cluster)
    assert cluster.removals == [gone.node]


def test_a_node_that_comes_back_counts_anew(api: KubernetesApi, cluster: FakeCluster) -> None:
    node, one = cluster.node("a"), keeper(api, cluster)
    one.look(cluster)
    for _ in range(5):
        api.nodes.discard("a")
        node.readiness = "not-ready"
        one.look(cluster)
        cluster.now_s += 99
        one.look(cluster)
        api.nodes.add("a")
        one.look(cluster)
    assert cluster.removals == []


def test_what_is_in_the_way_is_said_once(api: KubernetesApi, cluster: FakeCluster, caplog: pytest.LogCaptureFixture) -> None:
    node, one = cluster.node("a"), keeper(api, cluster)
    one.look(cluster)
    api.nodes.discard("a")
    node.readiness = "not-ready"
    one.look(cluster)
    cluster.now_s += 1_000
    cluster.refusal = WouldLoseData("node a is not empty: its devices hold 1 segment")
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            one.look(cluster)
    assert caplog.text.count("its devices hold 1 segment") == 1 and cluster.removals == []
    cluster.refusal = None
    one.look(cluster)
    assert cluster.removals == [node.node]


def test_a_list_that_lacks_the_keepers_own_node_is_not_believed(api: KubernetesApi, cluster: FakeCluster) -> None:
    node, one = cluster.node("a"), keeper(api, cluster)
    one.look(cluster)
    node.readiness = "not-ready"
    api.nodes = set()
    with pytest.raises(Unavailable, match="lacks here, where this pod runs"):
        one.look(cluster)
    cluster.now_s += 1_000
    api.nodes = {"here", "a"}
    one.look(cluster)
    assert cluster.removals == []


def test_without_a_time_nodes_are_not_asked_for(api: KubernetesApi, cluster: FakeCluster) -> None:
    api.rights = [rule for rule in api.rights if "list" not in rule["verbs"]]
    keeper(api, cluster, remove_after_s=0).look(cluster)
    assert api.value("token") and not api.value("nodes")
