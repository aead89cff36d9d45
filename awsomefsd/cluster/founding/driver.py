"""Founding, driven: connections to all holders of the token that can be found, the pure core's effects in order, and the end of it.

Every node dials every address that it hears of (the token's endpoints, multicast, lists of other nodes) and listens on the control port; a
conversation that has passed the proof carries messages either way, whichever side dialled.  The core (founding.py) is called on one event
loop, and its `StoreKept` is a synced write on that loop: nothing is sent before it, because nothing else runs.

The end is one of two: this node is decided and makes the cluster, or it meets a node that is in the cluster (`formed`) and is let in.
Either writes node.json last (files.py).  A decided founder that is away is waited for; `describe` names it and what to do
if it never comes back.  Nothing here ever chooses a second founder.
"""

from __future__ import annotations

import ipaddress
import logging
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio

from awsomefsd import __version__
from awsomefsd.base import failpoints, levels
from awsomefsd.base.errors import ConfigError, Error, ProtocolError, Refused
from awsomefsd.base.limits import FOUNDING_NODES_MAX, NS_PER_MS
from awsomefsd.base.sources import gives_place
from awsomefsd.cluster.addresses import advertised, described, split_endpoint
from awsomefsd.cluster.founding import wire
from awsomefsd.cluster.founding.files import FoundingFiles
from awsomefsd.cluster.founding.founder import node_name
from awsomefsd.cluster.founding.founding import Effect, Founding, FoundingMessage, StoreKept
from awsomefsd.cluster.founding.wire import Admitted, Ask, FoundingNodes, FoundingPeer, FoundingRejected, FoundingWire, Redirected, Side
from awsomefsd.cluster.messages import Joined
from awsomefsd.cluster.pki import ca
from awsomefsd.cluster.pki.founding_token import FoundingToken
from awsomefsd.config.settings import Settings, parse_endpoint, parse_labels

logger = logging.getLogger(__name__)
BEAT_S = 0.05
TELL_S = 1.0  # between two lists of nodes to all peers: the sign of life too
SILENCE_S = 10.0
CONNECT_S = 5.0
ADMIT_S = 30.0
REDIAL_S_MIN, REDIAL_S_MAX = 0.2, 2.0
REST_S = 30.0  # before an address that is this node's own is tried again
RESOLVE_S = 5.0
PLACES_MAX = 4 * FOUNDING_NODES_MAX
DIALS_MAX = 32  # at once
VISITS_MAX = 2 * FOUNDING_NODES_MAX
OUTBOX_MAX = 256
_VOTES = FoundingMessage.__args__  # type: ignore[attr-defined]


class DialAddress:
    """An address to dial, "host:port"."""

    def __init__(self, named: bool) -> None:
        self.named = named  # by the token: never forgotten
        self.due = 0.0
        self.failures = 0
        self.busy = False
        self.node = ""  # that answered there
        self.error = ""


