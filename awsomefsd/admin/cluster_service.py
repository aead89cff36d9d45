"""The RPCs about nodes, tokens and authorities."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.errors import ConfigError
from awsomefsd.base.log import printable
from awsomefsd.cluster.control.service import ControlService
from awsomefsd.cluster.membership.view import readiness
from awsomefsd.meta.api.messages.nodes import NodeInfo, TokenInfo

logger = logging.getLogger(__name__)


class ClusterRpcs:
    """The RPCs about nodes, tokens and authorities: each translates, calls the control service, and translates back."""

    def __init__(self, control: ControlService) -> None:
        self._control = control

    @edge
    def ListNodes(self, request: pb.ListNodesRequest, context: grpc.ServicerContext) -> pb.ListNodesReply:
        listed = self._control.admin.listed(request.removed)
        return pb.ListNodesReply(nodes=[_node(row, listed.led_ms) for row in listed.nodes])

    @edge
    def SetNode(self, request: pb.SetNodeRequest, context: grpc.ServicerContext) -> pb.Node:
        admin = self._control.admin
        actions: dict[str, Any] = {
            "cordon": admin.cordon,
            "uncordon": admin.uncordon,
            "drain": admin.drain,
            "remove": lambda name: admin.remove(name, force=request.force),
        }
        if request.action == "maintenance":
            row, until_ms = admin.maintain(request.node, request.for_ms)
            logger.warning("a node's maintenance was announced", extra={"changed": row.node, "until_ms": until_ms})
            return _node(row, until_ms=until_ms)
        if request.action not in actions:
            raise ConfigError(f"{request.action!r} is not an action on a node; choose one of {', '.join(actions)}")
        row = actions[request.action](request.node)
        logger.warning("a node's state was changed", extra={"action": request.action, "changed": row.node, "force": request.force})
        return _node(row)

    @edge
    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> pb.LeaveReply:
        left = self._control.leave(force=request.force, purge=request.purge, destroy=request.destroy)
        return pb.LeaveReply(left=map(printable, left))  # names of files, which need not be UTF-8

    @edge
    def CreateToken(self, request: pb.CreateTokenRequest, context: grpc.ServicerContext) -> pb.Token:
        info, text = self._control.admin.create_token(request.role or "client", request.ttl_s, request.uses or 1, request.endpoints)
        logger.warning("a join token was made", extra={"token": info.id, "for_role": info.role})
        return _token(info, text)

    @edge
    def ListTokens(self, request: pb.ListTokensRequest, context: grpc.ServicerContext) -> pb.ListTokensReply:
        return pb.ListTokensReply(tokens=[_token(row) for row in self._control.admin.tokens()])

    @edge
    def RevokeToken(self, request: pb.RevokeTokenRequest, context: grpc.ServicerContext) -> pb.RevokeTokenReply:
        self._control.admin.revoke_token(request.id)
        logger.warning("a token was revoked", extra={"token": request.id})
        return pb.RevokeTokenReply()

    @edge
    def RotateToken(self, request: pb.RotateTokenRequest, context: grpc.ServicerContext) -> pb.Token:
        return _token(*self._control.admin.rotate_token(request.id, request.ttl_s, request.endpoints))

    @edge
    def ListCas(self, request: pb.ListCasRequest, context: grpc.ServicerContext) -> pb.ListCasReply:
        rows = self._control.admin.authorities()
        return pb.ListCasReply(
            cas=[pb.Ca(id=row.id, state=row.state, created_ms=row.created_ms, certificate=row.certificate) for row in rows]
        )

    @edge
    def RotateCa(self, request: pb.RotateCaRequest, context: grpc.ServicerContext) -> pb.RotateCaReply:
        made = self._control.rotate()
        logger.warning("a rotation of the certificate authority has begun", extra={"authority": made})
        return pb.RotateCaReply(id=made)


def _node(row: NodeInfo, led_ms: int = 0, until_ms: int = 0) -> pb.Node:
    return pb.Node(
        node=row.node, name=row.name, role=row.role, state=row.state, control=row.control, metadata=row.metadata, labels=row.labels,
        joined_ms=row.joined_ms, version=row.version, level=row.level, member=row.member, leader=row.leader,
        heard_ms_ago=row.heard_ms_ago, lag=row.lag, issuer=row.issuer,
        silent_ms=row.silent_ms, carries=row.carries, readiness=readiness(row, led_ms),
        maintenance_until_ms=until_ms,
    )  # fmt: skip


def _token(row: TokenInfo, text: str = "") -> pb.Token:
    return pb.Token(
        id=row.id, kind=row.kind, role=row.role, expires_ms=row.expires_ms, uses_left=row.uses_left, created_ms=row.created_ms,
        revoked=row.revoked, text=text,
    )  # fmt: skip
