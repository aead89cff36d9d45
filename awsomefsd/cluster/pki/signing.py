"""The leader's work for nodes that join, renew, or rotate the authority; it blocks, and knows no transport.

A join is, in this order: the token's secret, the request's own signature, the entry that adds the node and uses up one use, the
certificate.  A crash between the last two costs nothing: the joiner asks again with the same key, is the same node, and is signed for.  A
recorded join that an attacker replays ends in a certificate for a key that the attacker does not have.
"""

from __future__ import annotations

import datetime
import errno
from collections.abc import Callable
from typing import Any

from awsomefsd.base.errors import FsError, Refused
from awsomefsd.base.types import HOST_UNIQUE, node_mount
from awsomefsd.cluster.messages import Join, Joined, RenewCertificate, Renewed
from awsomefsd.cluster.pki import ca, token
from awsomefsd.meta.api.commands import AddNode, PutCa
from awsomefsd.meta.api.messages.nodes import GetNode, GetSigner, GetVerifier, ListNodes, NodeEndpoint, NodeInfo

Ask = Callable[[Any], Any]  # a request to this node's own metadata service; NotLeading if it does not lead


class Signing:
    """The signing of certificates.  Thread-safe as far as `ask` is; every method blocks for the metadata service.

    `ask` asks this node's own service, and raises NotLeading unless it leads: so does every method.  Unavailable and FsError go through.
    """

    def __init__(
        self,
        cluster: str,
        site: int,
        ask: Ask,
        now: Callable[[], datetime.datetime] = ca.now,
        life: datetime.timedelta = ca.NODE_LIFE,
    ) -> None:
        self.cluster = cluster
        self._site = site
        self._ask = ask
        self._now = now
        self._life = life

    def propose(self, command: Any) -> Any:
        from awsomefsd.meta.api.messages import Propose

        return self._ask(Propose(HOST_UNIQUE, 0, 0, [], command))

    def join(self, body: Join) -> Joined:
        """Adds a node that comes with a join token.  Raises Refused, which says why."""
        role = self._role_of(body)
        return self.admit(body, role, body.token)

    def admit(self, body: Join, role: str, token_id: str) -> Joined:
        """Adds a node that has proved to hold a token's secret.  The entry counts the use of the token and may refuse (Refused)."""
        key = ca.request_key(body.request)
        ca.check_node(body.node)
        self._check_number(body.node)
        try:
            self.propose(
                AddNode(body.node, body.name, role, key, token_id, body.control, body.metadata, body.labels, body.version, body.level)
            )
        except FsError as err:
            if err.retry_helps or err.errno == errno.EAGAIN:
                raise
            raise Refused(str(err)) from err
        certificate, bundle = self._sign(body.request, body.node, role)
        nodes = [NodeEndpoint(row.node, row.name, row.control, row.metadata, row.carries) for row in self._ask(ListNodes()).nodes]
        return Joined(certificate, bundle, self._site, nodes)

    def _check_number(self, node: str) -> None:
        """Raises Refused for a UUID with which the joiner's daemon would ask under the number of another node's (types.node_mount).

        It chooses its UUID itself, and a part of it makes the number: it would end the other's connections, and the results of its own
        requests would be told to the other as those of the other's.
        """
        if any(row.node != node and node_mount(row.node) == node_mount(node) for row in self._ask(ListNodes(True)).nodes):
            raise Refused(f"the UUID {node} is too like that of another node; join with a new identity (an empty state directory)")

    def _role_of(self, body: Join) -> str:
        try:
            held = self._ask(GetVerifier(body.token))
        except FsError as err:
            raise Refused(str(err)) from err
        if held.token.kind != "join" or not token.fits(body.secret, held.verifier):
            raise Refused("the token's secret is wrong; make a new token with awsomefsd token create")
        if held.token.revoked:
            raise Refused("the token was revoked; make a new one with awsomefsd token create")
        if self._now().timestamp() * 1_000 >= held.token.expires_ms:
            raise Refused("the token has expired; make a new one with awsomefsd token create")
        return str(held.token.role)

    def renew(self, node: str, body: RenewCertificate) -> Renewed:
        """Signs a new certificate for `node`, which the caller's certificate has proved.  Raises Refused for another key."""
        row = self.member(node)
        if ca.request_key(body.request) != row.key:
            raise Refused(f"node {node} renews for the key it joined with, and for no other")
        return Renewed(*self._sign(body.request, node, row.role))

    def member(self, node: str) -> NodeInfo:
        """Returns the row of a node.  Raises Refused for one that is not (any more) in the cluster."""
        try:
            row: NodeInfo = self._ask(GetNode(node)).nodes[0]
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            raise Refused(f"node {node} is not a member of this cluster") from err
        if row.state == "removed":
            raise Refused(f"node {node} was removed from this cluster; join with a new identity (an empty state directory)")
        return row

    def _sign(self, request: bytes, node: str, role: str) -> tuple[str, str]:
        signer = self._ask(GetSigner())
        authority = ca.Authority(signer.id, signer.certificate, signer.key)
        return ca.sign(authority, request, node, role, self._now(), self._life), signer.bundle

    def rotate(self) -> str:
        """Makes an authority that is trusted and not signing yet; returns its id.

        Rotation (rotation.py) makes it sign when all nodes trust it.
        """
        made = ca.make_authority(self.cluster, self._now())
        self.propose(PutCa(made.id, made.certificate, made.key, "trusted"))
        return made.id
