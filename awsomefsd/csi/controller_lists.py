"""Answers of the controller that change nothing: volumes one by one and in pages, room, health."""

from __future__ import annotations

from awsomefsd.csi import rules
from awsomefsd.csi.errors import CsiError, invalid, not_found
from awsomefsd.csi.pb import csi_pb2 as pb
from awsomefsd.csi.settings import Driver
from awsomefsd.csi.volumes import Found, Volumes, is_uuid
from awsomefsd.limits import CSI_PAGE_MAX
from awsomefsd.types import CsiVolumeInfo


class Lists:
    def __init__(self, driver: Driver, volumes: Volumes) -> None:
        self._driver = driver
        self._volumes = volumes

    def volume(self, record: CsiVolumeInfo | None) -> pb.Volume:
        assert record is not None
        topology = [pb.Topology(segments=self._driver.reachable)]
        return pb.Volume(volume_id=record.id, capacity_bytes=record.capacity, accessible_topology=topology)

    def _rows(self, max_entries: int, token: str) -> tuple[list[CsiVolumeInfo], str]:
        """A page and the token of the next: the last id of this one."""
        if max_entries < 0:
            raise invalid("max_entries is negative")
        if token and not is_uuid(token):
            raise CsiError("ABORTED", f"starting_token {token[:64]!r} is not one of this driver; begin anew")
        count = max_entries or CSI_PAGE_MAX
        rows = self._volumes.page(token, min(count + 1, CSI_PAGE_MAX))
        if len(rows) > count:
            return rows[:count], rows[count - 1].id
        return rows, rows[-1].id if len(rows) == CSI_PAGE_MAX else ""

    def page(self, request: pb.ListVolumesRequest) -> pb.ListVolumesResponse:
        rows, token = self._rows(request.max_entries, request.starting_token)
        nodes: dict[tuple[int, str], list[str]] = {}
        for claim in self._volumes.claims() if self._driver.attach else ():
            if not claim.fenced:
                nodes.setdefault((claim.volume, claim.path), []).append(claim.node)
        entries = []
        for row in rows:
            status = pb.ListVolumesResponse.VolumeStatus(published_node_ids=nodes.get((row.volume, row.path), ()))
            if self._driver.health_api == "1.12":
                status.volume_condition.CopyFrom(self._condition())
            entries.append(pb.ListVolumesResponse.Entry(volume=self.volume(row), status=status))
        return pb.ListVolumesResponse(entries=entries, next_token=token)

    def one(self, found: Found) -> pb.ControllerGetVolumeResponse:
        if found.record is None:
            raise not_found(f"{found.handle} was not made by this driver")
        claims = self._volumes.claims(found.volume.volume) if self._driver.attach else ()
        nodes = [one.node for one in claims if one.path == found.path and not one.fenced]
        status = pb.ControllerGetVolumeResponse.VolumeStatus(published_node_ids=nodes)
        if self._driver.health_api == "1.12":
            status.volume_condition.CopyFrom(self._condition())
        return pb.ControllerGetVolumeResponse(volume=self.volume(found.record), status=status)

    def capacity(self, request: pb.GetCapacityRequest) -> pb.GetCapacityResponse:
        if request.volume_capabilities:
            rules.check_capabilities(request.volume_capabilities)
        rules.read_parameters(request.parameters, {}, block=False, name="x")
        here = self._driver.reachable
        segments = request.accessible_topology.segments
        if any(segments.get(key, value) != value for key, value in here.items()):
            return pb.GetCapacityResponse(available_capacity=0)
        response = pb.GetCapacityResponse(available_capacity=self._volumes.free_bytes())
        response.maximum_volume_size.value = rules.FILE_BYTES_MAX
        return response

    # --- health -------------------------------------------------------------------------------------------------------------

    def _trouble(self) -> str:
        """What is wrong with the storage beneath all volumes."""
        damaged = int(self._volumes.figures().get("collect_corrupt_pieces", 0))
        return f"{damaged} extents with wrong bytes were found on a device" if damaged else ""

    def _condition(self) -> pb.VolumeCondition:
        words = self._trouble()
        return pb.VolumeCondition(abnormal=bool(words), message=words or "the volume is there")

    def health(self, found: Found) -> pb.VolumeHealth:
        words = self._trouble()
        entry = pb.VolumeHealth.VolumeHealthEntry(status=pb.DEGRADED, reason="Damage", message=words)
        return pb.VolumeHealth(volume_id=found.handle, health_statuses=[entry] if words else [])

    def health_page(self, request: pb.ControllerListVolumeHealthRequest) -> pb.ControllerListVolumeHealthResponse:
        rows, token = self._rows(request.max_entries, request.starting_token)
        words = self._trouble()
        entry = pb.VolumeHealth.VolumeHealthEntry(status=pb.DEGRADED, reason="Damage", message=words)
        entries = [pb.VolumeHealth(volume_id=row.id, health_statuses=[entry]) for row in rows] if words else []
        return pb.ControllerListVolumeHealthResponse(entries=entries, next_token=token)
