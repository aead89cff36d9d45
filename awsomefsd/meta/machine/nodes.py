"""The nodes of the cluster, the tokens by which they join, and the authorities that sign their certificates: rules and queries.  Pure.

A token's use is counted by the entry that adds the node, so a use is neither lost nor had twice, however often the joiner asks: a node that
is there with the same key was added by an earlier try, and nothing is used up.  Time is the entry's.  The row of a removed node stays until
its last certificate has long expired: a node that asks with one gets the answer that it was removed.

A voter's row is removed only while the other voters that are not removed are a majority of the membership as it is then: two removals in
one moment would else leave a membership that nobody can change any more.

The last node becomes "ending" before its state is deleted: only while there is no other node, and nobody is let in from then on.  So the
order of the entries decides whether a node that joins at that moment, or the end of the cluster, comes first (from level DELEGATION on).

Authorities: all trusted ones are believed, the one active one signs.  Its key is in the state (any leader must sign) and leaves it by
GetSigner only, which no connection can ask.
"""

from __future__ import annotations

import errno
from typing import Any

from awsomefsd.base.codec import Sealed
from awsomefsd.base.errors import WAS_REMOVED, FsError
from awsomefsd.base.limits import (
    CAS_MAX,
    DEAD_TOKEN_KEPT_MS,
    NODE_LABEL_BYTES_MAX,
    NODE_LABELS_MAX,
    NODE_NAME_BYTES_MAX,
    NODES_MAX,
    NS_PER_MS,
    REMOVED_NODE_KEPT_MS,
    TOKENS_MAX,
)
from awsomefsd.base.rule_levels import DELEGATION
from awsomefsd.meta.api.commands import (
    AddNode,
    DescribeNode,
    DropCa,
    Entry,
    PutCa,
    PutToken,
    RaiseLevel,
    RevokeToken,
    SetCarries,
    SetNodeState,
)
from awsomefsd.meta.api.messages import Done, Reply
from awsomefsd.meta.api.messages import nodes as m
from awsomefsd.meta.api.messages.base import Message
from awsomefsd.meta.machine import csi_volumes, members, mounts
from awsomefsd.meta.state import keys, rows
from awsomefsd.meta.state.rows_cache import State

ROLES = ("node", "client")
STATES = ("active", "cordoned", "draining", "removed")
ENDING = "ending"
TOKEN_KINDS = ("join", "founding")
CA_STATES = ("active", "trusted")
ADDRESS_BYTES_MAX = 300
PEM_BYTES_MAX = 8_192
VERIFIER_BYTES_MAX = 256
_ID_BYTES_MAX = 64


def every(state: State) -> list[rows.NodeRow]:
    """Returns the rows of all nodes, removed ones too."""
    return _all(state, keys.NODE, rows.NODE)


def find(state: State, node: str) -> rows.NodeRow | None:
    """Returns the row of a node, also of one that was removed; None if there is none."""
    row: rows.NodeRow | None = state.read(keys.node(node), rows.NODE) if 0 < len(node.encode()) <= _ID_BYTES_MAX else None
    return row


def is_removed(state: State, node: str) -> bool:
    row = find(state, node)
    return row is not None and row.state == "removed"


def cas(state: State) -> list[rows.CaRow]:
    """Returns the rows of all certificate authorities."""
    return _all(state, keys.CA, rows.CA)


def bundle(state: State) -> str:
    """Returns the PEM of all trusted authorities, the one that signs first."""
    return "".join(row.certificate for row in sorted(cas(state), key=lambda row: (row.state != "active", row.created_ms, row.id)))


def _all(state: State, kind: int, codec: Sealed) -> list[Any]:
    return [codec.loads(raw) for _, raw in state.txn.scan(*keys.kind_range(0, kind))]


def _now_ms(entry: Entry) -> int:
    return entry.time_ns // NS_PER_MS


