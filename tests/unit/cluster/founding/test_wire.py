"""The mutual proof of the founding secret over real TLS: also with a relay in the middle, another secret, and nonsense."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from awsomefsd.base.errors import Error, ProtocolError, Refused
from awsomefsd.base.frames import frame
from awsomefsd.base.limits import FOUNDING_FRAME_BYTES_MAX
from awsomefsd.cluster.founding import wire
from awsomefsd.cluster.founding.wire import FoundingPeer, FoundingWire, Side
from awsomefsd.cluster.pki import ca, founding_token
from tests.unit.cluster.pki.test_founding_token import token


class Shown:
    """A certificate on disk, as the listening side presents it."""

    def __init__(self, directory: Path, node: str) -> None:
        authority, key = ca.make_authority("cluster"), ca.make_key()
        self.authority = authority.id
        certificate = ca.sign(authority, ca.make_request(key, node), node, "node")
        directory.mkdir()
        (directory / "node.pem").write_text(certificate)
        (directory / "node.key").write_text(key)
        self.der = x509.load_pem_x509_certificate(certificate.encode()).public_bytes(Encoding.DER)
        self.context = wire.listening_context(directory / "node.pem", directory / "node.key")

    def listening(self, stream: trio.abc.Stream) -> FoundingWire:
        return FoundingWire(trio.SSLStream(stream, self.context, server_side=True, https_compatible=True))


def dialling(stream: trio.abc.Stream) -> FoundingWire:
    return FoundingWire(trio.SSLStream(stream, wire.dialling_context(), https_compatible=True))


class Pair:
    """A dialling and a listening node, each with its token, and what came out at either end."""

    def __init__(self, tmp_path: Path, mine: founding_token.FoundingToken, theirs: founding_token.FoundingToken) -> None:
        self.one, self.two = str(uuid.uuid4()), str(uuid.uuid4())
        self.shown = Shown(tmp_path / "two", self.two)
        self.dials = Side("t", mine.verifier, self.one, "11" * 32, "22" * 32)
        self.listens = Side("t", theirs.verifier, self.two, self.shown.authority)
        self.outcome: dict[str, FoundingPeer | Exception] = {}

    async def _end(self, name: str, connection: FoundingWire, talk: Awaitable[FoundingPeer]) -> None:
        try:
            self.outcome[name] = await talk
        except (Error, trio.TooSlowError) as err:
            self.outcome[name] = err
            await connection.close()

    async def _listen(self, connection: FoundingWire) -> FoundingPeer:
        hello = await wire.first(connection)
        return await wire.listen(connection, hello, self.listens, self.shown.der, "10.0.0.2:7440")

    async def run(self, near: trio.abc.Stream, far: trio.abc.Stream) -> None:
        dials, listens = dialling(near), self.shown.listening(far)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._end, "dialling", dials, wire.dial(dials, self.dials, "10.0.0.1:7440"))
            nursery.start_soon(self._end, "listening", listens, self._listen(listens))


@pytest.mark.trio
async def test_two_holders_know_each_other(tmp_path: Path) -> None:
    shared = token()
    pair = Pair(tmp_path, shared, shared)
    await pair.run(*trio.testing.memory_stream_pair())
    assert pair.outcome["dialling"] == FoundingPeer(pair.two, "10.0.0.2:7440", pair.shown.authority, False, "")
    assert pair.outcome["listening"] == FoundingPeer(pair.one, "10.0.0.1:7440", "11" * 32, False, "22" * 32)


@pytest.mark.trio
async def test_another_secret_is_found_out_by_both(tmp_path: Path) -> None:
    pair = Pair(tmp_path, token(), token())
    await pair.run(*trio.testing.memory_stream_pair())
    assert isinstance(pair.outcome["dialling"], ProtocolError) and "secret" in str(pair.outcome["dialling"])
    assert isinstance(pair.outcome["listening"], Error), "the dialling side never proved anything to it"


@pytest.mark.parametrize("changes", [None, "ca", "key"])
@pytest.mark.trio
async def test_a_relay_gets_no_proof_through(tmp_path: Path, changes: str | None) -> None:
    """It ends TLS on both sides with its own certificate and passes every message on, or changes the CA or the key in it."""
    shared = token()
    pair = Pair(tmp_path, shared, shared)
    relay = Shown(tmp_path / "relay", str(uuid.uuid4()))
    heard: list[Any] = []

    async def pass_on(source: FoundingWire, sink: FoundingWire) -> None:
        try:
            while True:
                message = await source.receive()
                if changes and hasattr(message, changes):
                    message = msgspec.structs.replace(message, **{changes: "33" * 32})
                heard.append(message)
                await sink.send(message)
        except Error:
            await sink.close()

    near, relay_near = trio.testing.memory_stream_pair()
    relay_far, far = trio.testing.memory_stream_pair()
    left, right = relay.listening(relay_near), dialling(relay_far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pass_on, left, right)
        nursery.start_soon(pass_on, right, left)
        await pair.run(near, far)
        nursery.cancel_scope.cancel()
    assert {type(heard_one).__name__ for heard_one in heard} == {"FoundingHello", "FoundingWelcome"}, (
        "the dialling side proves nothing through a relay"
    )
    assert all(isinstance(outcome, Error) for outcome in pair.outcome.values())
    assert not any(shared.secret in msgspec.msgpack.encode(message) for message in heard)


@pytest.mark.trio
async def test_words_of_a_stranger_cannot_write_on_a_terminal(tmp_path: Path) -> None:
    pair = Pair(tmp_path, token(), token())
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        stranger = pair.shown.listening(far)
        nursery.start_soon(pair._end, "dialling", connection := dialling(near), wire.dial(connection, pair.dials, "10.0.0.1:7440"))
        await wire.first(stranger)
        await stranger.send(wire.FoundingRejected("\x1b[2J" + "x" * 1_000))
    words = str(pair.outcome["dialling"])
    assert isinstance(pair.outcome["dialling"], Refused) and words.startswith("?[2Jx") and len(words) == wire.WORDS_MAX


@pytest.mark.trio
async def test_nonsense_before_the_proof_ends_the_conversation(tmp_path: Path) -> None:
    shared = token()
    too_long = frame(bytes(FOUNDING_FRAME_BYTES_MAX + 1))[:8]  # its head alone is enough
    encoded = [frame(msgspec.msgpack.encode(message)) for message in (wire.FoundingNodes({}), wire.Proof(bytes(32)))]
    for number, nonsense in enumerate((*encoded, frame(b"\xc1"), frame(b""), too_long)):
        directory = tmp_path / str(number)
        directory.mkdir()
        pair = Pair(directory, shared, shared)
        near, far = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair._end, "listening", connection := pair.shown.listening(far), pair._listen(connection))
            stranger = dialling(near)
            await stranger.stream.do_handshake()
            await stranger.stream.send_all(nonsense)
        assert isinstance(pair.outcome["listening"], ProtocolError)
