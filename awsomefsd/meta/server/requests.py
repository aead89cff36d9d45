"""Answers requests that propose nothing: greetings, the change stream, figures, what workers report.

Also who may ask at all.  A mount's requests are executed once because its newest connection is the only one that is read: the greeting of
the next one voids those before it, and the end of this node's leadership voids all (meta/client/core.py says why).  What is voided is not
answered; the transport closes it (`take_void`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import NamedTuple, Protocol

from msgspec import structs
from msgspec.msgpack import encode as encoded

from awsomefsd.base.errors import NotLeading, Refused
from awsomefsd.base.levels import agreed
from awsomefsd.base.limits import ACKS_PER_REQUEST_MAX, NS_PER_MS, REPORT_FIGURES_MAX, REPORTS_PAGE_BYTES
from awsomefsd.base.types import is_node_mount
from awsomefsd.meta.api.messages import (
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    Devices,
    Done,
    Failed,
    Follow,
    GetReports,
    Hello,
    Reply,
    Report,
    Reports,
    Welcome,
)
from awsomefsd.meta.api.messages.devices import GetSightings, ReportDevices
from awsomefsd.meta.api.messages.members import ChangeMembers, GetMembers, TransferLead
from awsomefsd.meta.api.messages.nodes import NodeReport, Nodes
from awsomefsd.meta.api.messages.pools import Pool, PoolCensus, ReportCensus
from awsomefsd.meta.replica.replica import Replica
from awsomefsd.meta.server import change_stream
from awsomefsd.meta.server.device_reports import DeviceReports
from awsomefsd.meta.server.node_reports import NodeReports
from awsomefsd.meta.server.proposals import BatchProposer
from awsomefsd.meta.server.request import AnyRequest, Origin, Request
from awsomefsd.meta.server.waiters import Follower, Followers


class LeaderHost(Protocol):
    """What the leader asks of the process around it.  All on the metadata thread; nothing blocks."""

    def device_paths(self) -> dict[str, str]:
        """Returns the path of each device that this node sees, by the device's UUID."""

    def transport_figures(self) -> dict[str, int]:
        """Returns the counters of connections and peers, for `Status`."""

    def address_of(self, node: str) -> str:
        """Returns where a client reaches a voter, host:port; "" if that is not known."""


class _Newest(NamedTuple):
    """The newest connection of a mount that was greeted; `number` is counted by `client`."""

    origin: Origin
    client: int
    number: int


def _node_of(origin: Origin) -> str:
    """Returns the node that a connection's certificate names; "" for this node's own, which need none."""
    who = getattr(origin, "who", None)
    return "" if who is None else str(who.node)


