"""The admin API of a daemon without an identity: `GetStatus` says why it waits, every other call is refused with the same words."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import grpc

from awsomefsd import __version__
from awsomefsd.admin import trailers
from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.admin.pb import admin_pb2_grpc
from awsomefsd.base.errors import Unavailable
from awsomefsd.config.settings import Settings
from awsomefsd.node.health.codes import CODES


class WaitingService(admin_pb2_grpc.AdminServicer):
    """The service of a daemon without an identity.  `said` returns the reason in words; gRPC's threads call it."""

    def __init__(self, settings: Settings, said: Callable[[], list[str]]) -> None:
        self._settings = settings
        self._said = said
        for method in pb.DESCRIPTOR.services_by_name["Admin"].methods:
            setattr(self, method.name, self._status if method.name == "GetStatus" else self._refuse)

    def _status(self, _request: Any, _context: grpc.ServicerContext) -> pb.Status:
        settings, said = self._settings, self._said()
        code = CODES["WAITING_FOR_CLUSTER"]
        return pb.Status(
            version=__version__,
            site=settings.site,
            state_dir=str(settings.state_dir),
            run_dir=str(settings.run_dir),
            pid=os.getpid(),
            reasons=said,
            health=[pb.Health(code=code.name, severity=code.severity, what=words, fix=code.fix) for words in said],
        )

    def _refuse(self, _request: Any, context: grpc.ServicerContext) -> Any:
        error = Unavailable(self._said()[0])
        context.set_trailing_metadata(trailers.trailing(error))
        context.abort(trailers.status_of(error), str(error))
