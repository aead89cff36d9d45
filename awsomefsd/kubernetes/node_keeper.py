"""Keeps a join token in a Secret of Kubernetes, and removes nodes that are gone for good.

It runs as a small Deployment of its own, with a service account that may do three things: read and replace that one Secret, and list the
names of nodes.  The pods of the nodes, which are privileged and everywhere, have no account at all.  It asks the cluster through the daemon
of the node on which it runs.

Several may run at once.  Nobody is chosen: the Secret has a version, and who replaces one that has changed meanwhile is refused by the API
server; it then revokes the token that it made for nothing.  Whatever fails (the API server, the daemon, the leader) leaves all as it is,
is said once in the log, and is tried again at the next look.  A token that was made stays good meanwhile, for half of its life at least.

A node is removed as by `awsomefsd node remove` without --force: never a majority of the metadata, never while something is mounted there,
never data that lies nowhere else.  What is in the way is said in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from awsomefsd.base.errors import Error, NotFound, Unavailable
from awsomefsd.base.limits import NS_PER_MS
from awsomefsd.kubernetes import departed, join_secret
from awsomefsd.kubernetes.join_secret import TOKEN_KEY, Wanted

logger = logging.getLogger(__name__)
REMOVE_S = 60.0  # its sessions have to end


class Kubernetes(Protocol):
    """The part of the API server that is asked; kubernetes/api_server.py has the words."""

    def secret(self, namespace: str, name: str) -> dict[str, Any]: ...
    def replace_secret(self, namespace: str, name: str, secret: dict[str, Any]) -> dict[str, Any]: ...
    def node_names(self) -> set[str]: ...


class Cluster(Protocol):
    """The admin API of a daemon."""

    def call(self, rpc: str, /, timeout_s: float = ..., **fields: Any) -> Any: ...


@dataclass(frozen=True, slots=True)
class Orders:
    """What is to be kept.  `remove_after_s` 0: no node is removed.  `own_node`: the Kubernetes node on which this process runs."""

    namespace: str
    secret: str
    token: Wanted
    remove_after_s: int
    own_node: str


class NodeKeeper:
    """One of the processes that keep token and nodes; `look` is called again and again, by one thread."""

    def __init__(self, orders: Orders, kubernetes: Kubernetes, clock_ns: Callable[[], int]) -> None:
        self._orders = orders
        self._kubernetes = kubernetes
        self._clock_ns = clock_ns
        self._made = ""  # the last token that this process put into the Secret
        self._said: dict[str, str] = {}

    def look(self, cluster: Cluster) -> None:
        """Looks once at token and nodes, and does what is due.  Blocks for the API server and the daemon.

        Raises an Error of either; what was done before it stays done.
        """
        nodes = list(cluster.call("ListNodes").nodes)
        try:
            secret = self._kubernetes.secret(self._orders.namespace, self._orders.secret)
        except NotFound as err:
            raise NotFound(f"{err}; the chart makes this Secret, empty: install it again") from err
        secret = self._keep_token(cluster, secret, nodes)
        self._keep_nodes(cluster, secret, nodes)

    # --- the token --------------------------------------------------------------------------------------------------------------
    def _keep_token(self, cluster: Cluster, secret: dict[str, Any], nodes: list[Any]) -> dict[str, Any]:
        authority = next((row.id for row in cluster.call("ListCas").cas if row.state == "active"), "")
        controls = {row.control for row in nodes if row.role == "node" and row.control}
        held = join_secret.Held(cluster.call("ListTokens").tokens, controls, authority)
        now_ms = self._clock_ns() // NS_PER_MS

        def why(text: str) -> str:
            return join_secret.why_renew(text, held, self._orders.token, now_ms)

        if not (reason := why(join_secret.value(secret, TOKEN_KEY))):
            return secret
        if self._made and not why(self._made):  # somebody else writes this Secret too; a new token each time would fill the cluster
            logger.warning("the Secret has lost the join token; it is put back", extra={"secret": self._orders.secret, "reason": reason})
            return self._put(secret, TOKEN_KEY, self._made)
        return self._renew(cluster, secret, reason)

    def _renew(self, cluster: Cluster, secret: dict[str, Any], reason: str) -> dict[str, Any]:
        wanted = self._orders.token
        made = cluster.call("CreateToken", role=wanted.role, ttl_s=wanted.ttl_s, uses=wanted.uses or -1)
        try:
            replaced = self._put(secret, TOKEN_KEY, made.text)
        except Error:
            with suppress(Error):  # then it ends by itself
                cluster.call("RevokeToken", id=made.id)
            raise
        self._made = made.text
        logger.info("the Secret has a new join token", extra={"secret": self._orders.secret, "token": made.id, "reason": reason})
        return replaced

    def _put(self, secret: dict[str, Any], key: str, text: str) -> dict[str, Any]:
        changed = join_secret.with_value(secret, key, text)
        return self._kubernetes.replace_secret(self._orders.namespace, self._orders.secret, changed)

    # --- the nodes --------------------------------------------------------------------------------------------------------------
    def _keep_nodes(self, cluster: Cluster, secret: dict[str, Any], nodes: list[Any]) -> None:
        if not self._orders.remove_after_s:
            return
        names = self._kubernetes.node_names()
        if self._orders.own_node not in names:  # whatever this list is of, it is not of the nodes of this Kubernetes
            raise Unavailable(f"the API server's list of nodes lacks {self._orders.own_node}, where this pod runs; no node is looked for")
        now_s = self._clock_ns() // 1_000_000_000
        former = departed.decode(join_secret.value(secret, departed.RECORD_KEY))
        record = departed.looked(former, names, nodes, now_s)
        if record != former:
            self._tell(former, record)
            self._put(secret, departed.RECORD_KEY, departed.encode(record))
        for node in departed.due(record, nodes, self._orders.remove_after_s, now_s):
            self._remove(cluster, node, record[node].name)

    def _tell(self, former: departed.Record, record: departed.Record) -> None:
        for node, known in record.items():
            before = former.get(node, departed.Known(known.name)).away_s
            if bool(known.away_s) != bool(before):
                what = "a node is gone from Kubernetes and is not heard" if known.away_s else "a node that was gone is back"
                logger.warning(what, extra={"gone": node, "named": known.name, "removed_after_s": self._orders.remove_after_s})

    def _remove(self, cluster: Cluster, node: str, name: str) -> None:
        try:
            cluster.call("SetNode", timeout_s=REMOVE_S, node=node, action="remove", force=False)
        except NotFound:
            return  # another one was faster
        except Error as err:
            if self._said.get(node) != str(err):
                logger.warning("a node that is gone cannot be removed: %s", err, extra={"gone": node, "named": name})
            self._said[node] = str(err)
        else:
            self._said.pop(node, None)
            logger.warning("a node that was gone from Kubernetes is removed", extra={"gone": node, "named": name})
