"""The daemon's access to the metadata, on any node: it finds the leader and follows it, here or elsewhere.

One client (meta/client/client.py) under the node's own number (types.node_mount): the socket of this node's metadata service first, if
there is one, then the metadata ports of others.  Commands carry request ids like a worker's, so one that was sent and not answered is sent
again to the next leader and executed once.  Ids begin with a number drawn when the daemon starts: the leader drops what an earlier run
never acknowledged (PlainRequests.acks_to_propose).  A queue into the metadata thread for the node that leads was rejected (decision 44): it
saves some 20 µs of calls that are rare, and a change of leadership in between would leave the outcome of a command unknown.

A call does not wait long: without a connection for GRACE_S it ends at once with Unavailable and the reason; so a node without a leader
starts, shows its status, and says what is wrong.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

from awsomefsd.base.codec import encode
from awsomefsd.base.errors import FsError, ProtocolError, Unavailable
from awsomefsd.base.limits import RPC_FRAME_BYTES_MAX
from awsomefsd.base.types import NODE_UNIQUE_BITS, node_mount
from awsomefsd.base.wait import Signal, block_on
from awsomefsd.io.device.device_table import with_paths
from awsomefsd.meta.api.bounds import check
from awsomefsd.meta.api.commands import AnyCommand
from awsomefsd.meta.api.messages import Body, Devices, Failed, GetStatus, Propose, Reply
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.meta.client.core import OutcomeUnknown
from awsomefsd.meta.client.endpoints import Endpoints

CALL_S = 10.0
GRACE_S = 5.0  # longer than an election takes
_PREFIX_BITS = 62 - NODE_UNIQUE_BITS
_FRAME_OVERHEAD_BYTES = 1_024

Local = Callable[[Body, float], Reply]


class MetadataAccess(Protocol):
    """The metadata of the cluster, as the daemon's parts use it.  Every method may be called on any thread; `ask` and `propose` block.

    Most parts need one method only and take it as a callable.  The answers of this node's own service, whichever node leads, come by
    MetadataHost.query (cluster/membership/metadata_host.py).
    """

    def ask(self, body: Body, timeout_s: float = CALL_S) -> Any:
        """Returns the leader's reply to a body of meta/api/messages.

        Raises FsError with the leader's errno; Unavailable if no leader answers.
        """

    def propose(self, command: AnyCommand, timeout_s: float = CALL_S) -> Any:
        """Commits a command of meta/api/commands as this node, without a session; returns its result.  Raises as `ask` does."""

    def close(self) -> None:
        """Ends the connections; calls that wait end with Unavailable."""


class LeaderAccess(MetadataAccess):
    """MetadataAccess by one client for all parts of the daemon.

    `local` returns this node's own service, or None if it has none; its own service answers GetStatus about itself, whichever node leads,
    unless it is asked for the leader's.
    `node` "": for a process beside the daemon, which has the node's number.  Without a number a command may be executed twice.
    """

    def __init__(self, places: Endpoints, node: str, state_dir: Any, local: Callable[[], Local | None] = lambda: None) -> None:
        self._state_dir = state_dir
        self._local = local
        self._lock = threading.Lock()
        self._prefix = self._count = 0
        self._mount = node_mount(node) if node else 0
        self._client = MetaClient(places, self._mount)
        self._client.start()

    def close(self) -> None:
        self._client.close()

    def end(self, reason: str) -> None:
        """Ends the calls that wait with Unavailable(reason): the metadata service of this node ended, so no answer can come.

        Any thread.
        """
        self._client.fail(Unavailable(reason))

    def ask(self, body: Body, timeout_s: float = CALL_S) -> Any:
        local = self._local() if type(body) is GetStatus and not body.of_leader else None
        if local is not None:
            return self._checked(local(body, timeout_s))
        try:
            check(body)
            if len(encode(body)) > RPC_FRAME_BYTES_MAX - _FRAME_OVERHEAD_BYTES:
                raise ProtocolError("the request is larger than a frame")
        except ProtocolError as err:
            raise FsError(errno.EINVAL, str(err)) from err
        reply = self._propose(body, timeout_s) if type(body) is Propose else self._answered(body, timeout_s)
        if isinstance(reply, Devices):
            return Devices(with_paths(reply.devices, self._state_dir))
        return reply

    def propose(self, command: AnyCommand, timeout_s: float = CALL_S) -> Any:
        return self.ask(Propose(0, 0, 0, [], command), timeout_s)

    @property
    def trouble(self) -> str:
        """Returns the reason why no leader can be asked now; "" if one can.  Does not block."""
        return "" if self._client.connected else self._client.trouble or "not connected yet"

    def _checked(self, reply: Reply) -> Reply:
        if isinstance(reply, Failed):
            if reply.retry:
                raise Unavailable(f"{reply.detail or 'the metadata service cannot answer now'}; try again")
            raise FsError(reply.errno, reply.detail)
        return reply

    def _propose(self, body: Propose, timeout_s: float) -> Reply:
        if not self._mount:
            return self._answered(body, timeout_s)
        unique = self._unique()
        try:
            return self._answered(self._client.identified(body, unique), timeout_s)
        finally:
            self._client.ack(unique)

    def _answered(self, body: Body, timeout_s: float) -> Reply:
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
                raise Unavailable(f"no leader of the metadata can be reached now: {reason}") from err
            raise Unavailable(f"the metadata gave no answer within {timeout_s:g} s; the request may still be carried out") from err

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
