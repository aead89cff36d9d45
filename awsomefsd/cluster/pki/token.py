"""Join tokens: everything a fresh machine needs to find a cluster, know it for the right one, and be let in.

The secret (256 bits) is in the printed string only.  The cluster keeps its hash: with so many bits a plain SHA-256 cannot be searched, and
a reader of the state cannot join with it.  The pin is the SHA-256 of the authority that signs when the token is made: the joiner checks it
before the secret leaves the machine.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid

import msgspec
from msgspec import Struct

from awsomefsd.cluster.pki import token_text
from awsomefsd.cluster.pki.token_text import TokenError

SECRET_BYTES = 32
_PURPOSE = b"awsomefs join token 1\0"


class JoinToken(Struct, array_like=True, frozen=True):
    """The content of a join token.  `endpoints`: control ports, "host:port".  Fields may be appended with a default."""

    cluster: bytes
    id: str
    pin: bytes
    endpoints: tuple[str, ...]
    role: str
    expires_ms: int
    secret: bytes

    @property
    def cluster_uuid(self) -> str:
        return str(uuid.UUID(bytes=self.cluster))

    @property
    def verifier(self) -> bytes:
        return verifier_of(self.secret)

    def __repr__(self) -> str:
        return f"JoinToken({self.id}, {self.role}, cluster {self.cluster_uuid})"

    def __str__(self) -> str:
        return repr(self)


def make(cluster: str, authority_id: str, endpoints: tuple[str, ...], role: str, expires_ms: int) -> JoinToken:
    return JoinToken(
        uuid.UUID(cluster).bytes, secrets.token_hex(6), bytes.fromhex(authority_id), endpoints, role, expires_ms,
        secrets.token_bytes(SECRET_BYTES),
    )  # fmt: skip


def print_token(token: JoinToken) -> str:
    return token_text.encode(token_text.JOIN, msgspec.msgpack.encode(token))


def parse(text: str) -> JoinToken:
    """Returns the token in a text.  Raises TokenError, which says what is wrong and shows nothing of the text."""
    kind, body = token_text.decode(text)
    if kind == token_text.FOUNDING:
        raise TokenError(
            "this is a founding token: give it to `awsomefsd run` as AWSOMEFSD_TOKEN_FILE; "
            "`awsomefsd join` takes a token of `awsomefsd token create`"
        )
    if kind != token_text.JOIN:
        raise TokenError(f"the token is of kind {kind}, which this build does not know; upgrade awsomefsd on this node")
    try:
        token = msgspec.msgpack.decode(body, type=JoinToken)
    except (msgspec.DecodeError, UnicodeDecodeError) as err:
        raise TokenError(
            "the token's checksum is right, but its contents are not valid; make a new one with awsomefsd token create"
        ) from err
    sizes = len(token.cluster), len(token.pin), len(token.secret)
    if sizes != (16, 32, SECRET_BYTES) or not token.endpoints or token.role not in ("node", "client"):
        raise TokenError("the token's checksum is right, but its contents are not valid; make a new one with awsomefsd token create")
    return token


def verifier_of(secret: bytes) -> bytes:
    return hashlib.sha256(_PURPOSE + secret).digest()


def fits(secret: bytes, verifier: bytes) -> bool:
    """Returns True if the secret has this hash; compares in constant time."""
    return hmac.compare_digest(verifier_of(secret), verifier)