class FoundingDriver:
    """The founding of one node, on one event loop.  `found` returns the addresses that multicast has found."""

    def __init__(
        self, settings: Settings, token: FoundingToken, files: FoundingFiles, found: Callable[[], Iterable[str]], wall_ms: Callable[[], int]
    ) -> None:
        self._wall_ms = wall_ms
        self._settings = settings
        self._token = token
        self._found = found
        self._files = files
        self.core = Founding(files.node, files.authority.id, token.expect, files.kept)
        self.side = Side(token.id, token.verifier, files.node, files.authority.id, ca.key_hash(files.key).hex())
        self._listening = wire.listening_context(files.certificate_path, files.key_path)
        self._dialling = wire.dialling_context()
        self._outboxes: dict[str, list[trio.MemorySendChannel[wire.Frame]]] = {}
        self._controls: dict[str, str] = {}  # of the nodes that were met
        self._places = {endpoint: DialAddress(True) for endpoint in token.endpoints}
        self._asking = trio.Lock()
        self._dials = trio.CapacityLimiter(DIALS_MAX)
        self._strangers: dict[trio.CancelScope, str] = {}  # visits without a proof, oldest first, and from which address
        self._visits = trio.CapacityLimiter(VISITS_MAX)  # with one
        self._told = 0.0

    # --- the whole --------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Runs until this node is in the cluster.

        Raises Refused for a port that is taken or a token that has expired, and an Error of the files.
        """
        host, port = parse_endpoint(self._settings.cluster.listen)
        try:
            listeners = await trio.open_tcp_listeners(port, host=host)
        except OSError as err:
            raise Refused(f"cannot listen on {self._settings.cluster.listen}: {err}; set cluster.listen to a free port") from err
        failed: list[Error] = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, self._visit, listeners)
            try:
                await self._beat(nursery)
            except Error as err:  # not through the nursery, which would wrap it
                failed.append(err)
            nursery.cancel_scope.cancel()
        if failed:
            raise failed[0]

    async def _beat(self, nursery: trio.Nursery) -> None:
        """Drives the core until this node is in the cluster."""
        while not self._entered():
            if self.core.decided is None and self._wall_ms() >= self._token.expires_ms:
                raise Refused("the founding token has expired; make a new one with awsomefsd token generate")
            self._do(self.core.tick(time.monotonic_ns() // NS_PER_MS, random.random()))
            if self.core.decided is not None and self.core.decided.founder == self.core.me:
                await self._let_go()
                self._files.found(self._settings.site)
                logger.info("this node founds the cluster", extra={"node": self.core.me, "cluster": self._token.cluster_uuid})
                return
            now = trio.current_time()
            if now - self._told >= TELL_S:
                self._told = now
                self._note(self._found())
                self._tell_all()
            for address, place in list(self._places.items()):
                if place.due <= now and not place.busy and not self._outboxes.get(place.node):
                    place.busy = True
                    nursery.start_soon(self._dial, address, place)
            await trio.sleep(BEAT_S)

    def _entered(self) -> bool:
        return (self._settings.state_dir / "node.json").exists()

    async def _let_go(self) -> None:
        """Sends what is in the outboxes (the decision) first, if possible, so that the others need not find out."""
        with trio.move_on_after(0.5):
            while any(box.statistics().current_buffer_used for boxes in self._outboxes.values() for box in boxes):
                await trio.sleep(0.01)

    def describe(self) -> list[str]:
        """Returns the state of founding in words, for status and logs."""
        decided, token = self.core.decided, self._token
        here = sorted(f"{node} ({self._controls.get(node, '?')})" for node in self._outboxes)
        words = [f"waiting: {self.core.seen} of {token.expect} nodes seen: this one{''.join(', ' + one for one in here)}"]
        if decided is not None:
            where = self._controls.get(decided.founder, "an address that is not known now")
            words = [
                f"waiting: node {decided.founder} ({where}) founds the cluster; this node joins when it answers; "
                "if it is down, start it; if its disk is lost, make a new token with awsomefsd token generate and give it to all nodes"
            ]
        if not self._places:
            words.append("no other node is known: the token has no endpoints, and multicast has found no node yet")
        failed = [f"{address}: {place.error}" for address, place in sorted(self._places.items()) if place.error]
        return [*words, *failed[:8]]

    # --- places to dial ---------------------------------------------------------------------------------------------------------

    def _note(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            if address in self._places:
                continue
            try:
                split_endpoint(address)
            except ConfigError:
                continue
            if len(self._places) >= PLACES_MAX:
                worst = max((place.failures, known) for known, place in self._places.items() if not place.named)
                del self._places[worst[1]]
            self._places[address] = DialAddress(False)

    async def _dial(self, address: str, place: DialAddress) -> None:
        rest = REDIAL_S_MIN
        try:
            async with self._dials:
                host, port = split_endpoint(address)
                if _is_name(host):
                    await self._resolve(host, port)
                    rest = RESOLVE_S
                else:
                    await self._talk_to(host, port, place)
                    rest = REST_S if place.node == self.core.me else REDIAL_S_MIN
            place.failures, place.error = 0, ""
        except Redirected as err:
            self._note([err.control] if err.control else [])
            place.error = str(err)
        except (Error, OSError, trio.TooSlowError, trio.BrokenResourceError, UnicodeError) as err:  # the last: no host can have this name
            place.failures += 1
            place.error = str(err) or type(err).__name__
            rest = min(REDIAL_S_MIN * 2 ** min(place.failures, 8), REDIAL_S_MAX)
        finally:
            place.due = trio.current_time() + rest * random.uniform(0.7, 1.3)
            place.busy = False

    async def _resolve(self, host: str, port: int) -> None:
        """Notes each address of a name as one to dial: a name may stand for many nodes (a headless service)."""
        with trio.fail_after(CONNECT_S):
            found = await trio.socket.getaddrinfo(host, port, type=trio.socket.SOCK_STREAM)
        self._note(f"[{where[0]}]:{port}" if ":" in str(where[0]) else f"{where[0]}:{port}" for *_, where in found)

    async def _talk_to(self, host: str, port: int, place: DialAddress) -> None:
        with trio.fail_after(CONNECT_S):
            stream = await trio.open_tcp_stream(host, port)
        connection = FoundingWire(trio.SSLStream(stream, self._dialling, https_compatible=True))
        try:
            peer = await wire.dial(connection, self.side, self._own_control(host))
            place.node = peer.node
            if peer.node == self.core.me:
                return
            if peer.formed:
                await self._ask(connection, peer, host)
            else:
                await self._converse(connection, peer)
        finally:
            await connection.close()

    def _own_control(self, toward: str) -> str:
        return advertised(self._settings, self._settings.cluster.listen, toward)

    # --- conversations ----------------------------------------------------------------------------------------------------------

    async def _visit(self, stream: trio.SocketStream) -> None:
        """Serves one connection that dialled us; an error ends it and nothing else.

        Those that have proved nothing give places to new ones, each source its share: strangers that say nothing keep nobody out.
        """
        connection = FoundingWire(trio.SSLStream(stream, self._listening, server_side=True, https_compatible=True))
        remote = "?"
        with trio.CancelScope() as scope:
            try:
                remote = str(stream.socket.getpeername()[0])
                if len(self._strangers) >= VISITS_MAX:
                    gone = gives_place(self._strangers, remote)
                    del self._strangers[gone]
                    gone.cancel()
                self._strangers[scope] = remote
                await self._welcome(connection, remote, scope)
            except (Error, OSError, trio.TooSlowError, trio.BrokenResourceError) as err:
                logger.info("a founding conversation ended", extra={"remote": remote, "reason": str(err) or type(err).__name__})
            finally:
                self._strangers.pop(scope, None)
                with trio.CancelScope(shield=True):
                    await connection.close()

    async def _welcome(self, connection: FoundingWire, remote: str, scope: trio.CancelScope) -> None:
        hello = await wire.first(connection)
        if hello.token != self._token.id:
            await connection.send(FoundingRejected("the node there waits with another founding token"))
            return
        peer = await wire.listen(connection, hello, self.side, self._files.shown, self._own_control(remote))
        if self._strangers.pop(scope, scope) is scope or not self._visits.available_tokens:
            return  # it lost its place; or the peer comes again
        async with self._visits:
            if peer.node != self.core.me:
                self._note([peer.control])
                await self._converse(connection, peer)

    async def _converse(self, connection: FoundingWire, peer: FoundingPeer) -> None:
        outbox, outgoing = trio.open_memory_channel[wire.Frame](OUTBOX_MAX)
        boxes = self._outboxes.setdefault(peer.node, [])
        boxes.append(outbox)
        self._controls[peer.node] = peer.control
        failed: list[Error | trio.TooSlowError] = []
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_write, connection, outgoing, nursery.cancel_scope)
                self._do(self.core.meet(peer.node))
                self._tell_all()
                try:
                    await self._hear(connection, peer)
                except (Error, trio.TooSlowError) as err:
                    failed.append(err)
                nursery.cancel_scope.cancel()
        finally:
            boxes.remove(outbox)
            if not boxes:
                self._outboxes.pop(peer.node, None)
                self.core.part(peer.node)
        if failed:
            raise failed[0]

    async def _hear(self, connection: FoundingWire, peer: FoundingPeer) -> None:
        while True:
            with trio.fail_after(SILENCE_S):
                message = await connection.receive()
            if isinstance(message, FoundingNodes):
                self._note(control for node, control in list(message.nodes.items())[:FOUNDING_NODES_MAX] if node != self.core.me)
            elif isinstance(message, _VOTES):
                self._do(self.core.receive(peer.node, message, time.monotonic_ns() // NS_PER_MS, random.random()))
            else:
                raise ProtocolError(f"{type(message).__name__} is not expected here")

    def _tell_all(self) -> None:
        known = FoundingNodes({node: control for node, control in self._controls.items() if node in self._outboxes})
        for node in self._outboxes:
            self._post(node, known)

    def _do(self, effects: list[Effect]) -> None:
        """Carries out the effects in their order: stored first, sent after.

        Does nothing once this node is in the cluster: its promises are gone.
        """
        if self._entered():
            return
        for effect in effects:
            if isinstance(effect, StoreKept):
                self._files.store(effect.kept)
            else:
                failpoints.hit("founding.send.before")
                self._post(effect.to, effect.message)

    def _post(self, node: str, message: wire.Frame) -> None:
        """Sends over every connection with the node: one may be dead unnoticed.  Repeated messages do no harm."""
        for outbox in self._outboxes.get(node, ()):
            with suppress(trio.WouldBlock, trio.BrokenResourceError, trio.ClosedResourceError):
                outbox.send_nowait(message)

    # --- joining what was founded -----------------------------------------------------------------------------------------------

    async def _ask(self, connection: FoundingWire, peer: FoundingPeer, host: str) -> None:
        """Joins the cluster at a node that is in it, and has proved the secret and its CA."""
        async with self._asking:
            if self._entered():
                return
            failpoints.hit("founding.ask.before")
            control, metadata = described(self._settings, host)
            labels = parse_labels(self._settings.cluster.labels)
            name, level = node_name(self._settings), levels.supported()
            await connection.send(Ask(self._files.request(), name, control, metadata, labels, __version__, level))
            with trio.fail_after(ADMIT_S):
                answer = await connection.receive()
            if isinstance(answer, FoundingRejected):
                raise Refused(answer.reason)
            if not isinstance(answer, Admitted):
                raise ProtocolError(f"{type(answer).__name__} is no answer to a request to join")
            self._check(answer, peer)
            failpoints.hit("founding.ask.after")
            self._files.join(self._settings, Joined(answer.certificate, answer.bundle, answer.site, answer.nodes))
            logger.info("joined the cluster", extra={"node": self.core.me, "cluster": self._token.cluster_uuid})

    def _check(self, answer: Admitted, peer: FoundingPeer) -> None:
        """Raises ProtocolError unless the certificate is ours and by the CA that was proved."""
        bundle = ca.load_bundle(answer.bundle)
        issuer = ca.issuer_of(ca.load(answer.certificate), bundle)
        if issuer != peer.ca or ca.identity(answer.certificate).node != self.core.me or not ca.fits(self._files.key, answer.certificate):
            raise ProtocolError("the cluster's answer does not fit what it proved")


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return True
    return False


async def _write(connection: FoundingWire, outgoing: trio.MemoryReceiveChannel[wire.Frame], scope: trio.CancelScope) -> None:
    try:
        async for message in outgoing:
            await connection.send(message)
    except Error:
        scope.cancel()
