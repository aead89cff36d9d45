"""Builds what the bytes of a mount pass through on their way to the devices and back."""

from __future__ import annotations

from typing import NamedTuple

from awsomefsd.base.limits import DEVICE_WAIT_MS_MAX, SESSION_TTL_MS
from awsomefsd.base.types import is_pool
from awsomefsd.io.device.open_devices import DevicesForReads, OpenDevices
from awsomefsd.io.file.damaged_reads import DamagedReads
from awsomefsd.io.file.draining import Draining
from awsomefsd.io.file.file_data import FileTable
from awsomefsd.io.file.flusher import Flusher
from awsomefsd.io.file.patience import Patience
from awsomefsd.io.file.reservation import Reservation
from awsomefsd.io.file.write_through import WriteThrough
from awsomefsd.io.segment.checksum_cache import ChecksumCache
from awsomefsd.io.segment.locations import Locations
from awsomefsd.io.segment.reader import SegmentReader
from awsomefsd.io.segment.seen_leases import SeenLeases
from awsomefsd.io.segment.writer import SegmentWriter
from awsomefsd.meta.client.metadata import Metadata
from awsomefsd.worker.cluster_devices import ClusterDevices
from awsomefsd.worker.config import WorkerConfig
from awsomefsd.worker.corrupt_reads import CorruptReads
from awsomefsd.worker.memory import MountMemory
from awsomefsd.worker.pool_path import PoolPath
from awsomefsd.worker.service_calls import ServiceCalls


class DataPath(NamedTuple):
    """No thread of these runs, and no device is open, before the takeover."""

    devices: OpenDevices
    locations: Locations
    checksums: ChecksumCache
    reader: SegmentReader
    writer: SegmentWriter
    files: FileTable
    reservation: Reservation
    through: WriteThrough | None  # of a volume that is shared
    flusher: Flusher
    draining: Draining
    pool: PoolPath
    patience: Patience

    def begin(self, home: str) -> None:
        """Says where the data of the volume is; before anything is written."""
        if is_pool(home):
            self.pool.begin()
            self.flusher.wait_for_mirrors(self.patience)
            if self.through is not None:
                self.through.wait_for_mirrors(self.patience)

    def stop(self) -> None:
        """Ends the threads, after what waits; blocks for them."""
        self.flusher.stop()
        if self.through is not None:
            self.through.stop()

    def close(self) -> None:
        """Ends the connections to segment servers, after the last segment was sealed."""
        self.pool.close()


def build_data_path(config: WorkerConfig, memory: MountMemory, metadata: Metadata, calls: ServiceCalls) -> DataPath:
    """Returns the parts for one mount, over its dirty log in `memory`.  Does not block."""
    cluster_devices = ClusterDevices(calls, config.state_dir, config.volume)
    devices = OpenDevices(cluster_devices.find, config.cluster, memory.control.counter("superblocks_repaired").add)
    locations = Locations(calls.ask, calls.propose)
    checksums = ChecksumCache()
    pool = PoolPath(config, cluster_devices.find, metadata.session_token, locations, SeenLeases(devices, locations.lease))
    reader = SegmentReader(
        DevicesForReads(devices), locations.locate, checksums, mirrors=pool.mirrors, locate_again=locations.locate_again,
        device_wait_ms=DEVICE_WAIT_MS_MAX,
    )  # fmt: skip
    writer = SegmentWriter(devices, pool.lease, checksums, bays=pool)
    records = DamagedReads(config.state_dir)
    corrupt = CorruptReads(calls, records, config.volume, config.volume_name, memory.control.counter("corrupt_reads").add)
    files = FileTable(config.volume, memory.dirty, reader, corrupt.report, leased=config.shared)
    reservation = Reservation(config.volume, metadata, memory.control)
    through = WriteThrough(config.volume, writer) if config.shared else None
    flusher = Flusher(files, memory.dirty, writer, metadata, reservation, memory.control)
    patience = Patience(SESSION_TTL_MS if config.on_lease_loss == "error" else None)
    undecided = None if through is None else through.undecided
    draining = Draining(writer, cluster_devices.to_leave, cluster_devices.report_sealed, undecided=undecided)
    return DataPath(devices, locations, checksums, reader, writer, files, reservation, through, flusher, draining, pool, patience)
