"""Builds what acts when the session of a mount ends or its node is removed."""

from __future__ import annotations

import threading
from typing import NamedTuple

from awsomefsd.meta.api.commands import OpenSession
from awsomefsd.meta.client.client import MetaClient
from awsomefsd.vfs.session.conflicts import Conflicts
from awsomefsd.vfs.session.evicted_node import Removal
from awsomefsd.vfs.session.mount_session import KernelInvalidation, SessionKeeper, SessionLease
from awsomefsd.vfs.state.delegated_names import DelegatedNames
from awsomefsd.vfs.vfs import Vfs
from awsomefsd.worker.config import WorkerConfig
from awsomefsd.worker.data_path import DataPath
from awsomefsd.worker.memory import MountMemory
from awsomefsd.worker.quarantine_proof import QuarantineProof
from awsomefsd.worker.service_calls import ServiceCalls
from awsomefsd.worker.session_change import SessionChange
from awsomefsd.worker.session_events import MountEvents
from awsomefsd.worker.session_opening import SessionOpening


class SessionParts(NamedTuple):
    change: SessionChange
    keeper: SessionKeeper
    events: MountEvents  # for the client


def build_session_parts(
    config: WorkerConfig, memory: MountMemory, client: MetaClient, calls: ServiceCalls, command: OpenSession, lease: SessionLease,
    data: DataPath, vfs: Vfs, kernel: KernelInvalidation, conflicts: Conflicts, ended: threading.Event,
    names: DelegatedNames | None, opening: SessionOpening,
) -> SessionParts:  # fmt: skip
    """Returns the parts for one mount, whose session `command` opens; `ended` is set at the end of the mount.  Does not block."""
    mount = vfs.mount
    proof = QuarantineProof(config.state_dir, command.mount, command.worker, data.writer.await_drained, calls.propose, ended)
    change = SessionChange(opening, mount, memory.control, data.writer, proof, conflicts, calls, names)
    keeper = SessionKeeper(opening, command, vfs, kernel, lease, conflicts, change.abandon_segments, change.replaced)
    removal = Removal(client, keeper, mount, lease, conflicts, names)
    return SessionParts(change, keeper, MountEvents(lease, vfs, keeper, removal, mount.caches.leases))
