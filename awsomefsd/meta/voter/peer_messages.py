"""The messages between voters on a connection: a greeting, then Raft's messages (meta/raft/messages.py) and a few of the driver's.
Pure.

A connection carries messages one way, from the node that dialled; so each pair of nodes has two, and no rule is needed about which of two
simultaneous ones stays.  The greeting is answered once; a refusal says why, and the dialler logs it and tries again later.
"""

from __future__ import annotations

from typing import Union

import msgspec
from msgspec import Struct

from awsomefsd.base.errors import ProtocolError
from awsomefsd.meta.raft.messages import AnyRaftMessage

PEER_PROTOCOL_VERSION = 1
PEER_PROTOCOL_OLDEST = 1  # that is still spoken


class PeerHello(Struct, array_like=True, tag=60):
    """The greeting of the node that dialled, which takes the other for `to`.  `address`: "IP:PORT" of its metadata port, "" if unknown."""

    version: int
    cluster: str
    node: str
    to: str
    incarnation: str
    address: str = ""


class PeerWelcome(Struct, array_like=True, tag=61):
    """The answer to a greeting.  `version`: the one that both know (levels.agreed)."""

    node: str
    incarnation: str
    version: int = 1


class PeerRefused(Struct, array_like=True, tag=62):
    """The refusal of a greeting, and why, in words."""

    reason: str


class Announce(Struct, array_like=True, tag=63):
    """ "This journal of mine wants to take part."  `fresh`: it holds nothing, no entry and no vote."""

    node: str
    incarnation: str
    address: str
    fresh: bool
    generation: int = 0  # of the membership that the journal knows


class DigestReport(Struct, array_like=True, tag=64):
    """The digest of the sender's state after entry `index`."""

    member: str
    index: int
    digest: bytes


class Diverged(Struct, array_like=True, tag=65):
    """Tells a member that its digest is another one than a majority's: it must rejoin with an empty journal."""

    member: str
    index: int
    digest: bytes


class Acknowledged(Struct, array_like=True, tag=66):
    """Sent by the leader of `term`: `member` has acknowledged in this term that it has entries up to `index`, and now says otherwise."""

    member: str
    term: int
    index: int


class StaleGeneration(Struct, array_like=True, tag=67):
    """Tells a node that is no member: the membership was replaced by force, and journals of earlier generations take no part."""

    node: str
    generation: int


Message = Union[AnyRaftMessage, Announce, DigestReport, Diverged, Acknowledged, StaleGeneration]
Greeting = Union[PeerHello, PeerWelcome, PeerRefused]

peer_encode = msgspec.msgpack.Encoder().encode
_message = msgspec.msgpack.Decoder(Message).decode
_greeting = msgspec.msgpack.Decoder(Greeting).decode
_BAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


def decode_message(frame: bytes) -> Message:
    """The message in a frame.  Raises ProtocolError for anything else."""
    try:
        message: Message = _message(frame)
        return message
    except _BAD as err:
        raise ProtocolError(f"not a message of a voter: {err}") from err


def decode_greeting(frame: bytes) -> Greeting:
    """The greeting in a frame.  Raises ProtocolError for anything else."""
    try:
        greeting: Greeting = _greeting(frame)
        return greeting
    except _BAD as err:
        raise ProtocolError(f"not a greeting of a voter: {err}") from err
