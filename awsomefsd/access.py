"""How the daemon's parts ask the metadata, on any node: whoever leads is found and followed, here or elsewhere.

One client (meta/client.py) under the node's own number (types.node_mount): the socket of this node's metadata service first, if there is
one, then the metadata ports of others.  Commands carry request ids like a worker's, so one that was sent and not answered is asked again of
the next leader and done once.  Ids begin with a number drawn when the daemon starts: the leader drops what an earlier run never
acknowledged (leader_desk.Desk.acks).  A queue into the metadata thread for the node that leads was rejected (decision 44): it saves some
20 µs of calls that are rare, and a change of leadership in between would leave the outcome of a command unknown.

Nobody is waited for long: without a connection for GRACE_S a call ends at once with Unavailable and the reason; so a node without a leader
starts, shows its status, and says what is wrong.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any

from awsomefsd.codec import encode
from awsomefsd.errors import FsError, ProtocolError, Unavailable
from awsomefsd.io.devices import with_paths
from awsomefsd.limits import RPC_FRAME_BYTES_MAX
from awsomefsd.meta.client import MetaClient
from awsomefsd.meta.client_core import OutcomeUnknown
from awsomefsd.meta.commands import AnyCommand
from awsomefsd.meta.endpoints import Endpoints
from awsomefsd.meta.messages import Body, Devices, Failed, GetStatus, Propose, Reply
from awsomefsd.meta.ranges import check
from awsomefsd.types import NODE_UNIQUE_BITS, node_mount
from awsomefsd.wait import Signal, block_on

CALL_S = 10.0
GRACE_S = 5.0  # longer than an election takes
_PREFIX_BITS = 62 - NODE_UNIQUE_BITS
_FRAME_OVERHEAD_BYTES = 1_024

Local = Callable[[Body, float], Reply]


class MetaAccess:
    """Thread-safe; called with a body of meta.messages, returns its reply, raises domain errors.  `local`: this node's own service, if it
    has one: it says how it is itself (GetStatus), whoever leads."""

    def __init__(self, places: Endpoints, node: str, state_dir: Any, local: Callable[[], Local | None]) -> None:
        self._state_dir = state_dir
        self._local = local
        self._lock = threading.Lock()
        self._prefix = self._count = 0
        self._client = MetaClient(places, node_mount(node))

    def close(self) -> None:
        self._client.close()

    def end(self, reason: str) -> None:
        """The daemon ends because its metadata service has: nobody waits for an answer that cannot come."""
        self._client.fail(Unavailable(reason))

    def __call__(self, body: Body, timeout_s: float = CALL_S) -> Any:
        local = self._local() if type(body) is GetStatus else None
        if local is not None:
            return self._checked(local(body, timeout_s))
        try:
            check(body)
            if len(encode(body)) > RPC_FRAME_BYTES_MAX - _FRAME_OVERHEAD_BYTES:
                raise ProtocolError("the request is larger than a frame")
        except ProtocolError as err:
            raise FsError(errno.EINVAL, str(err)) from err
        reply = self._propose(body, timeout_s) if type(body) is Propose else self._ask(body, timeout_s)
        if isinstance(reply, Devices):
            return Devices(with_paths(reply.devices, self._state_dir))
        return reply

    def propose(self, command: AnyCommand, timeout_s: float = CALL_S) -> Any:
        """As this node, without a session."""
        return self(Propose(0, 0, 0, [], command), timeout_s)

    @property
    def trouble(self) -> str:
        """Why nobody can be asked now; "" if somebody can."""
        return "" if self._client.connected else self._client.trouble or "not connected yet"

    def _checked(self, reply: Reply) -> Reply:
        if isinstance(reply, Failed):
            if reply.retry:
                raise Unavailable(f"{reply.detail or 'the metadata service cannot answer now'}; try again")
            raise FsError(reply.errno, reply.detail)
        return reply

    def _propose(self, body: Propose, timeout_s: float) -> Reply:
        unique = self._unique()
        try:
            return self._ask(self._client.identified(body, unique), timeout_s)
        finally:
            self._client.ack(unique)

    def _ask(self, body: Body, timeout_s: float) -> Reply:
        signal = Signal()
        self._client.submit(body, signal.fire, self._patience_ms(timeout_s))
        try:
            reply: Reply = block_on(signal)
            return reply
        except OutcomeUnknown as err:
            refusal = self._client.refusal
            if refusal is not None and not self._client.connected:
                raise FsError(refusal.errno, str(refusal)) from err
            if reason := self.trouble:
                raise Unavailable(f"nobody who leads the metadata can be asked now: {reason}") from err
            raise Unavailable(f"the metadata gave no answer within {timeout_s:g} s; it may still do what was asked") from err

    def _patience_ms(self, timeout_s: float) -> int:
        if self._client.connected:
            return max(round(timeout_s * 1_000), 1)
        left_s = GRACE_S - (time.monotonic_ns() - self._client.away_ns) / 1e9
        return max(round(min(timeout_s, left_s) * 1_000), 50)

    def _unique(self) -> int:
        with self._lock:
            self._count = (self._count + 1) % (1 << NODE_UNIQUE_BITS)
            if not self._prefix or not self._count:
                self._prefix = int.from_bytes(os.urandom(8), "little") % (1 << _PREFIX_BITS) | 1
            return self._prefix << NODE_UNIQUE_BITS | self._count
