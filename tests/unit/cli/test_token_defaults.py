"""A token is for one machine that only mounts, unless whoever makes it says more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from awsomefsd.admin.cluster_service import ClusterRpcs
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.cli.token import create
from awsomefsd.meta.api.messages.nodes import TokenInfo


def test_what_nobody_says() -> None:
    defaults = {option.name: option.default for option in create.params}
    assert (defaults["role"], defaults["uses"], defaults["ttl"]) == ("client", 1, "24h")


def test_what_the_admin_api_takes_for_unsaid() -> None:
    made: list[Any] = []

    def create_token(role: str, ttl_s: int, uses: int, endpoints: Any) -> tuple[TokenInfo, str]:
        made.append((role, uses))
        return TokenInfo("id", "join", role, 0, uses, 0, False), "text"

    control: Any = SimpleNamespace(admin=SimpleNamespace(create_token=create_token))
    for request in (pb.CreateTokenRequest(ttl_s=60), pb.CreateTokenRequest(role="node", uses=-1), pb.CreateTokenRequest(uses=3)):
        ClusterRpcs(control).CreateToken(request, None)
    assert made == [("client", 1), ("node", -1), ("client", 3)]
