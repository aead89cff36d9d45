"""A conversation between two holders of a founding token: frames over TLS, the mutual proof, then messages either way.

ALPN `awsomefs-founding/1` on the control port, TLS 1.3 without verification; the proof (proof.py) is what makes the other end trustworthy.
The dialling side says Hello, the listening side answers Welcome with its proof, and gets Proof.  Nothing else is read before that.  The
listening side proves first: with a secret of 256 bits its HMAC helps no attacker, and the dialling side proves nothing to a stranger.

A node that is in the cluster answers the same Hello: with Welcome and `formed`, or with Elsewhere, the address of the node that leads.
Elsewhere and Rejected come before any proof; they can delay a node and send it to other strangers, no more.
"""

from __future__ import annotations

import secrets
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import trio

from awsomefsd.base.errors import ProtocolError, Refused, Unavailable
from awsomefsd.base.frames import FrameReader, frame
from awsomefsd.base.limits import FOUNDING_FRAME_BYTES_MAX
from awsomefsd.cluster.founding import founding
from awsomefsd.cluster.pki import proof
from awsomefsd.cluster.pki.proof import Transcript
from awsomefsd.meta.api.messages.nodes import NodeEndpoint

ALPN = "awsomefs-founding/1"
VERSION = 1
HANDSHAKE_S = 10.0
WORDS_MAX = 300
_CHUNK_BYTES = 64 * 1024


class FoundingHello(msgspec.Struct, frozen=True, tag=20):
    version: int
    token: str
    node: str
    nonce: bytes
    ca: str
    key: str
    control: str  # where the sender can be dialled


class FoundingWelcome(msgspec.Struct, frozen=True, tag=21):
    node: str
    nonce: bytes
    ca: str
    formed: bool
    proof: bytes
    control: str


class FoundedElsewhere(msgspec.Struct, frozen=True, tag=22):
    """The dialling side is to ask the node that leads; "": no node leads now, ask again."""

    control: str


class FoundingRejected(msgspec.Struct, frozen=True, tag=23):
    reason: str


class Proof(msgspec.Struct, frozen=True, tag=24):
    proof: bytes


class FoundingNodes(msgspec.Struct, frozen=True, tag=25):
    """The other nodes that the sender has met: node → the address where it can be dialled."""

    nodes: dict[str, str]


class Ask(msgspec.Struct, frozen=True, tag=26):
    """The request to be let in.  `request`: a CSR (DER) for the key of the Hello."""

    request: bytes
    name: str
    control: str
    metadata: str
    labels: dict[str, str]
    version: str
    level: int


class Admitted(msgspec.Struct, frozen=True, tag=27):
    certificate: str
    bundle: str
    site: int
    nodes: list[NodeEndpoint]


Frame: TypeAlias = (
    FoundingHello | FoundingWelcome | FoundedElsewhere | FoundingRejected | Proof | FoundingNodes | Ask | Admitted
    | founding.Prepare | founding.PaxosPromise | founding.Accept | founding.Accepted | founding.Behind | founding.Decided
)  # fmt: skip
_decode = msgspec.msgpack.Decoder(Frame).decode


@dataclass(frozen=True, slots=True)
class Side:
    """The facts that this node states about itself in a handshake."""

    token: str
    keys: bytes
    node: str
    ca: str  # hash
    key: str = ""  # hash; of the dialling side
    formed: bool = False


@dataclass(frozen=True, slots=True)
class FoundingPeer:
    """The other side of a conversation, as it was proved."""

    node: str
    control: str
    ca: str
    formed: bool
    key: str


def dialling_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the proof binds the certificate that is seen
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([ALPN])
    return context


def listening_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols([ALPN])
    return context