# --- nodes ------------------------------------------------------------------------------------------------------------------
def add(state: State, entry: Entry, command: AddNode) -> Reply:
    """Adds a node, and counts the use of its token; nothing happens if the same node is there."""
    _check_id(command.node, "node")
    _check_description(command)
    if command.role not in ROLES or len(command.key) != 32:
        raise FsError(errno.EINVAL, "a node has the role node or client, and the SHA-256 of its public key")
    row = find(state, command.node)
    if row is not None:
        return _check_same(row, command)
    _check_level(state, command.level)
    if ending := next((row for row in every(state) if row.state == ENDING), None):
        keep = f"`awsomefsd node uncordon {ending.name}` there keeps it"
        raise FsError(errno.EPERM, f"the cluster is being ended by its last node, {ending.name}; {keep}")
    token = _usable_token(state, entry, command) if command.token else None
    now = _now_ms(entry)
    alive = _drop_long_removed(state, now)
    if alive >= NODES_MAX:
        raise FsError(errno.ENOSPC, f"{NODES_MAX} nodes are in the cluster already")
    if token is not None and token.uses_left > 0:
        token.uses_left -= 1
        state.write(keys.token(token.id), token, rows.TOKEN)
    made = rows.NodeRow(
        command.node, command.name, command.role, "active", command.control, command.metadata, command.labels, now, command.version,
        command.level, False, now, command.key,
    )  # fmt: skip
    state.write(keys.node(command.node), made, rows.NODE)
    return Done()


def _check_same(row: rows.NodeRow, command: AddNode) -> Reply:
    if row.state == "removed":
        raise FsError(errno.EPERM, f"node {row.node} was removed from the cluster; join with a new identity (an empty state directory)")
    if (row.key, row.role) != (command.key, command.role):
        raise FsError(errno.EPERM, f"node {row.node} is in the cluster with another key; join with a new identity (empty state directory)")
    return Done()


def _usable_token(state: State, entry: Entry, command: AddNode) -> rows.TokenRow:
    row: rows.TokenRow | None = state.read(keys.token(command.token), rows.TOKEN)
    why = ""
    if row is None:
        raise FsError(errno.EPERM, "this cluster does not know the token (any more); make a new one with awsomefsd token create")
    if row.revoked:
        why = "was revoked"
    elif _now_ms(entry) >= row.expires_ms:
        why = "has expired"
    elif row.uses_left == 0:
        why = "is used up"
    elif row.role != command.role:
        why = f"is for the role {row.role}, not {command.role}"
    if why:
        raise FsError(errno.EPERM, f"the token {why}; make a new one with awsomefsd token create")
    return row


def _drop_long_removed(state: State, now_ms: int) -> int:
    """Deletes the rows of nodes that were removed long ago, and returns how many nodes are in the cluster."""
    alive = 0
    for row in every(state):
        if row.state != "removed":
            alive += 1
        elif now_ms - row.changed_ms > REMOVED_NODE_KEPT_MS:
            state.txn.delete(keys.node(row.node))
    return alive


def describe_node(state: State, entry: Entry, command: DescribeNode) -> Reply:
    """Changes the description of a node by itself: name, addresses, labels, version."""
    row = _present(state, command.node)
    _check_description(command)
    row.name, row.control, row.metadata, row.labels = command.name, command.control, command.metadata, command.labels
    row.version, row.level, row.changed_ms = command.version, command.level, _now_ms(entry)
    state.write(keys.node(row.node), row, rows.NODE)
    return Done()


def set_state(state: State, entry: Entry, command: SetNodeState) -> Reply:
    """Makes a node active, cordoned, draining or removed; the last one also ending, from level DELEGATION on."""
    if command.state not in STATES and not (command.state == ENDING and state.acts_at(DELEGATION)):
        raise FsError(errno.EINVAL, f"a node's state is one of {', '.join(STATES)}")
    row = find(state, command.node)
    if row is not None and row.state == command.state == "removed":
        return Done()
    row = _present(state, command.node)
    if command.state == "removed":
        _check_votes(state, command.node)
    if command.state == ENDING:
        _check_last(state, command.node)
    if row.state != command.state:
        row.state, row.changed_ms = command.state, _now_ms(entry)
        row.carries = row.carries and row.state != "removed"
        state.write(keys.node(row.node), row, rows.NODE)
        if row.state == "removed":
            csi_volumes.end_of_node(state, row.node)
            mounts.forget_node(state, row.node)
    return Done()


