"""What the metadata service answers without proposing anything: greetings, the change stream, figures, what workers report.

Also who may ask at all.  A mount's requests are executed once because its newest connection is the only one that is read: the greeting of
the next one voids those before it, and the end of this node's leadership voids all (client_core.py says why).  What is voided is not
answered; the transport closes it (`take_void`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

from msgspec import structs

from awsomefsd.errors import NotLeading, Refused
from awsomefsd.levels import agreed
from awsomefsd.limits import ACKS_PER_REQUEST_MAX, REPORT_FIGURES_MAX
from awsomefsd.meta import stream
from awsomefsd.meta.device_messages import GetSightings, ReportDevices
from awsomefsd.meta.leader_nodes import NodeDesk
from awsomefsd.meta.member_messages import ChangeMembers, GetMembers, TransferLead
from awsomefsd.meta.messages import (
    PROTOCOL_OLDEST,
    PROTOCOL_VERSION,
    Body,
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
from awsomefsd.meta.node_messages import NodeReport, Nodes
from awsomefsd.meta.replica import Replica
from awsomefsd.meta.sightings import SightingDesk
from awsomefsd.meta.waiting import Follower, Followers, Origin
from awsomefsd.types import is_node_mount

_MS = 1_000_000


class Desk:
    def __init__(
        self,
        replica: Replica,
        cluster_uuid: str,
        device_paths: Callable[[], dict[str, str]],
        monotonic_ns: Callable[[], int],
        enter: Callable[[Any], None],
    ) -> None:
        self._replica = replica
        self.nodes = NodeDesk(replica, monotonic_ns, enter)
        self.sightings = SightingDesk()
        self._cluster_uuid = cluster_uuid
        self._device_paths = device_paths
        self._monotonic_ns = monotonic_ns
        self.followers = Followers()
        self._reported: dict[int, tuple[Origin, dict[str, int]]] = {}  # mount -> whose worker said what last
        self._greeted: dict[Origin, None] = {}  # in order: what is ended together is ended in that order, in every run of a seed
        self._newest: dict[int, Origin] = {}  # mount -> its connection with a number
        self._void: set[Origin] = set()
        self._void_new: list[Origin] = []

    # --- connections ------------------------------------------------------------------------------------------------------------
    def hello(self, origin: Origin, call: int, body: Hello) -> None:
        version = agreed(body.version, PROTOCOL_OLDEST, PROTOCOL_VERSION)
        if not version:
            spoken = f"{PROTOCOL_OLDEST} to {PROTOCOL_VERSION}"
            why = f"protocol {body.version}; this daemon speaks {spoken}: upgrade the older one"
            origin.answer(call, Failed(errno.EPROTONOSUPPORT, why))
            return
        if body.mount and body.connection:
            older = self._newest.get(body.mount)
            if older is not None and older is not origin:
                self._end(older)
            self._newest[body.mount] = origin
        self._greeted[origin] = None
        origin.answer(call, Welcome(version, self._cluster_uuid, self._replica.log.term))

    def _end(self, origin: Origin) -> None:
        self._void.add(origin)
        self._void_new.append(origin)

    def end_all(self) -> None:
        """This node does not lead any more."""
        for origin in self._greeted:
            if origin not in self._void:
                self._end(origin)
        self._reported.clear()
        self.nodes.forget()
        self.sightings.forget()

    @property
    def any_void(self) -> bool:
        return bool(self._void)

    def void(self, origin: Origin) -> bool:
        """Nothing that comes from there is executed any more."""
        return origin in self._void

    def take_void(self) -> list[Origin]:
        """Connections to close once what was answered is sent."""
        taken, self._void_new = self._void_new, []
        return taken

    def drop_origin(self, origin: Origin) -> None:
        self.followers.drop_origin(origin)
        self._greeted.pop(origin, None)
        self._void.discard(origin)
        if self._newest.get(origin.mount) is origin:
            del self._newest[origin.mount]
        if self._reported.get(origin.mount, (None,))[0] is origin:
            del self._reported[origin.mount]

    def acks(self, mount: int, unique: int, acks: list[int]) -> list[int]:
        """Of a proposal, and of a node's daemon what its earlier runs never acknowledged: they are dead, and nobody asks again."""
        room = ACKS_PER_REQUEST_MAX - len(acks)
        if room <= 0 or not is_node_mount(mount):
            return acks
        return acks + self._replica.machine.results_of_others(mount, unique)[:room]

    # --- the change stream ------------------------------------------------------------------------------------------------------
    def follow(self, origin: Origin, call: int, body: Follow, retry: Reply) -> None:
        applied = self._replica.machine.applied_index
        count = max(body.count, 1)
        if body.after != applied or body.wait_ms <= 0:
            origin.answer(call, stream.page(self._replica.log, body.after, count, applied))
            return
        deadline = self._monotonic_ns() + min(body.wait_ms, stream.FOLLOW_WAIT_MS_MAX) * _MS
        if not self.followers.park(Follower(origin, call, body.after, count, deadline)):
            origin.answer(call, retry)

    def feed_followers(self) -> None:
        applied = self._replica.machine.applied_index
        for waiting in self.followers.take_due(applied, self._monotonic_ns()):
            waiting.origin.answer(waiting.call, stream.page(self._replica.log, waiting.after, waiting.count, applied))

    # --- figures ----------------------------------------------------------------------------------------------------------------
    def completed(self, origin: Origin, body: Body, reply: Reply) -> Reply:
        """With what is not in the state: devices as this node finds them (other nodes look at home, io/devices.py), and what the leader
        knows of the nodes."""
        if isinstance(body, NodeReport):
            return self.nodes.heard(body, reply)
        if isinstance(body, ReportDevices) and isinstance(reply, Devices):
            shared = [device.uuid for device in reply.devices if device.shared]
            self.sightings.heard(body, shared, self._monotonic_ns() // _MS)
        if isinstance(reply, Nodes):
            return self.nodes.completed(reply)
        if isinstance(reply, Devices) and getattr(origin, "who", None) is None:
            paths = self._device_paths()
            return Devices([structs.replace(device, path=paths.get(device.uuid, "")) for device in reply.devices])
        return reply

    def report(self, origin: Origin, call: int, body: Report, size: int) -> None:
        if origin.mount and len(body.figures) <= REPORT_FIGURES_MAX:
            self._reported[origin.mount] = (origin, body.figures)
        origin.answer(call, Done())

    def reports(self, origin: Origin, call: int, body: GetReports, size: int) -> None:
        origin.answer(call, Reports({mount: figures for mount, (_, figures) in self._reported.items()}))

    def seen(self, origin: Origin, call: int, body: GetSightings, size: int) -> None:
        names = {row.node: row.name for row in self._replica.machine.node_rows()}
        origin.answer(call, self.sightings.told(names, self._monotonic_ns() // _MS))

    # --- the membership ---------------------------------------------------------------------------------------------------------
    def members(self, origin: Origin, call: int, body: GetMembers, size: int) -> None:
        origin.answer(call, self._replica.log.members())

    def change_members(self, origin: Origin, call: int, body: ChangeMembers, size: int) -> None:
        self._try(origin, call, lambda: self._replica.log.change_members(body))

    def transfer(self, origin: Origin, call: int, body: TransferLead, size: int) -> None:
        def hand_over() -> None:
            if not self._replica.log.hand_over(body.node):
                raise Refused(f"{body.node or 'no other voter'} cannot lead now")

        self._try(origin, call, hand_over)

    def _try(self, origin: Origin, call: int, act: Callable[[], None]) -> None:
        try:
            act()
        except (Refused, NotLeading) as err:
            origin.answer(call, Failed(errno.EAGAIN, str(err), True))
        else:
            origin.answer(call, Done())

    def handlers(self) -> dict[type, Callable[[Origin, int, Any, int], None]]:
        return {
            Report: self.report,
            GetReports: self.reports,
            GetMembers: self.members,
            ChangeMembers: self.change_members,
            TransferLead: self.transfer,
            GetSightings: self.seen,
        }
