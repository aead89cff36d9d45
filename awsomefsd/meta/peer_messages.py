"""What voters say to each other on a connection: a greeting, then Raft's messages (raft_messages.py) and a few of the driver's own.  Pure.

A connection carries messages one way, from the node that dialled; so each pair of nodes has two, and no rule is needed about which of two
simultaneous ones stays.  The greeting is answered once; a refusal says why, and the dialler logs it and tries again later.
"""

from __future__ import annotations

from typing import Union

import msgspec
from msgspec import Struct

from awsomefsd.errors import ProtocolError
from awsomefsd.meta.raft_messages import AnyRaftMessage

PEER_PROTOCOL_VERSION = 1
PEER_PROTOCOL_OLDEST = 1  # that is still spoken


class PeerHello(Struct, array_like=True, tag=60):
    """`node` speaks, and takes the other side for `to`.  `address`: "IP:PORT" of its metadata port, "" if it does not know."""

    version: int
    cluster: str
    node: str
    to: str
    incarnation: str
    address: str = ""


class PeerWelcome(Struct, array_like=True, tag=61):
    """`version`: the one that both know (levels.agreed)."""

    node: str
    incarnation: str
    version: int = 1


class PeerRefused(Struct, array_like=True, tag=62):
    reason: str


class Announce(Struct, array_like=True, tag=63):
    """"This journal of mine wants to take part."  `fresh`: it holds nothing, no entry and no vote."""

    node: str
    incarnation: str
    address: str
    fresh: bool
    generation: int = 0  # of the membership that the journal knows


class DigestReport(Struct, array_like=True, tag=64):
    """The sender's state after entry `index`."""

    member: str
    index: int
    digest: bytes


class Diverged(Struct, array_like=True, tag=65):
    """To a member whose digest is another one than a majority's: it has to begin anew."""

    member: str
    index: int
    digest: bytes


class Acknowledged(Struct, array_like=True, tag=66):
    """From the leader of `term`: `member` has acknowledged in this term that it holds entries up to `index`, and now says otherwise."""

    member: str
    term: int
    index: int


class LeftBehind(Struct, array_like=True, tag=67):
    """To a node that is no member: the membership was made anew by force; a journal of an earlier generation takes no part any more."""

    node: str
    generation: int


Message = Union[AnyRaftMessage, Announce, DigestReport, Diverged, Acknowledged, LeftBehind]
Greeting = Union[PeerHello, PeerWelcome, PeerRefused]

peer_encode = msgspec.msgpack.Encoder().encode
_message = msgspec.msgpack.Decoder(Message).decode
_greeting = msgspec.msgpack.Decoder(Greeting).decode
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_message(frame: bytes) -> Message:
    """Raises ProtocolError for anything that is none."""
    try:
        message: Message = _message(frame)
        return message
    except _BAD as err:
        raise ProtocolError(f"not a message of a voter: {err}") from err


def decode_greeting(frame: bytes) -> Greeting:
    """Raises ProtocolError for anything that is none."""
    try:
        greeting: Greeting = _greeting(frame)
        return greeting
    except _BAD as err:
        raise ProtocolError(f"not a greeting of a voter: {err}") from err
