"""A node of the cluster admits nodes that come with the founding token: the same proof, then an ordinary admission.

The state holds a token row of kind "founding" with the derived keys (proof.py), put there by the founder at its first start, so any node
that leads can prove the secret and check a proof of it.  A node that does not lead answers with the leader's address.  The entry that adds
the node judges time, uses and revocation (meta/machine/nodes.py), as for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from awsomefsd.base.errors import Error, FsError, NotLeading, ProtocolError, Refused
from awsomefsd.cluster.founding import wire
from awsomefsd.cluster.founding.wire import (
    Admitted,
    Ask,
    FoundedElsewhere,
    FoundingHello,
    FoundingPeer,
    FoundingRejected,
    FoundingWire,
    Side,
)
from awsomefsd.cluster.messages import Join
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.signing import Signing
from awsomefsd.meta.api.messages.nodes import GetSigner, GetVerifier

ADMIT_S = 30.0


class FoundingAdmission:
    """The admission of one node; called with each connection of its control port that speaks founding.

    `ask` as in cluster/pki/signing.py; `control` returns this node's control address for a remote address.
    """

    def __init__(
        self,
        node: str,
        ask: Callable[[Any], Any],
        signing: Signing,
        leader_at: Callable[[str], str],
        control: Callable[[str], str],
    ) -> None:
        self._node = node
        self._ask = ask
        self._signing = signing
        self._leader_at = leader_at
        self._control = control

    async def __call__(self, stream: trio.SSLStream[trio.SocketStream], own_certificate: bytes, remote: str) -> None:
        """Holds the conversation on one connection.  Raises ProtocolError, Unavailable or TooSlowError if it fails."""
        connection = FoundingWire(stream)
        hello = await wire.first(connection)
        side = await trio.to_thread.run_sync(self._side, hello, abandon_on_cancel=True)
        if not isinstance(side, Side):
            await connection.send(side)
            return
        peer = await wire.listen(connection, hello, side, own_certificate, self._control(remote))
        with trio.fail_after(ADMIT_S):
            message = await connection.receive()
            if not isinstance(message, Ask):
                raise ProtocolError(f"{type(message).__name__} from a node that is not in the cluster")
            await connection.send(await trio.to_thread.run_sync(self._admit, hello, peer, message, abandon_on_cancel=True))

    def _side(self, hello: FoundingHello) -> Side | FoundedElsewhere | FoundingRejected:
        try:
            held = self._ask(GetVerifier(hello.token))
            signer = self._ask(GetSigner())
        except NotLeading as err:
            return FoundedElsewhere(self._leader_at(err.leader) if err.leader else "")
        except FsError as err:
            return FoundingRejected(str(err))
        except Error as err:
            return FoundingRejected(f"the node there cannot answer now: {err}")
        if held.token.kind != "founding":
            return FoundingRejected("the token is no founding token; use awsomefsd join")
        return Side(hello.token, held.verifier, self._node, signer.id, formed=True)

    def _admit(self, hello: FoundingHello, peer: FoundingPeer, asked: Ask) -> Admitted | FoundingRejected | FoundedElsewhere:
        try:
            if ca.request_key(asked.request).hex() != peer.key:
                raise Refused("the certificate request is for another key than the proof")
            body = Join(
                hello.token, b"", peer.node, asked.name, asked.request, asked.control, asked.metadata, asked.labels, asked.version,
                asked.level,
            )  # fmt: skip
            joined = self._signing.admit(body, "node", hello.token)
        except NotLeading as err:
            return FoundedElsewhere(self._leader_at(err.leader) if err.leader else "")
        except Error as err:
            return FoundingRejected(str(err))
        return Admitted(joined.certificate, joined.bundle, joined.site, joined.nodes)
