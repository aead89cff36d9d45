"""The administrator's operations on nodes, tokens and authorities: checks before the commands, and their errors in words.

A node is not drained or removed while that loses something: data that lies on devices only it has, mounts that are in use there, or the
majority of the metadata.  `force` takes data and mounts as lost; nothing overrides the majority.  Removal is the row first (the node is
refused from then on, wherever it asks), then its sessions: they are renewed no more, and end when the last lease is over that their workers
were promised.  Until then these may still serve programs, so nobody else gets the volumes.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import msgspec

from awsomefsd.base.errors import ConfigError, Error, FsError, NotFound, Refused, Unavailable, WouldLoseData
from awsomefsd.base.limits import NS_PER_MS, SESSION_TTL_MS, TOKEN_ENDPOINTS_MAX
from awsomefsd.base.types import HOST_UNIQUE, SessionInfo
from awsomefsd.cluster.addresses import split_endpoint
from awsomefsd.cluster.pki import token
from awsomefsd.meta.api import messages
from awsomefsd.meta.api.commands import EndSession, PutToken, RevokeToken, SetNodeState
from awsomefsd.meta.api.messages.nodes import CaInfo, ListCas, ListNodes, ListTokens, NodeInfo, Nodes, TokenInfo
from awsomefsd.meta.api.messages.scrub import GetLiveSegments

Call = Callable[[Any], Any]


class NodePools(Protocol):
    """The devices that nodes have in pools (node/devices/node_pools.py)."""

    def drain(self, node: str) -> None:
        """Begins to empty the devices of a node.  Raises Refused if that would never end."""

    def use_again(self, node: str) -> None:
        """Ends these drains."""

    def in_the_way(self, node: str) -> str:
        """Returns what keeps a node from being removed without a loss, in words; "" if nothing does."""

    def remove(self, node: str) -> None:
        """Removes the empty devices of a node that is removed."""

    def maintain(self, node: str, for_ms: int) -> int:
        """Has no device of a node count as lost for so long; returns until when.  Raises Refused, ConfigError."""


class _NoPools:
    """Of a node that knows no pools."""

    def drain(self, node: str) -> None:
        pass

    def use_again(self, node: str) -> None:
        pass

    def in_the_way(self, node: str) -> str:
        return ""

    def remove(self, node: str) -> None:
        pass

    def maintain(self, node: str, for_ms: int) -> int:
        raise Refused("pools of node-local storage are not complete in this build, and only for their healing a maintenance is announced")


NO_POOLS: NodePools = _NoPools()
HEARD_MS_MAX = 10_000  # a node not heard for so long does not count in a majority
VOTES_WAIT_S = 15.0  # for the vote of a node that was removed before to be taken away; it takes a second or two
SESSIONS_WAIT_S = SESSION_TTL_MS / 1_000 + 2.0
FIRST_HEARD_S = 6.0  # nodes report every two seconds
_PAUSE_S = 0.25
_PAGE = 4_096


class NodeAdmin:
    """The operations of one cluster.  Thread-safe as far as `call` is.  Every method blocks for the leader; raises Unavailable, FsError."""

    def __init__(
        self,
        cluster: str,
        call: Call,
        now_ms: Callable[[], int] = lambda: time.time_ns() // NS_PER_MS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        pools: NodePools = NO_POOLS,
    ) -> None:
        self._cluster = cluster
        self._call = call
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._sleep = sleep
        self._pools = pools

    def _propose(self, command: Any) -> Any:
        return self._call(messages.Propose(HOST_UNIQUE, 0, 0, [], command))

    # --- nodes -------------------------------------------------------------------------------------------------------------
    def listed(self, removed: bool = False) -> Nodes:
        """Returns the nodes in the order in which they joined, and the removed ones if asked."""
        found: Nodes = self._call(ListNodes(removed))
        found.nodes.sort(key=lambda row: (row.joined_ms, row.node))
        return found

    def nodes(self, removed: bool = False) -> list[NodeInfo]:
        return self.listed(removed).nodes

    def find(self, name: str) -> NodeInfo:
        """Returns the node with this UUID, beginning of a UUID (four letters or more), or name.

        Raises NotFound, and Refused if several fit.
        """
        rows = self.nodes()
        exact = [row for row in rows if row.node == name]
        fitting = exact or [row for row in rows if row.name == name]
        fitting = fitting or [row for row in rows if len(name) >= 4 and row.node.startswith(name)]
        if len(fitting) > 1:
            raise Refused(f"{name!r} matches {len(fitting)} nodes ({', '.join(row.node for row in fitting)}); give the UUID")
        if not fitting:
            raise NotFound(
                f"there is no node {name!r} (nodes: {', '.join(row.name for row in rows[:20]) or 'none'}); see `awsomefsd node ls`"
            )
        return fitting[0]

    def cordon(self, name: str) -> NodeInfo:
        return self._set(self.find(name), "cordoned")

    def uncordon(self, name: str) -> NodeInfo:
        """Lets a node take new work; the devices of one that was drained take data again."""
        row = self.find(name)
        if row.state == "draining":
            self._pools.use_again(row.node)
        return self._set(row, "active")

    def maintain(self, name: str, for_ms: int) -> tuple[NodeInfo, int]:
        """Announces that a node may be away for so long, 0: ends that; returns its row, and until when (wall clock, 0: it has ended)."""
        row = self.find(name)
        try:
            return row, self._pools.maintain(row.node, for_ms)
        except Refused as err:
            raise Refused(f"node {row.name}: {err}") from err

    def _set(self, row: NodeInfo, state: str) -> NodeInfo:
        self._propose(SetNodeState(row.node, state))
        row.state = state
        return row

    def drain(self, name: str) -> NodeInfo:
        """Drains a node and returns its row.

        Raises WouldLoseData while something is left on it; it takes nothing new from now on all the same.
        """
        row = self._set(self.find(name), "draining")
        try:
            self._pools.drain(row.node)
        except Refused as err:
            raise WouldLoseData(f"node {row.name} takes nothing new, and cannot be emptied: {err}") from err
        left = self._in_the_way(row)
        if left:
            raise WouldLoseData(f"node {row.name} takes nothing new, and is not empty: {'; '.join(left)}")
        return row

    def leave(self, name: str, *, force: bool) -> NodeInfo:
        """Removes a node that wants to go; returns its row.  Raises as `remove`; the node is then in the state in which it was before.

        Without `force` the node takes nothing new while what is on it is looked for.
        """
        row = self.find(name)
        former = row.state
        self._check_majority(row)
        try:
            left = [] if force else self._in_the_way(self._set(row, "draining"))
            if left:
                raise WouldLoseData(f"node {row.name} is not empty: {'; '.join(left)}.  To leave and lose that: awsomefsd leave --force")
            return self.remove(row.node, force=True)
        except (WouldLoseData, Refused) as err:
            raise type(err)(f"{err}{self._back(row, former)}") from err
        except Error:
            self._back(row, former)
            raise

    def end_cluster(self, node: str) -> NodeInfo:
        """Lets nobody join any more, if `node` is the only one; returns its row as it was before.  Raises Refused.

        The entry decides: who has joined before it refuses it, and who comes after it is refused.
        """
        row = self.find(node)
        try:
            self._propose(SetNodeState(row.node, "ending"))
        except FsError as err:
            if err.errno == errno.EBUSY:
                raise Refused(f"{err}; remove them first, or leave it without --yes-destroy") from err
            if err.errno == errno.EINVAL:
                raise Refused("the cluster acts at a level below 4; run `awsomefsd upgrade finalize`, then end it") from err
            raise
        return row

    def keep_cluster(self, before: NodeInfo) -> str:
        """Takes back what `end_cluster` did; returns "", or the words that say how to do it if that fails now."""
        return self._back(msgspec.structs.replace(before, state="ending"), before.state)

    def _back(self, row: NodeInfo, former: str) -> str:
        """Puts a node into the state in which it was before; returns "", or the words about a state that nobody may want."""
        with suppress(FsError, Unavailable):  # the leader is lost just now; one that is removed stays so
            if row.state not in (former, "removed"):
                self._set(row, former)
        return "" if row.state in ("active", "removed") else f"; it is {row.state} until `awsomefsd node uncordon {row.name}`"

    def remove(self, name: str, *, force: bool) -> NodeInfo:
        """Removes a node and ends its sessions; returns its row.  Raises NotFound, Refused, WouldLoseData.

        Blocks until its sessions have ended, SESSIONS_WAIT_S at most.
        """
        row = self.find(name)
        self._check_majority(row)
        left = [] if force else self._in_the_way(row)
        if left:
            raise WouldLoseData(
                f"node {row.name} is not empty: {'; '.join(left)}.  To remove it and lose that: awsomefsd node remove {row.node} --force"
            )
        self._take_out(row)
        self._pools.remove(row.node)
        self._end_sessions(row.node)
        return row

    def _take_out(self, row: NodeInfo) -> None:
        """Sets the row, and waits while the vote of a node that was removed just before is still counted."""
        until = self._monotonic() + VOTES_WAIT_S
        while True:
            try:
                self._set(row, "removed")
                return
            except FsError as err:
                if err.errno != errno.EBUSY:
                    raise
                if self._monotonic() >= until:
                    raise WouldLoseData(str(err)) from err
            self._sleep(_PAUSE_S)

    def _end_sessions(self, node: str) -> None:
        until = self._monotonic() + SESSIONS_WAIT_S
        while True:
            for session in (live := self._live_sessions(node)):
                with suppress(FsError, Unavailable):  # its lease runs out first, perhaps later than an answer is waited for; or it ended
                    self._propose(EndSession(session.session, session.epoch, False))
            if not live or self._monotonic() >= until:
                return
            self._sleep(_PAUSE_S)

    def _live_sessions(self, node: str) -> list[SessionInfo]:
        return [session for session in self._call(messages.GetSessions()).sessions if session.node == node and not session.ended]

    def _in_the_way(self, row: NodeInfo) -> list[str]:
        found = []
        volumes = {volume.volume: volume.name for volume in self._call(messages.GetVolumes()).volumes}
        sessions = self._call(messages.GetSessions()).sessions
        mounted = sorted(
            {volumes.get(one.volume, str(one.volume)) for one in sessions if one.node == row.node and one.mount and not one.ended}
        )
        if mounted:
            found.append(f"it has mounted {', '.join(mounted)} (unmount there first)")
        count, size = self._live_on(row)
        if count:
            segments = "1 segment" if count == 1 else f"{count} segments"
            found.append(
                f"its devices hold {segments} with {size >> 20} MiB of volumes that lie nowhere else (copy or delete those files first)"
            )
        if pooled := self._pools.in_the_way(row.node):
            found.append(pooled)
        return found

    def _live_on(self, row: NodeInfo) -> tuple[int, int]:
        own = {device.device for device in self._call(messages.GetDevices()).devices if device.home == row.node}
        count = size = start = 0
        while own:
            page = self._call(GetLiveSegments(start, _PAGE))
            for segment in page.segments:
                if segment.device in own:
                    count += 1
                    size += segment.live_bytes
            start = page.after
            if not start:
                break
        return count, size

    def check_leaving(self, node: str, *, ends_cluster: bool) -> None:
        """Checks that the cluster goes on without a node or, with `ends_cluster`, that there is no other one.

        Changes nothing.  A node that is no member may go.  Raises WouldLoseData, Refused.
        """
        rows = self.nodes()
        if ends_cluster:
            if others := ", ".join(row.name for row in rows if row.node != node):
                raise Refused(f"the cluster has other nodes: {others}; remove them first, or leave it without --yes-destroy")
            if not rows:
                raise Refused("this cluster's members are set by configuration; stop the daemons and delete their state directories")
        for row in rows:
            if row.node == node and not ends_cluster:
                self._check_majority(row)

    def _check_majority(self, row: NodeInfo) -> None:
        """Raises WouldLoseData.  A leader that was just elected has heard nobody yet: those who are silent then are given a while."""
        until = self._monotonic() + FIRST_HEARD_S
        while True:
            rows = self.nodes()
            try:
                return self._check_majority_of(rows, row)
            except WouldLoseData:
                if all(one.leader or one.heard_ms_ago >= 0 for one in rows if one.member == "voter") or self._monotonic() >= until:
                    raise
            self._sleep(_PAUSE_S)

    def _check_majority_of(self, rows: list[NodeInfo], row: NodeInfo) -> None:
        voters = [one for one in rows if one.member == "voter"]
        others = [one for one in voters if one.node != row.node]
        end = f"on {row.name}: awsomefsd leave --purge --yes-destroy {self._cluster}"
        if len(rows) == 1:
            volumes = ", ".join(sorted(volume.name for volume in self._call(messages.GetVolumes()).volumes)) or "there are none"
            raise WouldLoseData(
                f"node {row.name} is the last one: without it the cluster ends, and its volumes are lost ({volumes}); to do that, {end}"
            )
        if row.member == "voter" and not others:
            names = ", ".join(one.name for one in rows if one.node != row.node)
            raise WouldLoseData(
                f"node {row.name} is the only one that carries the metadata; let others carry it first, or to end the cluster remove them "
                f"({names}), then {end}"
            )
        alive = [one for one in others if one.leader or 0 <= one.heard_ms_ago <= HEARD_MS_MAX]
        if row.member == "voter" and len(alive) <= len(others) // 2:
            raise WouldLoseData(
                f"without node {row.name} only {len(alive)} of {len(others)} nodes that carry the metadata would run, "
                "which is no majority; start the others first"
            )

    # --- tokens ------------------------------------------------------------------------------------------------------------
    def tokens(self) -> list[TokenInfo]:
        return sorted(self._call(ListTokens()).tokens, key=lambda row: (row.created_ms, row.id))

    def create_token(self, role: str, ttl_s: int, uses: int, endpoints: Sequence[str]) -> tuple[TokenInfo, str]:
        """Makes a token; returns its row and its text, which is stored nowhere.  Raises ConfigError without endpoints."""
        made = token.make(self._cluster, self._active().id, self._endpoints(endpoints), role, self._now_ms() + ttl_s * 1_000)
        self._propose(PutToken(made.id, "join", role, made.verifier, made.expires_ms, uses))
        return TokenInfo(made.id, "join", role, made.expires_ms, uses, self._now_ms(), False), token.print_token(made)

    def revoke_token(self, identity: str) -> None:
        """Revokes a token.  Raises NotFound."""
        try:
            self._propose(RevokeToken(identity))
        except FsError as err:
            if err.errno != errno.ENOENT:
                raise
            raise NotFound(f"there is no token {identity!r}; see `awsomefsd token list`") from err

    def rotate_token(self, identity: str, ttl_s: int, endpoints: Sequence[str]) -> tuple[TokenInfo, str]:
        """Makes a token of the same role and number of uses that are left, then revokes the old one.

        Returns as `create_token`; raises NotFound.
        """
        old = next((row for row in self.tokens() if row.id == identity), None)
        if old is None or old.kind != "join":
            raise NotFound(f"there is no join token {identity!r}; see `awsomefsd token list`")
        made = self.create_token(old.role, ttl_s, old.uses_left or 1, endpoints)
        self.revoke_token(identity)
        return made

    def _endpoints(self, given: Sequence[str]) -> tuple[str, ...]:
        for endpoint in given:
            split_endpoint(endpoint)
        rows = [row for row in self.nodes() if row.role == "node" and row.control]
        rows.sort(key=lambda row: (not row.carries, row.member != "voter"))
        found = tuple(given) or tuple(row.control for row in rows)
        if not found:
            raise ConfigError(
                "no node tells an address to join at; set cluster.listen (and cluster.advertise) on this one, or give --endpoint HOST:PORT"
            )
        return found[:TOKEN_ENDPOINTS_MAX]

    # --- authorities ---------------------------------------------------------------------------------------------------------
    def authorities(self) -> list[CaInfo]:
        """Returns the authorities, oldest first."""
        return sorted(self._call(ListCas()).cas, key=lambda row: (row.created_ms, row.id))

    def _active(self) -> CaInfo:
        for row in self.authorities():
            if row.state == "active":
                return row
        raise Error("the cluster has no certificate authority, so no node can join it; it was made by an older build")
