"""The messages of the control port between nodes: length u32 (big-endian), then one msgpack array [tag, fields…].

A connection carries one call at a time, each answered by one message.  A table in cluster/control/server.py says which caller may send
what.
"""

from __future__ import annotations

from typing import Union

import msgspec
from msgspec import Struct

from awsomefsd.base.errors import ProtocolError
from awsomefsd.base.limits import CONTROL_FRAME_BYTES_MAX
from awsomefsd.meta.api.messages.nodes import NodeEndpoint

VERSION = 1
PROTOCOL = "awsomefs-control/1"  # ALPN
HEAD_BYTES = 4


class ControlMessage(Struct, array_like=True):
    pass


# --- calls --------------------------------------------------------------------------------------------------------------------
class Greet(ControlMessage, tag=1):
    """The first call of all, before anything that is secret.  Answered by Greeting."""

    version: int


class Join(ControlMessage, tag=2):
    """The request of a machine to become a node.

    Answered by Joined.  Sent only to a server that has shown the authority of the token's pin.
    """

    token: str
    secret: bytes
    node: str
    name: str
    request: bytes  # DER
    control: str
    metadata: str
    labels: dict[str, str]
    version: str
    level: int = 0

    def __repr__(self) -> str:
        return f"Join({self.token!r}, …, {self.node!r})"


class RenewCertificate(ControlMessage, tag=3):
    """The request for a new certificate of the node in the connection's certificate, for the key it has.  Answered by Renewed."""

    request: bytes


class Leave(ControlMessage, tag=4):
    """The request of a node to be removed.  Answered by CallDone.  `force`: also if data is lost."""

    force: bool = False


class RotateCa(ControlMessage, tag=5):
    """The request for a new authority, made by the leader; its key never travels but in the log.  Answered by Rotated."""


# --- answers -------------------------------------------------------------------------------------------------------------------
class Greeting(ControlMessage, tag=64):
    """The answer to Greet.  `bundle`: PEM of the trusted authorities, to be checked against a pin and the connection's certificate."""

    version: int
    cluster: str
    bundle: str


class Joined(ControlMessage, tag=65):
    certificate: str
    bundle: str
    site: int
    nodes: list[NodeEndpoint]


class Renewed(ControlMessage, tag=66):
    certificate: str
    bundle: str


class Rotated(ControlMessage, tag=67):
    id: str


class CallDone(ControlMessage, tag=68):
    pass


class No(ControlMessage, tag=69):
    """The refusal of a call: the name of the error's class, and words that say what to do."""

    error: str
    words: str


class Redirect(ControlMessage, tag=70):
    """The caller is to ask there; "": no node leads now, ask again."""

    control: str


Call = Union[Greet, Join, RenewCertificate, Leave, RotateCa]
Answer = Union[Greeting, Joined, Renewed, Rotated, CallDone, No, Redirect]

_encode = msgspec.msgpack.Encoder().encode
_call = msgspec.msgpack.Decoder(Call).decode
_answer = msgspec.msgpack.Decoder(Answer).decode


def frame(message: ControlMessage) -> bytes:
    body = _encode(message)
    assert len(body) <= CONTROL_FRAME_BYTES_MAX
    return len(body).to_bytes(HEAD_BYTES, "big") + body


def body_bytes(head: bytes) -> int:
    """Returns the number of bytes that follow the head of a frame.  Raises ProtocolError."""
    count = int.from_bytes(head, "big")
    if not 0 < count <= CONTROL_FRAME_BYTES_MAX:
        raise ProtocolError(f"a control frame of {count} bytes; {CONTROL_FRAME_BYTES_MAX} is the most")
    return count


def decode_call(raw: bytes) -> Call:
    """Returns the call in the body of a frame.  Raises ProtocolError."""
    try:
        return _call(raw)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("a control call that cannot be decoded") from None  # its words might hold what was sent


def decode_answer(raw: bytes) -> Answer:
    """Returns the answer in the body of a frame.  Raises ProtocolError."""
    try:
        return _answer(raw)  # type: ignore[no-any-return]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise ProtocolError(f"a control answer that cannot be decoded: {err}") from err