class FoundingWire:
    """Frames over one TLS connection, on the event loop."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self._frames = FrameReader(FOUNDING_FRAME_BYTES_MAX)
        self._ready: list[bytes] = []

    async def send(self, message: Frame) -> None:
        try:
            await self.stream.send_all(frame(msgspec.msgpack.encode(message)))
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as err:
            raise Unavailable(f"the connection ended ({err or type(err).__name__})") from err

    async def receive(self) -> Frame:
        """Returns the next message.  Raises Unavailable at the end, ProtocolError for bytes that are no message."""
        while not self._ready:
            try:
                data = await self.stream.receive_some(_CHUNK_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as err:
                raise Unavailable(f"the connection ended ({err or type(err).__name__})") from err
            if not data:
                raise Unavailable("the other end closed the connection")
            self._ready = self._frames.feed(bytes(data))
        try:
            return _decode(self._ready.pop(0))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
            raise ProtocolError(f"not a founding message: {err}") from err

    async def close(self) -> None:
        await trio.aclose_forcefully(self.stream)


class Redirected(Unavailable):
    """Another node of the cluster is to be asked."""

    def __init__(self, control: str) -> None:
        super().__init__(f"the cluster's leader is at {control}" if control else "the cluster has no leader now")
        self.control = control


async def dial(wire: FoundingWire, side: Side, control: str) -> FoundingPeer:
    """Makes the dialling side's half of the proof; returns the peer.  Takes HANDSHAKE_S at most.

    Raises Redirected, Refused (with the other's reason), ProtocolError for a failed proof, Unavailable, and trio's TooSlowError and
    BrokenResourceError.
    """
    with trio.fail_after(HANDSHAKE_S):
        await wire.stream.do_handshake()
        if wire.stream.selected_alpn_protocol() != ALPN:
            raise Refused("no node that accepts founding tokens listens at this address")
        seen = proof.hex_hash(wire.stream.getpeercert(binary_form=True))
        nonce = secrets.token_bytes(proof.NONCE_BYTES)
        await wire.send(FoundingHello(VERSION, side.token, side.node, nonce, side.ca, side.key, control))
        answer = await wire.receive()
        if isinstance(answer, FoundedElsewhere):
            raise Redirected(_plain(answer.control))
        if isinstance(answer, FoundingRejected):
            raise Refused(_plain(answer.reason))
        if not isinstance(answer, FoundingWelcome) or len(answer.nonce) != proof.NONCE_BYTES:
            raise ProtocolError("no welcome came")
        if answer.node == side.node:
            return FoundingPeer(answer.node, answer.control, answer.ca, answer.formed, "")  # this node itself
        transcript = Transcript(
            side.token, side.node, answer.node, nonce, answer.nonce, seen, side.ca, answer.ca, side.key, answer.formed
        )  # fmt: skip
        if not proof.same(answer.proof, proof.of_listening(side.keys, transcript)):
            raise ProtocolError(
                "the other end does not prove the token's secret: it has another token, or another machine answers in its place"
            )
        await wire.send(Proof(proof.of_dialling(side.keys, transcript)))
        return FoundingPeer(answer.node, answer.control, answer.ca, answer.formed, "")


def _plain(words: str) -> str:
    """Returns words from a peer that has proved nothing, made safe to print."""
    return "".join(letter if letter.isprintable() else "?" for letter in words[:WORDS_MAX])


async def listen(wire: FoundingWire, hello: FoundingHello, side: Side, certificate: bytes, control: str) -> FoundingPeer:
    """Makes the listening side's half of the proof, from the Hello on; returns the peer.  `certificate`: the one that TLS presented, DER.

    Raises ProtocolError for a failed proof, Unavailable, and trio's TooSlowError after HANDSHAKE_S.
    """
    if hello.version != VERSION or len(hello.nonce) != proof.NONCE_BYTES:
        raise ProtocolError("a Hello of another kind")
    nonce = secrets.token_bytes(proof.NONCE_BYTES)
    transcript = Transcript(
        side.token, hello.node, side.node, hello.nonce, nonce, proof.hex_hash(certificate), hello.ca, side.ca, hello.key, side.formed
    )  # fmt: skip
    with trio.fail_after(HANDSHAKE_S):
        await wire.send(FoundingWelcome(side.node, nonce, side.ca, side.formed, proof.of_listening(side.keys, transcript), control))
        answer = await wire.receive()
    if not isinstance(answer, Proof) or not proof.same(answer.proof, proof.of_dialling(side.keys, transcript)):
        raise ProtocolError(
            "the other end does not prove the token's secret: it has another token, or another machine answers in its place"
        )
    return FoundingPeer(hello.node, hello.control, hello.ca, False, hello.key)


async def first(wire: FoundingWire) -> FoundingHello:
    """Makes the TLS handshake and returns the first message on the listening side.

    Raises ProtocolError, Unavailable, and trio's TooSlowError and BrokenResourceError.
    """
    with trio.fail_after(HANDSHAKE_S):
        await wire.stream.do_handshake()
        hello = await wire.receive()
    if not isinstance(hello, FoundingHello):
        raise ProtocolError("a conversation begins with Hello")
    return hello
