"""Commands about nodes, join tokens and certificate authorities.  meta/machine/nodes.py has their rules."""

from __future__ import annotations

from typing import Union

from awsomefsd.meta.api.commands.base import Command


class AddNode(Command, tag=110):
    """A node joins; uses up one use of `token` ("": none, the cluster's own first node).

    EPERM says why not: no such token, revoked, expired, used up, for another role, or the node was removed.  A repetition with the same
    `key` (SHA-256 of the public key, DER) is answered as the first one and uses nothing up; with another key it is EPERM.
    """

    node: str
    name: str
    role: str
    key: bytes
    token: str = ""
    control: str = ""
    metadata: str = ""
    labels: dict[str, str] = {}
    version: str = ""
    level: int = 0


class DescribeNode(Command, tag=111):
    """A node describes itself, when that differs from its row."""

    node: str
    name: str
    control: str
    metadata: str
    labels: dict[str, str]
    version: str
    level: int


class SetNodeState(Command, tag=112):
    """ "active", "cordoned", "draining" or "removed"; nothing leads out of "removed".

    From level DELEGATION on also "ending", for the only node of a cluster: EBUSY if there is another one, and AddNode is refused from
    then on.  Any other state takes it back.
    """

    node: str
    state: str


class PutToken(Command, tag=113):
    """`uses` -1: no bound.  EEXIST for an id that is there with other contents."""

    id: str
    kind: str
    role: str
    verifier: bytes
    expires_ms: int
    uses: int

    def __repr__(self) -> str:
        return f"PutToken({self.id!r}, {self.kind!r}, {self.role!r}, …)"


class RevokeToken(Command, tag=114):
    id: str


class PutCa(Command, tag=115):
    """An authority becomes known, or changes its state: "trusted" by all, or "active" too, the one that signs (then the others are not).

    `id` is the SHA-256 of the certificate's DER, in hex.  For one that is there the PEMs are empty or the same.
    """

    id: str
    certificate: str
    key: str
    state: str

    def __repr__(self) -> str:
        return f"PutCa({self.id!r}, {self.state!r}, …)"


class DropCa(Command, tag=116):
    """EBUSY for the one that signs."""

    id: str


class SetCarries(Command, tag=120):
    """Says if a node shall carry the metadata: run the service, and be a voter once it is made one.  ENOENT for one that is not there."""

    node: str
    carries: bool


class RaiseLevel(Command, tag=125):
    """The cluster acts at `target` from now on; EPERM while a node does not know it."""

    target: int


NodeCommand = Union[AddNode, DescribeNode, SetNodeState, PutToken, RevokeToken, PutCa, DropCa, SetCarries, RaiseLevel]