def remove_others(state: State, entry: Entry, stays: str) -> None:
    """Removes all nodes but one.

    The cluster was made again from a copy of its state: the other nodes may still run as they did, and do not belong to this one any more.
    """
    for row in every(state):
        if row.node != stays and row.state != "removed":
            row.state, row.carries, row.changed_ms = "removed", False, _now_ms(entry)
            state.write(keys.node(row.node), row, rows.NODE)
            csi_volumes.end_of_node(state, row.node)
            mounts.forget_node(state, row.node)


def _check_last(state: State, node: str) -> None:
    """Raises FsError(EBUSY) if there is another node."""
    if others := sorted(row.name for row in every(state) if row.node != node and row.state != "removed"):
        raise FsError(errno.EBUSY, f"the cluster has other nodes: {', '.join(others[:20])}")


def _check_votes(state: State, node: str) -> None:
    """Raises FsError(EBUSY) if the removal would leave no majority.

    A removed voter is cut off at once, and still counts in the majority that takes its vote away: so voters go one after the other.
    """
    at = members.newest(state)
    if at is None:
        return
    gone = {row.node for row in every(state) if row.state == "removed"} | {node}
    for voters in (at.membership.voters(), at.membership.outgoing_voters()):
        staying = [voter for voter in voters if voter.partition("/")[0] not in gone]
        if voters and len(staying) * 2 <= len(voters):
            why = f"only {len(staying)} of {len(voters)} nodes that vote on the metadata now would be left: no majority"
            raise FsError(errno.EBUSY, f"without node {node} {why}; a vote is taken away within seconds, then try again")


def set_carries(state: State, entry: Entry, command: SetCarries) -> Reply:
    """Decides if a node carries the metadata."""
    row = _present(state, command.node)
    if command.carries and row.role != "node":
        raise FsError(errno.EPERM, f"node {command.node} is a client: it carries no metadata")
    if row.carries != command.carries:
        row.carries, row.changed_ms = command.carries, _now_ms(entry)
        state.write(keys.node(row.node), row, rows.NODE)
    return Done()


def _present(state: State, node: str) -> rows.NodeRow:
    row = find(state, node)
    if row is None or row.state == "removed":
        raise FsError(errno.ENOENT, f"node {node} {'was removed' if row is not None else 'is not in the cluster'}")
    return row


def _check_level(state: State, level: int) -> None:
    if max(level, 1) < state.cluster.level:
        acts = f"the cluster acts at level {state.cluster.level}"
        raise FsError(errno.EPERM, f"{acts}, this node knows {level}: upgrade awsomefsd on it first")


def raise_level(state: State, entry: Entry, command: RaiseLevel) -> Reply:
    """Raises the level of the cluster: commands that every node knows may be in the log from now on."""
    if command.target <= state.cluster.level:
        return Done()
    old = [row.name for row in every(state) if row.state != "removed" and row.level < command.target]
    if old:
        raise FsError(errno.EPERM, f"not all nodes know level {command.target}: upgrade or remove {', '.join(sorted(old)[:20])} first")
    state.cluster.level = command.target
    return Done()


def _check_id(identity: str, what: str) -> None:
    if not (0 < len(identity) <= _ID_BYTES_MAX and identity.isascii() and identity.isprintable()):
        raise FsError(errno.EINVAL, f"not the id of a {what}")


