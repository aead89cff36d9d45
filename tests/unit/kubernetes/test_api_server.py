"""The client of the API server against a stand-in over TLS, with the rights that the chart gives the account."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from awsomefsd.base.errors import ConfigError, NotFound, ProtocolError, Refused, Unavailable
from awsomefsd.kubernetes import api_server
from awsomefsd.kubernetes.api_server import ApiServer, Conflict, Place, in_cluster
from awsomefsd.kubernetes.join_secret import value, with_value
from tests.rigs.kubernetes_api import NAMESPACE, SECRET, KubernetesApi


@pytest.fixture
def api(tmp_path: Path) -> Iterator[KubernetesApi]:
    with KubernetesApi(tmp_path / "account") as made:
        yield made


@pytest.fixture
def client(api: KubernetesApi) -> ApiServer:
    return ApiServer(Place("127.0.0.1", api.port, api.account))


def test_a_secret_is_replaced_by_the_one_who_read_the_newest(api: KubernetesApi, client: ApiServer) -> None:
    assert client.namespace() == NAMESPACE
    first = client.secret(NAMESPACE, SECRET)
    second = client.replace_secret(NAMESPACE, SECRET, with_value(first, "token", "one"))
    assert value(second, "token") == api.value("token") == "one"
    assert second["metadata"]["labels"] == first["metadata"]["labels"]
    with pytest.raises(Conflict, match="has been modified"):
        client.replace_secret(NAMESPACE, SECRET, with_value(first, "token", "two"))
    client.replace_secret(NAMESPACE, SECRET, with_value(second, "nodes", "{}"))
    assert (api.value("token"), api.value("nodes")) == ("one", "{}")


def test_the_account_may_do_nothing_else(api: KubernetesApi, client: ApiServer) -> None:
    api.secrets["other"] = {"metadata": {"name": "other", "resourceVersion": "1"}}
    for namespace, name in ((NAMESPACE, "other"), ("kube-system", SECRET)):
        with pytest.raises(Refused, match=r"403.*cannot get secrets.*install the chart's RBAC"):
            client.secret(namespace, name)
    verbs = {verb for rule in api.rights for verb in rule["verbs"]}
    assert verbs == {"get", "update", "list"} and len(api.rights) == 2
    api.rights = []
    with pytest.raises(Refused, match="cannot list nodes"):
        client.node_names()


def test_nodes_come_in_pages_and_without_their_contents(
    api: KubernetesApi, client: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.nodes = {f"node-{number}.example.net" for number in range(7)}
    assert client.node_names() == api.nodes
    monkeypatch.setattr(api_server, "NODES_A_PAGE", 3)
    assert client.node_names() == api.nodes and len(api.asked) == 4
    api.nodes = set()
    assert client.node_names() == set()


def test_the_accounts_token_is_read_each_time(api: KubernetesApi, client: ApiServer) -> None:
    client.secret(NAMESPACE, SECRET)
    api.rotate("account-2")
    client.secret(NAMESPACE, SECRET)
    api.token = "another"
    with pytest.raises(Refused, match="401"):
        client.secret(NAMESPACE, SECRET)


def test_what_is_away_says_so(api: KubernetesApi, client: ApiServer, tmp_path: Path) -> None:
    with api.lock:
        del api.secrets[SECRET]
    with pytest.raises(NotFound, match="not found"):
        client.secret(NAMESPACE, SECRET)
    api.away = True
    with pytest.raises(Unavailable, match="503: the server is currently unable"):
        client.secret(NAMESPACE, SECRET)
    (api.account / "token").unlink()
    with pytest.raises(Unavailable, match="does the pod mount its service account"):
        client.secret(NAMESPACE, SECRET)
    nobody = ApiServer(Place("127.0.0.1", 1, api.account))
    api.rotate("t")
    with pytest.raises(Unavailable, match=r"at 127\.0\.0\.1:1 does not answer"):
        nobody.secret(NAMESPACE, SECRET)
    with pytest.raises(ConfigError, match="no pod of Kubernetes"):
        in_cluster({}, tmp_path)


def test_a_server_of_another_authority_is_not_told_the_token(api: KubernetesApi, client: ApiServer) -> None:
    trustme.CA().cert_pem.write_to_path(api.account / "ca.crt")
    with pytest.raises(Unavailable, match="certificate verify failed"):
        client.secret(NAMESPACE, SECRET)
    assert api.asked == []
    (api.account / "ca.crt").write_text("nonsense")
    with pytest.raises(Unavailable, match=r"ca\.crt cannot be read"):
        client.secret(NAMESPACE, SECRET)


@pytest.mark.parametrize("held", ["secret-one\nsecret-two", "secret-\u20ac"])
def test_a_damaged_token_of_the_account_is_not_shown(api: KubernetesApi, client: ApiServer, held: str) -> None:
    (api.account / "token").write_text(held)
    with pytest.raises(Unavailable, match="/token holds is no token") as caught:
        client.secret(NAMESPACE, SECRET)
    assert "secret-" not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("answer", [{}, {"metadata": None}, {"metadata": {}}, {"metadata": {"resourceVersion": "1"}, "data": ["x"]}])
def test_an_answer_that_is_no_secret_is_refused(api: KubernetesApi, client: ApiServer, answer: dict[str, object]) -> None:
    api.secrets[SECRET] = answer
    with pytest.raises(ProtocolError, match="is that address Kubernetes"):
        client.secret(NAMESPACE, SECRET)
