"""The RPC of the web page that the daemon serves: an address that signs in once."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from awsomefsd.admin.grpc_errors import edge
from awsomefsd.admin.pb import admin_pb2 as pb


class UiRpcs:
    """The RPC of the web page.  `login(operator)` makes (an address with a code, its seconds); it raises Refused where there is no page."""

    def __init__(self, login: Callable[[bool], tuple[str, float]]) -> None:
        self._login = login

    @edge
    def MakeUiLogin(self, request: pb.MakeUiLoginRequest, context: grpc.ServicerContext) -> pb.MakeUiLoginReply:
        address, seconds = self._login(request.operator)
        return pb.MakeUiLoginReply(address=address, seconds=int(seconds))
