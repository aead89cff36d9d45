"""The questions about nodes, tokens and authorities, and the answers.

No message holds the key of an authority, and no answer the verifier of a token.  GetSigner and GetVerifier are no requests of the wire:
only the process that carries the metadata can ask itself, on the node that leads.
"""

from __future__ import annotations

from msgspec import Struct

from awsomefsd.meta.api.messages.base import Message


class ListNodes(Message, tag=110):
    """Answered by Nodes."""

    removed: bool = False  # those that were removed too


class ListTokens(Message, tag=111):
    """Answered by Tokens."""


class NodeReport(Message, tag=112):
    """Every other second, of each node.  Answered by NodeOrders; EPERM for a node that is not known or was removed.

    `bundle`: SHA-256 (hex) of the authorities' bundle that it holds; `issuer`: id of the authority that signed its certificate.
    `wall_ms`: its wall clock; 0 from an older build.
    """

    node: str
    boot_id: str
    version: str
    level: int
    name: str
    control: str
    metadata: str
    labels: dict[str, str]
    carries: bool
    bundle: str = ""
    issuer: str = ""
    wall_ms: int = 0


class ListCas(Message, tag=113):
    """Answered by Cas."""


# --- in this process only ----------------------------------------------------------------------------------------------------
class GetSigner(Message, tag=114):
    """The authority that signs, with its key.  Not decoded from any connection.  Answered by Signer."""


class GetVerifier(Message, tag=115):
    """Asks for the verifier of a token's secret.  Not decoded from any connection.  Answered by Verifier, ENOENT without such a token."""

    id: str


class GetNode(Message, tag=116):
    """Answered by Nodes with the one, removed or not; ENOENT without."""

    node: str


# --- replies ------------------------------------------------------------------------------------------------------------------
class NodeInfo(Struct, array_like=True, gc=False):
    """`heard_ms_ago` -1: not since this leader leads.  `member`: "voter", "learner" or "".  `lag`: entries behind, -1 unknown.

    `silent_ms`: since the leader's voter heard this member's, -1: no member.  `skew_ms`: its wall clock less the leader's, when its last
    report arrived; 0 if that is not known.  `segments`: where its segment server is reached, "" if it has none.
    """

    node: str
    name: str
    role: str
    state: str
    control: str
    metadata: str
    labels: dict[str, str]
    joined_ms: int
    version: str
    level: int
    carries: bool
    changed_ms: int
    key: bytes
    heard_ms_ago: int = -1
    member: str = ""
    lag: int = -1
    leader: bool = False
    bundle: str = ""
    issuer: str = ""
    silent_ms: int = -1
    skew_ms: int = 0
    segments: str = ""


class Nodes(Message, tag=110):
    """`led_ms`: for so long this leader has heard reports; who did not report in that time is really silent."""

    nodes: list[NodeInfo]
    led_ms: int = 0


class TokenInfo(Struct, array_like=True, gc=False):
    """`uses_left` -1: no bound."""

    id: str
    kind: str
    role: str
    expires_ms: int
    uses_left: int
    created_ms: int
    revoked: bool


class Tokens(Message, tag=111):
    tokens: list[TokenInfo]


class NodeEndpoint(Struct, array_like=True, gc=False):
    node: str
    name: str
    control: str
    metadata: str
    carries: bool


class NodeOrders(Message, tag=112):
    """`carry`: this node shall carry the metadata.  `ca_bundle`: PEM of all trusted authorities.  `level`: at which the cluster acts.

    `renew`: get a new certificate now, whatever its age (its authority is about to go).  `leader`: the node that answers.
    `applied`: how far its log is; 0 from an older build.
    """

    state: str
    carry: bool
    nodes: list[NodeEndpoint]
    ca_bundle: str
    level: int
    renew: bool = False
    leader: str = ""
    applied: int = 0


class CaInfo(Struct, array_like=True, gc=False):
    id: str
    certificate: str
    state: str
    created_ms: int


class Cas(Message, tag=113):
    cas: list[CaInfo]


class Signer(Message, tag=114):
    id: str
    certificate: str
    key: str
    bundle: str

    def __repr__(self) -> str:
        return f"Signer({self.id!r}, …)"


class Verifier(Message, tag=115):
    token: TokenInfo
    verifier: bytes

    def __repr__(self) -> str:
        return f"Verifier({self.token!r}, …)"
