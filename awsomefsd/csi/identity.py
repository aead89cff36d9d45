"""The CSI identity service: the driver's name, and whether it can serve."""

from __future__ import annotations

from collections.abc import Callable

import grpc

from awsomefsd import __version__
from awsomefsd.base.errors import Error
from awsomefsd.csi.grpc_errors import CallFigures, rpc
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.pb import csi_pb2_grpc
from awsomefsd.csi.settings import DRIVER

_Service = pb.PluginCapability.Service


class IdentityService(csi_pb2_grpc.IdentityServicer):
    """The identity RPCs.  `look` raises a domain error while nothing could be served (metadata without a leader, keeper away)."""

    def __init__(self, look: Callable[[], object], figures: CallFigures) -> None:
        self._look = look
        self._figures = figures

    @rpc
    def GetPluginInfo(self, request: pb.GetPluginInfoRequest, context: grpc.ServicerContext) -> pb.GetPluginInfoResponse:
        return pb.GetPluginInfoResponse(name=DRIVER, vendor_version=__version__)

    @rpc
    def GetPluginCapabilities(
        self, request: pb.GetPluginCapabilitiesRequest, context: grpc.ServicerContext
    ) -> pb.GetPluginCapabilitiesResponse:
        services = (_Service.CONTROLLER_SERVICE, _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS)
        found = [pb.PluginCapability(service=_Service(type=one)) for one in services]
        online = pb.PluginCapability.VolumeExpansion(type=pb.PluginCapability.VolumeExpansion.ONLINE)
        return pb.GetPluginCapabilitiesResponse(capabilities=[*found, pb.PluginCapability(volume_expansion=online)])

    @rpc
    def Probe(self, request: pb.ProbeRequest, context: grpc.ServicerContext) -> pb.ProbeResponse:
        """Answers at once; `ready` is false while other calls would have to wait."""
        response = pb.ProbeResponse()
        try:
            self._look()
            response.ready.value = True
        except Error:
            response.ready.value = False
        return response
