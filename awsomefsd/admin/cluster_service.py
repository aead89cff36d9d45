"""The RPCs about nodes, tokens and authorities; part of service.py."""

from __future__ import annotations

import logging
from typing import Any

import grpc

from awsomefsd.admin import admin_pb2 as pb
from awsomefsd.admin.edge import edge
from awsomefsd.cluster.control_part import ControlPart
from awsomefsd.cluster_view import readiness
from awsomefsd.errors import ConfigError
from awsomefsd.meta.node_messages import NodeInfo, TokenInfo

logger = logging.getLogger(__name__)


class ClusterRpcs:
    """`cluster` is set by who makes the service, before it serves."""

    cluster: ControlPart

    @edge
    def ListNodes(self, request: pb.ListNodesRequest, context: grpc.ServicerContext) -> pb.ListNodesReply:
        listed = self.cluster.admin.listed(request.removed)
        return pb.ListNodesReply(nodes=[_node(row, listed.led_ms) for row in listed.nodes])

    @edge
    def SetNode(self, request: pb.SetNodeRequest, context: grpc.ServicerContext) -> pb.Node:
        admin = self.cluster.admin
        actions: dict[str, Any] = {
            "cordon": admin.cordon,
            "uncordon": admin.uncordon,
            "drain": admin.drain,
            "remove": lambda name: admin.remove(name, force=request.force),
        }
        if request.action not in actions:
            raise ConfigError(f"{request.action!r} is nothing to do with a node; it is one of {', '.join(actions)}")
        row = actions[request.action](request.node)
        logger.warning("a node's state was changed", extra={"action": request.action, "changed": row.node, "force": request.force})
        return _node(row)

    @edge
    def Leave(self, request: pb.LeaveRequest, context: grpc.ServicerContext) -> pb.LeaveReply:
        self.cluster.leave(force=request.force, purge=request.purge)
        return pb.LeaveReply()

    @edge
    def CreateToken(self, request: pb.CreateTokenRequest, context: grpc.ServicerContext) -> pb.Token:
        info, text = self.cluster.admin.create_token(request.role or "node", request.ttl_s, request.uses, request.endpoints)
        logger.warning("a join token was made", extra={"token": info.id, "for_role": info.role})
        return _token(info, text)

    @edge
    def ListTokens(self, request: pb.ListTokensRequest, context: grpc.ServicerContext) -> pb.ListTokensReply:
        return pb.ListTokensReply(tokens=[_token(row) for row in self.cluster.admin.tokens()])

    @edge
    def RevokeToken(self, request: pb.RevokeTokenRequest, context: grpc.ServicerContext) -> pb.RevokeTokenReply:
        self.cluster.admin.revoke_token(request.id)
        logger.warning("a token was revoked", extra={"token": request.id})
        return pb.RevokeTokenReply()

    @edge
    def RotateToken(self, request: pb.RotateTokenRequest, context: grpc.ServicerContext) -> pb.Token:
        return _token(*self.cluster.admin.rotate_token(request.id, request.ttl_s, request.endpoints))

    @edge
    def ListCas(self, request: pb.ListCasRequest, context: grpc.ServicerContext) -> pb.ListCasReply:
        rows = self.cluster.admin.authorities()
        return pb.ListCasReply(
            cas=[pb.Ca(id=row.id, state=row.state, created_ms=row.created_ms, certificate=row.certificate) for row in rows]
        )

    @edge
    def RotateCa(self, request: pb.RotateCaRequest, context: grpc.ServicerContext) -> pb.RotateCaReply:
        made = self.cluster.rotate()
        logger.warning("a rotation of the certificate authority has begun", extra={"authority": made})
        return pb.RotateCaReply(id=made)


def _node(row: NodeInfo, led_ms: int = 0) -> pb.Node:
    return pb.Node(
        node=row.node, name=row.name, role=row.role, state=row.state, control=row.control, metadata=row.metadata, labels=row.labels,
        joined_ms=row.joined_ms, version=row.version, level=row.level, member=row.member, leader=row.leader,
        heard_ms_ago=row.heard_ms_ago, lag=row.lag, issuer=row.issuer,
        silent_ms=row.silent_ms, carries=row.carries, readiness=readiness(row, led_ms),
    )  # fmt: skip


def _token(row: TokenInfo, text: str = "") -> pb.Token:
    return pb.Token(
        id=row.id, kind=row.kind, role=row.role, expires_ms=row.expires_ms, uses_left=row.uses_left, created_ms=row.created_ms,
        revoked=row.revoked, text=text,
    )  # fmt: skip
