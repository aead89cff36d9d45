"""The daemon's share in the cluster's certificates: serves the control port, renews its own certificate, moves a rotation on.

Signing needs the authority's key, so a node signs only while its own metadata service leads; any other answers with the leader's address.
Without `cluster.listen` there is no control port, and the certificate is renewed all the same.  A port that is taken is tried again and
again: a daemon that ended for it would take the metadata of this node with it.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import trio

from awsomefsd.base import identity
from awsomefsd.base.clock import common_moment
from awsomefsd.base.errors import (
    WAS_REMOVED,
    ConfigError,
    Corrupt,
    Error,
    FsError,
    NotFound,
    NotLeading,
    Refused,
    Unavailable,
    WouldLoseData,
)
from awsomefsd.base.identity import Node
from awsomefsd.base.wait import Signal
from awsomefsd.cluster import endpoints
from awsomefsd.cluster.addresses import advertised
from awsomefsd.cluster.control.client import call_leader
from awsomefsd.cluster.control.server import ControlCaller, ControlMethod, ControlServer, ServerTls, methods
from awsomefsd.cluster.founding.admit import FoundingAdmission
from awsomefsd.cluster.messages import ControlMessage, Leave, RenewCertificate, Renewed, RotateCa
from awsomefsd.cluster.pki import ca, rotation
from awsomefsd.cluster.pki.node_admin import NO_POOLS, NodeAdmin, NodePools
from awsomefsd.cluster.pki.pki_files import PkiFiles
from awsomefsd.cluster.pki.renewal import Renewal
from awsomefsd.cluster.pki.signing import Signing
from awsomefsd.config import ports
from awsomefsd.config.settings import Settings, parse_endpoint
from awsomefsd.meta.api.messages import Failed, NotLeader
from awsomefsd.meta.api.messages.nodes import GetNode, ListCas, ListNodes

logger = logging.getLogger(__name__)
CLOSED = ("cordoned", "draining", "ending")
LOOK_MS = 2_000  # between two checks of the certificate, and of a rotation
PORT_RETRY_S = 2.0
CALL_S = 10.0
LEADER_S = 20.0  # less than the command line waits, so that it gets the reason


class ControlService:
    """The control service of one node.  Methods but `run` may be called on any thread, and block for the service.

    `query` asks this node's metadata service (Unavailable while it has none); `call` asks the leader's, wherever it is; `state` returns
    this node's, by the leader's orders, "" before the first.
    """

    def __init__(
        self,
        settings: Settings,
        identity: Node,
        query: Callable[[Any, float], Any],
        call: Callable[[Any], Any],
        state: Callable[[], str] = str,
        life: datetime.timedelta = ca.NODE_LIFE,
        mounted: Callable[[], list[str]] = list,
        end_mount: Callable[[str], object] = lambda directory: None,
        leads: Callable[[], bool] = lambda: True,
        applied: Callable[[], int] = lambda: 0,
        pools: NodePools = NO_POOLS,
    ) -> None:
        """`mounted` returns the directories with mounts of this node; `end_mount` unmounts one of them by force and raises Error.

        `leads` says whether this node's metadata service decides, `applied` what it has applied, 0 if that is not known.
        """
        self._settings = settings
        self._node = identity
        self._query = query
        self._call = call
        self._life = life
        self._state = state
        self._mounted, self._end_mount = mounted, end_mount
        self._leads, self._applied = leads, applied
        self._settled_index = 0  # `applied` before a look that found no rotation under way
        self.files = PkiFiles(settings.state_dir)
        self.signing = Signing(identity.cluster, identity.site, self.ask_here, life=life)
        self._pools = pools
        self.admin = NodeAdmin(identity.cluster, call, pools=pools)
        self.renewal = Renewal(self.files, self._renewed)
        self.table: dict[type, ControlMethod] = methods(self.signing, self.files.read_bundle, self._removed)
        self.server: ControlServer | None = None
        self.purge = Signal()  # this node has left, and its state is to go
        self.purge_conflicts = False  # with the data that could not be committed
        self.trouble = ""  # why the port is not served

    # --- who leads ---------------------------------------------------------------------------------------------------------
    def ask_here(self, body: Any) -> Any:
        """Returns the reply of this node's own metadata service.  Raises NotLeading unless it leads, FsError, Unavailable."""
        reply = self._query(body, CALL_S)
        if isinstance(reply, NotLeader):
            raise NotLeading(reply.node)
        if isinstance(reply, Failed):
            if reply.retry:
                raise Unavailable(reply.detail or "the metadata service cannot answer now; try again")
            raise FsError(reply.errno, reply.detail)
        return reply

    def leader_at(self, node: str) -> str:
        """Returns the control port of a node, "" if it is not known; for `node` "" that of another node that carries the metadata."""
        known = endpoints.read(self._settings.state_dir)
        if node:
            return known[node].control if node in known else ""
        return next((one.control for one in known.values() if one.carries and one.node != self._node.node), "")

    def call_leader(self, body: ControlMessage) -> Any:
        """Makes a control call to the leader, which may be this node; returns the answer.  Raises Unavailable, and what the call raises."""
        try:
            return self._call_here(body)
        except NotLeading as err:
            first = self.leader_at(err.leader)
        except Unavailable:
            first = ""
        others = [one.control for one in endpoints.read(self._settings.state_dir).values() if one.node != self._node.node and one.control]
        return call_leader(self.files, dict.fromkeys([first, *others] if first else others), body, LEADER_S)

    def _call_here(self, body: ControlMessage) -> ControlMessage:
        row = self.signing.member(self._node.node)
        return self.table[type(body)].run(body, ControlCaller(None, row, b""))

    def _renewed(self, body: RenewCertificate) -> Renewed:
        answer: Renewed = self.call_leader(body)
        return answer

    def rotate(self) -> str:
        """Begins a rotation; returns the new authority's id.  Raises as `call_leader`."""
        return str(self.call_leader(RotateCa()).id)

    def leave(self, *, force: bool, purge: bool, destroy: str = "") -> list[str]:
        """Removes this node from the cluster; with `purge` its state is then to go.  Raises WouldLoseData, Refused, Unavailable.

        A node that was removed before has nothing to ask for; with `purge` it may go.  The last node ends the cluster: `destroy` is then
        the cluster's UUID, and belongs to `purge`.  Returns what a purge will leave of the state directory: only with `force` it takes
        along the data that could not be committed.  A purge leaves no mount, which would answer EIO for ever: without `force` it is
        refused, with `force` the mounts end first, while what they hold can still be committed.
        """
        self._check_leaving(purge, destroy)
        if purge:
            self._check_purge(force)
        if purge and force:  # without it one that was made meanwhile lives on if the leader refuses
            self._end_mounts()
        if destroy:
            self._end_cluster()
        else:
            self._ask_to_leave(force, purge)
            if not purge:
                return []
            self._end_mounts()  # one that was made meanwhile
        self.purge_conflicts = force
        self.purge.fire()
        return identity.kept_by_purge(self._settings.state_dir, conflicts=force)

    def _ask_to_leave(self, force: bool, purge: bool) -> None:
        try:
            self.call_leader(Leave(force))
        except Refused as err:
            if isinstance(err, WouldLoseData) or not (purge and WAS_REMOVED in str(err)):
                raise

    def _end_cluster(self) -> None:
        """Lets nobody join from now on, unless there is another node, and ends the mounts that were made meanwhile."""
        before = self.admin.end_cluster(self._node.node)
        try:
            self._end_mounts()
        except Error as err:
            raise Refused(f"{err}; the cluster goes on{self.admin.keep_cluster(before)}") from err

    def _check_leaving(self, purge: bool, destroy: str) -> None:
        """Checks before anything ends what the leader would refuse in spite of `force`."""
        if destroy and not purge:
            raise ConfigError("--yes-destroy ends the cluster with the state of its last node; give --purge too")
        if destroy and destroy != self._node.cluster:
            raise WouldLoseData(f"the confirmation {destroy!r} is not the cluster {self._node.cluster!r}; nothing was done")
        if self._node.role != "node":  # it may not list nodes; it has no vote, and is never the last one
            if destroy:
                raise Refused("a node of role client cannot end the cluster; leave it without --yes-destroy")
            return
        try:
            self.admin.check_leaving(self._node.node, ends_cluster=bool(destroy))
        except Unavailable:  # to one that was removed only the control port answers, and says so
            if destroy or self._mounted():
                raise
        except FsError as err:
            if WAS_REMOVED not in str(err):
                raise
            if destroy:
                raise Refused(f"{err}; the cluster goes on without it, so leave it without --yes-destroy") from err

    def _check_purge(self, force: bool) -> None:
        conflicts = self._settings.state_dir / identity.CONFLICTS
        if not force and identity.has_conflicts(self._settings.state_dir):
            raise WouldLoseData(
                f"{conflicts} holds data that could not be committed and lies nowhere else; copy it away and delete it there, or lose it "
                "with --force"
            )
        if not force and (mounted := self._mounted()):
            raise WouldLoseData(f"mounted here: {', '.join(mounted)}; `awsomefsd umount` each of them, or end them with --force")

    def _end_mounts(self) -> None:
        for directory in self._mounted():
            self._end_mount(directory)

    def check_open(self) -> None:
        """Raises Refused while this node takes nothing new."""
        if self._node.role != "node":  # it may not see the rows of nodes
            if (state := self._state()) in CLOSED:
                raise Refused(
                    f"this node is {state} and takes no new mounts; to change that, run `awsomefsd node uncordon` on another node"
                )
            return
        with suppress(FsError):  # a node of an older build has no row
            row = self._call(GetNode(self._node.node)).nodes[0]
            if row.state in CLOSED:
                raise Refused(f"this node is {row.state} and takes no new mounts; to change that, run `awsomefsd node uncordon {row.name}`")

    def _removed(self, node: str, force: bool) -> None:
        """Removes a node on this node, while it leads."""
        NodeAdmin(self._node.cluster, self.ask_here, pools=self._pools).leave(node, force=force)

    # --- tasks -------------------------------------------------------------------------------------------------------------
    async def run(self) -> None:
        """Runs the tasks until cancelled; returns at once for a node without certificates (an older build, or a static configuration)."""
        if not self.files.there():
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep, self._look_at_certificate, self.renewal.may_be_due)
            if self._node.role == "node":
                nursery.start_soon(self._keep, self._look_at_rotation, self._rotation_may_go_on)
                if self._settings.cluster.listen:
                    nursery.start_soon(self._serve)
                    nursery.start_soon(self._announce)

    async def _serve(self) -> None:
        host, port = parse_endpoint(self._settings.cluster.listen)
        tls = ServerTls(self.files.bundle, self.files.certificate, self.files.key)
        founding = FoundingAdmission(self._node.node, self.ask_here, self.signing, self.leader_at, self._control_toward)
        self.server = ControlServer(tls, self.table, self.signing.member, self.leader_at, founding)
        while True:
            try:
                await self.server.serve(host, port)
            except OSError as err:
                why = await trio.to_thread.run_sync(ports.taken, "cluster.listen", self._settings.cluster.listen, err)
                trouble = f"{why}; no node can join or renew its certificate through this node"
                if trouble != self.trouble:
                    logger.warning("%s", trouble)
                self.trouble = trouble
                await trio.sleep(PORT_RETRY_S)

    async def _announce(self) -> None:
        """Announces this node by multicast, for nodes with a founding token that start later."""
        if not self._settings.cluster.discovery:
            return
        from awsomefsd.cluster.discovery import announce

        with suppress(ConfigError):  # no route to other machines: none could hear it
            await announce(self._node.cluster, self._node.node, self._control_toward(""))

    def _control_toward(self, host: str) -> str:
        return advertised(self._settings, self._settings.cluster.listen, host)

    async def _keep(self, look: Callable[[], None], due: Callable[[], bool]) -> None:
        said = ""
        while True:
            try:
                if due():
                    await trio.to_thread.run_sync(look, abandon_on_cancel=True)
                said = ""
            except (NotLeading, Unavailable, FsError):
                pass  # the next check does it, or another node
            except (Error, OSError) as err:
                if str(err) != said:
                    said = str(err)
                    logger.warning("%s", err)
            await trio.sleep_until(common_moment(trio.current_time(), LOOK_MS))

    def _look_at_certificate(self) -> None:
        self.renewal.renew_if_due(self._first_authority())

    def _first_authority(self) -> str:
        """Returns the id of the authority that signs, which is the first in the bundle; "" if there is none."""
        try:
            return ca.id_of(ca.load_bundle(self.files.read_bundle())[0])
        except (NotFound, Corrupt, IndexError):
            return ""

    def _rotation_may_go_on(self) -> bool:
        return self._leads() and (not self._settled_index or self._applied() != self._settled_index)

    def _look_at_rotation(self) -> None:
        index, self._settled_index = self._applied(), 0
        cas = self.ask_here(ListCas()).cas
        if len(cas) < 2:
            self._settled_index = index
            return
        bundle = ca.bundle_hash("".join(row.certificate for row in cas))
        now_ms = int(ca.now().timestamp() * 1_000)
        step = rotation.next_step(cas, self.ask_here(ListNodes()).nodes, bundle, now_ms, int(self._life.total_seconds() * 1_000))
        if step is not None:
            self.signing.propose(step)
            logger.warning("the certificate authority's rotation goes on", extra={"step": type(step).__name__, "authority": step.id})


def own_certificate(state_dir: Path) -> tuple[str, str]:
    """Returns (hash of the bundle, id of the issuer) of the files of this node, for its reports; "" where there is none."""
    files = PkiFiles(state_dir)
    try:
        bundle = files.read_bundle()
        return ca.bundle_hash(bundle), ca.issuer_of(ca.load(files.read_certificate()), ca.load_bundle(bundle))
    except (NotFound, Corrupt):
        return "", ""