class PlainRequests:
    def __init__(
        self,
        replica: Replica,
        cluster_uuid: str,
        host: LeaderHost,
        proposer: BatchProposer,
        monotonic_ns: Callable[[], int],
        wall_ns: Callable[[], int],
    ) -> None:
        self._replica = replica
        self.nodes = NodeReports(replica, proposer, monotonic_ns, wall_ns)
        self.sightings = DeviceReports()
        self._cluster_uuid = cluster_uuid
        self._host = host
        self._monotonic_ns = monotonic_ns
        self.followers = Followers()
        self._reported: dict[int, tuple[Origin, dict[str, int]]] = {}  # mount -> whose worker said what last
        self._census: tuple[PoolCensus, int] | None = None  # of this leadership, and when it came
        self._greeted: dict[Origin, None] = {}  # in order: what is ended together is ended in that order, in every run of a seed
        self._newest: dict[int, _Newest] = {}  # mount -> its connection with a number
        self._void: set[Origin] = set()
        self._void_new: list[Origin] = []

    # --- connections ------------------------------------------------------------------------------------------------------------
    def hello(self, request: Request[Hello]) -> None:
        origin, body = request.origin, request.body
        version = agreed(body.version, PROTOCOL_OLDEST, PROTOCOL_VERSION)
        if not version:
            spoken = f"{PROTOCOL_OLDEST} to {PROTOCOL_VERSION}"
            why = f"protocol {body.version}; this daemon speaks {spoken}: upgrade the older one"
            request.answer(Failed(errno.EPROTONOSUPPORT, why))
            return
        if body.mount and body.connection:
            newest = self._newest.get(body.mount)
            if newest is not None and newest.client == body.client != 0 and newest.number > body.connection:
                self._end(origin)  # it was given up by its client, which has a newer one
                return
            if newest is not None and newest.origin is not origin:
                self._end(newest.origin)
            self._newest[body.mount] = _Newest(origin, body.client, body.connection)
        self._greeted[origin] = None
        request.answer(Welcome(version, self._cluster_uuid, self._replica.log.term))

    def _end(self, origin: Origin) -> None:
        self._void.add(origin)
        self._void_new.append(origin)

    def end_all(self) -> None:
        """Voids every connection and forgets all reports: this node does not lead any more."""
        for origin in self._greeted:
            if origin not in self._void:
                self._end(origin)
        self._reported.clear()
        self._census = None
        self.nodes.forget()
        self.sightings.forget()

    @property
    def any_void(self) -> bool:
        return bool(self._void)

    def is_void(self, origin: Origin) -> bool:
        """True: nothing that comes from there is executed any more."""
        return origin in self._void

    def take_void(self) -> list[Origin]:
        """Returns the connections that became void since the last call; they are closed once what was answered is sent."""
        taken, self._void_new = self._void_new, []
        return taken

    def drop_origin(self, origin: Origin) -> None:
        self.followers.drop_origin(origin)
        self._greeted.pop(origin, None)
        self._void.discard(origin)
        newest = self._newest.get(origin.mount)
        if newest is not None and newest.origin is origin:
            del self._newest[origin.mount]
        if self._reported.get(origin.mount, (None,))[0] is origin:
            del self._reported[origin.mount]

    def acks_to_propose(self, mount: int, unique: int, acks: list[int]) -> list[int]:
        """Returns the acknowledgements for a proposal.

        A node's daemon also acknowledges what its earlier runs never did: they are dead, and nobody asks again.
        """
        room = ACKS_PER_REQUEST_MAX - len(acks)
        if room <= 0 or not is_node_mount(mount):
            return acks
        return acks + self._replica.machine.results_of_others(mount, unique)[:room]

    # --- the change stream ------------------------------------------------------------------------------------------------------
    def follow(self, request: Request[Follow], retry: Reply) -> None:
        body, applied = request.body, self._replica.machine.applied_index
        count = max(body.count, 1)
        if body.after != applied or body.wait_ms <= 0:
            request.answer(change_stream.page(self._replica.log, body.after, count, applied))
            return
        deadline = self._monotonic_ns() + min(body.wait_ms, change_stream.FOLLOW_WAIT_MS_MAX) * NS_PER_MS
        if not self.followers.park(Follower(request, count, deadline)):
            request.answer(retry)

    def feed_followers(self) -> None:
        applied = self._replica.machine.applied_index
        for waiting in self.followers.take_due(applied, self._monotonic_ns()):
            waiting.request.answer(change_stream.page(self._replica.log, waiting.after, waiting.count, applied))

    # --- figures ----------------------------------------------------------------------------------------------------------------
    def complete(self, request: AnyRequest, reply: Reply) -> Reply:
        """Returns the reply with what is not in the state: devices as this node finds them (other nodes look for theirs themselves,
        io/device/device_table.py), and what the leader knows of the nodes.  A report is taken up on the way."""
        body = request.body
        if isinstance(body, NodeReport):
            return self.nodes.take_report(body, reply)
        if isinstance(body, ReportDevices) and isinstance(reply, Devices):
            shared = [device.uuid for device in reply.devices if device.shared]
            self.sightings.take_report(body, shared, self._monotonic_ns() // NS_PER_MS)
        if isinstance(reply, Nodes):
            return self.nodes.complete(reply)
        if isinstance(reply, Pool) and self._census is not None:
            census, at_ns = self._census
            return structs.replace(reply, census=census, census_ms_ago=(self._monotonic_ns() - at_ns) // NS_PER_MS)
        if isinstance(reply, Devices) and getattr(request.origin, "who", None) is None:
            paths = self._host.device_paths()
            return Devices([structs.replace(device, path=paths.get(device.uuid, "")) for device in reply.devices])
        return reply

    def take_census(self, request: Request[ReportCensus]) -> None:
        """Keeps what this leader's own daemon has counted; one that led before has nothing to say any more."""
        if request.body.node == self._replica.log.members().leader:
            self._census = (request.body.census, self._monotonic_ns())
        request.answer(Done())

    def take_report(self, request: Request[Report]) -> None:
        origin, figures = request.origin, request.body.figures
        if origin.mount and len(figures) <= REPORT_FIGURES_MAX:
            self._reported[origin.mount] = (origin, figures)
        request.answer(Done())

    def list_reports(self, request: Request[GetReports]) -> None:
        """Answers with what the asking node's own workers reported: what others say can then not make the answer too large for it."""
        node, after = _node_of(request.origin), request.body.after_mount
        mounts = sorted(mount for mount, (origin, _) in self._reported.items() if _node_of(origin) == node and mount > after)
        page: dict[int, dict[str, int]] = {}
        total = 0
        for mount in mounts:
            page[mount] = self._reported[mount][1]
            total += len(encoded(page[mount]))
            if total >= REPORTS_PAGE_BYTES and mount != mounts[-1]:
                request.answer(Reports(page, mount))
                return
        request.answer(Reports(page))

    def list_sightings(self, request: Request[GetSightings]) -> None:
        names = {row.node: row.name for row in self._replica.machine.node_rows()}
        request.answer(self.sightings.listing(names, self._monotonic_ns() // NS_PER_MS, request.body.after))

    # --- the membership ---------------------------------------------------------------------------------------------------------
    def list_members(self, request: Request[GetMembers]) -> None:
        request.answer(self._replica.log.members())

    def change_members(self, request: Request[ChangeMembers]) -> None:
        self._try(request, lambda: self._replica.log.change_members(request.body))

    def transfer(self, request: Request[TransferLead]) -> None:
        def hand_over() -> None:
            if not self._replica.log.hand_over(request.body.node):
                raise Refused(f"{request.body.node or 'no other voter'} cannot lead now")

        self._try(request, hand_over)

    def _try(self, request: AnyRequest, act: Callable[[], None]) -> None:
        try:
            act()
        except (Refused, NotLeading) as err:
            request.answer(Failed(errno.EAGAIN, str(err), True))
        else:
            request.answer(Done())

    def handlers(self) -> dict[type, Callable[[AnyRequest], None]]:
        return {
            Report: self.take_report,
            GetReports: self.list_reports,
            GetMembers: self.list_members,
            ChangeMembers: self.change_members,
            TransferLead: self.transfer,
            GetSightings: self.list_sightings,
            ReportCensus: self.take_census,
        }