def _check_description(command: AddNode | DescribeNode) -> None:
    if not (0 < len(command.name.encode()) <= NODE_NAME_BYTES_MAX and command.name.isprintable()):
        raise FsError(errno.EINVAL, f"a node's name has 1 to {NODE_NAME_BYTES_MAX} printable bytes")
    if any(len(text.encode()) > ADDRESS_BYTES_MAX for text in (command.control, command.metadata, command.version)):
        raise FsError(errno.EINVAL, "an address or version of a node is too long")
    words = [word for pair in command.labels.items() for word in pair]
    if len(command.labels) > NODE_LABELS_MAX or any(len(word.encode()) > NODE_LABEL_BYTES_MAX or not word.isprintable() for word in words):
        raise FsError(errno.EINVAL, f"a node has at most {NODE_LABELS_MAX} labels of {NODE_LABEL_BYTES_MAX} printable bytes")


# --- tokens -----------------------------------------------------------------------------------------------------------------
def put_token(state: State, entry: Entry, command: PutToken) -> Reply:
    """Adds a token."""
    _check_id(command.id, "token")
    if command.kind not in TOKEN_KINDS or command.role not in ROLES or not 0 < len(command.verifier) <= VERIFIER_BYTES_MAX:
        raise FsError(errno.EINVAL, "not a token")
    if command.uses < -1 or command.uses == 0:
        raise FsError(errno.EINVAL, "a token has a positive number of uses, or -1: no bound")
    now = _now_ms(entry)
    known: rows.TokenRow | None = state.read(keys.token(command.id), rows.TOKEN)
    if known is not None:
        if (known.kind, known.role, known.verifier, known.expires_ms) == (command.kind, command.role, command.verifier, command.expires_ms):
            return Done()
        raise FsError(errno.EEXIST, f"a token {command.id} exists")
    kept = 0
    for row in _all(state, keys.TOKEN, rows.TOKEN):
        if now - row.expires_ms > DEAD_TOKEN_KEPT_MS:
            state.txn.delete(keys.token(row.id))
        else:
            kept += 1
    if kept >= TOKENS_MAX:
        raise FsError(errno.ENOSPC, f"{TOKENS_MAX} tokens exist already; they go a week after they expire")
    row = rows.TokenRow(command.id, command.kind, command.role, command.verifier, command.expires_ms, command.uses, now, False)
    state.write(keys.token(command.id), row, rows.TOKEN)
    return Done()


def revoke_token(state: State, entry: Entry, command: RevokeToken) -> Reply:
    """Revokes a token."""
    _check_id(command.id, "token")
    row: rows.TokenRow | None = state.read(keys.token(command.id), rows.TOKEN)
    if row is None:
        raise FsError(errno.ENOENT, f"no token {command.id}")
    row.revoked = True
    state.write(keys.token(row.id), row, rows.TOKEN)
    return Done()


# --- authorities ------------------------------------------------------------------------------------------------------------
def put_ca(state: State, entry: Entry, command: PutCa) -> Reply:
    """Adds a certificate authority, or changes the state of one."""
    _check_id(command.id, "certificate authority")
    if command.state not in CA_STATES or max(len(command.certificate), len(command.key)) > PEM_BYTES_MAX:
        raise FsError(errno.EINVAL, "not a certificate authority")
    known = cas(state)
    row = next((row for row in known if row.id == command.id), None)
    if row is None:
        if not command.certificate or not command.key:
            raise FsError(errno.ENOENT, f"no certificate authority {command.id}")
        if len(known) >= CAS_MAX:
            raise FsError(errno.ENOSPC, f"{CAS_MAX} certificate authorities are trusted already; drop old ones first")
        row = rows.CaRow(command.id, command.certificate, command.key, command.state, _now_ms(entry))
        known.append(row)
    if command.certificate not in ("", row.certificate) or command.key not in ("", row.key):
        raise FsError(errno.EEXIST, f"certificate authority {command.id} is there with other contents")
    row.state = command.state
    if not any(other.state == "active" for other in known):
        raise FsError(errno.EBUSY, "one certificate authority has to sign; make another one active instead")
    for other in known:
        if other is not row and command.state == "active" and other.state == "active":
            other.state = "trusted"
            state.write(keys.ca(other.id), other, rows.CA)
    state.write(keys.ca(row.id), row, rows.CA)
    return Done()


