"""How a node of the cluster lets in those that come with the founding token: the same proof, then an ordinary admission.

The state holds a token row of kind "founding" with the derived keys (proof.py), put there by the founder at its first start, so any node
that leads can prove the secret and check a proof of it.  One that does not lead says who does.  Time, uses and revocation are judged by
the entry that adds the node (meta/nodes.py), as for every token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from awsomefsd.cluster import ca, founding_wire
from awsomefsd.cluster.control_messages import Join
from awsomefsd.cluster.founding_wire import Admitted, Ask, Elsewhere, Hello, Peer, Rejected, Side, Wire
from awsomefsd.cluster.signing import Signing
from awsomefsd.errors import Error, FsError, NotLeading, ProtocolError, Refused
from awsomefsd.meta.node_messages import GetSigner, GetVerifier

ADMIT_S = 30.0


class FoundingDoor:
    """Called with each connection of the control port that speaks founding.  `ask` as in signing.py; `control`: this node's address for
    who comes from an address."""

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
        """Raises ProtocolError, Unavailable or TooSlowError for a conversation that fails."""
        wire = Wire(stream)
        hello = await founding_wire.first(wire)
        side = await trio.to_thread.run_sync(self._side, hello, abandon_on_cancel=True)
        if not isinstance(side, Side):
            await wire.send(side)
            return
        peer = await founding_wire.listen(wire, hello, side, own_certificate, self._control(remote))
        with trio.fail_after(ADMIT_S):
            message = await wire.receive()
            if not isinstance(message, Ask):
                raise ProtocolError(f"{type(message).__name__} from a node that is not in the cluster")
            await wire.send(await trio.to_thread.run_sync(self._admit, hello, peer, message, abandon_on_cancel=True))

    def _side(self, hello: Hello) -> Side | Elsewhere | Rejected:
        try:
            held = self._ask(GetVerifier(hello.token))
            signer = self._ask(GetSigner())
        except NotLeading as err:
            return Elsewhere(self._leader_at(err.leader) if err.leader else "")
        except FsError as err:
            return Rejected(str(err))
        except Error as err:
            return Rejected(f"the node there cannot answer now: {err}")
        if held.token.kind != "founding":
            return Rejected("the token is no founding token; use awsomefsd join")
        return Side(hello.token, held.verifier, self._node, signer.id, formed=True)

    def _admit(self, hello: Hello, peer: Peer, asked: Ask) -> Admitted | Rejected | Elsewhere:
        try:
            if ca.request_key(asked.request).hex() != peer.key:
                raise Refused("the certificate request is for another key than the proof")
            body = Join(
                hello.token, b"", peer.node, asked.name, asked.request, asked.control, asked.metadata, asked.labels, asked.version,
                asked.level,
            )  # fmt: skip
            joined = self._signing.admit(body, "node", hello.token)
        except NotLeading as err:
            return Elsewhere(self._leader_at(err.leader) if err.leader else "")
        except Error as err:
            return Rejected(str(err))
        return Admitted(joined.certificate, joined.bundle, joined.site, joined.nodes)
