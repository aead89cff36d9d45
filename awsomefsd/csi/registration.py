"""The plugin registration of kubelet, without a sidecar: kubelet finds the socket in its directory and asks for the driver's name."""

from __future__ import annotations

import logging

import grpc

from awsomefsd.csi.pb import registration_pb2 as pb
from awsomefsd.csi.pb import registration_pb2_grpc
from awsomefsd.csi.settings import DRIVER

logger = logging.getLogger(__name__)


class RegistrationService(registration_pb2_grpc.RegistrationServicer):
    """The registration RPCs.  `endpoint` is the path of the CSI socket."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def GetInfo(self, request: pb.InfoRequest, context: grpc.ServicerContext) -> pb.PluginInfo:
        return pb.PluginInfo(type="CSIPlugin", name=DRIVER, endpoint=self._endpoint, supported_versions=["1.0.0"])

    def NotifyRegistrationStatus(self, request: pb.RegistrationStatus, context: grpc.ServicerContext) -> pb.RegistrationStatusResponse:
        if request.plugin_registered:
            logger.info("registered with kubelet")
        else:
            logger.error("kubelet refused the registration; it tries again by itself", extra={"reason": request.error[:2000]})
        return pb.RegistrationStatusResponse()