def drop_ca(state: State, entry: Entry, command: DropCa) -> Reply:
    """Removes a certificate authority that does not sign."""
    _check_id(command.id, "certificate authority")
    row: rows.CaRow | None = state.read(keys.ca(command.id), rows.CA)
    if row is None:
        return Done()
    if row.state == "active":
        raise FsError(errno.EBUSY, "this certificate authority signs; make another one active first")
    state.txn.delete(keys.ca(command.id))
    return Done()


# --- queries ----------------------------------------------------------------------------------------------------------------
def info(row: rows.NodeRow) -> m.NodeInfo:
    """Returns a node as queries show it, without what only the leader knows."""
    return m.NodeInfo(
        row.node, row.name, row.role, row.state, row.control, row.metadata, row.labels, row.joined_ms, row.version, row.level,
        row.carries, row.changed_ms, row.key, segments=row.segments,
    )  # fmt: skip


def list_nodes(state: State, body: m.ListNodes) -> Reply:
    """Answers ListNodes."""
    return m.Nodes([info(row) for row in every(state) if body.removed or row.state != "removed"])


def get_node(state: State, body: m.GetNode) -> Reply:
    """Answers GetNode."""
    row = find(state, body.node)
    if row is None:
        raise FsError(errno.ENOENT, f"no node {body.node}")
    return m.Nodes([info(row)])


def orders(state: State, body: m.NodeReport) -> Reply:
    """Answers NodeReport with the orders to the node that reports."""
    row = find(state, body.node)
    if row is None or row.state == "removed":
        raise FsError(errno.EPERM, f"node {body.node} {'is not in' if row is None else WAS_REMOVED} this cluster")
    found = [m.NodeEndpoint(one.node, one.name, one.control, one.metadata, one.carries) for one in every(state) if one.state != "removed"]
    return m.NodeOrders(row.state, row.carries, [one for one in found if one.control or one.metadata], bundle(state), state.cluster.level)


def _token_info(row: rows.TokenRow) -> m.TokenInfo:
    return m.TokenInfo(row.id, row.kind, row.role, row.expires_ms, row.uses_left, row.created_ms, row.revoked)


def list_tokens(state: State, body: m.ListTokens) -> Reply:
    """Answers ListTokens, without the values that tokens are checked against."""
    return m.Tokens([_token_info(row) for row in _all(state, keys.TOKEN, rows.TOKEN)])


def list_cas(state: State, body: m.ListCas) -> Reply:
    """Answers ListCas, without keys."""
    return m.Cas([m.CaInfo(row.id, row.certificate, row.state, row.created_ms) for row in cas(state)])


def get_signer(state: State, body: m.GetSigner) -> Message:
    """Answers GetSigner with the key of the active authority.  Only a state from a checkpoint has one without its key."""
    for row in cas(state):
        if row.state == "active" and row.key:
            return m.Signer(row.id, row.certificate, row.key, bundle(state))
    raise FsError(errno.ENOENT, "no certificate authority is in the metadata; start a node that was made by awsomefsd init")


def get_verifier(state: State, body: m.GetVerifier) -> Message:
    """Answers GetVerifier."""
    row: rows.TokenRow | None = state.read(keys.token(body.id), rows.TOKEN) if 0 < len(body.id.encode()) <= _ID_BYTES_MAX else None
    if row is None:
        raise FsError(errno.ENOENT, "this cluster does not know the token (any more); make a new one with awsomefsd token create")
    if not row.verifier:  # whoever knows that it is empty must not be able to prove anything with it
        raise FsError(errno.ENOENT, "the secret of this token was lost with the node's disk; make a new one with awsomefsd token create")
    return m.Verifier(_token_info(row), row.verifier)
