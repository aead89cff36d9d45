"""This node's segment server and the devices of pools that it serves, as the API and the metrics show them."""

from __future__ import annotations

from collections.abc import Iterator

from awsomefsd.admin.pb import admin_pb2 as pb
from awsomefsd.base.metrics import Labels, Sample
from awsomefsd.io.pool.server_state import DeviceState
from awsomefsd.node.devices.served_devices import ServerReport
from awsomefsd.node.health import figures as described

_BAYS_HELP = "Bays of a device of a pool on this node, by what they are now."
_DONE_HELP = "Reads, writes and flushes of a device of a pool, by its segment server since it has the device."
_SECONDS_HELP = "Time that these took, in all."
_BYTES_HELP = "Bytes that these read or wrote."
_ERRORS_HELP = "Those that failed."
_USUAL_HELP = "How long one takes, the newest ones counting most."


def served_message(said: DeviceState) -> pb.ServedDevice:
    return pb.ServedDevice(
        bays=said.bays,
        bays_open=said.opened,
        copying=[pb.BayCopy(index=one.index, segment=one.segment, done_bytes=one.done, end_bytes=one.end) for one in said.copying],
        work=[
            pb.DeviceWork(
                kind=kind, done=one.done, bytes=one.bytes, errors=one.errors, seconds=one.ns / 1e9, usual_ms=one.usual_us / 1_000
            )
            for kind, one in said.work.items()
        ],
    )  # fmt: skip


def server_messages(report: ServerReport | None) -> Iterator[pb.SegmentServer]:
    """Yields what is known of this node's segment server, where one is to run."""
    if report is None:
        return
    state = report.state
    if state is None:
        yield pb.SegmentServer(trouble=report.why, silent_s=round(report.silent_s, 3))
    else:
        yield pb.SegmentServer(
            pid=state.pid, version=state.version, address=state.address, trouble=state.trouble, figures=state.figures
        )  # fmt: skip


def samples_of_server(status: pb.Status) -> Iterator[Sample]:
    """Yields the metrics of the segment server and of the devices that it serves, where one is to run."""
    for server in status.segment_servers:
        up = int(bool(server.pid))
        yield Sample("awsomefsd_segment_server_up", "gauge", "Whether the segment server of this node answers.", up)
        for name, value in sorted(server.figures.items()):
            yield described.sample(name, value)
    for device in status.devices:
        for served in device.served:
            place = (("device", str(device.device)), ("path", device.path))
            yield from _samples_of_bays(device, served, place)
            for work in served.work:
                yield from _samples_of_work(work, (*place, ("kind", work.kind)))


def _samples_of_bays(device: pb.Device, served: pb.ServedDevice, place: Labels) -> Iterator[Sample]:
    """Each bay is counted once; the log and the server are asked at different moments, so what is left over is not below 0."""
    copying, used = len(served.copying), device.segments - device.segments_free
    states = {"free": device.segments_free, "open": served.bays_open, "copying": copying, "held": max(used - served.bays_open - copying, 0)}
    for state, value in states.items():
        yield Sample("awsomefsd_pool_device_bays", "gauge", _BAYS_HELP, value, (*place, ("state", state)))


def _samples_of_work(work: pb.DeviceWork, labels: Labels) -> Iterator[Sample]:
    yield Sample("awsomefsd_pool_device_operations_total", "counter", _DONE_HELP, work.done, labels)
    yield Sample("awsomefsd_pool_device_operation_seconds_total", "counter", _SECONDS_HELP, work.seconds, labels)
    yield Sample("awsomefsd_pool_device_errors_total", "counter", _ERRORS_HELP, work.errors, labels)
    yield Sample("awsomefsd_pool_device_usual_seconds", "gauge", _USUAL_HELP, work.usual_ms / 1_000, labels)
    if work.kind != "flush":
        yield Sample("awsomefsd_pool_device_io_bytes_total", "counter", _BYTES_HELP, work.bytes, labels)
