"""Founding tokens: one string, made offline before there is any cluster, that N machines share to become one.

It holds the cluster's id, a secret of 256 bits, N ("expect"), how many nodes may use it in all, endpoints, and when it expires.  N must be
more than half of those that may use it: then two sets of N have a node in common, and founding (cluster/founding/founding.py) cannot be
decided twice.
There is no pin, because there is no authority yet; both sides prove the secret instead (cluster/pki/proof.py).  In the cluster the
token is known by its id, which is derived from the secret, and by derived keys; the secret itself is nowhere but in the printed string.
"""

from __future__ import annotations

import secrets
import uuid

import msgspec
from msgspec import Struct

from awsomefsd.base.errors import ConfigError
from awsomefsd.base.limits import FOUNDING_NODES_MAX
from awsomefsd.cluster.pki import proof, token_text
from awsomefsd.cluster.pki.token_text import TokenError

SECRET_BYTES = 32
ENDPOINTS_MAX = 32
_SENSELESS = "the token's checksum is right, but its contents are not valid; make a new one with awsomefsd token generate"


class FoundingToken(Struct, array_like=True, frozen=True):
    """The content of a founding token.  `endpoints`: control ports, "host:port"; may be empty.  Fields may be appended with a default."""

    cluster: bytes
    secret: bytes
    expect: int
    nodes: int
    endpoints: tuple[str, ...]
    expires_ms: int

    @property
    def id(self) -> str:
        return proof.derive(self.secret, "id", 6).hex()

    @property
    def cluster_uuid(self) -> str:
        return str(uuid.UUID(bytes=self.cluster))

    @property
    def verifier(self) -> bytes:
        return proof.verifier(self.secret)

    def __repr__(self) -> str:
        return f"FoundingToken({self.id}, {self.expect} of {self.nodes} nodes, cluster {self.cluster_uuid})"

    def __str__(self) -> str:
        return repr(self)


def make(expect: int, endpoints: tuple[str, ...], expires_ms: int, nodes: int = 0) -> FoundingToken:
    """Returns a new token.  `nodes` 0: as many as are safe.  Raises ConfigError for numbers that are not safe."""
    nodes = nodes or 2 * expect - 1
    if not 1 <= expect <= FOUNDING_NODES_MAX // 2:
        raise ConfigError(f"--expect is from 1 to {FOUNDING_NODES_MAX // 2}, not {expect}")
    if not expect <= nodes < 2 * expect:
        raise ConfigError(
            f"--uses is from {expect} to {2 * expect - 1} with --expect {expect}, not {nodes}: more than half of the nodes that may "
            "use the token must be expected, or two clusters could form; further nodes join with awsomefsd token create"
        )
    if len(endpoints) > ENDPOINTS_MAX:
        raise ConfigError(f"a token has at most {ENDPOINTS_MAX} endpoints")
    return FoundingToken(uuid.uuid4().bytes, secrets.token_bytes(SECRET_BYTES), expect, nodes, endpoints, expires_ms)


def print_token(token: FoundingToken) -> str:
    return token_text.encode(token_text.FOUNDING, msgspec.msgpack.encode(token))


def parse(text: str) -> FoundingToken:
    """Returns the token in a text.  Raises TokenError, which says what is wrong and shows nothing of the text."""
    kind, body = token_text.decode(text)
    if kind != token_text.FOUNDING:
        raise TokenError("this is not a founding token; awsomefsd token generate makes one")
    try:
        token = msgspec.msgpack.decode(body, type=FoundingToken)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise TokenError(_SENSELESS) from err
    good = (len(token.cluster), len(token.secret)) == (16, SECRET_BYTES) and len(token.endpoints) <= ENDPOINTS_MAX
    if not good or not 1 <= token.expect <= token.nodes < 2 * token.expect <= FOUNDING_NODES_MAX:
        raise TokenError(_SENSELESS)
    return token


def is_founding(text: str) -> bool:
    """Returns True for a founding token, False for a join token.  Raises TokenError for any other text."""
    return token_text.decode(text)[0] == token_text.FOUNDING
